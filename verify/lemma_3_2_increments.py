r"""Lemma 3.2, increments: the costates that successive updates see approach each other
geometrically.

Setting: Algorithm 1 with m updates at every step,
:math:`\beta_t \ge \sigma_t^2 L^{(1)}_{b,t+1}/(1-\lambda_t)`,
:math:`G_j(y) = E\, \nabla V^{(m)}_{t+1}(x_j + \sigma_t W)` at the mean :math:`x_j` that the j-th
iterate steers to; :math:`D_t = (1 + (1-a_t) L^{(0)}_u)/\sqrt{a_t}`, and :math:`\tau_t` bounds
:math:`|D^3 G V^{(m)}_{t+1}| / L^{(1)}_{b,t+1}`.

Statement: $|G_j − G_(j−1)| ≤ (1 − λ_t)^j macron(L)_0 (V_(t+1))$ for $j ≥ 1$, and $|G_0| ≤
macron(L)_0 (V_(t+1))$; $|op("Jac") (G_j − G_(j−1))| ≤ (1 − λ_t)^j D_t (macron(L)_1 (V_(t+1)) +
j τ_t macron(L)_0 (V_(t+1)))$ for $j ≥ 1$

Kind: tight, for all j at once: approached by the concave clipped slope as the clip becomes sharp,
at its corner, where the costate is as large as it can be and the following updates move through the
steep part, back and forth. The bound on the Jacobian is an upper bound, whose growth with j is
needed.

Source: arXiv 2412.18164v4, proof of Lemma 3.2; sharper constant and extremal instance derived here.

How it is measured: PI-FT by quadrature, whose increments are :math:`\rho_t (G_j - G_{j-1})`, in up
to 64 dimensions as rotated products; the clipped slope, and other staircases, in closed form.

What would refute it: an increment above its bound beyond quadrature error.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.smoothed_curvature import staircases
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import PAPER, Chained, Iterate, constants_for, visible
from verify.support.passes import passes
from verify.support.staircase import OneStep, Staircase, clipped
from verify.support.strategies import curved_rewards, instances, numbers
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Lemma 3.2, increments", topics.LEMMA_3_2)
SHARP_CLIP = 1000.0
"""Corner of the clip over sigma at which its rounding costs less than 1%."""


def measure(found: Iterate) -> Tensor:
    """``sup |G_j - G_{j-1}|``, shape (T, m)."""
    return found.increments


def bound(instance: Chained, beta: Tensor, bounds: theory.Bounds, rounds: int) -> Tensor:
    """``(1 - lam)^j Lb0_{t+1}``, shape (T, m); infinite where these bounds do not admit the
    weights.
    """
    found, powers = constants_for(instance, beta, bounds), torch.arange(rounds, dtype=torch.float64)
    if found is None:
        return torch.full((instance.chain.steps, rounds), torch.inf, dtype=torch.float64)
    return (1 - found.lam[:, None]) ** powers * found.L0V[1:, None]


@settings(max_examples=18)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(1, 6))
def test_holds(instance: ProductInstance, rounds: int) -> None:
    for each in passes(instance, rounds):
        paper, sharp = (
            bound(instance, each.beta, b, rounds) for b in (PAPER.bounds, instance.sharp)
        )
        measured, floor = visible(measure(each.found), sharp), ACCURACY * instance.dim**0.5
        CLAIM.holds(measured, paper, each.where, sharp=sharp, floor=floor, part=each.constants)


@settings(max_examples=15)
@given(st.floats(0.05, 0.98), st.floats(0.5, 50), st.sampled_from([1, -1]))
def test_holds_for_clipped_slopes(q: float, corner: float, sign: int) -> None:
    step = clipped(q, corner, sign=sign)
    CLAIM.holds(step.increments(6), q ** np.arange(7) * corner, step, part="clipped")


@settings(max_examples=40)
@given(numbers(0.05, 0.95), staircases(), numbers(0.2, 2))
def test_jacobians_hold(q: float, value: Staircase, sigma: float) -> None:
    assume(max(abs(x) for x in value.levels) > 0)
    step = OneStep(q / max(abs(x) for x in value.levels), value, sigma)
    for j, jacobian in enumerate(step.increment_jacobians(6), 1):
        CLAIM.holds(jacobian, _jacobian_bound(step, j), step.describe() | {"j": j}, part="Jacobian")


@pytest.mark.parametrize(("stretch", "curvature"), [(10.0, 0.1), (0.1, 10.0), (3.0, 7.0)])
def test_jacobians_of_quadratic_steps_hold(stretch: float, curvature: float) -> None:
    """``m(y) = M y`` and ``V = K y^2/2``, where ``Jac (G_j - G_{j-1}) = q^j M K``: the share
    ``1 - q`` of the bound, in any units.
    """
    q, where = 0.1, {"stretch": stretch, "curvature": curvature}
    constant, _ = theory.increment_smoothness(1.0, curvature, stretch, 0.0, 1 - q)
    for j in range(1, 5):
        CLAIM.holds(q**j * stretch * curvature, q**j * constant, where | {"j": j}, part="Jacobian")


def test_needs_the_growth_with_j() -> None:
    """With K alone an increment's Jacobian is not bounded where updates move far: the curvature
    changes from one end of its range to the other.
    """
    step = OneStep(0.1, Staircase((-40.0, -20.0, 20.0), (-1.0, 1.0)))
    jacobian, where = step.increment_jacobians(1)[0], step.describe() | {"j": 1}
    CLAIM.holds(jacobian, _jacobian_bound(step, 1), where, part="Jacobian")
    constant, _ = theory.increment_smoothness(step.L0, 1.0, 1.0, theory.SHARP, 1 - step.q)
    CLAIM.breaks(jacobian, step.q * constant, where, "growth with j")


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_is_attained(q: float) -> None:
    step = clipped(q, SHARP_CLIP, sign=-1)
    for j, increment in enumerate(step.increments(6)):
        CLAIM.attained(float(increment), q**j * step.L0, step.describe() | {"j": j})


def test_needs_the_condition_on_beta() -> None:
    """With q = 1.25 there is no lambda: increments stop shrinking and exceed the bound of lambda =
    0.01.
    """
    step = clipped(1.25, SHARP_CLIP, sign=-1)
    CLAIM.breaks(float(step.increments(20)[-1]), 0.99**20 * step.L0, step, "condition on beta")


def _jacobian_bound(step: OneStep, j: int) -> float:
    """For ``m(y) = y``, with the design constant of the step."""
    local, lam = step.chain, 1 - step.q * step.chain.reward_L1
    third = theory.SHARP / step.sigma
    constant, slope = theory.increment_smoothness(step.L0, local.reward_L1, 1.0, third, lam)
    return (1 - lam) ** j * (constant + j * slope)
