r"""The reward of a predicted endpoint as a first guess of the value function, and what it lacks.

.. math:: \phi_k(x) = \gamma_k\, \nabla_x r\big( \hat x_0(k, x) \big), \qquad \phi_T = \nabla r,

with the endpoint :math:`\hat x_0 = E[x_0 | x]` that the model's kernel goes by, and a weight
:math:`\gamma_k` that falls towards noise. It is the gradient of the optimal value where the reward
is linear, the data are Gaussian and :math:`\gamma = 1`, and of no value function otherwise. What it
lacks is fitted to samples of a costate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from socft.checks import (
    keep,
    positive,
    probe,
    require_callable,
    require_kind,
    require_kinds,
    tried,
    whole,
)
from socft.costates.base import Cost, Costates
from socft.costates.directional import gradient_of
from socft.costates.fields import (
    FREE,
    CostateField,
    CostateSource,
    GivenCostate,
    with_terminal,
)
from socft.costates.regression import FieldRegression
from socft.estimators.flow.ode import flow_of, require_end_alone
from socft.path import Noise, Path, rollout
from socft.path_measure import per_sample
from socft.policy import Policy
from socft.problem import ControlProblem, require_reference
from socft.readable import Readable
from socft.reference import DenoisingReference, States, Step, at_step

LevelWeight: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``(a, s) -> gamma`` of signal and noise at a level."""


def signal_share(a: Tensor, s: Tensor) -> Tensor:
    """``a^2 / (a^2 + s^2)``, the published weight of nabla-DB."""
    return a.square() / (a.square() + s.square())


def squared_signal(a: Tensor, s: Tensor) -> Tensor:
    """``a^2``, the published weight of VGG-Flow."""
    return a.square()


def unweighted(a: Tensor, s: Tensor) -> Tensor:
    """1 at every level."""
    return torch.ones_like(a)


@dataclasses.dataclass(frozen=True)
class LookAheadCostate(CostateSource):
    """The gradient of the reward of the predicted endpoint, for a `DenoisingReference`.

    Attributes:
        weight: gamma as a function of signal and noise.
        held: whether the velocity is held where it is when the endpoint is differentiated, so that
            no network is; for a `FlowReference`.
        limit: the largest norm of the gradient before it is weighed; None where there is none.

    Raises:
        InvalidProblem: the limit is not positive, or the weight is no function.

    >>> LookAheadCostate(held=True, limit=1.0).limit
    1.0
    """

    weight: LevelWeight = signal_share
    held: bool = False
    limit: float | None = None

    def __post_init__(self) -> None:
        require_kinds(self, held=bool)
        require_callable(self.weight, "the weight", "of signal and noise, such as signal_share")
        keep(self, limit=None if self.limit is None else positive(self.limit, "limit"))

    @property
    def cost(self) -> Cost:
        if self.held:
            return Cost(reference=1, policy=1, memory=0)
        return Cost(reference_derivatives=1, policy_derivatives=1, memory=0)

    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        remedy = (
            "an endpoint is predicted by a DenoisingReference: give a ScoreReference or a"
            " FlowReference."
        )
        reference = require_reference(problem, DenoisingReference, remedy)
        require_end_alone(problem)

        def before_the_end(k: Step, x: States) -> States:
            found = self._gradient(problem, reference, policy, k, x)
            one, zero = torch.ones_like(x), torch.zeros_like(x)
            a, s = reference.renoise(k, one, zero), reference.renoise(k, zero, one)
            weight = probe(self.weight, (a, s), tuple(a.shape), "the weight of a level")
            return weight * self._limited(found)

        return with_terminal(problem, before_the_end)

    def _gradient(
        self,
        problem: ControlProblem,
        reference: DenoisingReference,
        policy: Policy,
        k: Step,
        x: States,
    ) -> States:
        if not self.held:
            return gradient_of(
                lambda y: problem.reward(reference.endpoint_of(k, y, policy(k, y))).sum(), x
            )
        c = flow_of(problem).schedule.starts
        endpoint = reference.endpoint_of(k, x, policy(k, x)).detach()
        return at_step(c.noise_rate / c.wronskian, k, x) * problem.reward.gradient(endpoint)

    def _limited(self, gradient: States) -> States:
        if self.limit is None:
            return gradient
        norm = gradient.flatten(1).norm(dim=1)
        return gradient * per_sample((self.limit / norm.clamp(min=self.limit)), gradient)


