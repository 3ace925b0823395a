r"""Stochastic optimal control matching (Domingo-Enrich et al., arXiv 2312.02027), exactly for the
chain.

For any matrices :math:`M_k(j)`, j > k, with :math:`M_k(k) = I`, moving the mean of step k by
:math:`\epsilon` and path and noise along with it to :math:`x_j + M_k(j)\epsilon` gives the
derivative of an expectation under the pre-trained chain: with the controlled noises :math:`z_j =
u_j + \xi_j`, :math:`y_j = B_j^{-\top} z_j`, :math:`\nabla m_k` read as I, and W = (r - sum of
f)/beta,

.. math:: \nabla \log E[e^W \mid m_k] = \frac{E[e^W S_k \mid x_k]}{E[e^W \mid x_k]}, \quad
   S_k = \frac{M_k(T)^\top \nabla r}{\beta} - \sum_{j>k} \frac{M_k(j)^\top \nabla f_j}{\beta}
   - \sum_{j \ge k} \big( M_k(j+1) - \nabla m_j M_k(j) \big)^\top y_j .

So the targets :math:`B_k^\top S_k`, weighted by :math:`dP^*/dP^u` on paths of any policy u, have
exactly the mean controlled noise of the optimal path measure: the minimiser of `CrossEntropy`,
which is M = 0, and of `SOCMAdjoint`, which follows the path, with :math:`M_k(j+1) = \nabla m_j
M_k(j)`. It is the optimal control in the linear-quadratic case and within a relative O(dt)
otherwise. The paper's equation is the limit of small steps; all here derived for the chain. The
choice of M changes the spread only:

.. math:: M_k(j) = \Big( 1 + \sum_{p=1}^{P} \theta_{k,p} \Big( \frac{j - k}{T} \Big)^p \Big)\,
    F_{j-1} \cdots F_{k+1},

with a flow F, and :math:`\theta_k` minimising the weighted :math:`|u_k - B_k^\top S_k|^2` in closed
form on other paths.

Noise level: the terms of y have spread of order 1 and cancel where the flow is the pre-trained one;
what is left shrinks with B.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, keep, require, require_kinds, whole
from socft.costates.adjoint import LeanRecursion
from socft.costates.base import Cost
from socft.estimators.base import Labels, MatchingEstimator
from socft.estimators.estimand import ApproximateResidual, Estimand, ResidualZero
from socft.path import Path
from socft.path_measure import controlled_noise, optimal_weights
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import AffineReference, MatrixDiffusion, ScalarDiffusion, States


class CostateFlow(Readable, abc.ABC):
    """Matrices ``F_j``, the same on every path."""

    @abc.abstractmethod
    def vjp(self, problem: ControlProblem, j: int, costates: States) -> States:
        """``F_j^T a`` of each row, 0 < j < T."""


class IdentityFlow(CostateFlow):
    """``F = I``: the path moves as a whole."""

    def vjp(self, problem: ControlProblem, j: int, costates: States) -> States:
        return costates


@dataclasses.dataclass(frozen=True)
class LinearFlow(CostateFlow):
    """Given matrices; those of the reference by default, where it is affine.

    Attributes:
        matrices: shape (T, n, n).
    """

    matrices: Float[Tensor, "steps n n"] | None = None

    def vjp(self, problem: ControlProblem, j: int, costates: States) -> States:
        matrices, reference = self.matrices, problem.reference
        if matrices is None:
            if not isinstance(reference, AffineReference):
                raise InvalidProblem(
                    f"the reference is a {type(reference).__name__}; a linear flow needs matrices:"
                    " give them."
                )
            matrices = reference.transition
        return costates @ matrices[j].to(costates)


@dataclasses.dataclass(frozen=True)
class SOCM(MatchingEstimator):
    """Zero at the control of least cross-entropy, on paths of any policy; one vjp of the reference
    per step.

    Attributes:
        flow: F.
        degree: P; 0 takes the flow as it is.
        folds: the paths of each fold use the ``theta`` of the others.

    Raises:
        InvalidProblem: beta is not constant, there is one path only, a weight is not finite, or the
            noise depends on the state or does not reach every direction.

    >>> SOCM(degree=1)
    SOCM(flow=IdentityFlow(), degree=1, folds=2)
    """

    flow: CostateFlow = dataclasses.field(default_factory=IdentityFlow)
    degree: int = 0
    folds: int = 2
    estimates: ClassVar[Estimand] = ApproximateResidual(ResidualZero.LEAST_CROSS_ENTROPY)
    source: ClassVar[str] = "arXiv 2312.02027; discrete form derived here"

    def __post_init__(self) -> None:
        require_kinds(self, flow=CostateFlow)
        keep(self, degree=whole(self.degree, "degree", 0, 20), folds=whole(self.folds, "folds", 2))

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1)

    @property
    def couples_batch(self) -> bool:
        return True

    def smallest_batch(self, problem: ControlProblem) -> int:
        return self.folds if self.degree else 2

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        _require_full_noise(problem)
        weights = optimal_weights(problem, path, "SOCM")
        targets = torch.empty_like(path.controls)
        for k, moved in self._moved(problem, path):
            targets[k] = controlled_noise(path, k) + moved[0]
            if self.degree:
                targets[k] += _least_spread(
                    path.controls[k] - targets[k], moved[1:], weights, self.folds
                )
        return Labels(path.states[:-1], targets, weights.expand(problem.steps, -1))

    def _moved(
        self, problem: ControlProblem, path: Path
    ) -> Iterator[tuple[int, Float[Tensor, "degrees batch *noise_dims"]]]:
        """``B_k^T sum_{j>k} ((j - k) / T)^p F^T .. F^T c_j`` from the last k to the first.

        Binomial sums carry powers of j - k - 1 to those of j - k.
        """
        steps, diffusion, powers = (
            problem.steps,
            problem.reference.diffusion,
            range(self.degree + 1),
        )
        sums = [torch.zeros_like(path.final) for _ in powers]
        for k, source in _sources(problem, path):
            later = [self.flow.vjp(problem, k + 1, s) for s in sums] if k < steps - 1 else sums
            sums = [source + sum(math.comb(p, q) * later[q] for q in range(p + 1)) for p in powers]
            yield (
                k,
                torch.stack(
                    [
                        diffusion.transpose(k, path.states[k], s / steps**p)
                        for p, s in enumerate(sums)
                    ]
                ),
            )


def _sources(problem: ControlProblem, path: Path) -> Iterator[tuple[int, States]]:
    """k and ``c_{k+1}`` from the last k to the first: ``c_T = grad r / beta - y_{T-1}``, and before
    it ``c_j = Jac m_j^T y_j - grad f_j / beta - y_{j-1}``.
    """
    beta, diffusion = problem.constant_beta("SOCM"), problem.reference.diffusion
    free = Uncontrolled(problem.reference)
    slope = problem.reward.gradient(path.final) / beta
    for k in reversed(range(problem.steps)):
        y = diffusion.solve_transpose(k, path.states[k], controlled_noise(path, k))
        yield k, slope - y
        if k > 0:
            slope = LeanRecursion().vjp(problem, free, k, path.states[k], beta * y) / beta


def _least_spread(
    residual: Tensor, terms: Float[Tensor, "degree batch *noise_dims"], weights: Tensor, folds: int
) -> Tensor:
    """``sum_p theta_p terms_p`` closest to the residual in weighted least squares over the other
    folds, for each fold.
    """
    fold, added = (
        torch.arange(len(residual), device=residual.device) % folds,
        torch.zeros_like(residual),
    )
    require(
        2 <= folds <= len(residual),
        f"folds = {folds} for {len(residual)} paths; give at least 2 and at most one per path.",
    )
    scale = weights.sqrt().unsqueeze(1)
    for i in range(folds):
        others = fold != i
        design = (terms[:, others].flatten(2) * scale[others]).flatten(1).mT
        goal = (residual[others].flatten(1) * scale[others]).reshape(-1, 1)
        theta = torch.linalg.lstsq(design, goal, driver="gelsd").solution[:, 0]
        added[fold == i] = torch.tensordot(theta, terms[:, fold == i], 1)
    return added


def _require_full_noise(problem: ControlProblem) -> None:
    diffusion = problem.reference.diffusion
    kind = type(diffusion).__name__
    require(
        isinstance(diffusion, ScalarDiffusion | MatrixDiffusion),
        f"the noise is a {kind}; SOCM needs one that does not move with x.",
    )
    if isinstance(diffusion, MatrixDiffusion):
        rank, n = (
            int(torch.linalg.matrix_rank(diffusion.matrices).min()),
            diffusion.matrices.shape[1],
        )
        require(
            rank == n,
            f"B has rank {rank} and the state {n} entries; SOCM divides by the noise, use"
            " SOCMAdjoint.",
        )
