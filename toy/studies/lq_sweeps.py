r"""How well are costates of a controlled oscillator learnt from N paths? The sweeps of arXiv
2410.04615, with discretisation and sampling told apart.

Sought is the gain of the costate at time 0, :math:`\nabla V_0(x) = -G_0 x`, of the benchmark
``oscillator``. ``mse`` is :math:`E|\phi_0(X) - \nabla V_0(X)|^2` for X of law N(0, I) against the
continuous Riccati equation, and is the sum of

* ``kernel_gap``: the same distance of the chain's own optimum, a matter of the integrator alone;
* ``chain_mse``: the distance of what was learnt from the chain's own optimum;
* ``cross``: twice their inner product.

``mse_over_time`` and ``mse_max`` are the mean and the largest over all times of the distance to the
continuous gain.

Three policies: the chain's optimum is *given*; it is *iterated*, each round steering with the
costate of the round before, :math:`v_k = B_k^\top E[\phi_{k+1}(x_{k+1}) | x_k] / \beta`, the
optimality condition of the kernels; or with the *published* index,
:math:`v_k = B_k^\top \phi_k(x_k) / \beta`, off by O(dt). Features are linear, so what is left as N
grows is known without sampling (derived here): forward methods have as limits the chain's optimum,
and with the published index

.. math:: G_k = (I + A\,dt)^\top G_{k+1} (I + A\,dt - B B^\top G_k\,dt) + Q\,dt .

The time-reversed costate has on its way back :math:`Y_k = P^- X_k + [(A_k - I)^\top P_{k+1} + P^-
(\bar A_k - I) - F_k + P_{k+1} - P^-]
X_{k+1}`, with the field :math:`P^-` of the round before: once :math:`P^- = P_{k+1}` this is an
explicit Euler step of Riccati's equation, seen from :math:`X_{k+1}`. Its stationary point is that
of the continuous equation, at any step size, whereas the optimum of the chain is off by O(dt) for
ever. At T = 4 the equation is almost stationary at time 0, so there the time-reversed costate is
three orders of magnitude more accurate than the chain that it simulates: a statement on that
horizon. ``limit`` records say how far it carries at others and at other times.

The offset of a costate is zero for infinitely many paths, and with finitely many it is sampling
error, which every round of a policy with the published index multiplies: ``limit_offset_factor`` is
by how much. Above 1, as at dt = 0.4, gains settle and offsets grow for ever. A costate that has not
settled when the rounds are over is recorded as a divergence.

``integrator_mse`` and ``weak_error`` compare integrators without sampling: the kernel gap, with the
running cost and without it, and the error of the mean reward of the chain without control, relative
to its size. A benchmark charges the running cost of a kernel at its start, a rule of order 1, so a
second-order chain has a costate of order 2 only where there is none.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from socft.policy import AffinePolicy
from socft.records import Record
from socft.sde import (
    LinearSDE,
    gramian,
    propagator,
)
from socft.study.repetitions import record_repetitions
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.affine_policy import evaluate_affine
from toy.problems import Benchmark, benchmark
from toy.problems.linear_quadratic import quadratic_cost_benchmark, whole_steps
from toy.sweeps.limits import explicit_riccati, forward_limit, reversed_limit
from toy.sweeps.oscillator import (
    INTEGRATORS,
    RULES,
    AffineCostate,
    OscillatorCase,
    by_integer_step,
    oscillator_case,
    published_steering,
)
from toy.sweeps.schemes import ROUNDS, SCHEMES, Scheme, learn

PATHS = 2000
SEEDS, QUICK_SEEDS = 2, 1
BASE = {"dt": 0.2}
PUBLISHED_HORIZON = 4.0


def distances(where: OscillatorCase, found: AffineCostate) -> dict[Metric, float]:
    """``mse`` and its parts at time 0, and over time."""
    apart, sampling, gap = (
        found - where.continuous,
        found - where.chain,
        where.chain - where.continuous,
    )
    squared = apart.inner(apart)
    return {
        Metric.MSE: float(squared[0]),
        Metric.CHAIN_MSE: float(sampling.inner(sampling)[0]),
        Metric.KERNEL_GAP: float(gap.inner(gap)[0]),
        Metric.CROSS: 2 * float(sampling.inner(gap)[0]),
        Metric.MSE_OVER_TIME: float(squared.mean()),
        Metric.MSE_MAX: float(squared.max()),
    }


METRICS: tuple[Metric, ...] = (
    Metric.MSE,
    Metric.CHAIN_MSE,
    Metric.KERNEL_GAP,
    Metric.CROSS,
    Metric.MSE_OVER_TIME,
    Metric.MSE_MAX,
)


def sweep_task(
    scheme: str,
    axis: str,
    settings: Mapping[str, Any],
    integrator: str,
    policy: str,
    everywhere: bool,
    paths: int,
    rounds: int,
    seeds: int,
) -> list[Record]:
    """One scheme in one setting, over independent repetitions."""
    start, chosen, where = (
        time.perf_counter(),
        SCHEMES[scheme],
        oscillator_case(integrator, everywhere, **settings),
    )
    found = [learn(where, chosen, RULES[policy], paths, rounds, seed) for seed in range(seeds)]
    rows = [
        dict.fromkeys(METRICS, math.nan) if each.costate is None else distances(where, each.costate)
        for each in found
    ]
    full = benchmark(ProblemName.OSCILLATOR, **settings)
    setting = {
        **full.settings,
        "axis": axis,
        "integrator": integrator,
        "policy": policy,
        "noise_everywhere": everywhere,
        "paths": paths,
        "rounds": max(each.rounds for each in found),
    }
    notes = {each.note for each in found if each.note}
    if notes:
        setting["note"] = "; ".join(sorted(notes))[:300]
    evaluations = chosen.work * where.problem.steps * paths * sum(each.rounds for each in found)
    comparable = integrator == "Euler-Maruyama"
    return record_repetitions(
        schemas.LQ_SWEEPS,
        ProblemName.OSCILLATOR,
        rows,
        setting=setting,
        estimator=scheme,
        kind=chosen.kind,
        seconds=(time.perf_counter() - start) / seeds,
        evaluations=round(evaluations / seeds),
        published={Metric.MSE: published(full, chosen, axis, policy)} if comparable else {},
    )


def published(found: Benchmark, scheme: Scheme, axis: str, policy: str) -> float | None:
    """The published mean-square error at a step size, for the published policy on the published
    oscillator.
    """
    table = found.published.get(Metric.MSE)
    dt, elsewhere = (
        found.settings["dt"],
        found.settings["horizon"] != PUBLISHED_HORIZON or axis not in ("dt", "limit"),
    )
    if table is None or scheme.published is None or elsewhere or policy != "published":
        return None
    return table[scheme.published][table["dt"].index(dt)] if dt in table["dt"] else None


LIMIT_ROUNDS = 200
LIMIT_NAMES: dict[str, MethodName] = {
    MethodName.FORWARD_PUBLISHED_INDEX: MethodName.LEAST_SQUARES_COSTATE_FORM,
    MethodName.TIME_REVERSED_EXACT_SCORE: MethodName.TIME_REVERSED_EXACT_SCORE,
}
LIMIT_METRICS = {
    Metric.MSE: Metric.LIMIT_MSE,
    Metric.MSE_OVER_TIME: Metric.LIMIT_MSE_OVER_TIME,
    Metric.MSE_MAX: Metric.LIMIT_MSE_MAX,
}
"""An error, and what it is called for infinitely many paths."""


def limit_task(settings: Mapping[str, Any]) -> list[Record]:
    """Errors of every scheme for infinitely many paths, with the published index."""
    where, found = (
        oscillator_case("Euler-Maruyama", True, **settings),
        benchmark(ProblemName.OSCILLATOR, **settings),
    )
    setting = {
        **found.settings,
        "axis": "limit",
        "integrator": "Euler-Maruyama",
        "policy": "published",
        "noise_everywhere": True,
    }
    reversed_costate = reversed_limit(where, published_steering, LIMIT_ROUNDS)
    limits = {
        MethodName.OPTIMUM_OF_THE_CHAIN: where.chain,
        MethodName.FORWARD_PUBLISHED_INDEX: forward_limit(where),
        MethodName.TIME_REVERSED_EXACT_SCORE: reversed_costate.costate,
        MethodName.EXPLICIT_EULER_FOR_RICCATI: explicit_riccati(where),
    }
    factor = reversed_costate.offset_factor
    records = [
        Record(
            schemas.LQ_SWEEPS.name,
            ProblemName.OSCILLATOR,
            Metric.LIMIT_OFFSET_FACTOR,
            factor,
            setting,
            MethodName.TIME_REVERSED_EXACT_SCORE,
        )
    ]
    for name, limit in limits.items():
        row = dict.fromkeys(LIMIT_METRICS, math.nan) if limit is None else distances(where, limit)
        scheme = SCHEMES.get(LIMIT_NAMES.get(name, ""))
        for metric, limited in LIMIT_METRICS.items():
            known = (
                published(found, scheme, "limit", "published")
                if scheme is not None and metric == Metric.MSE
                else None
            )
            records.append(
                Record(
                    schemas.LQ_SWEEPS.name,
                    ProblemName.OSCILLATOR,
                    limited,
                    row[metric],
                    setting,
                    name,
                    published=known,
                )
            )
    return records


def integrator_task(dt: float) -> list[Record]:
    """What every integrator makes of the oscillator at a step size, in closed form."""
    sde, records = benchmark(ProblemName.OSCILLATOR, dt=dt).sde, []
    assert isinstance(sde, LinearSDE)
    eye = torch.eye(len(sde.A), dtype=torch.float64)
    decay = propagator(sde.A, sde.horizon)
    covariance = decay @ sde.initial_factor @ (decay @ sde.initial_factor).mT + gramian(
        sde.A, sde.noise, sde.horizon
    )
    reward = -float(covariance.trace()) / 2
    for name, integrator in INTEGRATORS.items():
        for running in (eye, None):
            found = quadratic_cost_benchmark(
                name=ProblemName.OSCILLATOR,
                description="",
                settings={"dt": dt, "horizon": sde.horizon, "running_cost": running is not None},
                sde=sde,
                steps=whole_steps(sde.horizon, dt),
                integrator=integrator,
                running=running,
                terminal=-eye,
                beta=1.0,
            )
            exact = found.continuous.gradient
            gap = AffineCostate.of(found.truth.value_gradient, 0, len(eye)) - AffineCostate.of(
                by_integer_step(exact), 0, len(eye)
            )
            setting = {**found.settings, "axis": "integrator", "integrator": name}
            records.append(
                Record(
                    schemas.LQ_SWEEPS.name,
                    ProblemName.OSCILLATOR,
                    Metric.INTEGRATOR_MSE,
                    float(gap.inner(gap)[0]),
                    setting,
                )
            )
        uncontrolled = evaluate_affine(found.problem, AffinePolicy.zeros(found.problem.reference))
        records.append(
            Record(
                schemas.LQ_SWEEPS.name,
                ProblemName.OSCILLATOR,
                Metric.WEAK_ERROR,
                abs(uncontrolled.reward / reward - 1),
                setting,
            )
        )
    return records


@dataclasses.dataclass(frozen=True)
class SweepAxis:
    """Settings along which one thing varies.

    Attributes:
        name: what varies.
        varied: settings of the benchmark, and ``paths``.
        policies: how the policy is had.
        integrators: how the SDE is simulated.
        everywhere: whether the noise is I, as published.
    """

    name: str
    varied: Sequence[Mapping[str, Any]]
    policies: tuple[str, ...] = ("given",)
    integrators: tuple[str, ...] = ("Euler-Maruyama",)
    everywhere: bool = False


def _each(name: str, *values: Any, **more: Any) -> list[dict[str, Any]]:
    return [{**BASE, **more, name: value} for value in values]


STEP_SIZES = (0.1, 0.2, 0.4)
"""Of them 0.2 is that of all other axes, which go through the point ``base``."""
AXES = (
    SweepAxis("dt", _each("dt", *STEP_SIZES), ("given", "published"), everywhere=True),
    SweepAxis("exponential", _each("dt", *STEP_SIZES[:2]), integrators=("exponential",)),
    SweepAxis("iteration", _each("dt", 0.2), ("iterated",)),
    SweepAxis("base", _each("paths", PATHS)),
    SweepAxis("paths", _each("paths", 100, 8000)),
    SweepAxis("horizon", _each("horizon", 1.0, 2.0, 8.0)),
    SweepAxis("noise", _each("noise", 0.1, 10.0)),
    SweepAxis("damping", _each("damping", 2.0, -0.5, -1.0)),
    SweepAxis("dimension", _each("d", 4, 8)),
)
QUICK_AXES = (
    SweepAxis("dt", _each("dt", 0.2, 0.4), ("given", "published"), everywhere=True),
    SweepAxis("exponential", _each("dt", 0.2), integrators=("exponential",)),
)
LIMIT_SETTINGS = [{"dt": dt} for dt in (0.004, 0.02, 0.05, 0.1, 0.2, 0.4)] + [
    {"dt": 0.05, "horizon": h} for h in (0.5, 1.0, 2.0, 8.0)
]
INTEGRATOR_STEPS = (0.025, 0.05, 0.1, 0.2, 0.4)
QUICK_LIMITS = [{"dt": 0.1}, {"dt": 0.1, "horizon": 1.0}]


def tasks(quick: bool) -> list[Task]:
    """Integrators and limits first, then every scheme along every axis."""
    settings = QUICK_LIMITS if quick else LIMIT_SETTINGS
    found = [
        Task(f"integrators: dt {dt:g}", integrator_task, {"dt": dt}) for dt in INTEGRATOR_STEPS
    ]
    found += [Task(f"limit: {_about(each)}", limit_task, {"settings": each}) for each in settings]
    scale = {"rounds": ROUNDS, "seeds": QUICK_SEEDS if quick else SEEDS}
    for axis in QUICK_AXES if quick else AXES:
        for each in axis.varied:
            paths, chosen = (
                each.get("paths", PATHS),
                {key: value for key, value in each.items() if key != "paths"},
            )
            for integrator in axis.integrators:
                for policy in axis.policies:
                    for scheme in SCHEMES:
                        arguments = {
                            "scheme": scheme,
                            "axis": axis.name,
                            "settings": chosen,
                            "integrator": integrator,
                            "policy": policy,
                        }
                        about = (
                            f"{axis.name}: {_about(chosen)}, N = {paths}, {integrator}, {policy}:"
                            f" {scheme}"
                        )
                        found.append(
                            Task(
                                about,
                                sweep_task,
                                arguments | {"everywhere": axis.everywhere, "paths": paths} | scale,
                            )
                        )
    return found


def _about(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


STUDY = Study(schemas.LQ_SWEEPS, tasks)
