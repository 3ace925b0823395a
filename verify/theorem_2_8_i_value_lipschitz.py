r"""The value functions are Lipschitz (14).

Setting: scores with Lipschitz constants :math:`L^0_{s,t}`, an :math:`L^0_r`-Lipschitz reward, and
:math:`\beta_t \ge \sigma_t^2 L^1_{V,t+1}/(1-\lambda_t)`.

Statement: $|V_t (y) − V_t (y')| ≤ L_0 (V_t) |y − y'|$ with $L_0 (V_t) = (1 + g_t L_0
(s_t))/sqrt(a_t) · L_0 (V_(t+1))$, $L_0 (V_T) = L_0 (r)$

Kind: tight. A linear reward with the score :math:`+L^0_s y` attains it at every step.

Source: arXiv 2412.18164v4, Theorem 2.8 (i), equation 14; sharper constant derived here.

The sharper constant has the exact Lipschitz constant of the mean map in place of :math:`(1 + g
L^0_s)/\sqrt a`. No condition on beta is needed, because a supremum of translates of an L-Lipschitz
function is L-Lipschitz.

How it is measured: the supremum of the gradient of the exact value function; for beta below its
condition the largest slope of brute-force maxima, as the value function then has kinks.

What would refute it: a slope above the constant beyond quadrature error.
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
from verify.operator_view import Bracket, maximise
from verify.support import topics
from verify.support.balls import ball, below_one, cells
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.passes import hold_at_the_optimum
from verify.support.rewards import Slope
from verify.support.score_units import formula
from verify.support.scores import MixtureScore, TanhScore
from verify.support.strategies import Sine, instances
from verify.support.suprema import ACCURACY

CELLS = 12
"""Cells per axis of the certificate."""

CLAIM = Claim.of_module(__name__, __doc__, "Theorem 2.8 (i), (14)", topics.THEOREM_2_8_I)


def measure(instance: ProductInstance) -> Tensor:
    """``sup |grad V_t|``, shape (T,)."""
    return instance.suprema().value_gradient[:-1]


def bound(instance: ProductInstance, statement: theory.RegularityStatement) -> Tensor:
    """(14), shape (T,)."""
    return instance.regularity(statement).L0V[:-1]


test_formula = formula(CLAIM, "L0V")


@given(instances())
def test_holds(instance: ProductInstance) -> None:
    hold_at_the_optimum(CLAIM, instance, measure(instance), bound, ACCURACY)


@pytest.mark.parametrize("size", [1, 3])
def test_is_attained(size: int) -> None:
    """By a linear reward with an expanding score, in one and several dimensions."""
    levels = (0.3, 0.45, 0.6, 0.8, 0.95)
    factor = Factor(TanhScore(c=-0.4, e=0.3), Slope(1.5))
    instance = ProductInstance(
        levels=levels,
        lam=(0.5,) * 4,
        factors=(factor,),
        size=size,
        rotation=1 if size > 1 else None,
    )
    for slope, largest in zip(
        measure(instance).tolist(), bound(instance, PAPER).tolist(), strict=True
    ):
        CLAIM.attained(slope, largest, instance, slack=ACCURACY)


def test_sharper_constant_is_attained_by_gaussian_data() -> None:
    """The mean maps of Gaussian data contract, which the paper's constant does not see."""
    levels = (0.3, 0.45, 0.6, 0.8, 0.95)
    instance = ProductInstance(
        levels=levels,
        lam=(0.5,) * 4,
        factors=(Factor(MixtureScore((1.0,), (0.5,), (1.0,)), Slope(1.5)),),
    )
    sharp, paper = bound(instance, theory.Theorem28(instance.sharp)), bound(instance, PAPER)
    for slope, largest in zip(measure(instance).tolist(), sharp.tolist(), strict=True):
        CLAIM.attained(slope, largest, instance, slack=ACCURACY, part="sharper constant")
    text = (
        f"unit Gaussian data, 4 steps: (14) is {float(paper[0] / sharp[0]):.3g} times the exact"
        " L0V_0, which the sharper one gives"
    )
    CLAIM.finding(text, instance)


def test_needs_the_lipschitz_constant_of_the_score() -> None:
    """With half of the score's Lipschitz constant the bound fails."""
    instance = ProductInstance(
        levels=(0.3, 0.9), lam=(0.5,), factors=(Factor(TanhScore(c=-0.4), Slope(1.5)),)
    )
    chain = theory.ChainConstants.of(instance.schedule, 0.2, 0.0, instance.reward)
    claimed = theory.paper_constants(chain, instance.lams).L0V[0]
    CLAIM.breaks(
        float(measure(instance)[0]), float(claimed), instance, "Lipschitz constant of the score"
    )


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_condition_on_beta_is_not_needed(share: float) -> None:
    """At a share of the least admissible beta, where the maximiser jumps and the value function has
    kinks.
    """
    instance = ProductInstance(
        levels=(0.4, 0.8), lam=(0.05,), factors=(Factor(TanhScore(c=-0.5), Sine(1.0, 2.0)),)
    )
    beta = share * 4 * float(instance.schedule.sigma[0].square())
    y = torch.linspace(-4, 4, 401, dtype=torch.float64)
    values = maximise(Bracket(instance, instance.parts()[0], 0, beta), y).value
    slope = float(values.diff().abs().max() / (y[1] - y[0]))
    where = {"instance": instance.describe(), "beta": beta}
    CLAIM.holds(
        slope,
        float(bound(instance, PAPER)[0]),
        where,
        floor=ACCURACY,
        part="beta below its condition",
    )
    CLAIM.finding(
        "(14) needs no condition on β: it holds, and V_t is Lipschitz, for every β > 0", where
    )


def test_certified() -> None:
    """Affine scores s and sine rewards of every frequency: the steepest slope over the bound is
    ``|1 + g s| fade / (1 + g L0s)``.

    At the optimum V_t has the slope ``(1 + g s) / sqrt(a)`` times a smoothed reward's,
    ``L0r fade cos``. With ``A = g L0s`` and ``s = (1 - 2 r) L0s`` the first factor is
    ``1 - 2 r A / (1 + A)``, between -1 and 1 for all r in [0, 1].
    """
    where, most = {"A": [0, 4], "r": [0, 1], "frequency sigma": [1 / 16, 8]}, flint.arb(0)
    for sizes, shares in itertools.product(
        cells(Fraction(0), Fraction(4), CELLS), cells(Fraction(0), Fraction(1), CELLS)
    ):
        high, low = (1 - 2 * r * A / (1 + A) for r, A in zip(shares, sizes, strict=True))
        factor = abs(ball(low, high))
        most = most.max(
            below_one(
                lambda z, factor=factor: factor * (-z * z / 2).exp(), Fraction(1, 16), Fraction(8)
            )
        )
    CLAIM.certified(most, flint.arb(1), where, "sine rewards")


PAPER = theory.Theorem28(theory.PaperBounds())
