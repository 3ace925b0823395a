"""Does PI-FT converge on real control problems at the rate the theorem promises? Every number of
the convergence report.

Three one-dimensional problems (`toy.problems`), chains of 50 DDPM steps, exact solutions by
quadrature. The tasks measure the constants that the paper and the sharpened theory ask for beside
what each instance needs, the error of exact PI-FT against its inner iterations, the trade-off that
beta sets, the gap to the exponential tilt, three forms of PI-FT, and accuracy and cost.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from socft.density import Gaussian, affine_reference
from socft.measurement import Measurement, measure
from socft.metrics import wasserstein1
from socft.pi_ft import (
    BackwardInduction,
    ExactPIFT,
    backward_induction,
)
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.records import Record
from socft.reward import Quadratic
from socft.schedule import Schedule, ddpm, linear_levels
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.theory import (
    Convergence,
    constant_beta,
    constants,
    constants_at,
    scheduled_beta,
)
from socft.truth.bellman import mean_and_jacobian
from socft.truth.chain_law import chain_law
from socft.truth.grid import GridPolicy
from socft.truth.least_beta import measured_beta
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature, choose_grids
from socft.truth.tilt import tilt_gap
from toy.convergence.chains import (
    BOUNDS,
    SCHEDULES,
    STATEMENTS,
    STEPS,
    linear_quadratic_problem,
    memoryless,
)
from toy.convergence.methods import ITERATE_STEPS, METHOD_BETA, METHODS
from toy.problems import FINE_TUNING, FineTuning, fine_tuning

FLOOR = 1e-11  # errors below are rounding and say nothing about a rate


def constants_task(problem: str, lam: float) -> list[Record]:
    """The constant KL weight that every rule asks for, and what it then bounds or measures at every
    step.
    """
    case, schedule = fine_tuning(problem), memoryless(STEPS)
    chain, stretch, records = case.chain(schedule), _mean_stretch(case, schedule), []
    for rule, statement in STATEMENTS.items():
        if "iterates" in rule and chain.reward_L0 == float("inf"):
            continue
        found = constants_at(
            chain, constant_beta(chain, lam, statement(stretch)).beta, statement(stretch)
        )
        needed = chain.sigma.square() * found.curvature / (1 - lam)
        columns = {
            Metric.L0_VALUE: found.L0V[:-1],
            Metric.L1_VALUE: found.L1V[:-1],
            Metric.BETA_REQUIRED: needed,
        }
        records += _curves(problem, {"rule": rule, "lam": lam}, columns)
    choice = measured_beta(case.problem(schedule, 1.0), lam)
    truth = Quadrature(case.problem(schedule, choice.beta))
    columns = _measured_constants(truth) | {Metric.BETA_REQUIRED: choice.beta / choice.margin}
    return records + _curves(problem, {"rule": "measured", "lam": lam}, columns)


def _mean_stretch(case: FineTuning, schedule: Schedule) -> Tensor:
    """``sup |Jac m_k|`` of every step over the nodes of fine grids, the Lipschitz constants of the
    mean maps.
    """
    problem = case.problem(schedule, 1.0)
    grids = choose_grids(problem)
    jacobians = [
        mean_and_jacobian(problem.reference, k, grids[k].nodes)[1] for k in range(problem.steps)
    ]
    return torch.stack([torch.linalg.matrix_norm(j, 2).max() for j in jacobians])


def _measured_constants(truth: Quadrature) -> dict[Metric, Tensor]:
    """Lipschitz constants of the optimal value functions over the region that carries the mass."""
    steepest, curved = [], []
    for k in range(truth.problem.steps):
        value, inside = truth.values[k], truth.region.contains(k, truth.grids[k].nodes)
        steepest.append(value.gradient[inside].abs().max())
        curved.append(value.grid.jacobian(value.gradient)[inside].abs().max())
    return {Metric.L0_VALUE: torch.stack(steepest), Metric.L1_VALUE: torch.stack(curved)}


def error_task(problem: str, rule: str, lam: float, most: int) -> list[Record]:
    """Errors of exact PI-FT against the number m of inner iterations, with Theorem 3.1's bound
    where the rule licenses it.
    """
    case, schedule = fine_tuning(problem), memoryless(STEPS)
    chain = case.chain(schedule)
    theorem = BOUNDS.get(rule)
    if theorem is None:
        beta, licence = measured_beta(case.problem(schedule, 1.0), lam).beta, None
    else:
        statement = STATEMENTS[rule](_mean_stretch(case, schedule))
        licence, beta = constants(chain, lam, statement), scheduled_beta(chain, lam, statement).beta
    truth = Quadrature(case.problem(schedule, beta))
    records, errors = [], []
    for iteration in ExactPIFT(most, truth.grids).iterations(truth.problem):
        found = measure(truth, iteration)
        bound = theorem and licence and theorem(chain, licence, beta, iteration.index)
        errors.append(float(found.control_error.max()))
        records += _error_rows(
            problem, {"rule": rule, "lam": lam, "m": iteration.index}, found, bound
        )
    records.append(_rate(problem, rule, lam, errors, truth))
    return records


def _error_rows(
    problem: str, setting: dict, found: Measurement, bound: Convergence | None
) -> list[Record]:
    assert found.value_gradient_error is not None
    values = {
        Metric.CONTROL_ERROR: (
            float(found.control_error.max()),
            bound and float(bound.whitened.max()),
        ),
        Metric.VALUE_GRADIENT_ERROR: (
            float(found.value_gradient_error.max()),
            bound and float(bound.value_gradient.max()),
        ),
        Metric.OBJECTIVE_GAP: (found.objective_gap, None),
    }
    seconds = found.iteration.seconds
    record = functools.partial(
        Record, schemas.CONVERGENCE.name, problem, setting=setting, seconds=seconds
    )
    return [
        record(metric, value, estimator=MethodName.EXACT_PI_FT, bound=limit)
        for metric, (value, limit) in values.items()
    ]


def trade_off_task(problem: str, beta: float) -> list[Record]:
    """What the optimum for a constant beta achieves and how fast PI-FT would find it."""
    truth = Quadrature(fine_tuning(problem).problem(memoryless(STEPS), beta))
    best = truth.evaluate(truth.policy)
    plain = chain_law(truth.problem, Uncontrolled(truth.problem.reference), truth.grids)
    nodes = truth.grids[-1].nodes[:, 0]
    values = {
        Metric.REWARD: best.reward,
        Metric.KL: float(best.kl.sum()),
        Metric.CONTRACTION: _exact_rate(truth),
        Metric.W1: wasserstein1(nodes, nodes, truth.law.masses[-1], plain.masses[-1]),
    }
    return [
        Record(schemas.CONVERGENCE.name, problem, metric, value, {"beta": beta}, MethodName.OPTIMUM)
        for metric, value in values.items()
    ]


def tilt_task(problem: str, schedule: str, steps: int) -> list[Record]:
    """The two gaps to the exponential tilt."""
    truth = Quadrature(fine_tuning(problem).problem(SCHEDULES[schedule](steps), 1.0))
    gap = tilt_gap(truth)
    setting = {"schedule": schedule, "steps": steps}
    return [
        Record(schemas.CONVERGENCE.name, problem, Metric.KERNEL_GAP, gap.kernel, setting),
        Record(schemas.CONVERGENCE.name, problem, Metric.MEMORY_GAP, gap.memory, setting),
    ]


def method_task(problem: str, method: str, scale: int) -> list[Record]:
    """Objective gap and control error of one form of PI-FT along its iterations."""
    truth = Quadrature(fine_tuning(problem).problem(memoryless(ITERATE_STEPS), METHOD_BETA))
    records = []
    chosen = METHODS[method]
    for iteration in chosen.make(truth, scale).iterations(truth.problem):
        if iteration.index % chosen.every:
            continue
        found = measure(truth, iteration)
        setting = {"index": iteration.index}
        values = {
            Metric.OBJECTIVE_GAP: found.objective_gap,
            Metric.CONTROL_ERROR: float(found.control_error.max()),
        }
        records += [
            Record(
                schemas.CONVERGENCE.name,
                problem,
                metric,
                value,
                setting,
                method,
                kind=chosen.kind,
                seconds=iteration.seconds,
                evaluations=iteration.evaluations,
                optimum=0.0,
            )
            for metric, value in values.items()
        ]
    return records


def truth_error_task(problem: str) -> list[Record]:
    """The quadrature's own error estimate."""
    start = time.perf_counter()
    truth = Quadrature(fine_tuning(problem).problem(memoryless(STEPS), 1.0))
    seconds = time.perf_counter() - start
    setting = {"dim": 1, "steps": STEPS, "nodes": max(g.shape[0] for g in truth.grids)}
    return [
        Record(
            schemas.CONVERGENCE.name,
            problem,
            Metric.TRUTH_ERROR,
            truth.error,
            setting,
            MethodName.QUADRATURE,
            seconds=seconds,
        )
    ]


