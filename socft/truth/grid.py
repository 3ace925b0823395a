r"""Functions on uniform grids in one and two dimensions: high-order interpolation and
exact-to-rounding Gaussian smoothing.

A value function is carried as its nodal values and gradients. Interpolation is Lagrange of degree 9
on the ten nearest nodes per axis. Smoothing, :math:`(G f)(x) = E f(x + \sigma W)` with one sigma
per axis (zero allowed), is a convolution whose weights are the sampled Gaussian where the grid
resolves it (the trapezoidal rule then errs by :math:`2 e^{-2\pi^2\sigma^2/h^2}`) and the
Gauss-Hermite integral of the interpolant where it does not. Outside the box gradients continue
linearly from the nearest boundary point (``extrapolation = 1``, so that linear-quadratic problems
are exact everywhere) or as constants (``extrapolation = 0``, right for value functions with a
bounded gradient, where a continued parabola would grow without bound).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require, sizes, tensor
from socft.policy import Policy
from socft.readable import Readable
from socft.reference import Noises, Reference, States, Step, by_step

DEGREE = 9
STENCIL = DEGREE + 1
REACH = 9.0  # kernels are cut at 9 standard deviations, where the Gaussian tail is 2e-19
# sigma / h above which the trapezoidal rule is exact to rounding: 2 exp(-2 pi^2 1.4^2) = 3e-17
RESOLVED = 1.4
HERMITE_NODES = 40
# replaces zero components of a ray; its square, which the derivative divides by, does not underflow
SHORTEST = 1e-100


@dataclasses.dataclass(frozen=True)
class Grid(Readable):
    """A uniform grid on a box.

    Attributes:
        lower: lower corner, shape (d,), d = 1 or 2.
        spacing: node distance per axis, shape (d,).
        shape: number of nodes per axis.
    """

    lower: Float[Tensor, " d"]
    spacing: Float[Tensor, " d"]
    shape: tuple[int, ...]

    @classmethod
    def box(
        cls, lower: Float[Tensor, " d"], upper: Float[Tensor, " d"], shape: tuple[int, ...]
    ) -> Grid:
        """The grid with ``shape`` nodes between two corners, both included."""
        shape = sizes(shape, "shape")
        lower = tensor(lower, "lower", ("d",))
        upper = tensor(upper, "upper", lower.shape)
        require(
            len(shape) == len(lower) in (1, 2),
            f"a grid of shape {shape} for {len(lower)} dimensions; grids have 1 or 2.",
        )
        require(
            min(shape) >= STENCIL,
            f"a grid of shape {shape} is too small; use at least {STENCIL} nodes per axis.",
        )
        require(
            bool((upper > lower).all()),
            f"the grid runs from {lower.tolist()} to {upper.tolist()}; upper must exceed lower.",
        )
        return cls(
            lower, (upper - lower) / (torch.tensor(shape, dtype=torch.float64) - 1), tuple(shape)
        )

    @property
    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @functools.cached_property
    def upper(self) -> Float[Tensor, " d"]:
        """Upper corner."""
        return self.lower + self.spacing * (torch.tensor(self.shape, dtype=torch.float64) - 1)

    def axis(self, i: int) -> Float[Tensor, " n"]:
        """Coordinates of the nodes along axis ``i``."""
        return self.lower[i] + self.spacing[i] * torch.arange(self.shape[i], dtype=torch.float64)

    @functools.cached_property
    def nodes(self) -> Float[Tensor, "nodes d"]:
        """All nodes, last axis fastest."""
        return torch.stack(
            torch.meshgrid(*[self.axis(i) for i in range(self.dim)], indexing="ij"), -1
        ).reshape(-1, self.dim)

    def clamp(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The nearest point of the box."""
        return torch.clamp(x, self.lower, self.upper)

    def stencil(self, x: Float[Tensor, "batch d"]) -> tuple[Tensor, Tensor]:
        """Flat node indices and Lagrange weights, both (batch, STENCIL**d), of points inside the
        box.
        """
        position = (x - self.lower) / self.spacing
        index, weight = None, None
        for i, n in enumerate(self.shape):
            first = (position[:, i].detach().floor().long() - (STENCIL // 2 - 1)).clamp(
                0, n - STENCIL
            )
            axis_weight = _lagrange(position[:, i] - first)
            axis_index = first[:, None] + torch.arange(STENCIL)
            if index is None or weight is None:
                index, weight = axis_index, axis_weight
            else:
                index = (index[:, :, None] * n + axis_index[:, None, :]).flatten(1)
                weight = (weight[:, :, None] * axis_weight[:, None, :]).flatten(1)
        assert index is not None
        assert weight is not None
        return index, weight

    def interpolate(
        self, fields: Float[Tensor, "nodes f"], x: Float[Tensor, "batch d"]
    ) -> Float[Tensor, "batch f"]:
        """Lagrange interpolation of nodal fields at points inside the box;
        differentiable in ``x``.
        """
        index, weight = self.stencil(x)
        return _gather(fields, index, weight)

    def extend(
        self,
        fields: Float[Tensor, "nodes f"],
        x: Float[Tensor, "batch d"],
        extrapolation: float = 1.0,
    ) -> Float[Tensor, "batch f"]:
        """`interpolate` inside the box; outside, continuation from the nearest point of it with
        ``extrapolation`` times the slope there.
        """
        inside = self.clamp(x)
        excess = x - inside
        values = self.interpolate(fields, inside)
        outside = (excess != 0).any(1)
        if extrapolation and bool(outside.any()):
            ray, base = excess[outside], inside[outside]
            back = (self.spacing / ray.abs().clamp(min=SHORTEST)).amin(1, keepdim=True)
            slope = (values[outside] - self.interpolate(fields, base - back * ray)) / back
            values = values.index_put((outside,), values[outside] + extrapolation * slope)
        return values

    def jacobian(self, fields: Float[Tensor, "nodes f"]) -> Float[Tensor, "nodes f d"]:
        """Derivatives of nodal fields by central differences of the order of the interpolant;
        linear continuation at the edges.
        """
        _, difference = _central_difference()
        kernel = torch.from_numpy(difference)
        shaped = fields.reshape(*self.shape, -1)
        slopes = [
            _convolve(_pad_linear(shaped, i, len(kernel) // 2), kernel, i) / self.spacing[i]
            for i in range(self.dim)
        ]
        return torch.stack(slopes, -1).reshape(len(fields), -1, self.dim)

    def scatter(
        self, masses: Float[Tensor, " batch"], x: Float[Tensor, "batch d"]
    ) -> Float[Tensor, " nodes"]:
        """The transpose of `interpolate`: nodal masses that integrate like point masses at ``x``;
        points outside are dropped.
        """
        inside = self.clamp(x)
        kept = torch.where((inside == x).all(1), masses, torch.zeros_like(masses))
        index, weight = self.stencil(inside)
        out = torch.zeros(math.prod(self.shape), dtype=torch.float64)
        return out.index_add_(0, index.flatten(), (weight * kept[:, None]).flatten())

    def diffuse(
        self, masses: Float[Tensor, " nodes"], sigma: Float[Tensor, " d"]
    ) -> Float[Tensor, " nodes"]:
        """Add independent N(0, sigma^2) noise to nodal masses; what leaves the box is lost."""
        field = masses.reshape(self.shape)
        for i in range(self.dim):
            kernel = _kernels(float(sigma[i] / self.spacing[i]))[0]
            field = _convolve(_pad_zero(field, i, len(kernel) // 2), kernel.flip(0), i)
        return field.reshape(-1)


@dataclasses.dataclass(frozen=True)
class ValueGrid:
    """A value function on a grid.

    Attributes:
        grid: where it is known.
        value: nodal values, shape (nodes,).
        gradient: nodal gradients, shape (nodes, d).
        extrapolation: how gradients continue outside the box, 1 for linearly and 0 for constant.
    """

    grid: Grid
    value: Float[Tensor, " nodes"]
    gradient: Float[Tensor, "nodes d"]
    extrapolation: float = 1.0

    def gradient_at(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """The gradient anywhere."""
        return self.grid.extend(self.gradient, x, self.extrapolation)

    def at(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """The value anywhere; outside the box the integral of the continued gradient."""
        inside = self.grid.clamp(x)
        excess = x - inside
        value = self.grid.interpolate(self.value[:, None], inside)[:, 0]
        outside = (excess != 0).any(1)
        if bool(outside.any()):
            gradient = (self.gradient_at(inside[outside]) + self.gradient_at(x[outside])) / 2
            continued = value[outside] + (gradient * excess[outside]).sum(1)
            value = value.index_put((outside,), continued)
        return value

    def smooth(self, sigma: Float[Tensor, " d"]) -> SmoothValue:
        """``G V`` with its gradient and Hessian at the nodes of the same grid."""
        grid, d = self.grid, self.grid.dim
        fields = torch.cat([self.value[:, None], self.gradient], 1).reshape(*grid.shape, 1 + d)
        kernels = [_kernels(float(sigma[i] / grid.spacing[i])) for i in range(d)]
        for i in range(d):
            fields = _pad_taylor(
                fields, i, len(kernels[i][0]) // 2, float(grid.spacing[i]), self.extrapolation
            )
        plain = functools.reduce(lambda f, i: _convolve(f, kernels[i][0], i), range(d), fields)
        hessian = torch.empty(*grid.shape, d, d, dtype=torch.float64)
        for j in range(d):
            slopes = fields[..., 1:]
            for i in range(d):
                kernel = kernels[i][1] / grid.spacing[i] if i == j else kernels[i][0]
                slopes = _convolve(slopes, kernel, i)
            hessian[..., j] = slopes
        hessian = (hessian + hessian.mT) / 2
        return SmoothValue(
            grid,
            torch.cat([plain, hessian.flatten(-2)], -1).reshape(-1, 1 + d + d * d),
            self.extrapolation,
        )


@dataclasses.dataclass(frozen=True)
class SmoothValue:
    """The smoothed value function ``G V``, evaluated anywhere.

    Attributes:
        grid: where the fields live.
        fields: value, gradient and flattened Hessian at the nodes, shape (nodes, 1 + d + d^2).
        extrapolation: how gradients continue outside the box.
    """

    grid: Grid
    fields: Float[Tensor, "nodes f"]
    extrapolation: float = 1.0

    @property
    def hessian_at_nodes(self) -> Float[Tensor, "nodes d d"]:
        """Hessian of ``G V`` at the nodes."""
        d = self.grid.dim
        return self.fields[:, 1 + d :].reshape(-1, d, d)

    def gradient(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Gradient of ``G V``."""
        d = self.grid.dim
        inside = self.grid.clamp(x)
        excess = x - inside
        picked = self.grid.interpolate(self.fields[:, 1 : 1 + d], inside)
        outside = (excess != 0).any(1)
        if bool(outside.any()):
            hessian = self.grid.interpolate(self.fields[:, 1 + d :], inside[outside]).reshape(
                -1, d, d
            )
            picked[outside] += self.extrapolation * torch.einsum(
                "bij,bj->bi", hessian, excess[outside]
            )
        return picked

    def derivatives(self, x: Float[Tensor, "batch d"]) -> tuple[Tensor, Tensor]:
        """Gradient (batch, d) and Hessian (batch, d, d) of ``G V``."""
        d = self.grid.dim
        inside = self.grid.clamp(x)
        picked = self.grid.interpolate(self.fields[:, 1:], inside)
        hessian = picked[:, d:].reshape(-1, d, d)
        return picked[:, :d] + self.extrapolation * torch.einsum(
            "bij,bj->bi", hessian, x - inside
        ), hessian

    def value(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """``G V``."""
        return self.value_and_gradient(x)[0]

    def value_and_gradient(self, x: Float[Tensor, "batch d"]) -> tuple[Tensor, Tensor]:
        """``G V``, (batch,), and its gradient, (batch, d)."""
        d = self.grid.dim
        inside = self.grid.clamp(x)
        excess = x - inside
        if not bool((excess != 0).any()):
            picked = self.grid.interpolate(self.fields[:, : 1 + d], inside)
            return picked[:, 0], picked[:, 1:]
        picked = self.grid.interpolate(self.fields, inside)
        slope, hessian = picked[:, 1 : 1 + d], picked[:, 1 + d :].reshape(-1, d, d)
        bent = self.extrapolation * torch.einsum("bij,bj->bi", hessian, excess)
        return picked[:, 0] + ((slope + bent / 2) * excess).sum(1), slope + bent


def _gather(fields: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    picked = fields.index_select(0, index.flatten()).reshape(*index.shape, -1)
    return torch.bmm(weight[:, None, :], picked).squeeze(1)


@functools.cache
def _lagrange_scale() -> Tensor:
    scale = [1 / math.prod(j - i for i in range(STENCIL) if i != j) for j in range(STENCIL)]
    return torch.tensor(scale, dtype=torch.float64)


def _lagrange(s: Tensor) -> Tensor:
    """Weights (batch, STENCIL) of the polynomial through nodes 0..DEGREE at ``s``."""
    nodes = torch.arange(STENCIL, dtype=s.dtype)
    one = torch.ones_like(s[:, None])
    below = torch.cat([one, (s[:, None] - nodes[:-1]).cumprod(1)], 1)
    above = torch.cat([one, (s[:, None] - nodes[1:].flip(0)).cumprod(1)], 1).flip(1)
    return below * above * _lagrange_scale()


@functools.lru_cache(maxsize=4096)
def _kernels(ratio: float) -> tuple[Tensor, Tensor]:
    """Convolution weights of ``E f(x + s W)`` and of its derivative, for ``s = ratio`` in units of
    the spacing.
    """
    if ratio >= RESOLVED:
        reach = math.ceil(REACH * ratio)
        offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
        weight = torch.exp(-((offset / ratio) ** 2) / 2)
        weight = weight / weight.sum()
        return weight, weight * offset / ratio**2
    reach = math.ceil(max(1.0, 1.42 * ratio * np.sqrt(2 * HERMITE_NODES + 1))) + STENCIL
    plain = np.zeros(2 * reach + 1)
    slope = np.zeros(2 * reach + 1)
    offsets, difference = _central_difference()
    slope[reach + offsets] = difference
    if ratio == 0:
        plain[reach] = 1.0
        return torch.from_numpy(plain), torch.from_numpy(slope)
    node, mass = np.polynomial.hermite_e.hermegauss(HERMITE_NODES)
    position = torch.from_numpy(ratio * node)
    first = position.floor().long() - (STENCIL // 2 - 1)
    weight = _lagrange(position - first).numpy() * (mass / mass.sum())[:, None]
    np.add.at(plain, reach + first.numpy()[:, None] + np.arange(STENCIL), weight)
    return torch.from_numpy(plain), torch.from_numpy(
        np.convolve(plain, slope, mode="full")[reach:-reach]
    )


def _central_difference() -> tuple[np.ndarray, np.ndarray]:
    """Offsets and weights of the central first difference of the order of the interpolant."""
    half = STENCIL // 2
    offsets = np.arange(-half, half + 1)
    moments = np.vander(offsets.astype(float), increasing=True).T
    return offsets, np.linalg.solve(moments, np.eye(len(offsets))[1])


def _convolve(field: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """``out[i] = sum_j kernel[j] field[i + j]`` along an axis (valid part)."""
    moved = field.movedim(axis, -1)
    out = torch.nn.functional.conv1d(moved.reshape(-1, 1, moved.shape[-1]), kernel[None, None])
    return out.reshape(*moved.shape[:-1], -1).movedim(-1, axis)


def _pad_zero(field: Tensor, axis: int, width: int) -> Tensor:
    moved = field.movedim(axis, -1)
    return torch.nn.functional.pad(moved, (width, width)).movedim(-1, axis)


def _pad_linear(fields: Tensor, axis: int, width: int) -> Tensor:
    moved = fields.movedim(axis, 0)
    steps = torch.arange(1, width + 1, dtype=torch.float64).reshape(-1, *[1] * (moved.ndim - 1))
    before, after = (
        moved[0] + steps.flip(0) * (moved[0] - moved[1]),
        moved[-1] + steps * (moved[-1] - moved[-2]),
    )
    return torch.cat([before, moved, after], 0).movedim(0, axis)


def _pad_taylor(fields: Tensor, axis: int, width: int, h: float, extrapolation: float) -> Tensor:
    """Continue (value, gradient) fields along an axis: gradients with ``extrapolation``
    times their slope, values
    by integrating them.
    """
    moved = fields.movedim(axis, 0)
    sides = []
    for edge, inner, sign in ((moved[0], moved[1], -1.0), (moved[-1], moved[-2], 1.0)):
        steps = torch.arange(1, width + 1, dtype=torch.float64).reshape(-1, *[1] * edge.ndim)
        change = extrapolation * (edge - inner)
        out = edge + steps * change
        reach = (sign * h * steps)[..., 0]
        out[..., 0] = (
            edge[..., 0]
            + edge[..., 1 + axis] * reach
            + change[..., 1 + axis] * (sign / h) * reach**2 / 2
        )
        sides.append(out)
    return torch.cat([sides[0].flip(0), moved, sides[1]], 0).movedim(0, axis)


RULE_NODES = {1: 2049, 2: 129}


@functools.cache
def tensor_rule(dim: int) -> tuple[Float[Tensor, "nodes d"], Float[Tensor, " nodes"]]:
    """Points and weights of the trapezoidal rule for N(0, I) on [-9, 9]^dim, exact to rounding for
    entire functions.
    """
    z = torch.linspace(-REACH, REACH, RULE_NODES[dim], dtype=torch.float64)
    w = torch.exp(-(z**2) / 2)
    w = w / w.sum()
    points = torch.tensor(list(itertools.product(z.tolist(), repeat=dim)), dtype=torch.float64)
    weights = functools.reduce(lambda a, b: (a[:, None] * b[None, :]).flatten(), [w] * dim)
    return points, weights


class GridPolicy(Policy):
    """Controls tabulated on one grid per step, interpolated inside and continued outside, linearly
    (extrapolation 1) or as constants (0).
    """

    def __init__(
        self,
        grids: Sequence[Grid],
        controls: Sequence[Float[Tensor, "nodes m"]],
        extrapolation: float = 1.0,
    ):
        require(
            len(grids) == len(controls),
            f"{len(grids)} grids for {len(controls)} controls; give one grid per step.",
        )
        self.grids = tuple(grids)
        self.controls = tuple(controls)
        self.extrapolation = extrapolation

    @classmethod
    def from_shifts(
        cls,
        reference: Reference,
        grids: Sequence[Grid],
        shifts: Sequence[Float[Tensor, "_ n"]],
        extrapolation: float = 1.0,
    ) -> GridPolicy:
        """From tabulated mean shifts ``B_k v_k``."""
        whiten = reference.diffusion.whiten
        return cls(
            grids,
            [whiten(k, g.nodes, s) for k, (g, s) in enumerate(zip(grids, shifts, strict=True))],
            extrapolation,
        )

    def __call__(self, k: Step, x: States) -> Noises:
        return by_step(
            k, x, lambda i, y: self.grids[i].extend(self.controls[i], y, self.extrapolation).to(y)
        )
