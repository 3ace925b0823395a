r"""Pre-trained kernels :math:`x' = m_k(x) + B_k(x)\,\xi`, :math:`\xi \sim N(0, I)`, k = 0..T-1.

Everything downstream sees a reference through five maps: the initial state as a function of
standard noise, the mean ``m_k``, and the diffusion ``B_k`` applied to noise, transposed onto
costates, and inverted (least squares) onto states. States have shape ``batch *dims``, noises and
whitened controls ``batch *noise_dims``; ``k`` is one step or one step per sample.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from socft.checks import (
    InvalidProblem,
    Numbers,
    identity_or,
    numbers,
    require,
    require_kind,
    require_positive,
    sizes,
    whole,
    zeros_or,
)
from socft.probing import probe_initial, probe_steps
from socft.readable import Readable
from socft.schedule import Schedule

Step: TypeAlias = "int | Int[Tensor, ' batch']"
States: TypeAlias = Float[Tensor, "batch *dims"]
Noises: TypeAlias = Float[Tensor, "batch *noise_dims"]

ORTHONORMAL = 1e-10
"""Largest entry of ``Q^T Q - I`` a basis may have: eigh leaves about n eps, and the transfers
inherit the defect.
"""


def at_step(coefficients: Tensor, k: Step, x: Tensor) -> Tensor:
    """Pick coefficient(s) ``k`` in the dtype and device of ``x``, shaped to broadcast against
    ``batch *dims``.
    """
    picked = coefficients[k.to(coefficients.device) if isinstance(k, Tensor) else k].to(x)
    return picked if picked.ndim == 0 else picked.reshape(-1, *[1] * (x.ndim - 1))


def level_at(abar: Tensor, k: Step, x: Tensor) -> tuple[Tensor, Tensor]:
    """`at_step` of signal and noise level, ``abar`` and ``1 - abar``, each to the precision of
    ``x``: the difference of the rounded ones would lose the noise next to level 1.
    """
    return at_step(abar, k, x), at_step(1 - abar, k, x)


def by_step(k: Step, x: Tensor, function: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Apply ``function(step, rows)`` to the rows of each step, for one step or one step per sample.

    An empty batch goes to step 0, which gives the result its shape.
    """
    if isinstance(k, int):
        return function(k, x)
    if len(k) == 0:
        return function(0, x)
    parts = [(k == i).nonzero().flatten() for i in k.unique().tolist()]
    rows = torch.cat([function(int(k[part[0]]), x[part]) for part in parts])
    return rows[torch.cat(parts).argsort()]


@torch.no_grad()
def affine_coefficients(
    function: Callable[[int, Float[Tensor, "points n"]], Float[Tensor, "points m"]],
    steps: int,
    n: int,
) -> tuple[Float[Tensor, "steps m n"], Float[Tensor, "steps m"]]:
    """``A`` and ``b`` of a function ``A_k x + b_k``, from its values at 0 and the unit vectors."""
    points = torch.cat([torch.zeros(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)])
    values = torch.stack([function(k, points) for k in range(steps)])
    return (values[:, 1:] - values[:, :1]).mT.contiguous(), values[:, 0].contiguous()


