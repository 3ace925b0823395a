r"""Whether an estimator estimates what it says, on a nonlinear problem with quadrature truth.

The mean of an estimate is taken over paths of randomised quasi-Monte Carlo: `SCRAMBLES` independent
scramblings of a Sobol sequence, in a random order, whose means are independent and have the right
expectation. Everything is in units of the gradient at the pre-trained model, and vectors are
measured by their norms.

A statement is a list of sentences. A sentence says that a mean is within `SIGMAS` standard errors
of what it should be, and the standard error is itself bounded by `RESOLUTION`; or that it is
further than that from what it should not be.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import scipy.stats
import torch
from torch import Tensor

from socft.costates.fields import CostateField, GivenCostate
from socft.estimators.base import Estimator, LabelRows
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.estimand import (
    ApproximateResidual,
    Biased,
    EquationResidual,
    Estimand,
    FixedPointResidual,
    LastStepsGradient,
    ObjectiveGradient,
    ResidualZero,
)
from socft.estimators.truncated_backprop import TruncatedBackprop
from socft.path import Noise, Path, rollout
from socft.policy import FunctionPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import Noises, Reference, States, Step
from verify.support.nonlinear_chains.problems import NonlinearProblem, features
from verify.support.nonlinear_chains.quadrature import F64

Make = Callable[[EstimatorContext], Estimator]

SCRAMBLES = 8
SIGMAS = 4.0
RESOLUTION = 0.03
"""Largest standard error of a mean that is to vanish, in units of the gradient at the pre-trained
model.
"""
FLOOR = 2e-3
"""Of interpolated optima, of normalised weights of finitely many paths, and of quadrature."""
OUTERMOST = 1e-12
TOGETHER = 2**14
"""Paths that are labelled at a time where they may be."""
KEPT = 4 * SCRAMBLES
"""Batches of paths that are kept for the next estimator."""


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean estimate, in units of the gradient at the pre-trained model.

    Attributes:
        value: shape (T m p,).
        stderr: norm of its standard error.
    """

    value: Tensor
    stderr: float

    def apart(self, expected: Tensor | float = 0.0) -> float:
        """The distance from what is expected."""
        return float((self.value - expected).norm())


