r"""Lemma 3.2, value functions: every iterate of PI-FT has a Lipschitz value function (38).

Setting: Algorithm 1 with m updates at every step,
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`.

Statement: $sup |∇V_t^((m))| ≤ macron(L)_0 (V_t)$ for every $m$, with $macron(L)_0 (V_t) = (1 + (1 −
a_t) L_0 (s))/sqrt(a_t) · (1 + (1 − λ_t)^2/λ_t) · macron(L)_0 (V_(t+1))$

Kind: upper bound. How much steeper than :math:`V^*` an unfinished iterate may be is not settled:
the paper allows a factor :math:`1 + q^2/\lambda` with :math:`q = 1 - \lambda`, the sharper constant
:math:`1 + \max_m q^{m+1}(1-q^m)/\lambda`. The clipped slope reaches the factor
:math:`1 + \max_m q^{m+1}(1-q^m)/(1-q^{m+1})` as the clip becomes sharp (derived here), which tends
to 2 as :math:`\lambda \to 0`. So some factor is needed; where :math:`\lambda \to 1` it is 1, and a
linear reward with the score :math:`s(y) = +L^{(0)}_s y` reaches it.

Source: arXiv 2412.18164v4, Lemma 3.2, equation 38; sharper constant derived here.

The lower bound is derived here too.

How it is measured: the formula in the paper's variables on random chains; PI-FT by quadrature,
in up to 64 dimensions as rotated products; also at the smaller weights that the sharper constants
admit.

What would refute it: an iterate's gradient longer than its bound beyond quadrature error.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.claims import WITHIN, Claim
from verify.support.iterates import Chained, Iterate, constant
from verify.support.passes import along_passes
from verify.support.score_units import formula
from verify.support.staircase import clipped
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Lemma 3.2, (38)", topics.LEMMA_3_2)
SHARP_CLIP = 2000.0
"""Corner of the clip over sigma at which its rounding costs less than 1% of the overshoot."""


def measure(found: Iterate) -> Tensor:
    """``sup |grad V_t^(m)|``, t < T, shape (T,)."""
    return found.value_gradient[:-1]


def bound(instance: Chained, beta: Tensor, bounds: theory.Bounds) -> Tensor:
    """``Lb0_t``, t < T, shape (T,); infinite where these bounds do not admit the weights."""
    return constant(instance, beta, bounds, lambda constants: constants.L0V[:-1])


test_holds = along_passes(CLAIM, measure, bound, lambda instance: ACCURACY * instance.dim**0.5)


test_formula = formula(CLAIM, "L0V", iterates=True)


@settings(max_examples=15)
@given(st.floats(0.05, 0.98), st.floats(0.5, 50), st.sampled_from([1, -1]))
def test_holds_for_clipped_slopes(q: float, corner: float, sign: int) -> None:
    step = clipped(q, corner, sign=sign)
    factors = [
        1 + bounds.overshoot(1 - q) for bounds in (theory.PaperBounds(), theory.SharpBounds())
    ]
    for rounds in range(7):
        where = step.describe() | {"updates": rounds}
        CLAIM.holds(
            step.steepest(rounds) / step.L0, factors[0], where, sharp=factors[1], part="clipped"
        )


@pytest.mark.parametrize(("q", "rounds"), [(0.5, 1), (0.9, 3), (0.99, 8)])
def test_needs_the_overshoot(q: float, rounds: int) -> None:
    """Theorem 2.8's constant (14), without the overshoot, does not hold for iterates: the factor it
    needs is nearly 2.
    """
    step = clipped(q, SHARP_CLIP)
    steepest, where = step.steepest(rounds) / step.L0, step.describe() | {"updates": rounds}
    CLAIM.breaks(steepest, 1.0, where, "overshoot")
    limit = 1 + q ** (rounds + 1) * (1 - q**rounds) / (1 - q ** (rounds + 1))
    CLAIM.equals(steepest, limit, where, WITHIN * limit, "sharp clip")
    CLAIM.finding(
        f"at λ = {1 - q:.2g} an unfinished iterate's value is {steepest:.3f} times as steep as (14)"
        " allows the optimal one's",
        where,
    )
