"""What every exact solution offers."""

from __future__ import annotations

import abc

from socft.policy import FunctionPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import Noises, States, Step
from socft.reward import PerSample


class Truth(abc.ABC):
    """Exact optimum of a control problem: value, value gradient (costate), control and objective.

    Attributes:
        problem: the problem it solves.
        error: estimate of the largest error of the control on the region that carries the mass; 0 for closed forms.
    """

    problem: ControlProblem
    error: float = 0.0

    @abc.abstractmethod
    def value(self, k: Step, x: States) -> PerSample:
        """``V_k(x)``, k = 0..T."""

    @abc.abstractmethod
    def value_gradient(self, k: Step, x: States) -> States:
        """``grad V_k(x)``, k = 0..T."""

    @abc.abstractmethod
    def control(self, k: Step, x: States) -> Noises:
        """The optimal whitened control ``v*_k(x)``, k = 0..T-1."""

    @property
    @abc.abstractmethod
    def objective(self) -> float:
        """The largest attainable objective, ``J* = E V_0(X_0)``."""

    @property
    def policy(self) -> Policy:
        """The optimal control as a policy."""
        return FunctionPolicy(self.control)
