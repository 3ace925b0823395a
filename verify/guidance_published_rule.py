r"""The published targets, a fixed increment over the linearised objective, regularise with
:math:`\lambda = s^2/\delta`.

Setting: Algorithm 1 on data :math:`N(\bar\mu, \bar\Sigma)` with exact strength and the targets of
the published simulations, :math:`y_k = \delta + g_k^\top \mu_k`, :math:`g_k = \nabla f(\mu_k)`.

Statement: $y_k = δ + g_k^⊤ μ_k$ has the fixed points $∇f(μ) = (s^2/δ) S^(−1) (μ − macron(μ))$, with
Jacobian $(δ/s^2) S_y H + S g g^⊤/(s^2 + g^⊤ S g)$

Here :math:`S = \bar\Sigma`, :math:`H = \nabla^2 f` and :math:`S_y = S - S g g^\top S/(s^2 + g^\top
S g)`. In one dimension the Jacobian is :math:`(S g^2 + \delta S H)/(S g^2 + s^2)`: for concave f it
is stable where :math:`\delta S |H| < 2 S g^2 + s^2`, beyond the threshold :math:`\delta S |H| <
s^2` of the fixed step :math:`1/\lambda`.

Kind: equality.

Source: targets of arXiv 2404.14743v2, appendix E.1; fixed point and Jacobian derived here.

How it is measured: means of guided chains by exact moments, iterated to the fixed point; the
stationarity of the regularised objective there; central differences of the round.

What would refute it: a residual above the tolerances.
"""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.guidance.iterated import IncrementTarget
from socft.reward import Quadratic, Reward
from verify.support import topics
from verify.support.claims import Claim
from verify.support.guidance_cases import (
    GuidedGaussian,
    concave_quadratics,
    guided_gaussians,
    vector,
)
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Published strength", topics.GUIDANCE)
SETTLED = 1e-9
"""Relative movement of a round at which the iteration has arrived."""
STATIONARY = 1e-6
"""Relative: the distance left at `SETTLED` with a contraction of up to 0.99, over variances down to
0.05.
"""
STEP, DIFFERENCED = 1e-4, 1e-5
"""Central differences of a round: of second order, and rounding 1e-10 over the step."""
MOST = 150


def settle(case: GuidedGaussian, reward: Reward, delta: float) -> Tensor | None:
    """The fixed point, or None where the iteration has not arrived after `MOST` rounds."""
    at = case.law.mean
    for _ in range(MOST):
        after = case.round(reward, IncrementTarget(delta), at)
        if float((after - at).norm()) <= SETTLED * (1 + float(at.norm())):
            return after
        at = after
    return None


def jacobian(case: GuidedGaussian, reward: Quadratic, delta: float, at: Tensor) -> Tensor:
    """The formula."""
    S, g, s2 = case.law.covariance, reward.gradient(at[None])[0], case.noise**2
    pulled = S @ g
    spread = s2 + float(g @ pulled)
    return (
        delta / s2 * (S - torch.outer(pulled, pulled) / spread) @ reward.P
        + torch.outer(pulled, g) / spread
    )


def differences(case: GuidedGaussian, reward: Reward, delta: float, at: Tensor) -> Tensor:
    """Central differences of one round."""
    moves = STEP * torch.eye(case.dim, dtype=torch.float64)
    columns = [
        case.round(reward, IncrementTarget(delta), at + e)
        - case.round(reward, IncrementTarget(delta), at - e)
        for e in moves
    ]
    return torch.stack(columns, 1) / (2 * STEP)


@settings(max_examples=8)
@given(guided_gaussians(dims=2, spectrum=numbers(0.3, 2)), st.data())
def test_holds(case: GuidedGaussian, data: st.DataObject) -> None:
    """Where the iteration arrives, and how it gets there."""
    reward, delta = data.draw(concave_quadratics(case.dim)), data.draw(numbers(0.1, 0.6))
    assume(float(reward.gradient(case.law.mean[None]).norm()) > 0.1)
    at = settle(case, reward, delta)
    assume(at is not None)
    assert at is not None
    where = {"case": case.describe(), "delta": delta}
    pull = case.law.covariance @ reward.gradient(at[None])[0] * delta / case.noise**2
    scale = 1 + float((at - case.law.mean).norm())
    CLAIM.equals((at - case.law.mean) / scale, pull / scale, where, STATIONARY, "fixed point")
    formula = jacobian(case, reward, delta, at)
    size = 1 + float(formula.abs().max())
    CLAIM.equals(
        differences(case, reward, delta, at) / size, formula / size, where, DIFFERENCED, "Jacobian"
    )


def test_arrives_beyond_the_threshold() -> None:
    """delta S |H| = 3 s^2: a fixed step 1 / lambda = delta / s^2 diverges, the published targets
    arrive.
    """
    case, delta = GuidedGaussian((1.0,), (0.0,), (1.0,), noise=0.5), 0.375
    reward = Quadratic(vector([[-2.0]]), vector([6.0]))
    at = settle(case, reward, delta)
    assert at is not None
    expected = 6 / (2 + 0.25 / delta)
    CLAIM.equals(
        float(at),
        expected,
        {"case": case.describe(), "delta": delta},
        STATIONARY,
        "beyond the threshold",
    )
    CLAIM.finding(
        "the published targets converge where the fixed step with the same fixed point diverges"
        " (delta S |f''| = 3 s^2)",
        case,
    )


def test_needs_a_gradient_at_the_fixed_point() -> None:
    """delta S |H| = 50 s^2 and a small gradient: the Jacobian is below -1 and the rounds never
    settle.
    """
    case, delta = GuidedGaussian((1.0,), (0.0,), (1.0,), noise=0.1), 0.5
    reward = Quadratic(vector([[-1.0]]), vector([0.5]))
    multiplier = float(jacobian(case, reward, delta, vector([0.5 / (1 + 0.01 / delta)])))
    CLAIM.breaks(-multiplier, 1.0, {"case": case.describe(), "delta": delta}, "stability")
    assert settle(case, reward, delta) is None
