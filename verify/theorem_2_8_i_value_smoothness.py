r"""The gradients of the value functions are Lipschitz (15).

Setting: scores with constants :math:`L^0_{s,t}, L^1_{s,t}`, a reward with :math:`L^0_r, L^1_r`, and
:math:`\beta_t \ge \sigma_t^2 L^1_{V,t+1}/(1-\lambda_t)`.

Statement: $|∇V_t (y) − ∇V_t (y')| ≤ L_1 (V_t) |y − y'|$ with $L_1 (V_t) = g L_1 (s) L_0
(V_(t+1))/sqrt(a) + (1 + g L_0 (s))^2 L_1 (V_(t+1))/(a λ)$

At the end :math:`L^1_{V,T} = L^1_r`; and :math:`1 + g L^0_u = (1 + g L^0_s)/\lambda`.

Kind: tight. A convex quadratic reward with an expanding affine score attains the second term at
every step, a linear reward at the last step of a nonlinear score the first.

Source: arXiv 2412.18164v4, Theorem 2.8 (i), equation 15; sharper constants derived here.

They have the exact mean map and the smoothed curvature. The certificate is derived here too.

How it is measured: the supremum of the second derivative of the exact value function, at the
weights the paper's condition asks; closed forms in several dimensions. The certificate proves in
ball arithmetic that for affine scores a curvature within its bound at t + 1 is within its bound at
t, for all curvatures and lambdas of an interval.

What would refute it: a second derivative above the constant beyond the error of differencing.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import flint
import pytest
import torch
from hypothesis import given
from torch import Tensor

from socft import theory
from socft.truth.quadrature import Quadrature
from verify.strong_concavity import rounding
from verify.support import topics
from verify.support.balls import ball, cells
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.passes import hold_at_the_optimum
from verify.support.quadratics import steep_quadratic
from verify.support.rewards import Slope
from verify.support.score_units import formula
from verify.support.scores import TanhScore
from verify.support.strategies import instances, quadratic_instances
from verify.support.suprema import DIFFERENCED
from verify.support.suprema import measure as suprema

CLAIM = Claim.of_module(__name__, __doc__, "Theorem 2.8 (i), (15)", topics.THEOREM_2_8_I)
PAPER = theory.Theorem28(theory.PaperBounds())
CELLS = 24
"""Cells per axis of the certificate; the last ends at 1 - 2^-20 times the bound, because at 1 the
two sides are equal.
"""


def measure(instance: ProductInstance | QuadraticInstance) -> Tensor:
    """``sup |Hess V_t|``, shape (T,)."""
    if isinstance(instance, ProductInstance):
        return instance.suprema().value_hessian[:-1]
    truth = instance.solve()
    return torch.stack(
        [torch.linalg.matrix_norm(truth.hessian(t), 2) for t in range(instance.steps)]
    )


def bound(
    instance: ProductInstance | QuadraticInstance, statement: theory.RegularityStatement
) -> Tensor:
    """(15) at the weights of the paper's condition, shape (T,)."""
    return theory.constants_at(instance.chain, instance.beta(), statement).L1V[:-1]


test_formula = formula(CLAIM, "L1V")


@given(instances())
def test_holds(instance: ProductInstance) -> None:
    hold_at_the_optimum(CLAIM, instance, measure(instance), bound, DIFFERENCED)


@given(quadratic_instances(steps=5))
def test_holds_in_several_dimensions(instance: QuadraticInstance) -> None:
    sharp = bound(instance, theory.Theorem28(instance.sharp))
    limit, slack = bound(instance, PAPER), rounding(instance)
    CLAIM.holds(measure(instance), limit, instance, sharp=sharp, slack=slack, part="quadratic")


def test_is_attained() -> None:
    """At every step of a convex quadratic problem with an expanding score."""
    instance = steep_quadratic(lam=(0.7, 0.35, 0.5))
    for curvature, largest in zip(
        measure(instance).tolist(), bound(instance, PAPER).tolist(), strict=True
    ):
        CLAIM.attained(curvature, largest, instance, slack=DIFFERENCED, part="second term")


def test_first_term_is_attained() -> None:
    """By a linear reward: V_t is it composed with the mean map, whose bend is that of the score."""
    instance = ProductInstance(
        levels=(0.4, 0.9), lam=(0.5,), factors=(Factor(TanhScore(0.5, 0.5, 1.5), Slope(1.2)),)
    )
    CLAIM.attained(
        float(measure(instance)[0]),
        float(bound(instance, PAPER)[0]),
        instance,
        slack=DIFFERENCED,
        part="first term",
    )


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
def test_needs_the_condition_on_beta(lam: float) -> None:
    """With a weight for half of lambda the curvature of a convex quadratic exceeds the bound for
    lambda.
    """
    instance = steep_quadratic(lam=(lam,))
    beta = theory.paper_constants(instance.chain, lam / 2).beta_required
    curvature = float(suprema(Quadrature(instance.problem(beta))).value_hessian[0])
    CLAIM.breaks(
        curvature,
        float(bound(instance, PAPER)[0]),
        {"instance": instance.describe(), "beta": beta},
        "condition on beta",
    )


def test_needs_the_bend_of_the_score() -> None:
    """With L1s = 0 for a nonlinear score the bound is zero for a linear reward, and fails."""
    instance = ProductInstance(
        levels=(0.4, 0.9), lam=(0.5,), factors=(Factor(TanhScore(0.5, 0.5, 1.5), Slope(1.2)),)
    )
    chain = theory.ChainConstants.of(instance.schedule, instance.constants.L0, 0.0, instance.reward)
    claimed = float(theory.paper_constants(chain, instance.lams).L1V[0])
    CLAIM.breaks(
        float(measure(instance)[0]),
        claimed + DIFFERENCED,
        instance,
        "Lipschitz constant of the score's Jacobian",
    )


def test_certified() -> None:
    """``|P_t| / L1V_t = lam |p| / (1 - (1 - lam) p) < 1`` for ``p = P_{t+1} / L1V_{t+1}`` in (-1,
    1).
    """
    largest = flint.arb(0)
    top = 1 - Fraction(1, 2**20)
    for lam_cell, size_cell in itertools.product(
        cells(Fraction(1, 20), Fraction(19, 20), CELLS), cells(Fraction(0), top, CELLS)
    ):
        lam, size = ball(*lam_cell), ball(*size_cell)
        largest = largest.max(convex_share(lam, size).upper()).max(concave_share(lam, size).upper())
    where = {"lam": [0.05, 0.95], "|curvature| over its bound": [0, float(top)]}
    CLAIM.certified(largest, flint.arb(1), where, part="quadratic family")


def convex_share(lam: flint.arb, size: flint.arb) -> flint.arb:
    """``lam p / (1 - (1 - lam) p)`` for p = size >= 0, written so that both variables occur
    monotonically.
    """
    product = lam * size
    return 1 - (1 - size) / (product + (1 - size))


def concave_share(lam: flint.arb, size: flint.arb) -> flint.arb:
    """The same for p = -size."""
    return lam * size / (1 + (1 - lam) * size)
