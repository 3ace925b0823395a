r"""Where one exactly guided pass puts the mean and the covariance.

Setting: data :math:`N(\mu, \Sigma)`, response :math:`y = g^\top x_0 + N(0, s^2)`, look-ahead
guidance of exact strength on any chain :math:`Y_{t+1} = (Y_t + g_t U_t)/\sqrt{a_t} + \sigma_t W_t`.
The conditional law is :math:`N(m, C)`,

.. math:: m = \mu + \frac{\Sigma g\,(y - g^\top\mu)}{s^2 + g^\top\Sigma g}, \qquad
   C = \Sigma - \frac{\Sigma g g^\top \Sigma}{s^2 + g^\top \Sigma g} .

Statement: $bb(E) Y_T = sqrt(macron(a)_T) m + Π_t A_t (bb(E) Y_0 − sqrt(macron(a)_0) m)$ at any
number of steps, with $m = μ + S g (y − g^⊤ μ)/(s^2 + g^⊤ S g)$

:math:`A_t` are the slopes of the mean maps for N(m, C): the mean is that of the conditional law but
for what the chain remembers of its start. The covariance tends to C as the chain's steps are
refined.

Kind: equality; the covariance is a limit.

Source: arXiv 2404.14743v2, Theorem 2; exactness on coarse chains derived here.

How it is measured: exact moments of the guided chain (`socft.truth.affine_policy`) against the
conditional law from the joint covariance of (x, y).

What would refute it: a residual above `ROUNDING`, or an error of the covariance that does not
shrink as 1/T.
"""

from __future__ import annotations

from hypothesis import given, settings
from torch import Tensor

from socft.density import affine_reference
from socft.guidance.policy import LookAheadGuidance
from socft.guidance.strength import PosteriorStrength, PublishedStrength
from socft.schedule import variance_preserving
from verify.support import topics
from verify.support.claims import Claim
from verify.support.guidance_cases import GuidedGaussian, guided_gaussians

CLAIM = Claim.of_module(__name__, __doc__, "Mean of a guided pass", topics.GUIDANCE)
ROUNDING = 1e-9
"""Relative to the largest of y, the means and their gradients: variances down to s^2 = 0.01 are
divided by.
"""
NEXT = 0.1
"""Share of the order 1/T^2 at T = 256."""


def bound(case: GuidedGaussian) -> Tensor:
    """The right side of the statement."""
    abar, m = case.schedule.abar, case.conditional.mean
    maps = affine_reference(case.conditional, case.schedule).transition
    left = case.reference.initial_mean - abar[0].sqrt() * m
    for A in maps:
        left = A @ left
    return abar[-1].sqrt() * m + left


def measure(case: GuidedGaussian) -> Tensor:
    """Mean of the guided chain."""
    return case.run(LookAheadGuidance(case.response, PosteriorStrength(case.noise))).mean[-1]


@settings(max_examples=40)
@given(guided_gaussians(levels=True))
def test_holds(case: GuidedGaussian) -> None:
    """Chains of two to eight steps that remember their start."""
    expected = bound(case)
    scale = 1 + float(expected.abs().max())
    CLAIM.equals(measure(case) / scale, expected / scale, case, ROUNDING, "mean")


@settings(max_examples=40)
@given(guided_gaussians())
def test_forgotten_start(case: GuidedGaussian) -> None:
    """From noise to level 1 the mean is m itself."""
    m = case.conditional.mean
    scale = 1 + float(m.abs().max())
    CLAIM.equals(measure(case) / scale, m / scale, case, ROUNDING, "mean without memory")


def test_the_covariance_is_a_limit() -> None:
    """Its error halves as T doubles, from 256 to 512, on a chain that forgets its start."""
    errors = []
    for steps in (256, 512):
        levels = tuple(variance_preserving(steps, 12.0).abar.tolist())
        case = GuidedGaussian(
            (1.5, 0.4), (0.3, -0.2), (1.0, 0.7), target=1.5, noise=0.6, levels=levels, rotation=1
        )
        found = case.run(LookAheadGuidance(case.response, PosteriorStrength(case.noise)))
        errors.append(float((found.covariance[-1] - case.conditional.covariance).abs().max()))
    where, half = {"T": [256, 512], "errors": errors}, errors[0] / 2
    CLAIM.attained(errors[1], half, where, within=NEXT, slack=NEXT, part="covariance")


def test_needs_the_exact_strength() -> None:
    """With the published one, data of variance 1/4 or 4 are moved to another mean."""
    for eigenvalue in (0.25, 4.0):
        levels = tuple(variance_preserving(256, 12.0).abar.tolist())
        case = GuidedGaussian((eigenvalue,), (0.0,), (1.0,), target=2.0, noise=0.1, levels=levels)
        found = float(
            case.run(LookAheadGuidance(case.response, PublishedStrength(case.noise))).mean[-1]
        )
        CLAIM.breaks(abs(found - float(bound(case))), ROUNDING, case, f"variance {eigenvalue:g}")
        CLAIM.finding(
            "asked for y = 2 with s = 0.1, one pass of the published strength moves data of"
            f" variance {eigenvalue:g} to {found:.4g} in place of"
            f" {float(case.conditional.mean):.4g}",
            case,
        )
