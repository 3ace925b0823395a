"""Bounds of PI-FT along paths, against closed forms and integrals."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from socft import theory
from socft.checks import InvalidProblem

NODES = 4e-4  # a curve between its nodes
EXACT = 1e-9
SUMMED = 1e-6  # the midpoint rule for a curvature
DISTANCES = theory.graded_distances()


def chain(up: float = 0.0, bend: float = 0.0, reward_L1: float = 0.0) -> theory.ChainConstants:
    """Three steps with ``m(y) = y / sqrt(a)`` or one that bends, and a reward of slope 1.5."""
    alpha = torch.tensor([0.8, 0.9, 0.95], dtype=torch.float64)
    return theory.ChainConstants(
        alpha=alpha,
        score_weight=1 - alpha,
        sigma=torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64),
        score_L0=torch.full((3,), up, dtype=torch.float64),
        score_L1=torch.full((3,), bend, dtype=torch.float64),
        reward_L0=1.5,
        reward_L1=reward_L1,
    )


def profiles(of: theory.ChainConstants) -> torch.Tensor:
    return theory.one_sided_mean_lipschitz(of)[:, None] * DISTANCES


def bounds(of: theory.ChainConstants, beta: float, rounds: int, oscillation: float = math.inf):
    reward = theory.Modulus.of_reward(DISTANCES, of.reward_L0, oscillation)
    return theory.path_convergence(of, reward, profiles(of), beta, rounds, oscillation=oscillation)


@pytest.mark.parametrize("nu", [0.05, 0.7, 3.0])
def test_the_curve_of_space_is_given_by_two_means(nu: float):
    z = (torch.arange(200_000, dtype=torch.float64) + 0.5) * (10 / 200_000)
    density = math.sqrt(2 / math.pi) * torch.exp(-z.square() / 2) * (10 / 200_000)
    root = (z.square() + nu**2).sqrt()
    slope, bend = float((density * nu / root).sum()), float((density * z.square() / root).sum())
    curve = theory.SlopeCurve.of_space()
    i = int(torch.searchsorted(curve.values, slope))
    rise = curve.values[i + 1] - curve.values[i - 2]
    assert float(rise / (curve.places[i + 1] - curve.places[i - 2])) == pytest.approx(
        bend, rel=2e-3
    )


def test_the_curve_of_the_line_is_the_isoperimetric_one_and_below_that_of_space():
    line, space = theory.SlopeCurve.of_line(), theory.SlopeCurve.of_space()
    u = torch.tensor([-0.3, 0.0, 0.4, 1.3, 2.9], dtype=torch.float64)
    expected = torch.where(u < 0, theory.SHARP * u, torch.erf(u / math.sqrt(2)))
    torch.testing.assert_close(line.at(u), expected, rtol=NODES, atol=1e-12)
    inner = torch.linspace(0.1, 1.5, 15, dtype=torch.float64)
    assert bool((space.at(inner) > line.at(inner)).all())


def test_a_capped_curve_rises_no_faster():
    curve = theory.SlopeCurve.of_line().capped(0.4)
    assert float((curve.values.diff() / curve.places.diff()).max()) <= 0.4 * (1 + EXACT)
    assert float(curve.at(torch.tensor([1.0], dtype=torch.float64))) == pytest.approx(0.4)
    before = torch.tensor([-1.0], dtype=torch.float64)
    assert float(curve.at(before)) == pytest.approx(-0.4)


@pytest.mark.parametrize("most", [1.0, 0.6])
def test_before_the_first_update_the_whole_shift_is_left(most: float):
    found = theory.SlopeCurve.of_line().unfinished(0.7, most, 0)
    assert found == pytest.approx(0.7 * most, rel=5e-3)
    assert found >= 0.7 * most * (1 - EXACT)


def test_what_is_left_is_less_than_a_geometric_series_says():
    curve = theory.SlopeCurve.of_line()
    for rounds in (1, 3, 6):
        slow = (theory.SHARP * 0.7) ** rounds * 0.7
        assert 0.1 * slow < curve.unfinished(0.7, 1.0, rounds) < 0.6 * slow


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_linear_rewards_need_one_update(rounds: int):
    """No curvature: all of the shift is left before the first update, and nothing after it."""
    of = chain()
    found = bounds(of, 0.7, rounds)
    rho = of.sigma.square() / 0.7
    L0 = 1.5 * theory.one_sided_mean_lipschitz(of).flip(0).cumprod(0).flip(0)
    ahead = torch.cat([L0[1:], L0.new_tensor([1.5])])
    left = 1.0 if rounds == 0 else 0.0
    gaps = left * (rho * ahead.square() / 2)
    torch.testing.assert_close(found.shift, left * rho * ahead, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(found.whitened * of.sigma, found.shift)
    expected = torch.cat([gaps.flip(0).cumsum(0).flip(0), gaps.new_zeros(1)])
    torch.testing.assert_close(found.value, expected, rtol=1e-6, atol=1e-12)


def test_more_updates_leave_less():
    of = chain(up=0.5, bend=0.3, reward_L1=2.0)
    errors = [bounds(of, 3.0, m) for m in (0, 1, 2, 4, 8)]
    for before, after in itertools.pairwise(errors):
        assert bool((after.shift < before.shift).all())
        assert bool((after.value[:-1] < before.value[:-1]).all())
    finished = theory.path_curvature(of, _moduli(of), 3.0)
    torch.testing.assert_close(errors[-1].curvature, finished, rtol=1e-3, atol=0)


def test_curvature_is_the_smaller_of_the_recursion_and_the_coupling():
    of = chain(up=0.5, bend=0.3, reward_L1=2.0)
    found = theory.path_curvature(of, _moduli(of), 3.0)
    coupled = theory.coupled_curvature(_moduli(of), of.sigma)
    recursion = theory.constants_at(of, 3.0, theory.Theorem28(theory.OneSidedBounds()))
    one_sided = torch.maximum(recursion.smoothed_up, recursion.smoothed_down)
    assert bool((found <= torch.minimum(coupled, one_sided) * (1 + SUMMED)).all())
    last = theory.smoothed_curvature(1.5, 2.0, 0.3)
    assert float(found[-1]) == pytest.approx(last, rel=1e-5)


@pytest.mark.parametrize("side", [0.0, 0.5, 4.0, math.inf])
def test_without_a_modulus_a_step_bends_as_its_smoothed_slope(side: float):
    linear = theory.Modulus.of_reward(DISTANCES, 1.5)
    found = theory.step_curvature(linear, 0.6, side=side)
    assert found == pytest.approx(theory.smoothed_curvature(1.5, side, 0.6), rel=2e-5)


def test_smoothed_slope_is_the_derivative_at_zero():
    modulus = theory.Modulus.of_reward(DISTANCES, 2.0, 0.9)
    near = torch.tensor([1e-6], dtype=torch.float64)
    expected = float(modulus.reflected(0.4, near)) / 1e-6
    assert modulus.smoothed_slope(0.4) == pytest.approx(expected, rel=1e-6)


def test_a_bounded_reward_bounds_everything():
    of = dataclasses.replace(chain(up=0.5, bend=0.3), reward_L1=math.inf)
    found = bounds(of, 3.0, 1, oscillation=0.4)
    assert bool((found.curvature <= theory.oscillation_curvature(0.4, of.sigma)).all())


@pytest.mark.refusal
def test_too_small_weights_are_refused_with_the_step():
    of = chain(up=0.5, bend=0.3, reward_L1=2.0)
    with pytest.raises(
        InvalidProblem, match=r"beta\[2\] = 0.1; updates contract where beta\[2\] >"
    ):
        bounds(of, 0.1, 2)


def _moduli(of: theory.ChainConstants):
    reward = theory.Modulus.of_reward(DISTANCES, of.reward_L0)
    return theory.coupled_moduli(reward, profiles(of), of.sigma)
