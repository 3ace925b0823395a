r"""Lemma 2.5: what a controlled kernel costs.

Setting: kernels :math:`x' = m + B (v + W)`, :math:`W \sim N(0, I)`, with any :math:`n \times p`
matrix B, possibly degenerate. The paper's kernels have :math:`B = \sigma I` and
:math:`m + \sigma v = (y + g U)/\sqrt a`, so that :math:`v = g (U - s)/(\sqrt a\,\sigma)`, with
:math:`g = 1 - a` for DDPM.

Statement: $op("KL")(N(m + B v, B B^⊤) ∥ N(m, B B^⊤)) = |v|^2/2$ for $v ⊥ ker B$, which for $B = σ
I$ is $g^2 |U − s|^2/(2 a σ^2)$

A component of v in the kernel of B moves nothing and costs nothing; `Diffusion.whiten` returns the
control without it.

Kind: equality.

Source: arXiv 2412.18164v4, Lemma 2.5, equations 5-6; degenerate B derived here.

How it is measured: symbolically, as the integral of the log ratio of two normal densities in one
dimension, which suffices because divergences of independent coordinates add; numerically in up to
64 dimensions against the divergence of dense normal laws, and for degenerate B against that of the
laws' coordinates on the range of B.

What would refute it: a residual above rounding, or an integral that does not simplify to the
formula.
"""

from __future__ import annotations

import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from socft import theory
from socft.reference import MatrixDiffusion, ScoreReference
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.strategies import instances, numbers

CLAIM = Claim.of_module(__name__, __doc__, "Lemma 2.5", topics.KL_DIVERGENCE)

ROUNDING = 1e-13
"""Relative to the divergence: 450 eps, for sums of 64 terms and a B B' whose condition number is at
most 100.
"""
EXAMPLES = 50
SEEDS = st.integers(0, 10**6)


def measure(mean: Tensor, other: Tensor, factor: Tensor) -> float:
    """The divergence of N(mean, F F') from N(other, F F'), both on the range of F."""
    basis, scales, _ = torch.linalg.svd(factor, full_matrices=False)
    basis = basis[:, scales > 1e-8 * scales.max()]
    root = basis.T @ factor
    covariance = root @ root.T
    laws = [MultivariateNormal(basis.T @ location, covariance) for location in (mean, other)]
    return float(kl_divergence(*laws))


def bound(instance: ProductInstance, t: int, difference: Tensor) -> float:
    """``g^2 |U - s|^2 / (2 a sigma^2)``."""
    return float(theory.kl_weight(instance.chain)[t] * difference.square().sum())


@settings(max_examples=EXAMPLES)
@given(instances(), st.integers(0, 11), SEEDS, numbers(0.01, 5))
def test_holds(instance: ProductInstance, step: int, seed: int, size: float) -> None:
    """The paper's formula and the whitened one, at a random state and control of a random step."""
    t, reference = step % instance.steps, instance.problem(1.0).reference
    assert isinstance(reference, ScoreReference)
    y, difference = _normal(seed, 2, instance.dim).split(1)
    score = reference.score(t, y)
    U = score + size * difference
    alpha, gain, sigma = (
        instance.schedule.alpha[t],
        instance.schedule.score_weight[t],
        instance.schedule.sigma[t],
    )
    mean, other = (y + gain * U) / alpha.sqrt(), (y + gain * score) / alpha.sqrt()
    measured = measure(mean[0], other[0], sigma * torch.eye(instance.dim, dtype=torch.float64))
    expected = bound(instance, t, U - score)
    whitened = float(reference.control_of(t, y, U).square().sum()) / 2
    where = {"instance": instance.describe(), "step": t, "seed": seed, "size": size}
    CLAIM.equals([measured, whitened], [expected] * 2, where, ROUNDING * (1 + expected))


