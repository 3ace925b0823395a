"""Iterated guidance: its rounds against hand-made ones, targets against their meaning, fits against
the moments they must find.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian, affine_reference
from socft.guidance.denoiser import GaussianDenoiser, LinearDenoiser, ScoreDenoiser
from socft.guidance.iterated import (
    GuidanceRound,
    IncrementTarget,
    IteratedGuidance,
    LeastSquaresScore,
    MeanQuery,
    RecentredScore,
    SampleQuery,
    StepSizeTarget,
    fit_linear,
    slopes,
)
from socft.guidance.policy import GuidancePolicy, LookAheadGuidance, NoGuidance
from socft.guidance.score_network import FineTuneNetwork, ScoreNetwork, train_score
from socft.guidance.strength import PosteriorStrength, PublishedStrength, Response
from socft.path import Noise, rollout
from socft.reward import Quadratic
from socft.schedule import cosine_levels, ddpm

ALGEBRA = 1e-9
STANDARD_ERRORS = 4.0
SCHEDULE = ddpm(cosine_levels(12))
LAW = Gaussian([0.5, -0.3], [[1.0, 0.4], [0.4, 0.6]])
REFERENCE = affine_reference(LAW, SCHEDULE)
DENOISER = GaussianDenoiser(LAW, SCHEDULE.abar[:-1])
REWARD = Quadratic(
    -0.8 * torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
)
NOISE = 0.5


def guide(response: Response) -> LookAheadGuidance:
    return LookAheadGuidance(response, PosteriorStrength(NOISE))


def run(
    method: IteratedGuidance, batch: int = 64, count: int = 3, seed: int = 0
) -> list[GuidanceRound]:
    generator = torch.Generator().manual_seed(seed)
    return list(method.rounds(REFERENCE, SCHEDULE, DENOISER, REWARD, batch, count, generator))


def by_hand(points: Tensor, y: Tensor, gradient: Tensor, noise: Noise) -> Tensor:
    policy = GuidancePolicy(SCHEDULE, DENOISER, guide(Response(gradient, y)))
    return rollout(REFERENCE, policy, noise).final


@pytest.mark.parametrize("each", [False, True])
def test_algorithm_1_is_its_rounds(each: bool):
    """Two rounds written out, with the same noise."""
    found = run(
        IteratedGuidance(guide, IncrementTarget(0.3), SampleQuery() if each else MeanQuery()),
        count=2,
    )
    generator = torch.Generator().manual_seed(0)
    plain = GuidancePolicy(SCHEDULE, DENOISER, NoGuidance())
    z = rollout(REFERENCE, plain, Noise.sample(REFERENCE, 64, generator)).final
    assert torch.equal(found[0].samples, z)
    assert not bool(found[0].kl.any())
    for index in (1, 2):
        at = z if each else z.mean(0)
        g = at @ REWARD.P + REWARD.linear
        y = 0.3 + (g * at).sum(-1)
        z = by_hand(at, y, g, Noise.sample(REFERENCE, 64, generator))
        assert torch.allclose(found[index].samples, z, rtol=ALGEBRA, atol=ALGEBRA)
        assert found[index].index == index
        assert bool((found[index].kl > 0).all())


def test_rounds_repeat_bit_by_bit():
    method = IteratedGuidance(guide, IncrementTarget(0.3), SampleQuery(), RecentredScore(0.5))
    first, second = run(method), run(method)
    assert all(
        torch.equal(a.samples, b.samples) and torch.equal(a.kl, b.kl)
        for a, b in zip(first, second, strict=True)
    )


def test_step_size_moves_the_mean_by_the_step():
    """One round from a large batch: the mean moves to ``m + S g / lam`` within its
    standard error.
    """
    lam = 2.0
    found = run(IteratedGuidance(guide, StepSizeTarget(lam, NOISE)), batch=20_000, count=1)
    g = REWARD.gradient(found[0].samples.mean(0)[None])[0]
    expected = LAW.mean + LAW.covariance @ g / lam
    error = found[1].samples.std(0) / 20_000**0.5
    assert bool(((found[1].samples.mean(0) - expected).abs() <= STANDARD_ERRORS * error).all())


def test_algorithm_2_climbs_further_than_algorithm_1():
    """Both with the same step; the maximum of f is at (1.25, 2.5)."""
    best = torch.tensor([1.25, 2.5], dtype=torch.float64)
    first, second = (
        run(
            IteratedGuidance(guide, StepSizeTarget(2.0, NOISE), MeanQuery(), tuning),
            batch=2000,
            count=20,
        )
        for tuning in (None, RecentredScore())
    )
    regularised = LAW.mean + torch.linalg.solve(
        2.0 * torch.linalg.inv(LAW.covariance) + 0.8 * torch.eye(2, dtype=torch.float64),
        REWARD.gradient(LAW.mean[None])[0],
    )
    assert torch.allclose(first[-1].samples.mean(0), regularised, atol=0.1)
    assert torch.allclose(second[-1].samples.mean(0), best, atol=0.15)
    assert float((regularised - best).norm()) > 0.5


def test_fine_tuning_counts_in_the_divergence():
    """Recentred but unguided samples: the divergence is that of the change of the score, and round
    0 has none.
    """
    method = IteratedGuidance(
        lambda response: NoGuidance(), IncrementTarget(0.1), MeanQuery(), RecentredScore()
    )
    rounds = run(method, batch=16, count=1)
    law = rounds[1].denoiser
    assert isinstance(law, GaussianDenoiser)
    assert torch.allclose(law.law.mean, rounds[0].samples.mean(0), rtol=ALGEBRA)
    assert torch.allclose(law.law.covariance, LAW.covariance, rtol=ALGEBRA)
    assert float(rounds[1].kl.min()) > 0


def test_adaptation_starts_when_told():
    rounds = run(
        IteratedGuidance(guide, IncrementTarget(0.1), MeanQuery(), RecentredScore(), start=3),
        count=3,
    )
    assert [each.denoiser is DENOISER for each in rounds] == [True, True, True, False]


def test_least_squares_finds_the_moments():
    """Slope and offset of the learnt score against those of the Gaussian with the
    samples' moments.
    """
    x = LAW.sample(400, torch.Generator().manual_seed(0))
    abar = torch.tensor([0.3, 0.8], dtype=torch.float64)
    fit = fit_linear(x.repeat(200, 1), abar, torch.Generator().manual_seed(1))
    cov = torch.cov(x.T, correction=0)
    for k, level in enumerate(abar.tolist()):
        slope = -torch.linalg.inv(level * cov + (1 - level) * torch.eye(2, dtype=torch.float64))
        assert torch.allclose(fit.slope[k], slope, atol=0.05)
        assert torch.allclose(fit.offset[k], -(level**0.5) * slope @ x.mean(0), atol=0.05)


def test_least_squares_with_a_frozen_slope_keeps_it():
    x = Gaussian([2.0, 1.0], LAW.covariance).sample(2000, torch.Generator().manual_seed(0))
    new = LeastSquaresScore(draws=8).update(DENOISER, x, torch.Generator().manual_seed(1))
    assert torch.equal(slopes(new, x), slopes(DENOISER, x))
    assert isinstance(new, LinearDenoiser)
    assert torch.allclose(new.law.covariance, LAW.covariance, rtol=1e-6)
    assert torch.allclose(new.law.mean, x.mean(0), atol=0.1)
    k, zero = 8, torch.zeros(1, 2, dtype=torch.float64)
    exact = GaussianDenoiser(Gaussian(x.mean(0), LAW.covariance), DENOISER.abar)
    assert torch.allclose(new.score(k, zero), exact.score(k, zero), atol=0.15)


def test_refitting_the_slope_narrows_the_data():
    """After a guided round the learnt covariance has lost the variance along g."""
    method = IteratedGuidance(
        guide,
        StepSizeTarget(2.0, NOISE),
        MeanQuery(),
        LeastSquaresScore(draws=4, slope=True),
        start=2,
    )
    rounds = run(method, batch=3000, count=2)
    k = 11
    before, after = (
        torch.linalg.inv(-slopes(each.denoiser, each.samples)[k]) for each in (rounds[0], rounds[2])
    )
    assert rounds[1].response is not None
    g = rounds[1].response.gradient
    g = g / g.norm()
    spread = float(g @ before @ g)
    assert float(g @ after @ g) < 0.7 * spread


def test_network_learns_a_score():
    """A small network's score against the exact one, before and after training, and its fine-tuning
    moves it towards new data.
    """
    abar = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    network = ScoreNetwork(abar, 2, width=32, generator=generator, dtype=torch.float64)

    def error(law: Gaussian) -> float:
        x = law.noised(0.5).sample(2000, torch.Generator().manual_seed(9))
        with torch.no_grad():
            return float((network(1, x) - law.noised_score(0.5, x)).square().mean())

    before = error(LAW)
    losses = train_score(
        network, lambda n: LAW.sample(n, generator), generator, steps=200, batch=256
    )
    assert error(LAW) < 0.02 * before
    assert losses[-1] < losses[0]
    moved = Gaussian([2.5, 1.0], LAW.covariance)
    far, tuning = error(moved), FineTuneNetwork(network, rate=3e-3, steps=60)
    fresh = tuning.update(ScoreDenoiser(network, abar), moved.sample(512, generator), generator)
    assert error(moved) < 0.5 * far
    x = moved.noised(0.5).sample(4, generator)
    assert torch.allclose(fresh.score(1, x), network(1, x))


def test_untrained_network_is_exact_for_white_data():
    abar = torch.tensor([0.1, 0.9], dtype=torch.float64)
    network, x = ScoreNetwork(abar, 3), torch.ones(2, 3, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(network(torch.tensor([0, 1]), x), -x, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: StepSizeTarget(0.0, 0.1),
            r"lam = 0\.0; it must be a positive",
        ),
        (lambda: RecentredScore(0.0), r"rate = 0\.0; it must be a positive"),
        (lambda: LeastSquaresScore(draws=0), r"draws = 0; give a whole number"),
        (
            lambda: run(IteratedGuidance(guide, IncrementTarget(0.1)), count=-1),
            r"count = -1; give a whole number",
        ),
        (
            lambda: RecentredScore().update(
                ScoreDenoiser(DENOISER.score, DENOISER.abar), torch.ones(2, 2), torch.Generator()
            ),
            (
                r"the score model is a ScoreDenoiser; this needs the mean and covariance of a"
                r" GaussianDenoiser or"
            ),
        ),
        (lambda: ScoreNetwork(torch.ones(2), 3), r"a level is 1; leave out level 1"),
    ],
)
def test_bad_input_is_refused(make, message: str):
    with pytest.raises(InvalidProblem, match=message):
        make()


def test_rounds_are_frozen():
    (only,) = run(IteratedGuidance(guide, IncrementTarget(0.1)), count=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        only.index = 3  # type: ignore[misc]
    assert PublishedStrength(0.1).noise == 0.1
