r"""Which method fine-tunes a mixture of two modes best? The third study of arXiv 2603.20455v2, as
published and mended.

The reverse diffusion of modes at +-3 is steered to 3 (`toy.problems`, ``bsde-mixture``), at
temperatures from mild to strong. The control and the Gaussian law :math:`N(\mu, Q^2)` of
:math:`X_0` are both learned; the cost is :math:`E[(X_1 - 3)^2/(2\,\text{temp}) + \int |u|^2/2\,dt]
+ KL(N(\mu, Q^2) \| N(0, 1))`. Everything is judged exactly, by quadrature on the grids of the
optimum of the same chain with the best Gaussian start:

* ``cost``, and ``regret``, by how much it exceeds the optimum, relative to it;
* ``w1``: the Wasserstein-1 distance of the law of :math:`X_1` from that of the optimum;
* ``control_l2``: :math:`\int E|u - u^*|^2\,dt` along the optimal law.

All methods start at the pre-trained model, unless they are published chains that go from each
temperature to the next. They are

* policy iteration: N fresh paths of the policy in every round, a regression of costates,
  :math:`v_k = B_k^\top \psi_k/\beta_k` with :math:`\psi_k(x) = E[a_{k+1} | x_k = x]`. With the full
  adjoint this is Newton's method for the policy. With the lean adjoint it is a fixed-point
  iteration, which need not contract: a regression solved exactly then swings between two policies
  where small gradient steps would average;
* the fitted Bellman recursion: regressions of the pulled-back mean of the next fit, which do not
  wait for rounds; and PI-FT with sampled means (`socft.pi_ft`).

The law of :math:`X_0` follows Newton's method with :math:`E V_0'` and, by Stein's lemma,
:math:`E V_0'' = E[V_0'(\mu + Q z) z]/Q`. "Published" methods take the costate of step k in place of
k + 1, regress with the Huber loss, give the deviation's gradient noise that is not the path's, and
reverse time with the noise of the neighbouring step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import Lean
from socft.costates.base import Costates
from socft.costates.fields import (
    CostateField,
    CostateSource,
    FromPolicy,
    Given,
    with_terminal,
    zero_field,
)
from socft.costates.marginal_score import DenoisingScore
from socft.costates.martingale import Antithetic, Situation, mean
from socft.costates.network import SpaceTimeRegression, published_huber, squared
from socft.costates.regression import FieldRegression, PerStep, StepField
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import CostateEstimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE
from socft.metrics import wasserstein1
from socft.path import Noise, rollout
from socft.pi_ft import MonteCarloPIFT
from socft.policy import FunctionPolicy, Policy, StepwisePolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import States
from socft.regression.features import RadialBasis
from socft.regression.functions import Field, LinearRegression, Regression
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.quadrature import ChainLaw, Quadrature, chain_law
from toy.pipelines import Fitted
from toy.problems import benchmark
from toy.problems.reversed_bsde import MIXTURE_PUBLISHED, Start, best_start

TEMPS = MIXTURE_PUBLISHED["temp"]
CENTRES, WIDTH = torch.linspace(-7, 7, 29, dtype=torch.float64)[:, None], 0.5
RIDGE, STIFF_RIDGE = 1e-8, 1e-4
"""For samples with little noise, and for costates of single paths, whose fits are differentiated."""
OUTSIDE = 0.002
"""Share of the samples beyond either end of a clipped fit."""
PATHS, ROUNDS = 2000, 8
DAMPED, DAMPING = 2, 0.5
"""The first rounds of a regression solved exactly go half the way: the first policy wants too much."""
SWEEPS, SWEEP_PATHS, DRAWS = 2, 2048, 8
INNER, HERMITE = 4, 8
ROUND_STEPS, BATCH = 400, 256
SEEDS, FEW_SEEDS, NETWORK_SEEDS, QUICK_SEEDS = 10, 2, 2, 1
QUICK_TEMPS = (8.0, 1.0)
LARGEST_BEND = 0.5
REVERSED_SEED, START_SEED = 10_000, 20_000


@dataclasses.dataclass(frozen=True)
class Clipped(Regression):
    """A regression that continues as a constant beyond all but a few of its samples, where features
    have nothing to say.
    """

    regression: Regression

    def fit(self, x: Tensor, y: Tensor, start: Field | None = None) -> Field:
        lower, upper = torch.quantile(
            x, torch.tensor([OUTSIDE, 1 - OUTSIDE], dtype=torch.float64).to(x), 0
        )
        inner = self.regression.fit(x, y, start)
        return lambda z: inner(torch.clamp(z, lower, upper))


BUMPS, STIFF = (
    Clipped(LinearRegression(RadialBasis(CENTRES, WIDTH), ridge)) for ridge in (RIDGE, STIFF_RIDGE)
)


@dataclasses.dataclass(frozen=True)
class Law:
    """``N(mean, deviation^2)``, of X_0."""

    mean: float = 0.0
    deviation: float = 1.0

    @property
    def kl(self) -> float:
        """From N(0, 1)."""
        return (self.mean**2 + self.deviation**2 - 1) / 2 - math.log(self.deviation)

    def improved(
        self, slope: Callable[[Tensor], Tensor], z: Tensor, paired: Tensor, rate: float = 1.0
    ) -> Law:
        """One Newton step of ``E V_0 - KL`` with the costate at ``mean + deviation z`` and the bend
        estimated from ``paired``.
        """
        with torch.no_grad():
            costate = slope(self.mean + self.deviation * z)
        bend = min(float((costate * paired).mean()) / self.deviation, LARGEST_BEND)
        mean = self.mean + rate * (float(costate.mean()) - self.mean) / (1 - bend)
        return Law(mean, self.deviation + rate * ((1 - bend) ** -0.5 - self.deviation))


@dataclasses.dataclass(frozen=True)
class Judge:
    """The exact optimum at a temperature, and what a policy and a law of X_0 achieve beside it."""

    temp: float
    truth: Quadrature
    start: Start
    optimal: ChainLaw

    @classmethod
    def at(cls, temp: float) -> Judge:
        """The optimum over controls and Gaussian starts."""
        truth = Quadrature(problem_at(temp, Law()))
        start = best_start(lambda x: truth.value(0, x.reshape(-1, 1)))
        return cls(
            temp,
            truth,
            start,
            chain_law(
                problem_at(temp, Law(start.mean, start.deviation)), truth.policy, truth.grids
            ),
        )

    def measure(self, policy: Policy, law: Law) -> dict[Metric, float]:
        """Every metric, in the order of records.

        Costs are infinite where a tenth of the mass leaves the grids.
        """
        problem, grids = problem_at(self.temp, law), self.truth.grids
        reached, last = chain_law(problem, policy, grids), grids[-1].nodes
        with torch.no_grad():
            controls = [policy(k, grid.nodes) for k, grid in enumerate(grids[:-1])]
            price = sum(reached.expect(k, v.square().sum(1)) / 2 for k, v in enumerate(controls))
            wrong = [
                (v - self.truth.control(k, grids[k].nodes)).square().sum(1)
                for k, v in enumerate(controls)
            ]
        cost = price - reached.expect(problem.steps, problem.reward(last)) + law.kl
        cost, nodes = cost if reached.lost < 0.1 else math.inf, last[:, 0]
        return {
            Metric.COST: cost,
            Metric.REGRET: cost / self.start.gaussian_cost - 1,
            Metric.W1: (
                wasserstein1(nodes, nodes, reached.masses[-1], self.optimal.masses[-1])
                if cost < math.inf
                else math.inf
            ),
            Metric.CONTROL_L2: sum(self.optimal.expect(k, each) for k, each in enumerate(wrong)),
        }


DIVERGED: dict[Metric, float] = dict.fromkeys(
    [Metric.COST, Metric.REGRET, Metric.W1, Metric.CONTROL_L2], math.inf
)


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A policy, its start, and the fitted costates to go on from.

    Attributes:
        policy: the policy.
        law: of X_0.
        costate: ``(k, x) -> V_k'(x)``.
        fitted: ``(k, x) -> (V_k', E[a_{k+1} | x_k])``, shape (batch, 2).
        evaluations: of the mean map.
    """

    policy: Policy
    law: Law
    costate: CostateField
    fitted: StepField | None = None
    evaluations: int = 0


