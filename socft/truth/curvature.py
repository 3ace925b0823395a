r"""Curvature of the optimal value of a linear-quadratic problem, by three exact methods (derived
here).

What is needed per step is the curvature of the smoothed and enveloped value, :math:`W_k = P_{k+1} +
P_{k+1} B_k (\beta_k I - B_k^\top P_{k+1} B_k)^{-1} B_k^\top P_{k+1}`; then :math:`P_k = A_k^\top
W_k A_k - F_k`. If the transfers commute, :math:`A_k = \mathrm{diag}(a_k)` in their common basis,
the noise is scalar and there is no quadratic running cost, each step has a closed form in
:math:`\Phi_k = a_{T-1} \cdots a_k` and
:math:`g_k = \sum_{j \ge k} \Phi_{j+1}^2 \sigma_j^2 / \beta_j`:

* *elementwise*, where the reward's P is diagonal too: :math:`W_k = \Phi_{k+1}^2 P / (1 - g_k P)`;
* *difference* of two Riccati solutions, one of them diagonal: for any
  :math:`h > -\min \mathrm{eig}(P)`, with :math:`K = (1 + h g_k)^{-1}`, :math:`W_k = \Phi_{k+1} \{ K
  [ (P + h I)^{-1} - g_k K ]^{-1} K - h K \} \Phi_{k+1}`: one Cholesky inverse per step, and no
  rounding error carried from step to step;
* *recursion* step by step for everything else (`socft.truth.envelope`).
"""

from __future__ import annotations

import abc
import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_factor
from torch import Tensor

from socft.checks import InvalidProblem
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion, SpectralMaps, Step, by_step
from socft.reward import as_quadratic
from socft.truth.envelope import envelope
from socft.truth.quadratic import accumulate, act, affine_of, running_of, sandwich, times

GRAMIAN_LIMIT = 1e3
"""Largest h g for *difference*: its relative error is about eps h g, kept below 1e-12."""

STORE_LIMIT = 2**24
"""Numbers kept in memory for *difference* (134 MB); beyond, every use factorises again, 1 ms in 256
dimensions.
"""


@dataclasses.dataclass(frozen=True)
class LinearChain:
    """The problem in working coordinates ``y = basis' x``, in which commuting transfers are
    diagonal.

    ``A`` is (T + 1, n) if diagonal, else (T + 1, n, n), the last one the identity; ``noise`` is
    (T,) if scalar, else (T, n, m).
    """

    basis: Float[Tensor, "n n"]
    A: Tensor
    b: Float[Tensor, "steps n"]
    noise: Tensor
    beta: Float[Tensor, " steps"]
    P: Float[Tensor, "n n"]
    q: Float[Tensor, " n"]
    c: float
    F: Float[Tensor, "steps_plus_1 n n"] | None
    h: Float[Tensor, "steps n"]

    @property
    def steps(self) -> int:
        return len(self.beta)

    @property
    def decoupled(self) -> bool:
        """Whether the coordinates interact through the reward alone."""
        return self.A.ndim == 2 and self.noise.ndim == 1 and self.F is None


