"""Noised scores and the references made of them."""

from __future__ import annotations

import pytest
import torch

from socft.density import (
    Gaussian,
    GaussianMixture,
    NoisedScore,
    affine_reference,
    score_reference,
)
from socft.schedule import ddim, linear_levels, soften_last, subsample, variance_preserving
from tests.support.density_laws import ALGEBRA, LAWS, gradient, independent_log_prob, randn

STANDARD_ERRORS = 4.0


@pytest.mark.parametrize("name", list(LAWS))
def test_noised_score_takes_one_level_per_sample(name: str):
    abar = torch.tensor([0.01, 0.3, 0.8], dtype=torch.float64)
    score, x = NoisedScore(LAWS[name], abar), randn(6, 3)
    k = torch.tensor([2, 0, 1, 1, 0, 2])
    mixed = score(k, x)
    for i in range(6):
        level = float(abar[k[i]])
        expected = gradient(
            lambda y, level=level: independent_log_prob(LAWS[name], y, level), x[i : i + 1]
        )
        assert torch.allclose(mixed[i], expected[0], rtol=ALGEBRA, atol=ALGEBRA)
        assert torch.allclose(score(int(k[i]), x)[i], mixed[i], rtol=ALGEBRA, atol=ALGEBRA)


@pytest.mark.parametrize("name", list(LAWS))
def test_noised_score_is_twice_differentiable(name: str):
    score = NoisedScore(LAWS[name], torch.tensor([0.3, 0.8], dtype=torch.float64))
    k, x = torch.tensor([1, 0]), randn(2, 3).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y: score(k, y), (x,))
    assert torch.autograd.gradgradcheck(lambda y: score(k, y), (x,))


def test_noised_score_keeps_single_precision():
    for law in LAWS.values():
        score = NoisedScore(law, torch.tensor([0.3, 0.8], dtype=torch.float64))
        x = randn(4, 3)
        single = score(torch.tensor([0, 1, 1, 0]), x.float())
        assert single.dtype == torch.float32
        assert torch.allclose(
            single.double(), score(torch.tensor([0, 1, 1, 0]), x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_affine_and_score_references_are_one_chain(eta: float):
    law = LAWS["gaussian"]
    assert isinstance(law, Gaussian)
    schedule = ddim(soften_last(subsample(linear_levels(1000), 7)), eta)
    scored, affine = score_reference(law, schedule), affine_reference(law, schedule)
    x = randn(14, 3)
    k = torch.arange(7).repeat(2)
    assert torch.allclose(scored.mean(k, x), affine.mean(k, x), rtol=ALGEBRA, atol=ALGEBRA)
    assert torch.equal(scored.score.abar, schedule.abar[:-1])  # type: ignore[attr-defined]


def test_exact_scores_carry_noise_to_data():
    """200 DDPM steps from noise reproduce a bimodal law's mean, variance and mass of a mode."""
    law = GaussianMixture([0.3, 0.7], [-2.0, 1.0], [0.3, 0.2])
    steps, batch = 200, 10_000
    reference = score_reference(law, variance_preserving(steps, 9.0))
    generator = torch.Generator().manual_seed(6)
    y = torch.randn(batch, 1, generator=generator, dtype=torch.float64)
    for k in range(steps):
        y = reference.step(k, y, torch.randn(batch, 1, generator=generator, dtype=torch.float64))
    bias = 2 * 9.0 / steps  # the chain's own error is of the order of rate / steps
    assert abs(float(y.mean() - law.mean)) < STANDARD_ERRORS * float(y.std()) / batch**0.5 + bias
    assert (
        abs(float((y < -0.5).double().mean()) - 0.3)
        < STANDARD_ERRORS * (0.21 / batch) ** 0.5 + bias
    )
    assert abs(float(y.var()) / float(law.covariance) - 1) < 0.05 + bias
