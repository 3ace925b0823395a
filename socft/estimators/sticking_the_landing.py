r"""Sticking the landing: matching with costates whose noise vanishes as the policy converges, and
no costate field.

Targets are :math:`B_k^\top a_{k+1}/\beta_k` with the costates of `socft.costates.landing`, which
keep :math:`-\beta_k (\nabla v_k)^\top \xi_k`, of mean zero given :math:`x_k`. So at every policy
`FullStickingTheLanding` estimates what the full adjoint does, at its price, and
`LeanStickingTheLanding` what adjoint matching does. In linear-quadratic problems at the optimum the
noise of targets, relative to the control, is O(1) for uncorrected adjoints, O(dt) here, and all of
that is the noise of the target's own step. Without it (`OwnStepByJvp`) O(dt^2) is left of lean and
O(dt^3) of full costates, and without its exact form (`OwnStepExact`) nothing of full ones, at any
step size. Elsewhere what is not linear in the noise of one step stays.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from socft.checks import require_kinds
from socft.costates.adjoint import Adjoint, backward_pass
from socft.costates.base import Cost, CostateStep
from socft.costates.fields import total
from socft.costates.landing import FullLanding, LeanLanding, OwnStep, OwnStepAsIs
from socft.estimators.base import CostateEstimator, LabelRows, Labels
from socft.estimators.estimand import Estimand, FixedPointResidual, ObjectiveGradient
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem


@dataclasses.dataclass(frozen=True)
class StickingTheLanding(CostateEstimator, abc.ABC):
    """Targets from costates with the score function.

    Attributes:
        own_step: what a target subtracts for the noise of its own step.

    >>> isinstance(LeanStickingTheLanding(), StickingTheLanding)
    True
    """

    own_step: OwnStep = dataclasses.field(default_factory=OwnStepAsIs)

    def __post_init__(self) -> None:
        require_kinds(self, own_step=OwnStep)

    @property
    @abc.abstractmethod
    def recursion(self) -> Adjoint:
        """The recursion of its costates."""

    @property
    def cost(self) -> Cost:
        return total(self.recursion.cost, self.own_step.cost)

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        return backward_pass(self.recursion, problem, policy, path)

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[LabelRows]:
        labels = super().label(problem, policy, path)
        for k, target in enumerate(labels.targets):
            target -= self.own_step.increment(problem, policy, path, k)
        return labels


class FullStickingTheLanding(StickingTheLanding):
    """Unbiased for the objective's gradient, as `FullAdjoint`, and as cheap.

    >>> from socft.costates.landing import OwnStepByJvp
    >>> FullStickingTheLanding(OwnStepByJvp())
    FullStickingTheLanding(own_step=OwnStepByJvp())
    """

    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = "arXiv 1703.09194; arXiv 2102.06559; discrete costates derived here"

    @property
    def recursion(self) -> Adjoint:
        return FullLanding()


class LeanStickingTheLanding(StickingTheLanding):
    """Zero in expectation at the optimum, as `AdjointMatching`; one policy derivative more.

    >>> print(LeanStickingTheLanding().estimates.kind)
    fixed-point residual
    """

    estimates: ClassVar[Estimand] = FixedPointResidual()
    source: ClassVar[str] = (
        "arXiv 1703.09194; arXiv 2409.08861, section 5; lean and discrete costates derived here"
    )

    @property
    def recursion(self) -> Adjoint:
        return LeanLanding()
