r"""Whose estimate of a costate steers a pendulum best? The second study of arXiv 2603.20455v2, as
published and mended.

Sought is :math:`\phi(0, x) = \nabla E g(X_T)` of the pendulum kicked in its velocity
(`toy.problems`, ``bsde-pendulum``), learnt from N paths that start at N(0, I). Then initial states
from N(0, I) descend along it by Adam, with the published rate and number of steps, and ``cost`` is
the mean of the exact :math:`E g(X_T)` where they end, whose optimum is the lowest point of the
value on the grid. The motion is unstable, so the variance of a lean adjoint is a hundred times the
mean square of the costate; the noise is degenerate, along :math:`x_2` alone.

* ``cost_simulated``: the same by fresh simulation;
* ``mse``: :math:`E|\phi(0, X) - \nabla V_0(X)|^2` over N(0, I), against the chain's own costate;
  ``mse_descent``: over the states passed on the way down;
* the split of an error: ``kernel_gap`` of the integrator, ``approximation_mse`` of features fitted
  to the exact costate, and ``label_noise``, the spread of a path's costate about its mean with the
  exact field as control variate.

Features are bumps on the cylinder, solved exactly. The fitted Bellman recursion regresses the
pulled-back mean of the next fit, so its labels have no noise; the corrected adjoint after it uses
its field as control variate and has no bias. All networks have the published architecture,
optimiser, minibatches and decay of the rate. "Published" pipelines have the Huber loss of the
published code, its pairing of noises and its length of 20 rounds of 5000 gradient steps besides,
and run once, as in the publication. The others have `ROUNDS` rounds, after which the rate has
fallen to a seventieth. Time-reversed ones learn the score by the published network. Without a
costate field, "autodiff" descends along the derivative of one fresh path per state and step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.costates.fields import CostateField, GivenCostate
from socft.costates.marginal_score import MarginalScore
from socft.costates.martingale import AntitheticCorrection, ExactCorrection, FirstOrderCorrection
from socft.costates.network import NetworkTraining
from socft.costates.network_score import NetworkScore
from socft.costates.regression import StepwiseRegression
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import States
from socft.regression.features import Features
from socft.regression.functions import LinearRegression
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.learners import (
    CostateLearner,
    Learner,
    RepeatedFit,
    bellman_sweep,
    lean,
    martingale,
    martingale_after_bellman,
    martingale_backward_pass,
    space_time,
    time_reversed,
)
from toy.problems import Benchmark, benchmark
from toy.problems.base import ValueFunction
from toy.problems.pendulum import PUBLISHED, lowest, swing_cost

PATHS, QUICK_PATHS = 10_000, 2500
STATES = 10_000
DESCENT_STEPS, DESCENT_RATE, PLACES = 1500, 1e-2, 75
"""A tenth of the published steps at ten times the published rate, which end where those do."""
NOISY_STEPS, NOISY_RATE, NOISY_STATES = 15_000, 1e-3, 1000
"""Of the descent along derivatives of single paths, as published but for the number of states."""
SEEDS, FEW_SEEDS, QUICK_SEEDS, NETWORK_SEEDS, PUBLISHED_SEEDS = 10, 2, 1, 3, 1
"""The best pipeline and the lean adjoint have `SEEDS`; the other sweeps on bumps take minutes each
and have `FEW_SEEDS`.
"""
ANGLES, ROWS, REACH = 16, 17, 4.5
RIDGE, NOISELESS_RIDGE = 1e-3, 1e-4
QUICK_NODES = (48, 241)
HERMITE = 6
"""Nodes of the exact mean: the noise of one step is 0.11 wide."""
FULL_ROUNDS, ROUNDS, ROUND_STEPS, SCORE_STEPS = 20, 8, 5000, 10_000
HORIZON = 4.0
NOISE_PATHS = 1000
FRESH_SEED, STATES_SEED = 77, 123

IntegerField = Callable[[int, States], States]
"""A costate field that is asked for one step at a time."""


@dataclasses.dataclass(frozen=True)
class CylinderBumps(Features):
    """Products of bumps on the circle of the angle and Gaussian bumps of the velocity, with 1
    appended.

    Attributes:
        angles: bumps on the circle, von Mises densities whose width is their distance.
        rows: bumps on [-reach, reach], whose width is their distance.
        reach: of the velocity.
    """

    angles: int = ANGLES
    rows: int = ROWS
    reach: float = REACH

    def __call__(self, x: Float[Tensor, "batch 2"]) -> Float[Tensor, "batch p"]:
        apart = 2 * math.pi / self.angles
        around = torch.exp(
            (torch.cos(x[:, :1] - apart * torch.arange(self.angles).to(x)) - 1) / apart**2
        )
        centres = torch.linspace(-self.reach, self.reach, self.rows).to(x)
        along = torch.exp(-((x[:, 1:] - centres) / (2 * self.reach / (self.rows - 1))).square() / 2)
        return torch.cat(
            [(around[:, :, None] * along[:, None, :]).flatten(1), torch.ones_like(x[:, :1])], 1
        )


@dataclasses.dataclass(frozen=True)
class PendulumPipeline:
    """A pipeline and its place in the publication.

    Attributes:
        name: as reports show it.
        kind: as of `CostateLearner`.
        function_class: "bumps" or "network".
        learner: of so many rounds of a network.
        published: its column in the publication.
    """

    name: str
    kind: str
    function_class: str
    learner: Callable[[int], Learner]
    published: str | None = None

    def of(self, rounds: int) -> CostateLearner:
        """The pipeline with so many rounds of its network."""
        return CostateLearner(self.name, self.kind, self.function_class, self.learner(rounds))


def _training(steps: int = ROUND_STEPS) -> NetworkTraining:
    return NetworkTraining(blocks=4, horizon=HORIZON, steps=steps)


def _bumps(_: int) -> StepwiseRegression:
    return StepwiseRegression(LinearRegression(CylinderBumps(), RIDGE))


def _hermite(source) -> ExactCorrection:
    return ExactCorrection(source, nodes=HERMITE)


def _network_score(seed: int) -> MarginalScore:
    return NetworkScore(
        NetworkTraining(width=64, blocks=3, horizon=HORIZON, steps=SCORE_STEPS, seed=seed)
    )


def _features(name: str, kind: str, learner: Learner) -> PendulumPipeline:
    return PendulumPipeline(name, kind, "bumps", lambda rounds: learner)


def _networks(
    name: str, kind: str, learner: Callable[[int], Learner], published: str | None = None
) -> PendulumPipeline:
    return PendulumPipeline(name, kind, "network", learner, published)


def _lean(published: bool) -> Callable[[int], Learner]:
    return lambda rounds: lean(space_time(_training(rounds * ROUND_STEPS), published))


def _reversed(published: bool) -> Callable[[int], Learner]:
    regression = space_time(_training(), published)
    return lambda rounds: time_reversed(regression, _network_score, rounds, published)


def _corrected(rounds: int) -> Learner:
    return martingale(space_time(_training()), rounds, AntitheticCorrection)


_BUMPS = LinearRegression(CylinderBumps(), RIDGE)
_EXACT_BUMPS = LinearRegression(CylinderBumps(), NOISELESS_RIDGE)
BEST = MethodName.FITTED_BELLMAN_RECURSION
PIPELINES = {
    each.name: each
    for each in (
        _features(BEST, "biased", bellman_sweep(_EXACT_BUMPS, HERMITE)),
        _features(
            MethodName.MARTINGALE_FITTED_COSTATE_AFTER_RECURSION,
            "unbiased",
            martingale_after_bellman(_EXACT_BUMPS, HERMITE, _hermite),
        ),
        _features(MethodName.ADJOINT_MATCHING, "unbiased", lean(_bumps)),
        _features(
            MethodName.MARTINGALE_FITTED_COSTATE,
            "unbiased",
            martingale_backward_pass(_BUMPS, AntitheticCorrection),
        ),
        _features(
            MethodName.MARTINGALE_FITTED_COSTATE_FIRST_ORDER,
            "unbiased",
            martingale_backward_pass(_BUMPS, FirstOrderCorrection),
        ),
        _features(
            MethodName.MARTINGALE_FITTED_COSTATE_EXACT_MEAN,
            "unbiased",
            martingale_backward_pass(_BUMPS, _hermite),
        ),
        _networks(MethodName.ADJOINT_MATCHING_PUBLISHED, "biased", _lean(True), "non_adapted"),
        _networks(MethodName.ADJOINT_MATCHING_NETWORK, "unbiased", _lean(False)),
        _networks(MethodName.TIME_REVERSED_PUBLISHED, "biased", _reversed(True), "tr_bsde"),
        _networks(MethodName.TIME_REVERSED_NETWORK, "biased", _reversed(False)),
        _networks(MethodName.MARTINGALE_FITTED_COSTATE_NETWORK, "unbiased", _corrected),
    )
}
QUICK = (BEST, MethodName.ADJOINT_MATCHING)


@dataclasses.dataclass(frozen=True)
class DescentPath:
    """Where states went: one place in `PLACES` on the way, shape (places, batch, 2), and the end,
    (batch, 2).
    """

    way: Tensor
    end: States


@torch.no_grad()
def descent_path(field: IntegerField, states: States) -> DescentPath:
    """Descent on the cost by Adam, along a costate of the reward."""
    way, states = [], states.clone()
    descend = torch.optim.Adam([states], lr=DESCENT_RATE)
    for step in range(DESCENT_STEPS):
        if step % PLACES == 0:
            way.append(states.clone())
        states.grad = -field(0, states)
        descend.step()
    return DescentPath(torch.stack(way), states)


def pipeline_task(
    name: str, paths: int, states: int, nodes: list[int], seeds: int, rounds: int = 0
) -> list[Record]:
    """One pipeline: what is learnt, where states descend along it, and what that costs."""
    found, chosen = _problem(tuple(nodes)), PIPELINES[name]
    policy = Uncontrolled(found.problem.reference)
    fits = RepeatedFit.of(
        chosen.of(rounds),
        found.problem,
        policy,
        paths,
        seeds,
        lambda field: _measured(found, field, states),
    )
    setting = {
        "paths": paths,
        "function_class": chosen.function_class,
        "gradient_steps": rounds * ROUND_STEPS,
    }
    published = {Metric.COST: PUBLISHED[chosen.published]} if chosen.published else {}
    lowest_cost = lowest(found.uncontrolled).cost
    return fits.records(
        schemas.PENDULUM,
        ProblemName.BSDE_PENDULUM,
        setting=setting,
        estimator=name,
        kind=chosen.kind,
        optimum={Metric.COST: lowest_cost, Metric.COST_SIMULATED: lowest_cost},
        published=published,
    )


def truth_task(states: int, nodes: list[int]) -> list[Record]:
    """The lowest cost, the cost of the states before any descent and after one along the exact
    costate.
    """
    found = _problem(tuple(nodes))
    value, first = found.uncontrolled, _states(states)
    optimum = lowest(value).cost
    ends = {
        MethodName.NO_DESCENT: first,
        MethodName.EXACT_COSTATE: descent_path(value.gradient, first).end,
    }
    records = [_exact(Metric.MINIMUM, optimum, published=PUBLISHED["heat_map_minimum"])]
    for name, where in ends.items():
        published = PUBLISHED["start"] if name == MethodName.NO_DESCENT else None
        records.append(
            _exact(Metric.COST, _cost(value, where), name, optimum=optimum, published=published)
        )
    return records


def autodiff_task(nodes: list[int]) -> list[Record]:
    """Descent without a costate field: by Adam along the derivative of one fresh path per state and
    step.
    """
    found, generator = _problem(tuple(nodes)), torch.Generator().manual_seed(FRESH_SEED)
    problem, value = found.problem, found.uncontrolled
    recursion, policy = AdjointMatching(), Uncontrolled(problem.reference)
    states = _states(NOISY_STATES)
    descend = torch.optim.Adam([states], lr=NOISY_RATE)
    with torch.no_grad():
        for _ in range(NOISY_STEPS):
            noise = Noise.sample(problem.reference, NOISY_STATES, generator)
            path = rollout(problem.reference, policy, dataclasses.replace(noise, initial=states))
            states.grad = -recursion.costates(problem, policy, path).values[0]
            descend.step()
    cost = -value.value(0, states)
    return [
        _exact(
            Metric.COST,
            float(cost.mean()),
            MethodName.AUTODIFF,
            stderr=float(cost.std() / len(cost) ** 0.5),
            optimum=lowest(value).cost,
            published=PUBLISHED["autodiff"],
        )
    ]


def kernel_gap_task(nodes: list[int]) -> list[Record]:
    """What the Euler chain itself misses of continuous time: in the lowest cost and in the costate
    over N(0, I).
    """
    found, points = _problem(tuple(nodes)), _states(STATES)
    chain, limit = found.uncontrolled, found.continuous_uncontrolled
    return [
        _exact(Metric.KERNEL_GAP, _distance(chain.gradient, points, limit)),
        _exact(
            Metric.CONTINUOUS_MINIMUM, lowest(limit).cost, published=PUBLISHED["heat_map_minimum"]
        ),
    ]


def approximation_task(paths: int, nodes: list[int]) -> list[Record]:
    """The features' own error: fitted to the exact costate at the states of the paths."""
    found = _problem(tuple(nodes))
    x = found.problem.reference.initial(_noise(found.problem, paths, 0).initial)
    fitted = _EXACT_BUMPS.fit(x, found.uncontrolled.gradient(0, x))
    return [
        _exact(
            Metric.APPROXIMATION_MSE,
            _distance(lambda k, y: fitted(y), _states(STATES), found.uncontrolled),
            paths=paths,
        )
    ]


