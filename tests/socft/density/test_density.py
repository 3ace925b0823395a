"""Densities: laws, scores and tilts against independent computations, Lipschitz constants against
brute-force maximisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, optimize
from torch import Tensor
from torch import distributions as td

from socft.checks import InvalidProblem
from socft.density import (
    Density,
    Gaussian,
    GaussianMixture,
    NoisedScore,
    Rotated,
    affine_reference,
    score_reference,
)
from socft.density.constants import stack_lines
from socft.density.lipschitz import _BOTH, _ONE, _supremum, _Weight
from socft.density.search import _DOWN, _THIRD, _UP, _cells, _natural, _Objective
from socft.reward import Linear, Quadratic, Sine, Sum
from socft.schedule import ddim, linear_levels, soften_last, subsample, variance_preserving
from tests.support.refusals import refusals
from verify.support.sampling import require_mean

ALGEBRA = 1e-10  # relative: matrix algebra in float64 at these condition numbers
QUADRATURE = 1e-8  # scipy's quad at its default tolerance
ATTAINED = 1e-6  # relative: a maximum that local optimisation reaches
NEVER_ABOVE = 1 + 1e-8  # round-off of the measured derivatives
ABOVE = 1e-8  # of L0: round-off of an eigenvalue that may be near zero
ON_A_GRID = 1e-4  # of L0: what 20 001 points may miss of a maximum
SEARCHED = 1 + 2e-10  # the gap the branch and bound leaves
LOOSE = 50.0  # an upper bound this far above the measured value would be useless
STANDARD_ERRORS = 4.0

Function = Callable[[Tensor], Tensor]

GENERATOR = torch.Generator().manual_seed(7)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def covariance(n: int, least: float = 0.3) -> Tensor:
    root = randn(n, n)
    return root @ root.T / n + least * torch.eye(n, dtype=torch.float64)


COVS = torch.stack([covariance(3) for _ in range(3)])
MIXTURE = GaussianMixture([0.2, 0.5, 0.3], randn(3, 3), COVS)
SHARED = GaussianMixture([0.6, 0.4], randn(2, 3), COVS[0])
LINE = GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.5, 1.5])
TRIPLE = GaussianMixture([0.2, 0.3, 0.5], [-3.0, 0.0, 2.5], 0.8)
Q3 = torch.linalg.qr(randn(3, 3)).Q
ROTATED = Rotated(Q3, [LINE, TRIPLE, Gaussian(0.5, 2.0)])
LAWS: dict[str, Density] = {
    "gaussian": Gaussian(randn(3), COVS[1]),
    "common covariance": SHARED,
    "mixture": MIXTURE,
    "rotated": ROTATED,
}


def independent_log_prob(law: Density, x: Tensor, abar: float = 1.0) -> Tensor:
    """The same law through torch.distributions, from its own means and covariances,
    noised by hand.
    """
    if isinstance(law, Rotated):
        z = x @ law.rotation
        return torch.stack(
            [independent_log_prob(f, z[:, i : i + 1], abar) for i, f in enumerate(law.factors)]
        ).sum(0)
    assert isinstance(law, GaussianMixture)
    covs = abar * law.covariances + (1 - abar) * torch.eye(law.dims[0], dtype=torch.float64)
    parts = td.MultivariateNormal(abar**0.5 * law.means, covs)
    return td.MixtureSameFamily(td.Categorical(law.weights), parts).log_prob(x)


def bell(x: float, mean: float, variance: float) -> float:
    """The normal density."""
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def gradient(function: Function, x: Tensor) -> Tensor:
    y = x.clone().requires_grad_(True)
    return torch.autograd.grad(function(y).sum(), y)[0]


# Laws, scores, samples
# -----------------------------------------------------------------------------


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


# Lipschitz constants
# -----------------------------------------------------------------------------


def steepest(law: Density, x: Tensor) -> Tensor:
    """Operator norm of the score's Jacobian."""
    return torch.linalg.eigvalsh(law.score_jacobian(x)).abs().amax(1)


def bend(law: Density, x: Tensor, u: Tensor) -> Tensor:
    """|D^3 log p [u, u, u]| for unit u, from the score by two directional derivatives."""
    y = x if x.requires_grad else x.clone().requires_grad_(True)
    (first,) = torch.autograd.grad((law.noised_score(1.0, y) * u).sum(), y, create_graph=True)
    (second,) = torch.autograd.grad((first * u).sum(), y, create_graph=True)
    return (second * u).sum(1).abs()


