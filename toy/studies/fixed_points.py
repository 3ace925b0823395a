r"""Where do methods of fine-tuning converge to?

Every method is run on samples in an exact class, piecewise linear controls of every step, and its
limit is held against three laws: the tilt :math:`p_T e^{r/b}/Z`, the optimum of the chain, and the
solution of the equation that the method is predicted to solve, which is found without samples.

Predictions, written before the runs (`toy.fixed_points.contenders`):

* adjoint matching, the full adjoint, the score function, and DDPO with the KL in the reward: the
  optimum of the chain;
* DPOK, Flow-GRPO and GRPO-Guard: the optimum without the KL to go, with the KL weight that their
  normalisations leave;
* RAM, AWM, DiffusionNFT with a KL term and the ELBO ratio: the endpoint covariance equation;
* energy-based adjoint matching: the tilt;
* deterministic adjoint matching, and VGG-Flow with its correction up to O(dt): the optimum without
  noise, which is no tilt;
* residual nabla-DB with its residual flow: the optimum of the chain;
* either without what corrects it: guidance by the reward of the predicted endpoint;
* whatever has no KL term: no fixed point, rewards grow as long as it runs.

Each is refuted where the mean reward, the mean or the variance of the samples is off by more than 4
standard errors.
"""

from __future__ import annotations

import functools
import itertools
import time
from typing import Any

import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.records import Record
from socft.study.repetitions import standard_error
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.fixed_points.contenders import CONTENDERS, Contender
from toy.fixed_points.equations import (
    SETTLED,
    Equation,
    WeightedEquation,
    population_run,
    solve,
    sweeps,
)
from toy.fixed_points.line import Field
from toy.fixed_points.problems import (
    LAWS,
    PATHS,
    POINTS,
    Targets,
    samples_law,
    total_variation,
)
from toy.fixed_points.runs import PRIOR, Effort, run
from toy.fixed_points.without_noise import WithoutNoise, best_control, objective

MEASURED = (Metric.REWARD, Metric.END_MEAN, Metric.END_VARIANCE)
STEPS, BETA = 10, 2.0
LENGTHS, BETAS = (5, 10, 20), (1.0, 2.0, 4.0, 8.0)
EFFORT, SEEDS = Effort(batch=1000, iterations=40, rate=0.5), 8
QUICK_EFFORT, QUICK_SEEDS = Effort(batch=400, iterations=24, rate=0.5), 4
DAMPINGS = (0.5, 0.2)
MOVING = 1e-2
"""Change of the control by the last sweep above which it is no solution."""
FIRST_SEED = 100


def equation_task(problem: ProblemName, T: int, beta: float) -> list[Record]:
    """The laws of the solutions of all equations, of the tilt and of the chain's optimum."""
    started, targets = time.perf_counter(), Targets.of(problem, T, beta)
    setting = {"T": T, "beta": beta}
    records = []
    for source in ("pretrained", "tilt", "optimum"):
        records += _law_records(targets, problem, "", getattr(targets, source), setting, source)
    solved: dict[Equation, Field | None] = {}
    for name, contender in CONTENDERS.items():
        equation = contender.equation(targets)
        if equation is None:
            continue
        if equation not in solved:
            solved[equation] = _solved(targets, equation, contender)
        if (control := solved[equation]) is None:
            continue
        law = samples_law(targets.line, control, contender.noisy)
        records += _law_records(targets, problem, name, law, setting, "equation")
        if isinstance(equation, WeightedEquation):
            weight = float(equation.weights.of(targets.line, law).mean())
            records.append(
                Record(
                    schemas.FIXED_POINTS.name,
                    problem,
                    Metric.EFFECTIVE_BETA,
                    weight,
                    setting | {"source": "equation"},
                    name,
                    seconds=time.perf_counter() - started,
                )
            )
    return records


