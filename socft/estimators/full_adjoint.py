r"""Full (discrete) adjoint matching: its matching loss has exactly the pathwise gradient of the
objective.

:math:`\nabla_\theta \sum_k \beta_k |v_k(x_k) - B_k^\top a_{k+1}/\beta_k|^2 / 2 =
-\nabla_\theta` (return of the path), with the costates of `socft.costates.adjoint.full_adjoint`; in
expectation it is the policy gradient of equation 77 in arXiv 2412.18164v4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from socft.costates.adjoint import FullRecursion, backward_pass
from socft.costates.base import Cost, CostateStep
from socft.estimators.base import CostateEstimator
from socft.estimators.estimand import Estimand, ObjectiveGradient
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem


class FullAdjoint(CostateEstimator):
    """Unbiased for the objective's gradient; one vjp of reference and policy per step.

    >>> print(FullAdjoint().estimates.kind)
    objective gradient
    """

    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = "arXiv 2412.18164v4, equation 77; arXiv 2409.08861, section 4"

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1, policy_derivatives=1)

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        return backward_pass(FullRecursion(), problem, policy, path)
