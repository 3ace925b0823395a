r"""The envelope identity (34): the gradient of the value function is the expected gradient of the
next one, carried back.

Setting: the optimal control of a problem whose Bellman bracket is strongly concave, mean maps
:math:`m_t` with Jacobian :math:`J_t = (I + (1 - a_t)\, \mathrm{Jac}\, s_t)/\sqrt{a_t}`.

Statement: $∇V_t (y) = op("Jac") m_t (y)^⊤ bb(E) ∇V_(t+1) (m_t (y) + σ_t (v^*_t (y) + W))$

The right side is the costate of the discrete lean adjoint. The control's own Jacobian does not
enter.

Kind: equality.

Source: arXiv 2412.18164v4, equation 34.

How it is measured: the left-hand side from values alone, by differences of degree 10 along a grid
in one dimension and exact central differences of quadratic values in up to five, the reference and
reward in different eigenbases; the right-hand side by the trapezoidal rule from
:math:`\nabla V_{t+1}`, in turn at the point where the optimal control leads.

What would refute it: a residual above the error of the differences.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.pi_ft import backward_induction
from socft.truth.grid import ValueGrid
from socft.truth.quadrature import Quadrature
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance, QuadraticInstance
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

CLAIM = Claim.of_module(__name__, __doc__, "Envelope identity (34)", topics.ADJOINTS)
ROUNDING = 1e-13
"""Relative to the value's coefficients: differences of quadratics in five dimensions at points of
size 3, after up to 12 steps.
"""


def measure(value: ValueGrid) -> Tensor:
    """``dV_t/dy`` by differences of the values."""
    return slope(value)


def bound(truth: Quadrature, t: int, following: ValueGrid, shift: Tensor) -> Tensor:
    """``Jac m_t^T E grad V_{t+1}(m_t + shift + sigma W)`` for given next value and shift."""
    means = Means.of(truth, t)
    return means.slope * means.costate(following, shift)


@settings(max_examples=20)
@given(line_instances(steps=6), st.integers(0, 5))
def test_holds(instance: ProductInstance, step: int) -> None:
    truth, t = instance.parts()[0], step % instance.steps
    expected = bound(truth, t, truth.values[t + 1], truth.shifts[t])
    where = {"instance": instance.describe(), "step": t}
    CLAIM.equals(measure(truth.values[t]), expected, where, tolerance(instance))


@settings(max_examples=30)
@given(quadratic_instances(), st.integers(0, 11), st.integers(0, 9))
def test_holds_for_quadratics(instance: QuadraticInstance, step: int, seed: int) -> None:
    truth, t = instance.solve(), step % instance.steps
    y = torch.randn(
        4, instance.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    scale = float(
        truth.value(t, 2 * y).abs().max()
        + truth.value(t, 0 * y).abs().max()
        + truth.value_gradient(t + 1, y).abs().max()
    )
    reached = truth.problem.reference.step(
        t, y, truth.control(t, y)
    )  # a quadratic's expected gradient is the one at the mean
    measured = central_jacobian(lambda x: truth.value(t, x), y)
    expected = carried(truth.problem.reference, t, y, truth.value_gradient(t + 1, reached))
    where = {"instance": instance.describe(), "step": t, "seed": seed}
    CLAIM.equals(measured, expected, where, ROUNDING * (1 + scale), "quadratic")


def test_needs_the_optimal_control() -> None:
    """The value of one update of PI-FT is steeper or flatter than its costate says; the more
    updates, the less.
    """
    truth = CURVED.parts()[0]
    for updates in (0, 1, 2):
        found = backward_induction(truth.problem, truth.grids, updates)
        residual = float(
            (measure(found.values[0]) - bound(truth, 0, found.values[1], found.shifts[0]))
            .abs()
            .max()
        )
        where = {"instance": CURVED.describe(), "updates": updates}
        if updates == 0:  # no control at all: nothing to differentiate
            CLAIM.equals(residual, 0.0, where, ACCURACY, "no control")
        else:
            CLAIM.breaks(residual, NOTICEABLE, where, "optimal control")


def test_needs_the_optimal_control_for_quadratics() -> None:
    """Half the optimal control."""
    instance = QuadraticInstance(
        levels=(0.4, 0.9), lam=(0.5,), score=(0.3,), shift=(0.0,), curvature=(1.0,), slope=(0.2,)
    )
    truth, y = instance.solve(), torch.ones(1, 1, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        v = truth.control(0, x) / 2
        pushed, noise = truth.problem.reference.step(0, x, v), float(instance.schedule.sigma[0])
        curvature = float(instance.curvature[0])
        return (
            truth.value(1, pushed)
            + noise**2 * curvature / 2
            - truth.problem.beta[0] * v.square().sum(1) / 2
        )

    found = central_jacobian(value, y)[:, 0]
    A = (1 + instance.schedule.score_weight[0] * instance.score[0]) / instance.schedule.alpha[
        0
    ].sqrt()
    costate = (
        A
        * truth.value_gradient(1, truth.problem.reference.step(0, y, truth.control(0, y) / 2))[:, 0]
    )
    CLAIM.breaks(float((found - costate).abs()), NOTICEABLE, instance, "optimal control, quadratic")