def drift_task(problem: ProblemName, T: int, beta: float, effort: Effort) -> list[Record]:
    """The mean over the steps of the KL weight that normalised rewards leave, after every power of
    two of iterations of the population.
    """
    targets = Targets.of(problem, T, beta)
    found: dict[Equation, dict[int, float]] = {}
    records = []
    for name, contender in CONTENDERS.items():
        equation = contender.equation(targets)
        if not isinstance(equation, WeightedEquation) or not equation.weights.normalised:
            continue
        if equation not in found:
            found[equation] = _weights_along(targets, equation, effort)
        for iteration, weight in found[equation].items():
            setting = {"T": T, "beta": beta, "source": "training", "iteration": iteration}
            records.append(
                Record(
                    schemas.FIXED_POINTS.name, problem, Metric.EFFECTIVE_BETA, weight, setting, name
                )
            )
    return records


def _weights_along(
    targets: Targets, equation: WeightedEquation, effort: Effort
) -> dict[int, float]:
    line, law = targets.line, targets.pretrained
    found = {0: float(equation.weights.of(line, law).mean())}
    run_of = sweeps(line, equation, effort.rate, PRIOR / effort.batch)
    for iteration, (weight, _) in enumerate(itertools.islice(run_of, effort.iterations), 1):
        if iteration.bit_count() == 1 or iteration == effort.iterations:
            law = line.samples((line.features @ weight[:, 0].T).T)
            found[iteration] = float(equation.weights.of(line, law).mean())
    return found


def solutions_task(problem: ProblemName, T: int, beta: float) -> list[Record]:
    """Where damped sweeps of the equation without noise settle, by start and damping, and the
    optimum by Bellman's equation, in the class.
    """
    targets = Targets.of(problem, T, beta)
    line, equation = targets.paths, WithoutNoise(lam=beta)
    best = best_control(line, beta)
    records = _solution(targets, problem, best, {"source": "bellman"})
    for start, damping in itertools.product(("pretrained", "bellman"), DAMPINGS):
        begin = best if start == "bellman" else None
        policy, change = solve(line, equation, damping, begin)
        if change <= SETTLED:
            place = {"source": "solution", "start": start, "damping": damping}
            records += _solution(targets, problem, policy.weight, place)
    return records