def closed_form_task(dim: int, steps: int, inner: int, limit: float) -> list[Record]:
    """Quadrature and exact PI-FT against the linear-quadratic closed form, on the region with all
    but 1e-6 of the mass.
    """
    problem = linear_quadratic_problem(dim, steps)
    exact = LinearQuadratic(problem)
    start = time.perf_counter()
    truth = Quadrature(problem)
    built = time.perf_counter() - start
    start = time.perf_counter()
    found = backward_induction(problem, truth.grids, inner)
    swept = time.perf_counter() - start
    setting, name = {"dim": dim, "steps": steps}, ProblemName.LINEAR_QUADRATIC
    error = float(truth.control_error(exact.policy).max())
    inner_error = _between(truth, found, exact.policy)
    return [
        Record(
            schemas.CONVERGENCE.name,
            name,
            Metric.CLOSED_FORM_ERROR,
            error,
            setting,
            MethodName.QUADRATURE,
            bound=limit,
            seconds=built,
        ),
        Record(
            schemas.CONVERGENCE.name,
            name,
            Metric.INNER_ERROR,
            inner_error,
            setting | {"inner": inner},
            MethodName.EXACT_PI_FT,
            bound=limit,
            seconds=swept,
        ),
    ]


def riccati_task(dim: int, steps: int) -> list[Record]:
    """Seconds of the linear-quadratic solution in high dimension."""
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(2, dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    covariance = square[0] @ square[0].T + 0.1 * torch.eye(dim, dtype=torch.float64)
    reward = Quadratic(-(square[1] @ square[1].T), torch.ones(dim, dtype=torch.float64))
    reference = affine_reference(
        Gaussian(torch.zeros(dim, dtype=torch.float64), covariance), ddpm(linear_levels(steps))
    )
    problem = ControlProblem(reference, reward, 1.0)
    start = time.perf_counter()
    objective = LinearQuadratic(problem).objective
    seconds = time.perf_counter() - start
    setting = {"dim": dim, "steps": steps, "objective": objective}
    return [
        Record(
            schemas.CONVERGENCE.name,
            ProblemName.LINEAR_QUADRATIC,
            Metric.RICCATI_SECONDS,
            seconds,
            setting,
            MethodName.RICCATI,
            seconds=seconds,
        )
    ]


def sweep_task(steps: int, inner: int) -> list[Record]:
    """Seconds of one backward induction, for its growth in the steps and in the inner
    iterations.
    """
    problem = linear_quadratic_problem(1, steps)
    grids = choose_grids(problem, (801,))
    start = time.perf_counter()
    backward_induction(problem, grids, inner)
    seconds = time.perf_counter() - start
    setting = {"steps": steps, "inner": inner}
    return [
        Record(
            schemas.CONVERGENCE.name,
            ProblemName.LINEAR_QUADRATIC,
            Metric.SWEEP_SECONDS,
            seconds,
            setting,
            MethodName.EXACT_PI_FT,
            seconds=seconds,
        )
    ]


def tasks(quick: bool) -> list[Task]:
    """Every measurement, at the quick or the full scale."""
    problems = [task for name in FINE_TUNING for task in _problem_tasks(name, quick)]
    return problems + _method_tasks(1 if quick else 2) + _closed_form_tasks() + _time_tasks()


def _problem_tasks(name: str, quick: bool) -> list[Task]:
    """What is measured of one problem of fine-tuning."""
    lams, most = ([0.5, 0.8], 9) if quick else ([0.4, 0.5, 0.7, 0.9], 24)
    betas = [2.0**e for e in (range(-1, 5) if quick else torch.linspace(-1, 5, 13).tolist())]
    lengths = [10, 20, 40] if quick else [10, 20, 40, 80, 160]
    bounded = math.isfinite(fine_tuning(name).reward.L0)
    return [
        Task(f"constants {name}", constants_task, {"problem": name, "lam": 0.5}),
        *(_error_task(name, str(lam), "measured", lam, most) for lam in lams),
        *(_error_task(name, rule, rule, 0.5, 8) for rule in BOUNDS if bounded),
        *(
            Task(f"trade-off {name} {beta:g}", trade_off_task, {"problem": name, "beta": beta})
            for beta in betas
        ),
        *(
            Task(
                f"tilt {name} {schedule} {steps}",
                tilt_task,
                {"problem": name, "schedule": schedule, "steps": steps},
            )
            for schedule in SCHEDULES
            for steps in lengths
        ),
        Task(f"truth {name}", truth_error_task, {"problem": name}),
    ]


def _error_task(name: str, label: str, rule: str, lam: float, most: int) -> Task:
    arguments = {"problem": name, "rule": rule, "lam": lam, "most": most}
    return Task(f"error {name} {label}", error_task, arguments)


def _method_tasks(scale: int) -> list[Task]:
    """The ways to run PI-FT, on one problem."""
    problem = ProblemName.GAUSSIAN_SINE
    return [
        Task(name, method_task, {"problem": problem, "method": name, "scale": scale})
        for name in METHODS
    ]


def _closed_form_tasks() -> list[Task]:
    """Quadrature against closed forms, and the recursion of Riccati."""
    line = {"dim": 1, "steps": 50, "inner": 20, "limit": 1e-9}
    plane = {"dim": 2, "steps": 20, "inner": 20, "limit": 1e-7}
    return [
        Task("closed form 1-D", closed_form_task, line),
        Task("closed form 2-D", closed_form_task, plane),
        Task("Riccati", riccati_task, {"dim": 256, "steps": 1000}),
    ]


def _time_tasks() -> list[Task]:
    """Seconds of a backward induction, by steps and by inner iterations."""
    sizes = [(25, 20), (50, 20), (100, 20), (200, 20), (50, 5), (50, 10), (50, 40)]
    return [
        Task(f"backward induction {steps} x {inner}", sweep_task, {"steps": steps, "inner": inner})
        for steps, inner in sizes
    ]


STUDY = Study(schemas.CONVERGENCE, tasks)


def _curves(problem: str, setting: dict, columns: Mapping[Metric, Tensor]) -> list[Record]:
    return [
        Record(schemas.CONVERGENCE.name, problem, metric, float(value), setting | {"k": k})
        for metric, values in columns.items()
        for k, value in enumerate(values)
    ]


def _exact_rate(truth: Quadrature) -> float:
    """``max_k sigma_k^2 sup |Hess G V_{k+1}| / beta_k``, at which the slowest step contracts."""
    diffusion, beta = truth.problem.reference.diffusion, truth.problem.beta
    unit = torch.ones(1, 1, dtype=torch.float64)
    variance = torch.stack(
        [diffusion.transpose(k, unit, unit)[0, 0].square() for k in range(truth.problem.steps)]
    )
    return float((variance * truth.curvature / beta).max())


def _rate(problem: str, rule: str, lam: float, errors: list[float], truth: Quadrature) -> Record:
    """The factor per inner iteration over the last half of the iterations above rounding."""
    above = [e for e in errors if e > FLOOR]
    last, first = len(above) - 1, len(above) // 2
    rate = (above[last] / above[first]) ** (1 / (last - first)) if last > first else float("nan")
    setting = {"rule": rule, "lam": lam}
    return Record(
        schemas.CONVERGENCE.name,
        problem,
        Metric.RATE,
        rate,
        setting,
        MethodName.EXACT_PI_FT,
        bound=1 - lam,
        optimum=_exact_rate(truth),
    )


def _between(truth: Quadrature, found: BackwardInduction, exact: Policy) -> float:
    """Sup distance between an induction's policy and the closed form over the truth's points."""
    policy: GridPolicy = found.policy(truth.problem)
    return max(
        float((policy(k, x) - exact(k, x)).norm(dim=1).max())
        for k, x in enumerate(map(truth.points, range(truth.problem.steps)))
    )
