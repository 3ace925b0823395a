"""Lipschitz constants of noised scores against brute-force maximisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from socft.density import (
    Density,
    Gaussian,
    GaussianMixture,
    NoisedScore,
    Rotated,
)
from socft.density.constants import stack_lines
from socft.density.lipschitz import _BOTH, _ONE, _supremum, _Weight
from socft.density.search import _DOWN, _THIRD, _UP, _cells, _natural, _Objective
from tests.support.density_laws import (
    ALGEBRA,
    ATTAINED,
    COVS,
    GENERATOR,
    LINE,
    ROTATED,
    SHARED,
    TRIPLE,
    Function,
    covariance,
    independent_log_prob,
    randn,
)

NEVER_ABOVE = 1 + 1e-8  # round-off of the measured derivatives
ABOVE = 1e-8  # of L0: round-off of an eigenvalue that may be near zero
ON_A_GRID = 1e-4  # of L0: what 20 001 points may miss of a maximum
SEARCHED = 1 + 2e-10  # the gap the branch and bound leaves
LOOSE = 50.0  # an upper bound this far above the measured value would be useless


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
