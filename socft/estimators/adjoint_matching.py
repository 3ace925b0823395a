r"""Adjoint matching (Domingo-Enrich et al., arXiv 2409.08861) with the exact discrete target.

The target of step k is :math:`B_k^\top a_{k+1}/\beta_k` with the lean costate of
`socft.costates.adjoint.lean_adjoint`. Its fixed point is the optimal control; away from it the loss
gradient is a different vector field from the objective's. `PublishedAdjointMatching` is the
ablation that takes :math:`a_k` in its place, as published code does: its fixed point is off by
O(dt).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from socft.costates.adjoint import LeanRecursion, backward_pass
from socft.costates.base import Cost, CostateStep
from socft.estimators.base import (
    CostateEstimator,
    Estimator,
    LabelRows,
    Labels,
    MatchingEstimator,
    matching_labels,
)
from socft.estimators.estimand import (
    ApproximateResidual,
    Estimand,
    FixedPointResidual,
    ResidualZero,
)
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem


class LeanEstimator(Estimator[LabelRows]):
    """An estimator whose labels take the derivatives of the pre-trained mean along the states of a
    path, and no control of it.
    """

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1)

    @property
    def reads_controls(self) -> bool:
        return False


class AdjointMatching(LeanEstimator, CostateEstimator):
    """Zero in expectation at the optimum; one vjp of the reference per step.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> noise = Noise.sample(reference, batch=4, generator=torch.Generator().manual_seed(0))
    >>> path = rollout(reference, Uncontrolled(reference), noise)
    >>> AdjointMatching().label(problem, Uncontrolled(reference), path).targets.shape
    torch.Size([3, 4, 1])
    """

    estimates: ClassVar[Estimand] = FixedPointResidual()
    source: ClassVar[str] = "arXiv 2409.08861, section 5"

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        return backward_pass(LeanRecursion(), problem, policy, path)


class PublishedAdjointMatching(LeanEstimator, MatchingEstimator[LabelRows]):
    """Adjoint matching with the costate of step k in place of k + 1.

    >>> print(PublishedAdjointMatching().estimates.kind)
    fixed-point residual up to O(dt)
    """

    estimates: ClassVar[Estimand] = ApproximateResidual(ResidualZero.PREVIOUS_COSTATE)
    source: ClassVar[str] = "arXiv 2409.08861, published code"

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        return matching_labels(
            problem,
            path,
            backward_pass(LeanRecursion(), problem, policy, path),
            lambda step: step.value,
        )
