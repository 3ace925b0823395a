r"""Costates of a controlled oscillator from N paths: the sweeps of arXiv 2410.04615, with
discretisation and sampling told apart.

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
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.fields import CostateField, CostateSource
from socft.costates.marginal_score import AffineMarginals
from socft.costates.martingale import Antithetic
from socft.costates.regression import CrossFitted, PerStep, Potential, refine
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.path import Noise, rollout
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import MatrixDiffusion, Step, affine_coefficients, by_step
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.sde import (
    EulerMaruyama,
    Exponential,
    Integrator,
    LinearSDE,
    Strang,
    Taylor,
    gramian,
    propagator,
)
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.affine_policy import evaluate_affine
from socft.truth.quadratic import QuadraticValue, affine_of, running_of
from toy.pipelines import PULLED, REVERSED, ROLLOUT
from toy.problems import Benchmark, benchmark
from toy.problems.linear_quadratic import quadratic_cost_benchmark, whole_steps

PATHS = 2000
SEEDS, QUICK_SEEDS = 2, 1
ROUNDS = 60
CONVERGED = 1e-5
"""Largest change of a coefficient between rounds, relative to the largest coefficient, at which
iteration ends.
"""
SETTLED, UNSETTLED = 1e-3, 0.1
"""The same after the last round, beyond which a number is noted to be still changing, and beyond
which there is none.
"""
DIVERGED = 1e6
REVERSED_SEED = 10_000
FOLDS = 2
INTEGRATORS: dict[str, Integrator] = {
    "Euler-Maruyama": EulerMaruyama(),
    "exponential": Exponential(),
    "Strang": Strang(),
    "Taylor": Taylor(),
}
BASE = {"dt": 0.2}
PUBLISHED_HORIZON = 4.0


@dataclasses.dataclass(frozen=True)
class Affine:
    """``phi_k(x) = G_k x + g_k``, k = 0..T; G need not be symmetric."""

    G: Float[Tensor, "steps_plus_1 n n"]
    g: Float[Tensor, "steps_plus_1 n"]

    @classmethod
    def of(cls, field: CostateField, steps: int, n: int) -> Affine:
        """The coefficients of an affine field."""
        return cls(*affine_coefficients(field, steps + 1, n))

    @property
    def field(self) -> CostateField:
        """As a function of step and state."""
        return QuadraticValue(
            self.G, self.g, torch.zeros(len(self.g), dtype=torch.float64)
        ).gradient

    def inner(self, other: Affine) -> Float[Tensor, " steps_plus_1"]:
        """``E phi_k(X) . psi_k(X)``, X of law N(0, I), per step."""
        return (self.G * other.G).sum((1, 2)) + (self.g * other.g).sum(1)

    @property
    def size(self) -> float:
        """The largest coefficient."""
        return max(float(self.G.abs().max()), float(self.g.abs().max()))

    def __sub__(self, other: Affine) -> Affine:
        return Affine(self.G - other.G, self.g - other.g)


@dataclasses.dataclass(frozen=True)
class Case:
    """An oscillator, what is exact there, and how it may be steered.

    Attributes:
        problem: the simulated chain.
        continuous: the costate of continuous time at the times of the chain.
        chain: the costate of the chain's optimum.
        optimum: the chain's optimal policy.
        channel: orthonormal directions of the noise along which it may be steered, shape (m, c).
    """

    problem: ControlProblem
    continuous: Affine
    chain: Affine
    optimum: AffinePolicy
    channel: Float[Tensor, "m c"]


@functools.lru_cache(maxsize=4)
def case(settings: str, integrator: str, everywhere: bool) -> Case:
    """The oscillator of settings in JSON; with noise I in place of that of the control's channel
    where ``everywhere``.
    """
    found = benchmark(
        ProblemName.OSCILLATOR, integrator=INTEGRATORS[integrator], **json.loads(settings)
    )
    steps, (n,) = found.problem.steps, found.problem.reference.dims
    continuous = Affine.of(functools.partial(_at, found.continuous.gradient), steps, n)
    chain = Affine.of(found.truth.value_gradient, steps, n)
    problem, channel = (
        found.problem,
        torch.eye(*found.problem.reference.noise_dims, dtype=torch.float64),
    )
    if everywhere:
        problem, channel = _everywhere(found)
    return Case(problem, continuous, chain, steering(problem, chain, channel), channel)


def _everywhere(found: Benchmark) -> tuple[ControlProblem, Tensor]:
    """The same problem with noise I, steered along the control's channel only; costates and optimal
    controls are the same.
    """
    sde = found.sde
    assert isinstance(sde, LinearSDE)
    size = torch.linalg.matrix_norm(sde.noise, 2)
    eye = torch.eye(len(sde.noise), dtype=torch.float64)
    reference = EulerMaruyama().chain(
        LinearSDE(sde.A, size * eye, sde.horizon), found.problem.steps
    )
    problem = ControlProblem(
        reference, found.problem.reward, found.problem.beta, found.problem.running_cost
    )
    return problem, sde.noise / size


def steering(problem: ControlProblem, costate: Affine, channel: Tensor) -> AffinePolicy:
    """``v_k = B_k' E[phi_{k+1}(x_{k+1}) | x_k] / beta_k`` under v itself, along the channel."""
    reference, (B, beta) = affine_of(problem), _noise_and_beta(problem)
    steer, after = B @ channel, costate.G[1:]
    inner = beta * torch.eye(channel.shape[1], dtype=torch.float64) - steer.mT @ after @ steer
    pushed = after @ torch.cat([reference.transition, reference.offset.unsqueeze(2)], 2)
    pushed[:, :, -1] += costate.g[1:]
    v = channel @ torch.linalg.solve(inner, steer.mT @ pushed)
    return AffinePolicy(v[:, :, :-1], v[:, :, -1])


