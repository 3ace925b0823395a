r"""The gradient of an unfinished iterate's value (55).

Setting: PI-FT with m updates at step t and any value function :math:`V_{t+1}` in front. In shifts of the mean
:math:`\delta_j = g\,(U^{(j)} - s)/\sqrt a`, with :math:`G_j(y) = E\, \nabla V_{t+1}(m_t(y) + \delta_j(y) + \sigma W)`, the
update is :math:`\delta_{j+1} = \rho\, G_j`, and the iterate's value is (36) at :math:`\delta_m`.

Statement: :math:`\nabla V^{(m)} = (\mathrm{Jac}\, m_t)^\top G_m + (\mathrm{Jac}\, \delta_m)^\top (G_m - G_{m-1})` for
:math:`m \ge 1`; for m = 0 the first term alone.

Kind: equality.

Source: arXiv 2412.18164v4, equation 55.

How it is measured: as the envelope identity, of which it is the version away from the optimum: differences of the iterate's
values against a right-hand side whose G are integrated by the trapezoidal rule; in up to five dimensions for quadratics, with score
and reward in different eigenbases, where central differences are exact.

What would refute it: a residual above the error of the differences.
"""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.bellman import BellmanStep, axis_sigma, mean_and_jacobian
from socft.grid import ValueGrid
from socft.pi_ft import Sweep, sweep
from socft.truth.quadrature import Quadrature
from verify.claims import Claim
from verify.iterates import differentiate, expected_gradient, thin
from verify.strategies import (
    ACCURACY,
    Factor,
    ProductInstance,
    QuadraticInstance,
    Sine,
    TanhScore,
    line_instances,
    quadratic_instances,
)

CLAIM = Claim(
    name="iterate_gradient",
    statement="∇V⁽ᵐ⁾ = Jac m_tᵀ G_m + Jac δ_mᵀ (G_m − G_{m−1}), G_j = E ∇V_{t+1}(m_t + δ_j + σW)",
    source="arXiv 2412.18164v4, equation 55",
    kind="equality",
)
ROUNDING = 5e-14
"""Relative to the value's coefficients: a few products of matrices of size 5."""
NOTICEABLE = 1e-3
"""What the identity must miss by without its second term, a hundred times the error of the measurement."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """The two terms of (55) at the inner nodes."""

    envelope: Tensor
    unfinished: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.envelope + self.unfinished


def measure(value: ValueGrid) -> Tensor:
    """``dV^(m)/dy`` by differences of the values."""
    return thin(differentiate(value.grid, value.value[:, None]))


def bound(truth: Quadrature, found: Sweep, t: int, updates: int) -> Terms:
    """(55) with each G integrated anew at the shifts of the updates."""
    reference, following = truth.problem.reference, found.values[t + 1]
    mean, jacobian = mean_and_jacobian(reference, t, truth.grids[t].nodes)
    sigma, step = float(axis_sigma(reference, t)), BellmanStep.build(truth.problem, t, truth.grids[t], following)
    shift, before = torch.zeros_like(mean), torch.zeros_like(thin(mean))
    for _ in range(updates):
        before = expected_gradient(following, thin(mean + shift), sigma)
        shift = step.improve(shift)
    after = expected_gradient(following, thin(mean + shift), sigma)
    unfinished = thin(differentiate(truth.grids[t], shift)) * (after - before)
    return Terms(thin(jacobian[:, :, 0]) * after, unfinished)


@settings(max_examples=15)
@given(line_instances(steps=5), st.integers(0, 4), st.integers(0, 4))
def test_holds(instance: ProductInstance, step: int, updates: int) -> None:
    truth, t = instance.parts()[0], step % instance.steps
    found = sweep(truth.problem, truth.grids, updates)
    where = {"instance": instance.describe(), "step": t, "updates": updates}
    tolerance = ACCURACY * (1 + instance.chain.reward_L0)
    CLAIM.equals(measure(found.values[t]), bound(truth, found, t, updates).total, where, tolerance)


@settings(max_examples=60)
@given(quadratic_instances(steps=1), st.integers(0, 6))
def test_holds_for_quadratics(instance: QuadraticInstance, updates: int) -> None:
    """``V^(m)(y)`` by (36), differentiated by central differences, which are exact; (55) from the iterates as matrices."""
    beta = instance.beta()
    problem, rho = instance.problem(beta), float(theory.proximal_step(instance.chain, beta)[0])
    y = torch.randn(4, instance.dim, generator=torch.Generator().manual_seed(updates), dtype=torch.float64)

    def costate(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        mean, shift = problem.reference.mean(0, x), torch.zeros_like(x)
        for _ in range(count):
            shift = rho * problem.reward.gradient(mean + shift)
        return problem.reward.gradient(mean + shift), shift

    def value(x: Tensor) -> Tensor:
        shift = costate(x, updates)[1]
        return problem.reward(problem.reference.mean(0, x) + shift) - shift.square().sum(1) / (2 * rho)

    axes = torch.eye(instance.dim, dtype=torch.float64)
    measured = torch.stack([(value(y + e) - value(y - e)) / 2 for e in axes], 1)
    shift_jacobian = torch.stack([(costate(y + e, updates)[1] - costate(y - e, updates)[1]) / 2 for e in axes], 2)
    after, before = costate(y, updates)[0], costate(y, updates - 1)[0] if updates else torch.zeros_like(y)
    jacobian = mean_and_jacobian(problem.reference, 0, y)[1]
    expected = torch.einsum("bij,bi->bj", jacobian, after) + torch.einsum("bij,bi->bj", shift_jacobian, after - before)
    scale = 1 + float(value(y).abs().max() + measured.abs().max())
    where = {"instance": instance.describe(), "updates": updates}
    CLAIM.equals(measured, expected, where, ROUNDING * scale, "quadratic")


def test_needs_the_second_term() -> None:
    """Which the envelope identity has not: without it the gradient of an unfinished iterate's value is wrong."""
    instance = ProductInstance(levels=(0.4, 0.95), lam=(0.5,), factors=(Factor(TanhScore(c=0.2), Sine(1.0, 1.0, 0.5)),))
    truth = instance.parts()[0]
    for updates in (1, 2, 3):
        found = sweep(truth.problem, truth.grids, updates)
        terms = bound(truth, found, 0, updates)
        residual = float((measure(found.values[0]) - terms.envelope).abs().max())
        where = {"instance": instance.describe(), "updates": updates}
        CLAIM.equals(measure(found.values[0]), terms.total, where, ACCURACY, "same instance, both terms")
        CLAIM.breaks(residual, NOTICEABLE, where, "second term")
