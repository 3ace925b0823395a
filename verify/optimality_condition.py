r"""The optimal control solves (18), equally (20), and nothing else does.

Setting: the chain of Theorem 2.8 with :math:`\beta_t \ge \sigma_t^2 L^1_{V,t+1}/(1-\lambda_t)`,
:math:`\kappa_t = \sqrt{a_t} \sigma_t^2/(\beta_t g_t)`.

Statement: $u^*_t (y) = s_t (y) + κ_t bb(E) ∇V_(t+1) ((y + g_t u^*_t (y))/sqrt(a_t) + σ_t W)$, and
no other $u$ solves this

It is the only stationary point of Bellman's bracket, its maximum.

Kind: equality.

Source: arXiv 2412.18164v4, equations 18 and 20.

That every stationary point lies within :math:`\kappa_t L^0_{V,t+1}` of the score, so that a search
there finds all of them, follows from the equation.

How it is measured: maximisers of the bracket by a search on nested grids, and in several dimensions
by a general-purpose optimiser from several starts, against the control of the exact solver; the
residual of (18) at the solver's control by an own quadrature; the number of sign changes of the
residual over the interval that holds every stationary point.

What would refute it: a maximiser further from the solver's control than a search by values can err,
a residual above quadrature error, or a number of sign changes other than one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.problem import ControlProblem
from socft.reference import ScoreReference
from socft.truth.base import Truth
from verify.operator_view import Bracket, maximise, maximise_quadratic, states
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.scores import TanhScore
from verify.support.strategies import Sine, entries, line_instances, quadratic_instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Condition (18), (20)", topics.THEOREM_2_8_II)

VALUES = 1e-12
"""Relative error of a value of the bracket; two points whose values differ by less are equal to a
search.
"""
DESCENT = 1e-6
"""Relative error of a maximiser by an optimiser that stops at a gradient of 1e-8, with moduli above
0.01.
"""
POINTS = 401


def measure(bracket: Bracket, y: Tensor) -> Tensor:
    """Maximisers of the bracket, without derivatives."""
    return maximise(bracket, y).u


def bound(problem: ControlProblem, truth: Truth, t: int, y: Tensor) -> Tensor:
    """``u*_t`` of the exact solver, in score units."""
    assert isinstance(problem.reference, ScoreReference)
    return problem.reference.score_of(t, y[:, None], truth.control(t, y[:, None]))[:, 0]


@settings(max_examples=10)
@given(line_instances(steps=6), st.integers(0, 5))
def test_holds(instance: ProductInstance, step: int) -> None:
    t, beta = step % instance.steps, instance.beta()
    truth = instance.parts()[0]
    y, bracket = states(truth, t), Bracket(instance, truth, t, float(beta[t]))
    where = {"instance": instance.describe(), "step": t, "y": y}
    expected = bound(instance.problem(beta), truth, t, y)
    scale = 1 + float(expected.abs().max())
    CLAIM.equals(
        measure(bracket, y),
        expected,
        where,
        _flatness(instance, bracket, y, expected) + ACCURACY * scale,
        "maximiser",
    )
    unit = float(theory.score_unit(instance.chain)[t])
    CLAIM.equals(
        bracket.slope(y, expected),
        torch.zeros_like(y),
        where,
        ACCURACY * (unit + scale),
        "residual of (18)",
    )
    CLAIM.equals(
        stationary_points(bracket, y), torch.ones_like(y), where, 0.5, "number of stationary points"
    )


@settings(max_examples=25)
@given(quadratic_instances(steps=4), st.integers(0, 3), entries(10))
def test_holds_in_several_dimensions(
    instance: QuadraticInstance, step: int, state: list[float]
) -> None:
    """From the score and from an arbitrary start."""
    t, beta, d = step % instance.steps, instance.beta(), instance.dim
    truth, y, start = instance.solve(), np.array(state[:d]), np.array(state[5 : 5 + d])
    unit = float(theory.score_unit(instance.chain)[t])
    score = np.array(instance.score) * y + np.array(instance.shift)
    expected = score + unit * truth.control(t, torch.from_numpy(y)[None])[0].numpy()
    found = [
        maximise_quadratic(instance, truth, t, float(beta[t]), y, origin).u
        for origin in (None, start)
    ]
    where = {"instance": instance.describe(), "step": t, "y": y}
    CLAIM.equals(
        np.stack(found),
        np.stack([expected] * 2),
        where,
        DESCENT * (1 + float(np.abs(expected).max())),
        "quadratic",
    )


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_needs_the_condition_on_beta(share: float) -> None:
    """Below ``sigma^2 sup |Hess G V|`` the bracket has several stationary points, all of which
    solve (18).
    """
    instance = ProductInstance(
        levels=(0.4, 0.8), lam=(0.5,), factors=(Factor(TanhScore(c=1.0), Sine(1.0, 2.0)),)
    )
    variance = float(instance.schedule.sigma[0].square())
    beta = share * variance * 4 * float(np.exp(-2 * variance))
    bracket = Bracket(instance, instance.parts()[0], 0, beta)
    count = stationary_points(bracket, torch.linspace(-3, 3, 61, dtype=torch.float64))
    CLAIM.breaks(
        float(count.max()),
        1.0,
        {"instance": instance.describe(), "beta": beta},
        "condition on beta",
    )


def stationary_points(bracket: Bracket, y: Tensor) -> Tensor:
    """Number of sign changes of the residual of (18) in u, over all u that can solve it."""
    u = bracket.score(y)[:, None] + bracket.width() * torch.linspace(
        -1, 1, POINTS, dtype=torch.float64
    )
    rising = bracket.slope(y[:, None].expand_as(u), u) > 0
    return (rising[:, 1:] != rising[:, :-1]).sum(1).double()


def _flatness(instance: ProductInstance, bracket: Bracket, y: Tensor, u: Tensor) -> float:
    """How far from the maximum values are equal to rounding: ``sqrt(2 error / modulus)`` with the
    modulus of (19).
    """
    curvature = instance.regularity().curvature
    beta = torch.full((instance.steps,), bracket.beta, dtype=torch.float64)
    modulus = float(theory.concavity_modulus(instance.chain, beta, curvature)[bracket.t])
    error = VALUES * (1 + float(bracket(y, u).abs().max()))
    return (2 * error / modulus) ** 0.5
