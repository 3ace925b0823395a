r"""Lemma 3.2, value functions: every iterate of PI-FT has a value function with Lipschitz gradient
(39).

Setting: Algorithm 1 with m updates at every step,
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`.

Statement: $sup |∇^2 V_t^((m))| ≤ macron(L)_1 (V_t)$ for every $m$, with $macron(L)_1 (V_t)$ as in
(15) with $macron(L)$ and with $max_(m ≥ 1) R_t (m)$ added, which is attained at an $m ≤ 1 + (1 −
λ_t)/λ_t$

There :math:`R_t(m) = (1-\lambda_t)^m (c_t + d_t m)`.

Kind: upper bound: it adds maxima that occur at different points.

Source: arXiv 2412.18164v4, Lemma 3.2, equation 39; place of the maximum and sharper constants
derived here.

How it is measured: Hessians of PI-FT's values by quadrature, in up to 64 dimensions as rotated
products; the maximum over m against all terms one by one, and for whole intervals of coefficients
in ball arithmetic.

What would refute it: a Hessian above its bound beyond the error of its differences, or a term above
the maximum.
"""

from __future__ import annotations

import math
from fractions import Fraction

import flint
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.balls import ball, cells
from verify.support.claims import Claim
from verify.support.iterates import PAPER, Chained, Iterate, constant
from verify.support.passes import along_passes
from verify.support.score_units import ROUNDING, formula
from verify.support.strategies import numbers
from verify.support.suprema import DIFFERENCED

CLAIM = Claim.of_module(__name__, __doc__, "Lemma 3.2, (39)", topics.LEMMA_3_2)
TERMS = 2000
CELLS = 40
SIGMA = 0.1
"""Noise scale of the sine: it fades by 0.5% only."""


def measure(found: Iterate) -> Tensor:
    """``sup |Hess V_t^(m)|``, t < T, shape (T,)."""
    return found.value_hessian[:-1]


def bound(instance: Chained, beta: Tensor, bounds: theory.Bounds) -> Tensor:
    """``Lb1_t``, t < T, shape (T,); infinite where these bounds do not admit the weights."""
    return constant(instance, beta, bounds, lambda constants: constants.L1V[:-1])


test_holds = along_passes(CLAIM, measure, bound, lambda _: DIFFERENCED)


test_formula = formula(CLAIM, "L1V", iterates=True)


@settings(max_examples=100)
@given(numbers(0.02, 0.99), numbers(0, 5), numbers(0, 5))
def test_maximum_is_attained_at_a_finite_m(lam: float, constant: float, slope: float) -> None:
    m = np.arange(1, TERMS)
    terms = np.exp(m * math.log1p(-lam)) * (constant + slope * m)
    where = {"lam": lam, "constant": constant, "slope": slope, "m": int(m[terms.argmax()])}
    CLAIM.equals(
        theory.geometric_peak(lam, constant, slope),
        terms.max(),
        where,
        ROUNDING * (1 + terms.max()),
        "maximum",
    )
    beyond = max(0.0, float(m[terms.argmax()]) - (1 + (1 - lam) / lam))
    CLAIM.equals(beyond, 0.0, where, ROUNDING / lam, "place of the maximum")


def test_certified() -> None:
    """Terms shrink from the first ``m > q / lam`` on: ``q (c + d (m + 1)) <= c + d m`` for all c, d
    >= 0 as ``q (m + 1) <= m``.
    """
    for low, high in cells(Fraction(1, CELLS), 1 - Fraction(1, CELLS), CELLS - 2):
        first = math.floor((1 - low) / low) + 1
        q = 1 - ball(low, high)
        CLAIM.certified(
            q * (first + 1),
            flint.arb(first),
            {"lam": [float(low), float(high)], "m": first},
            "place of the maximum",
        )


@pytest.mark.parametrize(("q", "slope"), [(0.3, 10.5), (0.4, 7.75)])
def test_needs_the_excess(q: float, slope: float) -> None:
    """The right-hand side of (15) alone does not bound an iterate's Hessian where the reward is
    steep.

    One step from ``m(y) = y`` with ``V'(x) = slope + cos x``, whose smoothed version is in closed
    form; (15) is K / lam, K = 1.
    """
    y, fade = np.linspace(0, 2 * np.pi, 20_001), math.exp(-(SIGMA**2) / 2)
    shift, jacobian = q * (slope + fade * np.cos(y)), -q * fade * np.sin(y)  # one update
    here = y + shift
    curvature, bend = -fade * np.sin(here), -q * fade * np.cos(y)
    move = slope + fade * np.cos(here) - shift / q
    hessian = curvature * (1 + jacobian) ** 2 + bend * move - jacobian**2 / q
    measured, optimum = float(np.abs(hessian).max()), 1 / (1 - q)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    chain = theory.ChainConstants(one, one, SIGMA * one, zero, zero, slope + 1, 1.0)
    limit = float(theory.iterate_constants(chain, 1 - q, PAPER.bounds).L1V[0])
    where = {"q": q, "slope": slope, "sigma": SIGMA, "updates": 1}
    CLAIM.holds(measured, limit, where, part="sine")
    CLAIM.breaks(measured, optimum, where, "excess")
    CLAIM.finding(
        f"at λ = {1 - q:.2g} an iterate's Hessian is {measured / optimum:.3f} times what (15)"
        " allows the optimal value's",
        where,
    )
