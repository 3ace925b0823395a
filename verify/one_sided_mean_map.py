r"""How much one step of the pre-trained chain stretches, by the one-sided constants of its score.

Setting: the mean map :math:`m(y) = (y + g\,s(y))/\sqrt a` with the score s of noised data;
:math:`-\mathrm{down}\, I \le \mathrm{Jac}\, s \le \mathrm{up}\, I`.

Statement: $|op("Jac") m| ≤ M = max{1 + g s_"up", g s_"down" − 1}/sqrt(a)$, and for data noised to
$macron(a)$ with weight $g ≤ 1 − macron(a)$ the first is the larger: $M < 1$ ⇔ $s_"up" < (sqrt(a) −
1)/g$

There the Jacobian of the score is :math:`\bar a\,\mathrm{Cov}(x_0|x_t)/(1-\bar a)^2 - I/(1-\bar
a)`, at least :math:`-I/(1-\bar a)`, so that the Jacobian of m is positive. The two-sided bound
:math:`(1 + g L^{(0)}_s)/\sqrt a` exceeds 1 for every law.

Kind: tight: Gaussian data, two components of a common covariance, one-dimensional mixtures.

Source: derived here; upper bounds of the score's Jacobian along the heat flow are known (arXiv
2201.01382, 2311.11475).

How it is measured: spectra of the Jacobian over lines of 4001 points, and over random points in
three dimensions, of Gaussian mixtures and rotated products, against constants by closed form or by
certified branch and bound. The certificate bounds the Jacobian of a mixture's score over intervals
in ball arithmetic.

What would refute it: an eigenvalue outside the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import flint
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.density import Density, Gaussian, GaussianMixture, Rotated
from socft.reward import Sine
from socft.schedule import Schedule, ddim, ddpm
from verify.support import topics
from verify.support.balls import ball, cells
from verify.support.claims import Claim
from verify.support.instances import random_rotation
from verify.support.scores import MixtureScore
from verify.support.strategies import any_scores, gaussian_scores, levels, mixture_scores

CLAIM = Claim.of_module(__name__, __doc__, "One-sided mean map", topics.ONE_SIDED)
ON_A_GRID = 1e-4
"""Relative distance by which points miss a supremum."""
REACH, POINTS, CELLS = 12.0, 4001, 4000


def jacobians(law: Density, schedule: Schedule, points: Tensor) -> Tensor:
    """Ends of the spectrum of ``Jac m`` at the points, shape (2, T): smallest and largest."""
    ends = []
    for k in range(schedule.steps):
        spectrum = torch.linalg.eigvalsh(law.noised(float(schedule.abar[k])).score_jacobian(points))
        scaled = (1 + schedule.score_weight[k] * spectrum) / schedule.alpha[k].sqrt()
        ends.append(torch.stack([scaled.min(), scaled.max()]))
    return torch.stack(ends, 1)


def measure(law: Density, schedule: Schedule, points: Tensor) -> Tensor:
    """``sup |Jac m|``, shape (T,)."""
    return jacobians(law, schedule, points).abs().amax(0)


def bound(law: Density, schedule: Schedule) -> Tensor:
    """M, shape (T,)."""
    found = law.noised_constants(schedule.abar[:-1])
    sides = (found.up, found.down)
    chain = theory.ChainConstants.of(schedule, found.L0, found.L1, Sine(), score_sides=sides)
    return theory.one_sided_mean_lipschitz(chain)


def line() -> Tensor:
    return torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)[:, None]


def law_of(score: MixtureScore) -> GaussianMixture:
    return GaussianMixture(score.weights, score.means, score.variances)


@settings(max_examples=15)
@given(st.one_of(gaussian_scores(), mixture_scores()), levels(5), st.booleans())
def test_holds(score: MixtureScore, abar: tuple[float, ...], posterior: bool) -> None:
    law, levels_of = law_of(score), torch.tensor(abar, dtype=torch.float64)
    schedule = ddim(levels_of) if posterior else ddpm(levels_of)
    where = {"score": str(score), "levels": abar, "posterior": posterior}
    CLAIM.holds(measure(law, schedule, line()), bound(law, schedule), where, part="line")


@pytest.mark.parametrize("seed", range(3))
def test_holds_in_more_dimensions(seed: int) -> None:
    """A mixture of a common covariance, one of nested covariances, and a rotated product."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root = randn(3, 3) / 2
    S = root @ root.T + 0.3 * torch.eye(3, dtype=torch.float64)
    wide = S + torch.eye(3, dtype=torch.float64)
    factors = [GaussianMixture([0.4, 0.6], [-1.5, 1.0], [0.3, 0.6]), Gaussian(0.0, 0.5)]
    laws: Sequence[Density] = (
        GaussianMixture([0.3, 0.3, 0.4], randn(3, 3), S),
        GaussianMixture([0.5, 0.5], randn(2, 3), torch.stack([S, wide])),
        Rotated(random_rotation(3, seed), [*factors, Gaussian(1.0, 1.0)]),
    )
    schedule = ddpm(torch.tensor([0.2, 0.4, 0.7, 0.95], dtype=torch.float64))
    for law in laws:
        where = {"law": str(law), "levels": schedule.abar}
        CLAIM.holds(measure(law, schedule, 3 * randn(4000, 3)), bound(law, schedule), where)


