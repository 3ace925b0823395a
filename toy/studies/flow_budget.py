r"""Methods for flow models at an equal budget of network evaluations: what each proposes, and what
training makes of it.

*Proposals* (`toy.flow_budget.proposals`). Every method is asked at the pre-trained model, at half
the optimal control and at the optimum of the chains of `toy.fixed_points.problems`, at strengths
that leave the problem's own KL weight at the pre-trained model:

* ``bias``: distance of the mean from the right change, without its noise, and its standard error;
  at the optimum a method of another fixed point keeps one, however many paths it has;
* ``variance``: trace of the covariance from one path; ``fit_variance``: what a correction that is
  fitted anew adds, whatever the paths;
* ``error_at_budget``: ``sqrt(bias^2 + fit_variance + variance / paths)`` with the paths that
  `BUDGET` evaluations buy, fits included, never less than the bias;
* ``rank``: at the optimum among the methods that rest there, by the error over the size of their
  own proposal at the pre-trained model; elsewhere among those that estimate the gradient, by the
  error. A method that proposes next to nothing at the pre-trained model has none.

*Training* (`toy.flow_budget.training`), ``at`` = ``trained``, each method with the rate that pilot
seeds choose on a grid of its own:

* ``objective_gap``: the exact optimum minus the exact objective of the chain, the mean over seeds
  that no rate was chosen on, with a t interval; the setting has the gap of every seed, and whether
  Welch's test against adjoint matching rejects, by Holm's procedure over the methods of a problem;
* ``tv_to_tilt``: of the samples as the method makes them, with noise or without;
* ``pilot_gap``: of every rate that was tried;
* ``rank``: of all methods, by the gap.

``low`` and ``high`` in the settings are the ends of 95% intervals: of biases, variances, errors and
ranks by the bootstrap over repetitions. ``predicted``: a number that something was said of before
(`toy.flow_budget.predictions`), with the interval where it was to lie.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from scipy import stats

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Kind
from socft.records import Record
from socft.study.comparison import holm
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.fixed_points.problems import LAWS, Targets
from toy.flow_budget import predictions, training
from toy.flow_budget.methods import METHODS, TRAINED
from toy.flow_budget.proposals import START, peers, policy_points, repeated
from toy.ranks import DOUBT, Figure, ranks
from toy.repeated import DRAWS, RepeatedGradient, draws

BETA = 2.0
LENGTHS, QUICK_LENGTHS = (10, 40), (4, 8)
PATHS, QUICK_PATHS = 10_000, 400
"""Paths of a repetition times the number of steps."""
SEEDS, QUICK_SEEDS = 10, 3
EFFORT = training.TrainingBudget(updates=32, pilots=(500, 501), seeds=tuple(range(1000, 1010)))
QUICK_EFFORT = training.TrainingBudget(updates=4, pilots=(500,), seeds=(1000, 1001))
TRAINING_STEPS, QUICK_TRAINING_STEPS = 10, 4
TRAINED_AT = "trained"


def proposals_task(
    problem: ProblemName, lengths: Sequence[int], beta: float, paths: int, seeds: int
) -> list[Record]:
    """What all methods propose on one problem, ranked where they have the same aim."""
    records: list[Record] = []
    found: dict[int, dict[str, dict[MethodName, RepeatedGradient]]] = {}
    for steps in lengths:
        targets = Targets.of(problem, steps, beta)
        found[steps] = {}
        for place in policy_points(targets):
            setting = {"T": steps, "beta": beta, "at": place.name}
            here = found[steps][place.name] = {}
            for name in METHODS:
                started = time.perf_counter()
                here[name] = repeated(targets, name, place, max(paths // steps, 2), seeds)
                seconds = time.perf_counter() - started
                records += _proposal_records(problem, name, here[name], setting, seconds)
            aimed = peers(place.name, here, found[steps][START])
            records += _rank_records(problem, aimed, setting, seeds)
    outcomes = predictions.of_proposals(found)
    return records + [_predicted(problem, each, {"beta": beta}) for each in outcomes]


def _proposal_records(
    problem: ProblemName,
    name: MethodName,
    here: RepeatedGradient,
    setting: Mapping[str, Any],
    seconds: float,
) -> Iterator[Record]:
    weights = draws(here.count, DRAWS)
    measured = {
        Metric.BIAS: (here.bias_squared(here.equal).sqrt(), here.bias_squared(weights).sqrt()),
        Metric.VARIANCE: (here.variance(here.equal), here.variance(weights)),
        Metric.ERROR_AT_BUDGET: (here.error(here.equal), here.error(weights)),
    }
    if here.kind == Kind.BIASED and here.fit_evaluations:
        fits = here.fit_variance(here.equal), here.fit_variance(weights)
        measured[Metric.FIT_VARIANCE] = fits
    for metric, (value, drawn) in measured.items():
        low, high = _ends(drawn)
        yield Record(
            schemas.FLOW_BUDGET.name,
            problem,
            metric,
            float(value),
            {**setting, "low": min(low, float(value)), "high": max(high, float(value))},
            name,
            here.kind,
            stderr=here.bias_noise if metric == Metric.BIAS else None,
            seeds=here.count,
            seconds=seconds,
            evaluations=here.evaluations,
        )


def _ends(drawn: torch.Tensor) -> tuple[float, float]:
    low, high = drawn.quantile(torch.tensor([DOUBT, 1 - DOUBT], dtype=drawn.dtype)).tolist()
    return low, high


def _rank_records(
    problem: ProblemName, aimed: Mapping[str, Figure], setting: Mapping[str, Any], seeds: int
) -> Iterator[Record]:
    for name, (rank, (low, high)) in ranks(aimed).items():
        yield Record(
            schemas.FLOW_BUDGET.name,
            problem,
            Metric.RANK,
            float(rank),
            {**setting, "low": low, "high": high, "of": len(aimed)},
            name,
            CATALOGUE[name].kind,
            seeds=seeds,
        )


def _predicted(
    problem: ProblemName, outcome: predictions.Outcome, setting: Mapping[str, Any]
) -> Record:
    where = predictions.PREDICTED[outcome.prediction]
    about = {"prediction": str(outcome.prediction), "about": outcome.about}
    return Record(
        schemas.FLOW_BUDGET.name,
        problem,
        Metric.PREDICTED,
        outcome.value,
        {**setting, **about, "low": where.low, "high": where.high},
        outcome.method,
    )


def training_task(
    problem: ProblemName, T: int, beta: float, effort: training.TrainingBudget
) -> list[Record]:
    """All methods trained on one problem."""
    targets = Targets.of(problem, T, beta)
    best = training.best_objective(targets.line)
    setting = {"T": T, "beta": beta, "at": TRAINED_AT}
    ended: dict[MethodName, training.TrainedMethod] = {}
    records: list[Record] = []
    for name in TRAINED:
        ended[name] = training.train(targets, best, name, effort)
        records += _pilot_records(problem, name, ended[name], setting, len(effort.pilots))
    levels = {name: _level(ended, name) for name in TRAINED}
    tested = [name for name in TRAINED if name != MethodName.ADJOINT_MATCHING]
    differs = dict(zip(tested, holm([levels[name] for name in tested]), strict=True))
    for name, each in ended.items():
        test = {"level": levels[name], "differs": differs.get(name)}
        records += _trained_records(problem, name, each, {**setting, **test})
    records += _rank_records(problem, _by_gap(ended), setting, len(effort.seeds))
    gaps = {name: each.mean(Metric.OBJECTIVE_GAP) for name, each in ended.items()}
    outcomes = predictions.of_training(gaps)
    return records + [_predicted(problem, each, setting) for each in outcomes]


def _level(ended: Mapping[MethodName, training.TrainedMethod], name: MethodName) -> float:
    """Of Welch's test against adjoint matching; one where a training diverged."""
    pair = [
        ended[each].values[Metric.OBJECTIVE_GAP] for each in (name, MethodName.ADJOINT_MATCHING)
    ]
    if not all(map(math.isfinite, [*pair[0], *pair[1]])):
        return 1.0
    test: Any = stats.ttest_ind(*pair, equal_var=False)
    return float(test.pvalue) if math.isfinite(test.pvalue) else 1.0


