r"""One fraction for the controlled mean map: (16) and (15) without nested constants.

Setting: the constants (14)-(17) of Theorem 2.8 with design constants :math:`\lambda_t \in (0, 1)`.

Statement: $1 + g L_0 (u) = (1 + g L_0 (s))/λ$ and $L_1 (V_t) = g L_1 (s) L_0 (V_(t+1))/sqrt(a) + (1
+ g L_0 (s))^2 L_1 (V_(t+1))/(a λ)$

The assumption is (16), :math:`L^{(0)}_u = (L^{(0)}_s + (1-\lambda)/g)/\lambda`.

Kind: equality.

Source: arXiv 2412.18164v4, equations 15-16; identity derived here.

It is also the largest slope of the map :math:`y \mapsto y + g u^*(y)`, since :math:`x \mapsto x +
\delta^*(x)` has the Jacobian :math:`(I - \rho H)^{-1}` with norm at most :math:`1/\lambda`.

How it is measured: symbolically; numerically `socft.theory` against the paper's nested form at
random chains; in ball arithmetic. The slope of the map is measured on exact solutions and attained
by a convex quadratic reward.

What would refute it: a residual above `ROUNDING`, or a slope above the identity's.
"""

from __future__ import annotations

import flint
import sympy
import torch
from hypothesis import given, settings

from socft import theory
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.strategies import instances, numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Identity for (15), (16)", topics.THEOREM_2_8_III)
ROUNDING = 1e-13
"""Relative: ten operations."""
PRECISION = 200


@settings(max_examples=30)
@given(instances())
def test_holds(instance: ProductInstance) -> None:
    """The constants of `socft.theory`, which uses the single fraction, against the paper's nested
    ones.
    """
    chain, found = instance.chain, instance.regularity()
    g, a, lam = chain.score_weight, chain.alpha, instance.lams
    L0u = (chain.score_L0 + (1 - lam) / g) / lam
    stretch = 1 + g * L0u
    inner = (1 + g * chain.score_L0) * found.L1V[1:] * stretch / a.sqrt()
    L1V = (g * chain.score_L1 * found.L0V[1:] + inner) / a.sqrt()
    single = (1 + g * chain.score_L0) / lam
    CLAIM.equals(stretch / single, 1.0, instance, ROUNDING, "stretch")
    CLAIM.equals(found.L0u / L0u, 1.0, instance, ROUNDING, "(16)")
    CLAIM.equals(
        found.L1V[:-1] / L1V.clamp(min=1e-300), (L1V > 0).double(), instance, ROUNDING, "(15)"
    )


@settings(max_examples=40)
@given(quadratic_instances(steps=4))
def test_stretch_bounds_the_controlled_mean(instance: QuadraticInstance) -> None:
    """``|Jac(y + g u*)| <= (1 + g L0s) / lam`` at the optimum."""
    amplified = ROUNDING * float(
        (1 / instance.lams).prod()
    )  # each step divides the relative error of its curvature by lambda
    CLAIM.holds(
        _stretch(instance),
        _limit(instance),
        instance,
        slack=amplified,
        part="slope of $y + g u^* (y)$",
    )


def test_is_attained() -> None:
    """By a convex quadratic reward with an affine score of positive slope, at every step."""
    instance = QuadraticInstance(
        levels=(0.3, 0.6, 0.9),
        lam=(0.5, 0.3),
        score=(0.4,),
        shift=(0.0,),
        curvature=(1.5,),
        slope=(0.3,),
    )
    for measured, limit in zip(_stretch(instance).tolist(), _limit(instance).tolist(), strict=True):
        CLAIM.attained(measured, limit, instance, part="slope of $y + g u^* (y)$")


def test_holds_symbolically() -> None:
    """As rational functions."""
    s, g, lam, a, v0, v1, s1 = sympy.symbols("s g lam a v0 v1 s1", positive=True)
    u = (s + (1 - lam) / g) / lam
    nested = (g * s1 * v0 + (1 + g * s) * v1 * (1 + g * u) / sympy.sqrt(a)) / sympy.sqrt(a)
    stated = g * s1 * v0 / sympy.sqrt(a) + (1 + g * s) ** 2 * v1 / (a * lam)
    left = [sympy.simplify(1 + g * u - (1 + g * s) / lam), sympy.simplify(nested - stated)]
    CLAIM.equals(
        [float(x != 0) for x in left], [0.0, 0.0], {"symbolic": True}, ROUNDING, "symbolic"
    )


@settings(max_examples=20)
@given(numbers(0.01, 5), numbers(0.01, 0.9), numbers(0.05, 0.95))
def test_certified(score: float, gain: float, lam: float) -> None:
    """The residual of the first identity lies in a ball below 1e-50."""
    flint.ctx.prec = PRECISION
    s, g, x = (flint.arb(str(value)) for value in (score, gain, lam))
    residual = 1 + g * ((s + (1 - x) / g) / x) - (1 + g * s) / x
    CLAIM.certified(abs(residual), flint.arb("1e-50"), {"L0s": score, "g": gain, "lam": lam})


def test_needs_the_least_weight() -> None:
    """With a tenth less than the least beta for lambda, the slope at the optimum exceeds the
    fraction.
    """
    instance = QuadraticInstance(
        levels=(0.3, 0.9), lam=(0.5,), score=(0.4,), shift=(0.0,), curvature=(1.5,), slope=(0.3,)
    )
    slope = _stretch(instance, 0.9 * instance.beta())
    CLAIM.breaks(
        float(slope[0]),
        float(_limit(instance)[0]),
        {"instance": instance.describe(), "share of beta": 0.9},
        "least beta",
    )


def _stretch(instance: QuadraticInstance, beta: torch.Tensor | None = None) -> torch.Tensor:
    """``|I + g Jac u*_t|``, from the whitened gain: ``g u* = g s + sqrt(a) sigma v*``; shape
    (T,).
    """
    s, d = instance.schedule, instance.dim
    score = torch.diag(torch.tensor(instance.score, dtype=torch.float64))
    gain = instance.solve(beta).affine_policy.gain.detach()
    jacobian = (
        torch.eye(d, dtype=torch.float64)
        + s.score_weight[:, None, None] * score
        + (s.alpha.sqrt() * s.sigma)[:, None, None] * gain
    )
    return torch.linalg.matrix_norm(jacobian, 2)


def _limit(instance: QuadraticInstance) -> torch.Tensor:
    chain = instance.chain
    return chain.alpha.sqrt() * theory.mean_lipschitz(chain) / instance.lams
