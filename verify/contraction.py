r"""The inner loop of PI-FT is a contraction (67).

Setting: Algorithm 1, backwards in t with m updates at every step; :math:`V^{(m)}_{t+1}` is the
value of the iterate that step t has in front of it, :math:`L^{(1)}_{b,t+1}` the Lipschitz constant
of its gradient from Lemma 3.2 (39), and
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`. In shifts of the mean,
:math:`\delta = \sigma v`, the update is
:math:`\delta \leftarrow \rho_t \nabla (G V^{(m)}_{t+1})(x + \delta)` with
:math:`\rho_t = \sigma_t^2/\beta_t`.

Statement: $|δ^((j+1)) − δ^((j))| ≤ (σ^2 macron(L)_1 (V_(t+1))/β_t) |δ^((j)) − δ^((j−1))|$ with $σ^2
macron(L)_1 (V_(t+1))/β_t ≤ 1 − λ_t$

Kind: tight. The last step of a problem with a quadratic reward attains it. So do all steps as m
grows, if Theorem 2.8's constant stands for the iterates', which is infinite because that reward has
no Lipschitz constant. There the iterate's curvature is a partial sum of the optimal one (derived
here): with mean maps of slope A,

.. math:: P^{(m)}_t = A_t^2 P \sum_{j=0}^{2m} (\rho_t P)^j, \quad P = P^{(m)}_{t+1}, \quad \text{so
   that} \quad |P^{(m)}_{t+1}| \le L^{(1)}_{V,t+1} \;\Rightarrow\; |P^{(m)}_t| \le \big(1 -
   (1-\lambda_t)^{2m+1}\big) L^{(1)}_{V,t} .

Source: arXiv 2412.18164v4, equation 67 with Lemma 3.2; sharper constant derived here.

The partial sum and the certificate are derived here too.

How it is measured: PI-FT by quadrature; per step the supremum of
:math:`\rho |\mathrm{Hess}\, G V^{(m)}_{t+1}|`, which is the Lipschitz constant of the update, and
the largest ratio of successive increments. Rotated products have the largest of their coordinates'
constants. The sharper constant is :math:`\rho` times the smoothed curvature of Lemma 3.2 with the
constants of `socft.theory.SharpBounds`. The certificate proves the last implication in ball
arithmetic, for all curvatures and all lambda in an interval.

What would refute it: a ratio above :math:`1 - \lambda_t` beyond quadrature error.
"""

from __future__ import annotations

import math
from fractions import Fraction

import flint
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.checks import require
from socft.pi_ft import BackwardInduction, backward_induction
from socft.problem import ControlProblem
from socft.truth.bellman import BellmanStep
from socft.truth.quadrature import Quadrature
from verify.support import topics
from verify.support.balls import ball
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import Chained
from verify.support.quadratics import steep_quadratic
from verify.support.rewards import Parabola
from verify.support.strategies import instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Contraction (67)", topics.CONTRACTION)
PAPER = theory.Lemma32(theory.PaperBounds())
VISIBLE = 1e-6
"""Increments below this share of the first are left out: their ratio has the quadrature error over
`VISIBLE` as its own.
"""
FLOOR = 1e-8
"""Absolute error of a contraction factor: Hessians of G V at the nodes, and ratios of increments
above `VISIBLE`.
"""
SMALLEST = Fraction(1, 2**40)
"""Width in lambda at which the certificate gives up."""


def measure(truth: Quadrature, updates: int) -> Tensor:
    """Lipschitz constant of the update map, and largest ratio of increments, of a one-dimensional
    problem: shape (2, T).
    """
    result = backward_induction(truth.problem, truth.grids, updates)
    return torch.stack([map_constants(truth.problem, result), _largest_ratios(result)])


def map_constants(problem: ControlProblem, result: BackwardInduction) -> Tensor:
    """``sup rho |Hess G V_{t+1}|`` of the values of one pass, the Lipschitz constants of its
    updates, shape (T,).
    """
    steps = [
        BellmanStep.build(problem, k, result.grids[k], result.values[k + 1])
        for k in range(problem.steps)
    ]
    return torch.tensor(
        [float(step.rho.max()) * step.curvature() for step in steps], dtype=torch.float64
    )


def bound(instance: Chained, beta: Tensor, statement: theory.RegularityStatement = PAPER) -> Tensor:
    """``sigma^2 Lb1_{t+1} / beta_t``, which is ``1 - lam_t`` by the choice of beta, shape (T,)."""
    return 1 - theory.constants_at(instance.chain, beta, statement).lam


@settings(max_examples=18)
@given(instances(steps=6), st.integers(2, 6))
def test_holds(instance: ProductInstance, updates: int) -> None:
    beta = instance.beta(PAPER)
    measured = torch.stack([measure(part, updates) for part in instance.parts(beta)]).amax(0)
    sharper = bound(instance, beta, theory.Lemma32(instance.sharp))
    where = {"instance": instance.describe(), "updates": updates}
    CLAIM.holds(measured[0], bound(instance, beta), where, sharp=sharper, floor=FLOOR, part="map")
    CLAIM.holds(
        measured[1], bound(instance, beta), where, sharp=sharper, floor=FLOOR, part="increments"
    )