def label_noise_task(paths: int, nodes: list[int]) -> list[Record]:
    """``E|a_0 - E[a_0 | X_0]|^2`` of one path without and with a control variate made of the exact
    costate.
    """
    found = _problem(tuple(nodes))
    problem, policy = found.problem, Uncontrolled(found.problem.reference)
    source = GivenCostate(lambda k, x: found.uncontrolled.gradient(int(k), x))
    with torch.no_grad():
        path = rollout(problem.reference, policy, _noise(problem, paths, FRESH_SEED))
    exact, records = found.uncontrolled.gradient(0, path.states[0]), []
    variates = {
        MethodName.NO_CORRECTION: _Zero(source),
        MethodName.FIRST_ORDER_CORRECTION: FirstOrderCorrection(source),
        MethodName.ANTITHETIC_CORRECTION: AntitheticCorrection(source),
        MethodName.EXACT_CORRECTION: _hermite(source),
    }
    for name, correction in variates.items():
        samples = MartingaleAdjoint(correction).costates(problem, policy, path).values[0]
        squared_error = (samples - exact).square().sum(1)
        stderr = float(squared_error.std() / paths**0.5)
        records.append(_exact(Metric.LABEL_NOISE, float(squared_error.mean()), name, stderr=stderr))
    return records


class _Zero(AntitheticCorrection):
    """No control variate."""

    def of(self, at) -> States:
        return torch.zeros_like(at.centre)