class Curvature(abc.ABC):
    """``W_k``, k = 0..T, with ``W_T = P``, in working coordinates: matrices (n, n), or diagonals
    (n,) where all of them are.
    """

    @property
    @abc.abstractmethod
    def diagonal(self) -> bool:
        """Whether every ``W_k`` is diagonal, and given as a vector."""

    @abc.abstractmethod
    def at(self, k: int) -> Tensor:
        """``W_k``."""

    @abc.abstractmethod
    def act(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """``W_k x``."""

    def span(self, steps: range) -> Tensor:
        """``W_k`` for a range of steps, stacked."""
        return torch.stack([self.at(k) for k in steps])


class StoredCurvature(Curvature):
    """All ``W_k`` in memory, shape (T + 1, n, n) or (T + 1, n)."""

    def __init__(self, W: Tensor):
        self.W = W

    @property
    def diagonal(self) -> bool:
        return self.W.ndim == 2

    def at(self, k: int) -> Tensor:
        return self.W[k]

    def act(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return act(self.W, k, x)

    def span(self, steps: range) -> Tensor:
        return self.W[steps.start : steps.stop]


@dataclasses.dataclass(frozen=True)
class QuadraticSolution:
    """The optimum in working coordinates.

    Attributes:
        curvature: ``W_k``.
        pushed: ``W_k b_k + r_k``, shape (T, n).
        slope: ``q_k``, shape (T + 1, n).
        constant: ``c_k``, shape (T + 1,).
        steering: the control as a function of ``A_k y``, where ``B_k`` are matrices.
    """

    curvature: Curvature
    pushed: Float[Tensor, "steps n"]
    slope: Float[Tensor, "steps_plus_1 n"]
    constant: Float[Tensor, " steps_plus_1"]
    steering: Steering | None


@dataclasses.dataclass(frozen=True)
class Steering:
    """``v_k = gain_k A_k y + shift_k``, k = 0..T-1."""

    gain: Float[Tensor, "steps m n"]
    shift: Float[Tensor, "steps m"]


def working_chain(problem: ControlProblem) -> LinearChain:
    """The problem in the coordinates in which it is solved."""
    reference, form, (F, h) = affine_of(problem), as_quadratic(problem.reward), running_of(problem)
    diffusion = reference.diffusion
    eigenvalues, basis = _spectrum(reference)
    if eigenvalues is not None and bool((eigenvalues == eigenvalues[:, :1]).all()):
        basis = torch.linalg.eigh(
            form.P
        ).eigenvectors  # every basis diagonalises the transfers: take the reward's
    ends = torch.ones(1, len(basis), dtype=torch.float64)
    A = (
        torch.cat([reference.transition, torch.diag_embed(ends)])
        if eigenvalues is None
        else torch.cat([eigenvalues, ends])
    )
    if F is not None:
        F = torch.cat([basis.mT @ F @ basis, F.new_zeros(1, *F.shape[1:])])
    P = basis.mT @ form.P @ basis
    return LinearChain(
        basis=basis,
        A=A,
        b=reference.offset @ basis,
        noise=(
            diffusion.sigma
            if isinstance(diffusion, ScalarDiffusion)
            else basis.mT @ diffusion.matrices
        ),
        beta=problem.beta,
        P=(P + P.mT) / 2,
        q=form.linear @ basis,
        c=form.c,
        F=F,
        h=h @ basis,
    )


def _spectrum(reference: AffineReference) -> tuple[Tensor | None, Tensor]:
    """Eigenvalues (T, n) and common basis of the transfers; None and the identity if they are not
    known to commute.
    """
    maps = reference.maps
    if isinstance(maps, SpectralMaps):
        return maps.eigenvalues, maps.basis
    eye = torch.eye(maps.n, dtype=torch.float64)
    matrices = reference.transition
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    crossed = bool((matrices.abs().sum((1, 2)) != diagonal.abs().sum(1)).any())
    return (None if crossed else diagonal), eye


def solve(chain: LinearChain) -> QuadraticSolution:
    """Backward in k: curvature, then slopes and constants.

    Raises:
        InvalidProblem: the supremum is infinite; the message names the step, the eigenvalue and the
            beta needed.
    """
    found = _closed_form(chain) or _recursion(chain)
    after = found.slope[1:]
    transposed = chain.noise.mT if chain.noise.ndim == 3 else chain.noise
    step = torch.stack(
        [times(times(q, B), Bt) for q, B, Bt in zip(after, chain.noise, transposed, strict=True)]
    )
    drift = (step / chain.beta.unsqueeze(1) + chain.b) * found.pulled + chain.b * found.pushed
    gained = (found.spread + drift.sum(1)) / 2
    return QuadraticSolution(
        found.curvature, found.pushed, found.slope, accumulate(gained, chain.c), found.steering
    )


@dataclasses.dataclass(frozen=True)
class _BackwardPass:
    """What goes backward in k: ``W_k``, ``r_k``, ``W_k b_k + r_k`` and ``tr B_k' P_{k+1} B_k``,
    k = 0..T-1, and ``q_k``, k = 0..T.
    """

    curvature: Curvature
    pulled: Float[Tensor, "steps n"]
    pushed: Float[Tensor, "steps n"]
    spread: Float[Tensor, " steps"]
    slope: Float[Tensor, "steps_plus_1 n"]
    steering: Steering | None = None


def _closed_form(chain: LinearChain) -> _BackwardPass | None:
    """Where it exists and keeps its digits."""
    if not chain.decoupled:
        return None
    propagator = _propagator(chain)
    if not bool(torch.isfinite(propagator.g).all()):
        return None
    if bool((chain.P - torch.diag(chain.P.diagonal())).abs().max() <= _rounding(chain.P)):
        return _elementwise(chain, propagator)
    shift = 2 * torch.linalg.matrix_norm(chain.P, 2)
    if not float(shift * propagator.g[0].max()) <= GRAMIAN_LIMIT:
        return None
    return _differences(chain, DifferenceCurvature(chain, propagator, shift))


def _rounding(matrix: Tensor) -> float:
    """What a change of basis leaves in entries that are zero."""
    return len(matrix) * torch.finfo(torch.float64).eps * float(matrix.abs().max())


@dataclasses.dataclass(frozen=True)
class Propagator:
    """``Phi_k``, k = 0..T, and ``g_k``, k = 0..T-1, of the module docstring."""

    Phi: Float[Tensor, "steps_plus_1 n"]
    g: Float[Tensor, "steps n"]


def _propagator(chain: LinearChain) -> Propagator:
    Phi = chain.A.flip(0).cumprod(0).flip(0)
    weight = (chain.noise**2 / chain.beta).unsqueeze(1)
    return Propagator(Phi, (weight * Phi[1:] ** 2).flip(0).cumsum(0).flip(0))


def _elementwise(chain: LinearChain, propagator: Propagator) -> _BackwardPass:
    P = chain.P.diagonal()
    room = torch.cat([1 - propagator.g * P, torch.ones_like(P).unsqueeze(0)])
    bad = (room.amin(1) <= 0).nonzero().flatten().tolist()
    if bad:
        k = bad[-1]
        before = propagator.Phi[k + 1] ** 2 * P / room[k + 1]
        raise _infinite(chain, k, torch.diag(chain.noise[k] ** 2 * before))
    W = propagator.Phi[[*range(1, chain.steps + 1), chain.steps]] ** 2 * P / room
    slope, pulled, pushed = [chain.q], [], []
    for k in reversed(range(chain.steps)):
        pulled.append(slope[-1] * (room[k + 1] / room[k]))
        pushed.append(W[k] * chain.b[k] + pulled[-1])
        slope.append(chain.A[k] * pushed[-1] - chain.h[k])
    spread = chain.noise**2 * (chain.A[1:] ** 2 * W[1:]).sum(1)
    return _backward_pass(StoredCurvature(W), pulled, pushed, spread, slope)


def _backward_pass(
    curvature: Curvature,
    pulled: list[Tensor],
    pushed: list[Tensor],
    spread: Float[Tensor, " steps"],
    slope: list[Tensor],
) -> _BackwardPass:
    """From lists that run backward."""
    forward = (torch.stack(each[::-1]) for each in (pulled, pushed, slope))
    r, pushed_forward, q = forward
    return _BackwardPass(curvature, r, pushed_forward, spread, q)


class DifferenceCurvature(Curvature):
    """The *difference* formula, evaluated where asked: for a thousand steps in 256 dimensions 0.5
    MB in place of 524.
    """

    def __init__(self, chain: LinearChain, propagator: Propagator, shift: Tensor):
        self._chain = chain
        eye = torch.eye(len(chain.P), dtype=torch.float64)
        shrink = 1 / (1 + shift * propagator.g)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(chain.P + shift * eye))
        self._lowered, self._scale = propagator.g * shrink, shrink * propagator.Phi[1:]
        self._removed = shift * shrink * propagator.Phi[1:] ** 2
        self._last = (chain.steps, chain.P)

    @property
    def diagonal(self) -> bool:
        return False

    def at(self, k: int) -> Tensor:
        if self._last[0] != k:
            self._last = (k, self._chain.P if k == self._chain.steps else self._evaluate(k))
        return self._last[1]

    def _evaluate(self, k: int) -> Tensor:
        inner = torch.empty_like(self._chain.P).mT  # column-major: LAPACK works in place
        inner.copy_(self._inverse.mT).diagonal().sub_(self._lowered[k])
        factor = _factor_in_place(inner)
        if factor is None:
            after = hessians(self._chain, self, range(k + 1, k + 2))[0]
            raise _infinite(self._chain, k, sandwich(after, self._chain.noise[k]))
        W = torch.cholesky_inverse(factor).mT
        W.mul_(self._scale[k]).mul_(self._scale[k].unsqueeze(1)).diagonal().sub_(self._removed[k])
        return W

    def act(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return by_step(k, x, lambda i, rows: rows @ self.at(i).to(rows))

    def stored(self) -> StoredCurvature:
        """All of them, from the last step to the first, the order in which an ill-posed
        step shows.
        """
        return StoredCurvature(
            torch.stack([self.at(k) for k in reversed(range(self._chain.steps + 1))]).flip(0)
        )


def _differences(chain: LinearChain, difference: DifferenceCurvature) -> _BackwardPass:
    small = chain.P.numel() * chain.steps <= STORE_LIMIT
    curvature = difference.stored() if small else difference
    slope, pulled, pushed, diagonals = [chain.q], [], [], [chain.P.diagonal()]
    for k in reversed(range(chain.steps)):
        W, q = curvature.at(k), slope[-1]
        pulled.append(q + W @ q * (chain.noise[k] ** 2 / chain.beta[k]))
        pushed.append(W @ chain.b[k] + pulled[-1])
        slope.append(chain.A[k] * pushed[-1] - chain.h[k])
        diagonals.append(W.diagonal().clone())
    after = chain.A[1:] ** 2 * torch.stack(diagonals[-2::-1])
    return _backward_pass(curvature, pulled, pushed, chain.noise**2 * after.sum(1), slope)


def _factor_in_place(matrix: Tensor) -> Tensor | None:
    """Lower Cholesky factor of a column-major matrix, None if not positive definite; its upper
    triangle is garbage.

    LAPACK in place takes about half the time of `torch.linalg.cholesky_ex` at n = 256.
    """
    try:
        factor, _ = cho_factor(matrix.numpy(), lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return None
    return torch.from_numpy(factor)


def _recursion(chain: LinearChain) -> _BackwardPass:
    steps, P = chain.steps, chain.P
    W = torch.from_numpy(
        np.empty((steps + 1, *P.shape))
    )  # numpy asks for huge pages: half the time to touch 500 MB
    W[-1] = P
    eye = torch.eye(len(P), dtype=torch.float64)
    spread = torch.empty(steps, dtype=torch.float64)
    slope, pulled, pushed, gain, shift = [chain.q], [], [], [], []
    for k in reversed(range(steps)):
        B = times(eye, chain.noise[k])
        spread[k] = (B * (P @ B)).sum()
        step = envelope(P, slope[-1], B, chain.beta[k])
        if step is None:
            raise _infinite(chain, k, B.mT @ P @ B)
        W[k] = step.W
        P = times(times(step.W, chain.A[k]).mT, chain.A[k])
        P = (P + P.mT) / 2 if chain.F is None else (P + P.mT) / 2 - chain.F[k]
        pulled.append(step.r)
        pushed.append(step.W @ chain.b[k] + step.r)
        slope.append(times(pushed[-1], chain.A[k]) - chain.h[k])
        if chain.noise.ndim == 3:
            gain.append(step.gain)
            shift.append(step.gain @ chain.b[k] + step.shift)
    swept = _backward_pass(StoredCurvature(W), pulled, pushed, spread, slope)
    if not gain:
        return swept
    steering = Steering(torch.stack(gain[::-1]), torch.stack(shift[::-1]))
    return dataclasses.replace(swept, steering=steering)


def hessians(chain: LinearChain, curvature: Curvature, steps: range) -> Float[Tensor, "some n n"]:
    """``P_k = A_k' W_k A_k - F_k`` for a range in 0..T, in working coordinates."""
    A, W = chain.A[steps.start : steps.stop], curvature.span(steps)
    if curvature.diagonal:
        W = torch.diag_embed(W)
    P = W * A.unsqueeze(1) * A.unsqueeze(2) if A.ndim == 2 else A.mT @ W @ A
    return P if chain.F is None else P - chain.F[steps.start : steps.stop]


def _infinite(chain: LinearChain, k: int, E: Float[Tensor, "m m"]) -> InvalidProblem:
    """What names the step of an infinite optimum, the eigenvalue and the beta that would do."""
    needed = float(torch.linalg.eigvalsh((E + E.mT) / 2)[-1])
    least = float(chain.beta[k]) - needed
    remedy = f"raise beta[{k}] above {_upwards(needed)}"
    if chain.F is None and bool((chain.beta == chain.beta[0]).all()):
        remedy = f"raise beta above {_upwards(float(chain.beta[0]) * _threshold(chain))}"
    elif chain.F is None:
        remedy = f"multiply every beta by more than {_upwards(_threshold(chain))}"
    return InvalidProblem(
        f"beta[{k}] = {float(chain.beta[k]):g} leaves beta I - B' P B with smallest eigenvalue"
        f" {least:.3g} at step {k}; it must be positive or the optimum is infinite, so {remedy}.",
    )


def _upwards(number: float) -> str:
    """Six digits, never less than the number."""
    return f"{number * (1 + 1e-5):.6g}"


def _threshold(chain: LinearChain) -> float:
    """The factor by which every beta must at least grow: the largest eigenvalue of
    ``G^(1/2) P G^(1/2)``.

    ``G`` is the covariance of ``X_T`` given ``X_0`` with noise ``B_k B_k' / beta_k``: the open-loop
    problem in all the controls together is concave iff ``G^(1/2) P G^(1/2) < I``.
    """
    G = torch.zeros_like(chain.P)
    eye = torch.eye(len(G), dtype=torch.float64)
    for k in range(chain.steps):
        factor = times(eye, chain.noise[k])
        moved = times(eye, chain.A[k])
        G = moved @ G @ moved.mT + factor @ factor.mT / chain.beta[k]
    spectrum, basis = torch.linalg.eigh((G + G.mT) / 2)
    root = basis * spectrum.clamp(min=0).sqrt()
    return float(torch.linalg.eigvalsh(root.mT @ chain.P @ root)[-1])