def _solution(
    targets: Targets, problem: ProblemName, weight: Tensor, place: dict[str, Any]
) -> list[Record]:
    """Objective, mean reward and moments of a control without noise."""
    line = targets.paths
    control = (line.features @ weight.detach()[:, 0].T).T
    found = targets.moments(targets.line.flow_law(control[:, :: (PATHS - 1) // (POINTS - 1)]))
    found[Metric.OBJECTIVE] = objective(line, control, targets.beta)
    setting = {"T": len(control), "beta": targets.beta} | place
    name = MethodName.DETERMINISTIC_ADJOINT_MATCHING
    return [
        Record(schemas.FIXED_POINTS.name, problem, metric, value, setting, name)
        for metric, value in found.items()
    ]


def run_task(
    problem: ProblemName, method: MethodName, T: int, beta: float, effort: Effort, seeds: int
) -> list[Record]:
    """A method on samples, beside what its equation predicts."""
    started, targets = time.perf_counter(), Targets.of(problem, T, beta)
    contender, found, weight = CONTENDERS[method], [], torch.zeros(())
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        generator = torch.Generator().manual_seed(seed)
        estimator = contender.make(targets, generator)
        unit = functools.partial(contender.unit, targets)
        policy = run(targets.line, estimator, unit, effort, generator)
        control = targets.line.controls(policy)
        found.append(targets.moments(samples_law(targets.line, control, contender.noisy)))
        weight = weight + control / seeds
    law = samples_law(targets.line, weight, contender.noisy)
    setting = {"T": T, "beta": beta}
    seconds = time.perf_counter() - started
    moments = {
        metric: torch.tensor([each[metric] for each in found], dtype=torch.float64)
        for metric in MEASURED
    }
    records = [
        Record(
            schemas.FIXED_POINTS.name,
            problem,
            metric,
            float(values.mean()),
            setting | {"source": "samples"},
            method,
            stderr=standard_error(values),
            seeds=seeds,
            seconds=seconds,
        )
        for metric, values in moments.items()
    ]
    held = targets.distances(law) | _held(targets, contender, effort, law, moments)
    return records + [
        Record(
            schemas.FIXED_POINTS.name,
            problem,
            metric,
            value,
            setting | {"source": "samples"},
            method,
            seeds=seeds,
        )
        for metric, value in held.items()
    ]


def _held(
    targets: Targets,
    contender: Contender,
    effort: Effort,
    law: Tensor,
    moments: dict[Metric, Tensor],
) -> dict[Metric, float]:
    """Distance from the prediction: of the law from that of the limit, and of its moments from
    those of the population after as many iterations, in standard errors.
    """
    equation = contender.equation(targets)
    if equation is None or (limit := _solved(targets, equation, contender)) is None:
        return {}
    count, prior = effort.iterations, PRIOR / effort.batch
    after = targets.line.controls(
        population_run(contender.line(targets), equation, effort.rate, count, prior)
    )
    expected = targets.moments(samples_law(targets.line, after, contender.noisy))
    return {
        Metric.TV_TO_PREDICTION: total_variation(
            law, samples_law(targets.line, limit, contender.noisy)
        ),
        Metric.DEVIATION: max(
            abs(float(values.mean()) - expected[metric]) / (standard_error(values) or torch.nan)
            for metric, values in moments.items()
        ),
    }


def _solved(targets: Targets, equation: Equation, contender: Contender) -> Field | None:
    """The control that solves an equation; None where the sweeps diverge or do not settle."""
    start = None if contender.start is None else contender.start(targets)
    try:
        policy, change = solve(contender.line(targets), equation, contender.damping, start)
    except InvalidProblem:
        return None
    return targets.line.controls(policy) if change <= MOVING else None


def _law_records(
    targets: Targets,
    problem: ProblemName,
    method: str,
    law: Tensor,
    setting: dict[str, float],
    source: str,
) -> list[Record]:
    found = targets.moments(law) | targets.distances(law)
    return [
        Record(
            schemas.FIXED_POINTS.name,
            problem,
            metric,
            value,
            setting | {"source": source},
            method,
        )
        for metric, value in found.items()
    ]


def tasks(quick: bool) -> list[Task]:
    """All problems, at the quick or the full scale."""
    problems = (ProblemName.FLOW_OVERLAPPING,) if quick else tuple(LAWS)
    steps = 4 if quick else STEPS
    places = {(steps, BETA)}
    if not quick:
        places |= {(T, BETA) for T in LENGTHS} | {(STEPS, beta) for beta in BETAS}
    effort, seeds = (QUICK_EFFORT, QUICK_SEEDS) if quick else (EFFORT, SEEDS)
    solved = [
        Task(
            f"equations {problem} T={T} beta={beta:g}",
            equation_task,
            {"problem": problem, "T": T, "beta": beta},
        )
        for problem in problems
        for T, beta in sorted(places)
    ]
    ran = [
        Task(
            f"run {problem} {method}",
            run_task,
            {
                "problem": problem,
                "method": method,
                "T": steps,
                "beta": BETA,
                "effort": effort,
                "seeds": seeds,
            },
        )
        for problem in problems
        for method in CONTENDERS
    ]
    others = [
        task
        for problem in problems
        for task in (
            Task(
                f"drift {problem}",
                drift_task,
                {"problem": problem, "T": steps, "beta": BETA, "effort": effort},
            ),
            Task(
                f"solutions {problem}",
                solutions_task,
                {"problem": problem, "T": steps, "beta": BETA},
            ),
        )
    ]
    return solved + others + ran


STUDY = Study(schemas.FIXED_POINTS, tasks)