def published_steering(problem: ControlProblem, costate: Affine, channel: Tensor) -> AffinePolicy:
    """``v_k = B_k' phi_k(x_k) / beta_k`` along the channel."""
    B, beta = _noise_and_beta(problem)
    pull = channel @ (B @ channel).mT / beta
    return AffinePolicy(pull @ costate.G[:-1], (pull @ costate.g[:-1].unsqueeze(2)).squeeze(2))


Rule = Callable[[ControlProblem, Affine, Tensor], AffinePolicy]
RULES: dict[str, Rule | None] = {
    "given": None,
    "iterated": steering,
    "published": published_steering,
}


def _noise_and_beta(problem: ControlProblem) -> tuple[Tensor, Tensor]:
    diffusion = affine_of(problem).diffusion
    assert isinstance(diffusion, MatrixDiffusion)
    return diffusion.matrices, problem.beta[:, None, None]


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round of a scheme is made from: the same noise in every round, so that iteration has a
    fixed point.
    """

    problem: ControlProblem
    policy: AffinePolicy
    noise: Noise
    seed: int
    previous: Affine

    def refined(self, sample, fit, folds: int = 1) -> CostateField:
        """One round of `socft.costates.regression.refine`."""
        sampling = CrossFitted(self.noise, folds)
        return next(
            refine(self.problem, self.policy, sample, fit, sampling, 1, self.previous.field)
        )

    @property
    def reverser(self) -> Reverser:
        """With exact marginal scores."""
        return Reverser(AffineMarginals(), torch.Generator().manual_seed(self.seed + REVERSED_SEED))


def _linear(degree: int = 1) -> LinearRegression:
    return LinearRegression(Polynomial(degree))


def _lean(at: Round) -> CostateField:
    return at.refined(lambda _: AdjointMatching().costates, PerStep(_linear()).fit)


def _martingale(at: Round) -> CostateField:
    def sample(source: CostateSource):
        return MartingaleAdjoint(Antithetic(source)).costates

    return at.refined(sample, PerStep(_linear()).fit, FOLDS)


def _reversed_costate(at: Round) -> CostateField:
    return at.refined(
        lambda source: ReversedBSDE(source, at.reverser).costates, PerStep(_linear()).fit
    )


def _reversed_value(at: Round) -> CostateField:
    return at.refined(
        lambda source: ReversedValues(source, at.reverser).values,
        Potential(PerStep(_linear(2))).fit,
    )


def _least_squares(
    estimator: LeastSquaresCostate | LeastSquaresValue,
) -> Callable[[Round], CostateField]:
    def of(at: Round) -> CostateField:
        with torch.no_grad():
            path = rollout(at.problem.reference, at.policy, at.noise)
        return estimator.fit(at.problem, at.policy, path)

    return of


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A way to learn the costate.

    Attributes:
        kind: whether what is regressed has the chain's own costate as its mean.
        round: one round.
        work: evaluations of the mean map or the policy of a round, per step and path; a derivative
            counts as two.
        published: its name in the published table.
    """

    kind: str
    round: Callable[[Round], CostateField]
    work: int
    published: str | None = None


