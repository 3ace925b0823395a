r"""Does the time-reversed BSDE beat a fair baseline? The linear study of arXiv 2603.20455v2, as
published and mended.

Sought is the costate :math:`\phi(0, x) = G_0 x` of an uncontrolled linear SDE (`toy.problems`,
``bsde-linear``) from N simulated paths. ``mse`` is :math:`E|\phi(0, X_0) - G_0 X_0|^2` against
continuous time, and splits into

* ``kernel_gap``: the same distance of the chain's own costate, a matter of the integrator alone;
* ``chain_mse``: the distance of what was learnt from the chain's own costate: Monte-Carlo noise and
  fit.

The pipelines (`toy.pipelines`) see the same paths. "Published" ones have the network, optimiser,
Huber loss and noise pairing of the published code; the others regress with the squared loss and,
time-reversed, use one noise for state and costate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from socft.costates.fields import CostateField
from socft.costates.marginal_score import AffineMarginals, DenoisingScore
from socft.costates.network import SpaceTimeRegression
from socft.policy import Uncontrolled
from socft.records import Record
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.sde import EulerMaruyama, Exponential, Integrator
from socft.study.repetitions import record_repetitions
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.pipelines import (
    CostateLearner,
    lean,
    learn,
    least_squares_costate,
    least_squares_value,
    linear_features,
    martingale,
    network,
    published_network,
    time_reversed,
    time_reversed_value,
)
from toy.problems import Benchmark, benchmark

NOISES = (0.5, 1.0, 2.0, 5.0)
PATHS = 2000
SAMPLES = (50, 100, 500, 2000, 5000, 10000)
SEEDS, QUICK_SEEDS = 10, 2
SLOW_SEEDS = 3
"""Repetitions of pipelines that take minutes, those of the published length; at N = 2000 only."""
TEST_POINTS = 20_000
ROUNDS = 5
INTEGRATORS: dict[str, Integrator] = {
    "Euler-Maruyama": EulerMaruyama(),
    "exponential": Exponential(),
}
SHORT_STEPS, SHORT_ROUNDS = 600, 3
"""A tenth of the published gradient steps, with larger batches and a rate that decays to the
end.
"""


def short_network(seed: int) -> SpaceTimeRegression:
    """The published network, trained in a twentieth of the published steps per round."""
    return SpaceTimeRegression(
        steps=SHORT_STEPS,
        batch=256,
        rate=1e-2,
        decay_every=SHORT_STEPS // 20,
        decay=0.75,
        weight_decay=0.0,
        seed=seed,
    )


def _exactly(_: int):
    return linear_features()


LEARNT_SCORE = DenoisingScore(LinearRegression(Polynomial(1)))


LINEAR = (
    CostateLearner(MethodName.ADJOINT_MATCHING, "unbiased", "linear", lean(_exactly)),
    CostateLearner(
        MethodName.MARTINGALE_FITTED_COSTATE, "unbiased", "linear", martingale(_exactly, ROUNDS)
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_EXACT_SCORE,
        "biased",
        "linear",
        time_reversed(_exactly, AffineMarginals()),
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_FITTED_COSTATE,
        "biased",
        "linear",
        time_reversed(_exactly, LEARNT_SCORE),
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_VALUE_FORM,
        "biased",
        "linear",
        time_reversed_value(Polynomial(2), AffineMarginals()),
    ),
    CostateLearner(
        MethodName.LEAST_SQUARES_COSTATE_FORM,
        "unbiased",
        "linear",
        least_squares_costate(Polynomial(1)),
    ),
    CostateLearner(
        MethodName.LEAST_SQUARES_VALUE_FORM,
        "unbiased",
        "linear",
        least_squares_value(Polynomial(2)),
    ),
)
NETWORKS = (
    CostateLearner(
        MethodName.ADJOINT_MATCHING_PUBLISHED,
        "biased",
        "network",
        lean(lambda seed: published_network(seed, 20_000)),
    ),
    CostateLearner(
        MethodName.ADJOINT_MATCHING_NETWORK,
        "unbiased",
        "network",
        lean(lambda seed: network(seed, 20_000)),
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_PUBLISHED,
        "biased",
        "network",
        time_reversed(published_network, AffineMarginals(), published_pairing=True),
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_NETWORK,
        "biased",
        "network",
        time_reversed(network, AffineMarginals()),
    ),
    CostateLearner(
        MethodName.MARTINGALE_FITTED_COSTATE_FIRST_ORDER_NETWORK,
        "unbiased",
        "network",
        martingale(short_network, SHORT_ROUNDS),
    ),
)
PIPELINES = {each.name: each for each in (*LINEAR, *NETWORKS)}
SLOW = {
    each.name
    for each in NETWORKS
    if each.kind == "biased" or each.name == MethodName.ADJOINT_MATCHING_NETWORK
} | {MethodName.TIME_REVERSED_VALUE_FORM}
PUBLISHED: dict[str, str] = {
    MethodName.ADJOINT_MATCHING_PUBLISHED: "non_adapted",
    MethodName.TIME_REVERSED_PUBLISHED: "tr_bsde",
}


def pipeline_task(
    pipeline: str, noise: float, integrator: str, paths: int, seeds: int
) -> list[Record]:
    """One pipeline at one noise level, over independent repetitions."""
    found = _problem(noise, integrator)
    chosen, policy = PIPELINES[pipeline], Uncontrolled(found.problem.reference)
    points = _points()
    exact = {
        Metric.MSE: found.continuous_uncontrolled.gradient(0, points),
        Metric.CHAIN_MSE: found.uncontrolled.gradient(0, points),
    }
    rows, seconds, evaluations = [], [], 0
    for seed in range(seeds):
        learnt = learn(chosen, found.problem, policy, paths, seed)
        rows.append({name: _distance(learnt.field, points, at) for name, at in exact.items()})
        seconds.append(learnt.seconds)
        evaluations = learnt.evaluations
    setting = {
        "noise": noise,
        "integrator": integrator,
        "paths": paths,
        "function_class": chosen.function_class,
    }
    return record_repetitions(
        schemas.LINEAR,
        ProblemName.BSDE_LINEAR,
        rows,
        setting=setting,
        estimator=pipeline,
        kind=chosen.kind,
        seconds=sum(seconds) / seeds,
        evaluations=evaluations,
        published={Metric.MSE: _published(found, pipeline, setting)},
    )


def kernel_gap_task(integrator: str) -> list[Record]:
    """How far the chain's own costate is from continuous time, whatever the noise."""
    found, points = _problem(1.0, integrator), _points()
    gap = found.uncontrolled.gradient(0, points) - found.continuous_uncontrolled.gradient(0, points)
    published = (
        found.published[Metric.MSE]["discrete_adjoint_floor"]
        if integrator == "Euler-Maruyama"
        else None
    )
    setting = {"integrator": integrator}
    return [
        Record(
            schemas.LINEAR.name,
            ProblemName.BSDE_LINEAR,
            Metric.KERNEL_GAP,
            float(gap.square().sum(1).mean()),
            setting,
            published=published,
        )
    ]


