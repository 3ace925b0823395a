"""Instances of the claims: constants against brute force, solutions against finer and independent
ones, records rebuilt.
"""

from __future__ import annotations

import itertools
import json

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.checks import InvalidProblem
from socft.truth.grid import Grid
from socft.truth.quadrature import Quadrature
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, rebuild
from verify.support.rewards import SmoothMaximum, build_reward
from verify.support.scores import MixtureScore, TanhScore
from verify.support.strategies import (
    Sine,
    Softplus,
    affine_scores,
    any_scores,
    bounded_rewards,
    gaussian_scores,
    instances,
    line_instances,
    numbers,
    quadratic_instances,
    rotated_instances,
    tanh_scores,
)
from verify.support.suprema import ACCURACY

CHEAP = hypothesis.settings(
    max_examples=40, suppress_health_check=[HealthCheck.too_slow], phases=[Phase.generate]
)
SOLVED = hypothesis.settings(CHEAP, max_examples=8)
LINE = torch.linspace(-8, 8, 60001, dtype=torch.float64).sinh()[
    :, None
]  # unequal variances have their extremes far out
SAMPLED = 1e-4
"""A supremum over `LINE` falls short of the true one by (spacing)^2 / 8 times a second derivative;
far out the spacing is 0.02.
"""
BETWEEN_POINTS = 1e-4
"""The same for the suprema of a solution, which are taken over four points per cell."""
ROUNDING = 1e-9

TWO_FACTORS = ProductInstance(
    levels=(0.3, 0.5, 0.7, 0.95),
    lam=(0.6, 0.5, 0.4),
    factors=(
        Factor(MixtureScore((0.4, 0.6), (-1.0, 1.2), (0.5, 0.8)), Sine(1.0, 1.5)),
        Factor(TanhScore(0.8, 0.4, 1.5, 0.2), SmoothMaximum((-1.0, 1.0), (0.0, 0.3), 0.8)),
    ),
    size=5,
    rotation=3,
)


