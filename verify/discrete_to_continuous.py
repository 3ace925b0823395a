r"""The discrete value function tends to the continuous one, at first order in the step.

Setting: the chain `variance_preserving(T, q)` of section 4.2, dt = 1/T, with the exact scores of a
law, a constant beta; the continuous value at signal level :math:`e^{-q (1 - \tau)}` is
`TiltedMixture`'s.

Statement: $sup_(|y| ≤ R) |V^((T))_(τ T) (y) − V(τ, y)| = C/T + o(1/T)$

Kind: limit; the order is exactly one.

Source: arXiv 2412.18164v4, section 4.2; order derived here.

How it is measured: sup errors over |y| <= `REACH` at tau = 0 and 1/2: for Gaussians and quadratic
rewards in closed form with T = 256 and 512, for mixtures by quadrature with T = 16 and 32. The
error must fall by a factor two, up to the next order, `NEXT`.

What would refute it: an error that does not fall in proportion to dt.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from socft.density import Gaussian, GaussianMixture, affine_reference, score_reference
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import Schedule, ddim, variance_preserving
from socft.truth.base import Truth
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.mixture import TiltedMixture
from socft.truth.quadrature import Quadrature
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Discrete to continuous", topics.SECTION_4_2)
REACH = 2.0
NEXT = 0.1
"""Share of the next order in the error, at dt = 1/256 in closed form and at dt = 1/16 by
quadrature.
"""
SMALL = 1e-7
"""Errors below it, relative to the value, have rounding and quadrature in them."""
TIMES = (0.0, 0.5)


def measure(truth: Truth, limit: TiltedMixture, q: float) -> float:
    """The sup error of the discrete value over `TIMES`."""
    x = torch.linspace(-REACH, REACH, 41, dtype=torch.float64)[:, None]
    T = truth.problem.steps
    gaps = [
        truth.value(round(tau * T), x) - limit.value(math.exp(-q * (1 - tau)), x) for tau in TIMES
    ]
    return float(torch.stack(gaps).abs().max())


@settings(max_examples=12)
@given(
    numbers(-1, 1),
    numbers(0.4, 2),
    numbers(-2, 0.2),
    numbers(-1, 1),
    numbers(0.5, 3),
    numbers(0.5, 2),
)
def test_holds(mean: float, variance: float, p: float, slope: float, beta: float, q: float) -> None:
    """Gaussians and quadratic rewards."""
    law, reward = Gaussian([mean], [[variance]]), _reward(p, slope)
    limit = TiltedMixture(law, reward, beta)
    errors = [
        measure(_quadratic(law, reward, beta, variance_preserving(T, q)), limit, q)
        for T in (256, 512)
    ]
    where = {
        "mean": mean,
        "variance": variance,
        "p": p,
        "q": slope,
        "beta": beta,
        "rate": q,
        "errors": errors,
    }
    CLAIM.holds(errors[1], errors[0] / 2, where, slack=NEXT, floor=SMALL, part="Gaussian")


@pytest.mark.parametrize("beta", [0.7, 2.0])
def test_holds_for_mixtures(beta: float) -> None:
    """A mixture of two Gaussians by quadrature."""
    law, reward, q = _mixture(), _reward(-0.5, 1.0), 1.5
    limit = TiltedMixture(law, reward, beta)
    errors = [
        measure(_solve(law, reward, beta, variance_preserving(T, q)), limit, q) for T in (16, 32)
    ]
    where = {
        "weights": [0.3, 0.7],
        "means": [-1.0, 1.0],
        "variances": [0.5, 0.8],
        "beta": beta,
        "rate": q,
        "errors": errors,
    }
    CLAIM.holds(errors[1], errors[0] / 2, where, slack=NEXT, part="mixture")


def test_is_of_order_one() -> None:
    """The error does not fall faster either."""
    law, reward, beta, q = Gaussian([0.5], [[0.6]]), _reward(-1.0, 1.0), 1.0, 1.0
    limit = TiltedMixture(law, reward, beta)
    errors = [
        measure(_quadratic(law, reward, beta, variance_preserving(T, q)), limit, q)
        for T in (512, 1024)
    ]
    CLAIM.attained(errors[1], errors[0] / 2, {"errors": errors}, slack=NEXT, part="order")
    CLAIM.equals(math.log2(errors[0] / errors[1]), 1.0, {"errors": errors}, 0.01, "order")


def test_needs_variance_of_the_diffusion() -> None:
    """DDIM with eta = 1/2 has the same marginals but less noise to steer with: its values tend to
    another limit.
    """
    law, reward, beta, q = Gaussian([0.5], [[0.6]]), _reward(-1.0, 1.0), 1.0, 1.0
    limit, errors = TiltedMixture(law, reward, beta), []
    for T in (256, 512):
        levels = torch.cat(
            [variance_preserving(T, q).abar[:-1], torch.tensor([1 - 1e-9], dtype=torch.float64)]
        )
        errors.append(measure(_quadratic(law, reward, beta, ddim(levels, eta=0.5)), limit, q))
    CLAIM.breaks(
        errors[1], errors[0] / 2 * (1 + NEXT), {"eta": 0.5, "errors": errors}, "noise q dt"
    )


def _quadratic(law: Gaussian, reward: Quadratic, beta: float, schedule: Schedule) -> Truth:
    return LinearQuadratic(ControlProblem(affine_reference(law, schedule), reward, beta))


def _solve(law: GaussianMixture, reward: Quadratic, beta: float, schedule: Schedule) -> Truth:
    return Quadrature(ControlProblem(score_reference(law, schedule), reward, beta))


def _reward(p: float, slope: float) -> Quadratic:
    return Quadratic(
        torch.tensor([[p]], dtype=torch.float64), torch.tensor([slope], dtype=torch.float64)
    )


def _mixture() -> GaussianMixture:
    return GaussianMixture([0.3, 0.7], [-1.0, 1.0], [0.5, 0.8])
