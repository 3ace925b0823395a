r"""Which gradient estimator trains best at an equal budget of network evaluations? Optimisation
curves.

Every method trains the same policy class with Adam and a cosine-decayed rate, the rate chosen from
a small grid by the final objective of a pilot run; an estimator with a dearer gradient takes fewer
steps. At `CHECKPOINTS` moments of the budget it is asked

* ``objective_gap``: exact optimum minus objective, exact; ``reward`` and ``kl``; where known,
  ``objective_gradient``, the norm of the objective's own gradient;
* ``wasserstein1`` in one dimension, ``wasserstein2`` of Gaussian laws, and ``mmd`` (the root of the
  squared discrepancy), exact, from the law of X_T to the tilt of the pre-trained law; their
  ``optimum`` is that of the optimal chain, which moves means only;
* ``gradient_norm``: norm of the mean of the estimate; ``gradient_noise``: trace of the covariance
  of the estimate from one path, relative to the squared norm of the exact or full-adjoint gradient
  of the pre-trained model; ``relative_noise``: that trace over the squared norm of the mean of the
  same moment;
* ``gradient_bias`` (linear-quadratic): distance of the mean of the estimate from the exact gradient
  of the objective, without its noise, relative to the norm of that gradient at the pre-trained
  model; of a fixed-point residual, its distance from the gradient. It is the root of the mean
  square over the repetitions, each with paths of its own, and its ``stderr`` is their noise;
* ``target_noise`` (affine policies): mean-square distance of the targets from their conditional
  mean given the state, relative to that mean; zero to rounding for a martingale correction by the
  conditional mean itself, as control variates of Newton (1994) have it.

What a trained policy falls short of the tilt by, in objective, is a sum of exact parts. Four do not
depend on the estimator (see `gaps`): ``memory_gap``, ``discretisation_gap``, ``kernel_gap``,
``class_gap``. Two, at the end of training, do: ``bias_gap``, what the mean of the policies of all
repetitions falls short of the best in its class by, from bias and from stopping early; and
``noise_gap``, by how much better that mean is than the policies are on average. The mean of n
policies keeps an n-th of their noise, which for an objective that is quadratic around them is
counted as noise here.

``seconds`` is the time spent training so far, ``peak_mb`` the memory that labels of a batch take
beyond path and labels.

With the policy's own costate as the field of the correction the noise vanishes as the policy
converges, without the correction it tends to that of the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from socft.policy import Policy
from socft.records import Record
from socft.study.repetitions import MeanOverRepetitions, record_means
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.training.measurement import (
    CurvePoint,
    curve,
    end_gaps,
    final_gap,
    gradient_scale,
    label_memory,
    over_repetitions,
)
from toy.training.methods import METHODS, TrainingMethod, TrainingPlan, checkpoint_iterations
from toy.training.problems import TRAINING_PROBLEMS, TrainingProblem

CHECKPOINTS, QUICK_CHECKPOINTS = 11, 3
SEEDS, QUICK_SEEDS = 3, 1
PILOT = 10_000
"""Seed of the pilot run, none of the repetitions'."""
RATES, QUICK_RATES = (0.003, 0.01, 0.03, 0.1), (0.05,)
BUDGET_STEPS: Mapping[str, int] = {ProblemName.LQ_FINE_TUNING: 120, ProblemName.MIXTURE: 80}
QUICK_BUDGET_STEPS = 12
"""Gradient steps that the budget allows an estimator with one derivative of the reference per step,
as adjoint matching has.
"""
NOISE_PATHS, QUICK_NOISE_PATHS = 256, 64