def climb(function: Function, starts: Tensor) -> float:
    """Largest value of a differentiable function near any start: a shrinking random search, then
    quasi-Newton ascent.
    """
    generator = torch.Generator().manual_seed(0)
    points, values, scale = starts, function(starts).detach(), starts.std(0) / 2
    for _ in range(20):
        points = points[values.topk(40).indices]
        moves = torch.randn(10, *points.shape, generator=generator, dtype=torch.float64) * scale
        points, scale = torch.cat([points, (points + moves).flatten(0, 1)]), 0.75 * scale
        values = function(points).detach()

    def descend(z: np.ndarray) -> tuple[float, np.ndarray]:
        y = torch.tensor(z).unsqueeze(0).requires_grad_(True)
        value = -function(y).sum()
        return float(value.detach()), torch.autograd.grad(value, y)[0][0].numpy()

    result = optimize.minimize(
        descend,
        points[values.argmax()].numpy(),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 40},
    )
    return max(float(values.max()), -float(result.fun))


def measured_constants(law: Density, reach: float) -> tuple[float, float]:
    """Brute-force suprema of the Jacobian and of the third derivative over a ball of about
    ``reach``.
    """
    n = law.dims[0]
    generator = torch.Generator().manual_seed(5)
    x = reach * torch.randn(2000, n, generator=generator, dtype=torch.float64)
    x = x * torch.rand(2000, 1, generator=generator, dtype=torch.float64)
    u = torch.randn(2000, n, generator=generator, dtype=torch.float64)

    def third(z: Tensor) -> Tensor:
        return bend(law, z[:, :n], torch.nn.functional.normalize(z[:, n:], dim=1))

    return climb(lambda z: steepest(law, z), x), climb(third, torch.cat([x, u], 1))


LINES = {
    "one": (Gaussian(3.0, 0.25), 10.0),
    "two of one width": (GaussianMixture([0.9, 0.1], [-2.0, 2.0], 0.5), 10.0),
    "two of one width, near": (GaussianMixture([0.4, 0.6], [-0.3, 0.5], 1.2), 60.0),
    "two of two widths": (LINE, 10.0),
    "needle in a haystack": (GaussianMixture([0.01, 0.99], [0.3, 0.0], [1e-4, 1.0]), 10.0),
    "three of one width": (TRIPLE, 10.0),
    "same mean": (GaussianMixture([0.5, 0.5], [1.0, 1.0], [0.2, 3.0]), 10.0),
    "five": (
        GaussianMixture(
            [0.1, 0.2, 0.3, 0.2, 0.2], [-4.0, -1.0, 0.0, 2.0, 7.0], [0.5, 0.1, 2.0, 0.3, 1.0]
        ),
        20.0,
    ),
    "noised": (
        GaussianMixture([0.3, 0.3, 0.4], [-3.0, 0.0, 5.0], [0.1, 1.0, 0.4]).noised(0.2),
        40.0,
    ),
}


def dense_suprema(law: GaussianMixture, reach: float) -> tuple[float, float]:
    """Suprema in one dimension on a grid that is refined four times around its largest value."""

    def refine(function: Function) -> float:
        low, high, best = -reach, reach, 0.0
        for _ in range(5):
            x = torch.linspace(low, high, 10_001, dtype=torch.float64).unsqueeze(1)
            values = function(x).detach()
            i, best = int(values.argmax()), max(best, float(values.max()))
            low, high = float(x[max(i - 2, 0)]), float(x[min(i + 2, 10_000)])
        return best

    return refine(lambda x: steepest(law, x)), refine(lambda x: bend(law, x, torch.ones_like(x)))


@pytest.mark.parametrize("name", list(LINES))
def test_line_constants_are_suprema(name: str):
    law, reach = LINES[name]
    L0, L1 = dense_suprema(law, reach)
    limit = float(1 / law.spectra.max())  # the Jacobian far away, which no finite grid reaches
    assert law.constants.L0_exact
    assert law.constants.L1_exact
    assert max(L0, limit) <= law.L0 * NEVER_ABOVE
    assert max(L0, limit) >= law.L0 * (1 - ATTAINED)
    assert L1 * (1 - ALGEBRA) <= law.L1 <= L1 * (1 + ATTAINED)


