r"""Zeroth-order costates: gradients of a value function from its values, by Gaussian integration by
parts.

Equation 48 of arXiv 2412.18164v4, one order lower and for a general :math:`B_k`, is

.. math:: E[\nabla V_{k+1}(x_{k+1}) \mid x_k] = E\big[ \big( V_{k+1}(x_{k+1}) - b_k \big)\,
    B_k^{-\top} \xi_k \mid x_k \big],

for every baseline :math:`b_k` independent of :math:`\xi_k` given :math:`x_k`; along directions that
the noise does not reach :math:`B^{-\top}` is the pseudo-inverse and the costate zero, which no
target sees. The targets are :math:`B_k^\top` of it over :math:`\beta_k`. The mean is conditional on
:math:`x_k`, not on :math:`x_{k+1}`: unlike an adjoint it is no sample of
:math:`\nabla V_{k+1}(x_{k+1})` to regress on (derived here).

Noise level: with returns as for the score function; a given value's difference from the
deterministic step shrinks with :math:`B_k`, so that the targets' relative spread stays of order
:math:`\sqrt{d}`.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import probe, require_callable, require_kinds
from socft.costates.base import Cost
from socft.estimators.base import Labels, MatchingEstimator
from socft.estimators.baseline import (
    BaselineEstimator,
    returns_to_go,
)
from socft.estimators.estimand import Biased, Estimand, FixedPointResidual, ObjectiveGradient
from socft.path import Path
from socft.path_measure import per_sample
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import States, Step
from socft.reward import PerSample


class ZerothOrder(MatchingEstimator, abc.ABC):
    """Targets from differences of values."""

    @property
    def cost(self) -> Cost:
        return Cost(memory="T")

    @abc.abstractmethod
    def differences(self, problem: ControlProblem, path: Path) -> Float[Tensor, "steps batch"]:
        """``V_{k+1}(x_{k+1}) - b_k`` of every step and path."""

    def costates(self, problem: ControlProblem, path: Path) -> Float[Tensor, "steps batch *dims"]:
        """``(V_{k+1}(x_{k+1}) - b_k) B_k^{-T} xi_k``, whose mean given ``x_k`` is that of
        ``grad V_{k+1}``.
        """
        noise = path.noise.steps.to(path.controls)
        scaled = per_sample(self.differences(problem, path), noise) * noise
        return torch.stack(
            [
                problem.reference.diffusion.solve_transpose(k, path.states[k], z)
                for k, z in enumerate(scaled)
            ]
        )

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        diffusion, beta = problem.reference.diffusion, problem.beta.to(path.states)
        costates = self.costates(problem, path)
        pushed = [
            diffusion.transpose(k, path.states[k], a) / beta[k] for k, a in enumerate(costates)
        ]
        return Labels(path.states[:-1], torch.stack(pushed))


@dataclasses.dataclass(frozen=True)
class IntegrationByParts(ZerothOrder, BaselineEstimator):
    """From the path's own return after each step: unbiased for the objective's gradient; no
    derivatives.

    It is `ScoreFunction` with the noise that cannot move the state, where B has more columns than
    rows, projected out.

    >>> print(IntegrationByParts().estimates.kind)
    objective gradient
    """

    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = "arXiv 2412.18164v4, equation 48; derived here for returns"

    def differences(self, problem: ControlProblem, path: Path) -> Float[Tensor, "steps batch"]:
        returns = returns_to_go(problem, path)
        return returns - self.baseline.levels(problem, path, returns)


class ValueOwner(enum.Enum):
    """Of which policy a value function is the value."""

    POLICY = "that of the paths"
    OPTIMUM = "the optimal one"
    NOBODY = "none in particular"


OWNED: Mapping[ValueOwner, Estimand] = {
    ValueOwner.POLICY: ObjectiveGradient(),
    ValueOwner.OPTIMUM: FixedPointResidual(any_noise=True),
    ValueOwner.NOBODY: Biased("vanishes at the greedy control of the value that is given"),
}


@dataclasses.dataclass(frozen=True)
class ValueIntegrationByParts(ZerothOrder):
    """From a given value function, with its value after the step without noise as the baseline; no
    derivatives.

    With the optimal value the fixed point is the optimal control, exactly; with the policy's own
    value the mean is the objective's gradient; with any other value, the greedy control of that
    value.

    Attributes:
        value: ``(k, x) -> V_k(x)``, k = 1..T.
        owner: whose value it is.

    >>> print(ValueIntegrationByParts(lambda k, x: x.sum(1)).estimates.kind)
    biased
    """

    value: Callable[[Step, States], PerSample]
    owner: ValueOwner = ValueOwner.NOBODY
    estimates: ClassVar[Estimand] = OWNED[ValueOwner.NOBODY]
    source: ClassVar[str] = "arXiv 2412.18164v4, equations 18 and 48"

    def __post_init__(self) -> None:
        require_callable(self.value, "the value", "of step and states")
        require_kinds(self, owner=ValueOwner)
        object.__setattr__(self, "estimates", OWNED[self.owner])

    def differences(self, problem: ControlProblem, path: Path) -> Float[Tensor, "steps batch"]:
        diffusion, noise = problem.reference.diffusion, path.noise.steps.to(path.controls)
        found = []
        for k, after in enumerate(path.states[1:]):
            still = after - diffusion.apply(k, path.states[k], noise[k])
            values = [probe(self.value, (k + 1, x), (len(x),), "the value") for x in (after, still)]
            found.append(values[0] - values[1])
        return torch.stack(found)