@dataclasses.dataclass(frozen=True)
class LookAheadResidual(Readable):
    """A fit of what the look-ahead lacks to a costate.

    Attributes:
        regression: how to fit.
        look_ahead: the first guess.

    >>> from socft.costates.regression import StepwiseRegression
    >>> from socft.regression.features import Polynomial
    >>> from socft.regression.functions import LinearRegression
    >>> regression = StepwiseRegression(LinearRegression(Polynomial(1)))
    >>> LookAheadResidual(regression, LookAheadCostate(held=True)).look_ahead.held
    True
    """

    regression: FieldRegression
    look_ahead: LookAheadCostate

    def __post_init__(self) -> None:
        require_kinds(self, regression=FieldRegression, look_ahead=LookAheadCostate)

    @torch.no_grad()
    def fit(self, problem: ControlProblem, policy: Policy, costates: Costates) -> CostateSource:
        """The correction for samples of a costate at k = 0..T; zero at k = T."""
        guess = self.look_ahead.field(problem, policy)
        pairs = enumerate(zip(costates.states, costates.values, strict=True))
        lacking = [a - guess(k, x) for k, (x, a) in pairs]
        return GivenCostate(self.regression.fit(Costates(costates.states, torch.stack(lacking))))


CostateSampler: TypeAlias = Callable[[ControlProblem, Policy, Path], Costates]
"""Costates of the policy on some of its paths."""


@dataclasses.dataclass(frozen=True)
class FittedCorrection(CostateSource):
    """What the look-ahead lacks at the policy as it is, fitted anew on paths of its own whenever
    labels are made; their cost is that of a fit, not of a label.

    Attributes:
        residual: how to fit.
        costates: to what.
        paths: how many.
        generator: makes their noise.

    >>> from socft.costates.regression import StepwiseRegression
    >>> from socft.estimators.flow.nabla_db import reverse_costates
    >>> from socft.regression.functions import KernelRidge
    >>> residual = LookAheadResidual(StepwiseRegression(KernelRidge()), LookAheadCostate())
    >>> FittedCorrection(residual, reverse_costates, paths=100, generator=torch.Generator()).paths
    100
    """

    residual: LookAheadResidual
    costates: CostateSampler
    paths: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        require_kinds(self, residual=LookAheadResidual, generator=torch.Generator)
        require_callable(self.costates, "the costates", "of problem, policy and path")
        keep(self, paths=whole(self.paths, "paths"))

    @property
    def cost(self) -> Cost:
        return FREE

    @torch.no_grad()
    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        noise = Noise.sample(problem.reference, self.paths, self.generator)
        path = rollout(problem.reference, policy, noise)
        costates = tried(self.costates, (problem, policy, path), "the function of costates")
        remedy = "return Costates, as reverse_costates does."
        require_kind(costates, Costates, "what the function of costates makes", remedy)
        return self.residual.fit(problem, policy, costates).field(problem, policy)


def corrected(
    problem: ControlProblem,
    policy: Policy,
    look_ahead: LookAheadCostate,
    correction: CostateSource | None,
) -> CostateField:
    """The look-ahead and, before the end, what it lacks."""
    guess = look_ahead.field(problem, policy)
    if correction is None:
        return guess
    lacking = correction.field(problem, policy)
    return with_terminal(problem, lambda k, x: guess(k, x) + lacking(k, x).detach())