def test_branch_and_bound_agrees_with_the_closed_form():
    """Two components of one width have closed constants; a third of the same law as the first sends
    them to the search.
    """
    closed = GaussianMixture([0.9, 0.1], [-2.0, 2.0], 0.5)
    searched = GaussianMixture([0.5, 0.1, 0.4], [-2.0, 2.0, -2.0], 0.5)
    assert closed.L0 <= searched.L0 <= closed.L0 * SEARCHED
    assert closed.L1 <= searched.L1 <= closed.L1 * SEARCHED
    for name in ("up", "down"):
        exact, found = (float(getattr(law.constants, name)) for law in (closed, searched))
        assert exact <= found <= exact + ABOVE


def test_two_components_attain_the_closed_form():
    """At weights 1/2 the Jacobian, at weights (1 +- 1/sqrt 3)/2 the third derivative."""
    law = GaussianMixture([0.6, 0.4], torch.tensor([[0.0, 0.0, 0.0], [4.0, 1.0, -2.0]]), COVS[0])
    precision = torch.linalg.inv(COVS[0])
    pull = precision @ (law.means[0] - law.means[1])

    def where(weight: float) -> Tensor:
        """A point at which the first component has this posterior weight."""
        middle = law.means.mean(0)
        log_ratio = math.log(weight / (1 - weight)) - math.log(0.6 / 0.4)
        return (
            middle
            + log_ratio
            * (law.means[0] - law.means[1])
            / float(pull @ (law.means[0] - law.means[1]))
        ).unsqueeze(0)

    assert float(steepest(law, where(0.5))) == pytest.approx(law.L0, rel=ATTAINED)
    direction = (pull / pull.norm()).unsqueeze(0)
    for sign in (-1, 1):
        assert float(
            bend(law, where((1 + sign / math.sqrt(3)) / 2), direction).detach()
        ) == pytest.approx(law.L1, rel=ATTAINED)
    assert math.isclose(law.L1, float(pull.norm()) ** 3 / (6 * math.sqrt(3)), rel_tol=ALGEBRA)


PLANES: dict[str, tuple[GaussianMixture, float]] = {
    "common covariance": (GaussianMixture([0.7, 0.3], 2 * randn(2, 2), covariance(2)), 10.0),
    "common covariance in 3-d": (SHARED, 10.0),
    "nested": (
        GaussianMixture(
            [0.5, 0.5], randn(2, 2), torch.stack([COVS[0, :2, :2], COVS[0, :2, :2] + covariance(2)])
        ),
        20.0,
    ),
    "nested in 3-d": (
        GaussianMixture([0.2, 0.8], randn(2, 3), torch.stack([COVS[0] + covariance(3), COVS[0]])),
        20.0,
    ),
    "isotropic": (
        GaussianMixture([0.5, 0.5], torch.tensor([[0.0, 0.0], [3.0, 0.0]]), [0.5, 2.0]),
        20.0,
    ),
    "equal along an axis": (
        GaussianMixture(
            [0.5, 0.5],
            torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
            torch.diag_embed(torch.tensor([[1.0, 1.0], [2.0, 1.0]])),
        ),
        20.0,
    ),
}


@pytest.mark.parametrize("name", list(PLANES))
def test_two_components_have_exact_constants(name: str):
    law, reach = PLANES[name]
    L0, L1 = measured_constants(law, reach)
    limit = (
        max(float(1 / s.min()) for s in law.spectra) if law.shared else 0.0
    )  # where one component is alone
    assert law.constants.L0_exact
    assert law.constants.L1_exact
    assert law.L0 * (1 - ATTAINED) <= max(L0, limit) <= law.L0 * NEVER_ABOVE
    assert law.L1 * (1 - ATTAINED) <= L1 <= law.L1 * NEVER_ABOVE


