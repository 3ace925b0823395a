r"""One step of dynamic programming on a grid, in the operator form of the Bellman equation.

With :math:`\rho = \mathrm{diag}(B B^\top)/\beta` and :math:`(G f)(x) = E f(x + \sigma W)`,

.. math:: V_k = -f_k + \Big[ \sup_\delta\, (G V_{k+1})(\cdot + \delta) - \tfrac12
    |\delta|^2_{\rho^{-1}} \Big] \circ m_k ,

a Gaussian smoothing, a Moreau envelope and a composition with the pre-trained mean map (derived
here from equations 8-9 of arXiv 2412.18164v4). The shift is :math:`\delta = B v`; the inner loop of
PI-FT (equation 35) is the proximal fixed-point iteration
:math:`\delta \leftarrow \rho \nabla (G V_{k+1})(m_k(y) + \delta)`.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from socft.checks import require, require_finite
from socft.problem import ControlProblem
from socft.reference import Reference
from socft.truth.grid import Grid, SmoothValue, ValueGrid

NEWTON_STEPS = 60
ROUNDING = 1e-14
PEAK = 1e-9
"""Relative: what a maximum between nodes is known to."""
CANDIDATES = 2**18
"""Points around which a maximum is sought."""
EDGE = 0.0625  # fraction of the width at either end where values feel the continuation
# standard deviations from an edge over which smoothing brings the continuation in, up to 3e-7 of it
TAINTED = 5.0


def axis_sigma(reference: Reference, k: int) -> Float[Tensor, " d"]:
    """Noise scale per axis of step ``k``, zero where the noise is degenerate.

    Raises:
        InvalidProblem: ``B_k B_k^T`` is not diagonal, or the reference does not live on vectors.
    """
    require(
        len(reference.dims) == 1,
        f"states of shape {reference.dims} have no grid; quadrature needs vectors of length 1"
        " or 2.",
    )
    d = reference.dims[0]
    eye = torch.eye(d, dtype=torch.float64)
    factor = reference.diffusion.transpose(k, torch.zeros(d, d, dtype=torch.float64), eye)
    covariance = factor @ factor.T
    off_diagonal = float((covariance - torch.diag(covariance.diag())).abs().max())
    require(
        off_diagonal <= ROUNDING * float(covariance.abs().max()),
        f"B[{k}] B[{k}]^T has an off-diagonal entry {off_diagonal:g}; rotate the state so that the"
        " noise acts along the axes.",
    )
    return covariance.diag().sqrt()


@dataclasses.dataclass(frozen=True)
class BellmanStep:
    """The Bellman equation of one step on the nodes of a grid.

    Attributes:
        k: the step.
        grid: grid of the states at step k.
        mean: ``m_k`` at the nodes, shape (nodes, d).
        mean_jacobian: its Jacobian, shape (nodes, d, d).
        rho: ``sigma^2 / beta`` per axis, shape (d,).
        beta: KL weight of the step.
        smooth: ``G V_{k+1}``.
        cost: running cost at the nodes, (nodes,), and its gradient, (nodes, d).
    """

    k: int
    grid: Grid
    mean: Float[Tensor, "nodes d"]
    mean_jacobian: Float[Tensor, "nodes d d"]
    rho: Float[Tensor, " d"]
    beta: float
    smooth: SmoothValue
    cost: tuple[Tensor, Tensor]

    @classmethod
    def build(
        cls, problem: ControlProblem, k: int, grid: Grid, next_value: ValueGrid
    ) -> BellmanStep:
        """The step ``k`` of a problem, given the value function that follows."""
        sigma, weight = axis_sigma(problem.reference, k), float(problem.beta[k])
        mean, jacobian = mean_and_jacobian(problem.reference, k, grid.nodes)
        cost = _cost_and_gradient(problem, k, grid.nodes)
        return cls(
            k, grid, mean, jacobian, sigma**2 / weight, weight, next_value.smooth(sigma), cost
        )

    def under(self, weight: float, next_value: ValueGrid) -> BellmanStep:
        """The same step under another KL weight, before another value function."""
        sigma = (self.rho * self.beta).sqrt()
        return dataclasses.replace(
            self, rho=sigma**2 / weight, beta=weight, smooth=next_value.smooth(sigma)
        )

    def curvature(self) -> float:
        """``sup |Hess G V_{k+1}|`` along the noisy axes, the operator norm that decides
        contraction.

        The supremum is over the box away from the edges, where the continuation is not felt. At a
        maximum the gradient vanishes, so the nearest node misses it by half the second derivative
        times the square of its distance at most: cells that may hold it are divided until that is
        within `PEAK` of the result, to which it is added.
        """
        grid, kept, second = self.smooth.grid, self._nodal, self._second
        best, x, radius = kept.max(), grid.nodes[self._interior], 0.5
        least, most = x.amin(0), x.amax(0)
        while (missed := second * radius**2 / 2) > PEAK * best:
            x = x[kept >= best - missed]
            if not 0 < len(x) * 4**grid.dim <= CANDIDATES:
                break
            radius /= 4
            offsets = torch.tensor([-3.0, -1.0, 1.0, 3.0], dtype=torch.float64) * radius
            around = torch.cartesian_prod(*[offsets] * grid.dim).reshape(-1, grid.dim)
            x = (x[:, None] + around * grid.spacing).reshape(-1, grid.dim).clamp(least, most)
            kept = self._bent(self.smooth.derivatives(x)[1])
            best = torch.maximum(best, kept.max())
        return float((best + missed) / self.rho.max())

    @property
    def curvature_bound(self) -> float:
        """What `curvature` is at most, from the nodes alone."""
        return float((self._nodal.max() + self._second / 8) * (1 + PEAK) / self.rho.max())

    @functools.cached_property
    def _nodal(self) -> Float[Tensor, " interior"]:
        """The scaled norms at the nodes away from the edges."""
        return self._bent(self.smooth.hessian_at_nodes[self._interior])

    @functools.cached_property
    def _second(self) -> float:
        """Of second derivatives of the scaled norm, in units of the spacing."""
        return 2 * self.smooth.grid.dim * self._second_difference()

    def _bent(self, hessian: Float[Tensor, "points d d"]) -> Float[Tensor, " points"]:
        """The norm of ``rho^(1/2) Hess(G V) rho^(1/2)``."""
        root = self.rho.sqrt()
        return torch.stack(_ends(root[:, None] * hessian * root)).abs().amax(0)

    def _second_difference(self) -> float:
        """The largest one of the scaled Hessian between neighbours away from the edges, summed over
        the axes.
        """
        grid, root = self.smooth.grid, self.rho.sqrt()
        shape = (*grid.shape, grid.dim, grid.dim)
        field = (root[:, None] * self.smooth.hessian_at_nodes * root).reshape(shape)
        inside = self._interior.reshape(grid.shape)
        total = 0.0
        for axis in range(grid.dim):
            bent = field.diff(n=2, dim=axis)
            both = inside.narrow(axis, 1, grid.shape[axis] - 2)
            total += float(torch.linalg.matrix_norm(bent)[both].max())
        return total

    def require_well_posed(self) -> None:
        """Refuse a beta for which the maximisation over the control is not strongly concave."""
        worst = float(_ends(self._interior_hessian())[1].max())
        require(
            worst < 1,
            f"beta[{self.k}] = {self.beta:g} gives sigma^2 sup Hess(G V) / beta = {worst:g}; it"
            " must be < 1 for the control to be well defined. Raise beta above"
            f" {worst * self.beta:g}.",
        )

    def improve(self, shift: Float[Tensor, "nodes d"]) -> Float[Tensor, "nodes d"]:
        """One inner iteration of PI-FT (equation 35)."""
        return self.rho * self.smooth.gradient(self.mean + shift)

    def solve(self, start: Float[Tensor, "nodes d"] | None = None) -> Float[Tensor, "nodes d"]:
        """The optimal shift at every node, by Newton's method with step halving, to rounding.

        Args:
            start: where to begin; at no shift by default.
        """
        self.require_well_posed()
        shift = torch.zeros_like(self.mean) if start is None else start
        gradient, hessian = self.smooth.derivatives(self.mean + shift)
        residual = shift - self.rho * gradient
        damping = torch.ones_like(shift[:, :1])
        eye = torch.eye(self.grid.dim, dtype=torch.float64)
        for _ in range(NEWTON_STEPS):
            if float((residual.abs() / (1 + shift.abs())).max()) <= ROUNDING:
                break
            step = _solved(eye - self.rho[:, None] * hessian, residual)
            trial = shift - damping * step
            gradient, trial_hessian = self.smooth.derivatives(self.mean + trial)
            trial_residual = trial - self.rho * gradient
            better = trial_residual.norm(dim=1, keepdim=True) < residual.norm(dim=1, keepdim=True)
            shift, residual = (
                torch.where(better, trial, shift),
                torch.where(better, trial_residual, residual),
            )
            hessian = torch.where(better[..., None], trial_hessian, hessian)
            damping = torch.where(better, (2 * damping).clamp(max=1), damping / 2)
        return shift

    def value(self, shift: Float[Tensor, "nodes d"]) -> ValueGrid:
        """Value and gradient of using ``shift`` at this step (equations 36 and 55)."""
        x = self.mean + shift
        price = self._price(shift)
        value = self.smooth.value(x) - (price * shift).sum(1) / 2 - self.cost[0]
        costate = self.smooth.gradient(x)
        gradient = torch.einsum("bij,bi->bj", self.mean_jacobian, costate) - self.cost[1]
        gradient = gradient + torch.einsum("bij,bi->bj", self.grid.jacobian(shift), costate - price)
        return ValueGrid(self.grid, value, gradient, self.smooth.extrapolation)

    def optimal_value(self, shift: Float[Tensor, "nodes d"]) -> ValueGrid:
        """`value` at the optimum, where the envelope identity (equation 34) removes the control's
        Jacobian.
        """
        found, costate = self.smooth.value_and_gradient(self.mean + shift)
        return ValueGrid(
            self.grid,
            found - (self._price(shift) * shift).sum(1) / 2 - self.cost[0],
            torch.einsum("bij,bi->bj", self.mean_jacobian, costate) - self.cost[1],
            self.smooth.extrapolation,
        )

    def _price(self, shift: Float[Tensor, "nodes d"]) -> Float[Tensor, "nodes d"]:
        """``rho^-1`` times a shift, 0 along axes without noise."""
        return torch.where(
            self.rho > 0, shift / self.rho.clamp(min=torch.finfo(torch.float64).tiny), 0.0
        )

    @functools.cached_property
    def _interior(self) -> Bool[Tensor, " nodes"]:
        """The nodes whose smoothing does not reach the edges."""
        grid = self.smooth.grid
        width, sigma = grid.upper - grid.lower, (self.rho * self.beta).sqrt()
        margin = torch.minimum(torch.maximum(EDGE * width, TAINTED * sigma), 0.4 * width)
        return ((grid.nodes >= grid.lower + margin) & (grid.nodes <= grid.upper - margin)).all(1)

    def _interior_hessian(self) -> Float[Tensor, "interior d d"]:
        """``rho^(1/2) Hess(G V) rho^(1/2)`` at those nodes."""
        root = self.rho.sqrt()
        return root[:, None] * self.smooth.hessian_at_nodes[self._interior] * root


def _ends(matrices: Float[Tensor, "points d d"]) -> tuple[Tensor, Tensor]:
    """The least and the largest eigenvalue of symmetric matrices, d = 1 or 2."""
    if matrices.shape[-1] == 1:
        return matrices[:, 0, 0], matrices[:, 0, 0]
    mean = (matrices[:, 0, 0] + matrices[:, 1, 1]) / 2
    radius = torch.hypot((matrices[:, 0, 0] - matrices[:, 1, 1]) / 2, matrices[:, 0, 1])
    return mean - radius, mean + radius


def _solved(
    matrices: Float[Tensor, "points d d"], right: Float[Tensor, "points d"]
) -> Float[Tensor, "points d"]:
    """Solutions of linear equations, d = 1 or 2."""
    if right.shape[1] == 1:
        return right / matrices[:, 0]
    (a, b), (c, d) = matrices[:, 0].T, matrices[:, 1].T
    first, second = d * right[:, 0] - b * right[:, 1], a * right[:, 1] - c * right[:, 0]
    return torch.stack([first, second], 1) / (a * d - b * c)[:, None]


def terminal_value(problem: ControlProblem, grid: Grid) -> ValueGrid:
    """The reward as the value function of step T."""
    nodes = grid.nodes
    value = problem.reward(nodes)
    remedy = "the reward must be finite wherever the chain can go; check its domain."
    require_finite(value, "reward at node ", remedy)
    gradient = problem.reward.gradient(nodes)
    require_finite(gradient, "reward gradient at node ", remedy)
    bounded = math.inf > problem.reward.L0 and problem.running_cost is None
    return ValueGrid(grid, value, gradient, extrapolation=0.0 if bounded else 1.0)


def mean_and_jacobian(
    reference: Reference, k: int, nodes: Float[Tensor, "nodes d"]
) -> tuple[Float[Tensor, "nodes d"], Float[Tensor, "nodes d d"]]:
    """``m_k`` and its Jacobian at the nodes."""
    with torch.enable_grad():
        y = nodes.detach().requires_grad_(True)
        mean = reference.mean(k, y)
        rows = [
            torch.autograd.grad(mean[:, i].sum(), y, retain_graph=True)[0]
            for i in range(mean.shape[1])
        ]
    return mean.detach(), torch.stack(rows, 1)


def _cost_and_gradient(problem: ControlProblem, k: int, nodes: Tensor) -> tuple[Tensor, Tensor]:
    if problem.running_cost is None:
        return nodes.new_zeros(len(nodes)), torch.zeros_like(nodes)
    with torch.enable_grad():
        y = nodes.detach().requires_grad_(True)
        cost = problem.cost(k, y)
        gradient = torch.autograd.grad(cost.sum(), y)[0] if cost.requires_grad else None
    require(
        gradient is not None or bool((cost == cost[0]).all()),
        "the running cost has no gradient: its value does not depend on the states through"
        " differentiable operations; compute it by torch.",
    )
    return cost.detach(), torch.zeros_like(nodes) if gradient is None else gradient
