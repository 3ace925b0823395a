r"""One more update of every step may increase the error of a control, by any factor, although every
inner map contracts.

Setting: Algorithm 1 with m updates at every step, each inner map contracting by
:math:`1 - \lambda_t`, and the control's error :math:`e_t(m) = \sup|U_t^{(m)} - u_t^*|`. Theorem 3.1
bounds :math:`e_t(m)` by :math:`C (1-\lambda)^m`.

Statement: the supremum over problems of $sup |U_t^((m+1)) − u^*_t|/sup |U_t^((m)) − u^*_t|$ is $∞$,
although every inner map contracts by $1 − λ_t$

At the last step the ratio is at most :math:`1 - \lambda`.

Kind: limit. Two steps with a concave quadratic reward (derived here): the last step contracts by p,
the first one's map has the slope :math:`r = -w (1 + p^{2m+1})`, where the optimum has -w. The m-th
control's slope is off by :math:`e(m) = \sum_{j=1}^m r^j + w/(1+w)`. The unfinished value in front
makes its size too large, an even number of updates too small, and with two updates both cancel
where :math:`z = w (1 + p^5)` solves :math:`z^2 + p^5 z = p^5`. There the third update increases the
error from zero.

Source: derived here, on arXiv 2412.18164v4, Theorem 3.1.

How it is measured: in ball arithmetic near the cancellation; by PI-FT with quadrature on the same
problem; also with rewards of bounded gradient, where the error of a function does not vanish all at
once; by a search at the weights that the theorem asks for, where no growth was found.

What would refute it: growth that stays bounded as w approaches the cancellation.
"""

from __future__ import annotations

import dataclasses
import math

import flint
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from socft import theory
from verify.support import topics
from verify.support.claims import Claim, steer
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.iterates import VISIBLE, iterate
from verify.support.rewards import Parabola
from verify.support.scores import TanhScore
from verify.support.strategies import PseudoHuber, curved_rewards, line_instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "One more update of all steps", topics.THEOREM_3_1)
P = 0.9
"""Contraction of the last step."""
BITS = 200


def measure(w: float, p: float, rounds: int) -> flint.arb:
    """``|e(m)|`` of the first step, relative to the slope of its mean map."""
    r, total, power = (
        -flint.arb(w) * (1 + flint.arb(p) ** (2 * rounds + 1)),
        flint.arb(0),
        flint.arb(1),
    )
    for _ in range(rounds):
        power = power * r
        total = total + power
    return abs(total + flint.arb(w) / (1 + flint.arb(w)))


def cancellation(p: float) -> float:
    """The w at which ``e(2) = 0``."""
    x = p**5
    return (math.sqrt(x * x + 4 * x) - x) / 2 / (1 + x)


@pytest.mark.parametrize("digits", range(1, 13))
def test_certified(digits: int) -> None:
    """Growth from two to three updates above ``10^digits``, at w within a relative
    ``10^-(digits + 1)`` of the cancellation.
    """
    w = cancellation(P) * (1 - 10.0 ** -(digits + 1))
    with flint.ctx.workprec(BITS):
        growth = measure(w, P, 3) / measure(w, P, 2)
        inner = flint.arb(w) * (1 + flint.arb(P) ** 5)
    where = {"p": P, "w": w, "updates": [2, 3], "growth": float(growth)}
    CLAIM.holds(10.0**digits, float(growth), where, part="growth is above any number")
    CLAIM.holds(float(inner), P, where, part="inner maps contract")
    CLAIM.certified(flint.arb(10) ** digits, growth, where, "growth")
    CLAIM.certified(inner, flint.arb(P), where, "inner contraction")
    CLAIM.finding(
        "no factor bounds how much one more update of every step may increase the error of a"
        " control",
        {"p": P},
    )


def test_holds_for_exact_pi_ft() -> None:
    """The same problem through PI-FT by quadrature: growth by more than 1000."""
    instance = _two_steps()
    beta = _weights(instance, cancellation(P) * (1 - 1e-4))
    errors = [float(iterate(instance, beta, m).control_error[0]) for m in (2, 3)]
    CLAIM.holds(
        1000.0,
        errors[1] / errors[0],
        {"instance": instance.describe(), "beta": beta},
        part="by quadrature",
    )


