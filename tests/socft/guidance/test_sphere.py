"""The sphere: Bessel ratios against mpmath, scores against Monte Carlo and derivatives, samples and
tilts against moments.
"""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from scipy import integrate
from torch import Tensor

from socft.checks import InvalidProblem
from socft.guidance.sphere import Sphere, SphereDenoiser, bessel_slope, log_moment, mean_direction
from socft.reward import Linear, Quadratic

ROUNDING = 1e-13  # relative: 64 terms of a continued fraction, or two scaled Bessel functions
ALGEBRA = 1e-9
STANDARD_ERRORS = 4.0
GENERATOR = torch.Generator().manual_seed(5)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("D", [2, 3, 7, 64, 1000])
def test_bessel_ratio_and_log_moment(D: int):
    """Small, moderate and large arguments, on both sides of every change of method."""
    mpmath.mp.dps = 40
    for k in (0.0, 1e-5, 0.3, 4.9, 5.1, 25.0, 52.0, 127.0, 129.0, 999.0, 1001.0, 1e5):
        q = torch.tensor([k * k], dtype=torch.float64)
        top, bottom = mpmath.besseli(mpmath.mpf(D) / 2, k), mpmath.besseli(mpmath.mpf(D) / 2 - 1, k)
        expected = 1 / mpmath.mpf(D) if k == 0 else top / bottom / k
        assert float(abs(float(bessel_slope(q, D)) / expected - 1)) <= ROUNDING
        moment = mpmath.log(mpmath.hyp0f1(mpmath.mpf(D) / 2, mpmath.mpf(k) ** 2 / 4))
        assert float(abs(float(log_moment(q, D)) - moment)) <= ROUNDING * max(1.0, float(moment))


def test_the_ratio_differentiates_twice():
    q = torch.tensor([0.0, 0.5, 30.0, 900.0, 4e4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_moment(q, 5).sum(), q, create_graph=True)
    assert torch.allclose(slope, bessel_slope(q, 5) / 2, rtol=ROUNDING)
    mpmath.mp.dps = 40
    (bend,) = torch.autograd.grad(slope.sum(), q)
    for at, found in zip(q.tolist()[1:], bend.tolist()[1:], strict=True):
        expected = mpmath.diff(lambda z: mpmath.log(mpmath.hyp0f1(2.5, z / 4)), at, 2)
        assert found == pytest.approx(float(expected), rel=ALGEBRA)


@pytest.mark.parametrize(
    "natural",
    [torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)],
)
def test_density_and_score_in_three_dimensions(natural: Tensor):
    """The noised density by integration over the sphere, its gradient by central differences, its
    Jacobian by them again.
    """
    law, level, x = Sphere(3, natural, radius=1.3), 0.6, 1.2 * randn(3, 3)
    spread, scale = 1 - level, level**0.5 * 1.3
    k = float(natural.norm())
    norm = 1.0 if k == 0 else math.sinh(k) / k

    def density(point: Tensor) -> float:
        where, direction = point.tolist(), natural.tolist()

        def inside(phi: float, c: float) -> float:
            s = math.sqrt(1 - c * c)
            u = (s * math.cos(phi), s * math.sin(phi), c)
            apart = sum((p - scale * v) ** 2 for p, v in zip(where, u, strict=True))
            along = sum(n * v for n, v in zip(direction, u, strict=True))
            return (
                math.exp(along - apart / (2 * spread))
                / (2 * math.pi * spread) ** 1.5
                / norm
                / (4 * math.pi)
            )

        return integrate.dblquad(inside, -1, 1, 0, 2 * math.pi, epsabs=1e-7, epsrel=1e-6)[0]

    found = law.noised_log_prob(level, x).exp()
    assert [density(point) for point in x[:1]] == pytest.approx(found[:1].tolist(), rel=1e-5)
    z = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(law.noised_log_prob(level, z).sum(), z)
    assert torch.allclose(law.noised_score(level, x), slope, rtol=ALGEBRA, atol=ALGEBRA)
    noised, e = law.noised(level), 1e-5 * torch.eye(3, dtype=torch.float64)
    columns = torch.stack([(noised.score(x + d) - noised.score(x - d)) / 2e-5 for d in e], 2)
    assert torch.allclose(noised.score_jacobian(x), columns, rtol=1e-6, atol=1e-6)
    assert torch.allclose(noised.log_prob(x), law.noised_log_prob(level, x), rtol=ALGEBRA)


def test_samples():
    """Radius and mean of uniform and concentrated samples, in a dimension and in another."""
    for D, k in ((3, 0.0), (3, 4.0), (20, 15.0)):
        natural = torch.zeros(D, dtype=torch.float64)
        natural[1] = k
        law = Sphere(D, natural, radius=2.0)
        x = law.sample(40_000, torch.Generator().manual_seed(0))
        assert torch.allclose(
            x.norm(dim=1), torch.full((40_000,), 2.0, dtype=torch.float64), rtol=ALGEBRA
        )
        error = x.std(0) / 200
        assert bool(((x.mean(0) - law.mean).abs() <= STANDARD_ERRORS * error).all())
    noisy = law.noised(0.5)
    y = noisy.sample(40_000, torch.Generator().manual_seed(1))
    assert float(y.square().sum(1).mean()) == pytest.approx(0.5 * 4 + 0.5 * 20, rel=0.01)