def problem_at(temp: float, law: Law) -> ControlProblem:
    """The chain started at a law."""
    return benchmark(
        ProblemName.BSDE_MIXTURE, temp=temp, start_mean=law.mean, start_deviation=law.deviation
    ).problem


def untrained(temp: float) -> Learnt:
    """The pre-trained model."""
    return Learnt(Uncontrolled(problem_at(temp, Law()).reference), Law(), zero_field)


Estimator = Callable[[CostateSource, int], CostateEstimator]
"""``(source of a costate field, seed) -> estimator``."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A method.

    Attributes:
        name: as reports show it.
        kind: what its samples estimate.
        function_class: "bumps" or "network".
        learn: ``(temp, seed, where to begin) -> what was learnt``.
        seeds: repetitions at full scale.
        chain: whether every temperature begins where the last ended.
        published: its column in the publication.
        gradient_steps: of its network at each temperature.
    """

    name: str
    kind: str
    function_class: str
    learn: Callable[[float, int, Learnt], Learnt]
    seeds: int = SEEDS
    chain: bool = False
    published: str | None = None
    gradient_steps: int = 0


@dataclasses.dataclass(frozen=True)
class PolicyIteration:
    """Rounds of fresh paths, costates, their regression, and the policy and start that these imply.

    Attributes:
        estimator: makes the costates, with the field of the round before where it wants one.
        regression: ``seed -> regression`` of (costate, following costate) on the state.
        rounds: number of rounds.
        paths: paths of a round.
        damped: rounds at the beginning that go half the way.
        published_lag: whether the control follows the costate of its own step.
        stale_noise: whether the start's deviation sees fresh noise in place of the paths'.
    """

    estimator: Estimator
    regression: Callable[[int], FieldRegression]
    rounds: int = ROUNDS
    paths: int = PATHS
    damped: int = 0
    published_lag: bool = False
    stale_noise: bool = False

    def __call__(self, temp: float, seed: int, begin: Learnt) -> Learnt:
        *_, last = self.iterates(temp, seed, begin)
        return last

    def iterates(self, temp: float, seed: int, begin: Learnt) -> Iterator[Learnt]:
        """What every round has learnt."""
        generator, regression = torch.Generator().manual_seed(seed), self.regression(seed)
        learnt = begin
        for index in range(self.rounds):
            learnt = self._round(
                temp,
                seed + index,
                learnt,
                regression,
                generator,
                DAMPING if index < self.damped else 1.0,
            )
            yield learnt

    def _round(
        self,
        temp: float,
        seed: int,
        now: Learnt,
        regression: FieldRegression,
        generator: torch.Generator,
        rate: float,
    ) -> Learnt:
        problem = problem_at(temp, now.law)
        with torch.no_grad():
            noise = Noise.sample(problem.reference, self.paths, generator)
            path = rollout(problem.reference, now.policy, noise)
            estimator = self.estimator(Given(now.costate), seed)
            costates = estimator.costates(problem, now.policy, path)
            both = _both(problem, now.policy, costates, rate)
        fitted = regression.fit(both, now.fitted)

        def costate(k, x: States) -> States:
            return fitted(k, x)[:, :1]

        column = slice(0, 1) if self.published_lag else slice(1, 2)
        policy = FunctionPolicy(
            lambda k, x: problem.reference.diffusion.transpose(k, x, fitted(k, x)[:, column])
        )
        z = noise.initial
        paired = torch.randn(z.shape, generator=generator, dtype=z.dtype) if self.stale_noise else z
        law = now.law.improved(lambda x: costate(0, x), z, paired, rate)
        return Learnt(
            policy, law, costate, fitted, now.evaluations + 2 * problem.steps * self.paths
        )


