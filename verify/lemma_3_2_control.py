r"""Lemma 3.2, controls: every iterate of PI-FT is as Lipschitz as the optimal control is (16).

Setting: Algorithm 1 with m updates at every step,
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`.

Statement: $sup |op("Jac") U_t^((m))| ≤ L_0 (u_t) = (L_0 (s) + (1 − λ_t)/(1 − a_t))/λ_t$ and $sup
|D^2 U_t^((m))| ≤ L_1 (u_t)$ for every $m$

Kind: tight. A convex quadratic reward and the score :math:`s(y) = +L^{(0)}_s y` attain the first
bound at the last step as m grows: the slope of :math:`\delta_m` is :math:`M (q + \dots + q^m)`,
:math:`q = 1 - \lambda`. The same reward and a score that bends within an ever shorter distance
approach the second, in which :math:`L^{(1)}_s` is then all that counts.

Source: arXiv 2412.18164v4, Lemma 3.2 with equations 16 and 17; sharper constant derived here.

The extremal instance is derived here too.

How it is measured: PI-FT by quadrature, in up to 64 dimensions as rotated products. The certificate
is in ball arithmetic, for all convex and concave quadratic steps with :math:`q \in [0.1, 0.9]`.

What would refute it: an iterate's slope above its bound beyond the error of its differences.
"""

from __future__ import annotations

from fractions import Fraction

import flint
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.pi_ft import backward_induction
from verify.support import topics
from verify.support.balls import ball, cells
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.iterates import (
    PAPER,
    Chained,
    Iterate,
    constant,
    control_slopes,
    iterate,
    supremum,
)
from verify.support.passes import hold_along_passes
from verify.support.rewards import Parabola
from verify.support.score_units import ROUNDING, deviation
from verify.support.scores import TanhScore
from verify.support.steep import BETWEEN, SteepScore
from verify.support.strategies import curved_rewards, instances, steep_scores
from verify.support.suprema import DIFFERENCED, TWICE

CLAIM = Claim.of_module(__name__, __doc__, "Lemma 3.2, control", topics.LEMMA_3_2)
CELLS = 200
"""Cells of q in the certificate."""


def measure(found: Iterate) -> Tensor:
    """``sup |Jac U_t^(m)|``, shape (T,)."""
    return found.control_slope


def measure_bend(found: Iterate) -> Tensor:
    """``sup |D^2 U_t^(m)|``, shape (T,)."""
    return found.control_bend


def bound(instance: Chained, beta: Tensor, bounds: theory.Bounds) -> Tensor:
    """``L0u``, shape (T,); infinite where these bounds do not admit the weights."""
    return constant(instance, beta, bounds, lambda constants: constants.L0u)


def bend_bound(instance: Chained, beta: Tensor, bounds: theory.Bounds) -> Tensor:
    """``L1u``, shape (T,); infinite where these bounds do not admit the weights."""
    return constant(instance, beta, bounds, lambda constants: constants.L1u)


@settings(max_examples=18)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 5))
def test_holds(instance: ProductInstance, rounds: int) -> None:
    hold_along_passes(CLAIM, instance, rounds, measure, bound, DIFFERENCED)
    floor = TWICE * (1 + float(theory.score_unit(instance.chain).max()))
    hold_along_passes(CLAIM, instance, rounds, measure_bend, bend_bound, floor, "Jacobian")


@settings(max_examples=60)
@given(steep_scores(), st.integers(0, 9))
def test_holds_for_steep_scores(step: SteepScore, updates: int) -> None:
    limit = bend_bound(step.instance, step.instance.beta(PAPER), PAPER.bounds)
    where = {"instance": step.instance.describe(), "updates": updates}
    CLAIM.holds(step.bend(updates), float(limit[0]), where, part="Jacobian, steep score")


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_smoothness_is_attained_by_a_steep_score(lam: float) -> None:
    step, updates = SteepScore(b=1e-5, w=1e5, p=1.0, lam=lam), 30
    limit = bend_bound(step.instance, step.instance.beta(PAPER), PAPER.bounds)
    where = {"instance": step.instance.describe(), "updates": updates}
    CLAIM.attained(step.bend(updates), float(limit[0]), where, slack=BETWEEN, part="steep score")


@pytest.mark.parametrize("name", ["L0u", "L1u"])
@pytest.mark.parametrize("seed", range(2))
def test_formula(name: str, seed: int) -> None:
    difference, where = deviation(name, seed, iterates=True)
    CLAIM.equals(difference, 0.0, where, ROUNDING, "formula")


def test_is_attained() -> None:
    instance, rounds = _quadratic(), 12
    beta = instance.beta(PAPER)
    measured, limit = (
        float(measure(iterate(instance, beta, rounds))[0]),
        float(bound(instance, beta, PAPER.bounds)[0]),
    )
    CLAIM.attained(
        measured, limit, {"instance": instance.describe(), "updates": rounds}, slack=DIFFERENCED
    )


@pytest.mark.parametrize("rounds", [1, 2, 5, 12])
@pytest.mark.parametrize("sign", [1, -1])
def test_certified(sign: int, rounds: int) -> None:
    """The slope of the shift over its bound, ``lam (1 + sign q + ... + (sign q)^(m-1)) = lam (1 -
    (sign q)^m) / (1 - sign q)``.
    """
    worst = flint.arb(0)
    for cell in cells(Fraction(1, 10), Fraction(9, 10), CELLS):
        q = ball(*cell)
        ratio = 1 - q**rounds if sign > 0 else (1 - q) / (1 + q) * (1 - (-q) ** rounds)
        worst = worst.max(ratio.upper())
    CLAIM.certified(
        worst, flint.arb(1), {"q": [0.1, 0.9], "sign": sign, "updates": rounds}, "quadratic step"
    )


def test_needs_the_condition_on_beta() -> None:
    """With a fifth less beta than the condition admits for any lambda, slopes grow beyond every
    bound as m does.
    """
    instance = _quadratic()
    problem = instance.problem(0.8 * instance.beta(PAPER) * (1 - instance.lams))
    found = backward_induction(problem, instance.parts(instance.beta(PAPER))[0].grids, 10)
    slope = float(supremum(control_slopes(problem, instance.schedule, found))[0])
    loose = theory.constants(instance.chain, 0.1, PAPER).L0u
    CLAIM.breaks(
        slope,
        float(loose[0]),
        {"instance": instance.describe(), "lam of the bound": 0.1},
        "condition on beta",
    )


def _quadratic() -> ProductInstance:
    return ProductInstance(
        levels=(0.6, 0.95), lam=(0.5,), factors=(Factor(TanhScore(c=-0.4), Parabola(1.5, 0.5)),)
    )
