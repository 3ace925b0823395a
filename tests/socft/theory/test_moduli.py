"""Moduli of continuity under reflection coupling, against closed forms and integrals."""

from __future__ import annotations

import math

import pytest
import torch

from socft import theory
from socft.checks import InvalidProblem

EXACT = 1e-12
SUMMED = 1e-6  # the midpoint rule for a curvature, at spacing 2e-3
SMOOTHED = 1e-4  # trapezoidal rule across kinks


def points(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_linear_modulus_stays_linear():
    modulus = theory.Modulus.of_reward(theory.graded_distances(), 1.7)
    apart = points(0.0, 0.3, 5.0, 40.0)
    torch.testing.assert_close(modulus.at(apart), 1.7 * apart, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(modulus.reflected(0.6, apart), 1.7 * apart, rtol=EXACT, atol=EXACT)
    assert modulus.lipschitz == pytest.approx(1.7, rel=EXACT)


def test_distances_are_those_of_brownian_motion_that_stops_at_zero():
    modulus = theory.Modulus(points(0, 0.5, 1.0, 3.0), points(0, 0.6, 0.8, 1.0), 0.1)
    sigma, apart = 0.4, 0.7
    s = torch.linspace(0, 20, 400_001, dtype=torch.float64)
    scale = 2 * sigma
    near, far = (torch.exp(-((s + sign * apart) / scale).square() / 2) for sign in (-1, 1))
    density = (near - far) / (scale * math.sqrt(2 * math.pi))
    expected = float(torch.trapezoid(density * modulus.at(s), s))
    found = float(modulus.reflected(sigma, points(apart))[0])
    assert found == pytest.approx(expected, rel=SMOOTHED)


def test_moduli_multiply_the_slopes_of_linear_profiles():
    distances, slopes = theory.graded_distances(), points(0.8, 1.3, 0.5)
    reward = theory.Modulus.of_reward(distances, 2.0)
    found = theory.coupled_moduli(reward, slopes[:, None] * distances, points(0.3, 0.2, 0.4))
    expected = [2 * 0.8 * 1.3 * 0.5, 2 * 1.3 * 0.5, 2 * 0.5, 2.0]
    assert [each.lipschitz for each in found] == pytest.approx(expected, rel=EXACT)


def test_a_difference_that_leaves_the_ridge_is_stretched_no_more():
    """A step that stretches distances below 0.1 threefold and contracts larger ones: repeated, the
    Lipschitz constant stays below 4, where the product of suprema is 3^20.
    """
    distances = theory.graded_distances()
    profile = torch.minimum(3 * distances, 0.2 + 0.9 * distances)
    reward = theory.Modulus.of_reward(distances, 1.0)
    found = theory.coupled_moduli(reward, profile.expand(20, -1), torch.full((20,), 0.5).double())
    assert max(each.lipschitz for each in found) < 4


def test_curvature_of_a_linear_modulus_is_the_one_of_a_kink():
    sigma = points(0.3, 1.1)
    reward = theory.Modulus.of_reward(theory.graded_distances(), 2.5)
    expected = theory.SHARP * 2.5 / sigma
    found = theory.coupled_curvature((reward,) * 3, sigma)
    torch.testing.assert_close(found, expected, rtol=SUMMED, atol=0)


def test_curvature_is_the_smaller_of_the_two():
    sigma = points(0.05, 4.0)
    reward = theory.Modulus.of_reward(theory.graded_distances(), 1.0, 2.0)
    found = theory.coupled_curvature((reward,) * 3, sigma, 2.0)
    assert float(found[0]) == pytest.approx(theory.SHARP / 0.05, rel=1e-3)
    expected = math.sqrt(2 / (math.pi * math.e)) * 2.0 / 16
    assert float(found[1]) == pytest.approx(expected, rel=EXACT)
    torch.testing.assert_close(theory.oscillation_curvature(2.0, sigma)[1], found[1])


def test_profile_of_a_map_of_the_line():
    """A contraction by half with a jump of width 0.1 and height 1: all of the jump is seen as soon
    as the distance is 0.1.
    """
    middles = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    steep = lambda x: x / 2 + (10 * x + 0.5).clamp(0, 1)  # noqa: E731
    found = theory.line_profile(steep, points(0, 0.05, 0.1, 1.0), middles)
    torch.testing.assert_close(found, points(0, 0.525, 1.05, 1.5), rtol=EXACT, atol=EXACT)
    falling = theory.line_profile(lambda x: -steep(x), points(0, 0.05, 0.1, 1.0), middles)
    torch.testing.assert_close(falling, found)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("distances", "values", "slope"),
    [
        (points(0, 1, 1), points(0, 1, 2), 0.0),
        (points(0, 1, 2), points(0, 2, 1), 0.0),
        (points(0.1, 1), points(0, 1), 0.0),
        (points(0, 1), points(0.1, 1), 0.0),
        (points(0, 1), points(0, 1), -1.0),
        (points(0, 1), points(0, 1, 2), 0.0),
    ],
)
def test_what_is_no_modulus_is_refused(distances: torch.Tensor, values: torch.Tensor, slope: float):
    with pytest.raises(InvalidProblem, match=r"give increasing distances|slope = -1; it must not"):
        theory.Modulus(distances, values, slope)