def derivatives(function, x: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivatives of a map of lines."""
    y = x.clone().requires_grad_(True)
    first = torch.autograd.grad(function(y).sum(), y, create_graph=True)[0]
    if not first.requires_grad:
        return first, torch.zeros_like(first)
    return first.detach(), torch.autograd.grad(first.sum(), y)[0]


@CHEAP
@given(instances(), st.integers(0, 11))
def test_score_constants_are_the_suprema_of_the_derivatives(instance, step):
    k = step % instance.steps
    L0, L1 = [], []
    for factor in instance.factors:
        function = factor.score.function(instance.schedule)
        first, second = derivatives(lambda y, f=function: f(k, y), LINE)
        L0.append(float(first.abs().max()))
        L1.append(float(second.abs().max()))
    assert max(L0) == pytest.approx(float(instance.chain.score_L0[k]), rel=SAMPLED, abs=SAMPLED)
    assert max(L1) == pytest.approx(float(instance.chain.score_L1[k]), rel=SAMPLED, abs=SAMPLED)


@CHEAP
@given(
    line_instances(scores=st.one_of(affine_scores(), gaussian_scores(), tanh_scores())),
    st.integers(0, 11),
)
def test_mean_map_constants_are_exact_for_signed_scores(instance, step):
    k = step % instance.steps
    reference = instance.problem(1.0).reference
    slope, _ = derivatives(lambda y: reference.mean(k, y), LINE)
    assert float(slope.abs().max()) == pytest.approx(
        float(instance.mean_L0[k]), rel=SAMPLED, abs=SAMPLED
    )


@CHEAP
@given(rotated_instances(dims=(2, 3)), st.integers(0, 11), st.integers(0, 99))
def test_rotated_problem_is_the_sum_of_its_lines(instance, step, seed):
    """Mean and reward in d dimensions from one-dimensional ones in rotated coordinates; no
    direction exceeds the constants.
    """
    k, basis, count = step % instance.steps, instance.basis, len(instance.factors)
    problem = instance.problem(1.0)
    x = torch.randn(
        50, instance.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    z = (x @ basis).split(1, dim=1)
    lines = [
        ProductInstance(
            levels=instance.levels, lam=instance.lam, posterior=instance.posterior, factors=(f,)
        )
        for f in instance.factors
    ]
    means = [lines[i % count].problem(1.0).reference.mean(k, z[i]) for i in range(instance.dim)]
    rewards = [build_reward(instance.factors[i % count].reward)(z[i]) for i in range(instance.dim)]
    assert torch.allclose(
        problem.reference.mean(k, x), torch.cat(means, 1) @ basis.T, atol=ROUNDING
    )
    assert torch.allclose(problem.reward(x), torch.stack(rewards).sum(0), atol=ROUNDING)
    assert bool(
        (problem.reward.gradient(x).norm(dim=1) <= instance.reward.L0 * (1 + ROUNDING)).all()
    )


@CHEAP
@given(
    st.one_of(instances(lam=numbers(0.3, 0.95)), quadratic_instances(lam=numbers(0.3, 0.95))),
    st.floats(0.1, 0.9),
)
def test_weights_are_the_smallest_the_condition_admits(instance, share):
    """``beta = sigma^2 K / (1 - lam)``: the theory finds the drawn lambda again, and refuses less
    beyond lambda = 0.

    Small lambda are left out: each step multiplies the rounding error of the constants by 1 /
    lambda.
    """
    for statement in (theory.Theorem28(theory.PaperBounds()), theory.Theorem28(instance.sharp)):
        found = theory.constants_at(instance.chain, instance.beta(statement), statement)
        curved = found.curvature > 0
        assert torch.allclose(found.lam[curved], instance.lams[curved], rtol=ROUNDING)
        if bool(curved.any()):
            with pytest.raises(InvalidProblem, match="not below 1"):
                theory.constants_at(
                    instance.chain,
                    instance.beta(statement) * share * (1 - instance.lams),
                    statement,
                )


@CHEAP
@given(st.one_of(instances(), quadratic_instances()))
def test_instances_survive_their_record(instance):
    again = rebuild(json.loads(json.dumps(instance.describe() | {"entry": [1]})))
    assert again == instance
    assert torch.equal(again.beta(), instance.beta())


@SOLVED
@given(line_instances(steps=6))
@pytest.mark.slow
def test_solutions_have_the_stated_accuracy(instance):
    """Against the same problem on the solver's own grids with more nodes than any of these uses at
    first.
    """
    truth = instance.solve()
    finer = Quadrature(instance.problem(instance.beta()), nodes=(2401,))
    for k in range(instance.steps):
        x = finer.points(k)
        assert float((truth.control(k, x) - finer.control(k, x)).abs().max()) <= ACCURACY
        assert (
            float((truth.value_gradient(k, x) - finer.value_gradient(k, x)).abs().max()) <= ACCURACY
        )


def test_rotated_solution_satisfies_bellmans_equation():
    """(9) and (20) at random states in five dimensions, the expectation by a rule in the rotated
    coordinates.
    """
    instance = TWO_FACTORS
    truth, problem = instance.solve(), instance.problem(instance.beta())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, instance.dim, generator=generator, dtype=torch.float64)
    k, draws = 1, torch.randn(100_000, instance.dim, generator=generator, dtype=torch.float64)
    for state in x:
        v = truth.control(k, state[None])
        following = problem.reference.step(k, state.expand(len(draws), -1), v + draws)
        values, costates = truth.value(k + 1, following), truth.value_gradient(k + 1, following)
        stationary = problem.reference.diffusion.transpose(k, following, costates) / problem.beta[k]
        assert torch.all(
            (stationary.mean(0) - v[0]).abs() <= 4 * stationary.std(0) / len(draws) ** 0.5
        )
        right = values.mean() - problem.beta[k] * v.square().sum() / 2
        assert (
            float((right - truth.value(k, state[None])[0]).abs())
            <= 4 * float(values.std()) / len(draws) ** 0.5
        )


def test_suprema_of_a_rotated_product():
    """No random point exceeds them, and the point that combines the coordinates' maximisers attains
    them.
    """
    instance = TWO_FACTORS
    truth, found = instance.solve(), instance.suprema()
    x = 3 * torch.randn(
        20_000, instance.dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    parts = instance.parts()
    for k in range(instance.steps):
        assert bool(
            (truth.value_gradient(k, x).norm(dim=1) <= found.value_gradient[k] + ACCURACY).all()
        )
        assert bool((truth.control(k, x).norm(dim=1) <= found.control[k] + ACCURACY).all())
        best = [_maximiser(part.values[k].grid, part.values[k].gradient) for part in parts]
        corner = (
            torch.stack(list(itertools.islice(itertools.cycle(best), instance.dim)))[None]
            @ instance.basis.T
        )
        assert float(truth.value_gradient(k, corner).norm()) == pytest.approx(
            float(found.value_gradient[k]), rel=BETWEEN_POINTS
        )


def _maximiser(grid: Grid, field: Tensor) -> Tensor:
    x = torch.linspace(
        float(grid.lower) * 0.6, float(grid.upper) * 0.6, 20_001, dtype=torch.float64
    )[:, None]
    return x[grid.interpolate(field, x).abs().argmax(), 0]


def test_suprema_against_automatic_differentiation():
    """Hessian and control derivatives of a one-dimensional solution, from its interpolant."""
    instance = ProductInstance(
        levels=(0.3, 0.6, 0.95), lam=(0.5, 0.5), factors=(TWO_FACTORS.factors[1],)
    )
    truth, found = instance.solve(), instance.suprema()
    x = torch.linspace(-3, 3, 4001, dtype=torch.float64)[:, None]
    for k in range(instance.steps):
        for function, slope, bend in (
            (lambda y, k=k: truth.control(k, y), found.control_slope[k], found.control_bend[k]),
            (lambda y, k=k: truth.value_gradient(k, y), found.value_hessian[k], None),
        ):
            first, second = derivatives(function, x)
            assert float(first.abs().max()) == pytest.approx(float(slope), rel=1e-3)
            assert bend is None or float(second.abs().max()) == pytest.approx(float(bend), rel=1e-2)


def test_equal_factors_share_one_solution():
    wide = ProductInstance(
        levels=(0.3, 0.9), lam=(0.5,), factors=TWO_FACTORS.factors[:1], size=64, rotation=0
    )
    line = ProductInstance(levels=(0.3, 0.9), lam=(0.5,), factors=TWO_FACTORS.factors[:1])
    beta = line.beta()
    assert wide.parts(beta)[0] is line.solve(beta)


def test_unresolved_instances_are_refused():
    """A kink of width 0.001 needs more nodes than there are."""
    kinked = ProductInstance(
        levels=(0.1, 0.999), lam=(0.9,), factors=(Factor(TanhScore(0.5), Softplus(1.0, 5000.0)),)
    )
    with pytest.raises(
        InvalidProblem,
        match="is not resolved by 4801 nodes; use larger design constants or fewer steps",
    ):
        kinked.solve()


@CHEAP
@given(any_scores(), bounded_rewards())
def test_drawn_numbers_have_six_decimals(score, reward):
    """Records stay readable; the weights of a mixture are normalised and excepted."""
    for value in vars(reward).values():
        for number in value if isinstance(value, tuple) else (value,):
            assert number == round(number, 6)
    assert not isinstance(score, TanhScore) or all(x == round(x, 6) for x in vars(score).values())
