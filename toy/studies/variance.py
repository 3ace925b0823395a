r"""What do gradient estimators return where the exact gradient is known? Bias, variance and cost.

Every estimator estimates the gradient of the objective in the coefficients of affine features of
every step (`toy.measure`), from single paths, at policies from the pre-trained model to the optimum
(`toy.situations`). The line :math:`s\, v^*`, s from 0 to 1, stands for training: on it the exact
gradient, and so the bias, is known at the optimum and on the way to it. The noise, and on the
linear-quadratic problem the bias, at the policies that training itself passes through are measured
in `toy.studies.training`. One axis is varied at a time: distance from the optimum, number of steps
at a fixed horizon, horizon at a fixed step size, dimension, noise level, problem. All numbers are
relative to the norm of the exact gradient at the pre-trained model:

* ``bias``: distance of the mean from the exact gradient, without its noise; ``stderr`` is that
  noise. The mean is over repetitions with paths of their own, each of which fits anew what an
  estimator fits, and draws anew what it draws, besides these;
* ``variance``: trace of the covariance of the estimate from one path, given what is fitted;
* ``fit_variance``, of biased estimators: trace of the covariance of the mean that a fit leaves,
  which no number of paths lessens. It is zero for the others, whose mean does not depend on the
  fit;
* ``error_at_budget``: root-mean-square error with `BUDGET` network evaluations, those of the fit
  included: ``sqrt(bias^2 + fit_variance + variance / paths)``, never less than the bias; infinite
  where the fit leaves nothing for a path;
* the ``stderr`` of variance and error is the standard deviation of the draws of a bootstrap over
  the repetitions;
* ``repetitions``: their number, and in the setting what all these are made of (`toy.repeated`);
* ``costate_mse``: mean-square distance of costate samples from the policy's exact value gradient,
  per step, not relative;
* ``seconds``: per path; ``peak_mb``: memory beyond path and labels;
* ``refused``: the estimator does not apply, with its reason.

A fixed-point residual is no estimate of the gradient away from the optimum: its ``bias`` there is
its distance from the gradient.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from socft.checks import InvalidProblem
from socft.estimators.base import CostateEstimator, Estimator
from socft.estimators.catalogue import COMPARED, find_estimator
from socft.estimators.catalogue.rows import NamedEstimator
from socft.estimators.estimand import Kind
from socft.path import Noise, rollout
from socft.records import Record
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.measure import estimate, peak_memory
from toy.problems import benchmark
from toy.repeated import RepeatedGradient
from toy.situations import Situation, situation

PATHS, FEW_PATHS, QUICK_PATHS = 1000, 200, 250
"""Of a repetition; `FEW_PATHS` where the exact optimum is expensive to follow."""
SEEDS, QUICK_SEEDS = 5, 2
MEMORY_PATHS = 64
COSTATE_TIMES = 10


def variance_task(
    estimator: str,
    problem: str,
    settings: Mapping[str, Any],
    scale: float,
    axis: str,
    paths: int,
    seeds: int,
) -> list[Record]:
    """Everything about one estimator in one situation, or why it refuses."""
    chosen = find_estimator(estimator)
    places = [
        repeated_situation(problem, scale, repetition, **settings) for repetition in range(seeds)
    ]
    try:
        made = [(where, chosen.make(where.context)) for where in places]
        return [*gradient_records(chosen, made, axis, paths), *_costates(chosen, made, axis, paths)]
    except InvalidProblem as refusal:
        setting = {**places[0].setting, "axis": axis, "reason": str(refusal)}
        return [Record(schemas.VARIANCE.name, problem, Metric.REFUSED, 1.0, setting, estimator)]


@functools.lru_cache(maxsize=2 * SEEDS)
def repeated_situation(problem: str, scale: float, repetition: int, **settings: Any) -> Situation:
    """Exact solutions are shared by the repetitions, and by the estimators that a process
    measures.
    """
    if repetition:
        return dataclasses.replace(
            repeated_situation(problem, scale, 0, **settings), repetition=repetition
        )
    return situation(benchmark(problem, **settings), scale)


def gradient_records(
    named: NamedEstimator, made: Sequence[tuple[Situation, Estimator]], axis: str, paths: int
) -> Iterator[Record]:
    """Bias, variance, error at budget and what they are made of, of an estimator made in repeated
    situations.
    """
    parts = [
        estimate(each, here.problem, here.policy, path_noise(here, paths)) for here, each in made
    ]
    (where, estimator), unit, steps = made[0], made[0][0].scale, made[0][0].problem.steps
    found = RepeatedGradient.of(
        torch.stack([each.mean for each in parts]),
        where.gradient,
        unit,
        kind=estimator.estimates.kind,
        noise=where.stderr / unit,
        variances=torch.tensor([each.variance for each in parts], dtype=torch.float64) / unit**2,
        paths=paths,
        evaluations=named.evaluations(estimator, steps),
        fit_evaluations=named.fit_evaluations(steps),
    )
    with torch.no_grad():
        path = rollout(where.problem.reference, where.policy, path_noise(where, MEMORY_PATHS))
    common = {
        "estimator": named.name,
        "kind": found.kind,
        "seeds": found.count,
        "seconds": sum(each.seconds for each in parts) / (paths * len(parts)),
        "peak_mb": peak_memory(estimator, where.problem, where.policy, path),
        "evaluations": found.evaluations,
    }
    setting = {**where.setting, "axis": axis}
    yield from summary_records(found, where.setting["problem"], setting, common)


def summary_records(
    found: RepeatedGradient, problem: str, setting: Mapping[str, Any], common: Mapping[str, Any]
) -> Iterator[Record]:
    """A record per number, and one of what they are made of."""

    def record(metric: Metric, value: float, **more: Any) -> Record:
        return Record(
            schemas.VARIANCE.name, problem, metric, value, **{"setting": setting, **common, **more}
        )

    weights = found.equal
    bias = float(found.bias_squared(weights)) ** 0.5
    yield record(Metric.BIAS, bias, stderr=found.bias_noise)
    yield record(
        Metric.VARIANCE, float(found.variance(weights)), stderr=found.deviation(found.variance)
    )
    if found.kind == Kind.BIASED:
        yield record(Metric.FIT_VARIANCE, float(found.fit_variance(weights)))
    yield record(
        Metric.ERROR_AT_BUDGET, float(found.error(weights)), stderr=found.deviation(found.error)
    )
    written = {**setting, **found.written()}
    yield record(Metric.REPETITIONS, float(found.count), setting=written)


@torch.no_grad()
def _costates(
    named: NamedEstimator, made: Sequence[tuple[Situation, Estimator]], axis: str, paths: int
) -> Iterator[Record]:
    (where, estimator), steps = made[0], made[0][0].problem.steps
    if not isinstance(estimator, CostateEstimator):
        return
    times = sorted({round(i * (steps - 1) / (COSTATE_TIMES - 1)) for i in range(COSTATE_TIMES)})
    away = []
    for here, each in made:
        if isinstance(each, CostateEstimator):
            found = each.costates(
                here.problem,
                here.policy,
                rollout(here.problem.reference, here.policy, path_noise(here, paths)),
            )
            exact = [here.value_gradient(k, found.states[k]) for k in times]
            away.append(
                [
                    float((found.values[k] - at).square().sum(1).mean())
                    for k, at in zip(times, exact, strict=True)
                ]
            )
    for k, values in zip(times, torch.tensor(away, dtype=torch.float64).mT, strict=True):
        yield Record(
            schemas.VARIANCE.name,
            where.setting["problem"],
            Metric.COSTATE_MSE,
            float(values.mean()),
            {**where.setting, "axis": axis, "k": k},
            named.name,
            estimator.estimates.kind,
            stderr=float(values.std() / len(made) ** 0.5),
            seeds=len(made),
        )


def path_noise(where: Situation, paths: int) -> Noise:
    """The noise of a repetition."""
    return Noise.sample(
        where.problem.reference, paths, torch.Generator().manual_seed(where.repetition)
    )


@dataclasses.dataclass(frozen=True)
class SituationAxis:
    """Situations along which one thing varies.

    Attributes:
        name: what varies.
        problem: name of the benchmark.
        fixed: its settings.
        varied: settings of the benchmark, and ``scale``, one mapping per situation; with ``paths``
            where they are not `PATHS`.
        quick: how many of them the quick scale measures.
    """

    name: str
    problem: str
    fixed: Mapping[str, Any]
    varied: tuple[Mapping[str, Any], ...]
    quick: int = 2

    def settings(self, quick: bool) -> Iterable[tuple[dict[str, Any], float, int]]:
        """Settings, scale and number of paths of every situation."""
        for each in self.varied[: self.quick] if quick else self.varied:
            merged = {"paths": PATHS, **self.fixed, **each}
            scale, paths = merged.pop("scale"), merged.pop("paths")
            yield merged, scale, QUICK_PATHS if quick else paths


def _each(name: str, *values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({name: value} for value in values)


AXES = (
    SituationAxis(
        "distance", ProblemName.LQ_FINE_TUNING, {"d": 4}, _each("scale", 0.0, 1.0, 0.5, 0.9)
    ),
    SituationAxis(
        "dimension", ProblemName.LQ_FINE_TUNING, {"scale": 0.9}, _each("d", 1, 16, 64), quick=0
    ),
    SituationAxis(
        "steps", ProblemName.LQ_SDE, {"d": 2, "scale": 0.9}, _each("steps", 10, 30, 100), quick=1
    ),
    SituationAxis(
        "horizon",
        ProblemName.LQ_SDE,
        {"d": 2, "scale": 0.9},
        tuple({"horizon": h, "steps": round(25 * h)} for h in (0.4, 1.2, 4.0)),
        quick=0,
    ),
    SituationAxis(
        "noise",
        ProblemName.OSCILLATOR,
        {"dt": 0.1, "scale": 0.9},
        _each("noise", 1.0, 0.1, 10.0),
        quick=0,
    ),
    SituationAxis(
        ProblemName.MIXTURE,
        ProblemName.MIXTURE,
        {"steps": 50},
        ({"d": 1, "scale": 0.0}, {"d": 1, "scale": 1.0}),
        quick=0,
    ),
    SituationAxis(
        "mixture in high dimension",
        ProblemName.MIXTURE,
        {"scale": 1.0},
        ({"d": 2}, {"d": 10}, {"d": 50, "paths": FEW_PATHS}),
        quick=0,
    ),
)


def tasks(quick: bool) -> list[Task]:
    """Every estimator in every situation."""
    seeds = QUICK_SEEDS if quick else SEEDS
    found = []
    for axis in AXES:
        for settings, scale, paths in axis.settings(quick):
            for name in COMPARED:
                about = ", ".join(
                    f"{key} {value:g}" for key, value in {**settings, "scale": scale}.items()
                )
                arguments = {
                    "estimator": name,
                    "problem": axis.problem,
                    "settings": settings,
                    "scale": scale,
                    "axis": axis.name,
                }
                found.append(
                    Task(
                        f"{axis.name}: {axis.problem}, {about}: {name}",
                        variance_task,
                        arguments | {"paths": paths, "seeds": seeds},
                    )
                )
    return found


STUDY = Study(schemas.VARIANCE, tasks)
