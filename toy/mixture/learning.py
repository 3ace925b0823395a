"""Policies from regressions: policy iteration on fresh paths, the fitted Bellman recursion, and PI-
FT with sampled means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from socft.costates.adjoint import LeanRecursion
from socft.costates.base import Costates
from socft.costates.fields import (
    CostateField,
    CostateSource,
    GivenCostate,
    with_terminal,
    zero_field,
)
from socft.costates.martingale import CorrectionStep, mean
from socft.costates.regression import FieldRegression, StepField
from socft.estimators.base import CostateEstimator
from socft.path import Noise, rollout
from socft.pi_ft import MonteCarloPIFT
from socft.policy import FunctionPolicy, Policy, StepwisePolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import States
from socft.regression.features import RadialBasis
from socft.regression.functions import Field, LinearRegression, Regression
from toy.learners import StepwiseFits
from toy.mixture.evaluation import InitialDistribution, problem_at

CENTRES, WIDTH = torch.linspace(-7, 7, 29, dtype=torch.float64)[:, None], 0.5
RIDGE, STIFF_RIDGE = 1e-8, 1e-4
"""For samples with little noise, and for costates of single paths, whose fits are
differentiated.
"""
OUTSIDE = 0.002
"""Share of the samples beyond either end of a clipped fit."""
PATHS, ROUNDS = 2000, 8
DAMPED, DAMPING = 2, 0.5
"""The first rounds of a regression solved exactly go half the way: the first policy wants too
much.
"""
SWEEPS, SWEEP_PATHS, DRAWS = 2, 2048, 8
INNER, HERMITE = 4, 8
REVERSED_SEED, START_SEED = 10_000, 20_000


@dataclasses.dataclass(frozen=True)
class ClippedRegression(Regression):
    """A regression that continues as a constant beyond all but a few of its samples, where features
    have nothing to say.
    """

    regression: Regression

    def smallest_sample(self, n: int) -> int:
        return self.regression.smallest_sample(n)

    def fit(self, x: Tensor, y: Tensor, start: Field | None = None) -> Field:
        lower, upper = torch.quantile(
            x, torch.tensor([OUTSIDE, 1 - OUTSIDE], dtype=torch.float64).to(x), 0
        )
        inner = self.regression.fit(x, y, start)
        return lambda z: inner(torch.clamp(z, lower, upper))


BUMPS, STIFF = (
    ClippedRegression(LinearRegression(RadialBasis(CENTRES, WIDTH), ridge))
    for ridge in (RIDGE, STIFF_RIDGE)
)


@dataclasses.dataclass(frozen=True)
class PolicyFit:
    """A policy, its start, and the fitted costates to go on from.

    Attributes:
        policy: the policy.
        law: of X_0.
        costate: ``(k, x) -> V_k'(x)``.
        fitted: ``(k, x) -> (V_k', E[a_{k+1} | x_k])``, shape (batch, 2).
        evaluations: of the mean map.
    """

    policy: Policy
    law: InitialDistribution
    costate: CostateField
    fitted: StepField | None = None
    evaluations: int = 0


def pretrained_model(temp: float) -> PolicyFit:
    """The pre-trained model."""
    return PolicyFit(
        Uncontrolled(problem_at(temp, InitialDistribution()).reference),
        InitialDistribution(),
        zero_field,
    )


EstimatorFactory = Callable[[CostateSource, int], CostateEstimator]
"""``(source of a costate field, seed) -> estimator``."""


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

    estimator: EstimatorFactory
    regression: Callable[[int], FieldRegression]
    rounds: int = ROUNDS
    paths: int = PATHS
    damped: int = 0
    published_lag: bool = False
    stale_noise: bool = False

    def __call__(self, temp: float, seed: int, begin: PolicyFit) -> PolicyFit:
        *_, last = self.iterates(temp, seed, begin)
        return last

    def iterates(self, temp: float, seed: int, begin: PolicyFit) -> Iterator[PolicyFit]:
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
        now: PolicyFit,
        regression: FieldRegression,
        generator: torch.Generator,
        rate: float,
    ) -> PolicyFit:
        problem = problem_at(temp, now.law)
        with torch.no_grad():
            noise = Noise.sample(problem.reference, self.paths, generator)
            path = rollout(problem.reference, now.policy, noise)
            estimator = self.estimator(GivenCostate(now.costate), seed)
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
        return PolicyFit(
            policy, law, costate, fitted, now.evaluations + 2 * problem.steps * self.paths
        )


def _both(problem: ControlProblem, policy: Policy, costates: Costates, rate: float) -> Costates:
    """Costates beside the samples of ``E[a_{k+1} | x_k]``, these moved from what the policy implies
    by a rate.
    """
    following = costates.values[1:] if costates.next_costate is None else costates.next_costate
    if rate < 1:
        lift = problem.reference.diffusion.solve_transpose
        implied = torch.stack(
            [lift(k, x, policy(k, x)) for k, x in enumerate(costates.states[:-1])]
        )
        following = rate * following + (1 - rate) * implied
    last = torch.zeros_like(following[:1])
    return Costates(costates.states, torch.cat([costates.values, torch.cat([following, last])], 2))


def fitted_bellman(temp: float, seed: int, begin: PolicyFit, sweeps: int = SWEEPS) -> PolicyFit:
    """The Bellman recursion fitted on bumps, at the states of the sweep before; X_0 comes from N(0,
    1) throughout.

    Means are taken by a Gauss-Hermite rule, so that labels have no noise.
    """
    problem, generator = (
        problem_at(temp, InitialDistribution()),
        torch.Generator().manual_seed(seed),
    )
    policy, field, spent = begin.policy, StepwiseFits(), 0
    with torch.no_grad():
        for _ in range(sweeps):
            path = rollout(
                problem.reference, policy, Noise.sample(problem.reference, SWEEP_PATHS, generator)
            )
            policy, field = _sweep(problem, path.states)
            spent += 3 * problem.steps * SWEEP_PATHS
    return PolicyFit(policy, _best_law(field, seed), field, None, spent)


def _sweep(problem: ControlProblem, states: Tensor) -> tuple[Policy, StepwiseFits]:
    """Controls and costates of every step, backwards; the condition of optimality is solved at each
    state by itself.
    """
    reference, field, controls = problem.reference, StepwiseFits(), {}
    phi, diffusion = with_terminal(problem, field), reference.diffusion
    for k in reversed(range(problem.steps)):
        x = states[k]
        still = x.new_zeros(len(x), *reference.noise_dims)
        v, following = still, torch.zeros_like(x)
        for _ in range(INNER):
            moved = reference.step(k, x, v)
            at = CorrectionStep(reference, k, x, moved, still, lambda y, k=k: phi(k + 1, y))
            following = mean(at, HERMITE)
            v = diffusion.transpose(k, x, following) / problem.beta[k]
        controls[k] = BUMPS.fit(x, v)
        field.by_step[k] = BUMPS.fit(
            x, LeanRecursion().vjp(problem, Uncontrolled(reference), k, x, following)
        )
    return StepwisePolicy([controls[k] for k in range(problem.steps)]), field


def sampled_pi_ft(temp: float, seed: int, begin: PolicyFit) -> PolicyFit:
    """PI-FT with sampled means and regressions on bumps."""
    *_, last = MonteCarloPIFT(SWEEPS, BUMPS, BUMPS, SWEEP_PATHS, DRAWS, seed).iterations(
        problem_at(temp, InitialDistribution())
    )
    assert last.value_gradient is not None
    return PolicyFit(
        last.policy,
        _best_law(last.value_gradient, seed),
        last.value_gradient,
        None,
        last.evaluations,
    )


def _best_law(field: CostateField, seed: int) -> InitialDistribution:
    """The best Gaussian start for a costate."""
    law, z = InitialDistribution(), _start_noise(seed)
    for _ in range(ROUNDS):
        law = law.improved(lambda x: field(0, x), z, z)
    return law


def _start_noise(seed: int) -> Tensor:
    """Standardised antithetic samples: quadrature would do in one dimension, these do in any."""
    z = torch.randn(
        SWEEP_PATHS,
        1,
        generator=torch.Generator().manual_seed(seed + START_SEED),
        dtype=torch.float64,
    )
    return torch.cat([z, -z]) / z.square().mean().sqrt()
