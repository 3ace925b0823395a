r"""Ways to learn a costate field from N simulated paths: the competitors of the studies of
time-reversed BSDEs.

Every pipeline sees the same N paths of a policy and returns a field
:math:`\phi_k(x) \approx \nabla V_k(x)`. They differ in the samples that are regressed (lean
adjoints, martingale-corrected adjoints, time-reversed costates, least squares), in the regression
(linear features solved exactly, or one network over time and state) and in the number of rounds.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from socft.costates.adjoint import LeanRecursion
from socft.costates.fields import CostateField, CostateSource, GivenCostate
from socft.costates.marginal_score import MarginalScore, NoiseScore
from socft.costates.martingale import (
    AntitheticCorrection,
    Correction,
    FirstOrderCorrection,
    correction_step,
    mean,
)
from socft.costates.network import NetworkTraining, SpaceTimeRegression, published_huber
from socft.costates.regression import (
    AverageField,
    CrossFittedPaths,
    FieldRegression,
    StepwiseRegression,
    ValueRegression,
    refine,
)
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.path import Noise, Path, rollout
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import States, Step
from socft.regression.features import Features, Polynomial
from socft.regression.functions import Field, LinearRegression, Regression
from socft.study.repetitions import record_repetitions
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema

ROUNDS = 10
"""Picard rounds of arXiv 2603.20455v2."""
FOLDS = 2
REVERSED_SEED = 10_000
"""Added to a seed for the noise of reversed paths, which must not be that of the forward ones."""

Learn = Callable[[ControlProblem, Policy, Noise, int], CostateField]
"""``(problem, policy, noise, seed) -> field``."""
ROLLOUT, ADJOINT, REVERSED = 2, 2, 4
"""Evaluations of the mean map or the policy per step and path: of a path, of a lean adjoint, whose
derivative counts as two, and of a path backwards with its costates, which takes both maps and a
derivative; values backwards take no derivative.
"""


@dataclasses.dataclass(frozen=True)
class Learner:
    """A function of (problem, policy, noise, seed) that returns a field.

    Attributes:
        run: the function.
        work: evaluations of the mean map or the policy per step and path; those of fitted fields
            and networks are not counted.
    """

    run: Learn
    work: int

    def __call__(
        self, problem: ControlProblem, policy: Policy, noise: Noise, seed: int
    ) -> CostateField:
        return self.run(problem, policy, noise, seed)


@dataclasses.dataclass(frozen=True)
class CostateLearner:
    """A way to learn a costate field.

    Attributes:
        name: as reports show it.
        kind: whether the regressed samples have the exact conditional mean: "unbiased" or "biased".
        function_class: "linear" or "network".
        learn: the pipeline.
    """

    name: str
    kind: str
    function_class: str
    learn: Learner


@dataclasses.dataclass(frozen=True)
class FittedCostate:
    """A field, and the time on one thread and the evaluations it took, paths included."""

    field: CostateField
    seconds: float
    evaluations: int


def learn(
    pipeline: CostateLearner, problem: ControlProblem, policy: Policy, paths: int, seed: int
) -> FittedCostate:
    """Run a pipeline on ``paths`` fresh paths."""
    start = time.perf_counter()
    noise = Noise.sample(problem.reference, paths, torch.Generator().manual_seed(seed))
    field = pipeline.learn(problem, policy, noise, seed)
    return FittedCostate(
        field, time.perf_counter() - start, pipeline.learn.work * problem.steps * paths
    )


@dataclasses.dataclass(frozen=True)
class RepeatedFit:
    """Fits to paths of their own.

    Attributes:
        rows: what was measured on each.
        seconds: in the mean.
        evaluations: of one.
    """

    rows: list[dict[Metric, float]]
    seconds: float
    evaluations: int

    @classmethod
    def of(
        cls,
        pipeline: CostateLearner,
        problem: ControlProblem,
        policy: Policy,
        paths: int,
        seeds: int,
        measured: Callable[[CostateField], dict[Metric, float]],
    ) -> RepeatedFit:
        """Fits of a pipeline, as `learn` makes them."""
        fits = [learn(pipeline, problem, policy, paths, seed) for seed in range(seeds)]
        rows = [measured(each.field) for each in fits]
        return cls(rows, sum(each.seconds for each in fits) / seeds, fits[-1].evaluations)

    def records(self, study: StudySchema, problem: str, **common: Any) -> list[Record]:
        """`record_repetitions` of what was measured."""
        cost = {"seconds": self.seconds, "evaluations": self.evaluations}
        return record_repetitions(study, problem, self.rows, **cost, **common)


def linear_features(degree: int = 1) -> StepwiseRegression:
    """Monomials up to a degree, one exact regression per step."""
    return StepwiseRegression(LinearRegression(Polynomial(degree)))


def lean(regression: Callable[[int], FieldRegression]) -> Learner:
    """Regression of lean adjoints, the non-adapted baseline of arXiv 2603.20455v2; one round."""

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        with torch.no_grad():
            path = rollout(problem.reference, policy, noise)
        return regression(seed).fit(AdjointMatching().costates(problem, policy, path))

    return Learner(run, ROLLOUT + ADJOINT)


def martingale(
    regression: Callable[[int], FieldRegression],
    rounds: int,
    correction: Callable[[CostateSource], Correction] = FirstOrderCorrection,
) -> Learner:
    """Lean adjoints, corrected by the field of the round before, cross-fitted; the first round is
    lean.
    """

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        def sample(source: CostateSource):
            return MartingaleAdjoint(correction(source)).costates

        fit = regression(seed).fit
        return _last(refine(problem, policy, sample, fit, CrossFittedPaths(noise, FOLDS), rounds))

    return Learner(run, rounds * (ROLLOUT + ADJOINT))


@dataclasses.dataclass(frozen=True)
class StepwiseFits:
    """Fields by step, while a backward pass fits them."""

    by_step: dict[int, Field] = dataclasses.field(default_factory=dict)

    def __call__(self, k: Step, x: States) -> States:
        assert isinstance(k, int)
        return self.by_step[k](x)


def martingale_backward_pass(
    regression: Regression, correction: Callable[[CostateSource], Correction] = AntitheticCorrection
) -> Learner:
    """Lean adjoints corrected in one backward pass: the field of a step is fitted before the
    adjoint is pulled through it.

    The paths are split in folds, and each fold is corrected by the field that another one was
    fitted to.
    """

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        with torch.no_grad():
            paths = CrossFittedPaths(noise, FOLDS).paths(problem, policy)
            fields, costates = (
                [StepwiseFits() for _ in paths],
                [problem.reward.gradient(path.final) for path in paths],
            )
            corrections = [correction(GivenCostate(fields[i - 1])) for i in range(FOLDS)]
            for k in reversed(range(problem.steps)):
                for i, path in enumerate(paths):
                    next_costate = costates[i] - corrections[i].increment(problem, policy, path, k)
                    costates[i] = LeanRecursion().vjp(
                        problem, policy, k, path.states[k], next_costate
                    )
                for field, path, costate in zip(fields, paths, costates, strict=True):
                    field.by_step[k] = regression.fit(path.states[k], costate)
        return AverageField(tuple(fields))

    return Learner(run, ROLLOUT + ADJOINT)


def bellman_sweep(regression: Regression, nodes: int) -> Learner:
    """StepwiseFits dynamic programming: each step's costate is the mean of the next fit by a
    Gauss-Hermite rule, pulled back.

    Labels have no noise; errors of the fits add up instead.
    """

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        with torch.no_grad():
            return _bellman(
                problem, policy, rollout(problem.reference, policy, noise), regression, nodes
            )

    return Learner(run, ROLLOUT + ADJOINT)


def martingale_after_bellman(
    regression: Regression,
    nodes: int,
    correction: Callable[[CostateSource], Correction] = AntitheticCorrection,
) -> Learner:
    """Lean adjoints corrected by the field of a Bellman sweep on another fold, which removes its
    bias; one regression more.
    """

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        with torch.no_grad():
            paths = CrossFittedPaths(noise, FOLDS).paths(problem, policy)
            swept, fits = [_bellman(problem, policy, path, regression, nodes) for path in paths], []
            for i, path in enumerate(paths):
                samples = MartingaleAdjoint(correction(GivenCostate(swept[i - 1]))).costates(
                    problem, policy, path
                )
                fits.append(StepwiseRegression(regression).fit(samples))
        return AverageField(tuple(fits))

    return Learner(run, ROLLOUT + 2 * ADJOINT)


def _bellman(
    problem: ControlProblem, policy: Policy, path: Path, regression: Regression, nodes: int
) -> StepwiseFits:
    fitted = StepwiseFits()
    for k in reversed(range(problem.steps)):
        next_costate = mean(correction_step(GivenCostate(fitted), problem, policy, path, k), nodes)
        fitted.by_step[k] = regression.fit(
            path.states[k], LeanRecursion().vjp(problem, policy, k, path.states[k], next_costate)
        )
    return fitted


@dataclasses.dataclass(frozen=True)
class FittedScore(MarginalScore):
    """A score along the noise that was fitted before."""

    score: NoiseScore

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        return self.score


def time_reversed(
    regression: Callable[[int], FieldRegression],
    score: Callable[[int], MarginalScore],
    rounds: int = ROUNDS,
    published: bool = False,
) -> Learner:
    """Time-reversed costates, refitted by Picard iteration on the same paths' ends, with a score
    that is fitted once.

    Published pipelines keep the reversed paths of the first round, and pair their noise as the
    published code does; the others draw fresh reversed noise in every round.
    """

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        with torch.no_grad():
            path = rollout(problem.reference, policy, noise)
        fresh = None if published else torch.Generator().manual_seed(seed + REVERSED_SEED)
        fitted = FittedScore(score(seed).fit(problem, policy, path))
        reverser = Reverser(fitted, fresh, published)

        def sample(source: CostateSource):
            return ReversedBSDE(source, reverser).costates

        fit = regression(seed).fit
        return _last(refine(problem, policy, sample, fit, CrossFittedPaths(noise, 1), rounds))

    return Learner(run, rounds * (ROLLOUT + REVERSED))


def time_reversed_value(features: Features, score: MarginalScore, rounds: int = ROUNDS) -> Learner:
    """The value form: values at reversed states are regressed, and the fit differentiated."""

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        reverser = Reverser(score, torch.Generator().manual_seed(seed + REVERSED_SEED))

        def sample(source: CostateSource):
            return ReversedValues(source, reverser).values

        fit = ValueRegression(StepwiseRegression(LinearRegression(features))).fit
        return _last(refine(problem, policy, sample, fit, CrossFittedPaths(noise, 1), rounds))

    return Learner(run, rounds * (ROLLOUT + REVERSED - ADJOINT))


def least_squares_costate(features: Features) -> Learner:
    """Least-squares Monte Carlo for costates."""

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        return LeastSquaresCostate(LinearRegression(features)).fit(
            problem, policy, rollout(problem.reference, policy, noise)
        )

    return Learner(run, ROLLOUT + ADJOINT)


def least_squares_value(features: Features) -> Learner:
    """Least-squares Monte Carlo for values, differentiated."""

    def run(problem: ControlProblem, policy: Policy, noise: Noise, seed: int) -> CostateField:
        return LeastSquaresValue(LinearRegression(features)).fit(
            problem, policy, rollout(problem.reference, policy, noise)
        )

    return Learner(run, ROLLOUT)


def space_time(
    training: NetworkTraining, published: bool = False
) -> Callable[[int], SpaceTimeRegression]:
    """Regression on one network: with the published loss, or with the squared one, whose minimiser
    is the conditional mean.
    """
    loss = {"loss": published_huber} if published else {}
    return lambda seed: SpaceTimeRegression(dataclasses.replace(training, seed=seed), **loss)


def _last(fields) -> CostateField:
    *_, last = fields
    return last
