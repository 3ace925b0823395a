r"""Functions of step and state fitted to samples along paths: costate fields, and value functions
whose gradient is one.

With independent samples at each step `StepwiseRegression` is the least-squares projection
:math:`\phi_k = \arg\min E |a_k - \phi(x_k)|^2`; its target is :math:`E[a_k \mid x_k]`.
`ValueRegression` fits samples of a value and differentiates the fit. `refine` repeats: the costates
of each round are made with the field of the round before (Picard iteration, as in arXiv
2603.20455v2).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import keep, require, require_kinds, whole
from socft.costates.base import Costates
from socft.costates.directional import gradient_of
from socft.costates.fields import CostateField, CostateSource, GivenCostate, zero_field
from socft.path import Noise, Path, rollout
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import States, Step, by_step
from socft.regression.functions import Field, Regression

StepField = Callable[[Step, States], Tensor]
"""``(k, x) -> `` anything per sample, k = 0..T, differentiable in x."""


@dataclasses.dataclass(frozen=True)
class ValueSamples:
    """Samples of the value function at their states, k = 0..T.

    Attributes:
        states: shape (T + 1, batch, *dims).
        values: shape (T + 1, batch).
    """

    states: Float[Tensor, "steps_plus_1 batch *dims"]
    values: Float[Tensor, "steps_plus_1 batch"]


class FieldRegression(Readable, abc.ABC):
    """A least-squares fit ``a ~ phi(k, x)`` over all steps."""

    @abc.abstractmethod
    def fit(self, samples: Costates, start: StepField | None = None) -> StepField:
        """The fitted field; ``start`` is an earlier fit to begin from where that helps."""


@dataclasses.dataclass(frozen=True)
class StepwiseField:
    """One function of the state per step 0..T."""

    functions: Sequence[Field]

    def __call__(self, k: Step, x: States) -> Tensor:
        return by_step(k, x, lambda i, y: self.functions[i](y))


@dataclasses.dataclass(frozen=True)
class StepwiseRegression(FieldRegression):
    """One regression per step, on vectors."""

    regression: Regression

    def __post_init__(self) -> None:
        require_kinds(self, regression=Regression)

    def fit(self, samples: Costates, start: StepField | None = None) -> StepwiseField:
        require(
            samples.states.ndim == 3,
            f"states have shape {tuple(samples.states.shape[2:])}; regressions per step are for"
            " vectors.",
        )
        earlier = (
            start.functions if isinstance(start, StepwiseField) else [None] * len(samples.states)
        )
        pairs = zip(samples.states, samples.values, earlier, strict=True)
        return StepwiseField([self.regression.fit(x, y, before) for x, y, before in pairs])


@dataclasses.dataclass(frozen=True)
class GradientField:
    """The gradient of a fitted value function."""

    value: StepField

    def __call__(self, k: Step, x: States) -> States:
        return gradient_of(lambda y: self.value(k, y).sum(), x)


@dataclasses.dataclass(frozen=True)
class ValueRegression:
    """A costate field that is a gradient: fits values, differentiates the fit."""

    regression: FieldRegression

    def __post_init__(self) -> None:
        require_kinds(self, regression=FieldRegression)

    def fit(self, samples: ValueSamples, start: CostateField | None = None) -> GradientField:
        earlier = start.value if isinstance(start, GradientField) else None
        return GradientField(
            self.regression.fit(Costates(samples.states, samples.values.unsqueeze(2)), earlier)
        )


class PathSampling(Readable, abc.ABC):
    """Which paths the rounds of a refinement use, in folds.

    Attributes:
        folds: how many.
    """

    folds: int

    @abc.abstractmethod
    def paths(self, problem: ControlProblem, policy: Policy) -> list[Path]:
        """The paths of one round, fold by fold."""


@dataclasses.dataclass(frozen=True)
class FreshPaths(PathSampling):
    """New paths in every round: a field never sees the noise it was fitted to."""

    batch: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        keep(self, batch=whole(self.batch, "batch"))
        require_kinds(self, generator=torch.Generator)

    folds = 1

    def paths(self, problem: ControlProblem, policy: Policy) -> list[Path]:
        return [
            rollout(
                problem.reference,
                policy,
                Noise.sample(problem.reference, self.batch, self.generator),
            )
        ]


@dataclasses.dataclass(frozen=True)
class CrossFittedPaths(PathSampling):
    """The same paths in every round, split in folds; each fold's costates use the field fitted to
    the fold before it.

    That field is independent of the fold's noise in the first ``folds`` rounds. From then on it has
    seen it through the errors of earlier fits, an effect of second order in them. With one fold
    costates use the field fitted to their own noise; regressions per step then still leave no bias
    where their model is right, since they see later noise through residuals of mean zero.

    Attributes:
        noise: the noise of all paths.
        folds: number of folds.
    """

    noise: Noise
    folds: int = 2

    def __post_init__(self) -> None:
        require_kinds(self, noise=Noise)
        batch = len(self.noise.initial)
        keep(self, folds=whole(self.folds, "folds", most=batch))

    def paths(self, problem: ControlProblem, policy: Policy) -> list[Path]:
        parts = zip(
            self.noise.initial.tensor_split(self.folds),
            self.noise.steps.tensor_split(self.folds, 1),
            strict=True,
        )
        return [
            rollout(problem.reference, policy, Noise(initial, steps)) for initial, steps in parts
        ]


SamplesT = TypeVar("SamplesT", Costates, ValueSamples)


@dataclasses.dataclass(frozen=True)
class AverageField:
    """The mean of the fields of all folds."""

    fields: tuple[CostateField, ...]

    def __call__(self, k: Step, x: States) -> States:
        return torch.stack([field(k, x) for field in self.fields]).mean(0)


def refine(
    problem: ControlProblem,
    policy: Policy,
    sample: Callable[[CostateSource], Callable[[ControlProblem, Policy, Path], SamplesT]],
    fit: Callable[[SamplesT, CostateField | None], CostateField],
    sampling: PathSampling,
    rounds: int,
    start: CostateField = zero_field,
) -> Iterator[CostateField]:
    """Yield the field of every round, fitted to samples made with the field of the round before.

    Args:
        problem: the problem.
        policy: whose costates; not changed.
        sample: makes the sampler that uses a field, as in
            ``lambda source: MartingaleAdjoint(FirstOrderCorrection(source)).costates``.
        fit: ``StepwiseRegression(...).fit``, ``SpaceTimeRegression(...).fit`` or, for values,
            ``ValueRegression(...).fit``.
        sampling: fresh paths in each round, or the same ones cross-fitted.
        rounds: number of rounds.
        start: the field that the first round uses.
    """
    require(rounds >= 1, f"rounds = {rounds}; give at least 1.")
    fields, fitted = [start] * sampling.folds, [None] * sampling.folds
    for _ in range(rounds):
        with torch.no_grad():
            paths = sampling.paths(problem, policy)
            samples = [
                sample(GivenCostate(fields[i - 1]))(problem, policy, path)
                for i, path in enumerate(paths)
            ]
        fitted = [fit(each, earlier) for each, earlier in zip(samples, fitted, strict=True)]
        fields = list(fitted)
        yield fields[0] if len(fields) == 1 else AverageField(tuple(fields))