def _measured(found: Benchmark, field: CostateField, states: int) -> dict[Metric, float]:
    value, first = found.uncontrolled, _states(states)
    descent = descent_path(field, first)
    return {
        Metric.COST: _cost(value, descent.end),
        Metric.COST_SIMULATED: _simulated(found.problem, descent.end),
        Metric.MSE: _distance(field, first, value),
        Metric.MSE_DESCENT: _distance(field, descent.way.flatten(0, 1), value),
    }


@torch.no_grad()
def _cost(value: ValueFunction, states: States) -> float:
    return -float(value.value(0, states).mean())


def _simulated(problem: ControlProblem, states: States) -> float:
    """The mean cost by one fresh path from each state."""
    noise, x = _noise(problem, len(states), FRESH_SEED).steps, states
    for k in range(problem.steps):
        x = problem.reference.step(k, x, noise[k])
    return float(swing_cost(x).mean())


@torch.no_grad()
def _distance(field: IntegerField, points: States, value: ValueFunction) -> float:
    return float((field(0, points) - value.gradient(0, points)).square().sum(1).mean())


@functools.cache
def _problem(nodes: tuple[int, ...]) -> Benchmark:
    return benchmark(ProblemName.BSDE_PENDULUM, **({"nodes": nodes} if nodes else {}))


