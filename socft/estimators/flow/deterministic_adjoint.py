r"""Deterministic adjoint matching (Guo et al., arXiv 2605.06583): adjoint matching without noise.

Along the path of the model's own velocity, from noise to data with steps dt < 0, the lean costate
of the pre-trained velocity is :math:`a_k = (I + dt\, \nabla u^0_k)^\top a_{k+1}`,
:math:`a_T = \nabla r(x_T)`, and the loss of a step

.. math:: \big| u_k(x_k) - u^0_k(x_k) + a_{k+1}/\lambda \big|^2 .

It vanishes at the optimum of :math:`r(x_T) - \lambda \sum_k |dt_k| |u_k - u^0_k|^2/2` for every
start, exactly in the steps too (derived here from the envelope identity). That is no tilt: for a
Gaussian with covariance S and the reward :math:`g \cdot x` the mean moves by
:math:`\tfrac{\pi}{2} S^{1/2} g/\lambda` as dt falls and the covariance not at all, where the tilt
of weight b moves it by :math:`S g/b`. lambda is the publication's; the b of a tilt does not exist.
Its penalties other than the quadratic one are left out.

Of a path the start alone is read. Noise level: the schedule's noise enters the units of controls
alone.
"""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import ClassVar

import torch

from socft.checks import keep, positive, require, require_kinds, whole
from socft.costates.base import Cost
from socft.estimators.base import LabelRows, Labels, MatchingEstimator
from socft.estimators.estimand import Biased, EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.ode import ode_costates, velocity_labels
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem

TRUNCATED = Biased("the optimal control without noise in the last steps, none in earlier ones")


@dataclasses.dataclass(frozen=True)
class DeterministicAdjointMatching(MatchingEstimator[LabelRows]):
    """Zero at the optimum without noise, for a `FlowReference`; one vjp of the velocity per step.

    Attributes:
        lam: lambda, the weight of the change of the velocity.
        last: how many of the last steps have labels; None for all.

    Raises:
        InvalidProblem: lam is not positive.

    >>> print(DeterministicAdjointMatching(lam=0.5).estimates.equation)
    the optimal control of the equation without noise
    """

    lam: float
    last: int | None = None
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.DETERMINISTIC)
    source: ClassVar[str] = "arXiv 2605.06583; the discrete form derived here"

    def __post_init__(self) -> None:
        require_kinds(self, last=(int, NoneType))
        keep(self, lam=positive(self.lam, "lam"))
        if self.last is not None:
            keep(self, last=whole(self.last, "last"))
            object.__setattr__(self, "estimates", TRUNCATED)

    @property
    def cost(self) -> Cost:
        return Cost(reference=1, reference_derivatives=1, policy=1, memory="T")

    @torch.no_grad()
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[LabelRows]:
        steps = problem.steps
        last = steps if self.last is None else self.last
        require(last <= steps, f"last = {last}; give 1 to {steps}, the number of steps.")
        found = ode_costates(problem, policy, path.states[0], last)
        share = (torch.arange(steps) >= steps - last).to(found.states)
        return velocity_labels(problem, found.states[:-1], -found.values[1:] / self.lam, share)