@pytest.mark.parametrize("curvature", [1.5, -1.5])
def test_is_attained(curvature: float) -> None:
    """At the last step of a quadratic problem, whatever the sign of its curvature."""
    instance = steep_quadratic((0.5,), curvature=curvature)
    beta = instance.beta(PAPER)
    factors = measure(instance.parts(beta)[0], updates=4)
    for kind, factor in zip(("map", "increments"), factors[:, 0].tolist(), strict=True):
        CLAIM.attained(factor, float(bound(instance, beta)[0]), instance, slack=ACCURACY, part=kind)


def test_is_attained_at_every_step() -> None:
    """On a convex quadratic problem, with Theorem 2.8's constants in place of the infinite ones of
    Lemma 3.2.
    """
    instance, updates = steep_quadratic((0.5,) * 4, curvature=1.5), 8
    optimum = theory.Theorem28(theory.PaperBounds())
    beta = instance.beta(optimum)
    factors = measure(instance.parts(beta)[0], updates)[0]
    for factor, limit in zip(
        factors.tolist(), bound(instance, beta, optimum).tolist(), strict=True
    ):
        CLAIM.attained(
            factor,
            limit,
            {"instance": instance.describe(), "updates": updates},
            slack=ACCURACY,
            part="all steps, with Theorem 2.8's constants",
        )


def test_partial_sum() -> None:
    """The iterate's curvature of the module docstring, against PI-FT by quadrature."""
    instance, updates = steep_quadratic((0.5,) * 4, curvature=-1.5), 3
    beta = instance.beta(theory.Theorem28(theory.PaperBounds()))
    factors = measure(instance.parts(beta)[0], updates)[0]
    CLAIM.equals(factors, _partial_sums(instance, beta, updates), instance, ACCURACY, "partial sum")


@pytest.mark.parametrize("curvature", [1.5, -1.5])
def test_needs_the_condition_on_beta(curvature: float) -> None:
    """With a fifth less beta than the condition admits for any lambda, increments grow; for -1.5
    although an optimum exists.
    """
    instance = steep_quadratic((0.5,), curvature=curvature)
    problem = instance.problem(0.8 * instance.schedule.sigma.square() * abs(curvature))
    grids = instance.parts(instance.beta(PAPER))[0].grids
    CLAIM.breaks(
        float(_largest_ratios(backward_induction(problem, grids, 4))[0]),
        1.0,
        instance,
        "condition on beta",
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("updates", [1, 2])
def test_certified(sign: int, updates: int) -> None:
    """For all problems of the quadratic family: curvature within its bound at t + 1 stays within it
    at t.
    """
    largest = flint.arb(0)
    open_cells = [(Fraction(1, 10), Fraction(4, 5), Fraction(0), Fraction(1))]
    while open_cells:
        low, high, left, right = open_cells.pop()
        share = _pushed(ball(low, high), ball(left, right), sign, updates)
        if share < 1:
            largest = largest.max(share.upper())
            continue
        require(
            high - low > SMALLEST,
            f"no proof at lam = {float(low)}, curvature = {float(left)}; the statement is false or"
            " tight.",
        )
        middle, centre = (low + high) / 2, (left + right) / 2
        open_cells += [
            (a, b, c, d)
            for a, b in ((low, middle), (middle, high))
            for c, d in ((left, centre), (centre, right))
        ]
    where = {
        "lam": [0.1, 0.8],
        "curvature over its bound": [0, 1],
        "sign": sign,
        "updates": updates,
    }
    CLAIM.certified(largest, flint.arb(1), where, part="quadratic family")


def _pushed(lam: flint.arb, curvature: flint.arb, sign: int, updates: int) -> flint.arb:
    """``|P_t^(m)| / L1V_t`` from that of t + 1, p, for A = M, where it is largest:
    ``lam p sum_j (sign (1 - lam) p)^j``.
    """
    ratio, total = sign * (1 - lam) * curvature, flint.arb(1)
    for _ in range(2 * updates):
        total = 1 + ratio * total
    return lam * curvature * total


def _largest_ratios(result: BackwardInduction) -> Tensor:
    moves = result.increments
    ratios = moves[:, 1:] / moves[:, :-1].clamp(min=1e-300)
    visible = moves[:, 1:] > VISIBLE * moves[:, :1]
    return torch.where(visible, ratios, 0.0).amax(1)


def _partial_sums(instance: ProductInstance, beta: Tensor, updates: int) -> Tensor:
    """``rho_t |P^(m)_{t+1}|`` by the formula of the module docstring."""
    rho, slope = theory.proximal_step(instance.chain, beta).tolist(), instance.mean_L0.tolist()
    reward = instance.factors[0].reward
    assert isinstance(reward, Parabola)
    P, found = reward.p, []
    for t in reversed(range(instance.steps)):
        found.append(rho[t] * abs(P))
        P = slope[t] ** 2 * P * math.fsum((rho[t] * P) ** j for j in range(2 * updates + 1))
    return torch.tensor(found[::-1], dtype=torch.float64)