def _by_gap(ended: Mapping[MethodName, training.TrainedMethod]) -> dict[str, Figure]:
    """What trainings are ordered by."""
    found: dict[str, Figure] = {}
    for name, each in ended.items():
        gaps = torch.tensor(each.values[Metric.OBJECTIVE_GAP], dtype=torch.float64)
        if bool(gaps.isfinite().all()):
            found[name] = Figure(float(gaps.mean()), draws(len(gaps), DRAWS) @ gaps, "gap")
    return found


def _pilot_records(
    problem: ProblemName,
    name: MethodName,
    ended: training.TrainedMethod,
    setting: Mapping[str, Any],
    seeds: int,
) -> Iterator[Record]:
    for rate, gap in ended.chosen.gaps.items():
        where = {**setting, "rate": rate}
        yield Record(
            schemas.FLOW_BUDGET.name, problem, Metric.PILOT_GAP, gap, where, name, seeds=seeds
        )


def _trained_records(
    problem: ProblemName,
    name: MethodName,
    ended: training.TrainedMethod,
    setting: Mapping[str, Any],
) -> Iterator[Record]:
    how = {
        "rate": ended.chosen.rate,
        "closed": ended.chosen.closed,
        "updates": ended.updates,
        "batch": training.BATCH,
    }
    for metric, values in ended.values.items():
        low, high = training.t_interval(values)
        found = {"low": low, "high": high, "values": [float(f"{each:.6g}") for each in values]}
        yield Record(
            schemas.FLOW_BUDGET.name,
            problem,
            metric,
            ended.mean(metric),
            {**setting, **how, **found},
            name,
            CATALOGUE[name].kind,
            seeds=len(values),
            seconds=ended.seconds,
            evaluations=ended.evaluations,
        )


def tasks(quick: bool) -> list[Task]:
    """Proposals and trainings on every problem."""
    problems = (ProblemName.FLOW_OVERLAPPING,) if quick else tuple(LAWS)
    proposals = {
        "lengths": QUICK_LENGTHS if quick else LENGTHS,
        "beta": BETA,
        "paths": QUICK_PATHS if quick else PATHS,
        "seeds": QUICK_SEEDS if quick else SEEDS,
    }
    trainings = {
        "T": QUICK_TRAINING_STEPS if quick else TRAINING_STEPS,
        "beta": BETA,
        "effort": QUICK_EFFORT if quick else EFFORT,
    }
    return [
        task
        for problem in problems
        for task in (
            Task(f"training {problem}", training_task, {"problem": problem, **trainings}),
            Task(f"proposals {problem}", proposals_task, {"problem": problem, **proposals}),
        )
    ]


STUDY = Study(schemas.FLOW_BUDGET, tasks)
"""Methods for flow models at equal budget."""