@dataclasses.dataclass(frozen=True)
class Sentence:
    """What one sentence of a statement comes to.

    Attributes:
        name: the sentence.
        measured: a distance.
        stderr: its standard error.
        zero: whether it should be zero; otherwise it should not.
    """

    name: str
    measured: float
    stderr: float
    zero: bool

    @property
    def bound(self) -> float:
        """What is zero lies below, and what is not lies above."""
        return max(SIGMAS * self.stderr, FLOOR)

    @property
    def violation(self) -> float:
        """Above one where the sentence is refuted, or the noise hides it."""
        if self.zero:
            return max(self.measured / self.bound, self.stderr / RESOLUTION)
        return self.bound / self.measured


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """An estimator on a problem.

    Attributes:
        make: makes it in a context.
        place: the problem.
        paths: of each scrambling, a power of two.
        scrambles: their number.
        alone: whether an estimator is made for every scrambling; otherwise only those are made anew
            that hold paths against each other.
    """

    make: Make
    place: NonlinearProblem
    paths: int
    scrambles: int = SCRAMBLES
    alone: bool = False

    @functools.cached_property
    def away(self) -> Mean:
        """Away from the optimum."""
        return self.mean(self.place.away)

    @functools.cached_property
    def at_optimum(self) -> Mean:
        """At the optimum."""
        return self.mean(self.place.optimum)

    @functools.cached_property
    def target(self) -> Tensor:
        """Minus the gradient of the objective away from the optimum."""
        return -self.place.slope / self.place.unit

    @functools.cached_property
    def last(self) -> int:
        """Of how many steps a truncated estimate is."""
        made = self.make(self._contexts(self.place.away)(0))
        assert isinstance(made, TruncatedBackprop)
        return made.last

    def mean(self, policy: Policy) -> Mean:
        """The mean estimate on paths of a policy."""
        contexts = self._contexts(policy)
        couples = self.alone or self.make(contexts(0)).couples_batch
        size = 1 if couples else max(TOGETHER // self.paths, 1)
        parts = [range(self.scrambles)[i : i + size] for i in range(0, self.scrambles, size)]
        found = torch.cat([self._some(policy, contexts(seeds[0]), seeds) for seeds in parts])
        spread = found.std(0).norm() / self.scrambles**0.5
        return Mean(found.mean(0) / self.place.unit, float(spread) / self.place.unit)

    def _contexts(self, policy: Policy) -> Callable[[int], EstimatorContext]:
        """What estimators are made for, with the policy's own value and its gradient as what is
        known, by repetition.
        """
        value, gradient = fields(self.place, policy)
        known = GivenCostate(gradient)
        return lambda seed: EstimatorContext(self.place.problem, policy, seed, known, known, value)

    def _some(self, policy: Policy, where: EstimatorContext, seeds: range) -> Tensor:
        """Means of some scramblings, shape (seeds, T m p)."""
        problem, estimator = self.place.problem, self.make(where)
        path = paths(self.place, policy, self.paths, seeds)
        with torch.no_grad():
            labels = estimator.label(problem, policy, path)
        own, found = labels.states.data_ptr() == path.states.data_ptr(), []
        for k in range(problem.steps):
            rows = labels.step(k)
            control = path.controls[k] if own else policy(k, rows.states)
            found.append(slopes(estimator, problem, rows, control, k, len(seeds)))
        return torch.cat(found, 1)


@functools.lru_cache(maxsize=16)
def fields(
    place: NonlinearProblem, policy: Policy
) -> tuple[Callable[[Step, States], Tensor], CostateField]:
    """The policy's value function and its gradient."""
    return place.truth.fields(policy)


@functools.lru_cache(maxsize=KEPT)
def paths(place: NonlinearProblem, policy: Policy, count: int, seeds: range) -> Path:
    """Those of some scramblings, the same for every estimator."""
    reference = place.problem.reference
    noise = [sobol(reference, count, seed) for seed in seeds]
    initial, steps = [each.initial for each in noise], [each.steps for each in noise]
    with torch.no_grad():
        return rollout(reference, policy, Noise(torch.cat(initial), torch.cat(steps, 1)))


@functools.lru_cache(maxsize=KEPT)
def sobol(reference: Reference, count: int, seed: int) -> Noise:
    """Normal noise of a scrambled Sobol sequence in random order."""
    (n,), (m,) = reference.dims, reference.noise_dims
    sequence = scipy.stats.qmc.Sobol(n + reference.steps * m, rng=seed)
    uniform = sequence.random(count).clip(OUTERMOST, 1 - OUTERMOST)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    normal = torch.from_numpy(scipy.stats.norm.ppf(uniform)).to(F64)[order]
    steps = normal[:, n:].reshape(count, reference.steps, m).transpose(0, 1)
    return Noise(normal[:, :n], steps.contiguous())


def slopes(
    estimator: Estimator,
    problem: ControlProblem,
    rows: LabelRows,
    control: Noises,
    k: int,
    batches: int,
) -> Tensor:
    """Mean derivatives of the loss of step k in the coefficients of `features` at a control, of
    each of as many batches of rows, shape (batches, m p).
    """
    control = control.detach().clone().requires_grad_(True)
    held = FunctionPolicy(lambda k, x: control)
    (found,) = torch.autograd.grad(estimator.loss(problem, held, k, rows).sum(), control)
    found, seen = (x.unflatten(0, (batches, -1)) for x in (found, features(rows.states)))
    return (found.mT @ seen).flatten(1) / seen.shape[1]


@functools.singledispatch
def parts(estimand: Estimand, trial: Trial) -> list[Sentence]:
    """The sentences of a statement and what they come to."""
    raise NotImplementedError(f"no test of {estimand}")


def _zero(name: str, mean: Mean, expected: Tensor | float = 0.0) -> Sentence:
    return Sentence(name, mean.apart(expected), mean.stderr, True)


def _other(name: str, mean: Mean, expected: Tensor | float = 0.0) -> Sentence:
    return Sentence(name, mean.apart(expected), mean.stderr, False)


@parts.register
def _(estimand: ObjectiveGradient, trial: Trial) -> list[Sentence]:
    return [
        _zero("the gradient, away from the optimum", trial.away, trial.target),
        _zero("zero at the optimum", trial.at_optimum),
    ]


@parts.register
def _(estimand: FixedPointResidual, trial: Trial) -> list[Sentence]:
    return [
        _zero("zero at the optimum", trial.at_optimum),
        _other("not zero elsewhere", trial.away),
        _other("not the gradient", trial.away, trial.target),
    ]


@parts.register
def _(estimand: ApproximateResidual, trial: Trial) -> list[Sentence]:
    found = [
        _other("not zero at the optimum of coarse steps", trial.at_optimum),
        _other("not zero elsewhere", trial.away),
        _other("not the gradient", trial.away, trial.target),
    ]
    if estimand.zero is ResidualZero.LEAST_CROSS_ENTROPY:
        at = trial.mean(trial.place.truth.least_cross_entropy)
        found.append(_zero("zero at the control of least cross-entropy", at))
    if estimand.zero is ResidualZero.PREVIOUS_COSTATE:
        at = trial.mean(trial.place.truth.previous_costate)
        found.append(_zero("zero at the control of the previous costate", at))
    return found


@parts.register
def _(estimand: LastStepsGradient, trial: Trial) -> list[Sentence]:
    target = trial.target.reshape(trial.place.problem.steps, -1).clone()
    target[: len(target) - trial.last] = 0
    return [_zero("the gradient of the last steps", trial.away, target.flatten())]


@parts.register
def _(estimand: Biased, trial: Trial) -> list[Sentence]:
    at = _zero if estimand.zero_at_optimum else _other
    name = "zero at the optimum" if estimand.zero_at_optimum else "not zero at the optimum"
    return [
        _other("not the gradient", trial.away, trial.target),
        at(name, trial.at_optimum),
    ]


@parts.register
def _(estimand: EquationResidual, trial: Trial) -> list[Sentence]:
    """That the equation holds where it vanishes is held to by the tests of the methods."""
    return [
        _other("not the gradient", trial.away, trial.target),
        _other("not zero at the optimum", trial.at_optimum),
    ]
