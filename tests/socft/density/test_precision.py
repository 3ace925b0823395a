"""Laws, schedules and tilts at the ends of their range against 50-digit arithmetic on the very
numbers that the constructors were given.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from socft.density import Gaussian, GaussianMixture, NoisedScore, Rotated, affine_reference
from socft.guidance.denoiser import GaussianDenoiser
from socft.reward import Quadratic
from socft.schedule import Schedule, ddim, ddpm
from tests.support.tensors import F64

ROUNDING = 2e-14  # relative: some ten operations and an exponential of an argument near 30
DIGITS = 50

Digits: TypeAlias = Any  # mpmath's numbers have no types

LEVELS = [1e-15, 1e-6, 0.3, 0.999, 1 - 1e-9, 1 - 1e-13, 1 - 2**-52, 1.0]
VARIANCES = [1e-30, 1e-15, 1e-12, 1e-6, 1.0, 1e9]
X = torch.tensor([[-1.3], [-0.2], [0.4], [2.1]], dtype=F64)


def noised(level: float, mean: float, variance: float) -> tuple[Digits, Digits]:
    """Mean and variance of a noised Gaussian."""
    a = mpf(level)
    return mp.sqrt(a) * mpf(mean), a * mpf(variance) + 1 - a


def exact_mixture(law: GaussianMixture, level: float, x: float) -> tuple[Digits, Digits]:
    """Score and log density of a one-dimensional mixture."""
    logs, scores = [], []
    variances = law.spectra.flatten().expand(law.components).tolist()
    for w, m, v in zip(law.weights.tolist(), law.means.flatten().tolist(), variances, strict=True):
        mean, variance = noised(level, m, v)
        away = mpf(x) - mean
        logs.append(mp.log(mpf(w)) - away**2 / variance / 2 - mp.log(2 * mp.pi * variance) / 2)
        scores.append(-away / variance)
    top = max(logs)
    masses = [mp.exp(each - top) for each in logs]
    total = mp.fsum(masses)
    score = mp.fsum(m * s for m, s in zip(masses, scores, strict=True)) / total
    return score, top + mp.log(total)


@pytest.mark.parametrize("variance", VARIANCES)
def test_scores_of_small_and_large_covariances_near_every_level(variance: float):
    one = Gaussian(0.7, variance)
    two = GaussianMixture([0.4, 0.6], [0.7, 0.7], [variance, 3 * variance])
    with mp.workdps(DIGITS):
        for law in (one, two):
            for level in LEVELS:
                same = Rotated(torch.eye(1), [law])
                for found, value in (
                    (law.noised_score(level, X), law.noised_log_prob(level, X)),
                    (law.noised(level).score(X), law.noised(level).log_prob(X)),
                    (same.noised_score(level, X), same.noised_log_prob(level, X)),
                    (NoisedScore(law, [level])(0, X), law.noised_log_prob(level, X)),
                ):
                    for i, x in enumerate(X.flatten().tolist()):
                        score, log_prob = exact_mixture(law, level, x)
                        assert abs(mpf(float(found[i])) / score - 1) <= ROUNDING
                        assert abs(mpf(float(value[i])) / log_prob - 1) <= ROUNDING


@pytest.mark.parametrize("level", LEVELS[:-1])
def test_scores_of_single_precision_states_know_the_noise(level: float):
    """The state is rounded to 24 bits; the level is not."""
    law, x = Gaussian(0.0, 1e-12), X.float()
    with mp.workdps(DIGITS):
        variance = float(noised(level, 0.0, 1e-12)[1])
    found = NoisedScore(law, [level])(0, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (-x.double() / variance).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("variance", VARIANCES)
def test_lipschitz_constant_of_a_gaussian(variance: float):
    law = Gaussian(0.0, variance)
    with mp.workdps(DIGITS):
        found = law.noised_constants(torch.tensor(LEVELS, dtype=F64)).L0
        for level, L0 in zip(LEVELS, found.tolist(), strict=True):
            assert abs(mpf(L0) * noised(level, 0.0, variance)[1] - 1) <= ROUNDING


def test_covariances_that_differ_in_a_narrow_direction_are_two():
    narrow = torch.tensor([1.0, 1e-20], dtype=F64)
    law = GaussianMixture(
        [0.5, 0.5], torch.zeros(2, 2), torch.stack([narrow.diag(), (2 * narrow).diag()])
    )
    assert law.regular
    assert not law.shared


def fine_levels() -> Tensor:
    """Levels that crowd at both ends."""
    gaps = torch.logspace(-14, -1, 20, dtype=F64)
    return torch.cat([gaps, 1 - gaps.flip(0), torch.ones(1, dtype=F64)]).unique()


def test_ddpm_of_crowded_levels():
    schedule = ddpm(fine_levels())
    with mp.workdps(DIGITS):
        levels = [mpf(a) for a in schedule.abar.tolist()]
        for k, (g, sigma) in enumerate(zip(schedule.score_weight, schedule.sigma, strict=True)):
            gained = 1 - levels[k] / levels[k + 1]
            assert abs(mpf(float(g)) / gained - 1) <= ROUNDING
            assert abs(mpf(float(sigma)) ** 2 / gained - 1) <= ROUNDING


@pytest.mark.parametrize("eta", [1e-3, 0.5, 1.0])
def test_ddim_of_crowded_levels(eta: float):
    """Against equation 12 of Song et al.: ``x0 = (x + h s)/sqrt(a)``, ``eps = -sqrt(h) s``."""
    schedule = ddim(fine_levels()[:-1], eta)
    with mp.workdps(DIGITS):
        levels = [mpf(a) for a in schedule.abar.tolist()]
        for k, (g, sigma) in enumerate(zip(schedule.score_weight, schedule.sigma, strict=True)):
            a, b = levels[k], levels[k + 1]
            variance = mpf(eta) ** 2 * (1 - b) / (1 - a) * (1 - a / b)
            weight = mp.sqrt(b / a) * (1 - a) - mp.sqrt((1 - b - variance) * (1 - a))
            assert abs(mpf(float(sigma)) ** 2 / variance - 1) <= ROUNDING
            assert abs(mpf(float(g)) / (weight * mp.sqrt(a / b)) - 1) <= ROUNDING


def exact_memory(schedule: Schedule, variance: float) -> Digits:
    """Correlation of the first and the last state, from the covariance of each with the first."""
    crossed, spread = mpf(1), mpf(1)
    levels = [mpf(a) for a in schedule.abar.tolist()]
    for k, (g, sigma) in enumerate(
        zip(schedule.score_weight.tolist(), schedule.sigma.tolist(), strict=True)
    ):
        C = levels[k] * mpf(variance) + 1 - levels[k]
        A = (1 - mpf(g) / C) / mp.sqrt(levels[k] / levels[k + 1])
        crossed, spread = A * crossed, A**2 * spread + mpf(sigma) ** 2
    return crossed / mp.sqrt(spread)


@pytest.mark.parametrize("variance", VARIANCES)
def test_memory_and_transfers_of_any_data(variance: float):
    for schedule in (ddpm(fine_levels()), ddim(fine_levels()[:-1], 0.3), ddpm([1e-3, 1 - 1e-15])):
        with mp.workdps(DIGITS):
            exact = exact_memory(schedule, variance)
            assert abs(mpf(schedule.memory(variance)) - exact) <= 1e-12 * abs(exact) + 1e-300
            reference = affine_reference(Gaussian(0.5, variance), schedule)
            for k, A in enumerate(reference.transition.flatten().tolist()):
                a, b, g = (
                    mpf(float(each))
                    for each in (schedule.abar[k], schedule.abar[k + 1], schedule.score_weight[k])
                )
                C = a * mpf(variance) + 1 - a
                assert abs(mpf(A) - (1 - g / C) * mp.sqrt(b / a)) <= ROUNDING * abs(A)
                b_k = g / C * mp.sqrt(a) * mpf(0.5) * mp.sqrt(b / a)
                assert abs(mpf(float(reference.offset[k, 0])) / b_k - 1) <= ROUNDING


def test_score_of_a_gaussian_denoiser_close_to_the_data():
    denoiser = GaussianDenoiser(Gaussian(0.3, 2.0), torch.tensor(LEVELS[:-1], dtype=F64))
    with mp.workdps(DIGITS):
        for k, level in enumerate(LEVELS[:-1]):
            mean, variance = noised(level, 0.3, 2.0)
            for x, found in zip(X.flatten().tolist(), denoiser.score(k, X).tolist(), strict=True):
                assert abs(mpf(found[0]) / ((mean - mpf(x)) / variance) - 1) <= ROUNDING


@pytest.mark.parametrize("sharpness", [1e-6, 1.0, 1e6, 1e12, 1e20])
@pytest.mark.parametrize("target", [0.0, 0.25])
def test_tilts_by_sharp_rewards(sharpness: float, target: float):
    """Masses are ``w_k E exp(-s (x - c)^2 / 2)``: normal densities of variance ``v_k + 1/s``."""
    weights, means, variances = [0.25, 0.5, 0.25], [-1.0, 0.5, 2.0], [0.5, 1e-3, 4.0]
    law = GaussianMixture(weights, means, variances)
    reward = Quadratic(
        torch.tensor([[-sharpness]], dtype=F64),
        torch.tensor([sharpness * target], dtype=F64),
        -sharpness * target**2 / 2,
    )
    tilt = law.tilted(reward, 1.0)
    with mp.workdps(DIGITS):
        s, c = mpf(sharpness), mpf(target)
        masses = [
            mpf(w) * mp.exp(-((mpf(m) - c) ** 2) / (mpf(v) + 1 / s) / 2) / mp.sqrt(1 + s * mpf(v))
            for w, m, v in zip(weights, means, variances, strict=True)
        ]
        total = mp.fsum(masses)
        assert tilt.log_normaliser == pytest.approx(
            float(mp.log(total)), rel=1e-13, abs=1e-13 + 1e-15 * sharpness * target**2
        )  # the constant of the reward cancels its slope
        expected = [mass / total for mass in masses if mass / total > mpf(10) ** -300]
        for found, mass in zip(tilt.density.weights.tolist(), expected, strict=True):
            assert abs(mpf(found) / mass - 1) <= 1e-12
        for found, m, v in zip(
            tilt.density.means.flatten().tolist(), means, variances, strict=True
        ):
            mean = (mpf(m) / mpf(v) + s * c) / (1 / mpf(v) + s)
            assert abs(mpf(found) - mean) <= ROUNDING * max(abs(mean), 1e-30)
        for found, v in zip(tilt.density.spectra.flatten().tolist(), variances, strict=True):
            assert abs(mpf(found) * (1 / mpf(v) + s) - 1) <= ROUNDING


@pytest.mark.parametrize("beta", [1e2, 1e8, 1e16])
def test_weak_tilts_know_how_little_they_change(beta: float):
    """``beta log Z`` tends to the mean reward, without digits if Z is rounded to 1."""
    parts = [0.25, 0.75], [-1.0, 0.5], [0.5, 4.0]
    law = GaussianMixture(*parts)
    curved, pull, height = -0.75, 0.5, 0.125
    reward = Quadratic(torch.tensor([[curved]], dtype=F64), torch.tensor([pull], dtype=F64), height)
    with mp.workdps(DIGITS):
        P, q = mpf(curved) / mpf(beta), mpf(pull) / mpf(beta)
        total = mpf(0)
        for w, m, v in zip(*parts, strict=True):
            A, B = 1 / mpf(v) - P, mpf(m) / mpf(v) + q
            exponent = B**2 / (2 * A) - mpf(m) ** 2 / (2 * mpf(v))
            total += mpf(w) * mp.exp(exponent) / mp.sqrt(A * mpf(v))
        expected = mp.log(total) + mpf(height) / mpf(beta)
        found = law.tilted(reward, beta).log_normaliser
        assert abs(mpf(found) / expected - 1) <= ROUNDING


def test_half_of_the_digits_would_not_do():
    """The naive variance misses what these tests look for."""
    level, variance = 1 - 1e-9, 1e-12
    naive = level * variance + 1 - level
    with mp.workdps(DIGITS):
        exact = float(noised(level, 0.0, variance)[1])
    assert abs(naive / exact - 1) > 1e3 * ROUNDING
    assert math.isclose(level * variance + (1 - level), exact, rel_tol=ROUNDING)
