r"""Lemma 3.3: how far the m-th iterate's control is from the optimal one.

Setting: Algorithm 1 with m updates at every step,
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`,
:math:`\kappa_t = \sqrt{a_t}\,\sigma_t^2/((1-a_t)\beta_t)`, and the error
:math:`\varepsilon_{t+1} = \sup |\nabla V^{(m)}_{t+1} - \nabla V^*_{t+1}|` of the value function
that step t has in front of it.

Statement: $sup |U_t^((m)) − u^*_t| ≤ (1 − λ_t)^m κ_t L_0 (V_(t+1)) + κ_t ε_(t+1)/λ_t$ with $ε_(t+1)
= sup |∇V^((m))_(t+1) − ∇V^*_(t+1)|$

Kind: tight. The first term, where :math:`\varepsilon_{t+1} = 0`, is approached for all m at once by
the convex clipped slope as the clip becomes sharp, from the state that the optimal control carries
to the corner; the second as m grows by a quadratic value function whose slope is off by a constant.

Source: arXiv 2412.18164v4, Lemma 3.3; extremal instances derived here.

How it is measured: PI-FT by quadrature against the exact optimum, with the measured
:math:`\varepsilon_{t+1}`, in up to 64 dimensions as rotated products; the clipped slope in closed
form. The certificate is the lemma for quadratic value functions, whose slope stands for
:math:`L^{(0)}_V`: with :math:`r = \rho P^{(m)}`, :math:`s = \rho P^*`, and all slopes relative to
that of the mean map, :math:`|r (1 - r^m)/(1 - r) - s/(1-s)| \le |r|^m |s|/|1-s| + |r -
s|/((1-s)(1-|r|))`.

What would refute it: an error above its bound beyond quadrature error.
"""

from __future__ import annotations

from fractions import Fraction

import flint
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.balls import ball, cells
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import Chained, Iterate, constants_for
from verify.support.passes import Pass, control_errors_hold
from verify.support.staircase import clipped
from verify.support.strategies import curved_rewards, instances

CLAIM = Claim.of_module(__name__, __doc__, "Lemma 3.3", topics.LEMMAS_3_3_AND_3_4)
SHARP_CLIP = 2000.0
"""Corner of the clip over sigma at which its rounding costs less than 1%."""
CELLS = 60


def measure(found: Iterate, unit: Tensor) -> Tensor:
    """``sup |U_t^(m) - u*_t|`` in score units, shape (T,)."""
    return unit * found.control_error


def bound(
    instance: Chained, beta: Tensor, bounds: theory.Bounds, found: Iterate, rounds: int
) -> Tensor:
    """The lemma with the measured eps, shape (T,); infinite where these bounds do not admit the
    weights.
    """
    constants = constants_for(instance, beta, bounds)
    if constants is None:
        return torch.full_like(beta, torch.inf)
    size = theory.constants_at(instance.chain, beta, theory.Theorem28(bounds)).L0V
    gain, eps = theory.score_step(instance.chain, beta).tolist(), found.gradient_error.tolist()
    terms = zip(size[1:].tolist(), eps[1:], gain, constants.lam.tolist(), strict=True)
    return torch.tensor(
        [theory.control_error_bound(L0, e, k, lam, rounds) for L0, e, k, lam in terms],
        dtype=torch.float64,
    )


@settings(max_examples=18)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 5))
def test_holds(instance: ProductInstance, rounds: int) -> None:
    def of(each: Pass, bounds: theory.Bounds) -> Tensor:
        return bound(instance, each.beta, bounds, each.found, rounds)

    control_errors_hold(CLAIM, instance, rounds, measure, of)


@pytest.mark.parametrize("q", [0.3, 0.9])
def test_is_attained(q: float) -> None:
    """The first term, in shifts, where kappa is rho = q."""
    step = clipped(q, SHARP_CLIP)
    for m, error in enumerate(step.control_errors(5)):
        limit = theory.control_error_bound(step.L0, 0.0, q, 1 - q, m)
        CLAIM.attained(error, limit, step.describe() | {"updates": m})


def test_second_term_is_attained() -> None:
    """``V' = K x`` in front instead of ``K x + eps``: both shifts are affine, and differ by
    ``rho eps / (1 - q)`` in the limit.
    """
    q, eps, m = 0.6, 1e-3, 20
    shift = best = 0.0
    for _ in range(m):
        shift = q * (shift + eps)
    CLAIM.attained(
        shift - best,
        theory.control_error_bound(0.0, eps, q, 1 - q, m),
        {"q": q, "eps": eps, "updates": m},
    )


def test_needs_the_condition_on_beta() -> None:
    """For q = 1.25 and a concave reward there is an optimum, but updates run away from it."""
    step = clipped(1.25, 30.0, sign=-1)
    errors = step.control_errors(12)
    CLAIM.breaks(
        errors[-1],
        theory.control_error_bound(step.L0, 0.0, step.q, 0.1, 12),
        step,
        "condition on beta",
    )


def test_needs_the_error_in_front() -> None:
    """Without its second term the lemma fails as soon as the next value function is unfinished."""
    q, eps, m = 0.6, 1e-3, 20
    shift = 0.0
    for _ in range(m):
        shift = q * (shift + eps)
    CLAIM.breaks(
        shift,
        theory.control_error_bound(0.0, 0.0, q, 1 - q, m),
        {"q": q, "eps": eps, "updates": m},
        "second term",
    )


@pytest.mark.parametrize("rounds", [1, 2, 3, 8])
def test_certified(rounds: int) -> None:
    """The quadratic lemma: the error is ``-r^m c + (r - s)(1 + c)(1 - r^m)/(1 - r)``,
    ``c = s/(1 - s)``, for all r and s < 1.

    So it suffices that ``(1 - r^m)/(1 - r) <= 1/(1 - |r|)``, which is certified for r in +-[0.1,
    0.9].
    """
    r, s = sympy.symbols("r s")
    c, updates = s / (1 - s), sum((r**j for j in range(1, rounds + 1)), sympy.Integer(0))
    left = sympy.simplify(
        updates - c - (-(r**rounds) * c + (r - s) * (1 + c) * (1 - r**rounds) / (1 - r))
    )
    CLAIM.equals(
        float(left != 0),
        0.0,
        {"updates": rounds, "left over": str(left)},
        0.5,
        "identity of the certificate",
    )
    for sign in (1, -1):
        for ends in cells(Fraction(1, 10), Fraction(9, 10), CELLS):
            ratio = sign * ball(*ends)
            where = {"r": [sign * float(x) for x in ends], "updates": rounds}
            if sign > 0:  # the two denominators agree
                CLAIM.certified(1 - ratio**rounds, flint.arb(1), where, "quadratic family")
            else:
                CLAIM.certified(
                    (1 - ratio**rounds) * (1 + ratio) / (1 - ratio),
                    flint.arb(1),
                    where,
                    "quadratic family",
                )
