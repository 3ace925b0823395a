r"""Exact optimum of the discrete linear-quadratic problem in any dimension.

Kernels :math:`x' = A_k x + b_k + B_k (v + \xi)`, reward :math:`r(x) = x^\top P x/2 + q^\top x + c`,
running costs :math:`f_k(x) = x^\top F_k x/2 + h_k^\top x`. Every value function is quadratic,
:math:`V_k(x) = x^\top P_k x/2 + q_k^\top x + c_k`. With

.. math:: W_k = P_{k+1} + P_{k+1} B_k (\beta_k I - B_k^\top P_{k+1} B_k)^{-1} B_k^\top P_{k+1},
   \qquad r_k = (I + W_k B_k B_k^\top / \beta_k)\, q_{k+1},

the smoothed and enveloped value :math:`\sup_v E V_{k+1}(m + B_k(v + \xi)) - \beta_k |v|^2/2` is
:math:`m^\top W_k m/2 + r_k^\top m` plus a constant, so that, at :math:`m = A_k x + b_k`,

.. math:: P_k = A_k^\top W_k A_k - F_k, \qquad q_k = A_k^\top (W_k b_k + r_k) - h_k, \qquad
   v^*_k(x) = B_k^\top (W_k m + r_k) / \beta_k .

The supremum is finite iff :math:`\beta_k I - B_k^\top P_{k+1} B_k` is positive definite. This
solves the Bellman equation (8)-(9) of arXiv 2412.18164v4 for an affine score and a quadratic
reward; with :math:`B_k = \sigma_k I` and :math:`D_k = I - \sigma_k^2 P_{k+1}/\beta_k`,
:math:`W_k = P_{k+1} D_k^{-1}`. Formulas derived here; `socft.truth.curvature` computes them,
`socft.truth.affine_policy` evaluates other affine policies and `socft.truth.riccati` has the
continuous limit.
"""

from __future__ import annotations

import functools
import math
from typing import overload

import torch
from flint import arb, arb_mat
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.density import Gaussian
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.reference import Noises, ScalarDiffusion, States, Step, at_step
from socft.reward import PerSample
from socft.truth.affine_policy import (
    AffineGradient,
    PolicyEvaluation,
    affine_gradient,
    evaluate_affine,
)
from socft.truth.balls import balls
from socft.truth.base import ErrorBounds, Evaluation, Truth
from socft.truth.certificate import (
    Coefficients,
    Evaluated,
    GapBounds,
    gap_bounds,
    linear_quadratic_bounds,
)
from socft.truth.curvature import hessians, solve, working_chain
from socft.truth.quadratic import (
    QuadraticCost,
    QuadraticValue,
    act,
    affine_of,
    diffusion_transpose,
    index,
    sandwich,
)
from socft.truth.riccati import ContinuousValue, riccati

SERIES_BELOW = 0.05
"""Below this, -log(1 - u) - u is summed as a series; above, the subtraction loses a factor 2 / 0.05
of precision.
"""

SERIES_TERMS = 14
"""0.05^14 < eps."""

CHUNK = 64
"""Steps factorised together; 64 matrices of size 256 take 34 MB."""