SCHEMES = {
    "least-squares costate": Scheme(
        "unbiased",
        _least_squares(LeastSquaresCostate(_linear())),
        ROLLOUT + PULLED,
        "least_squares_costate",
    ),
    "least-squares value": Scheme(
        "unbiased", _least_squares(LeastSquaresValue(_linear(2))), ROLLOUT
    ),
    "time-reversed value": Scheme(
        "biased", _reversed_value, ROLLOUT + REVERSED - PULLED, "time_reversed_value"
    ),
    "time-reversed costate": Scheme(
        "biased", _reversed_costate, ROLLOUT + REVERSED, "time_reversed_costate"
    ),
    "martingale-corrected adjoint": Scheme("unbiased", _martingale, ROLLOUT + PULLED),
    "lean adjoint": Scheme("unbiased", _lean, ROLLOUT + PULLED),
}


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A costate, the rounds it took, and why there is none."""

    costate: Affine | None
    rounds: int
    note: str = ""


def learn(
    where: Case, scheme: Scheme, rule: Rule | None, paths: int, rounds: int, seed: int
) -> Learnt:
    """Iterate a scheme, and the policy where there is a rule for it, until nothing changes or
    ``rounds`` have passed.
    """
    problem, policy = where.problem, where.optimum
    if rule is not None:
        policy = AffinePolicy(
            torch.zeros_like(policy.gain.detach()), torch.zeros_like(policy.offset.detach())
        )
    (n,), noise = (
        problem.reference.dims,
        Noise.sample(problem.reference, paths, torch.Generator().manual_seed(seed)),
    )
    found, change, size = (
        Affine(torch.zeros_like(where.chain.G), torch.zeros_like(where.chain.g)),
        math.inf,
        1.0,
    )
    for index in range(1, rounds + 1):
        try:
            field = scheme.round(Round(problem, policy, noise, seed, found))
            after = Affine.of(field, problem.steps, n)
            change, size = (after - found).size, after.size
            if not size < DIVERGED:
                return Learnt(
                    None, index, f"diverged: a coefficient of {size:.3g} after round {index}"
                )
            found, policy = after, policy if rule is None else rule(problem, after, where.channel)
        except (InvalidProblem, RuntimeError) as error:  # a singular solve is a RuntimeError
            return Learnt(None, index, f"diverged in round {index}: {error}")
        if change <= CONVERGED * size:
            return Learnt(found, index)
    note = (
        f"still changing by {change:.2g} of {size:.2g} in the last round"
        if change > SETTLED * size
        else ""
    )
    return Learnt(None if change > UNSETTLED * size else found, rounds, note)


def distances(where: Case, found: Affine) -> dict[Metric, float]:
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


METRICS = (
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
        case(json.dumps(settings), integrator, everywhere),
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
    seconds, records = (time.perf_counter() - start) / seeds, []
    evaluations = round(
        chosen.work * where.problem.steps * paths * sum(each.rounds for each in found) / seeds
    )
    for metric in METRICS:
        values = torch.tensor([row[metric] for row in rows], dtype=torch.float64)
        known = (
            published(full, chosen, axis, policy)
            if metric == Metric.MSE and integrator == "Euler-Maruyama"
            else None
        )
        records.append(
            Record(
                schemas.LQ_SWEEPS.name,
                ProblemName.OSCILLATOR,
                metric,
                float(values.mean()),
                setting,
                scheme,
                chosen.kind,
                stderr=float(values.std() / seeds**0.5) if seeds > 1 else None,
                seeds=seeds,
                seconds=seconds,
                evaluations=evaluations,
                published=known,
            )
        )
    return records


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


@dataclasses.dataclass(frozen=True)
class ReversedLimit:
    """The time-reversed costate of infinitely many paths.

    Attributes:
        costate: the fixed point of the rounds; None where they do not settle.
        offset_factor: by how much a round multiplies an offset, in the end.
    """

    costate: Affine | None
    offset_factor: float


def reversed_limit(where: Case, rule: Rule, rounds: int) -> ReversedLimit:
    """The fixed point of rounds with exact scores and moments (derived here), from Euler's explicit
    solution; see the module.

    From zero, the first policies are so poor that at long horizons the moments of their paths are
    singular in double precision (condition 1e152 for dt = 0.05 and T = 8), and the rounds never
    come back to the fixed point that they have in exact arithmetic.
    """
    found = Affine(explicit_riccati(where).G, torch.ones_like(where.chain.g))
    change, size, factor = math.inf, 1.0, math.inf
    for _ in range(rounds):
        before, previous = found, factor
        after = _reversed_round(where.problem, rule(where.problem, before, where.channel), before)
        change, size, factor = (
            float((after.G - before.G).abs().max()),
            float(after.G.abs().max()),
            float(after.g.norm()),
        )
        found = Affine(after.G, after.g / factor if factor > 0 else after.g)
        if change <= LIMIT_CONVERGED * size and abs(factor - previous) <= CONVERGED:
            break
    settled = change <= CONVERGED * size
    return ReversedLimit(Affine(found.G, torch.zeros_like(found.g)) if settled else None, factor)


def _reversed_round(problem: ControlProblem, policy: AffinePolicy, before: Affine) -> Affine:
    """Least squares of Y on (X, 1) with their exact second moments; linear in the offsets, which no
    gain depends on.
    """
    reference, (F, _), (B, _), steps = (
        affine_of(problem),
        running_of(problem),
        _noise_and_beta(problem),
        problem.steps,
    )
    n = reference.dims[0]
    eye, unit = torch.eye(n, dtype=torch.float64), torch.eye(n + 1, dtype=torch.float64)
    closed, spread = unit.repeat(steps, 1, 1), torch.zeros(steps, n + 1, n + 1, dtype=torch.float64)
    closed[:, :n] = torch.cat(
        [reference.transition + B @ policy.gain.detach(), B @ policy.offset.detach().unsqueeze(2)],
        2,
    )
    spread[:, :n, :n] = B @ B.mT
    start = torch.block_diag(reference.initial_factor @ reference.initial_factor.mT, unit[n:, n:])
    forward = [start]
    for k in range(steps):
        forward.append(closed[k] @ forward[-1] @ closed[k].mT + spread[k])
    end = (problem.reward.gradient(eye) - problem.reward.gradient(0 * eye)).mT
    fits, after = [torch.nn.functional.pad(end, (0, 1))], forward[-1]
    for k in reversed(range(steps)):
        back = 2 * unit - closed[k] - spread[k] @ torch.linalg.pinv(forward[k + 1], hermitian=True)
        here = back @ after @ back.mT + spread[k]
        seen = after @ back.mT @ torch.linalg.pinv(here, hermitian=True)
        rest = reference.transition[k].mT @ fits[-1] + before.G[k + 1] @ (closed[k] - 2 * unit)[:n]
        if F is not None:
            rest[:, :n] -= F[k]
        fits.append(torch.nn.functional.pad(before.G[k + 1], (0, 1)) + rest @ seen)
        after = here
    found = torch.stack(fits[::-1])
    return Affine(found[:, :, :n].contiguous(), found[:, :, n].contiguous())


def forward_limit(where: Case) -> Affine:
    """The costate of forward methods with the published index, for infinitely many paths."""
    problem, (B, beta), eye = (
        where.problem,
        _noise_and_beta(where.problem),
        torch.eye(*where.problem.reference.dims).double(),
    )
    reference, (F, _), G = affine_of(problem), running_of(problem), [where.chain.G[-1]]
    for k in reversed(range(problem.steps)):
        pulled = reference.transition[k].mT @ G[-1]
        steer = B[k] @ where.channel @ (B[k] @ where.channel).mT / beta[k]
        cost = 0 if F is None else F[k]
        G.append(torch.linalg.solve(eye - pulled @ steer, pulled @ reference.transition[k] - cost))
    return Affine(torch.stack(G[::-1]), where.chain.g)


def explicit_riccati(where: Case) -> Affine:
    """Euler's explicit method backwards on the continuous Riccati equation, with the coefficients
    of an Euler-Maruyama chain.
    """
    problem, (B, beta), eye = (
        where.problem,
        _noise_and_beta(where.problem),
        torch.eye(*where.problem.reference.dims).double(),
    )
    reference, (F, _), P = affine_of(problem), running_of(problem), [where.chain.G[-1]]
    for k in reversed(range(problem.steps)):
        drift, cost = reference.transition[k] - eye, 0 if F is None else F[k]
        steer = B[k] @ where.channel @ (B[k] @ where.channel).mT / beta[k]
        P.append(P[-1] + drift.mT @ P[-1] + P[-1] @ drift + P[-1] @ steer @ P[-1] - cost)
    return Affine(torch.stack(P[::-1]), where.chain.g)


LIMIT_ROUNDS = 200
LIMIT_CONVERGED = 1e-12
LIMIT_NAMES = {
    "forward, published index": "least-squares costate",
    "time-reversed costate": "time-reversed costate",
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
        case(json.dumps(settings), "Euler-Maruyama", True),
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
        "chain's optimum": where.chain,
        "forward, published index": forward_limit(where),
        "time-reversed costate": reversed_costate.costate,
        "explicit Euler for Riccati": explicit_riccati(where),
    }
    factor = reversed_costate.offset_factor
    records = [
        Record(
            schemas.LQ_SWEEPS.name,
            ProblemName.OSCILLATOR,
            Metric.LIMIT_OFFSET_FACTOR,
            factor,
            setting,
            "time-reversed costate",
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


def _at(gradient: Callable[[int, Tensor], Tensor], k: Step, x: Tensor) -> Tensor:
    return by_step(k, x, gradient)


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
            gap = Affine.of(found.truth.value_gradient, 0, len(eye)) - Affine.of(
                functools.partial(_at, exact), 0, len(eye)
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
class Axis:
    """Settings along which one thing varies.

    Attributes:
        name: what varies.
        varied: settings of the benchmark, and ``paths``.
        policies: how the policy is had.
        integrators: how the SDE is simulated.
        everywhere: whether the noise is I, as published.
        fewer: schemes left out.
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
    Axis("dt", _each("dt", *STEP_SIZES), ("given", "published"), everywhere=True),
    Axis("exponential", _each("dt", *STEP_SIZES[:2]), integrators=("exponential",)),
    Axis("iteration", _each("dt", 0.2), ("iterated",)),
    Axis("base", _each("paths", PATHS)),
    Axis("paths", _each("paths", 100, 8000)),
    Axis("horizon", _each("horizon", 1.0, 2.0, 8.0)),
    Axis("noise", _each("noise", 0.1, 10.0)),
    Axis("damping", _each("damping", 2.0, -0.5, -1.0)),
    Axis("dimension", _each("d", 4, 8)),
)
QUICK_AXES = (
    Axis("dt", _each("dt", 0.2, 0.4), ("given", "published"), everywhere=True),
    Axis("exponential", _each("dt", 0.2), integrators=("exponential",)),
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