def _noise(problem: ControlProblem, paths: int, seed: int) -> Noise:
    return Noise.sample(problem.reference, paths, torch.Generator().manual_seed(seed))


def _states(count: int) -> States:
    return torch.randn(
        count, 2, generator=torch.Generator().manual_seed(STATES_SEED), dtype=torch.float64
    )


def _exact(
    metric: Metric, value: float, name: str = "", paths: int | None = None, **more
) -> Record:
    setting = {} if paths is None else {"paths": paths, "function_class": "bumps"}
    return Record(
        schemas.PENDULUM.name,
        ProblemName.BSDE_PENDULUM,
        metric,
        value,
        setting,
        name,
        "exact",
        **more,
    )


def _length(pipeline: PendulumPipeline) -> tuple[int, int]:
    """Rounds and repetitions."""
    if pipeline.function_class != "network":
        return 0, FEW_SEEDS
    return (ROUNDS, NETWORK_SEEDS) if pipeline.published is None else (FULL_ROUNDS, PUBLISHED_SEEDS)


def tasks(quick: bool) -> list[Task]:
    """The truth and the splits, then every pipeline at N = 10000; at the quick scale the best of
    them and a lean adjoint.
    """
    nodes = list(QUICK_NODES) if quick else []
    states, paths = (1000, QUICK_PATHS) if quick else (STATES, PATHS)
    found = [
        Task("lowest cost", truth_task, {"states": states, "nodes": nodes}),
        Task("features", approximation_task, {"paths": paths, "nodes": nodes}),
        Task("label noise", label_noise_task, {"paths": NOISE_PATHS, "nodes": nodes}),
    ]
    for name, each in PIPELINES.items():
        if quick and name not in QUICK:
            continue
        rounds, few = _length(each)
        arguments = {
            "name": name,
            "paths": paths,
            "states": states,
            "nodes": nodes,
            "seeds": QUICK_SEEDS if quick else SEEDS if name in QUICK else few,
            "rounds": rounds,
        }
        found.append(Task(name, pipeline_task, arguments))
    if not quick:
        found.append(Task("autodiff", autodiff_task, {"nodes": nodes}))
        found.append(Task("kernel gap", kernel_gap_task, {"nodes": nodes}))
    return found


STUDY = Study(schemas.PENDULUM, tasks)
