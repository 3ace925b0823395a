"""Tilted laws against quadrature and sampling."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate

from socft.checks import InvalidProblem
from socft.density import (
    Gaussian,
    GaussianMixture,
)
from socft.reward import Linear, Quadratic, Sum
from tests.support.density_laws import (
    ALGEBRA,
    ATTAINED,
    CURVED,
    LAWS,
    LINE,
    MIXTURE,
    Q3,
    QUADRATURE,
    bell,
    independent_log_prob,
    randn,
)
from verify.support.sampling import require_mean

ALIGNED = Quadratic(
    Q3 @ torch.diag(torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)) @ Q3.T, randn(3), -0.2
)
TILTS = [
    (name, reward)
    for name in LAWS
    for reward in (Linear(randn(3), 0.3), ALIGNED if name == "rotated" else CURVED)
]


@pytest.mark.parametrize(("name", "reward"), TILTS)
def test_tilt_is_the_law_times_exp_reward(name: str, reward: Linear | Quadratic):
    """log p~ + log Z = log p + r / beta everywhere; both sides are normalised densities, so log Z
    is right as well.
    """
    law, beta, x = LAWS[name], 1.7, 2 * randn(20, 3)
    tilt = law.tilted(reward, beta)
    expected = independent_log_prob(law, x) + reward(x) / beta
    assert torch.allclose(
        independent_log_prob(tilt.density, x) + tilt.log_normaliser,
        expected,
        rtol=ALGEBRA,
        atol=ALGEBRA,
    )
    assert torch.allclose(
        tilt.density.log_prob(x) + tilt.log_normaliser, expected, rtol=ALGEBRA, atol=ALGEBRA
    )


def test_log_normaliser_by_quadrature_and_by_sampling():
    reward, beta = Quadratic(torch.tensor([[0.5]]), torch.tensor([-0.8], dtype=torch.float64)), 0.9
    value = integrate.quad(
        lambda x: (
            (0.3 * bell(x, -1.0, 0.5) + 0.7 * bell(x, 2.0, 1.5))
            * math.exp((0.25 * x**2 - 0.8 * x) / beta)
        ),
        -40,
        40,
        points=[-1.0, 2.0],
        limit=200,
    )[0]
    assert LINE.tilted(reward, beta).log_normaliser == pytest.approx(
        math.log(value), rel=QUADRATURE
    )
    mild = Sum([Linear(torch.tensor([0.3, -0.2, 0.1])), Quadratic(-0.1 * torch.eye(3))], [1.0, 0.5])
    for law in LAWS.values():
        weights = (mild(law.sample(20_000, torch.Generator().manual_seed(8))) / 1.3).exp()
        require_mean(weights, math.exp(law.tilted(mild, 1.3).log_normaliser), 0.0029)


def test_tilts_compose():
    first, second, x = Linear(randn(3)), CURVED, randn(5, 3)
    one = MIXTURE.tilted(first, 2.0)
    two = one.density.tilted(second, 2.0)
    both = MIXTURE.tilted(Sum([first, second]), 2.0)
    assert torch.allclose(two.density.log_prob(x), both.density.log_prob(x), rtol=ALGEBRA)
    assert one.log_normaliser + two.log_normaliser == pytest.approx(
        both.log_normaliser, rel=ALGEBRA
    )


def test_tilt_is_refused_exactly_where_the_integral_diverges():
    """S = 2 and r = 0.6 x^2 / 2: integrable above beta = 1.2 only; log Z diverges like -log(1 - 1.2
    / beta) / 2.
    """
    law, reward = Gaussian(0.0, 2.0), Quadratic(torch.tensor([[0.6]], dtype=torch.float64))
    assert law.tilted(reward, 1.2 * (1 + 1e-6)).log_normaliser == pytest.approx(
        -math.log(1e-6) / 2, rel=ATTAINED
    )
    with pytest.raises(
        InvalidProblem, match=r"not integrable at beta = 1\.2: .* is 1\.2; use beta > 1\.2\."
    ):
        law.tilted(reward, 1.2)
    widest = GaussianMixture([0.999, 0.001], [0.0, 0.0], [1.0, 4.0])  # the rarest component decides
    with pytest.raises(InvalidProblem, match=r"use beta > 2\.4"):
        widest.tilted(reward, 2.0)


def test_singular_laws_are_tilted_inside_their_support():
    """A Gaussian on a line in the plane: the tilt acts on the coordinate along the line, and
    noising makes it regular.
    """
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    law = Gaussian([1.0, 0.0], 2 * torch.outer(direction, direction))
    reward, beta = Quadratic(torch.tensor([[0.3, 0.1], [0.1, -0.2]]), torch.tensor([0.5, 0.2])), 1.1
    along = Gaussian(0.0, 2.0)
    slope = direction @ (reward.P @ law.mean + reward.linear)
    inner = Quadratic(
        (direction @ reward.P @ direction).reshape(1, 1),
        slope.reshape(1),
        float(reward(law.mean.unsqueeze(0))),
    )
    tilt, expected = law.tilted(reward, beta), along.tilted(inner, beta)
    assert tilt.log_normaliser == pytest.approx(expected.log_normaliser, rel=ALGEBRA)
    assert torch.allclose(
        tilt.density.mean, law.mean + expected.density.mean * direction, rtol=ALGEBRA
    )
    assert torch.allclose(
        tilt.density.covariance,
        expected.density.covariance * torch.outer(direction, direction),
        rtol=ALGEBRA,
        atol=ALGEBRA,
    )
    assert not tilt.density.regular
    with pytest.raises(
        InvalidProblem, match=r"the smallest variance is 0, so there is no density; noise it first"
    ):
        law.log_prob(torch.zeros(1, 2, dtype=torch.float64))
    assert torch.isfinite(law.noised(0.9).score(randn(4, 2))).all()