@pytest.mark.parametrize(
    "law",
    [Gaussian(0.3, 0.5), Gaussian(0.0, 2.0), GaussianMixture([0.7, 0.3], [-1.5, 1.5], 0.16)],
    ids=["narrow", "wide", "two modes"],
)
def test_is_attained(law: GaussianMixture) -> None:
    schedule = ddpm(torch.tensor([0.1, 0.3, 0.6, 0.95], dtype=torch.float64))
    pairs = zip(measure(law, schedule, line()).tolist(), bound(law, schedule).tolist(), strict=True)
    for k, (seen, limit) in enumerate(pairs):
        CLAIM.attained(seen, limit, {"law": str(law), "step": k}, within=ON_A_GRID)


def test_contracts_where_the_law_is_concave_enough() -> None:
    """N(0, 1) by sqrt(a) at every step; the norm of the score alone says that every step
    stretches.
    """
    schedule = ddpm(torch.linspace(0.05, 0.99, 21, dtype=torch.float64))
    law = Gaussian(0.0, 1.0)
    limit, where = bound(law, schedule), {"law": "N(0, 1)"}
    CLAIM.equals(limit, schedule.alpha.sqrt(), where, 1e-12, "standard normal")
    L0 = law.noised_constants(schedule.abar[:-1]).L0
    two_sided = (1 + schedule.score_weight * L0) / schedule.alpha.sqrt()
    CLAIM.breaks(1.0, float(limit.max()), where, "contraction")
    assert bool((two_sided > 1).all())


def test_needs_the_sign_that_the_law_has() -> None:
    """Between two modes the score pushes apart: with the constants of a log-concave law of the same
    width the bound fails.
    """
    schedule = ddpm(torch.tensor([0.3, 0.6, 0.95], dtype=torch.float64))
    law = GaussianMixture([0.5, 0.5], [-1.5, 1.5], 0.16)
    concave = Gaussian(0.0, 0.16)
    CLAIM.breaks(
        float((measure(law, schedule, line()) / bound(concave, schedule)).min()),
        1.0,
        {"law": str(law)},
        "up of the law",
    )


def test_needs_the_lower_side_for_large_weights() -> None:
    """With a weight of the score beyond DDPM's the mean map turns over: ``g down - 1`` decides."""
    law, g = Gaussian(0.0, 0.5), 1.5
    seen = abs(1 - g * 2.0)
    up = 1 + g * float(law.constants.up)
    CLAIM.breaks(seen, abs(up) - 0.5, {"law": "N(0, 0.5)", "g": g}, "lower side")
    one = torch.ones(1, dtype=torch.float64)
    sides = (law.constants.up * one, law.constants.down * one)
    chain = theory.ChainConstants(one, g * one, one, 2 * one, 0 * one, 1.0, 1.0, 1, sides)
    limit = float(theory.one_sided_mean_lipschitz(chain)[0])
    CLAIM.attained(seen, limit, {"law": "N(0, 0.5)", "g": g}, part="turned over")


@given(any_scores(), levels(3))
@settings(max_examples=10)
def test_holds_for_the_scores_of_instances(score, abar: tuple[float, ...]) -> None:
    """Slopes of drawn scores by differences, within their stated sides."""
    schedule = ddpm(torch.tensor(abar, dtype=torch.float64))
    c, function = score.constants(schedule), score.function(schedule)
    for k in range(schedule.steps):
        y = line().requires_grad_(True)
        (slope,) = torch.autograd.grad(function(k, y).sum(), y)
        where = {"score": str(score), "levels": abar, "step": k}
        CLAIM.holds(
            float((slope - slope.min()).max()), float((c.up + c.down)[k]), where, slack=1e-6
        )
        CLAIM.holds(float(slope.max() + c.down[k]), float((c.up + c.down)[k]), where, slack=1e-6)


def test_certified() -> None:
    """Both ends for a mixture of unequal widths over 24 standard units, cell by cell in ball
    arithmetic: ``Var(s_k) - E P_k`` with interval posterior weights.
    """
    law = GaussianMixture([0.4, 0.6], [-1.0, 1.2], [0.3, 0.7])
    where = {"law": str(law), "interval": [-REACH, REACH]}
    tops, bottoms = [], []
    for low, high in cells(Fraction(-12), Fraction(12), CELLS):
        value = _jacobian(ball(low, high))
        tops.append(value.upper())
        bottoms.append((-value).upper())
    for part, found, limit in (
        ("largest eigenvalue", tops, float(law.constants.up)),
        ("minus the smallest", bottoms, float(law.constants.down)),
    ):
        top = max(found, key=float)
        CLAIM.certified(top, flint.arb(limit * 1.1), where, part)


def _jacobian(x: flint.arb) -> flint.arb:
    """``(log p)''`` of the certified mixture over a ball, by the log ratio of its components."""
    first = (flint.arb("0.4"), flint.arb(-1), flint.arb("0.3"))
    second = (flint.arb("0.6"), flint.arb("1.2"), flint.arb("0.7"))
    (w1, m1, v1), (w2, m2, v2) = first, second
    middle, radius = x.mid(), x.rad()

    def ratio(y: flint.arb) -> flint.arb:
        return (
            (w2 / w1 * (v1 / v2).sqrt()).log() + (y - m1) ** 2 / (2 * v1) - (y - m2) ** 2 / (2 * v2)
        )

    slope = (x - m1) / v1 - (x - m2) / v2
    change = flint.arb(0, 1) * radius * abs(slope).upper()
    share = 1 / (1 + (-(ratio(middle) + change)).exp())  # of the second
    return share * (1 - share) * slope**2 - (1 - share) / v1 - share / v2
