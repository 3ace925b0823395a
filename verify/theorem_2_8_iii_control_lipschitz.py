r"""The optimal control is Lipschitz (16).

Setting: scores with Lipschitz constants :math:`L^0_{s,t}` and
:math:`\beta_t \ge \sigma_t^2 L^1_{V,t+1}/(1-\lambda_t)`.

Statement: $|u^*_t (y) − u^*_t (y')| ≤ L_0 (u_t) |y − y'|$ with $L_0 (u_t) = (L_0 (s_t) + (1 −
λ_t)/g_t)/λ_t$

Kind: tight. A convex quadratic reward with an expanding affine score attains it at every step.

Source: arXiv 2412.18164v4, Theorem 2.8 (iii), equation 16; sharper constants derived here.

They have the exact mean map and the smoothed curvature.

How it is measured: the supremum of the derivative of the exact control in score units, at the
weights the paper's condition asks; closed forms in several dimensions. The certificate proves in
ball arithmetic, for affine scores and quadratic rewards of either sign, that the slope is below the
bound for all curvatures, lambdas, gains and scores of a box.

What would refute it: a slope above the constant beyond the error of differencing.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import flint
import pytest
import torch
from hypothesis import given
from torch import Tensor

from socft import theory
from socft.reference import ScoreReference
from socft.truth.grid import Grid
from socft.truth.quadrature import Quadrature
from verify.strong_concavity import rounding
from verify.support import topics
from verify.support.balls import ball, cells
from verify.support.claims import Claim
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.passes import hold_at_the_optimum
from verify.support.quadratics import steep_quadratic
from verify.support.score_units import formula
from verify.support.strategies import instances, quadratic_instances
from verify.support.suprema import DIFFERENCED, INNER

CLAIM = Claim.of_module(__name__, __doc__, "Theorem 2.8 (iii), (16)", topics.THEOREM_2_8_III)
PAPER = theory.Theorem28(theory.PaperBounds())
CELLS = 12
"""Cells per axis of the certificate."""


def measure(truth: Quadrature) -> Tensor:
    """``sup |Jac u*_t|`` of a one-dimensional problem in score units, shape (T,)."""
    return torch.stack(
        [inner(grid, grid.jacobian(u)[:, :, 0]).abs().max() for grid, u in controls(truth)]
    )


def controls(truth: Quadrature) -> list[tuple[Grid, Tensor]]:
    """``u*_t`` at the nodes of each step's grid."""
    reference = truth.problem.reference
    assert isinstance(reference, ScoreReference)
    grids = truth.grids[:-1]
    return [
        (g, reference.score_of(t, g.nodes, truth.control(t, g.nodes))) for t, g in enumerate(grids)
    ]


def inner(grid: Grid, field: Tensor) -> Tensor:
    """A nodal field over the region in which suprema are taken."""
    cut = math.ceil(grid.shape[0] * (1 - INNER) / 2)
    return field[cut : grid.shape[0] - cut]


def bound(
    instance: ProductInstance | QuadraticInstance, statement: theory.RegularityStatement
) -> Tensor:
    """(16) at the weights of the paper's condition, shape (T,)."""
    return theory.constants_at(instance.chain, instance.beta(), statement).L0u


test_formula = formula(CLAIM, "L0u")


@given(instances())
def test_holds(instance: ProductInstance) -> None:
    measured = torch.stack([measure(part) for part in instance.parts()]).amax(0)
    floor = DIFFERENCED * (1 + float(theory.score_unit(instance.chain).max()))
    hold_at_the_optimum(CLAIM, instance, measured, bound, floor)


@given(quadratic_instances(steps=5))
def test_holds_in_several_dimensions(instance: QuadraticInstance) -> None:
    with torch.no_grad():
        gain = (
            theory.score_unit(instance.chain)[:, None, None] * instance.solve().affine_policy.gain
        )
    jacobian = torch.diag(torch.tensor(instance.score, dtype=torch.float64)) + gain
    sharp = bound(instance, theory.Theorem28(instance.sharp))
    measured = torch.linalg.matrix_norm(jacobian, 2)
    limit, slack = bound(instance, PAPER), rounding(instance)
    CLAIM.holds(measured, limit, instance, sharp=sharp, slack=slack, part="quadratic")


def test_is_attained() -> None:
    """At every step of a convex quadratic problem with an expanding score."""
    instance = steep_quadratic(lam=(0.7, 0.35, 0.5))
    for slope, largest in zip(
        measure(instance.parts()[0]).tolist(), bound(instance, PAPER).tolist(), strict=True
    ):
        CLAIM.attained(slope, largest, instance, slack=DIFFERENCED)


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
def test_needs_the_condition_on_beta(lam: float) -> None:
    """With a weight for half of lambda the control of a convex quadratic is steeper than the bound
    for lambda.
    """
    instance = steep_quadratic(lam=(lam,))
    beta = theory.paper_constants(instance.chain, lam / 2).beta_required
    slope = float(measure(Quadrature(instance.problem(beta)))[0])
    CLAIM.breaks(
        slope,
        float(bound(instance, PAPER)[0]),
        {"instance": instance.describe(), "beta": beta},
        "condition on beta",
    )


def test_needs_the_lipschitz_constant_of_the_score() -> None:
    """With half of the score's Lipschitz constant the bound fails."""
    instance = steep_quadratic(lam=(0.5,))
    chain = theory.ChainConstants.of(instance.schedule, 0.1, 0.0, instance.reward)
    slope, claimed = (
        float(measure(instance.parts()[0])[0]),
        float(theory.paper_constants(chain, instance.lams).L0u[0]),
    )
    CLAIM.breaks(slope, claimed, instance, "Lipschitz constant of the score")


def test_certified() -> None:
    """For affine scores s and quadratic rewards, at every ratio p of a curvature to its bound in
    (-1, 1).

    The slope is ``s + (1 + g s) c / g`` with ``c = q p / (1 - q p)``, q = 1 - lam. In units of
    ``(1 + g L0s) / g``, with ``A = g L0s / (1 + g L0s)``, it is at most ``A + |c|`` for all s in
    [-L0s, L0s], and the bound is ``A + q / lam``.
    """
    largest, top = flint.arb(0), 1 - Fraction(1, 2**20)
    axes = [(Fraction(1, 20), Fraction(19, 20)), (Fraction(0), top), (Fraction(0), Fraction(1))]
    for cell in itertools.product(*(cells(low, high, CELLS) for low, high in axes)):
        lam, size, score = (ball(*interval) for interval in cell)
        for gap in _gaps(lam, size):
            largest = largest.max((1 - gap / (lam * score + (1 - lam)).upper()).upper())
    where = {"lam": [0.05, 0.95], "|curvature| over its bound": [0, float(top)], "A": [0, 1]}
    CLAIM.certified(largest, flint.arb(1), where, part="quadratic family")


def _gaps(lam: flint.arb, size: flint.arb) -> tuple[flint.arb, flint.arb]:
    """``q - lam |c|`` from below, for p = size and p = -size; end by end, as products of balls
    would reach zero.
    """
    q, rest = 1 - lam, 1 - size
    convex = q.lower() * rest.lower() / (rest + lam * size).upper()
    concave = q.lower() * (rest + 2 * q * size).lower() / (1 + q * size).upper()
    return convex, concave