def _both(problem: ControlProblem, policy: Policy, costates: Costates, rate: float) -> Costates:
    """Costates beside the samples of ``E[a_{k+1} | x_k]``, these moved from what the policy implies
    by a rate.
    """
    following = costates.values[1:] if costates.following is None else costates.following
    if rate < 1:
        lift = problem.reference.diffusion.solve_transpose
        implied = torch.stack(
            [lift(k, x, policy(k, x)) for k, x in enumerate(costates.states[:-1])]
        )
        following = rate * following + (1 - rate) * implied
    last = torch.zeros_like(following[:1])
    return Costates(costates.states, torch.cat([costates.values, torch.cat([following, last])], 2))


def fitted_bellman(temp: float, seed: int, begin: Learnt, sweeps: int = SWEEPS) -> Learnt:
    """The Bellman recursion fitted on bumps, at the states of the sweep before; X_0 comes from N(0,
    1) throughout.

    Means are taken by a Gauss-Hermite rule, so that labels have no noise.
    """
    problem, generator = problem_at(temp, Law()), torch.Generator().manual_seed(seed)
    policy, field, spent = begin.policy, Fitted(), 0
    with torch.no_grad():
        for _ in range(sweeps):
            path = rollout(
                problem.reference, policy, Noise.sample(problem.reference, SWEEP_PATHS, generator)
            )
            policy, field = _sweep(problem, path.states)
            spent += 3 * problem.steps * SWEEP_PATHS
    return Learnt(policy, _best_law(field, seed), field, None, spent)


