r"""The moment loss :math:`E_{P^u}[(R(v) + y_0)^2]/2` with a learned :math:`y_0` (arXiv 2312.02027).

R is the work functional of `socft.path_measure`; at the optimum of the SDE it is :math:`-V_0(x_0)`,
so :math:`y_0` learns the initial value. Divided by :math:`\beta_k` step by step, the gradient in
the control is that of the matching loss with the targets :math:`v_k - (R + y_0)(z_k -
v_k)/\beta_k`: the log-variance loss with a learned baseline. On paths of the policy itself it is
minus the objective's gradient in expectation for every :math:`y_0`; on others the zero is at the
optimum and :math:`V_0` up to O(dt), for any start and any beta per step (derived here).

Noise level: as for the log-variance loss once :math:`y_0` is learned; before that as for the score
function without a baseline.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import probe, require_callable
from socft.costates.base import Cost
from socft.estimators.base import LabelRows, Labels, MatchingEstimator
from socft.estimators.estimand import Estimand, ObjectiveGradient
from socft.estimators.log_variance import deviation_labels
from socft.path import Path
from socft.path_measure import controls_along, work_functional
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import States, Step
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentRows(LabelRows):
    """Rows of `MomentLabels`."""

    work_functional: Float[Tensor, " rows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentLabels(Labels[MomentRows]):
    """Labels with the work functional of the path that each belongs to, shape (T, batch)."""

    row_type: ClassVar[type[Any]] = MomentRows

    work_functional: Float[Tensor, "steps batch"]


@dataclasses.dataclass(frozen=True)
class Moment(MatchingEstimator[MomentRows]):
    """Unbiased for the objective's gradient on paths of the policy; zero at the optimum, up to
    O(dt), on others.

    The loss of rows of step 0 includes :math:`(R + y_0(x_0))^2/2`, through which the initial value
    learns.

    Attributes:
        start: ``x_0 -> y_0(x_0)``, one number per sample; a module whose parameters the optimiser
            also gets.

    >>> print(Moment(start=lambda x: x.sum(1)).estimates.kind)
    objective gradient
    """

    start: Callable[[States], PerSample]
    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = "arXiv 2312.02027; arXiv 2005.05409; varying beta derived here"
    label_type: ClassVar[type[Labels[Any]]] = MomentLabels

    def __post_init__(self) -> None:
        require_callable(self.start, "the value of the start", "of the states")

    @property
    def cost(self) -> Cost:
        return Cost(policy=1)

    @torch.no_grad()
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> MomentLabels:
        controls = controls_along(policy, path)
        found = work_functional(problem, controls, path)
        labels = deviation_labels(problem, controls, path, found + self._start(path.states[0]))
        return MomentLabels(
            labels.states, labels.targets, work_functional=found.expand(problem.steps, -1)
        )

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: MomentRows) -> PerSample:
        squared = (rows.work_functional + self._start(rows.states)).square() / 2
        first = torch.as_tensor(k, device=squared.device) == 0
        return super().loss(problem, policy, k, rows) + torch.where(first, squared, 0.0)

    def _start(self, x: States) -> PerSample:
        return probe(self.start, (x,), (len(x),), "the value of the start")
