r"""Which beta makes the inner iteration contract, and how relaxation changes that.

Setting: updates :math:`\delta^{(j+1)} = (1-\theta)\delta^{(j)} + \theta\rho\nabla G V(m +
\delta^{(j)})`, :math:`\delta^{(0)} = 0`, with a value function whose smoothed curvature lies in
:math:`[-K^-, K^+]`; :math:`a = \rho K^+`, :math:`b = \rho K^-`.

Statement: $|δ^((j+1)) − δ^((j))| ≤ q |δ^((j)) − δ^((j−1))|$ with $q = max{1 − θ(1 − a), θ(1 + b) −
1}$; $θ = 2/(2 + b − a)$ has the least $q = (a + b)/(2 + b − a) < 1$ whenever $a < 1$

The paper's :math:`\theta = 1` has :math:`q = \max(a, b)` and needs both sides below 1. With the
best relaxation the condition on beta is that of well-posedness alone, and the least constant beta
under either is at least the necessary one.

Kind: tight: by quadratic value functions, whose increments shrink by exactly q for every theta.

Source: derived here, from (67) of arXiv 2412.18164v4; the rate of gradient ascent on a function
with bounded curvature is classical.

How it is measured: Lipschitz constants of the update map and ratios of successive increments of
PI-FT by quadrature, in up to 64 dimensions as rotated products, at the smallest weights that the
one-sided constants of the iterates admit; the least constant weight at which the exact inner map
contracts, by bisection with the exact solver, against the conditions.

What would refute it: an increment that shrinks less, or a necessary weight above the sufficient
one.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.pi_ft import BackwardInduction, backward_induction
from socft.problem import ControlProblem
from socft.truth.bellman import BellmanStep
from socft.truth.quadrature import choose_grids
from verify import beta_tightness
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.one_sided import RELAXATIONS, RelaxedPass, relaxations
from verify.support.rewards import Parabola
from verify.support.scores import TanhScore
from verify.support.strategies import curved_rewards, instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "One-sided contraction", topics.ONE_SIDED)
VISIBLE = 1e-4
"""Increments below this share of the first are left out."""
FLOOR = 1e-6
"""Absolute error of a factor: a ratio of increments above `VISIBLE`."""


def measure(problem: ControlProblem, found: BackwardInduction, theta: Tensor) -> Tensor:
    """Lipschitz constant of the update map over the nodes, and largest ratio of increments, shape
    (2, T).
    """
    factors = []
    for k in range(problem.steps):
        step = BellmanStep.build(problem, k, found.grids[k], found.values[k + 1])
        slope = step.rho * step.smooth.hessian_at_nodes[:, 0, 0]
        cut = len(slope) // 6
        factors.append((1 - theta[k] + theta[k] * slope[cut:-cut]).abs().max())
    moves = found.increments
    ratios = moves[:, 1:] / moves[:, :-1].clamp(min=1e-300)
    seen = torch.where(moves[:, 1:] > VISIBLE * moves[:, :1], ratios, 0.0).amax(1)
    return torch.stack([torch.stack(factors), seen])


def bound(relaxation: theory.Relaxation, a: float, b: float) -> float:
    """q."""
    return relaxation.rate(a, b)


@settings(max_examples=12)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(2, 5), relaxations())
def test_holds(instance: ProductInstance, rounds: int, relaxation: theory.Relaxation) -> None:
    each = RelaxedPass(instance, relaxation, rounds)
    pairs = zip(each.truths, each.found, strict=True)
    theta = each.constants.theta
    measured = torch.stack([measure(truth.problem, found, theta) for truth, found in pairs]).amax(0)
    CLAIM.holds(measured[0], each.constants.rate, each, floor=FLOOR, part="map")
    CLAIM.holds(measured[1], each.constants.rate, each, floor=FLOOR, part="increments")


@pytest.mark.parametrize("curvature", [1.5, -1.5])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_is_attained(curvature: float, relaxation: theory.Relaxation) -> None:
    """At the last step of a quadratic problem, for an eigenvalue at either end of a = 0.4, b = 0.7;
    where the rate is the other end's, this one has its own.
    """
    a, b = 0.4, 0.7
    rho = (a if curvature > 0 else b) / abs(curvature)
    theta = relaxation.factor(a, b)
    own = abs(1 - theta * (1 - rho * curvature))
    q = bound(relaxation, a, b)
    ratio = float(_one_step(curvature, rho, theta, 3)[0])
    where = {"curvature": curvature, "theta": theta, "a": a, "b": b}
    CLAIM.equals(ratio, own, where, FLOOR, "eigenvalue")
    CLAIM.holds(ratio, q, where, floor=FLOOR, part="either end")
    if own == pytest.approx(q, rel=1e-12):
        CLAIM.attained(ratio, q, where, slack=ACCURACY)


@pytest.mark.parametrize("family", ["tanh score, sine reward", "mixture score, sine reward"])
def test_holds_for_the_condition_on_beta(family: str) -> None:
    """The necessary constant weight of Theorem 2.8's updates, and what each condition asks."""
    instance = beta_tightness.member(beta_tightness.FAMILIES[family], 4)
    lam = 0.5
    necessary = beta_tightness.measure(instance, lam)
    asked = [
        float(theory.constant_beta(instance.chain, lam, theory.Theorem28(bounds)).beta[0])
        for bounds in (theory.PaperBounds(), instance.sharp, theory.OneSidedBounds())
    ]
    where = {"family": family, "instance": instance.describe(), "lam": lam}
    CLAIM.holds(necessary, asked[2], where, slack=1e-3, part="least constant β")
    over = [round(x / necessary, 2) for x in asked]
    CLAIM.finding(
        f"{family}, T = 4, λ = 1/2: sufficient over necessary β is {over[0]} (paper), {over[1]}"
        f" (sharp, with exact mean maps where known), {over[2]} (one-sided)",
        where,
    )