def _sweep(problem: ControlProblem, states: Tensor) -> tuple[Policy, Fitted]:
    """Controls and costates of every step, backwards; the condition of optimality is solved at each
    state by itself.
    """
    reference, field, controls = problem.reference, Fitted(), {}
    phi, diffusion = with_terminal(problem, field), reference.diffusion
    for k in reversed(range(problem.steps)):
        x = states[k]
        still = x.new_zeros(len(x), *reference.noise_dims)
        v, following = still, torch.zeros_like(x)
        for _ in range(INNER):
            situation = Situation(
                phi=lambda y, k=k: phi(k + 1, y),
                centre=reference.step(k, x, v),
                kick=torch.zeros_like(x),
                push=lambda z, k=k, x=x: diffusion.apply(k, x.repeat(len(z) // len(x), 1), z),
                noise=still,
            )
            following = mean(situation, HERMITE)
            v = diffusion.transpose(k, x, following) / problem.beta[k]
        controls[k] = BUMPS.fit(x, v)
        field.by_step[k] = BUMPS.fit(
            x, Lean().pull(problem, Uncontrolled(reference), k, x, following)
        )
    return StepwisePolicy([controls[k] for k in range(problem.steps)]), field


def sampled_pi_ft(temp: float, seed: int, begin: Learnt) -> Learnt:
    """PI-FT with sampled means and regressions on bumps."""
    *_, last = MonteCarloPIFT(SWEEPS, BUMPS, BUMPS, SWEEP_PATHS, DRAWS, seed).iterations(
        problem_at(temp, Law())
    )
    assert last.value_gradient is not None
    return Learnt(
        last.policy,
        _best_law(last.value_gradient, seed),
        last.value_gradient,
        None,
        last.evaluations,
    )


def _best_law(field: CostateField, seed: int) -> Law:
    """The best Gaussian start for a costate."""
    law, z = Law(), _start_noise(seed)
    for _ in range(ROUNDS):
        law = law.improved(lambda x: field(0, x), z, z)
    return law


def polished(temp: float, seed: int, begin: Learnt) -> Learnt:
    """Policy iteration with the corrected full adjoint from where one sweep of the fitted recursion
    ended.
    """
    return PolicyIteration(_corrected(FullMartingaleAdjoint), _bumps)(
        temp, seed, fitted_bellman(temp, seed, begin, 1)
    )


def _corrected(adjoint: Callable[..., CostateEstimator]) -> Estimator:
    return lambda source, seed: adjoint(Antithetic(source))


def _implied(adjoint: Callable[..., CostateEstimator]) -> Estimator:
    return lambda source, seed: adjoint(Antithetic(FromPolicy()))


def _reversed(published_pairing: bool) -> Estimator:
    def make(source: CostateSource, seed: int) -> CostateEstimator:
        generator = torch.Generator().manual_seed(seed + REVERSED_SEED)
        return ReversedBSDE(source, Reverser(DenoisingScore(STIFF), generator, published_pairing))

    return make


def _lean(source: CostateSource, seed: int) -> CostateEstimator:
    return AdjointMatching()


def _full(source: CostateSource, seed: int) -> CostateEstimator:
    return FullAdjoint()


def _bumps(_: int) -> FieldRegression:
    return PerStep(STIFF)


def _network(huber: bool = False) -> Callable[[int], FieldRegression]:
    loss = published_huber if huber else squared
    return lambda seed: SpaceTimeRegression(
        steps=ROUND_STEPS, batch=BATCH, decay_every=ROUND_STEPS // 4, loss=loss, seed=seed
    )


def _features(name: str, kind: str, estimator: Estimator, seeds: int = SEEDS) -> Contender:
    return Contender(name, kind, "bumps", PolicyIteration(estimator, _bumps, damped=DAMPED), seeds)


def _networks(name: str, kind: str, estimator: Estimator, **more) -> Contender:
    learn = PolicyIteration(estimator, _network())
    return Contender(
        name, kind, "network", learn, NETWORK_SEEDS, gradient_steps=ROUNDS * ROUND_STEPS, **more
    )


def _published(name: str, estimator: Estimator, column: str, chain: bool) -> Contender:
    learn = PolicyIteration(estimator, _network(huber=True), published_lag=True, stale_noise=True)
    steps, shown = ROUNDS * ROUND_STEPS, column if chain else None
    return Contender(name, "biased", "network", learn, NETWORK_SEEDS, chain, shown, steps)


BEST = "fitted Bellman recursion"
CONTENDERS = {
    each.name: each
    for each in (
        Contender(BEST, "fixed-point residual", "bumps", fitted_bellman),
        Contender("PI-FT, sampled", "fixed-point residual", "bumps", sampled_pi_ft),
        Contender(
            "martingale-corrected full adjoint after one sweep",
            "objective gradient",
            "bumps",
            polished,
        ),
        _features(
            "martingale-corrected full adjoint",
            "objective gradient",
            _corrected(FullMartingaleAdjoint),
        ),
        _features(
            "martingale-corrected full adjoint, from the policy",
            "objective gradient",
            _implied(FullMartingaleAdjoint),
            FEW_SEEDS,
        ),
        _features("full adjoint", "objective gradient", _full, FEW_SEEDS),
        _features(
            "martingale-corrected lean adjoint",
            "fixed-point residual",
            _corrected(MartingaleAdjoint),
        ),
        _features("adjoint matching", "fixed-point residual", _lean),
        _networks(
            "martingale-corrected full adjoint, network",
            "objective gradient",
            _corrected(FullMartingaleAdjoint),
        ),
        _networks("adjoint matching, network", "fixed-point residual", _lean),
        _networks("time-reversed BSDE, network", "biased", _reversed(False)),
        _published("adjoint matching, published, cold", _lean, "adjoint_matching", False),
        _published("adjoint matching, published", _lean, "adjoint_matching", True),
        _published("time-reversed BSDE, published", _reversed(True), "tr_bsde", True),
    )
}


def contender_task(contender: str, temps: Sequence[float], seeds: int) -> list[Record]:
    """One method at some temperatures, over independent repetitions; infinite where its samples
    left the region of the fit.
    """
    chosen = CONTENDERS[contender]
    rows: dict[float, list[dict[Metric, float]]] = {temp: [] for temp in temps}
    seconds, evaluations = dict.fromkeys(temps, 0.0), dict.fromkeys(temps, 0)
    for seed in range(seeds):
        learnt = None
        for temp in temps:
            begin = (
                untrained(temp)
                if learnt is None or not chosen.chain
                else dataclasses.replace(learnt, evaluations=0)
            )
            clock = time.perf_counter()
            try:
                learnt = chosen.learn(temp, seed, begin)
            except InvalidProblem:
                learnt = None
            seconds[temp] += (time.perf_counter() - clock) / seeds
            evaluations[temp] = learnt.evaluations if learnt else 0
            rows[temp].append(
                _judge(temp).measure(learnt.policy, learnt.law) if learnt else DIVERGED
            )
    return [
        _record(
            chosen,
            temp,
            metric,
            [row[metric] for row in rows[temp]],
            seconds[temp],
            evaluations[temp],
        )
        for temp in temps
        for metric in rows[temp][0]
    ]


def _record(
    chosen: Contender,
    temp: float,
    metric: Metric,
    values: Sequence[float],
    seconds: float,
    evaluations: int,
) -> Record:
    setting = {
        "temp": temp,
        "function_class": chosen.function_class,
        "warm_start": chosen.chain,
        "gradient_steps": chosen.gradient_steps,
    }
    found, column = (
        torch.tensor(values, dtype=torch.float64),
        {Metric.COST: "{}", Metric.W1: "wasserstein1_{}"}.get(metric),
    )
    published = None
    if chosen.published and column:
        published = MIXTURE_PUBLISHED[column.format(chosen.published)][TEMPS.index(temp)]
    spread = (
        float(found.std() / len(values) ** 0.5)
        if len(values) > 1 and bool(found.isfinite().all())
        else None
    )
    return Record(
        schemas.MIXTURE.name,
        ProblemName.BSDE_MIXTURE,
        metric,
        float(found.mean()),
        setting,
        chosen.name,
        chosen.kind,
        stderr=spread,
        seeds=len(values),
        seconds=seconds,
        evaluations=evaluations,
        published=published,
        optimum=_judge(temp).start.gaussian_cost if metric == Metric.COST else 0.0,
    )


def truth_task(temp: float) -> list[Record]:
    """The optimum, what it loses to a law that is not Gaussian, and what the chain gains on
    continuous time.
    """
    judge = _judge(temp)
    found = benchmark(ProblemName.BSDE_MIXTURE, temp=temp)
    limit = best_start(lambda x: found.continuous.value(0, x.reshape(-1, 1))).gaussian_cost
    index = TEMPS.index(temp)
    return [
        _exact(temp, Metric.OPTIMUM, judge.start.gaussian_cost),
        _exact(temp, Metric.UNRESTRICTED_OPTIMUM, judge.start.unrestricted_cost),
        _exact(
            temp,
            Metric.CONTINUOUS_OPTIMUM,
            limit,
            published=MIXTURE_PUBLISHED["gaussian_initial_law"][index],
        ),
        _exact(temp, Metric.START_MEAN, judge.start.mean),
        _exact(temp, Metric.START_DEVIATION, judge.start.deviation),
    ]


def split_task(temp: float) -> list[Record]:
    """Errors without noise: of the costate of step k in place of k + 1, of an untrained start, and
    of the features.

    Features are fitted to the exact control at the states of the optimal chain.
    """
    judge = _judge(temp)
    truth, best = judge.truth, Law(judge.start.mean, judge.start.deviation)
    reference = truth.problem.reference

    def own_step(k, x: States) -> States:
        return reference.diffusion.transpose(k, x, truth.value_gradient(k, x))

    with torch.no_grad():
        noise = Noise.sample(reference, PATHS, torch.Generator().manual_seed(START_SEED))
        path = rollout(problem_at(temp, best).reference, truth.policy, noise)
    fits = [BUMPS.fit(path.states[k], path.controls[k]) for k in range(reference.steps)]
    variants = {
        "costate of the own step": (FunctionPolicy(own_step), best),
        "start not learned": (truth.policy, Law()),
        "exact control on bumps": (FunctionPolicy(lambda k, x: fits[k](x)), best),
    }
    return [
        _exact(temp, metric, value, name)
        for name, (policy, law) in variants.items()
        for metric, value in judge.measure(policy, law).items()
    ]


@functools.lru_cache(maxsize=len(TEMPS))
def _judge(temp: float) -> Judge:
    return Judge.at(temp)


def _exact(temp: float, metric: Metric, value: float, name: str = "", **more) -> Record:
    return Record(
        schemas.MIXTURE.name,
        ProblemName.BSDE_MIXTURE,
        metric,
        value,
        {"temp": temp},
        name,
        "exact",
        **more,
    )


def _start_noise(seed: int) -> Tensor:
    """Standardised antithetic samples: quadrature would do in one dimension, these do in any."""
    z = torch.randn(
        SWEEP_PATHS,
        1,
        generator=torch.Generator().manual_seed(seed + START_SEED),
        dtype=torch.float64,
    )
    return torch.cat([z, -z]) / z.square().mean().sqrt()


def tasks(quick: bool) -> list[Task]:
    """The optimum and the split at every temperature, and every method; at the quick scale two
    methods at two temperatures.
    """
    temps = QUICK_TEMPS if quick else TEMPS
    found = [Task(f"optimum at {temp:g}", truth_task, {"temp": temp}) for temp in temps]
    found += [
        Task(f"errors without noise at {temp:g}", split_task, {"temp": temp}) for temp in temps
    ]
    for name, each in CONTENDERS.items():
        if quick and name not in (BEST, "adjoint matching"):
            continue
        groups = [list(temps)] if each.chain else [[temp] for temp in temps]
        for group in groups:
            about = name if each.chain else f"{name} at {group[0]:g}"
            seeds = QUICK_SEEDS if quick else each.seeds
            found.append(
                Task(about, contender_task, {"contender": name, "temps": group, "seeds": seeds})
            )
    return found


STUDY = Study(schemas.MIXTURE, tasks)
