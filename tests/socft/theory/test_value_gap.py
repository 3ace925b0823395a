"""What unfinished updates leave of a value, on quadratic steps in closed form."""

from __future__ import annotations

import pytest

from socft.theory.convergence import value_gap_bound

EXACT = 1e-12  # a few operations in float64


@pytest.mark.parametrize("rounds", [2, 3, 6])
def test_a_concave_quadratic_step_attains_the_bound_of_its_value(rounds: int):
    """``G V = -b y^2 / (2 rho)`` where the fixed point is ``rho``, so that the slope there is 1."""
    rho, b = 0.4, 0.7
    x, shift = -rho * (1 + b) / b, 0.0
    objective = lambda d: -b * (x + d) ** 2 / (2 * rho) - d**2 / (2 * rho)  # noqa: E731
    for _ in range(rounds):
        shift = -b * (x + shift)
    gap = objective(rho) - objective(shift)
    assert value_gap_bound(1.0, rho, b, b, rounds) == pytest.approx(gap, rel=EXACT / b**12)


def test_no_update_leaves_no_more_than_what_a_slope_can_earn():
    """A linear function earns ``L |delta| - delta^2 / (2 rho)``, at most ``rho L^2 / 2``."""
    rho, slope = 0.3, 2.0
    best = max(slope * d - d**2 / (2 * rho) for d in (rho * slope * i / 100 for i in range(201)))
    assert value_gap_bound(slope, rho, 0.9, 0.95, 0) == pytest.approx(best, rel=EXACT)
