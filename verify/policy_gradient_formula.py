r"""The gradient of the objective with respect to a policy that is linear in features (77).

Setting: :math:`U_t(y) = K_t \varphi_t(y)` with any features and any weights, one matrix per step;
:math:`V^K` is the value of that policy, not the optimal one, and :math:`Q^K_t(y, u) = -\beta_t g^2
|u - s_t(y)|^2 / (2 a \sigma^2) + E V^K_{t+1}((y + g u)/\sqrt a + \sigma W)`.

Statement: $∇_(K_t) J = bb(E) [∂_u Q^K_t (Y_t, K_t φ_t (Y_t)) φ_t (Y_t)^⊤]$

:math:`Y_t` is distributed under the policy itself. In whitened control, :math:`\partial_v Q^K_t =
\sigma E \nabla V^K_{t+1} - \beta_t v`, with a costate :math:`\nabla V^K` that contains the policy's
own derivative.

Kind: equality.

Source: arXiv 2412.18164v4, equation 77.

How it is measured: (a) symbolically for two steps in one dimension; (b) for affine features and a
quadratic reward in up to 5 dimensions, `affine_gradient` against automatic differentiation of the
objective, itself from the propagated moments; (c) in one dimension for nonlinear features, scores
and rewards: the right side from the costate recursion and the policy's law, the left side by
differentiating the objective, both by the trapezoidal rule (see ``policy_gradients``). The two
sides agree only where both converge, since one differentiates kernels and the other the value
functions.

What would refute it: a residual above `QUADRATURE` or `ROUNDING`.
"""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given, settings
from jaxtyping import Float
from torch import Tensor

from socft.policy import AffinePolicy
from socft.truth.affine_policy import affine_gradient
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.policy_gradients import SEEDS, Line, moments_objective
from verify.support.scores import MixtureScore
from verify.support.strategies import Sine, line_instances, numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Gradient (77)", topics.SECTION_4_1)
ROUNDING = 1e-10
"""Relative to the largest entry: products of 2 T matrices of norm up to 10 lose six digits of
float64.
"""
QUADRATURE = 1e-10
"""Relative to the largest entry: the trapezoidal rule errs by 1e-15 per step, what lies beyond the
nodes by less.
"""


