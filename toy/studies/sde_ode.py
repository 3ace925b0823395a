r"""Trained with a stochastic sampler, sampled with another: how far is the law of the samples from
that of the chain that was trained, and from the tilt?

The optimum of a chain of noise level n is stored as a velocity and used in the kernels of noise
level :math:`n'`, down to the ordinary differential equation (`used` 0), on the same times. Nothing
is sampled: on Gaussians with quadratic rewards laws are closed forms (`toy.sde_ode.gaussian`), on
mixtures they come from quadrature (`toy.sde_ode.mixture`). Per sampler and number of steps

* ``w1_to_own``: Wasserstein distance from the law of the chain that was trained; ``reward_gap``,
  its mean reward above that of this chain;
* ``w1_to_tilt``, ``kl_to_tilt``: distances from ``p e^r / Z``, p the law of the flow at the last
  time; ``reward``, ``end_mean``, ``end_variance``;
* ``w1_to_limit``: from the limit in closed form (`socft.theory.SamplerChange`), on Gaussians;
* ``order``: slope of the logarithm of a distance, named by ``of``, against that of 1/T, over the
  last four numbers of steps, with the standard error of the fit;
* ``nearer``: share of random Gaussian instances in which the law without noise is nearer the tilt
  than the chain's; ``kl_ratio``, quantiles of the root of the chain's divergence over that of the
  other;
* ``predicted``: what `toy.sde_ode.predictions` says something about, with the range that it must
  lie in, from ``low`` to ``high``; outside it the prediction is refuted.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from socft.records import Record
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.predictions import SamplerPrediction
from socft.study.vocabulary.problems import ProblemName
from toy.sde_ode.gaussian import INSTANCES, ScalarProblem, random_instance
from toy.sde_ode.mixture import LAWS, REWARD, Trained, grid, tilt
from toy.sde_ode.predictions import PREDICTED, Range, closed_form_order, is_memoryless
from toy.sde_ode.samplers import MEMORYLESS, Kernel

LEVELS, MIXTURE_LEVELS = (0.7, 1.0, MEMORYLESS, 1.8), (0.7, MEMORYLESS, 1.8)
QUICK_LEVELS = (0.7, MEMORYLESS)
USED, MIXTURE_USED = (0.0, 0.35, 0.7, 1.0, MEMORYLESS), (0.0, 0.7, MEMORYLESS)
LENGTHS, QUICK_LENGTHS = (20, 40, 80, 160, 320, 640), (20, 40, 80, 160)
MIXTURE_LENGTHS, QUICK_MIXTURE_LENGTHS = (10, 20, 40, 80), (10, 20)
POPULATION, QUICK_POPULATION, POPULATION_STEPS = 200, 20, (40, 80, 160)
FITTED = 4
"""Numbers of steps of which an order is fitted."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SEED = 20
Measured = Mapping[int, Mapping[float, Mapping[Metric, float]]]
"""By number of steps and by the level that is used."""


def gaussian_task(
    problem: ProblemName, kernel: Kernel, trained: float, lengths: Sequence[int]
) -> list[Record]:
    """All samplers of a model of the optimum at one level, in closed form."""
    started, place = time.perf_counter(), INSTANCES[problem]
    used = tuple(sorted({*USED, trained}))
    measured = {
        steps: _distances(place, trained, place.laws(kernel, steps, trained, used))
        for steps in lengths
    }
    setting = {"kernel": str(kernel), "trained": trained}
    found = [*_records(problem, measured, setting)]
    for level in used:
        law = place.limit(trained, level)
        where = setting | {"used": level, "source": "limit"}
        values = {
            Metric.REWARD: place.reward(law),
            Metric.END_MEAN: law.mean,
            Metric.END_VARIANCE: law.variance,
            Metric.W1_TO_TILT: law.wasserstein1(place.tilt),
            Metric.REWARD_GAP: place.reward(law) - place.reward(place.tilt),
        }
        found += [_record(problem, metric, value, where) for metric, value in values.items()]
    if kernel == Kernel.PRECISE:
        found += _predicted(problem, measured, setting)
    return _timed(found, started)


def _distances(
    place: ScalarProblem, trained: float, laws: Mapping[float, Any]
) -> dict[float, dict[Metric, float]]:
    own, wanted = laws[trained], place.tilt
    return {
        level: {
            Metric.W1_TO_OWN: law.wasserstein1(own),
            Metric.REWARD_GAP: place.reward(law) - place.reward(own),
            Metric.W1_TO_TILT: law.wasserstein1(wanted),
            Metric.KL_TO_TILT: law.divergence(wanted),
            Metric.W1_TO_LIMIT: law.wasserstein1(place.limit(trained, level)),
            Metric.REWARD: place.reward(law),
            Metric.END_MEAN: law.mean,
            Metric.END_VARIANCE: law.variance,
        }
        for level, law in laws.items()
    }


