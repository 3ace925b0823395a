r"""Theorem 3.1: PI-FT converges linearly.

Setting: Algorithm 1 with m updates at every step,
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`.

Statement: $sup |U_t^((m)) − u^*_t|$ is at most what Lemmas 3.3 and 3.4 give unrolled, which is
$O(max_(s ≥ t) (1 − λ_s)^m)$, for all $m$ and $t$

Kind: tight, in its asymptotic rate over all steps: on a linear-quadratic problem the largest error
shrinks by exactly :math:`\max_t \sigma_t^2 |P_{t+1}|/\beta_t` per update of all steps, which is
:math:`\max_t q_t` for a convex reward and the score :math:`+L^{(0)}_s y`. The unrolled
bounds are approached too, where steps have numbers of updates of their own: finished steps pass the
errors of an unfinished last one on as they are. The rate of a single step is smaller than the
theorem says, because later steps count with their squares (derived here):
:math:`\max(q_t, \max_{s > t} q_s^2)`, attained by the same problem.

Source: arXiv 2412.18164v4, Theorem 3.1; rates of a single step derived here.

The extremal instances are derived here too.

How it is measured: PI-FT by quadrature against the exact optimum, in up to 64 dimensions as rotated
products. The asymptotic rates are those of the iterates' slopes on a linear-quadratic problem, in
ball arithmetic with 400 bits, and so certified.

What would refute it: an error above its bound beyond quadrature error, or an asymptotic rate off by
more than 1%.
"""

from __future__ import annotations

import dataclasses

import flint
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.lemma_3_3 import measure
from verify.support import chained, topics
from verify.support.chained import Unequal, unequal
from verify.support.claims import WITHIN, Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.iterates import PAPER, Chained, constants_for, iterate
from verify.support.passes import Pass, control_errors_hold
from verify.support.rewards import Parabola
from verify.support.score_units import ROUNDING, random_chain
from verify.support.scores import TanhScore
from verify.support.strategies import curved_rewards, instances

CLAIM = Claim.of_module(__name__, __doc__, "Theorem 3.1", topics.THEOREM_3_1)
SPLINE = chained.ACCURACY
PASSED_ON = 0.05
"""How close a chain of three steps comes, whose clip is rounded by noise."""
BITS = 400
ROUNDS = 60
"""Updates after which the second-largest rate, to the power m, is below 1% of the largest."""


def bound(
    instance: Chained, beta: Tensor, bounds: theory.Bounds, rounds: int
) -> tuple[Tensor, Tensor]:
    """The theorem, and the same with errors of the right order, shape (T,); infinite where beta is
    too small.
    """
    found = constants_for(instance, beta, bounds)
    if found is None:
        return torch.full_like(beta, torch.inf), torch.full_like(beta, torch.inf)
    unrolled = (theory.convergence, theory.sharp_convergence)
    first, second = (unroll(instance.chain, found, beta, rounds).score for unroll in unrolled)
    return first, second


@settings(max_examples=10)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 5))
def test_holds(instance: ProductInstance, rounds: int) -> None:
    def of_kind(each: Pass, bounds: theory.Bounds) -> Tensor:
        as_published, with_sharp_errors = bound(instance, each.beta, bounds, rounds)
        return as_published if bounds is PAPER.bounds else with_sharp_errors

    control_errors_hold(CLAIM, instance, rounds, measure, of_kind)


@settings(max_examples=12)
@given(unequal())
def test_holds_for_unequal_updates(chain: Unequal) -> None:
    _check_unequal(chain)


def test_finished_steps_pass_errors_on() -> None:
    """Two finished steps behind a last one without updates: the error of the last value's gradient
    grows by 1 / lam on its way to the first control.
    """
    chain = Unequal(1000.0, (0.995, 0.25, 0.999), (60, 60, 0))
    measured, limit = _check_unequal(chain)
    CLAIM.attained(measured, limit, chain, within=PASSED_ON, slack=SPLINE, part="errors passed on")


@settings(max_examples=10)
@given(st.integers(0, 20), st.lists(st.integers(0, 6), min_size=4, max_size=4))
def test_formula(seed: int, updates: list[int]) -> None:
    """Lemmas 3.3 and 3.4 in the paper's units, unrolled by hand."""
    chain, lam = random_chain(seed, steps=4)
    found = theory.iterate_constants(chain, lam, PAPER.bounds)
    beta, steep, flat = 1.3 * found.beta_required, found.L0V, theory.paper_constants(chain, lam).L0V
    kappa = chain.alpha.sqrt() * chain.sigma**2 / (beta * chain.score_weight)
    eps, controls = torch.zeros((), dtype=torch.float64), []
    for t in reversed(range(4)):
        q, m, M = 1 - lam[t], updates[t], found.mean_L0[t]
        controls.append(q**m * kappa[t] * flat[t + 1] + kappa[t] * eps / lam[t])
        eps = M * (eps / lam[t] + q ** (m + 1) * (flat[t + 1] + steep[t + 1] / lam[t]))
    rounds = torch.tensor(updates, dtype=torch.float64)
    shown = theory.convergence(chain, found, beta, rounds)
    difference = shown.score.flip(0) / torch.stack(controls) - 1
    where = {"seed of the chain": seed, "updates": updates}
    CLAIM.equals(difference.abs().max(), 0.0, where, ROUNDING, "formula")
    CLAIM.equals(shown.value_gradient[0] / eps - 1, 0.0, where, ROUNDING, "formula")