def features(x: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 4"]:
    """``(1, y, tanh y, sin 2y)``."""
    return torch.cat([torch.ones_like(x), x, x.tanh(), (2 * x).sin()], 1)


def measure(line: Line, weights: Float[Tensor, "steps p"]) -> Float[Tensor, "steps p"]:
    """The left side of (77), by automatic differentiation of the objective."""
    leaf = weights.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(line.objective(leaf), leaf)
    return gradient


def bound(
    line: Line,
    weights: Float[Tensor, "steps p"],
    law: Float[Tensor, "steps p"] | None = None,
    lean: bool = False,
) -> Float[Tensor, "steps p"]:
    """The right side of (77).

    Args:
        line: chains.
        weights: the policy's.
        law: weights of the policy under which states are distributed, by default the same.
        lean: leave the policy's own derivative out of the costate.
    """
    problem, laws, rows = line.problem, line.masses(weights if law is None else law), []
    costate = problem.reward.gradient(line.nodes)[:, 0]
    for k in reversed(line.range):
        beta, sigma = problem.beta[k], line.reference.schedule.sigma[k]
        control, kernel = line.push(k, weights[k])
        mean_slope, control_slope = line.slopes(k, weights[k])
        pushed = kernel @ costate
        derivative = sigma * pushed - beta * control
        rows.append(laws[k] * derivative / line.unit[k] @ line.basis)
        costate = mean_slope * pushed
        if not lean:
            costate = costate + control_slope * derivative
    return torch.stack(rows[::-1])


@settings(max_examples=12)
@given(line_instances(steps=4), SEEDS, numbers(0.05, 0.5), numbers(0.05, 5))
def test_holds(instance: ProductInstance, seed: int, size: float, beta: float) -> None:
    """Nonlinear features: the two sides of (77) by quadrature, at random weights, for any beta."""
    weights = size * _normal(seed, instance.steps, 4)
    line = Line.covering(instance.problem(beta), weights, features)
    expected = measure(line, weights)
    where = {"instance": instance.describe(), "seed": seed, "size": size, "beta": beta}
    CLAIM.equals(
        bound(line, weights),
        expected,
        where,
        QUADRATURE * (1 + float(expected.abs().max())),
        "nonlinear features",
    )


@settings(max_examples=40)
@given(quadratic_instances(), SEEDS, numbers(0.05, 1), numbers(0.05, 5))
def test_holds_for_affine_features(
    instance: QuadraticInstance, seed: int, size: float, beta: float
) -> None:
    """The closed form against automatic differentiation of the objective from moments; beta may
    admit no optimum.
    """
    problem, (T, d) = instance.problem(beta), (instance.steps, instance.dim)
    gain, offset = size * _normal(seed, T, d, d), size * _normal(seed + 1, T, d)
    leaves = [x.clone().requires_grad_(True) for x in (gain, offset)]
    expected = torch.autograd.grad(moments_objective(problem, *leaves), leaves)
    found = affine_gradient(problem, AffinePolicy(gain, offset))
    where = {"instance": instance.describe(), "seed": seed, "size": size, "beta": beta}
    scale = 1 + max(float(x.abs().max()) for x in expected)
    CLAIM.equals((found.gain - expected[0]) / scale, 0.0, where, ROUNDING, "affine features, gain")
    CLAIM.equals(
        (found.offset - expected[1]) / scale, 0.0, where, ROUNDING, "affine features, offset"
    )


def test_holds_symbolically() -> None:
    """Two steps in one dimension, ``v_k = K_k x``, quadratic reward: both sides are polynomials in
    all coefficients.
    """
    A0, A1, P, K0, K1, b0, b1, s0, s1 = sympy.symbols("A0 A1 P K0 K1 b0 b1 s0 s1", real=True)
    first = (A0 + s0 * K0) ** 2 + s0**2
    second = (A1 + s1 * K1) ** 2 * first + s1**2
    J = P * second / 2 - b0 * K0**2 / 2 - b1 * K1**2 * first / 2
    P1 = P * (A1 + s1 * K1) ** 2 - b1 * K1**2
    formula = {
        K0: s0 * P1 * (A0 + s0 * K0) - b0 * K0,
        K1: (s1 * P * (A1 + s1 * K1) - b1 * K1) * first,
    }
    residual = [sympy.expand(J.diff(K) - right) for K, right in formula.items()]
    where = {"symbolic": True, "left over": [str(r) for r in residual]}
    CLAIM.equals([float(r != 0) for r in residual], [0.0, 0.0], where, ROUNDING, "symbolic")


@pytest.mark.parametrize("what", ["law", "costate"])
def test_needs_the_policys_own(what: str) -> None:
    """With states of another policy, or with a costate that leaves out the policy's derivative, it
    is no gradient.
    """
    instance = _example()
    weights, still = (
        0.6 * _normal(3, instance.steps, 4),
        torch.zeros(instance.steps, 4, dtype=torch.float64),
    )
    line = Line.covering(instance.problem(0.5), weights, features)
    wrong = bound(line, weights, law=still) if what == "law" else bound(line, weights, lean=True)
    expected = measure(line, weights)
    scale = float(expected.abs().max())
    CLAIM.breaks(
        float((wrong - expected).abs().max()),
        QUADRATURE * (1 + scale),
        instance,
        f"the policy's own {what}",
    )


def _example() -> ProductInstance:
    factor = Factor(MixtureScore((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5)), Sine(1.0, 1.5, 0.3))
    return ProductInstance(levels=(0.4, 0.6, 0.9), lam=(0.5, 0.5), factors=(factor,))


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
