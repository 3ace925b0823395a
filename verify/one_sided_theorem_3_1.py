r"""Theorem 3.1 with constants that do not compound.

Setting: Algorithm 1 with m relaxed updates at every step, rate q_t, at weights that the one-sided
constants of these iterates admit; :math:`\tilde\varepsilon_t = \sup|\nabla G(V^{(m)}_{t+1} -
V^*_{t+1})| \le \min\{\varepsilon_{t+1}, v_{t+1}/(\sigma_t\sqrt{2\pi})\}`, with the errors of
gradients and values in front.

Statement: $|δ_t^((m)) − δ_t^*| ≤ q^m ρ L_0 (V^*_(t+1)) + c ρ tilde(ε)_t$ with $c = min{θ (1 −
q^m)/(1 − q), (1 + q^m)/(1 − a)}$, and $ε_t ≤ M (tilde(ε)_t/(1 − a) + q^m macron(L)_0 (ρ^2 T q^m
macron(L)_0/(2 (1 − a)) + (1 + b) j_m))$

Here :math:`j_m = q^m \max\{a/(1-a), b/(1+b)\} + m q^{m-1}\theta\rho^2 T\bar L_0/(1-a)`. The second
route to :math:`\tilde\varepsilon`, through the error of the value, has no product over steps in it.
Proofs are in `socft.theory.one_sided`.

Kind: tight, the bound of the control: for a linear reward, affine scores and any relaxation it is
attained for all m, t and T at once.

Source: derived here, in place of Lemmas 3.3, 3.4 and Theorem 3.1 of arXiv 2412.18164v4.

How it is measured: PI-FT by quadrature against the exact optimum, in up to 64 dimensions as rotated
products.

What would refute it: an error above its bound beyond quadrature error.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import visible
from verify.support.one_sided import RelaxedPass, linear_pass, relaxations
from verify.support.staircase import clipped
from verify.support.strategies import curved_rewards, instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "One-sided Theorem 3.1", topics.ONE_SIDED)


def measure(each: RelaxedPass) -> tuple[Tensor, Tensor]:
    """Errors of whitened controls and of value gradients, shape (T,) each."""
    return each.control_error(), each.gradient_error()[:-1]


def bound(each: RelaxedPass) -> tuple[Tensor, Tensor]:
    """The same of the statement."""
    return each.convergence.whitened, each.convergence.value_gradient[:-1]


@settings(max_examples=12)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 5), relaxations())
def test_holds(instance: ProductInstance, rounds: int, relaxation: theory.Relaxation) -> None:
    each = RelaxedPass(instance, relaxation, rounds)
    floor = ACCURACY * instance.dim**0.5
    for name, measured, limit in zip(
        ("control", "gradient"), measure(each), bound(each), strict=True
    ):
        CLAIM.holds(visible(measured, limit), limit, each, floor=floor, part=name)


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 6])
def test_is_attained(steps: int, rounds: int) -> None:
    """A linear reward and expanding scores: updates damped to theta = 0.6 leave ``0.4^m`` of every
    shift.
    """
    each = linear_pass(steps, rounds)
    measured, limit = measure(each)[0], bound(each)[0]
    for t in range(steps):
        CLAIM.attained(float(measured[t]), float(limit[t]), each, within=1e-6, slack=1e-6)


def test_needs_the_rate() -> None:
    """``q^2m`` in place of ``q^m``: the square belongs to values and gradients, not to controls."""
    each = linear_pass(3, 2)
    q = each.constants.rate
    CLAIM.breaks(
        float((measure(each)[0] / (q**2 * bound(each)[0])).min()), 1.0, each, "q^m, not q^2m"
    )


def test_needs_the_error_in_front() -> None:
    """A finished update of an unfinished value function in front: with a slope that is off by eps
    the shift is off by ``rho eps / (1 - a)``.
    """
    a, eps, rounds = 0.6, 1e-3, 60
    shift = 0.0
    for _ in range(rounds):
        shift = a * (shift + eps)
    loop = theory.InnerLoop(theory.Smoothed(1.0, 1.0, 0.0, 0.0), a, theory.UNDAMPED, rounds)
    where = {"a": a, "error in front": eps, "updates": rounds}
    CLAIM.breaks(shift, loop.control_error(1.0, 0.0), where, "error in front")
    CLAIM.attained(shift, loop.control_error(1.0, eps), where, within=1e-6, part="error in front")


@pytest.mark.parametrize("rounds", [1, 2, 4, 12, 24])
def test_needs_what_updates_leave_of_the_gradient(rounds: int) -> None:
    """With an exact value function in front the gradient of an unfinished one is off by more than a
    bound with ``q^3m`` allows, and by less than the statement's.
    """
    step = clipped(0.8, 4.0)
    K = float(abs(step.curvature(step.states)).max())
    third = theory.SHARP * 0.5  # half the width of [0, 1], sigma = 1
    smooth = theory.Smoothed(step.L0, K, 0.0, third / K)
    loop = theory.InnerLoop(smooth, step.q, theory.UNDAMPED, rounds)
    where = step.describe() | {"updates": rounds}
    error = step.gradient_error(rounds)
    CLAIM.holds(error, loop.gradient_error, where, part="one step")
    CLAIM.breaks(error, step.q ** (3 * rounds + 2) * step.L0 * 1e-2, where, "order in q")


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_needs_the_square_of_the_rate_in_errors_of_gradients(rounds: int) -> None:
    """A convex quadratic step, whose gradient is off by ``q^(2m+1)`` of its largest slope: half the
    bound at q = 1/2, and more than the bound with ``q^(3m)``.
    """
    a = 0.5
    shift = jacobian = 0.0
    for _ in range(rounds):
        shift, jacobian = a * (1 / a - 1 + shift), a * (1 + jacobian)
    slope = a * (1 / a - 1 + shift)
    error = abs(slope + jacobian * (slope - shift) - 1)
    loop = theory.InnerLoop(theory.Smoothed(1.0, a, 0.0, 0.0), 1.0, theory.UNDAMPED, rounds)
    where = {"a": a, "updates": rounds}
    CLAIM.holds(error, loop.gradient_error, where, part="quadratic step")
    CLAIM.breaks(error, a**rounds * loop.gradient_error, where, "square of the rate")