def training_task(
    method: str,
    problem: str,
    budget_steps: int,
    checkpoints: int,
    rates: Sequence[float],
    noise_paths: int,
    seeds: int,
) -> list[Record]:
    """The curve of one method on one problem at its best rate, over independent repetitions."""
    place, chosen = TRAINING_PROBLEMS[problem](), METHODS[method]
    evaluations = chosen.evaluations(place.problem)
    budget = budget_steps * METHODS[MethodName.ADJOINT_MATCHING].evaluations(place.problem)
    iterations = max(1, budget // evaluations)
    moments = checkpoint_iterations(iterations, checkpoints)
    plans = [TrainingPlan(rate, iterations, moments) for rate in rates]
    pilots = [final_gap(place, chosen, plan, PILOT) for plan in plans] if len(plans) > 1 else [0.0]
    _, best = min(zip(pilots, plans, strict=True), key=lambda pair: pair[0])
    unit = gradient_scale(place, noise_paths)
    policies = [place.policy() for _ in range(seeds)]
    curves = [
        list(curve(place, chosen, policy, best, seed, unit, noise_paths))
        for seed, policy in enumerate(policies)
    ]
    return [
        *(_pilot_records(place, chosen, plans, pilots) if len(plans) > 1 else []),
        *_end_records(place, chosen, best, policies, curves),
        *_curve_records(place, chosen, best, curves),
    ]


def _pilot_records(
    place: TrainingProblem,
    method: TrainingMethod,
    plans: Sequence[TrainingPlan],
    gaps: Sequence[float],
) -> list[Record]:
    return [
        Record(
            schemas.TRAINING.name,
            place.name,
            Metric.PILOT_GAP,
            gap,
            {**_setting(place, plan), "pilot": PILOT},
            method.name,
            method.make(place.problem).estimates.kind,
            optimum=0.0,
        )
        for plan, gap in zip(plans, gaps, strict=True)
    ]


def _end_records(
    place: TrainingProblem,
    method: TrainingMethod,
    plan: TrainingPlan,
    policies: Sequence[Policy],
    curves: Sequence[Sequence[CurvePoint]],
) -> list[Record]:
    """Bias and noise of the trained policies, where there are several and none diverged."""
    ends = [run[-1].measures[Metric.OBJECTIVE_GAP] for run in curves]
    if len(ends) < 2 or not all(map(math.isfinite, ends)):
        return []
    parts = end_gaps(place, policies, sum(ends) / len(ends))
    return record_means(
        schemas.TRAINING,
        place.name,
        [MeanOverRepetitions(metric, part) for metric, part in parts.items()],
        setting=_setting(place, plan) | {"iteration": plan.iterations},
        estimator=method.name,
        kind=method.make(place.problem).estimates.kind,
        seeds=len(ends),
    )


def _curve_records(
    place: TrainingProblem,
    method: TrainingMethod,
    plan: TrainingPlan,
    curves: Sequence[Sequence[CurvePoint]],
) -> list[Record]:
    estimator, evaluations = method.make(place.problem), method.evaluations(place.problem)
    peak = label_memory(place.problem, place.policy(), estimator, plan.batch)
    records = []
    for index, *points in zip(plan.checkpoints, *curves, strict=True):
        records += record_means(
            schemas.TRAINING,
            place.name,
            over_repetitions([point.measures for point in points]),
            setting=_setting(place, plan) | {"iteration": index},
            estimator=method.name,
            kind=estimator.estimates.kind,
            seeds=len(points),
            seconds=sum(point.seconds for point in points) / len(points),
            evaluations=index * plan.batch * evaluations,
            peak_mb=peak,
            optimum=place.optimum,
        )
    return records


def _setting(place: TrainingProblem, plan: TrainingPlan) -> dict[str, Any]:
    return {
        "rate": plan.rate,
        "batch": plan.batch,
        "iterations": plan.iterations,
        **place.settings,
    }


def gaps_task(problem: str) -> list[Record]:
    """The parts of an error that no estimator can help."""
    place = TRAINING_PROBLEMS[problem]()
    return [
        Record(schemas.TRAINING.name, place.name, metric, gap, dict(place.settings), kind="exact")
        for metric, gap in place.gaps.items()
    ]


def methods_for(problem: str) -> list[str]:
    """Names of the methods that apply."""
    return [name for name, each in METHODS.items() if not each.problems or problem in each.problems]


QUICK_METHODS = (
    MethodName.ADJOINT_MATCHING,
    MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
    MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
)


def tasks(quick: bool) -> list[Task]:
    """The gaps of both problems, then every method on them."""
    scale: dict[str, Any] = {
        "checkpoints": QUICK_CHECKPOINTS if quick else CHECKPOINTS,
        "rates": QUICK_RATES if quick else RATES,
        "noise_paths": QUICK_NOISE_PATHS if quick else NOISE_PATHS,
        "seeds": QUICK_SEEDS if quick else SEEDS,
    }
    return [
        Task(f"{problem}: gaps", gaps_task, {"problem": problem}) for problem in TRAINING_PROBLEMS
    ] + [
        Task(
            f"{problem}: {method}",
            training_task,
            {
                "method": method,
                "problem": problem,
                "budget_steps": QUICK_BUDGET_STEPS if quick else BUDGET_STEPS[problem],
                **scale,
            },
        )
        for problem in TRAINING_PROBLEMS
        for method in methods_for(problem)
        if not quick or method in QUICK_METHODS
    ]


STUDY = Study(schemas.TRAINING, tasks)