class LinearQuadratic(Truth):
    """The exact optimum of an affine reference, a quadratic or linear reward and an optional
    `QuadraticCost`.

    Keeps one matrix per step, one vector per step where everything commutes, or, where transfers
    commute and the matrices would take more than 134 MB, next to nothing: then each use at a step
    costs a factorisation (see `socft.truth.curvature`).

    Attributes:
        reference: the problem's reference.
        slope: ``q_k``, shape (T + 1, n).
        constant: ``c_k``, shape (T + 1,).

    Raises:
        InvalidProblem: another kind of reference, reward or running cost, or a beta at which the
            supremum is infinite; the message names the step, the smallest eigenvalue of
            ``beta I - B' P B`` and the beta needed.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> truth = LinearQuadratic(ControlProblem(reference, Quadratic([[-1.0]]), beta=2.0))
    >>> f"{truth.objective:.6f}"
    '-0.484990'
    """

    def __init__(self, problem: ControlProblem):
        self.problem = problem
        self.reference = affine_of(problem)
        self._chain = working_chain(problem)
        solution = solve(self._chain)
        self._W, self._pushed, self._steering = (
            solution.curvature,
            solution.pushed,
            solution.steering,
        )
        self.constant = solution.constant
        self.slope = solution.slope @ self._chain.basis.mT

    def value(self, k: Step, x: States) -> PerSample:
        y = x @ self._chain.basis.to(x)
        slope = self.slope[index(k, self.slope)].to(x)
        return (
            (y * self._curved(k, y)).sum(1) / 2
            + (slope * x).sum(1)
            + at_step(self.constant, k, x[:, 0])
        )

    def value_gradient(self, k: Step, x: States) -> States:
        basis = self._chain.basis.to(x)
        return self._curved(k, x @ basis) @ basis.mT + self.slope[index(k, self.slope)].to(x)

    def control(self, k: Step, x: States) -> Noises:
        if self._steering is not None:
            moved = act(self._chain.A, k, x @ self._chain.basis.to(x))
            shift = self._steering.shift[index(k, self._steering.shift)].to(x)
            return act(self._steering.gain, k, moved) + shift
        costate = self.pushed_costate(k, x)
        return self.reference.diffusion.transpose(k, x, costate) / at_step(
            self.problem.beta, k, costate
        )

    def pushed_costate(self, k: Step, x: States) -> States:
        """``E[grad V_{k+1}(X_{k+1}) | X_k = x]`` under the optimum, ``W_k (A_k x + b_k) + r_k``, k
        = 0..T-1.
        """
        basis = self._chain.basis.to(x)
        pushed = self._W.act(k, act(self._chain.A, k, x @ basis)) + self._pushed[
            index(k, self._pushed)
        ].to(x)
        return pushed @ basis.mT

    def _curved(self, k: Step, y: Tensor) -> Tensor:
        """``P_k y`` in working coordinates."""
        chain = self._chain
        transposed = chain.A.mT if chain.A.ndim == 3 else chain.A
        curved = act(transposed, k, self._W.act(k, act(chain.A, k, y)))
        return curved if chain.F is None else curved - act(chain.F, k, y)

    def hessian(self, k: int) -> Float[Tensor, "n n"]:
        """``P_k``, k = 0..T."""
        basis = self._chain.basis
        return basis @ hessians(self._chain, self._W, range(k, k + 1))[0] @ basis.mT

    @property
    def objective(self) -> float:
        start = self.reference.initial_factor
        mean = self.reference.initial_mean.unsqueeze(0)
        return float(self.value(0, mean)) + float((start * (self.hessian(0) @ start)).sum()) / 2

    def _find_errors(self) -> ErrorBounds:
        """Proven by solving the problem again in ball arithmetic, see `socft.truth.certificate`: 50
        steps take 0.1 s in 2 dimensions, 1 s in 10 and a minute in 100.
        """
        return linear_quadratic_bounds(self.problem, self._stored, self._rounding)

    @functools.cached_property
    def gap_errors(self) -> GapBounds:
        """What `kernel_gap` and `memory_gap` are off by, proven likewise."""
        constant = bool((self.problem.beta == self.problem.beta[0]).all())
        return gap_bounds(self.problem, self.kernel_gap(), self.memory_gap() if constant else None)

    def _stored(self) -> Coefficients:
        """What is stored, as balls."""
        chain, steps, Q = self._chain, self.problem.steps, balls(self._chain.basis)
        P, K, o = [], [], []
        for k in range(steps + 1):
            A, W = _dense(chain.A[k]), _dense(self._W.at(k))
            square = Q * (A.transpose() * W * A) * Q.transpose()
            P.append(square if chain.F is None else square - Q * balls(chain.F[k]) * Q.transpose())
            if k < steps:
                gain, shift = self._steered(k, Q)
                K.append(gain * A * Q.transpose())
                o.append(shift)
        q, c = [balls(row) for row in self.slope], [arb(each) for each in self.constant.tolist()]
        return Coefficients(P, q, c, K, o, arb(self.objective))

    def _steered(self, k: int, basis: arb_mat) -> tuple[arb_mat, arb_mat]:
        """The stored control as a function of ``A_k y``."""
        if self._steering is not None:
            return balls(self._steering.gain[k]), balls(self._steering.shift[k])
        diffusion = self.reference.diffusion
        assert isinstance(diffusion, ScalarDiffusion)
        pull = basis * (arb(float(diffusion.sigma[k])) / arb(float(self.problem.beta[k])))
        return pull * _dense(self._W.at(k)), pull * balls(self._pushed[k])

    def _rounding(self, k: int, x: Float[Tensor, " n"]) -> Evaluated:
        """What evaluating in floating point adds at states of moduli x: an ulp per operation."""
        chain, Q, eps = self._chain, self._chain.basis.abs(), torch.finfo(torch.float64).eps
        A, W = chain.A[k].abs(), self._W.at(k).abs()
        transposed = A.mT if A.ndim == 2 else A
        pushed = _applied(W, _applied(A, Q.mT @ x))
        bent = Q @ _applied(transposed, pushed) + self.slope[k].abs()
        if chain.F is not None:
            bent = bent + Q @ (chain.F[k].abs() @ (Q.mT @ x))
        noise = 0.0
        if k < self.problem.steps and self._steering is not None:
            steered = self._steering.gain[k].abs() @ _applied(A, Q.mT @ x)
            noise = float((steered + self._steering.shift[k].abs()).norm())
        elif k < self.problem.steps:
            costate = Q @ (pushed + self._pushed[k].abs())
            noise = float(costate.norm() * chain.noise[k] / self.problem.beta[k])
        operations = eps * (3 * len(x) + 8)
        level = float(x @ bent) + abs(float(self.constant[k]))
        return Evaluated(operations * noise, operations * float(bent.norm()), operations * level)

    @functools.cached_property
    def affine_policy(self) -> AffinePolicy:
        """The optimal control as an affine policy."""
        chain, basis = self._chain, self._chain.basis
        if self._steering is not None:
            gain, A = self._steering.gain, chain.A[:-1]
            moved = gain * A.unsqueeze(1) if A.ndim == 2 else gain @ A
            return AffinePolicy(moved @ basis.mT, self._steering.shift)
        W = self._W.span(range(self.problem.steps))
        W = torch.diag_embed(W) if self._W.diagonal else W
        curved = W * chain.A[:-1].unsqueeze(1) if chain.A.ndim == 2 else W @ chain.A[:-1]
        weight, diffusion = self.problem.beta[:, None, None], self.reference.diffusion
        gain = diffusion_transpose(diffusion, basis @ curved @ basis.mT) / weight
        offset = diffusion_transpose(diffusion, (self._pushed @ basis.mT).unsqueeze(2)) / weight
        return AffinePolicy(gain, offset.squeeze(2))

    @overload
    def evaluate(self, policy: AffinePolicy) -> PolicyEvaluation: ...

    @overload
    def evaluate(self, policy: Policy) -> Evaluation: ...

    def evaluate(self, policy: Policy) -> Evaluation:
        """What a policy achieves: exactly if it is affine (see `evaluate_affine`), else by
        simulation.
        """
        return (
            evaluate_affine(self.problem, policy)
            if isinstance(policy, AffinePolicy)
            else super().evaluate(policy)
        )

    def gradient(self, policy: AffinePolicy) -> AffineGradient:
        """Exact gradient of the objective at any affine policy; see `affine_gradient`."""
        return affine_gradient(self.problem, policy)

    def kernel_gap(self) -> Float[Tensor, " steps"]:
        r"""What each step's Gibbs value exceeds the controlled one by, shape (T,), all
        non-negative.

        With :math:`E_k = B_k^\top P_{k+1} B_k / \beta_k` step k adds
        :math:`-\beta_k/2 \log\det(I - E_k) - \beta_k/2\, \mathrm{tr} E_k`: what it costs to move
        means only, where the exponential tilt also changes covariances. For a constant beta the sum
        is :math:`\beta \log E[\exp(r(X_T)/\beta) | X_0] - V_0(X_0)` under the pre-trained chain
        (with running costs, of :math:`r - \sum_k f_k`), whatever :math:`X_0`; it is O(1/T). Derived
        here.
        """
        chain, beta = self._chain, self.problem.beta
        gaps = []
        for first in range(0, self.problem.steps, CHUNK):
            steps = range(first, min(first + CHUNK, self.problem.steps))
            after, noise = (
                range(steps.start + 1, steps.stop + 1),
                chain.noise[steps.start : steps.stop],
            )
            weight = beta[steps.start : steps.stop, None]
            if self._W.diagonal:
                P = self._W.span(after) * chain.A[after.start : after.stop] ** 2
                gaps.append(_excess(noise.unsqueeze(1) ** 2 * P / weight).sum(1))
            else:
                E = sandwich(hessians(chain, self._W, after), noise) / weight.unsqueeze(2)
                gaps.append(_log_det_excess(E))
        return beta / 2 * torch.cat(gaps)

    def memory_gap(self) -> float:
        r"""What the controlled chain cannot reach because it cannot choose its start, non-negative.

        :math:`\beta \log E \exp(r(X_T)/\beta) - E_{X_0}[\beta \log E(\exp(r(X_T)/\beta) |
        X_0)]` under the pre-trained chain (with running costs, of :math:`r - \sum_k f_k`); infinite
        where the first term is. It vanishes where X_0 and X_T are independent, and elsewhere more
        steps do not remove it. Derived here.

        Raises:
            InvalidProblem: beta is not constant.
        """
        beta, root = self.problem.constant_beta("memory_gap"), self.reference.initial_factor
        slope = root.mT @ self.value_gradient(0, self.reference.initial_mean.unsqueeze(0))[0]
        E = root.mT @ self.hessian(0) @ root / beta
        inner = torch.eye(len(E), dtype=torch.float64) - (E + E.mT) / 2
        factor, failed = torch.linalg.cholesky_ex(inner)
        if failed:
            return math.inf
        lift = torch.linalg.solve_triangular(factor, slope.unsqueeze(1), upper=False)
        return float(lift.square().sum() / beta + beta * _log_det_excess((E + E.mT) / 2)) / 2

    @functools.cached_property
    def final_law(self) -> Gaussian:
        """The law of ``X_T`` under the optimum."""
        return self.evaluate(self.affine_policy).final_law

    def tilt(self) -> Gaussian:
        """The pre-trained law of ``X_T`` tilted by ``exp(r / beta)``, what `final_law` tends to if
        memoryless.

        Raises:
            InvalidProblem: beta is not constant, there is a running cost, or the tilt is not
                integrable.
        """
        require(
            self.problem.running_cost is None,
            "a running cost tilts paths, not final states; drop it to compare final laws.",
        )
        beta = self.problem.constant_beta("tilt")
        return (
            evaluate_affine(self.problem, AffinePolicy.zeros(self.reference))
            .final_law.tilted(self.problem.reward, beta)
            .density
        )