def extremes(law: Density, x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest and minus the smallest eigenvalue of the score's Jacobian."""
    spectrum = torch.linalg.eigvalsh(law.score_jacobian(x))
    return spectrum[:, -1], -spectrum[:, 0]


@pytest.mark.parametrize("name", [*LINES, *PLANES])
def test_one_sided_constants_are_suprema(name: str):
    """Both ends of the spectrum over a ball and where one component is alone, with their signs."""
    law, reach = (LINES | PLANES)[name]
    n = law.dims[0]
    x = reach * torch.linspace(-1, 1, 20_001, dtype=torch.float64).unsqueeze(1)
    if n > 1:
        x = reach * randn(3000, n) * torch.rand(3000, 1, generator=GENERATOR, dtype=torch.float64)
    found = law.constants
    widest = 1 / float(law.spectra.max())  # what is left far out where the widest is alone
    for side, sign, bound in ((0, -1, found.up), (1, 1, found.down)):

        def end(y: Tensor, side: int = side) -> Tensor:
            return extremes(law, y)[side]

        seen = climb(end, x) if n > 1 else float(end(x).max())
        assert seen <= float(bound) + ABOVE * law.L0
        limit = sign * widest if n == 1 or law.shared else -math.inf
        assert max(seen, limit) >= float(bound) - (ATTAINED if n > 1 else ON_A_GRID) * law.L0
    assert bool(found.up_exact)
    assert bool(found.down_exact)


def test_one_sided_constants_tell_log_concave_laws():
    """Two close modes are strongly log-concave, two distant ones are not; the norm sees neither."""
    near, far = (GaussianMixture([0.5, 0.5], [-c, c], 0.5) for c in (0.5, 1.0))
    assert float(near.constants.up) == pytest.approx(-2 + 4 * 0.25, rel=ALGEBRA)
    assert float(far.constants.up) == pytest.approx(-2 + 4 * 1.0, rel=ALGEBRA)
    assert math.isclose(near.L0, 2, rel_tol=ALGEBRA)
    assert float(Gaussian(0.0, [[1.0]]).constants.up) == pytest.approx(-1, rel=ALGEBRA)


BOUNDED: dict[str, GaussianMixture] = {
    "three of one covariance": GaussianMixture([0.3, 0.3, 0.4], 2 * randn(3, 2), covariance(2)),
    "three close ones": GaussianMixture([0.3, 0.3, 0.4], 0.3 * randn(3, 2), covariance(2)),
    "square": GaussianMixture(
        [0.25] * 4, torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]]), 1.0
    ),
    "three isotropic": GaussianMixture([0.3, 0.3, 0.4], randn(3, 2), [0.5, 1.0, 2.0]),
    "two parallel": GaussianMixture([0.3, 0.3, 0.4], 2 * randn(3, 2), [1.0, 1.0, 2.0]),
    "hidden crossing": GaussianMixture(
        [0.4, 0.4, 0.2],
        torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
        torch.diag_embed(torch.tensor([[1.0, 2.0], [2.0, 1.0], [4.0, 4.0]])),
    ),
}


@pytest.mark.parametrize("name", list(BOUNDED))
def test_more_components_have_upper_bounds(name: str):
    law = BOUNDED[name]
    L0, L1 = measured_constants(law, 10.0)
    assert not law.constants.L1_exact
    assert L0 <= law.L0 * NEVER_ABOVE
    assert L1 <= law.L1 * NEVER_ABOVE
    up, down = extremes(law, 10 * randn(3000, 2))
    assert float(up.max()) <= float(law.constants.up) + ABOVE
    assert float(down.max()) <= float(law.constants.down) + ABOVE
    assert law.L0 <= LOOSE * L0
    assert law.L1 <= LOOSE * L1


UNBOUNDED = {
    "crossing": GaussianMixture(
        [0.5, 0.5],
        [[0.0, 0.0], [1.0, 1.0]],
        torch.diag_embed(torch.tensor([[1.0, 2.0], [2.0, 1.0]])),
    ),
    "equal along an axis where the means differ": GaussianMixture(
        [0.5, 0.5],
        [[0.0, 0.0], [0.0, 1.0]],
        torch.diag_embed(torch.tensor([[1.0, 1.0], [2.0, 1.0]])),
    ),
}