@settings(max_examples=EXAMPLES)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), SEEDS, numbers(0.01, 5))
def test_holds_for_degenerate_noise(n: int, p: int, rank: int, seed: int, size: float) -> None:
    """``|B^+ B v|^2 / 2`` for every v, and `whiten` recovers ``B^+ B v``."""
    factor = _factor(n, p, min(rank, n, p), seed)
    v = size * _normal(seed + 1, p)
    diffusion, x = MatrixDiffusion(factor[None]), torch.zeros(1, n, dtype=torch.float64)
    whitened = diffusion.whiten(0, x, diffusion.apply(0, x, v[None]))[0]
    expected = float((torch.linalg.pinv(factor) @ (factor @ v)).square().sum()) / 2
    measured = measure(factor @ v, torch.zeros(n, dtype=torch.float64), factor)
    where = {"n": n, "p": p, "rank": min(rank, n, p), "seed": seed, "size": size}
    CLAIM.equals(
        [measured, float(whitened.square().sum()) / 2],
        [expected] * 2,
        where,
        ROUNDING * (1 + expected),
        "degenerate B",
    )


def test_holds_symbolically() -> None:
    """The integral of the log ratio of the densities, for all coefficients at once."""
    x, w, y, s, U, v = sympy.symbols("x w y s U v", real=True)
    a, g, sigma = sympy.symbols("a g sigma", positive=True)
    controlled, plain = (y + g * U) / sympy.sqrt(a), (y + g * s) / sympy.sqrt(a)
    density = sympy.exp(-((x - controlled) ** 2) / (2 * sigma**2)) / (
        sigma * sympy.sqrt(2 * sympy.pi)
    )
    log_ratio = ((x - plain) ** 2 - (x - controlled) ** 2) / (2 * sigma**2)
    moved = sympy.expand((density * log_ratio).subs(x, controlled + sigma * w) * sigma)
    divergence = sympy.integrate(sympy.collect(moved, w), (w, -sympy.oo, sympy.oo))
    difference = sympy.simplify(divergence - g**2 * (U - s) ** 2 / (2 * a * sigma**2))
    whitened = sympy.simplify(divergence.subs(U, s + sympy.sqrt(a) * sigma * v / g) - v**2 / 2)
    where = {"symbolic": True, "left over": [str(difference), str(whitened)]}
    CLAIM.equals(
        [float(difference != 0), float(whitened != 0)], [0.0, 0.0], where, ROUNDING, "symbolic"
    )


def test_needs_equal_covariances() -> None:
    """A fine-tuned model that also changes its variance costs more than its mean tells."""
    shift, scale = torch.tensor([0.5], dtype=torch.float64), 1.1
    laws = [
        MultivariateNormal(m, s**2 * torch.eye(1, dtype=torch.float64))
        for m, s in ((shift, scale), (0 * shift, 1.0))
    ]
    residual = abs(float(kl_divergence(*laws)) - float(shift.square().sum()) / 2)
    CLAIM.breaks(residual, ROUNDING * 2, {"v": 0.5, "sigma": [scale, 1.0]}, "equal covariances")


def test_needs_control_orthogonal_to_kernel() -> None:
    """A control in the kernel of B moves nothing: |v|^2/2 overstates what it costs."""
    factor, v = (
        torch.tensor([[1.0, 1.0]], dtype=torch.float64),
        torch.tensor([1.0, -1.0], dtype=torch.float64),
    )
    cost = measure(factor @ v, torch.zeros(1, dtype=torch.float64), factor)
    CLAIM.breaks(
        abs(cost - float(v.square().sum()) / 2),
        ROUNDING * 2,
        {"B": factor, "v": v},
        "v orthogonal to ker B",
    )
    CLAIM.finding(
        "for B with a kernel, |v|²/2 is the divergence only if v ⊥ ker B, and exceeds it otherwise",
        {"B": factor, "v": v},
    )


def _factor(n: int, p: int, rank: int, seed: int) -> Tensor:
    """A matrix of given rank with singular values between 0.2 and 2."""
    left, right = (
        torch.linalg.qr(_normal(seed + i, size, rank))[0] for i, size in ((2, n), (3, p))
    )
    scales = (
        torch.rand(rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.8
        + 0.2
    )
    return left * scales @ right.T


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
