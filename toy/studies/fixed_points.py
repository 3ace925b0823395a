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

import time

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
from toy.fixed_points.equations import Equation, WeightedEquation, population_run, solve
from toy.fixed_points.line import Field
from toy.fixed_points.problems import LAWS, Targets, samples_law, total_variation
from toy.fixed_points.runs import PRIOR, Effort, run

MEASURED = (Metric.REWARD, Metric.END_MEAN, Metric.END_VARIANCE)
STEPS, BETA = 10, 2.0
LENGTHS, BETAS = (5, 10, 20), (1.0, 2.0, 4.0, 8.0)
EFFORT, SEEDS = Effort(batch=1000, iterations=40, rate=0.5), 8
QUICK_EFFORT, QUICK_SEEDS = Effort(batch=400, iterations=24, rate=0.5), 4
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


def run_task(
    problem: ProblemName, method: MethodName, T: int, beta: float, effort: Effort, seeds: int
) -> list[Record]:
    """A method on samples, beside what its equation predicts."""
    started, targets = time.perf_counter(), Targets.of(problem, T, beta)
    contender, found, weight = CONTENDERS[method], [], torch.zeros(())
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        generator = torch.Generator().manual_seed(seed)
        estimator = contender.make(targets, generator)
        policy = run(targets.line, estimator, contender.unit(targets), effort, generator)
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
    after = targets.line.controls(
        population_run(targets.line, equation, effort.rate, effort.iterations, PRIOR / effort.batch)
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
    """The control that solves an equation; None where the sweeps diverge."""
    try:
        policy, _ = solve(targets.line, equation, contender.damping)
    except InvalidProblem:
        return None
    return targets.line.controls(policy)


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
    return solved + ran


STUDY = Study(schemas.FIXED_POINTS, tasks)
