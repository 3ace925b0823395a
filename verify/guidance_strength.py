r"""The published strength of look-ahead guidance is exact if and only if the covariance has the
eigenvalues 0 and 1.

Setting: data :math:`N(\mu, \Sigma)`, response :math:`y = g^\top x_0 + N(0, s^2)`, levels
:math:`\alpha^2 + h = 1`, :math:`g_i` the components of g in an eigenbasis of :math:`\Sigma` with
eigenvalues :math:`\sigma_i`.

Statement: $1/(2 b) − 1/(2 b^*) = −h^2 sum_i g_i^2 σ_i (1 − σ_i)/(α^2 σ_i + h)^2$, zero at every
level $⇔$ $g_i σ_i (1 − σ_i) = 0$ for all $i$

Here :math:`b` is the published strength and :math:`b^*` the exact one. Every level is needed, as
the functions of the level on the right are linearly independent for different :math:`\sigma_i`; at
one level the difference can vanish by chance. Data narrower than N(0, I) are pulled too strongly,
wider ones too weakly.

Kind: equality.

Source: strengths of arXiv 2404.14743v2, Lemma 1; the difference derived here.

In the form of the published simulations.

How it is measured: both strengths from a denoiser, the variance of y given x from the joint
Gaussian law of (x, y); the identity also symbolically.

What would refute it: a residual above `ROUNDING`, or equality for another spectrum.
"""

from __future__ import annotations

import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.guidance.strength import GuidanceStrength, PosteriorStrength, PublishedStrength
from verify.support import topics
from verify.support.claims import Claim
from verify.support.guidance_cases import GuidedGaussian, guided_gaussians, vector

CLAIM = Claim.of_module(__name__, __doc__, "Strength of look-ahead", topics.GUIDANCE)
ROUNDING = 1e-11
"""Relative to the larger denominator."""


def denominators(case: GuidedGaussian, strength: GuidanceStrength) -> Tensor:
    """``1 / (2 b)`` at every level, shape (T,)."""
    x = torch.ones(1, case.dim, dtype=torch.float64)
    out = []
    for k in range(case.schedule.steps):
        at, g = case.denoiser.at(k, x), case.response.gradient
        out.append(1 / (2 * strength(at, g, at.pullback(g))))
    return torch.cat(out).flatten()


def variances(case: GuidedGaussian) -> Tensor:
    """``Var[y | x]`` at every level from the joint covariance of (x, y), shape (T,)."""
    S, g, out = case.law.covariance, case.response.gradient, []
    for level in case.schedule.abar[:-1].tolist():
        inside = level * S + (1 - level) * torch.eye(case.dim, dtype=torch.float64)
        cross = level**0.5 * S @ g
        out.append(g @ S @ g + case.noise**2 - cross @ torch.linalg.solve(inside, cross))
    return torch.stack(out)


def difference(case: GuidedGaussian) -> Tensor:
    """The right side of the statement at every level, shape (T,)."""
    level, s, g = case.schedule.abar[:-1, None], vector(case.spectrum), vector(case.gradient)
    h = 1 - level
    return -(h.square() * g.square() * s * (1 - s) / (level * s + h).square()).sum(1)


@settings(max_examples=100)
@given(guided_gaussians(levels=True))
def test_holds(case: GuidedGaussian) -> None:
    """The exact strength is the conditional variance, and the published one differs from it as
    stated.
    """
    exact, published = (
        denominators(case, PosteriorStrength(case.noise)),
        denominators(case, PublishedStrength(case.noise)),
    )
    scale = torch.maximum(exact, published)
    CLAIM.equals(exact / scale, variances(case) / scale, case, ROUNDING, "exact strength")
    CLAIM.equals(
        (published - exact) / scale, difference(case) / scale, case, ROUNDING, "difference"
    )


@settings(max_examples=40)
@given(guided_gaussians(spectrum=st.sampled_from([0.0, 1.0]), levels=True))
def test_exact_for_projections(case: GuidedGaussian) -> None:
    """Eigenvalues 0 and 1: the same strength at every level."""
    exact, published = (
        denominators(case, PosteriorStrength(case.noise)),
        denominators(case, PublishedStrength(case.noise)),
    )
    CLAIM.equals(published / exact, torch.ones_like(exact), case, ROUNDING, "eigenvalues 0 and 1")


def test_symbolic() -> None:
    """The identity of one eigenvalue, in symbols."""
    s, h, g = sympy.symbols("s h g", positive=True)
    K = s / ((1 - h) * s + h)
    left = h * g**2 * K**2 - h * g**2 * K
    right = -(h**2) * g**2 * s * (1 - s) / ((1 - h) * s + h) ** 2
    CLAIM.equals(float(sympy.simplify(left - right) != 0), 0.0, {"symbolic": True}, 0.5, "symbolic")


def test_needs_unit_variance() -> None:
    """Eigenvalues 1/2 or 2, alone: the strengths differ at every level, by up to this factor of the
    exact one.
    """
    for eigenvalue in (0.5, 2.0):
        case = GuidedGaussian(
            (eigenvalue,), (0.0,), (1.0,), noise=0.1, levels=(0.01, 0.3, 0.6, 0.97)
        )
        ratio = denominators(case, PosteriorStrength(0.1)) / denominators(
            case, PublishedStrength(0.1)
        )
        CLAIM.breaks(float((ratio - 1).abs().min()), ROUNDING, case, f"variance {eigenvalue:g}")
        CLAIM.finding(
            f"for variance {eigenvalue:g} and s = 0.1 the published strength is up to"
            f" {float(_far(ratio)):.3g} of the exact one",
            case,
        )


def test_needs_every_level() -> None:
    """Eigenvalues 1/2 and 2 can balance at one level, and then at no other."""
    level = 0.3
    weight = [s * abs(1 - s) / (level * s + 1 - level) ** 2 for s in (0.5, 2.0)]
    case = GuidedGaussian(
        (0.5, 2.0), (0.0, 0.0), (weight[1] ** 0.5, weight[0] ** 0.5), levels=(0.1, level, 0.7, 0.97)
    )
    gap = (
        denominators(case, PublishedStrength(case.noise))
        - denominators(case, PosteriorStrength(case.noise))
    ).abs()
    CLAIM.equals(float(gap[1]), 0.0, case, ROUNDING, "balanced level")
    CLAIM.breaks(float(gap[[0, 2]].min()), ROUNDING, case, "one level")


def _far(ratio: Tensor) -> Tensor:
    """The ratio furthest from 1."""
    return ratio[(ratio.log().abs()).argmax()]
