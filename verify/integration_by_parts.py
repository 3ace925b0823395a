r"""Gaussian integration by parts (26), (48): curvature and slope of a smoothed function without
differentiating it.

Setting: :math:`(G V)(x) = E V(x + \sigma W)`, :math:`W \sim N(0, I_d)`, V of at most exponential
growth.

Statement: $∇^2 bb(E) V(x + σ W) = bb(E) [∇V(x + σ W) W^⊤]/σ$, which is $bb(E) ∇^2 V(x + σ W)$ for
Lipschitz $∇V$, and $bb(E) ∇V(x + σ W) = bb(E) [V(x + σ W) W]/σ$

V is Lipschitz, differentiable almost everywhere: kinks are allowed.

Kind: equality.

Source: arXiv 2412.18164v4, equations 26 and 48; the classes of functions made explicit here.

How it is measured: symbolically for every monomial of degree up to 4 in two dimensions, and so for
polynomials of that degree (a further coordinate is a common factor); by the trapezoidal rule for
rewards in one and two dimensions, the Hessian by automatic differentiation; for kinks in closed
form against adaptive quadrature.

What would refute it: a residual above rounding, or an expression that does not simplify to zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from socft.reward import LogSumExp, Reward, Separable
from socft.truth.grid import tensor_rule
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import random_rotation
from verify.support.rewards import ScalarReward, build_reward
from verify.support.strategies import curved_rewards, numbers

CLAIM = Claim.of_module(__name__, __doc__, "Integration by parts (26), (48)", topics.DERIVATIVES)
ONE = sympy.Integer(1)
DEGREE = 4
ROUNDING = 5e-14
"""Relative to |V| / sigma^2 and its derivatives: sums of 2e4 terms, each rounded to 1e-16."""
ADAPTIVE = 1e-9
"""Absolute error of adaptive quadrature, split at the kink and stopped at 1e-13, divided by sigma
>= 0.2.
"""
JUMP = 0.1
"""What a broken identity must miss by: jumps of size 1 make it miss by the normal density."""


def measure(reward: Reward, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """``E Hess V`` and ``E grad V`` at ``x + sigma W``, by differentiating V."""
    points, weights = tensor_rule(x.shape[0])
    gradient, hessian = _derivatives(reward, x + sigma * points)
    return torch.einsum("n,nij->ij", weights, hessian), weights @ gradient


def bound(reward: Reward, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The right-hand sides, one derivative lower."""
    points, weights = tensor_rule(x.shape[0])
    at = x + sigma * points
    shifted = reward(at) - reward(x[None])  # E W = 0: keeps the terms small
    return (weights[:, None] * reward.gradient(at)).T @ points / sigma, (
        weights * shifted
    ) @ points / sigma


@settings(max_examples=60)
@given(curved_rewards(), numbers(-2, 2), numbers(0.1, 2))
def test_holds(plain: ScalarReward, x: float, sigma: float) -> None:
    reward = build_reward(plain)
    _check(
        reward,
        torch.tensor([x], dtype=torch.float64),
        sigma,
        {"reward": repr(plain), "x": x, "sigma": sigma},
    )


