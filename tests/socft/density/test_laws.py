"""Laws, their scores and samples, and what is refused, against independent computations."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate

from socft.checks import InvalidProblem
from socft.density import (
    Gaussian,
    GaussianMixture,
    NoisedScore,
    Rotated,
)
from socft.reward import Linear, Sine
from tests.support.density_laws import (
    ALGEBRA,
    COVS,
    CURVED,
    GENERATOR,
    LAWS,
    LINE,
    MIXTURE,
    Q3,
    QUADRATURE,
    ROTATED,
    SHARED,
    TRIPLE,
    bell,
    gradient,
    independent_log_prob,
    randn,
)
from tests.support.refusals import refusals
from verify.support.sampling import require_mean


@pytest.mark.parametrize("name", list(LAWS))
@pytest.mark.parametrize("abar", [1.0, 0.4, 0.01])
def test_noised_log_prob_and_score(name: str, abar: float):
    law, x = LAWS[name], 2 * randn(20, 3)
    expected = independent_log_prob(law, x, abar)
    assert torch.allclose(law.noised_log_prob(abar, x), expected, rtol=ALGEBRA)
    assert torch.allclose(law.noised(abar).log_prob(x), expected, rtol=ALGEBRA)
    slope = gradient(lambda y: independent_log_prob(law, y, abar), x)
    assert torch.allclose(law.noised_score(abar, x), slope, rtol=ALGEBRA, atol=ALGEBRA)
    assert torch.allclose(law.noised(abar).score(x), slope, rtol=ALGEBRA, atol=ALGEBRA)


@pytest.mark.parametrize("name", list(LAWS))
def test_score_jacobian_is_the_derivative_of_an_independent_score(name: str):
    law, x = LAWS[name], 2 * randn(10, 3)
    y = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(independent_log_prob(law, y).sum(), y, create_graph=True)
    rows = [torch.autograd.grad(slope[:, i].sum(), y, retain_graph=True)[0] for i in range(3)]
    assert torch.allclose(law.score_jacobian(x), torch.stack(rows, 1), rtol=ALGEBRA, atol=ALGEBRA)


@pytest.mark.parametrize("abar", [0.9, 0.3])
def test_noising_is_convolution(abar: float):
    """The density of sqrt(abar) x0 + sqrt(1 - abar) eps as an integral over x0."""
    for point in (-2.0, 0.3, 4.0):

        def integrand(x0: float, point: float = point) -> float:
            data = 0.3 * bell(x0, -1.0, 0.5) + 0.7 * bell(x0, 2.0, 1.5)
            return data * bell(point, abar**0.5 * x0, 1 - abar)

        expected = integrate.quad(integrand, -15, 15, points=[-1.0, 2.0, point / abar**0.5])[0]
        measured = float(
            LINE.noised(abar).log_prob(torch.tensor([[point]], dtype=torch.float64)).exp()
        )
        assert measured == pytest.approx(expected, rel=QUADRATURE)


@pytest.mark.parametrize("name", list(LAWS))
def test_noising_composes(name: str):
    law, x = LAWS[name], randn(5, 3)
    assert torch.allclose(
        law.noised(0.6).noised(0.5).log_prob(x), law.noised(0.3).log_prob(x), rtol=ALGEBRA
    )


@pytest.mark.parametrize("name", list(LAWS))
def test_samples_have_zero_mean_score(name: str):
    """E s = 0 and E[s x'] = -I (Stein's identity) hold for samples of the law and of no other."""
    law, batch = LAWS[name], 20_000
    x = law.sample(batch, torch.Generator().manual_seed(1))
    score = gradient(lambda y: independent_log_prob(law, y), x)
    stein = (score.unsqueeze(2) * x.unsqueeze(1)).flatten(1)
    target = -torch.eye(3, dtype=torch.float64).flatten()
    for values, mean in ((score, torch.zeros(3, dtype=torch.float64)), (stein, target)):
        require_mean(values, mean, 0.021)


@pytest.mark.parametrize("law", [MIXTURE, SHARED], ids=["mixture", "common covariance"])
def test_sample_moments_are_the_law_s(law: GaussianMixture):
    batch = 20_000
    x = law.sample(batch, torch.Generator().manual_seed(2))
    require_mean(x, law.mean, 0.014)
    products = ((x - law.mean).unsqueeze(2) * (x - law.mean).unsqueeze(1)).flatten(1)
    require_mean(products, law.covariance, 0.033)


def test_sampling_is_reproducible():
    for law in LAWS.values():
        draws = [law.sample(5, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


def test_components_in_any_order_and_rotated_coordinates():
    x, order = randn(10, 3), [2, 0, 1]
    shuffled = GaussianMixture(MIXTURE.weights[order], MIXTURE.means[order], COVS[order])
    assert torch.allclose(shuffled.score(x), MIXTURE.score(x), rtol=ALGEBRA, atol=ALGEBRA)
    turned = GaussianMixture(MIXTURE.weights, MIXTURE.means @ Q3.T, Q3 @ COVS @ Q3.T)
    assert torch.allclose(
        turned.score(x @ Q3.T), MIXTURE.score(x) @ Q3.T, rtol=ALGEBRA, atol=ALGEBRA
    )
    plain = Rotated(torch.eye(3, dtype=torch.float64), ROTATED.factors)
    assert torch.allclose(ROTATED.score(x), plain.score(x @ Q3) @ Q3.T, rtol=ALGEBRA, atol=ALGEBRA)


def test_rotated_law_is_the_mixture_of_products():
    """Components of the factors multiply out to one mixture with 2 * 3 * 1 components."""
    rows = [(a, b) for a in range(2) for b in range(3)]
    weights = torch.stack([LINE.weights[a] * TRIPLE.weights[b] for a, b in rows])
    means = torch.stack(
        [torch.tensor([LINE.means[a, 0], TRIPLE.means[b, 0], 0.5]) for a, b in rows]
    )
    variances = torch.stack(
        [torch.tensor([LINE.covariances[a, 0, 0], 0.8, 2.0], dtype=torch.float64) for a, _ in rows]
    )
    product = GaussianMixture(weights, means @ Q3.T, Q3 @ torch.diag_embed(variances) @ Q3.T)
    x = 2 * randn(10, 3)
    assert torch.allclose(ROTATED.log_prob(x), product.log_prob(x), rtol=ALGEBRA)
    assert torch.allclose(
        ROTATED.score_jacobian(x), product.score_jacobian(x), rtol=ALGEBRA, atol=ALGEBRA
    )


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_stable_fifty_deviations_away(direction: float):
    """log p and the score at |x| = 50 standard deviations against 50-digit arithmetic, in float64
    and finite in float32.
    """
    mpmath.mp.dps = 50
    point = direction * 50 * float(LINE.covariance) ** 0.5
    parts = [
        w * mpmath.npdf(mpmath.mpf(point), m, mpmath.sqrt(v))
        for w, m, v in zip(
            LINE.weights.tolist(),
            LINE.means[:, 0].tolist(),
            LINE.spectra[:, 0].tolist(),
            strict=True,
        )
    ]
    pulls = [
        -(point - m) / v
        for m, v in zip(LINE.means[:, 0].tolist(), LINE.spectra[:, 0].tolist(), strict=True)
    ]
    total = mpmath.fsum(parts)
    score = mpmath.fsum([p * s for p, s in zip(parts, pulls, strict=True)]) / total
    x = torch.tensor([[point]], dtype=torch.float64)
    assert float(LINE.log_prob(x)) == pytest.approx(float(mpmath.log(total)), rel=ALGEBRA)
    assert float(LINE.score(x)) == pytest.approx(float(score), rel=ALGEBRA)
    assert float(LINE.score_jacobian(x)) == pytest.approx(
        -1 / 1.5, rel=ALGEBRA
    )  # the wider component alone
    for law in LAWS.values():
        far = (
            50
            * float(getattr(law, "covariance", torch.eye(3)).diagonal().max()) ** 0.5
            * torch.ones(1, 3)
        )
        y = far.clone().requires_grad_(True)
        (second,) = torch.autograd.grad(law.noised_score(0.5, y).sum(), y)
        assert torch.isfinite(law.log_prob(far)).all()
        assert torch.isfinite(second).all()


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "weight zero": (
        lambda: GaussianMixture([1.0, 0.0], [0.0, 1.0], 1.0),
        "smallest weight is 0; weights must be positive",
    ),
    "shapes": (
        lambda: GaussianMixture([1.0], [0.0, 1.0], 1.0),
        r"weights has shape \(1,\) and means \(2, 1\)",
    ),
    "weights of another sum": (
        lambda: GaussianMixture([0.7, 0.4], [0.0, 1.0], 1.0),
        "weights sum to 1.1; a mixture's weights sum to 1, divide by their sum",
    ),
    "no numbers": (
        lambda: GaussianMixture(["a"], [0.0], 1.0),  # type: ignore[list-item]
        r"weights = \['a'\]; give a number, an array, or lists of equal length",
    ),
    "nan mean": (
        lambda: Gaussian([0.0, math.nan], 1.0),
        r"mean\[1\] = nan; it must be a finite number",
    ),
    "infinite covariance": (
        lambda: Gaussian(0.0, math.inf),
        "cov = inf; it must be a finite number",
    ),
    "negative variance": (
        lambda: Gaussian(0.0, -1.0),
        "eigenvalue -1; it must be positive semi-definite",
    ),
    "asymmetric": (
        lambda: Gaussian([0.0, 0.0], torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        r"differs from its transpose by 0\.5; give a symmetric",
    ),
    "cov shape": (
        lambda: GaussianMixture([0.5, 0.5], [0.0, 1.0], [1.0, 1.0, 1.0]),
        r"covs has shape \(3,\)",
    ),
    "level": (lambda: LINE.noised(1.2), r"abar = 1\.2; a signal level must lie in \[0, 1\]"),
    "levels": (
        lambda: NoisedScore(LINE, torch.tensor([0.5, -0.5])),
        r"abar = -0\.5; a signal level",
    ),
    "nan level": (
        lambda: NoisedScore(LINE, torch.tensor([math.nan])),
        r"abar\[0\] = nan; it must be a finite number",
    ),
    "singular score": (
        lambda: NoisedScore(Gaussian(0.0, 0.0), torch.ones(1)),
        "the law is singular and a level is 1",
    ),
    "batch": (
        lambda: LINE.sample(0, GENERATOR),
        "batch = 0; give a whole number that is at least 1",
    ),
    "state": (
        lambda: MIXTURE.score(torch.zeros(2, 4)),
        r"the law got .* give .* \(batch, 3\)",
    ),
    "rotation": (lambda: Rotated(torch.ones(2, 2), [LINE, LINE]), "miss orthonormality by"),
    "factors": (
        lambda: Rotated(torch.eye(2), [LINE]),
        "there are 1 factors for 2 directions; give one each",
    ),
    "factor dimension": (
        lambda: Rotated(torch.eye(1), [MIXTURE]),
        "every factor must be one-dimensional",
    ),
    "coupled": (
        lambda: ROTATED.tilted(CURVED, 1.0),
        "couples rotated coordinates by .*; use one that is diagonal in them",
    ),
    "beta": (
        lambda: LINE.tilted(Linear(torch.ones(1)), 0.0),
        "beta = 0.0; it must be a positive finite number",
    ),
    "reward size": (
        lambda: LINE.tilted(Linear(torch.ones(2)), 1.0),
        "vectors of length 2; this law has 1",
    ),
    "reward kind": (lambda: LINE.tilted(Sine(), 1.0), "Sine has no closed-form tilt"),
}
test_refusals_say_what_and_how = refusals(REFUSALS)


def test_numbers_and_arrays_are_welcome():
    x = randn(4, 2)
    for cov in (2.0, [2.0, 2.0], np.eye(2) * 2):
        law = Gaussian(np.zeros(2), cov)
        assert torch.allclose(law.score(x), -x / 2, rtol=ALGEBRA)


@pytest.mark.refusal
@pytest.mark.parametrize(
    "law",
    [
        Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 0.0]]),
        Rotated(torch.eye(2, dtype=torch.float64), [Gaussian(0.0, 1.0), Gaussian(0.0, 0.0)]),
    ],
    ids=["gaussian", "rotated"],
)
def test_laws_without_a_density_have_no_derivatives_of_it(law: Gaussian | Rotated):
    x = torch.zeros(3, 2, dtype=torch.float64)
    for ask in (law.log_prob, law.score, law.score_jacobian):
        with pytest.raises(InvalidProblem, match="the smallest variance is 0"):
            ask(x)
    with pytest.raises(InvalidProblem, match=r"the generator is None; give torch\.Generator"):
        law.sample(3, None)  # type: ignore[arg-type]
