r"""VGG-Flow (Liu et al., arXiv 2512.05116): value gradient guidance of a flow without noise.

At the states of the model's own velocity the loss of a step, with D entries, is

.. math:: \frac1D \Big| u_k(x) - u^0_k(x) + \frac1\lambda \big( \eta_k\, \nabla_x r(\hat x_0(x))
    + \nu_k(x) \big) \Big|^2, \qquad \eta_k = a_k^2,

where :math:`\hat x_0` is the endpoint that the model predicts, with its velocity held, the norm of
the gradient is limited to 1, and :math:`\nu` corrects the sum to the gradient of the value. The
published code trains :math:`\nu` on the gradient of the Hamilton-Jacobi-Bellman equation by finite
differences; its solution along a path is the lean costate, to which `LookAheadResidual` fits it
(derived here). With the exact correction the fixed point is that of `DeterministicAdjointMatching`
up to O(dt), because the costate is that of the step's own state; without one it is guidance by the
look-ahead. The published reward scale is :math:`1/\lambda`; there is no b of a tilt.

Of a path the start alone is read. Noise level: the schedule's noise enters the units of controls
alone.
"""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import ClassVar

import torch

from socft.checks import keep, positive, require_kinds
from socft.costates.base import Cost, Costates
from socft.costates.fields import CostateSource, total
from socft.estimators.base import LabelRows, Labels, MatchingEstimator
from socft.estimators.estimand import Biased, EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.look_ahead import LookAheadCostate, corrected, squared_signal
from socft.estimators.flow.ode import flow_of, ode_costates, ode_states, velocity_labels
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem

PUBLISHED = LookAheadCostate(squared_signal, held=True, limit=1.0)
CORRECTED = Biased("the optimal control without noise, up to O(dt), where the correction is exact")


@dataclasses.dataclass(frozen=True)
class VGGFlow(MatchingEstimator[LabelRows]):
    """A value gradient guessed by looking ahead and corrected, for a `FlowReference`.

    Attributes:
        lam: lambda, one over the published reward scale.
        correction: where nu comes from; None leaves it out.
        look_ahead: the guess.
        averaged: whether the loss is averaged over the entries instead of summed.

    Raises:
        InvalidProblem: lam is not positive.

    >>> print(VGGFlow(lam=0.5).estimates.equation.name)
    LOOK_AHEAD
    """

    lam: float
    correction: CostateSource | None = None
    look_ahead: LookAheadCostate = dataclasses.field(default_factory=lambda: PUBLISHED)
    averaged: bool = True
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.LOOK_AHEAD)
    source: ClassVar[str] = "arXiv 2512.05116 and published code"

    def __post_init__(self) -> None:
        keep(self, lam=positive(self.lam, "lam"))
        require_kinds(
            self,
            correction=(CostateSource, NoneType),
            look_ahead=LookAheadCostate,
            averaged=bool,
        )
        if self.correction is not None:
            object.__setattr__(self, "estimates", CORRECTED)

    @property
    def cost(self) -> Cost:
        walked = Cost(reference=1, policy=1, memory="T")
        sources = [each.cost for each in (self.look_ahead, self.correction) if each is not None]
        return total(walked, *sources)

    @property
    def couples_batch(self) -> bool:
        """A correction may be fitted anew for every batch."""
        return self.correction is not None

    @torch.no_grad()
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[LabelRows]:
        flow_of(problem)
        states = ode_states(problem, policy, path.states[0])[:-1]
        value = corrected(problem, policy, self.look_ahead, self.correction)
        shifts = torch.stack([-value(k, x).detach() / self.lam for k, x in enumerate(states)])
        entries = states[0, 0].numel() if self.averaged else 1
        share = torch.full((problem.steps,), 1 / entries, dtype=torch.float64)
        return velocity_labels(problem, states, shifts, share)


@torch.no_grad()
def consistent_costates(problem: ControlProblem, policy: Policy, path: Path) -> Costates:
    """What the gradient of the value is along the policy's path from the same start: the solution
    of its Hamilton-Jacobi-Bellman equation.
    """
    return ode_costates(problem, policy, path.states[0], problem.steps)
