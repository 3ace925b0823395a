r"""The gradient of an unfinished iterate's value (55).

Setting: PI-FT with m updates at step t and any value function :math:`V_{t+1}` in front. In shifts
of the mean :math:`\delta_j = g\,(U^{(j)} - s)/\sqrt a`, with
:math:`G_j(y) = E\, \nabla V_{t+1}(m_t(y) + \delta_j(y) + \sigma W)`, the update is
:math:`\delta_{j+1} = \rho\, G_j`, and the iterate's value is (36) at :math:`\delta_m`.

Statement: $∇V^((m)) = op("Jac") m_t^⊤ G_m + op("Jac") δ_m^⊤ (G_m − G_(m−1))$ with $G_j = bb(E)
∇V_(t+1) (m_t + δ_j + σ W)$

This is for :math:`m \ge 1`; for m = 0 the first term alone.

Kind: equality.

Source: arXiv 2412.18164v4, equation 55.

How it is measured: as the envelope identity, of which it is the version away from the optimum:
differences of the iterate's values against a right-hand side whose G are integrated by the
trapezoidal rule; in up to five dimensions for quadratics, with score and reward in different
eigenbases, where central differences are exact.

What would refute it: a residual above the error of the differences.
"""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.pi_ft import BackwardInduction, backward_induction
from socft.truth.bellman import BellmanStep
from socft.truth.grid import ValueGrid
from socft.truth.quadrature import Quadrature
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.iterates import differentiate, thin
from verify.support.strategies import line_instances, quadratic_instances
from verify.support.suprema import ACCURACY
from verify.support.value_gradients import (
    CURVED,
    NOTICEABLE,
    Means,
    carried,
    central_jacobian,
    slope,
    tolerance,
)

CLAIM = Claim.of_module(__name__, __doc__, "Gradient of an iterate (55)", topics.LEMMA_3_2)
ROUNDING = 5e-14
"""Relative to the value's coefficients: a few products of matrices of size 5."""


@dataclasses.dataclass(frozen=True)
class GradientTerms:
    """The two terms of (55) at the inner nodes."""

    envelope: Tensor
    unfinished: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.envelope + self.unfinished


def measure(value: ValueGrid) -> Tensor:
    """``dV^(m)/dy`` by differences of the values."""
    return slope(value)


def bound(truth: Quadrature, found: BackwardInduction, t: int, updates: int) -> GradientTerms:
    """(55) with each G integrated anew at the shifts of the updates."""
    means, following = Means.of(truth, t), found.values[t + 1]
    step = BellmanStep.build(truth.problem, t, truth.grids[t], following)
    shift, before = torch.zeros_like(means.mean), torch.zeros_like(means.slope)
    for _ in range(updates):
        before = means.costate(following, shift)
        shift = step.improve(shift)
    after = means.costate(following, shift)
    unfinished = thin(differentiate(truth.grids[t], shift)) * (after - before)
    return GradientTerms(means.slope * after, unfinished)


@settings(max_examples=15)
@given(line_instances(steps=5), st.integers(0, 4), st.integers(0, 4))
def test_holds(instance: ProductInstance, step: int, updates: int) -> None:
    truth, t = instance.parts()[0], step % instance.steps
    found = backward_induction(truth.problem, truth.grids, updates)
    where = {"instance": instance.describe(), "step": t, "updates": updates}
    CLAIM.equals(
        measure(found.values[t]), bound(truth, found, t, updates).total, where, tolerance(instance)
    )


@settings(max_examples=30)
@given(quadratic_instances(steps=1), st.integers(0, 6))
def test_holds_for_quadratics(instance: QuadraticInstance, updates: int) -> None:
    """``V^(m)(y)`` by (36), differentiated by central differences, which are exact; (55) from the
    iterates as matrices.
    """
    beta = instance.beta()
    problem, rho = instance.problem(beta), float(theory.proximal_step(instance.chain, beta)[0])
    y = torch.randn(
        4, instance.dim, generator=torch.Generator().manual_seed(updates), dtype=torch.float64
    )

    def costate(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        mean, shift = problem.reference.mean(0, x), torch.zeros_like(x)
        for _ in range(count):
            shift = rho * problem.reward.gradient(mean + shift)
        return problem.reward.gradient(mean + shift), shift

    def value(x: Tensor) -> Tensor:
        shift = costate(x, updates)[1]
        return problem.reward(problem.reference.mean(0, x) + shift) - shift.square().sum(1) / (
            2 * rho
        )

    measured, shift_jacobian = (
        central_jacobian(value, y),
        central_jacobian(lambda x: costate(x, updates)[1], y),
    )
    after, before = (
        costate(y, updates)[0],
        costate(y, updates - 1)[0] if updates else torch.zeros_like(y),
    )
    unfinished = torch.einsum("bij,bi->bj", shift_jacobian, after - before)
    expected = carried(problem.reference, 0, y, after) + unfinished
    scale = 1 + float(value(y).abs().max() + measured.abs().max())
    where = {"instance": instance.describe(), "updates": updates}
    CLAIM.equals(measured, expected, where, ROUNDING * scale, "quadratic")


def test_needs_the_second_term() -> None:
    """Which the envelope identity has not: without it the gradient of an unfinished iterate's value
    is wrong.
    """
    truth = CURVED.parts()[0]
    for updates in (1, 2, 3):
        found = backward_induction(truth.problem, truth.grids, updates)
        terms = bound(truth, found, 0, updates)
        residual = float((measure(found.values[0]) - terms.envelope).abs().max())
        where = {"instance": CURVED.describe(), "updates": updates}
        CLAIM.equals(
            measure(found.values[0]), terms.total, where, ACCURACY, "same instance, both terms"
        )
        CLAIM.breaks(residual, NOTICEABLE, where, "second term")