def mixture_task(problem: ProblemName, trained: float, lengths: Sequence[int]) -> list[Record]:
    """The same by quadrature, on a mixture with a bounded reward."""
    started, x = time.perf_counter(), grid()
    used, wanted = tuple(sorted({*MIXTURE_USED, trained})), tilt(LAWS[problem])
    reward = REWARD(x[:, None])
    measured = {}
    for steps in lengths:
        model = Trained.of(LAWS[problem], Kernel.PRECISE, steps, trained)
        laws = {level: model.law(level) for level in used}
        measured[steps] = {
            level: {
                Metric.W1_TO_OWN: law.wasserstein1(laws[trained]),
                Metric.REWARD_GAP: law.mean(reward) - laws[trained].mean(reward),
                Metric.W1_TO_TILT: law.wasserstein1(wanted),
                Metric.KL_TO_TILT: law.divergence(wanted),
                Metric.REWARD: law.mean(reward),
                Metric.END_MEAN: law.mean(x),
                Metric.END_VARIANCE: law.mean(x.square()) - law.mean(x) ** 2,
            }
            for level, law in laws.items()
        }
    setting = {"kernel": str(Kernel.PRECISE), "trained": trained}
    found = [*_records(problem, measured, setting), *_predicted(problem, measured, setting)]
    return _timed(found, started)


def population_task(count: int, steps: Sequence[int]) -> list[Record]:
    """Random Gaussian instances: how often the law without noise is nearer, and how fast both near
    the tilt.
    """
    started, generator = time.perf_counter(), random.Random(SEED)
    places = [random_instance(generator) for _ in range(count)]
    laws = [
        [place.laws(Kernel.PRECISE, T, MEMORYLESS, (0.0, MEMORYLESS)) for T in steps]
        for place in places
    ]
    divergences = {
        level: [
            [each[level].divergence(place.tilt) for each in along]
            for place, along in zip(places, laws, strict=True)
        ]
        for level in (0.0, MEMORYLESS)
    }
    problem = ProblemName.FLOW_RANDOM
    pairs = zip(divergences[MEMORYLESS], divergences[0.0], strict=True)
    ratios = sorted(math.sqrt(chain[-1] / plain[-1]) for chain, plain in pairs)
    share, where = sum(each > 1 for each in ratios) / count, {"T": steps[-1]}
    error = math.sqrt(share * (1 - share) / count)
    found = [
        _record(problem, Metric.NEARER, share, where, stderr=error, seeds=count),
        _verdict(problem, SamplerPrediction.MOSTLY_NEARER, share, where),
    ]
    found += [
        _record(problem, Metric.KL_RATIO, _quantile(ratios, q), where | {"quantile": q})
        for q in QUANTILES
    ]
    for level, values in divergences.items():
        slopes = [_order(dict(zip(steps, map(math.sqrt, each), strict=True)))[0] for each in values]
        found.append(
            _record(
                problem,
                Metric.ORDER,
                statistics.fmean(slopes),
                {"used": level, "trained": MEMORYLESS, "of": "sqrt_kl_to_tilt"},
                stderr=statistics.stdev(slopes) / math.sqrt(count),
                seeds=count,
            )
        )
    return _timed(found, started)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return float(np.quantile(np.array(ordered), share))


def _order(distances: Mapping[int, float]) -> tuple[float, float | None]:
    """Slope of the logarithm of a distance against that of 1/T, and its standard error."""
    lengths = sorted(distances)[-FITTED:]
    x = -np.log(np.array(lengths, dtype=float))
    y = np.log(np.array([max(distances[T], 1e-300) for T in lengths]))
    slope, offset = np.polyfit(x, y, 1)
    if len(lengths) < 3:
        return float(slope), None
    left = y - slope * x - offset
    scatter = float(left @ left) / (len(lengths) - 2)
    return float(slope), math.sqrt(scatter / float(((x - x.mean()) ** 2).sum()))


def _records(
    problem: ProblemName, measured: Measured, setting: Mapping[str, Any]
) -> Iterator[Record]:
    for steps, laws in measured.items():
        for level, values in laws.items():
            for metric, value in values.items():
                yield _record(problem, metric, value, {**setting, "used": level, "T": steps})
    for level in next(iter(measured.values())):
        for metric in (Metric.W1_TO_OWN, Metric.W1_TO_TILT, Metric.W1_TO_LIMIT):
            curve = {T: laws[level].get(metric, 0.0) for T, laws in measured.items()}
            if all(curve.values()):
                slope, error = _order(curve)
                where = {**setting, "used": level, "of": str(metric)}
                yield _record(
                    problem, Metric.ORDER, slope, where, stderr=error, seeds=min(len(curve), FITTED)
                )


