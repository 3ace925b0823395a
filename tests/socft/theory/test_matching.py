"""Constants of adjoint matching's sweeps against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from socft import theory
from socft.checks import InvalidProblem
from tests.support.tensors import t

ROUNDING = 1e-12


def sweeps(theta: float = 1.0) -> theory.MatchingSweeps:
    return theory.MatchingSweeps(
        mean=t(1.2, 0.9, 1.1, 0.7),
        noise=t(0.5, 0.4, 0.3, 0.6),
        beta=t(1.0, 0.8, 1.3, 0.9),
        up=t(0.7, 0.2, 0.0, 1.0),
        down=t(0.1, 1.5, 0.6, 0.3),
        relaxation=theory.FixedRelaxation(theta),
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_decay_is_the_sum_of_all_monomials(count: int):
    made = sweeps()
    w = made.weights.tolist()
    for k in range(4):
        monomials = itertools.combinations_with_replacement(w[k:], count)
        assert float(made.decay(count)[k]) == pytest.approx(sum(map(math.prod, monomials)))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_errors_in_units_of_the_scale_are_the_decay(count: int):
    made = sweeps()
    found = made.errors(made.scale, count) / made.scale
    assert (found - made.decay(count)).abs().max() < ROUNDING


def test_equal_weights_have_binomial_coefficients():
    one = torch.ones(5, dtype=torch.float64)
    made = theory.MatchingSweeps(mean=one, noise=one, beta=one, up=one / 10, down=0 * one)
    assert float(made.decay(4)[0]) == pytest.approx(math.comb(8, 4) / 10**4)


def test_damping_slows_what_rises_and_calms_what_falls():
    """Between the two ends of the spectrum of ``(1 - theta) + theta h``."""
    for theta in (1.0, 0.5, 0.2):
        made = sweeps(theta)
        rho = made.noise.square() / made.beta
        ends = torch.stack([1 - theta + theta * rho * made.up, 1 - theta - theta * rho * made.down])
        assert (made.rates - ends.abs().amax(0)).abs().max() < ROUNDING
        assert (made.matrix.diagonal() - made.rates).abs().max() == 0
        assert made.matrix.tril(-1).abs().max() == 0


@pytest.mark.refusal
def test_a_spectrum_has_two_sides():
    with pytest.raises(InvalidProblem, match=r"down\[0\] = -1; norms and both sides"):
        theory.MatchingSweeps(mean=t(1.0), noise=t(1.0), beta=t(1.0), up=t(1.0), down=t(-1.0))
