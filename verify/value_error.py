r"""How far PI-FT's value falls short of the optimum: errors of all steps are added, none is
multiplied.

Setting: Algorithm 1 with m_t relaxed updates, rate q_t, one-sided constants of these iterates;
:math:`\bar L_0` bounds :math:`|\nabla G V^{(m)}_{t+1}|`, :math:`a_t = \rho_t \bar K^+`, :math:`b_t
= \rho_t \bar K^-`.

Statement: $0 ≤ V_t^* − V_t^((m)) ≤ sum_(s ≥ t) min{1 + b_s, 1/(1 − a_s)} ρ_s q_s^(2 m_s)
macron(L)_(0,s+1)^2/2$, and so $J^* − J ≤ sum_t min{1 + b_t, 1/(1 − a_t)} ρ_t q_t^(2 m_t)
macron(L)_(0,t+1)^2/2$

Smoothing and Moreau envelope are monotone and commute with constants, so that an error of the value
in front is carried over as it is; a step adds what its updates leave of its own maximum. Proof in
`socft.theory.one_sided`.

Kind: tight: for a linear reward, affine scores and any relaxation it is attained for all m, t and
T.

Source: derived here; arXiv 2412.18164v4 bounds controls only.

How it is measured: values of PI-FT by quadrature against the exact optimum, in up to 64 dimensions
as rotated products, and the objective of its policy by pushing its law forward.

What would refute it: a value above the optimum, or below it by more than the bound.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.iterates import visible
from verify.support.one_sided import RelaxedPass, linear_pass, relaxations
from verify.support.scores import MixtureScore
from verify.support.strategies import Sine, curved_rewards, instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Error of the value", topics.ONE_SIDED)
ROUNDING = 1e-6


def measure(each: RelaxedPass) -> Tensor:
    """``sup |V*_t - V_t^(m)|``, shape (T,)."""
    return each.value_error()[:-1]


def bound(each: RelaxedPass) -> Tensor:
    """The statement's, shape (T,)."""
    return each.convergence.value[:-1]


@settings(max_examples=12)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 5), relaxations())
def test_holds(instance: ProductInstance, rounds: int, relaxation: theory.Relaxation) -> None:
    each = RelaxedPass(instance, relaxation, rounds)
    limit = bound(each)
    CLAIM.holds(visible(measure(each), limit), limit, each, floor=ACCURACY * instance.dim)


@pytest.mark.parametrize("rounds", [0, 2])
def test_holds_for_objectives(rounds: int) -> None:
    """The objective of PI-FT's policy, from the law of its chain."""
    score = MixtureScore((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5))
    levels = tuple(0.2 * (0.97 / 0.2) ** (t / 5) for t in range(6))
    instance = ProductInstance(
        levels=levels, lam=(0.5,) * 5, factors=(Factor(score, Sine(1.0, 2.0)),)
    )
    each = RelaxedPass(instance, theory.BestRelaxation(), rounds)
    truth, found = each.truths[0], each.found[0]
    J = truth.evaluate(found.policy(truth.problem)).objective
    gap = truth.evaluate(truth.policy).objective - J
    CLAIM.holds(gap, each.convergence.objective_gap, each, floor=ACCURACY, part="objective")
    CLAIM.holds(-gap, 0.0, each, floor=ACCURACY, part="optimum is optimal")


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 6])
def test_is_attained(steps: int, rounds: int) -> None:
    """A linear reward and expanding scores, damped to theta = 0.6: ``0.4^2m rho L0^2 / 2`` is left
    at every step.
    """
    each = linear_pass(steps, rounds)
    for seen, limit in zip(measure(each).tolist(), bound(each).tolist(), strict=True):
        CLAIM.attained(seen, limit, each, within=ROUNDING, slack=ROUNDING)


def test_needs_the_square_of_the_rate_and_no_more() -> None:
    """``q^3m`` is too little; ``q^m`` would be too much by ``q^-m``, which the attained case
    tells.
    """
    each = linear_pass(6, 2)
    q = each.constants.rate
    CLAIM.breaks(float((measure(each) / (q**2 * bound(each))).min()), 1.0, each, "q^2m")


def test_needs_the_sum_over_later_steps() -> None:
    """One step's share is less than what is missing: errors of later steps count in full."""
    each = linear_pass(6, 2)
    value = each.convergence.value
    own = value[:-1] - value[1:]
    CLAIM.breaks(float(measure(each)[0]), float(own[0]) * (1 + ROUNDING), each, "sum over s ≥ t")


@pytest.mark.parametrize("side", ["up", "down"])
def test_needs_the_curvature(side: str) -> None:
    """Without its factor the bound fails near a quadratic maximum that an update overshoots or does
    not reach: undamped with curvature ``c``, the shift leaves ``(rho c)^2m (1 - rho c)`` of ``rho
    slope^2 / 2 / (1 - rho c)^2``.
    """
    c, slope, m = 0.6 if side == "up" else -0.6, 1.0, 3
    shift, best = 0.0, slope / (1 - c)
    for _ in range(m):
        shift = c * shift + slope
    missing = (1 - c) * (shift - best) ** 2 / 2
    local = abs(c) ** (2 * m) * best**2 / 2  # with the slope at the optimum, where it is known
    factor = 1 - c if side == "down" else 1 / (1 - c)
    where = {"rho c": c, "updates": m}
    CLAIM.holds(missing, local * max(1 - c, factor), where, part="quadratic maximum")
    if side == "down":
        CLAIM.breaks(missing, local, where, "factor 1 + b")
    else:
        steepest = abs(c) ** (2 * m) * slope**2 / 2
        CLAIM.breaks(missing, steepest, where, "factor 1/(1 − a)")