def test_in_two_dimensions_the_mean_is_the_classical_ratio():
    k = 2.5
    expected = float(mpmath.besseli(1, k) / mpmath.besseli(0, k))
    assert float(
        mean_direction(torch.tensor([[k, 0.0]], dtype=torch.float64))[0, 0]
    ) == pytest.approx(expected, rel=ROUNDING)


def test_tilting_by_a_linear_reward():
    """Normaliser and mean of the tilt against weighted samples of the law."""
    law, reward, beta = Sphere(4, radius=1.5), Linear(randn(4), 0.3), 0.7
    tilt = law.tilted(reward, beta)
    x = law.sample(400_000, torch.Generator().manual_seed(2))
    weight = torch.exp(reward(x) / beta)
    assert math.exp(tilt.log_normaliser) == pytest.approx(
        float(weight.mean()), abs=STANDARD_ERRORS * float(weight.std()) / 632
    )
    mean = weight @ x / weight.sum()
    effective = float(weight.sum() ** 2 / weight.square().sum())
    assert torch.allclose(tilt.density.mean, mean, atol=STANDARD_ERRORS * 1.5 / effective**0.5)


def test_constants_bound_the_jacobian():
    """L0 is attained where the posterior is widest or narrowest; L1 is above the differences of
    Jacobians.
    """
    for level in (0.3, 0.9, 0.99):
        law = Sphere(3)
        constants = law.noised_constants(torch.tensor([level], dtype=torch.float64))
        noised, x = (
            law.noised(level),
            torch.cat([torch.zeros(1, 3), 30 * randn(1, 3), randn(200, 3)]).double(),
        )
        norms = torch.linalg.matrix_norm(noised.score_jacobian(x), 2)
        assert float(norms.max()) <= float(constants.L0) * (1 + ALGEBRA)
        assert float(norms.max()) >= 0.99 * float(constants.L0)
        d = 1e-4 * randn(1, 3)
        change = (
            torch.linalg.matrix_norm(noised.score_jacobian(x + d) - noised.score_jacobian(x), 2)
            / d.norm()
        )
        assert float(change.max()) <= float(constants.L1)
        spectrum = torch.linalg.eigvalsh(noised.score_jacobian(x))
        for seen, bound in ((spectrum.max(), constants.up), (-spectrum.min(), constants.down)):
            scale = float(constants.L0)
            assert float(bound) - 0.01 * scale <= float(seen) <= float(bound) + ALGEBRA * scale
        assert bool(constants.L0_exact)
        assert not bool(constants.L1_exact)


@pytest.mark.parametrize("natural", [torch.zeros(5, dtype=torch.float64), randn(5)])
def test_denoiser_is_the_score(natural: Tensor):
    """Closed-form prediction and pullback against the score and its derivative."""
    law, abar = Sphere(5, natural, radius=1.2), torch.tensor([0.01, 0.5, 0.99], dtype=torch.float64)
    denoiser, x, g = SphereDenoiser(law, abar), randn(4, 5), randn(5)
    for k, level in enumerate(abar.tolist()):
        at = denoiser.at(k, x)
        assert torch.allclose(at.score, law.noised_score(level, x), rtol=ALGEBRA, atol=ALGEBRA)

        def clean(z: Tensor, level: float = level) -> Tensor:
            return (z + (1 - level) * law.noised_score(level, z)) / level**0.5

        expected = torch.func.vjp(clean, x)[1](g.expand_as(x).contiguous())[0]
        assert torch.allclose(at.pullback(g), expected, rtol=1e-6, atol=1e-8 / level)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sphere(1), r"dim = 1; give a whole number that is between 2 and"),
        (lambda: Sphere(3, torch.ones(2)), r"natural has shape \(2,\); give \(3,\)"),
        (lambda: Sphere(3, radius=0.0), r"radius = 0\.0; it must be a positive finite number"),
        (
            lambda: Sphere(3, spread=-1.0),
            r"spread = -1; it must not be negative",
        ),
        (lambda: Sphere(3).noised(0.0), r"abar = 0\.0; the noised law is a sphere"),
        (lambda: Sphere(3).score(torch.ones(2, 3)), r"there is no density"),
        (
            lambda: Sphere(3).tilted(Quadratic(torch.eye(3)), 1.0),
            r"Quadratic has no closed-form tilt of a sphere; use Linear",
        ),
        (
            lambda: Sphere(3).tilted(Linear(torch.ones(3)), 0.0),
            r"beta = 0\.0; it must be a positive finite number",
        ),
        (
            lambda: Sphere(3).noised(0.5).tilted(Linear(torch.ones(3)), 1.0),
            r"spread = 0\.5; tilt the law on the sphere",
        ),
        (
            lambda: Sphere(3).noised_score(0.5, torch.ones(2, 4)),
            r"x has shape \(2, 4\); give \(batch, 3\)",
        ),
        (
            lambda: SphereDenoiser(Sphere(3, spread=0.1), torch.tensor([0.5])),
            r"spread = 0\.1; give the law on the sphere itself",
        ),
    ],
)
def test_bad_input_is_refused(make, message: str):
    with pytest.raises(InvalidProblem, match=message):
        make()