def test_needs_both_sides_undamped() -> None:
    """a = 0, b = 1.25: the optimum exists, undamped increments grow, relaxed ones do not."""
    undamped, best = theory.UNDAMPED, theory.BestRelaxation()
    grown = float(_one_step(-1.5, 1.25 / 1.5, undamped.factor(0.0, 1.25), 4)[-1])
    CLAIM.breaks(grown, 1.0, {"a": 0.0, "b": 1.25, "theta": 1.0}, "lower side, undamped")
    relaxed = float(_one_step(-1.5, 1.25 / 1.5, best.factor(0.0, 1.25), 4)[-1])
    CLAIM.holds(relaxed, bound(best, 0.0, 1.25), {"a": 0.0, "b": 1.25}, floor=FLOOR, part="relaxed")


def test_needs_the_upper_side() -> None:
    """a = 1.2: no relaxation makes updates contract."""
    for theta in (0.2, 0.6, 1.0):
        grown = float(_one_step(1.5, 0.8, theta, 4)[-1])
        CLAIM.breaks(grown, 1.0, {"a": 1.2, "theta": theta}, "upper side")


def test_needs_the_best_factor() -> None:
    """A factor off by a fifth to either side has a larger rate, attained by one of the two ends."""
    a, b = 0.5, 2.0
    best = theory.BestRelaxation()
    for share in (0.8, 1.2):
        theta = share * best.factor(a, b)
        slowest = max(
            float(_one_step(1.5, a / 1.5, theta, 3)[-1]),
            float(_one_step(-1.5, b / 1.5, theta, 3)[-1]),
        )
        where = {"a": a, "b": b, "theta": theta}
        CLAIM.breaks(slowest, bound(best, a, b), where, "best factor")


def _one_step(curvature: float, rho: float, theta: float, updates: int) -> Tensor:
    """Ratios of increments of one quadratic step with ``sigma^2 / beta = rho``."""
    instance = ProductInstance(
        levels=(0.4, 0.95),
        lam=(0.5,),
        factors=(Factor(TanhScore(c=0.3), Parabola(curvature, 0.5)),),
    )
    variance = float(instance.schedule.sigma[0]) ** 2
    grids = choose_grids(instance.problem(variance * 4), (301,))
    found = backward_induction(instance.problem(variance / rho), grids, updates, theta)
    moves = found.increments[0]
    return moves[1:] / moves[:-1]