@pytest.mark.parametrize("name", list(UNBOUNDED))
def test_scores_that_separate_where_weights_balance_have_no_constant(name: str):
    """The Jacobian along the balanced set grows with the square of the distance, and the constants
    are infinite.
    """
    law = UNBOUNDED[name]
    assert math.isinf(law.L0)
    assert math.isinf(law.L1)
    assert law.constants.L0_exact

    def on_balance(distance: float) -> float:
        a, b = (
            GaussianMixture([1.0], law.means[k : k + 1], law.covariances[k : k + 1])
            for k in range(2)
        )

        def difference(s: float, y: float) -> float:
            x = torch.tensor([[s, y]], dtype=torch.float64)
            return float(a.log_prob(x) - b.log_prob(x))

        if name == "crossing":
            s = optimize.brentq(lambda s: difference(s, distance), 0.5 * distance, 2 * distance)
            return float(steepest(law, torch.tensor([[s, distance]], dtype=torch.float64)))
        y = optimize.brentq(lambda y: difference(distance, y), -(distance**2), distance**2)
        return float(steepest(law, torch.tensor([[distance, y]], dtype=torch.float64)))

    growth = [on_balance(d) for d in (100.0, 200.0, 400.0)]
    assert 3.5 < growth[1] / growth[0] < 4.5
    assert 3.5 < growth[2] / growth[1] < 4.5


def test_a_finer_bystander_does_not_bound_crossing_components():
    """A third component of larger precision than both is negligible far away, where the other two
    cross as before.
    """
    crossing, k = UNBOUNDED["crossing"], [0, 1]
    fine = GaussianMixture(
        [0.4, 0.4, 0.2],
        torch.cat([crossing.means, torch.zeros(1, 2, dtype=torch.float64)]),
        torch.cat([crossing.covariances, 0.1 * torch.eye(2, dtype=torch.float64).unsqueeze(0)]),
    )
    far = torch.tensor([[100.0, 100.0]], dtype=torch.float64)
    assert torch.allclose(
        fine.score(far),
        GaussianMixture([0.5, 0.5], fine.means[k], fine.covariances[k]).score(far),
        rtol=ALGEBRA,
    )
    assert math.isinf(fine.L0)
    assert math.isinf(fine.L1)


@pytest.mark.parametrize(
    "objective", [_UP, _DOWN, _THIRD], ids=["second derivative", "minus it", "third derivative"]
)
def test_branch_and_bound_never_cuts_a_maximum(objective: _Objective):
    """On random cells of a mixture: exact values and slopes at the centers, and a bound of |f''|
    that shrinks to it.
    """
    law = LINES["five"][0]
    centers = float(law.mean) + 8 * torch.rand(60, generator=GENERATOR, dtype=torch.float64) - 4
    radius = 2.0 * torch.rand(60, generator=GENERATOR, dtype=torch.float64) ** 4
    lines = _natural(stack_lines([law]))[torch.zeros(60, dtype=torch.long)]
    cells = _cells(lines, centers - float(law.mean), radius)  # cells are centred at the mean
    derivatives: list[Function] = [lambda x: independent_log_prob(law, x.unsqueeze(1))]
    for _ in range(5 if objective is _THIRD else 4):
        derivatives.append(differentiated(derivatives[-1]))
    value, slope, second = (
        d(centers.clone().requires_grad_(True)).detach() for d in derivatives[-3:]
    )
    expected = value.abs() if objective is _THIRD else value if objective is _UP else -value
    assert torch.allclose(objective.value(cells), expected, rtol=ALGEBRA, atol=ALGEBRA)
    assert torch.allclose(
        objective.slope(cells), slope.abs(), rtol=ALGEBRA, atol=ALGEBRA * float(slope.abs().max())
    )
    inside = centers.unsqueeze(1) + radius.unsqueeze(1) * torch.linspace(
        -1, 1, 41, dtype=torch.float64
    )
    largest = (
        derivatives[-1](inside.flatten().requires_grad_(True))
        .detach()
        .abs()
        .reshape(60, 41)
        .amax(1)
    )
    assert (largest <= objective.second_bound(cells) * NEVER_ABOVE).all()
    tight = objective.second_bound(_cells(lines, centers - float(law.mean), 0 * radius))
    assert (second.abs() <= tight * NEVER_ABOVE).all()
    assert float((tight / second.abs()).median()) < LOOSE