class Diffusion(Readable, abc.ABC):
    """The noise map ``B_k(x)`` of a kernel."""

    @abc.abstractmethod
    def apply(self, k: Step, x: States, z: Noises) -> States:
        """``B_k(x) z``."""

    @abc.abstractmethod
    def transpose(self, k: Step, x: States, a: States) -> Noises:
        """``B_k(x)^T a``."""

    @abc.abstractmethod
    def whiten(self, k: Step, x: States, shift: States) -> Noises:
        """The control of least norm whose push ``B_k(x) v`` is closest to ``shift`` (the
        pseudo-inverse).
        """

    @abc.abstractmethod
    def solve_transpose(self, k: Step, x: States, z: Noises) -> States:
        """The least costate ``a`` whose ``B_k(x)^T a`` is closest to ``z`` (the pseudo-inverse of
        the transpose).
        """

    @abc.abstractmethod
    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one noise, given the shape of one state."""


class ScalarDiffusion(Diffusion):
    """``B_k = sigma_k I`` with ``sigma`` of shape (T,), strictly positive.

    >>> ScalarDiffusion([0.5, 0.25]).whiten(1, torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[4.]])
    """

    def __init__(self, sigma: Numbers):
        self.sigma = numbers(sigma, "sigma", ("steps",))
        require(len(self.sigma) > 0, "sigma has shape (0,); give one scale per step.")
        require_positive(
            self.sigma, "sigma", "a step without noise cannot be steered at a finite KL."
        )

    def apply(self, k: Step, x: States, z: Noises) -> States:
        return at_step(self.sigma, k, z) * z

    def transpose(self, k: Step, x: States, a: States) -> Noises:
        return at_step(self.sigma, k, a) * a

    def whiten(self, k: Step, x: States, shift: States) -> Noises:
        return shift / at_step(self.sigma, k, shift)

    def solve_transpose(self, k: Step, x: States, z: Noises) -> States:
        return z / at_step(self.sigma, k, z)

    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        return dims


class MatrixDiffusion(Diffusion):
    """Constant ``B_k`` of shape (T, n, m), possibly degenerate; states are vectors of length n.

    >>> noise = MatrixDiffusion([[[0.0], [0.5]]])  # a force on the second coordinate, one step
    >>> noise.apply(0, torch.zeros(1, 2), torch.ones(1, 1))
    tensor([[0.0000, 0.5000]])
    """

    def __init__(self, matrices: Numbers):
        self.matrices = numbers(matrices, "B", ("steps", "n", "m"))
        require(
            self.matrices.numel() > 0,
            f"B has shape {tuple(self.matrices.shape)}; give at least one of each.",
        )
        dead = (self.matrices.abs().amax((1, 2)) == 0).nonzero().flatten().tolist()
        if dead:
            raise InvalidProblem(
                f"B[{dead[0]}] = 0; a step without noise cannot be steered at a finite KL."
            )
        self.inverses = torch.linalg.pinv(self.matrices)

    def apply(self, k: Step, x: States, z: Noises) -> States:
        return _matvec(self.matrices, k, z)

    def transpose(self, k: Step, x: States, a: States) -> Noises:
        return _matvec(self.matrices.mT, k, a)

    def whiten(self, k: Step, x: States, shift: States) -> Noises:
        return _matvec(self.inverses, k, shift)

    def solve_transpose(self, k: Step, x: States, z: Noises) -> States:
        return _matvec(self.inverses.mT, k, z)

    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        require(
            dims == self.matrices.shape[1:2],
            f"B maps into vectors of length {self.matrices.shape[1]} but states have shape {dims}.",
        )
        return (self.matrices.shape[2],)


def _matvec(matrices: Tensor, k: Step, x: Tensor) -> Tensor:
    if isinstance(k, Tensor):
        return (matrices[k.to(matrices.device)].to(x) @ x.unsqueeze(-1)).squeeze(-1)
    return x @ matrices[k].to(x).mT


class Reference(Readable, abc.ABC):
    """A pre-trained chain of ``steps`` kernels on states of shape ``dims``.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> isinstance(reference, Reference)
    True
    >>> x = torch.zeros(2, 1)
    >>> reference.step(0, x, controlled_noise=torch.ones(2, 1))
    tensor([[0.5000],
            [0.5000]])
    """

    def __init__(self, steps: int, dims: tuple[int, ...], diffusion: Diffusion):
        require_kind(
            diffusion, Diffusion, "the diffusion", "give a Diffusion, such as ScalarDiffusion."
        )
        self.steps = whole(steps, "steps")
        self.dims = sizes(dims, "dims")
        self.diffusion = diffusion
        self.noise_dims = diffusion.noise_dims(self.dims)

    def shown(self) -> dict[str, Any]:
        return {"steps": self.steps, "dims": self.dims} | super().shown()

    @abc.abstractmethod
    def mean(self, k: Step, x: States) -> States:
        """The pre-trained mean ``m_k(x)``, differentiable in ``x``."""

    def initial(self, z: States) -> States:
        """The initial state as a function of standard normal noise of shape ``batch *dims``; the
        identity by default.
        """
        return z

    def step(self, k: Step, x: States, controlled_noise: Noises) -> States:
        """One kernel, ``m_k(x) + B_k(x) controlled_noise`` with ``controlled_noise = v + xi``."""
        return self.mean(k, x) + self.diffusion.apply(k, x, controlled_noise)


class DenoisingReference(Reference):
    """A chain that removes noise from data: every state is ``a x_0 + s eps`` under the pre-trained
    law, so that a controlled kernel is a controlled score and endpoint.

    >>> reference = score_reference(Gaussian(0.0, 0.5), ddpm([0.1, 0.5, 1.0]))
    >>> isinstance(reference, DenoisingReference)
    True
    """

    @abc.abstractmethod
    def score_of(self, k: Step, x: States, v: Noises) -> States:
        """The score of the noised law that the controlled kernel goes by."""

    @abc.abstractmethod
    def endpoint_of(self, k: Step, x: States, v: Noises) -> States:
        """The endpoint ``E[x_0 | x]`` that the controlled kernel goes by (Tweedie's formula)."""

    @property
    @abc.abstractmethod
    def signal_and_noise(
        self,
    ) -> tuple[Float[Tensor, " steps_plus_1"], Float[Tensor, " steps_plus_1"]]:
        """``a`` and ``s`` of all states, each to full precision."""

    def renoise(self, k: Step, endpoint: States, noise: States) -> States:
        """The state ``a_k x_0 + s_k eps`` that step k starts from."""
        signal, level = self.signal_and_noise
        return at_step(signal, k, endpoint) * endpoint + at_step(level, k, noise) * noise

    @abc.abstractmethod
    def control_to(self, k: Step, x: States, endpoint: States) -> Noises:
        """The whitened control whose kernel goes by an endpoint, the inverse of `endpoint_of`."""

    @abc.abstractmethod
    def endpoint_unit(self, k: Step, x: States) -> Tensor:
        """By what a unit of control moves the endpoint; broadcasts against ``batch *dims``."""

    @abc.abstractmethod
    def velocity_unit(self, k: Step, x: States) -> Tensor:
        """By what a unit of control moves the velocity of the flow through the same levels, that of
        ``eps - x_0`` where the reference is no flow.
        """


class ScoreReference(DenoisingReference):
    """The DDPM/DDIM chain of a schedule and a score, ``m_k(y) = (y + g_k s_k(y)) / sqrt(a_k)``.

    Args:
        schedule: the denoising coefficients.
        score: ``(k, x) -> s_k(x)``, the score of the data noised to level ``schedule.abar[k]``; it
            may cast internally but must return the dtype of ``x``.
        dims: shape of one state.

    >>> reference = ScoreReference(ddpm([0.1, 0.5, 1.0]), lambda k, x: -x, dims=(1,))
    >>> reference.mean(0, torch.tensor([[1.0]]))
    tensor([[0.4472]])
    """

    def __init__(
        self, schedule: Schedule, score: Callable[[Step, States], States], dims: tuple[int, ...]
    ):
        require_kind(schedule, Schedule, "the schedule", "give a Schedule, such as ddpm(levels).")
        super().__init__(schedule.steps, dims, ScalarDiffusion(schedule.sigma))
        self.schedule = schedule
        self.score = score
        if type(self) is ScoreReference:  # the score of a class of its own is not a caller's
            probe_steps(score, self.steps, self.initial, self.dims, "the score")

    def mean(self, k: Step, x: States) -> States:
        weight, alpha = (
            at_step(self.schedule.score_weight, k, x),
            at_step(self.schedule.alpha, k, x),
        )
        return (x + weight * self.score(k, x)) / alpha.sqrt()

    def score_of(self, k: Step, x: States, v: Noises) -> States:
        """The paper's control ``U_k(x) = s_k(x) + sqrt(a_k) sigma_k v / g_k``."""
        return self.score(k, x) + v * self._score_unit(k, x)

    def endpoint_of(self, k: Step, x: States, v: Noises) -> States:
        """``(x + (1 - abar_k) U_k(x)) / sqrt(abar_k)``."""
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return (x + noise * self.score_of(k, x, v)) / level.sqrt()

    def control_of(self, k: Step, x: States, score: States) -> Noises:
        """The whitened control of a fine-tuned score, the inverse of `score_of`."""
        return (score - self.score(k, x)) / self._score_unit(k, x)

    @property
    def signal_and_noise(
        self,
    ) -> tuple[Float[Tensor, " steps_plus_1"], Float[Tensor, " steps_plus_1"]]:
        return self.schedule.abar.sqrt(), (1 - self.schedule.abar).sqrt()

    def control_to(self, k: Step, x: States, endpoint: States) -> Noises:
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return self.control_of(k, x, (level.sqrt() * endpoint - x) / noise)

    def endpoint_unit(self, k: Step, x: States) -> Tensor:
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return self._score_unit(k, x) * noise / level.sqrt()

    def velocity_unit(self, k: Step, x: States) -> Tensor:
        """Where signal and noise of the flow sum to one."""
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return -self.endpoint_unit(k, x) * (1 + level.sqrt() / noise.sqrt())

    def _score_unit(self, k: Step, x: States) -> Tensor:
        s = self.schedule
        return at_step(s.alpha.sqrt() * s.sigma / s.score_weight, k, x)


class LinearMaps(Readable, abc.ABC):
    """Linear maps ``A_k`` of vectors of length ``n``, k = 0..steps-1."""

    steps: int
    n: int

    @abc.abstractmethod
    def apply(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """``A_k x``."""

    @abc.abstractmethod
    def dense(self) -> Float[Tensor, "steps n n"]:
        """Every map as a matrix."""


class DenseMaps(LinearMaps):
    """``A_k`` given as matrices of shape (T, n, n)."""

    def __init__(self, matrices: Numbers):
        self.matrices = numbers(matrices, "A")
        shape = tuple(self.matrices.shape)
        fits = len(shape) == 3 and shape[1] == shape[2] and 0 not in shape
        require(fits, f"A has shape {shape}; give (steps, n, n).")
        self.steps, self.n, _ = shape

    def apply(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return _matvec(self.matrices, k, x)

    def dense(self) -> Float[Tensor, "steps n n"]:
        return self.matrices


class SpectralMaps(LinearMaps):
    """Commuting symmetric ``A_k = Q diag(eigenvalues_k) Q^T``: T n + n^2 numbers in place of T n^2.

    Args:
        eigenvalues: shape (T, n).
        basis: orthonormal eigenvectors in the columns of Q, shape (n, n); the identity by default.

    Raises:
        InvalidProblem: an eigenvalue is not finite, or the basis is not orthonormal.
    """

    def __init__(self, eigenvalues: Numbers, basis: Numbers | None = None):
        self.eigenvalues = numbers(eigenvalues, "eigenvalues", ("steps", "n"))
        self.steps, self.n = self.eigenvalues.shape
        require(self.eigenvalues.numel() > 0, "there are no eigenvalues; give at least one.")
        self.basis = (
            torch.eye(self.n, dtype=torch.float64)
            if basis is None
            else numbers(basis, "basis", (self.n, self.n))
        )
        defect = float(
            (self.basis.mT @ self.basis - torch.eye(self.n, dtype=torch.float64)).abs().max()
        )
        require(
            defect <= ORTHONORMAL,
            f"the basis is off orthonormal by {defect:.2g}; give eigenvectors with Q^T Q = I, as"
            " torch.linalg.eigh does.",
        )

    def apply(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        basis = self.basis.to(x)
        picked = self.eigenvalues[k.to(self.eigenvalues.device) if isinstance(k, Tensor) else k].to(
            x
        )
        return (x @ basis * picked) @ basis.mT

    def dense(self) -> Float[Tensor, "steps n n"]:
        return (self.basis * self.eigenvalues.unsqueeze(1)) @ self.basis.mT


class AffineReference(Reference):
    """``m_k(x) = A_k x + b_k`` on vectors, started at N(initial_mean, initial_factor
    initial_factor^T).

    Args:
        transition: ``A`` as matrices of shape (T, n, n), or as `LinearMaps`.
        offset: ``b`` of shape (T, n), zero by default.
        diffusion: a `ScalarDiffusion` or `MatrixDiffusion` with T steps.
        initial_mean: shape (n,), zero by default.
        initial_factor: a square root of the initial covariance, shape (n, n), the identity by
            default.

    Raises:
        InvalidProblem: a shape or a number of steps does not match, or an entry is not finite.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> reference.mean(0, torch.tensor([[2.0]]))
    tensor([[1.8000]])
    """

    def __init__(
        self,
        transition: Numbers | LinearMaps,
        diffusion: ScalarDiffusion | MatrixDiffusion,
        offset: Numbers | None = None,
        initial_mean: Numbers | None = None,
        initial_factor: Numbers | None = None,
    ):
        self.maps = transition if isinstance(transition, LinearMaps) else DenseMaps(transition)
        require_kind(
            diffusion,
            (ScalarDiffusion, MatrixDiffusion),
            "the diffusion",
            "give a ScalarDiffusion or MatrixDiffusion.",
        )
        steps, n = self.maps.steps, self.maps.n
        super().__init__(steps, (n,), diffusion)
        self.diffusion: ScalarDiffusion | MatrixDiffusion = diffusion
        noisy = len(
            diffusion.sigma if isinstance(diffusion, ScalarDiffusion) else diffusion.matrices
        )
        require(
            noisy == steps,
            f"A has {steps} steps and the diffusion {noisy}; give both the same number.",
        )
        self.offset = zeros_or(offset, "b", (steps, n))
        self.initial_mean = zeros_or(initial_mean, "initial_mean", (n,))
        self.initial_factor = identity_or(initial_factor, "initial_factor", n)

    def shown(self) -> dict[str, Any]:
        return super().shown() | {"transition": self.maps}

    @functools.cached_property
    def transition(self) -> Float[Tensor, "steps n n"]:
        """Every ``A_k`` as a matrix, shape (T, n, n)."""
        return self.maps.dense()

    def mean(self, k: Step, x: States) -> States:
        offset = self.offset[k.to(self.offset.device) if isinstance(k, Tensor) else k].to(x)
        return self.maps.apply(k, x) + offset

    def initial(self, z: States) -> States:
        return self.initial_mean.to(z) + z @ self.initial_factor.T.to(z)


class KernelReference(Reference):
    """Any kernel given by its mean map ``(k, x) -> m_k(x)``, a diffusion, and optionally an initial
    map of standard noise.

    >>> reference = KernelReference(lambda k, x: torch.sin(x), ScalarDiffusion([0.5] * 2), 2, (1,))
    >>> reference.mean(0, torch.zeros(1, 1))
    tensor([[0.]])
    """

    def __init__(
        self,
        mean: Callable[[Step, States], States],
        diffusion: Diffusion,
        steps: int,
        dims: tuple[int, ...],
        initial: Callable[[States], States] | None = None,
    ):
        super().__init__(steps, dims, diffusion)
        self._mean = mean
        self._initial = initial
        probe_initial(initial, self.dims)
        probe_steps(mean, self.steps, self.initial, self.dims, "the mean")

    def mean(self, k: Step, x: States) -> States:
        return self._mean(k, x)

    def initial(self, z: States) -> States:
        return z if self._initial is None else self._initial(z)


__all__ = [
    "AffineReference",
    "DenoisingReference",
    "DenseMaps",
    "Diffusion",
    "KernelReference",
    "LinearMaps",
    "MatrixDiffusion",
    "Noises",
    "Reference",
    "ScalarDiffusion",
    "ScoreReference",
    "SpectralMaps",
    "States",
    "Step",
    "at_step",
    "by_step",
    "level_at",
]
