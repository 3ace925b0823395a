"""Costates along bridges, whose law is that of the reference between ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import lean_adjoint
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint, bridge
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, MatrixDiffusion, ScalarDiffusion
from socft.reward import Linear, Quadratic
from socft.truth.linear_quadratic import LinearQuadratic
from tests.support.costate_cases import STEPS, quadratic_problem
from tests.support.costate_fields import IDENTITY, ORDER, geometric, order, paths, some_policy
from tests.support.tensors import F64, generator, randn, t


def joint_law(reference: AffineReference, first: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (T n,) and covariance of (X_1 .. X_T) given X_0, by pushing unit noises through the
    chain.
    """
    (m,), (n,), T = reference.noise_dims, reference.dims, reference.steps
    units = torch.eye(T * m, dtype=F64).reshape(T * m, T, m)
    noise = torch.cat([units, torch.zeros(1, T, m, dtype=F64)]).transpose(0, 1)
    with torch.no_grad():
        states = [first.expand(T * m + 1, n)]
        for k in range(T):
            states.append(reference.step(k, states[-1], noise[k]))
    stacked = torch.stack(states[1:], 1).flatten(1)
    slope = stacked[:-1] - stacked[-1:]
    return stacked[-1], slope.T @ slope


@pytest.mark.parametrize("degenerate", [False, True], ids=["", "degenerate"])
def test_bridges_have_the_references_conditional_law(degenerate: bool):
    """Mean and covariance of all inner states given the ends, by conditioning the joint Gaussian of
    the whole path.
    """
    problem = quadratic_problem(running=False)
    reference = problem.reference
    assert isinstance(reference, AffineReference)
    if degenerate:
        reference = AffineReference(
            reference.transition, MatrixDiffusion(0.5 * randn(31, STEPS, 2, 1)), reference.offset
        )
    first, last = t(0.4, -1.0)[None], t(0.8, 0.6)[None]
    mean, joint = joint_law(reference, first)
    inner, end = slice(0, 2 * STEPS - 2), slice(2 * STEPS - 2, 2 * STEPS)
    gain = joint[inner, end] @ torch.linalg.inv(joint[end, end])
    expected = mean[inner] + gain @ (last[0] - mean[end])
    covariance = joint[inner, inner] - gain @ joint[end, inner]
    unit = torch.eye(2 * STEPS, dtype=F64).reshape(2 * STEPS, STEPS, 2).transpose(0, 1)
    middle = (
        bridge(reference, first, last, torch.zeros(STEPS, 1, 2, dtype=F64))[1:-1]
        .transpose(0, 1)
        .flatten(1)[0]
    )
    moved = bridge(reference, first.expand(8, 2), last.expand(8, 2), unit)
    slope = moved[1:-1].transpose(0, 1).flatten(1) - middle
    assert (middle - expected).abs().max() < 1e-9
    assert (slope.T @ slope - covariance).abs().max() < 1e-9
    assert (moved[0] - first).abs().max() < 1e-7
    assert torch.equal(moved[-1], last.expand(8, 2))


def test_reciprocal_costates_are_the_lean_ones_of_the_same_ends():
    problem, policy = quadratic_problem(running=False), some_policy()
    path = paths(problem, policy, 30, 32)
    found = ReciprocalAdjoint(generator(33)).costates(problem, policy, path)
    assert (found.values - lean_adjoint(problem, path)).abs().max() < IDENTITY * 10
    assert not torch.allclose(found.states[2], path.states[2])


def test_with_a_linear_reward_reciprocal_targets_are_the_optimal_control():
    quadratic = quadratic_problem(running=False)
    problem = ControlProblem(quadratic.reference, Linear(t(1.0, -0.5)), quadratic.beta)
    truth = LinearQuadratic(problem)
    labels = ReciprocalAdjoint(generator(34)).label(
        problem, some_policy(), paths(problem, some_policy(), 5, 35)
    )
    for k in range(STEPS):
        assert (labels.targets[k] - truth.control(k, labels.states[k])).abs().max() < IDENTITY * 10


def test_the_fixed_point_of_reciprocal_matching_is_off_by_the_first_order():
    """At the optimum, targets minus control regressed on the bridged states: coefficients fall like
    dt (theory of Gaussians).

    The mean square is computed from the moments of jointly Gaussian (X_k, X_T) under the optimal
    ends and reference bridges.
    """
    errors = [reciprocal_bias(steps) for steps in (4, 8, 16)]
    assert abs(order(errors, [4, 8, 16]) - 1) < 2 * ORDER
    assert errors[0] > 1e-4


def reciprocal_bias(steps: int) -> float:
    """Sup over steps of |slope of E[target | x_k] - slope of the control| in one dimension, in
    units of sqrt(dt).
    """
    dt = 1.0 / steps
    a, s2 = 1 - dt / 2, dt
    reference = AffineReference(
        torch.full((steps, 1, 1), a, dtype=F64), ScalarDiffusion(torch.full((steps,), dt**0.5))
    )
    problem = ControlProblem(reference, Quadratic(-torch.ones(1, 1, dtype=F64)), 1.0)
    truth = LinearQuadratic(problem)
    gains = truth.affine_policy.gain.detach()[:, 0, 0]
    closed = a + dt**0.5 * gains
    variance, through = t(1.0)[0], t(1.0)[0]
    for c in closed:
        variance, through = c**2 * variance + s2, c * through
    worst = 0.0
    for k in range(1, steps):
        spread_k = s2 * sum(a ** (2 * i) for i in range(k))
        spread_T = s2 * sum(a ** (2 * i) for i in range(steps))
        to_end = a ** (steps - k)
        gain = spread_k * to_end / spread_T
        head = a**k - gain * a**steps
        cross = gain * variance + head * through
        own = (
            head**2 + gain**2 * variance + 2 * head * gain * through + spread_k - gain**2 * spread_T
        )
        target = -(dt**0.5) * a ** (steps - k - 1) * cross / own
        worst = max(worst, abs(float(target - gains[k])) / dt**0.5)
    return worst


def test_reciprocal_matching_refuses_other_problems():
    running = quadratic_problem()
    path = paths(running, some_policy(), 3, 36)
    with pytest.raises(
        InvalidProblem,
        match=r"there is a running cost; costates at bridges need a reward at the end alone",
    ):
        ReciprocalAdjoint(generator(37)).costates(running, some_policy(), path)
    curved = geometric()
    with pytest.raises(
        InvalidProblem, match=r"the reference is a KernelReference; only an AffineReference"
    ):
        ReciprocalAdjoint(generator(37)).costates(
            curved,
            Uncontrolled(curved.reference),
            paths(curved, Uncontrolled(curved.reference), 3, 38),
        )