@pytest.mark.parametrize("delta", [10.0, 30.0, 100.0])
def test_growth_with_a_bounded_gradient(delta: float) -> None:
    """Pseudo-Huber instead of quadratic: the error of a function does not vanish all at once, so
    that growth is finite.
    """
    found = []
    for factor in torch.linspace(0.8, 1.2, 9, dtype=torch.float64).tolist():
        w = factor * cancellation(P)
        instance = dataclasses.replace(
            _two_steps(), factors=(Factor(TanhScore(c=0.1), PseudoHuber(delta, 0.0, -1.5)),)
        )
        beta = _weights(instance, w)
        inner = float(
            (instance.parts(beta)[0].curvature * theory.proximal_step(instance.chain, beta)).max()
        )
        errors = [float(iterate(instance, beta, m).control_error[0]) for m in (2, 3)]
        found.append(
            (
                errors[1] / errors[0],
                {"instance": instance.describe(), "beta": beta, "updates": [2, 3], "inner": inner},
            )
        )
    growth, where = max(found, key=lambda pair: pair[0])
    CLAIM.holds(1.0, growth, where, part="bounded gradient")
    CLAIM.finding(
        f"pseudo-Huber reward, delta = {delta:g}: a single step of the error grows {growth:.2f}"
        " times",
        where,
    )


def test_growth_where_the_theorem_applies() -> None:
    """At the weights that Theorem 3.1 asks for, with the sharper constants, one more update of
    every step increases an error too; the last step's, whose value function does not change,
    shrinks.
    """
    largest: list[tuple[float, dict[str, object]]] = [(0.0, {})]

    @settings(max_examples=20)
    @example(_growing(), 1)
    @given(
        line_instances(steps=3, rewards=curved_rewards(), lam=st.sampled_from([0.05, 0.1, 0.3])),
        st.integers(1, 4),
    )
    def search(instance: ProductInstance, rounds: int) -> None:
        statement = theory.Lemma32(instance.sharp)
        beta = instance.beta(statement)
        before, after = (iterate(instance, beta, m).control_error for m in (rounds, rounds + 1))
        growth = torch.where(before > VISIBLE, after / before.clamp(min=VISIBLE), 0.0)
        steer(float(growth.max()), "growth")
        where = {"instance": instance.describe(), "updates": rounds, "step": int(growth.argmax())}
        largest[0] = max(largest[0], (float(growth.max()), where), key=lambda pair: pair[0])
        limit = float(1 - instance.lams[-1])
        CLAIM.holds(float(growth[-1]), limit, where, slack=ACCURACY / VISIBLE, part="last step")

    search()
    growth, where = largest[0]
    CLAIM.finding(
        f"largest growth found at the weights that Theorem 3.1 asks for: {growth:.3f}",
        where,
    )
    CLAIM.holds(1.0, growth, where, part="growth where the theorem applies")


def test_needs_an_unfinished_value_in_front() -> None:
    """With the exact value function in front no update increases the error: the growth is at most
    the contraction.
    """
    w = cancellation(P)
    for rounds in range(1, 6):
        errors = [
            abs(sum((-w) ** j for j in range(1, m + 1)) + w / (1 + w)) for m in (rounds, rounds + 1)
        ]
        CLAIM.breaks(
            1.0, errors[1] / errors[0], {"w": w, "updates": rounds}, "unfinished value in front"
        )


def _growing() -> ProductInstance:
    """Three steps at whose weights the first control's error grows from one update to two."""
    return ProductInstance(
        levels=(0.15, 0.19111794640224802, 0.4889572584511004, 0.993699),
        lam=(0.1, 0.05, 0.05),
        factors=(Factor(TanhScore(c=0.0, e=0.778934), PseudoHuber(0.775532, -1.0, -2.450762)),),
    )


def _two_steps() -> ProductInstance:
    return ProductInstance(
        levels=(0.4, 0.7, 0.95),
        lam=(1 - P, 1 - P),
        factors=(Factor(TanhScore(c=0.1), Parabola(-1.5)),),
    )


def _weights(instance: ProductInstance, w: float) -> torch.Tensor:
    """Beta for which the last step contracts by `P` and the first one's optimal map has the slope
    -w.
    """
    variance, slope = instance.schedule.sigma.square(), instance.mean_L0
    last = variance[1] * 1.5 / P
    first = variance[0] * slope[1] ** 2 * 1.5 / (1 + P) / w
    return torch.stack([first, last])
