r"""Algorithm 1: guidance by gradients at generated samples is a fixed-point iteration for a
regularised objective.

Setting: data :math:`N(\bar\mu, \bar\Sigma)`, look-ahead guidance of exact strength, gradients
:math:`g_k = \nabla f(\mu_k)` at the mean of the last round and the targets
:math:`y_k = g_k^\top\bar\mu + (s^2 + g_k^\top\bar\Sigma g_k)/\lambda`; f with an L-Lipschitz
gradient.

Statement: $Φ(μ) = macron(μ) + S ∇f(μ)/λ$ contracts by $L |S|/λ$ in the norm of $S^(−1)$, to the
maximiser of $f(x) − (λ/2) (x − macron(μ))^⊤ S^(−1) (x − macron(μ))$

Here :math:`S = \bar\Sigma`, on :math:`\bar\mu + \mathrm{range}\,S`. It converges for :math:`\lambda
> L|S|`, and what it converges to is the maximiser if f is concave. For quadratics :math:`L|S|`
sharpens to :math:`|S^{1/2} H S^{1/2}|`. Below the threshold it may diverge although the maximum
exists.

Kind: tight. A quadratic that is steepest along the widest direction of the data attains it.

Source: arXiv 2404.14743v2, Theorem 2; constant and tightness derived here.

How it is measured: means of the guided chain by exact moments, not by the formula for :math:`\Phi`;
the maximum by a general-purpose optimiser.

What would refute it: a residual of the recursion above `ROUNDING`, or a ratio of distances above
the constant.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from socft.guidance.iterated import StepSizeTarget
from socft.guidance.policy import LookAheadGuidance
from socft.guidance.strength import PublishedStrength, Response
from socft.reward import LogSumExp, PseudoHuber, Quadratic, Reward, RidgeFunction, Sine, Sum
from verify.support import topics
from verify.support.claims import Claim
from verify.support.guidance_cases import (
    GuidedGaussian,
    concave_quadratics,
    guided_gaussians,
    vector,
)
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Algorithm 1", topics.GUIDANCE)
ROUNDING = 1e-9
"""Relative: moments of chains with variances down to s^2 = 0.01 and one dimension, times the
condition of the covariance.
"""
OPTIMISED = 1e-5
"""Error of the optimiser's maximum: the root of the relative accuracy of values."""
CONVERGED = 30
"""Rounds after which a contraction by 0.6 has forgotten its start to 2e-7."""


def rewards(dim: int) -> st.SearchStrategy[Reward]:
    """Objectives with an L-Lipschitz gradient, L known: concave ones, and a sine, which is not."""
    directions = st.lists(
        st.lists(numbers(-2, 2), min_size=dim, max_size=dim), min_size=2, max_size=2
    )
    ridges = directions.filter(lambda rows: all(any(row) for row in rows))
    return st.one_of(
        concave_quadratics(dim),
        ridges.map(lambda rows: Sum([LogSumExp(vector(rows))], [-1.0])),
        ridges.map(lambda rows: RidgeFunction(vector(rows[0]), PseudoHuber(1.0, 0.5, -1.0))),
        ridges.map(lambda rows: RidgeFunction(vector(rows[0]), Sine(1.0, 1.0))),
    )


def whitened(case: GuidedGaussian, u: Tensor) -> Tensor:
    """Length in the norm of the inverse covariance, of vectors in its range."""
    roots = vector(case.spectrum).sqrt()
    inverse = torch.where(roots > 0, 1 / roots, 0.0)
    return (u @ case.basis * inverse).norm(dim=-1)


def points(case: GuidedGaussian, draws: list[float]) -> Tensor:
    """Two points of ``mean + range``."""
    z = vector(draws[: 2 * case.dim]).reshape(2, case.dim)
    return case.law.mean + z * vector(case.spectrum).sqrt() @ case.basis.mT


@settings(max_examples=20)
@given(guided_gaussians(dims=4), st.data())
def test_holds(case: GuidedGaussian, data: st.DataObject) -> None:
    """The recursion and its contraction, from the moments of the chain."""
    reward, lam = data.draw(rewards(case.dim)), data.draw(numbers(0.5, 8))
    a, b = points(
        case, data.draw(st.lists(numbers(-3, 3), min_size=2 * case.dim, max_size=2 * case.dim))
    )
    target = StepSizeTarget(lam, case.noise)
    images = [case.round(reward, target, z) for z in (a, b)]
    where = {
        "case": case.describe(),
        "reward": type(reward).__name__,
        "lam": lam,
        "points": [a.tolist(), b.tolist()],
    }
    for z, image in zip((a, b), images, strict=True):
        expected = case.law.mean + case.law.covariance @ reward.gradient(z[None])[0] / lam
        scale = (
            1
            + float(expected.abs().max())
            + float(reward.gradient(z[None]).abs().max()) / case.noise
        )
        CLAIM.equals(image / scale, expected / scale, where, ROUNDING, "recursion")
    distance = float(whitened(case, a - b))
    assume(distance > 0.1)
    limit = reward.L1 * max(case.spectrum) / lam
    sharp = _curvature(case, reward) / lam if isinstance(reward, Quadratic) else None
    moved = float(whitened(case, images[0] - images[1])) / distance
    floor = (
        ROUNDING
        * (1 + limit)
        * (1 + float(torch.stack(images).abs().max()))
        / min((s for s in case.spectrum if s > 0), default=1.0)
    )
    CLAIM.holds(moved, limit, where, sharp=sharp, floor=floor, part="contraction")


