r"""Bias, variance and cost of gradient estimators where the exact gradient is known.

Every contender estimates the gradient of the objective in the coefficients of affine features of every step (`toy.measure`), from
single paths, at policies from the pre-trained model to the optimum (`toy.situations`). The line :math:`s\, v^*`, s from 0 to 1,
stands for training: on it the exact gradient, and so the bias, is known at the optimum and on the way to it. The noise, and on the
linear-quadratic problem the bias, at the policies that training itself passes through are measured in `toy.training`. One axis is
varied at a time: distance from the optimum, number of steps at a fixed horizon, horizon at a fixed step size, dimension, noise
level, problem. All numbers are relative to the norm of the exact gradient at the pre-trained model:

* ``bias``: distance of the mean from the exact gradient, without its noise; ``stderr`` is that noise;
* ``variance``: trace of the covariance of the estimate from one path;
* ``error_at_budget``: root-mean-square error with `BUDGET` network evaluations, ``sqrt(bias^2 + variance / paths)``, where a bias
  of less than `SEEN` standard errors counts as none;
* ``costate_mse``: mean-square distance of costate samples from the policy's exact value gradient, per step, not relative;
* ``seconds``: per path; ``peak_mb``: memory beyond path and labels;
* ``refused``: the estimator does not apply, with its reason.

A fixed-point residual is no estimate of the gradient away from the optimum: its ``bias`` there is its distance from the gradient.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from socft.checks import InvalidProblem
from socft.estimators.base import Cost, CostateEstimator, Estimator
from socft.records import Record
from socft.rollout import Noise, rollout
from toy.contenders import CONTENDERS, Contender
from toy.contenders import contender as find
from toy.measure import Estimate, estimate, peak_memory
from toy.problems import benchmark
from toy.runner import Study, Task
from toy.situations import Situation, situation

STUDY_NAME = "variance"
PATHS, FEW_PATHS, QUICK_PATHS = 2000, 400, 250
"""`FEW_PATHS` where the exact optimum is expensive to follow."""
SEEDS, QUICK_SEEDS = 2, 2
SEEN = 4.0
BUDGET = 100_000
"""Network evaluations per gradient: 1000 paths of 50 steps with two evaluations each."""
MEMORY_PATHS = 64
COSTATE_TIMES = 10


def variance_task(
    contender: str, problem: str, settings: Mapping[str, Any], scale: float, axis: str, paths: int, seeds: int
) -> list[Record]:
    """Everything about one contender in one situation, or why it refuses."""
    where, chosen = _situation(problem, json.dumps(settings), scale), find(contender)
    try:
        estimator = chosen.make(where)
        return [*_gradient(chosen, estimator, where, axis, paths, seeds), *_costates(chosen, estimator, where, axis, paths)]
    except InvalidProblem as refusal:
        setting = {**where.setting, "axis": axis, "reason": str(refusal)}
        return [Record(STUDY_NAME, problem, "refused", 1.0, setting, contender)]


@functools.lru_cache(maxsize=4)
def _situation(problem: str, settings: str, scale: float) -> Situation:
    """Exact solutions are shared by the contenders that a process measures."""
    return situation(benchmark(problem, **json.loads(settings)), scale)


def _gradient(contender: Contender, estimator: Estimator, where: Situation, axis: str, paths: int, seeds: int) -> list[Record]:
    whole = Estimate.joined([estimate(estimator, where.problem, where.policy, _noise(where, paths, s)) for s in range(seeds)])
    bias, stderr = whole.bias(where.gradient)
    unit = where.scale
    evaluations = _evaluations(contender, estimator, where)
    affordable = max(1, BUDGET // evaluations)
    seen = bias if bias > SEEN * math.hypot(stderr, where.stderr) else 0.0
    at_budget = (seen**2 + whole.variance / affordable) ** 0.5
    with torch.no_grad():
        path = rollout(where.problem.reference, where.policy, _noise(where, MEMORY_PATHS, 0))
    peak = peak_memory(estimator, where.problem, where.policy, path)
    common = {
        "setting": {**where.setting, "axis": axis},
        "estimator": contender.name,
        "kind": estimator.estimates,
        "seeds": seeds,
        "evaluations": evaluations,
    }
    seconds = whole.seconds / whole.paths

    def record(metric: str, value: float, **more: Any) -> Record:
        return Record(STUDY_NAME, where.setting["problem"], metric, value, seconds=seconds, peak_mb=peak, **common, **more)

    return [
        record("bias", bias / unit, stderr=math.hypot(stderr, where.stderr) / unit),
        record("variance", whole.variance / unit**2),
        record("error_at_budget", at_budget / unit),
    ]


def _costates(contender: Contender, estimator: Estimator, where: Situation, axis: str, paths: int) -> Iterable[Record]:
    if not isinstance(estimator, CostateEstimator):
        return
    steps = where.problem.steps
    with torch.no_grad():
        path = rollout(where.problem.reference, where.policy, _noise(where, paths, 0))
        found = estimator.costates(where.problem, where.policy, path)
        for k in sorted({round(i * (steps - 1) / (COSTATE_TIMES - 1)) for i in range(COSTATE_TIMES)}):
            away = (found.values[k] - where.value_gradient(k, found.states[k])).square().sum(1)
            setting = {**where.setting, "axis": axis, "k": k}
            yield Record(
                STUDY_NAME,
                where.setting["problem"],
                "costate_mse",
                float(away.mean()),
                setting,
                contender.name,
                estimator.estimates,
                stderr=float(away.std() / paths**0.5),
            )


def evaluations_per_path(cost: Cost, steps: int, labelled: float | None = None) -> int:
    """Network evaluations of one path's labels and rollout; a derivative counts as two evaluations.

    Args:
        labelled: the number of steps whose labels cost anything; all by default.
    """
    labels = cost.reference + cost.policy + 2 * (cost.reference_derivatives + cost.policy_derivatives)
    return round(2 * steps + (steps if labelled is None else labelled) * labels)


def _evaluations(contender: Contender, estimator: Estimator, where: Situation) -> int:
    steps = where.problem.steps
    return evaluations_per_path(estimator.cost, steps, contender.labelled(steps))


def _noise(where: Situation, paths: int, seed: int) -> Noise:
    return Noise.sample(where.problem.reference, paths, torch.Generator().manual_seed(seed))


@dataclasses.dataclass(frozen=True)
class Axis:
    """Situations along which one thing varies.

    Attributes:
        name: what varies.
        problem: name of the benchmark.
        fixed: its settings.
        varied: settings of the benchmark, and ``scale``, one mapping per situation; with ``paths`` where they are not `PATHS`.
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
    Axis("distance", "lq-fine-tuning", {"d": 4}, _each("scale", 0.0, 1.0, 0.5, 0.9)),
    Axis("dimension", "lq-fine-tuning", {"scale": 0.9}, _each("d", 1, 16, 64), quick=0),
    Axis("steps", "lq-sde", {"d": 2, "scale": 0.9}, _each("steps", 10, 30, 100), quick=1),
    Axis(
        "horizon",
        "lq-sde",
        {"d": 2, "scale": 0.9},
        tuple({"horizon": h, "steps": round(25 * h)} for h in (0.4, 1.2, 4.0)),
        quick=0,
    ),
    Axis("noise", "oscillator", {"dt": 0.1, "scale": 0.9}, _each("noise", 1.0, 0.1, 10.0), quick=0),
    Axis("mixture", "mixture", {"steps": 50}, ({"d": 1, "scale": 0.0}, {"d": 1, "scale": 1.0}), quick=0),
    Axis("mixture in high dimension", "mixture", {"scale": 1.0}, ({"d": 2}, {"d": 10}, {"d": 50, "paths": FEW_PATHS}), quick=0),
)


def tasks(quick: bool) -> list[Task]:
    """Every contender in every situation."""
    seeds = QUICK_SEEDS if quick else SEEDS
    found = []
    for axis in AXES:
        for settings, scale, paths in axis.settings(quick):
            for name in CONTENDERS:
                about = ", ".join(f"{key} {value:g}" for key, value in {**settings, "scale": scale}.items())
                arguments = {"contender": name, "problem": axis.problem, "settings": settings, "scale": scale, "axis": axis.name}
                found.append(
                    Task(
                        f"{axis.name}: {axis.problem}, {about}: {name}", variance_task, arguments | {"paths": paths, "seeds": seeds}
                    )
                )
    return found


STUDY = Study(STUDY_NAME, tasks)
