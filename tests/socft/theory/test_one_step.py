"""Suprema of smoothed functions against quadrature and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad

from socft import theory
from socft.checks import InvalidProblem
from socft.theory import ChainConstants, SharpBounds
from tests.support.spline_chains import EXACT, NUMERIC, tensor

QUADRATURE = 1e-7
"""Relative error asked of adaptive quadrature."""


def expectation(function: Callable[[float], float], breaks: list[float]) -> float:
    """``E function(W)`` in one dimension by adaptive quadrature."""
    density = 1 / math.sqrt(2 * math.pi)
    points = itertools.pairwise([-12.0, *sorted(breaks), 12.0])
    return sum(
        quad(lambda w: function(w) * math.exp(-w * w / 2) * density, a, b, epsabs=1e-13)[0]
        for a, b in points
    )


def test_expectations_of_one_gaussian():
    assert expectation(abs, [0]) == pytest.approx(theory.SHARP, rel=QUADRATURE)
    assert expectation(lambda w: abs(w * w - 1), [-1, 1]) == pytest.approx(
        theory.SHARP_SECOND, rel=QUADRATURE
    )


def test_second_order_weight_is_largest_for_equal_directions():
    """E|(b.W)(c.W) - b.c| over angles; the radius is integrated in closed form on a grid of
    directions.
    """
    radius = np.linspace(0, 9, 1801)
    angle = (np.arange(720) + 0.5) * 2 * np.pi / 720
    W = radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    weight = radius[:, None] * np.exp(-(radius[:, None] ** 2) / 2) * (radius[1] / 720)
    values = []
    for turn in np.linspace(0, np.pi, 13):
        c = np.array([np.cos(turn), np.sin(turn)])
        values.append((np.abs(W[..., 0] * (W @ c) - c[0]) * weight).sum())
    assert max(values) == values[0] == pytest.approx(theory.SHARP_SECOND, rel=1e-4)
    assert min(values) == pytest.approx(2 / math.pi, rel=1e-4)


@pytest.mark.parametrize(
    ("L0", "L1", "sigma"), [(1.0, 0.3, 0.5), (1.0, 3.0, 0.5), (0.7, 40.0, 0.2)]
)
def test_smoothed_curvature_is_attained_by_a_clipped_slope(L0: float, L1: float, sigma: float):
    def weighted(w: float) -> float:
        return float(np.clip(L1 * sigma * w, -L0, L0)) * w

    measured = expectation(weighted, [-L0 / (L1 * sigma), L0 / (L1 * sigma)]) / sigma
    bound = theory.smoothed_curvature(L0, L1, sigma)
    assert measured == pytest.approx(bound, rel=QUADRATURE)
    assert bound <= min(L1, theory.SHARP * L0 / sigma) * (1 + EXACT)


def test_smoothed_bounds_hold_for_random_slopes():
    """Random slopes with |f| <= L0 and |f'| <= L1, made by clipping and integrating; the
    derivatives of G V by quadrature.
    """
    generator = np.random.default_rng(1)
    x = np.linspace(-6, 6, 6001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    worst = np.zeros(2)
    for _ in range(300):
        L0, L1, sigma = generator.uniform(0.1, 2, 3)
        steps = (
            L1
            * sigma
            * np.sign(
                np.sin(np.outer(generator.uniform(0.2, 6, 3), x) + generator.uniform(0, 6, (3, 1)))
            ).mean(0)
        )
        slope = np.clip(np.cumsum(steps) * (x[1] - x[0]) * generator.choice([-1, 1]), -L0, L0)
        second = abs(slope @ (x * density)) / sigma
        third = abs(slope @ ((x**2 - 1) * density)) / sigma**2
        bounds = theory.smoothed_curvature(L0, L1, sigma), theory.smoothed_third(L0, L1, sigma)
        worst = np.maximum(worst, np.array([second, third]) / bounds)
    assert (worst <= 1 + NUMERIC).all()
    assert (worst > 0.4).all()


def test_third_derivative_lemma_is_attained():
    L0, L1, sigma = 1.3, 0.8, 0.4
    by_curvature = expectation(lambda w: L1 * np.sign(w) * w, [0]) / sigma
    by_slope = expectation(lambda w: L0 * np.sign(w * w - 1) * (w * w - 1), [-1, 1]) / sigma**2
    assert by_curvature == pytest.approx(theory.smoothed_third(math.inf, L1, sigma), rel=QUADRATURE)
    assert by_slope == pytest.approx(theory.smoothed_third(L0, math.inf, sigma), rel=QUADRATURE)


def test_the_mean_norm_of_a_normal_vector_has_all_digits_in_any_dimension():
    """``E|W|_d E|W|_{d+1} = d``, as Gamma(d/2 + 1) = d/2 Gamma(d/2)."""
    for dim in (1, 2, 17, 299, 300, 301, 16384, 10**6, 10**8):
        product = theory.expected_norm(dim) * theory.expected_norm(dim + 1)
        assert product == pytest.approx(dim, rel=1e-14)


def test_smoothed_bounds_at_infinite_and_zero_constants():
    assert theory.smoothed_curvature(math.inf, 0.7, 0.1) == 0.7
    assert theory.smoothed_curvature(1.0, math.inf, 0.5) == pytest.approx(
        2 * theory.SHARP, rel=EXACT
    )
    assert (
        theory.smoothed_curvature(math.inf, 0.0, 0.1)
        == theory.smoothed_curvature(0.0, math.inf, 0.1)
        == 0
    )
    assert theory.smoothed_curvature(1.0, 1e-320, 1e-10) == 1e-320
    ratios = [
        SharpBounds().third_derivative_ratio(1.0, L1, 0.5, 1) * 0.5
        for L1 in np.logspace(-4, 4, 4001)
    ]
    assert min(ratios) == pytest.approx(theory.SHARP, rel=1e-6)
    assert 1.35 < max(ratios) < 1.36


def test_smoothed_curvature_alone_breaks_17():
    """The slope L0 sign(x^2 - sigma^2) refutes (17) with the smoothed curvature but the third
    derivative's old constant.
    """
    L0, sigma, lam, steep = 1.0, 0.4, 0.95, 60.0

    def slope(w: float) -> float:
        return L0 * math.tanh(steep * (w * w - 1))

    fine = np.linspace(-2, 2, 400_001)
    L1 = np.abs(np.gradient(L0 * np.tanh(steep * (fine**2 - 1)), fine)).max() / sigma
    chain = ChainConstants(
        tensor([0.8]),
        tensor([0.2]),
        tensor([sigma]),
        tensor([0.0]),
        tensor([0.0]),
        L0,
        float(L1),
        1,
    )
    found = theory.sharp_constants(chain, lam)
    third = expectation(lambda w: slope(w) * (w * w - 1), [-1, 1]) / sigma**2
    # Where m(y) + delta* = 0 the Hessian of G V vanishes, so delta*'' = rho (G V)''' there.
    rho = sigma**2 / float(found.beta_required[0])
    measured = rho * third / 0.8 / sigma
    without = (1 - lam) * theory.SHARP / sigma / (0.8 * lam**3) / sigma
    assert measured > 1.2 * without
    assert 0.8 < measured / float(found.L1v[0]) <= 1


@pytest.mark.refusal
def test_arguments_are_numbers_in_the_range_of_their_name():
    half = np.float32(0.5)
    expected = theory.smoothed_curvature(1.0, 2.0, 0.5)
    found = theory.smoothed_curvature(1, np.float64(2.0), half)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=EXACT)
    for wrong in (-1.0, math.nan, "1", None, 1j, 10**400, np.ones(1), [1.0]):
        with pytest.raises(InvalidProblem, match=r"L0 = .*; give one number in \[0, inf\]"):
            theory.smoothed_curvature(wrong, 2.0, 0.5)  # type: ignore[arg-type]
    for wrong in (0.0, math.inf, 1e60):
        with pytest.raises(InvalidProblem, match=r"sigma = .*; give one number in \[1e-50, 1e\+50"):
            theory.smoothed_third(1.0, 2.0, wrong)
    with pytest.raises(InvalidProblem, match=r"rounds = 1.5; give a whole number"):
        theory.control_error_bound(1.0, 1.0, 1.0, 0.5, 1.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidProblem, match="chain is None; give an object of the class Chain"):
        theory.kl_weight(None)  # type: ignore[arg-type]