def wasserstein(first: Gaussian, second: Gaussian) -> float:
    """The 2-Wasserstein distance of two Gaussian laws (Olkin and Pukelsheim 1982)."""
    root = first.bases[0] * first.spectra[0].sqrt()
    cross = torch.linalg.eigvalsh(root.mT @ second.covariance @ root).clamp(min=0).sqrt().sum()
    apart = (
        (first.mean - second.mean).square().sum()
        + first.spectra.sum()
        + second.spectra.sum()
        - 2 * cross
    )
    return math.sqrt(max(float(apart), 0.0))


def _dense(matrix: Tensor) -> arb_mat:
    """A matrix, or a diagonal, as balls."""
    return balls(torch.diag(matrix) if matrix.ndim == 1 else matrix)


def _applied(matrix: Tensor, x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``M x`` for a matrix or a diagonal."""
    return matrix * x if matrix.ndim == 1 else matrix @ x


def _excess(u: Tensor) -> Tensor:
    """``-log(1 - u) - u`` for u < 1, to full relative precision."""
    small = u.clamp(-SERIES_BELOW, SERIES_BELOW)
    series = torch.zeros_like(u)
    for power in range(SERIES_TERMS, 1, -1):
        series = series * small + 1 / power
    return torch.where(u.abs() <= SERIES_BELOW, series * small**2, -torch.log1p(-u) - u)


def _log_det_excess(E: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """``-log det(I - E) - tr E`` for symmetric E < I, without cancellation.

    Row i of the Cholesky factor L of ``I - E`` has ``L_ii^2 = 1 - u_i``, ``u_i = E_ii + s_i``,
    ``s_i = sum_{j<i} L_ij^2``, so the result is the sum of ``-log(1 - u_i) - u_i + s_i``, all
    non-negative.
    """
    factor = torch.linalg.cholesky(torch.eye(E.shape[-1], dtype=E.dtype) - E)
    s = factor.tril(-1).square().sum(-1)
    return (_excess(E.diagonal(dim1=-2, dim2=-1) + s) + s).sum(-1)


__all__ = [
    "AffineGradient",
    "ContinuousValue",
    "LinearQuadratic",
    "PolicyEvaluation",
    "QuadraticCost",
    "QuadraticValue",
    "affine_gradient",
    "evaluate_affine",
    "riccati",
    "wasserstein",
]