@settings(max_examples=25)
@given(curved_rewards(), curved_rewards(), numbers(0.1, 2), st.integers(0, 9))
def test_holds_in_two_dimensions(
    first: ScalarReward, second: ScalarReward, sigma: float, seed: int
) -> None:
    """A rotated sum, whose Hessian has off-diagonal entries, and a smooth maximum, which does not
    separate and is as steep in units of the noise as the rule resolves.
    """
    x = torch.randn(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    where = {"rewards": [repr(first), repr(second)], "sigma": sigma, "seed": seed}
    _check(
        Separable(random_rotation(2, seed), [build_reward(first), build_reward(second)]),
        x,
        sigma,
        where,
    )
    slopes = torch.randn(
        3, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    slopes = slopes / max(1.0, sigma)
    smooth = LogSumExp(slopes, torch.zeros(3, dtype=torch.float64), 1.0)
    _check(smooth, x, sigma, {"slopes": slopes, "sigma": sigma, "seed": seed})


def test_holds_symbolically() -> None:
    """Every monomial up to degree `DEGREE` in two variables, at a symbolic point and noise
    scale.
    """
    x, z, w = (sympy.symbols(f"{name}1:3", real=True) for name in "xzw")
    sigma, left = sympy.symbols("sigma", positive=True), []
    moved = {a: b + sigma * c for a, b, c in zip(z, x, w, strict=True)}

    def expect(function: sympy.Expr, weight: sympy.Expr = ONE) -> sympy.Expr:
        return _expect(function.subs(moved, simultaneous=True) * weight, w)

    for powers in itertools.product(range(DEGREE + 1), repeat=2):
        if sum(powers) > DEGREE:
            continue
        V = z[0] ** powers[0] * z[1] ** powers[1]
        left += [expect(V, w[i] / sigma) - expect(sympy.diff(V, z[i])) for i in range(2)]
        pairs = itertools.product(range(2), repeat=2)
        left += [
            expect(sympy.diff(V, z[i]), w[j] / sigma) - expect(sympy.diff(V, z[i], z[j]))
            for i, j in pairs
        ]
    nonzero = [str(e) for e in left if sympy.expand(e) != 0]
    CLAIM.equals(
        float(len(nonzero)),
        0.0,
        {"degree": DEGREE, "identities": len(left), "left over": nonzero},
        ROUNDING,
        "symbolic",
    )


@settings(max_examples=40)
@given(numbers(-2, 2), numbers(0.2, 2))
def test_holds_with_a_jump_in_the_gradient(x: float, sigma: float) -> None:
    """``V = |x|``, whose ``G V`` has the curvature ``2 phi(x / sigma) / sigma`` although Hess V = 0
    almost everywhere.
    """
    curvature = _against_normal(lambda w: math.copysign(1, x + sigma * w) * w, x, sigma) / sigma
    slope = _against_normal(lambda w: abs(x + sigma * w) * w, x, sigma) / sigma
    expected = [2 * _density(x / sigma) / sigma, math.erf(x / (sigma * math.sqrt(2)))]
    CLAIM.equals(
        [curvature, slope], expected, {"V": "|x|", "x": x, "sigma": sigma}, ADAPTIVE, "kink"
    )


def test_needs_a_continuous_value() -> None:
    """``V = sign(x)``: its gradient vanishes almost everywhere, but G V has a slope, ``E[V W]``,
    and a curvature.
    """
    slope = _against_normal(lambda w: math.copysign(1, w) * w, 0.0, 1.0)
    CLAIM.breaks(abs(slope), JUMP, {"V": "sign(x)", "x": 0, "sigma": 1}, "continuous V, slope")
    step = 1e-3
    slopes = [
        _against_normal(lambda w, x=x: math.copysign(1, x + w) * w, x, 1.0)
        for x in (0.5 - step, 0.5 + step)
    ]
    CLAIM.breaks(
        abs(slopes[1] - slopes[0]) / (2 * step),
        JUMP,
        {"V": "sign(x)", "x": 0.5, "sigma": 1},
        "continuous V, curvature",
    )


def test_needs_a_continuous_gradient_for_the_expected_hessian() -> None:
    """``V = |x|``: ``E Hess V = 0`` almost everywhere, while ``E[grad V W] / sigma`` is the
    curvature of ``G V``.
    """
    right = _against_normal(lambda w: math.copysign(1, w) * w, 0.0, 1.0)
    where = {"V": "|x|", "x": 0, "sigma": 1, "measured": right}
    CLAIM.breaks(abs(right), JUMP, where, "continuous gradient")
    CLAIM.finding(
        "with a kink in V, E[∇V Wᵀ]/σ is still the Hessian of E V(x + σW), but no longer E ∇²V: for"
        " |x| at 0 it is √(2/π)/σ, not 0",
        where,
    )


def _check(reward: Reward, x: Tensor, sigma: float, where: dict[str, object]) -> None:
    hessian, gradient = measure(reward, x, sigma)
    by_parts, by_values = bound(reward, x, sigma)
    tolerance = ROUNDING * (1 + reward.L1 + reward.L0 / sigma)
    CLAIM.equals(by_parts, hessian, where, tolerance, "curvature")
    CLAIM.equals(by_values, gradient, where, tolerance, "slope")


def _derivatives(reward: Reward, points: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        y = points.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(reward(y).sum(), y, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[:, i].sum(), y, retain_graph=True)[0]
            for i in range(y.shape[1])
        ]
    return gradient.detach(), torch.stack(rows, 1)


def _expect(expression: sympy.Expr, w: tuple[sympy.Symbol, ...]) -> sympy.Expr:
    """The expectation over independent standard normal w of a polynomial in them, by its
    moments.
    """
    total = sympy.Integer(0)
    for powers, coefficient in sympy.Poly(sympy.expand(expression), *w).terms():
        moment = sympy.prod(sympy.factorial2(n - 1) if n % 2 == 0 else 0 for n in powers)
        total += coefficient * moment
    return sympy.expand(total)


def _against_normal(function: Callable[[float], float], x: float, sigma: float) -> float:
    """``E function(W)`` for a function with a kink where ``x + sigma W = 0``."""
    ends = sorted({-12.0, min(max(-x / sigma, -12.0), 12.0), 12.0})
    pieces = [
        quad(lambda w: function(w) * _density(w), a, b, epsabs=1e-13, epsrel=1e-13)[0]
        for a, b in itertools.pairwise(ends)
    ]
    return math.fsum(pieces)


def _density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