def differentiated(function: Function) -> Function:
    """The derivative of a function of one number per sample."""
    return lambda x: torch.autograd.grad(function(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("weight", [_BOTH, _ONE], ids=["both", "one"])
def test_pair_suprema_by_dense_maximisation(weight: _Weight, q: int):
    peaks = torch.tensor([-30.0, -1.0, 0.0, 2.0, 40.0], dtype=torch.float64)
    t = torch.linspace(0, 80, 800_001, dtype=torch.float64).unsqueeze(1)
    first = torch.sigmoid(peaks - t)
    mass = first * torch.sigmoid(t - peaks) if weight is _BOTH else first
    measured = (mass * (2 * t) ** (q / 2)).amax(0)
    assert torch.allclose(_supremum(weight, peaks, q), measured, rtol=ATTAINED)


def test_almost_equal_covariances_do_not_break_the_constants():
    """Between one covariance and two that the comparison can tell apart, the bound stays within 4
    of the common-covariance one.
    """
    means = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    common = GaussianMixture([0.5, 0.5], means, 1.0)
    for difference in (1e-15, 1e-12, 1e-11, 1e-9):
        law = GaussianMixture([0.5, 0.5], means, [1.0, 1.0 + difference])
        assert common.L0 * (1 - ATTAINED) <= law.L0 <= 4 * common.L0
        assert common.L1 * (1 - ATTAINED) <= law.L1 <= 8 * common.L1


@pytest.mark.parametrize("name", ["two of two widths", "five", "three of one width"])
def test_constants_do_not_see_translations_and_scale(name: str):
    law, c = LINES[name][0], 3.0
    moved = GaussianMixture(
        law.weights, c * law.means + 100, (c**2 * law.spectra[:, 0]).expand(law.components).clone()
    )
    assert math.isclose(moved.L0, law.L0 / c**2, rel_tol=SEARCHED - 1)
    assert math.isclose(moved.L1, law.L1 / c**3, rel_tol=SEARCHED - 1)


def test_rotated_constants_are_the_largest_factor_s():
    for name in ("up", "down"):
        largest = max(float(getattr(f.constants, name)) for f in ROTATED.factors)
        assert float(getattr(ROTATED.constants, name)) == pytest.approx(largest, abs=1e-9)
    L0, L1 = (max(getattr(f, name) for f in ROTATED.factors) for name in ("L0", "L1"))
    assert math.isclose(ROTATED.L0, L0, rel_tol=SEARCHED - 1)
    assert math.isclose(ROTATED.L1, L1, rel_tol=SEARCHED - 1)
    measured = measured_constants(ROTATED, 8.0)
    assert ROTATED.L0 * (1 - ATTAINED) <= measured[0] <= ROTATED.L0 * NEVER_ABOVE
    assert ROTATED.L1 * (1 - ATTAINED) <= measured[1] <= ROTATED.L1 * NEVER_ABOVE


def test_constants_of_a_whole_schedule():
    """Every level at once, in 64 dimensions with 4 different factors, is what each level's law says
    by itself.
    """
    factors = [
        GaussianMixture([0.3, 0.7], [-1.0 - i / 4, 1.0], [0.5 + i / 8, 1.0]) for i in range(4)
    ]
    law = Rotated(torch.linalg.qr(randn(64, 64)).Q, factors * 16)
    abar = torch.tensor([1e-3, 0.2, 0.9], dtype=torch.float64)
    constants = NoisedScore(law, abar).constants
    assert constants.L0.shape == constants.L1_exact.shape == (3,)
    for k in (1, 2):
        L0, L1 = (
            max(getattr(f.noised(float(abar[k])), name) for f in factors) for name in ("L0", "L1")
        )
        assert float(constants.at(k).L0) == pytest.approx(L0, rel=ALGEBRA)
        assert float(constants.at(k).L1) == pytest.approx(L1, rel=ALGEBRA)
    for mixture in (SHARED, BOUNDED["three isotropic"], PLANES["nested"][0]):
        at_once = mixture.noised_constants(abar)
        assert float(at_once.L0[1]) == pytest.approx(mixture.noised(0.2).L0, rel=ALGEBRA)
        assert float(at_once.L1[1]) == pytest.approx(mixture.noised(0.2).L1, rel=ALGEBRA)


# Noised scores and references
# -----------------------------------------------------------------------------


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


# Tilts
# -----------------------------------------------------------------------------

CURVED = Quadratic(0.4 * (COVS[0] - COVS[1]), randn(3), 0.7)
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


# Refusals
# -----------------------------------------------------------------------------

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