@settings(max_examples=10)
@given(guided_gaussians(dims=3), st.data())
def test_fixed_point(case: GuidedGaussian, data: st.DataObject) -> None:
    """The limit maximises the regularised objective, in coordinates ``x = mean + S^(1/2) c``."""
    reward = data.draw(concave_quadratics(case.dim))
    assume(max(case.spectrum) > 0)
    lam = reward.L1 * max(case.spectrum) / 0.6
    limit = case.ascent(reward, lam, case.law.mean, CONVERGED, adapt=False)[-1]
    root = case.basis * vector(case.spectrum).sqrt()

    def negative(c: np.ndarray) -> tuple[float, np.ndarray]:
        x = case.law.mean + root @ torch.from_numpy(c)
        slope = root.mT @ reward.gradient(x[None])[0]
        return float(lam * c @ c / 2 - reward(x[None])), lam * c - slope.numpy()

    best = minimize(negative, np.zeros(case.dim), jac=True, method="BFGS", options={"gtol": 1e-9})
    expected = case.law.mean + root @ torch.from_numpy(best.x)
    scale = 1 + float(expected.abs().max())
    CLAIM.equals(
        limit / scale,
        expected / scale,
        {"case": case.describe(), "lam": lam},
        OPTIMISED,
        "fixed point",
    )


def _steepest(lam: float) -> tuple[GuidedGaussian, Quadratic, float]:
    """Steepest along the widest direction."""
    case = GuidedGaussian((2.0, 0.5), (0.3, -0.4), (1.0, 1.0), rotation=2)
    H = case.basis * vector([1.5, 0.2]) @ case.basis.mT
    return case, Quadratic(-(H + H.mT) / 2, vector([1.0, 0.5])), 1.5 * 2.0 / lam


def test_is_attained() -> None:
    """Along the widest direction every round shrinks the distance by exactly the constant."""
    case, reward, limit = _steepest(lam=4.0)
    a = case.law.mean
    b = a + case.basis[:, 0]
    images = [case.round(reward, StepSizeTarget(4.0, case.noise), z) for z in (a, b)]
    moved = float(whitened(case, images[0] - images[1]) / whitened(case, a - b))
    CLAIM.attained(
        moved, limit, {"case": case.describe(), "lam": 4.0}, slack=ROUNDING, part="contraction"
    )


def test_needs_a_large_weight() -> None:
    """With lambda at 0.9 of the threshold the rounds move away from a maximum that exists."""
    case, reward, limit = _steepest(lam=0.9 * 3.0)
    path = case.ascent(reward, 0.9 * 3.0, case.law.mean, 12, adapt=False)
    steps = whitened(case, path.diff(dim=0))
    CLAIM.breaks(
        float(steps[-1] / steps[-2]),
        1.0,
        {"case": case.describe(), "lam": 2.7, "L |S|": 3.0},
        "lam > L |S|",
    )
    CLAIM.finding(
        "below the threshold Algorithm 1 diverges although the regularised objective has its"
        " maximum",
        case,
    )
    assert limit > 1


def test_needs_the_exact_strength() -> None:
    """With the published strength the recursion has another step."""
    case, reward, _ = _steepest(lam=4.0)
    long = dataclasses.replace(case, levels=(1e-12, *np.linspace(0.02, 1, 60).tolist()))
    gradient = reward.gradient(long.law.mean[None])[0]
    y = StepSizeTarget(4.0, long.noise)(long.law.mean, gradient, long.denoiser)
    found = long.run(LookAheadGuidance(Response(gradient, y), PublishedStrength(long.noise))).mean[
        -1
    ]
    expected = long.law.mean + long.law.covariance @ gradient / 4.0
    CLAIM.breaks(float((found - expected).abs().max()), ROUNDING, long, "exact strength")


def _curvature(case: GuidedGaussian, reward: Quadratic) -> float:
    """``|S^(1/2) H S^(1/2)|``."""
    root = case.basis * vector(case.spectrum).sqrt()
    return float(torch.linalg.matrix_norm(root.mT @ reward.P @ root, 2))