def _problem(noise: float, integrator: str) -> Benchmark:
    return benchmark(ProblemName.BSDE_LINEAR, noise=noise, integrator=INTEGRATORS[integrator])


def _points() -> Tensor:
    return torch.randn(
        TEST_POINTS, 2, generator=torch.Generator().manual_seed(123), dtype=torch.float64
    )


@torch.no_grad()
def _distance(field: CostateField, points: Tensor, exact: Tensor) -> float:
    return float((field(0, points) - exact).square().sum(1).mean())


def _published(found: Benchmark, pipeline: str, setting: Mapping[str, Any]) -> float | None:
    """The published mean-square error at the same noise; pipelines of the published length run with
    the published N alone.
    """
    name, table = PUBLISHED.get(pipeline), found.published[Metric.MSE]
    if name is None or setting["integrator"] != "Euler-Maruyama":
        return None
    return table[name][table["eps"].index(setting["noise"])]


def tasks(quick: bool) -> list[Task]:
    """All pipelines against the noise at N = 2000, then against N at noise 1."""
    found = [
        Task(f"kernel gap: {name}", kernel_gap_task, {"integrator": name}) for name in INTEGRATORS
    ]
    for pipeline in PIPELINES.values():
        slow = pipeline.name in SLOW
        if quick and pipeline.function_class == "network":
            continue
        seeds = QUICK_SEEDS if quick else SLOW_SEEDS if slow else SEEDS
        settings = [(noise, PATHS) for noise in (NOISES[1:2] if quick else NOISES)]
        settings += [] if quick or slow else [(1.0, paths) for paths in SAMPLES if paths != PATHS]
        for integrator in ("Euler-Maruyama",) if slow else INTEGRATORS:
            for noise, paths in settings:
                about = f"{pipeline.name}, {integrator}, noise {noise:g}, N = {paths}"
                arguments = {
                    "pipeline": pipeline.name,
                    "noise": noise,
                    "integrator": integrator,
                    "paths": paths,
                    "seeds": seeds,
                }
                found.append(Task(about, pipeline_task, arguments))
    return found


STUDY = Study(schemas.LINEAR, tasks)