def test_is_attained() -> None:
    """The largest error's rate against the theorem's, and every step's against its own; certified
    to `WITHIN`.
    """
    instance = _quadratic()
    with flint.ctx.workprec(BITS):
        errors = [_errors(instance, m) for m in (ROUNDS, ROUNDS + 1)]
        ratios = [after / before for before, after in zip(*errors, strict=True)]
        largest = [max(column) for column in errors]
        whole = largest[1] / largest[0]
    where = {"instance": instance.describe(), "updates": ROUNDS}
    lam = instance.lams
    rate, each = float(theory.guaranteed_rates(lam)[0]), theory.sharp_rates(lam)
    CLAIM.attained(float(whole), rate, where, slack=WITHIN, part="rate of the largest error")
    for t, (ratio, limit) in enumerate(zip(ratios, each.tolist(), strict=True)):
        CLAIM.certified(
            abs(ratio - limit), flint.arb(limit * WITHIN), where | {"step": t}, "rate of one step"
        )
    CLAIM.equals([float(r) for r in ratios], each, where, WITHIN, "rate of one step")
    CLAIM.finding(
        "the rate of a single step t is $max(q_t, max_(s>t) q_s^2)$, not $max_(s≥t) q_s$: later"
        " values'"
        " errors count with their squares",
        where | {"rates": [float(r) for r in ratios], "max q_s": theory.guaranteed_rates(lam)},
    )


def test_quadratic_rate_is_that_of_the_curvature() -> None:
    """``max_t sigma_t^2 |P_{t+1}| / beta_t`` with P from the exact solution, for weights that no
    theory chose.
    """
    instance = dataclasses.replace(_quadratic(), curvature=(-1.2,))
    beta = torch.tensor([0.9, 0.5, 0.6], dtype=torch.float64)
    P = [
        abs(float(instance.solve(beta).value_gradient(t, x).diff(dim=0)))
        for t, x in ((t, _unit_pair()) for t in (1, 2, 3))
    ]
    rate = theory.quadratic_rate(
        instance.schedule.sigma, beta, torch.tensor(P, dtype=torch.float64)
    )
    with flint.ctx.workprec(BITS):
        largest = [max(_errors(instance, m, beta)) for m in (ROUNDS, ROUNDS + 1)]
    CLAIM.attained(
        float(largest[1] / largest[0]), rate, instance, slack=WITHIN, part="quadratic rate"
    )


@pytest.mark.parametrize("shortfall", [0.8, 0.95])
def test_needs_the_condition_on_beta(shortfall: float) -> None:
    """Below the beta at which the map stops contracting, errors grow with m, although an optimum
    exists.
    """
    instance = ProductInstance(
        levels=(0.5, 0.95), lam=(0.5,), factors=(Factor(TanhScore(c=0.2), Parabola(-1.5, 0.5)),)
    )
    beta = shortfall * instance.schedule.sigma.square() * 1.5
    errors = [
        float(measure(iterate(instance, beta, m), theory.score_unit(instance.chain))[0])
        for m in (0, 12)
    ]
    CLAIM.breaks(
        errors[1],
        errors[0],
        {"instance": instance.describe(), "beta over the least": shortfall},
        "condition on beta",
    )


def _check_unequal(chain: Unequal) -> tuple[float, float]:
    """Errors of all controls; that of the first, and its sharper bound."""
    rounds = torch.tensor(chain.rounds, dtype=torch.float64)
    paper, sharp = (
        unroll(chain.chain, chain.constants, chain.beta, rounds).score
        for unroll in (theory.convergence, theory.sharp_convergence)
    )
    errors, _ = chain.errors
    seen, floor = chain.visible(errors, sharp.tolist()), SPLINE * chain.corner
    CLAIM.holds(seen, paper, chain, sharp=sharp, floor=floor, part="unequal updates")
    return errors[0], float(sharp[0])


def _quadratic() -> QuadraticInstance:
    """Convex, with mean maps as steep as their constants allow, so that rates are ``1 - lam``; the
    largest one last.
    """
    return QuadraticInstance(
        levels=(0.3, 0.5, 0.7, 0.9),
        lam=(0.85, 0.7, 0.2),
        score=(0.4,),
        shift=(0.0,),
        curvature=(0.9,),
        slope=(0.0,),
    )


def _errors(
    instance: QuadraticInstance, rounds: int, beta: Tensor | None = None
) -> list[flint.arb]:
    """``|slope of delta_t^(m) - slope of delta*_t|`` by (35)-(36), t = 0..T-1."""
    rho = theory.proximal_step(instance.chain, instance.beta() if beta is None else beta).tolist()
    P = best = flint.arb(instance.curvature[0])
    found = []
    for t in reversed(range(instance.steps)):
        A, step, shift = flint.arb(float(instance.mean_L0[t])), flint.arb(rho[t]), flint.arb(0)
        for _ in range(rounds):
            shift = step * P * (A + shift)
        optimal = A * step * best / (1 - step * best)
        found.append(abs(shift - optimal))
        P, best = P * (A + shift) ** 2 - shift**2 / step, A**2 * best / (1 - step * best)
    return found[::-1]


def _unit_pair() -> Tensor:
    return torch.tensor([[0.0], [1.0]], dtype=torch.float64)
