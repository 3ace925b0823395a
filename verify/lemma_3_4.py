r"""Lemma 3.4: how far the gradient of the m-th iterate's value is from the optimal one, and that it
is closer by an order.

Setting: Algorithm 1 with m updates at every step,
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`,
:math:`\varepsilon_t = \sup |\nabla V^{(m)}_t - \nabla V^*_t|`,
:math:`M_t = (1 + (1-a_t) L^{(0)}_s)/\sqrt{a_t}`, :math:`q = 1 - \lambda`.

Statement: $ε_t ≤ M_t (ε_(t+1)/λ_t + (1 − λ_t)^(m+1) (L_0 (V_(t+1)) + macron(L)_0 (V_(t+1))/λ_t))$
with $ε_t = sup |∇V_t^((m)) − ∇V^*_t|$

Kind: upper bound, whose first term is attained (derived here): by finished steps behind an
unfinished last one, whose errors they pass on as they are. Its second term is not of the right
order in m: the value is an envelope, so that its gradient is off only to second order in what the
control is off. The sharper bound is :math:`M_t (\varepsilon_{t+1}/\lambda_t + q^{2m}
L^{(0)}_{b,t+1} (q + (m + q (1 - q^{2m})/(2\lambda)) c/\lambda))`, where c is the share by which the
curvature changes over a shift (derived here); quadratic steps attain it, with c = 0.

Source: arXiv 2412.18164v4, Lemma 3.4; sharper order derived here.

How it is measured: the formulas in the paper's variables; PI-FT by quadrature against the exact
optimum, with the measured :math:`\varepsilon_{t+1}`, in up to 64 dimensions as rotated products;
the order on one step with a smoothed value function in closed form; chains of clipped slopes with
updates of their own at every step. The certificate covers all quadratic steps, whose slopes stand
for Lipschitz constants: there the error of the curvature is :math:`|q|^{2m+1}` of the optimal one.

What would refute it: an error above its bound beyond quadrature error.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.support import chained, topics
from verify.support.balls import ball, cells
from verify.support.chained import Unequal, unequal
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import PAPER, Chained, Iterate, constants_for, visible
from verify.support.passes import passes
from verify.support.score_units import ROUNDING
from verify.support.staircase import OneStep, clipped
from verify.support.strategies import curved_rewards, instances, numbers
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Lemma 3.4", topics.LEMMAS_3_3_AND_3_4)
SPLINE = chained.ACCURACY
SHARP_CLIP = 2000.0
"""Corner of the clip over sigma at which its rounding costs less than 1%."""
CLOSED_FORM = 1e-12
"""Error of a slope of a clipped step over its corner: a few error functions."""
CELLS = 60
GROWTH, STEADY = 2.0**10, 8.0
"""From m = 2 to 16 the lemma overstates by 2^14 / 8 = 2048 times more, up to a constant; the
sharper bound by 8, the factor m.
"""


def measure(found: Iterate) -> Tensor:
    """``eps_t``, t < T, shape (T,)."""
    return found.gradient_error[:-1]


def bound(
    instance: Chained, beta: Tensor, bounds: theory.Bounds, found: Iterate, rounds: int
) -> tuple[Tensor, Tensor]:
    """The lemma and the bound of the right order with the measured eps, shape (T,) each; infinite
    where beta is too small.
    """
    constants = constants_for(instance, beta, bounds)
    if constants is None:
        return torch.full_like(beta, torch.inf), torch.full_like(beta, torch.inf)
    size = theory.constants_at(instance.chain, beta, theory.Theorem28(bounds)).L0V.tolist()
    rho, eps, steepest = (
        theory.proximal_step(instance.chain, beta).tolist(),
        found.gradient_error.tolist(),
        constants.L0V.tolist(),
    )
    M, lam, third = (
        constants.mean_L0.tolist(),
        constants.lam.tolist(),
        constants.third_derivative_ratio.tolist(),
    )
    steps = range(instance.chain.steps)
    first = [
        theory.value_gradient_error_bound(
            size[t + 1], steepest[t + 1], eps[t + 1], M[t], lam[t], rounds
        )
        for t in steps
    ]
    second = [
        theory.envelope_error_bound(
            steepest[t + 1], eps[t + 1], M[t], lam[t], rho[t], third[t], rounds
        )
        for t in steps
    ]
    return torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)


@settings(max_examples=12)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 4))
def test_holds(instance: ProductInstance, rounds: int) -> None:
    for each in passes(instance, rounds):
        paper, sharp = (
            bound(instance, each.beta, b, each.found, rounds)
            for b in (PAPER.bounds, instance.sharp)
        )
        least, floor = torch.minimum(*sharp), ACCURACY * instance.dim**0.5
        CLAIM.holds(
            visible(measure(each.found), least),
            paper[0],
            each.where,
            sharp=least,
            floor=floor,
            part=each.constants,
        )


@settings(max_examples=15)
@given(st.floats(0.1, 0.95), st.floats(0.5, 30), st.sampled_from([1, -1]))
def test_holds_for_clipped_slopes(q: float, corner: float, sign: int) -> None:
    step = clipped(q, corner, sign=sign)
    for rounds in range(8):
        first, second = _bounds(step, rounds)
        where = step.describe() | {"updates": rounds}
        CLAIM.holds(
            step.gradient_error(rounds),
            first,
            where,
            sharp=min(first, second),
            floor=CLOSED_FORM * corner,
            part="clipped",
        )


@settings(max_examples=12)
@given(unequal())
def test_holds_for_unequal_updates(chain: Unequal) -> None:
    measured, limit = _unequal(chain)
    seen = chain.visible(measured, limit)
    CLAIM.holds(seen, limit, chain, floor=SPLINE * chain.corner, part="unequal updates")


def test_first_term_is_attained() -> None:
    """By a finished step behind a last one without updates, in whose clipped slope the error is
    largest where the curvature is.
    """
    chain = Unequal(1000.0, (0.5, 0.998), (60, 0))
    measured, limit = _unequal(chain)
    CLAIM.attained(measured[0], limit[0], chain, slack=SPLINE, part="first term")
    eps = chain.errors[1][1]
    sharper = theory.envelope_error_bound(chain.corner, eps, 1.0, chain.lam[0], 0.5, 0.8, 60)
    CLAIM.attained(measured[0], sharper, chain, slack=SPLINE, part="first term, sharper bound")


def test_sharper_bound_is_attained() -> None:
    """By a clipped slope without updates, and by the slopes of quadratic steps after any number,
    behind a mean map of slope 1.3.
    """
    step = clipped(0.5, SHARP_CLIP)
    CLAIM.attained(step.gradient_error(0), _bounds(step, 0)[1], step, part="sharper bound")
    for m in range(6):
        shift = 0.0
        for _ in range(m):
            shift = 0.6 * (1 + shift)
        slope = (1 + shift) ** 2 - shift**2 / 0.6
        CLAIM.attained(
            1.3 * (1 / 0.4 - slope),
            theory.envelope_error_bound(1 / 0.4, 0.0, 1.3, 0.4, 0.6, 0.0, m),
            {"q": 0.6, "updates": m},
            part="sharper bound, quadratic",
        )


@settings(max_examples=20)
@given(*[numbers(0.1, 3)] * 6, numbers(0.05, 0.95), st.integers(0, 9))
def test_formula(
    L0: float, Lb0: float, eps: float, M: float, rho: float, tau: float, lam: float, m: int
) -> None:
    q, c, where = 1 - lam, tau * rho * Lb0, {"lam": lam, "updates": m}
    shown = M * (eps / lam + q ** (m + 1) * (L0 + Lb0 / lam))
    found = theory.value_gradient_error_bound(L0, Lb0, eps, M, lam, m)
    CLAIM.equals(found / shown - 1, 0.0, where, ROUNDING, "formula")
    bend = sum(q ** (2 * k) for k in range(m, 2 * m)) * (1 + q) / 2 + m * q ** (2 * m - 1)
    shown = M * (eps / lam + Lb0 * q ** (2 * m + 1) + Lb0 * q * c * bend / lam)
    found = theory.envelope_error_bound(Lb0, eps, M, lam, rho, tau, m)
    CLAIM.equals(found / shown - 1, 0.0, where, ROUNDING, "sharper bound, formula")


def test_is_off_by_an_order() -> None:
    """The lemma overstates the error by a factor that grows like ``q^-m / m``; the sharper bound's
    at most like m.
    """
    step = clipped(0.5, 8.0)
    rounds = (2, 4, 8, 16)
    errors = [step.gradient_error(m) for m in rounds]
    over = np.array(
        [
            [limit / error for limit in _bounds(step, m)]
            for m, error in zip(rounds, errors, strict=True)
        ]
    )
    where = step.describe() | {
        "updates": rounds,
        "lemma over error": over[:, 0],
        "sharper bound over error": over[:, 1],
    }
    CLAIM.finding(
        f"Lemma 3.4 is off by an order: at λ = 1/2 it overstates ε_t {over[-1, 0]:.3g} times at m ="
        " 16; ε_t = O(m q²ᵐ)",
        where,
    )
    assert over[-1, 0] > GROWTH * over[0, 0]
    assert over[-1, 1] < STEADY * over[0, 1]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_needs_the_change_of_the_curvature(rounds: int) -> None:
    """Where one update crosses the clip, the error is several times that of a quadratic step."""
    step = clipped(0.1, 30.0)
    error, where = step.gradient_error(rounds), step.describe() | {"updates": rounds}
    CLAIM.holds(error, _bounds(step, rounds)[1], where, part="sharper bound")
    quadratic = theory.envelope_error_bound(step.L0, 0.0, 1.0, 0.9, step.q, 0.0, rounds)
    CLAIM.breaks(error, quadratic, where, "change of the curvature")


def test_needs_the_unfinished_term() -> None:
    """With an exact value function in front, eps_t = 0 fails for every finite m."""
    step = clipped(0.5, 1.0)
    for rounds in (0, 1, 4):
        CLAIM.breaks(
            step.gradient_error(rounds),
            CLOSED_FORM,
            step.describe() | {"updates": rounds},
            "second term",
        )


def test_needs_the_condition_on_beta() -> None:
    """For q = 1.25 and a concave reward there is an optimum, but the iterates' values do not
    approach its value.
    """
    step, rounds = clipped(1.25, 30.0, sign=-1), 30
    limit = theory.value_gradient_error_bound(step.L0, 10 * step.L0, 0.0, 1.0, 0.2, rounds)
    CLAIM.breaks(
        step.gradient_error(rounds),
        limit,
        step.describe() | {"updates": rounds, "lam": 0.2},
        "condition on beta",
    )


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_certified(rounds: int) -> None:
    """Quadratic steps of either sign: the error is ``q^{2m+1}`` of the optimal slope, which stands
    for L0V and Lb0.

    The lemma allows ``q^{m+1} (1 + 1/lam)`` of it; the sharper bound, without third derivatives, is
    the error.
    """
    for ends in cells(Fraction(1, 10), Fraction(9, 10), CELLS):
        q, where = ball(*ends), {"q": [float(x) for x in ends], "updates": rounds}
        CLAIM.certified(q**rounds, 1 + 1 / (1 - q), where, "quadratic step, lemma over q^{m+1}")


def _unequal(chain: Unequal) -> tuple[list[float], list[float]]:
    """``eps_t`` and the lemma with the measured ``eps_{t+1}``, t < T."""
    _, eps = chain.errors
    steepest, M = chain.constants.L0V.tolist(), chain.constants.mean_L0.tolist()
    limits = [
        theory.value_gradient_error_bound(chain.corner, steepest[t + 1], eps[t + 1], M[t], lam, m)
        for t, (lam, m) in enumerate(zip(chain.lam, chain.rounds, strict=True))
    ]
    return eps[:-1], limits


def _bounds(step: OneStep, rounds: int) -> tuple[float, float]:
    """The lemma and the bound of the right order, for ``m(y) = y`` and an exact value function in
    front.
    """
    lam, third = 1 - step.q, theory.SHARP / step.sigma
    first = theory.value_gradient_error_bound(step.L0, step.L0, 0.0, 1.0, lam, rounds)
    return first, theory.envelope_error_bound(step.L0, 0.0, 1.0, lam, step.q, third, rounds)
