r"""Does the time-reversed BSDE beat a fair baseline? The linear study of arXiv 2603.20455v2, as
published and mended.

Sought is the costate :math:`\phi(0, x) = G_0 x` of an uncontrolled linear SDE (`toy.problems`,
``bsde-linear``) from N simulated paths. ``mse`` is :math:`E|\phi(0, X_0) - G_0 X_0|^2` against
continuous time, and splits into

* ``kernel_gap``: the same distance of the chain's own costate, a matter of the integrator alone;
* ``chain_mse``: the distance of what was learnt from the chain's own costate: Monte-Carlo noise and
  fit.

The pipelines (`toy.learners`) see the same paths. Networks, optimiser, minibatches and numbers of
gradient steps are those of the published code for all. "Published" pipelines have its Huber loss,
its network for the score and its pairing of noises as well; the others regress with the squared
loss and, time-reversed, take the exact score and one noise for state and costate. The published
code pulls costates back by matrix exponentials along an Euler-Maruyama path; here the chain's own
derivative does that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from socft.costates.fields import CostateField
from socft.costates.marginal_score import AffineMarginals, DenoisingScore, MarginalScore
from socft.costates.network import NetworkTraining
from socft.costates.network_score import NetworkScore
from socft.policy import Uncontrolled
from socft.records import Record
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.sde import EulerMaruyama, Exponential, Integrator
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.learners import (
    CostateLearner,
    RepeatedFit,
    lean,
    least_squares_costate,
    least_squares_value,
    linear_features,
    martingale,
    space_time,
    time_reversed,
    time_reversed_value,
)
from toy.problems import Benchmark, benchmark

NOISES = (0.5, 1.0, 2.0, 5.0)
PATHS = 2000
SAMPLES = (50, 100, 500, 2000, 5000, 10000)
SEEDS, QUICK_SEEDS = 10, 2
SLOW_SEEDS = 3
"""Repetitions of pipelines that take minutes, at N = 2000 only; published ones have `SEEDS`, as in
the publication.
"""
TEST_POINTS = 20_000
ROUNDS = 5
INTEGRATORS: dict[str, Integrator] = {
    "Euler-Maruyama": EulerMaruyama(),
    "exponential": Exponential(),
}
HORIZON = 2.0
NETWORK_ROUNDS, ROUND_STEPS, SCORE_STEPS = 10, 2000, 10_000
"""As published: the optimiser and the decay of its rate go on from round to round."""


def _training(steps: int = ROUND_STEPS) -> NetworkTraining:
    return NetworkTraining(horizon=HORIZON, steps=steps)


def _exactly(_: int):
    return linear_features()


def _affine(_: int) -> MarginalScore:
    return AffineMarginals()


def _network_score(seed: int) -> MarginalScore:
    return NetworkScore(dataclasses.replace(_training(SCORE_STEPS), seed=seed))


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
        time_reversed(_exactly, _affine),
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_FITTED_COSTATE,
        "biased",
        "linear",
        time_reversed(_exactly, lambda seed: LEARNT_SCORE),
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
        lean(space_time(_training(NETWORK_ROUNDS * ROUND_STEPS), published=True)),
    ),
    CostateLearner(
        MethodName.ADJOINT_MATCHING_NETWORK,
        "unbiased",
        "network",
        lean(space_time(_training(NETWORK_ROUNDS * ROUND_STEPS))),
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_PUBLISHED,
        "biased",
        "network",
        time_reversed(
            space_time(_training(), published=True), _network_score, NETWORK_ROUNDS, published=True
        ),
    ),
    CostateLearner(
        MethodName.TIME_REVERSED_NETWORK,
        "biased",
        "network",
        time_reversed(space_time(_training()), _affine, NETWORK_ROUNDS),
    ),
    CostateLearner(
        MethodName.MARTINGALE_FITTED_COSTATE_FIRST_ORDER_NETWORK,
        "unbiased",
        "network",
        martingale(space_time(_training()), NETWORK_ROUNDS),
    ),
)
PIPELINES = {each.name: each for each in (*LINEAR, *NETWORKS)}
SLOW = {each.name for each in NETWORKS} | {MethodName.TIME_REVERSED_VALUE_FORM}
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
    fits = RepeatedFit.of(
        chosen,
        found.problem,
        policy,
        paths,
        seeds,
        lambda field: {name: _distance(field, points, at) for name, at in exact.items()},
    )
    setting = {
        "noise": noise,
        "integrator": integrator,
        "paths": paths,
        "function_class": chosen.function_class,
    }
    return fits.records(
        schemas.LINEAR,
        ProblemName.BSDE_LINEAR,
        setting=setting,
        estimator=pipeline,
        kind=chosen.kind,
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
        few = slow and pipeline.name not in PUBLISHED
        seeds = QUICK_SEEDS if quick else SLOW_SEEDS if few else SEEDS
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