def _predicted(
    problem: ProblemName, measured: Measured, setting: Mapping[str, Any]
) -> Iterator[Record]:
    """What the predictions say of the samplers of one model."""
    trained, last = setting["trained"], measured[max(measured)]

    def order(level: float, metric: Metric) -> float:
        return _order({T: laws[level][metric] for T, laws in measured.items()})[0]

    def verdict(which: SamplerPrediction, value: float, level: float) -> Record:
        return _verdict(problem, which, value, {**setting, "used": level})

    own, flow = trained, 0.0
    yield verdict(SamplerPrediction.OWN_SAMPLER, order(own, Metric.W1_TO_TILT), own)
    if is_memoryless(trained):
        for level in last:
            found = order(level, Metric.W1_TO_TILT)
            yield verdict(SamplerPrediction.ANY_SAMPLER, found, level)
        ratio = math.sqrt(last[own][Metric.KL_TO_TILT] / last[flow][Metric.KL_TO_TILT])
        if problem in LAWS:
            yield verdict(SamplerPrediction.NEARER_ON_MIXTURES, ratio, flow)
        if problem == ProblemName.FLOW_CENTRED:
            for T, laws in measured.items():
                ratio = math.sqrt(laws[own][Metric.KL_TO_TILT] / laws[flow][Metric.KL_TO_TILT])
                where = {**setting, "used": flow, "T": T}
                yield _verdict(problem, SamplerPrediction.COUNTER_EXAMPLE, ratio, where)
        return
    yield verdict(SamplerPrediction.GAP_STAYS, order(flow, Metric.W1_TO_OWN), flow)
    above = last[flow][Metric.REWARD_GAP] * math.copysign(1, MEMORYLESS - trained)
    yield verdict(SamplerPrediction.OVERSHOOT, above, flow)
    if problem in INSTANCES:
        found, limits = order(flow, Metric.W1_TO_LIMIT), closed_form_order(trained)
        where = {**setting, "used": flow}
        yield _verdict(problem, SamplerPrediction.CLOSED_FORM, found, where, limits)


def _verdict(
    problem: ProblemName,
    which: SamplerPrediction,
    value: float,
    setting: Mapping[str, Any],
    limits: Range | None = None,
) -> Record:
    limits = limits or PREDICTED[which]
    where = {**setting, "prediction": str(which), "low": limits.low, "high": limits.high}
    return _record(problem, Metric.PREDICTED, value, where)


def _record(
    problem: ProblemName, metric: Metric, value: float, setting: Mapping[str, Any], **more: Any
) -> Record:
    return Record(schemas.SDE_ODE.name, problem, metric, value, dict(setting), **more)


def _timed(records: Sequence[Record], started: float) -> list[Record]:
    """The time of a task stands in its last row."""
    seconds = time.perf_counter() - started
    last = records[-1]
    last = Record(**{**vars(last), "seconds": seconds})
    return [*records[:-1], last]


def tasks(quick: bool) -> list[Task]:
    """Gaussians, mixtures and random instances, at the quick or the full scale."""
    lengths = QUICK_LENGTHS if quick else LENGTHS
    mixtures = (ProblemName.FLOW_OVERLAPPING,) if quick else tuple(LAWS)
    levels = QUICK_LEVELS if quick else MIXTURE_LEVELS
    closed = [
        Task(
            f"{problem}, {kernel}, trained at {trained:.3g}",
            gaussian_task,
            {"problem": problem, "kernel": kernel, "trained": trained, "lengths": list(lengths)},
        )
        for problem in INSTANCES
        for kernel in ([Kernel.PRECISE] if quick else Kernel)
        for trained in (QUICK_LEVELS if quick else LEVELS)
    ]
    quadrature = [
        Task(
            f"{problem}, trained at {trained:.3g}",
            mixture_task,
            {
                "problem": problem,
                "trained": trained,
                "lengths": list(QUICK_MIXTURE_LENGTHS if quick else MIXTURE_LENGTHS),
            },
        )
        for problem in mixtures
        for trained in levels
    ]
    count = QUICK_POPULATION if quick else POPULATION
    population = {"count": count, "steps": list(POPULATION_STEPS)}
    return [*closed, *quadrature, Task("random instances", population_task, population)]


STUDY = Study(schemas.SDE_ODE, tasks)
"""Trained with a stochastic sampler, sampled with another."""
