"""The law of a sampler that is not the one of training, in closed form."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socft.checks import InvalidProblem
from socft.theory import SamplerChange

LEVELS = st.floats(0.2, 3)
USED = st.one_of(st.just(0.0), st.floats(1e-9, 3))
ROUNDING = 1e-12
MEMORYLESS = math.sqrt(2)
MEAN, VARIANCE, CURVATURE, SLOPE, BETA = 0.7, 0.5, -1.5, 0.8, 1.3


def tilted() -> tuple[float, float]:
    """Mean and variance of the tilt, by precisions."""
    precision = 1 / VARIANCE - CURVATURE / BETA
    return (MEAN / VARIANCE + SLOPE / BETA) / precision, 1 / precision


def law(trained: float, used: float) -> tuple[float, float]:
    return SamplerChange(trained, used).moments(MEAN, VARIANCE, CURVATURE, SLOPE, BETA)


@given(LEVELS)
def test_the_sampler_of_training_reaches_the_tilt_at_every_level(level: float):
    assert law(level, level) == pytest.approx(tilted(), rel=ROUNDING)


@given(USED)
def test_trained_at_the_memoryless_level_every_sampler_reaches_the_tilt(used: float):
    assert law(MEMORYLESS, used) == pytest.approx(tilted(), rel=ROUNDING)


@given(LEVELS, USED)
def test_no_other_pair_of_levels_reaches_the_tilt(trained: float, used: float):
    off = SamplerChange(trained, used).strength - 1
    n, u = trained**2, used**2
    assert off * (2 + n) * (n + u) == pytest.approx((n - u) * (2 - n), abs=ROUNDING * (2 + n) * 9)


@given(LEVELS)
def test_without_noise_the_variance_is_a_power_of_the_tilts(trained: float):
    _, variance = law(trained, 0.0)
    power = 4 / (2 + trained**2)
    assert variance / VARIANCE == pytest.approx((tilted()[1] / VARIANCE) ** power, rel=ROUNDING)
    assert (variance < tilted()[1]) == (trained < MEMORYLESS)


def test_little_noise_is_nearly_none():
    without = law(0.7, 0.0)
    assert law(0.7, 0.03) == pytest.approx(without, rel=5e-3)
    assert law(0.7, 0.7) != pytest.approx(without, rel=5e-2)


def test_a_reward_without_a_tilt_is_refused():
    with pytest.raises(InvalidProblem, match="raise beta above 2"):
        SamplerChange(1.0, 0.0).moments(0.0, 1.0, 2.0, 0.0, 1.0)
    with pytest.raises(InvalidProblem, match="trained"):
        SamplerChange(0.0, 0.0)
