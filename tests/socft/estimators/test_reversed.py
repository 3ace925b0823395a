"""Time-reversed costates and values of an affine field on an affine chain are finite sums of
products along the reversed path.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.costates.fields import GivenCostate
from socft.costates.marginal_score import AffineMarginals
from socft.costates.time_reversal import Reversal, Reverser
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference, MatrixDiffusion, States, Step
from socft.reward import Quadratic
from tests.support.estimator_cases import IDENTITY, STEPS, away, paths, quadratic_problem
from tests.support.tensors import randn

SLOPES, OFFSETS = randn(31, STEPS + 1, 2, 2), randn(32, STEPS + 1, 2)
"""Of the field at every step; the last ones are wrong, and the reward's gradient stands in."""
BATCH = 40


def field(k: Step, x: States) -> States:
    assert isinstance(k, int)
    return x @ SLOPES[k].mT + OFFSETS[k]


def reversed_path() -> tuple[ControlProblem, Policy, Path, Reverser, Reversal]:
    problem = quadratic_problem()
    policy = away(problem)
    path, reverser = paths(problem, policy, count=BATCH), Reverser(AffineMarginals())
    return problem, policy, path, reverser, reverser.run(problem, policy, path)


def right_field(reward: Quadratic) -> tuple[Tensor, Tensor]:
    """Slopes and offsets with those of the reward's gradient at the end."""
    return (
        torch.cat([SLOPES[:-1], reward.P[None]]),
        torch.cat([OFFSETS[:-1], reward.linear[None]]),
    )


def test_values_are_what_is_earned_and_not_yet_paid():
    """``V_k = r + sum_{j >= k} phi_{j+1} . dx_j + tr(B_j' J_{j+1} B_j) - f_j - beta_j |u_j|^2/2``,
    everything at the state after the step.
    """
    problem, policy, path, reverser, back = reversed_path()
    assert isinstance(problem.reward, Quadratic)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    slopes, offsets = right_field(problem.reward)
    after, B = back.states[1:], problem.reference.diffusion.matrices
    phi = torch.einsum("kij,kbj->kbi", slopes[1:], after) + offsets[1:, None]
    gained = (phi * (back.drifts + back.noise_increments)).sum(2)
    gained = gained + torch.einsum("kin,kij,kjn->k", B, slopes[1:], B)[:, None]
    kl = back.controls.square().sum(2) / 2 * problem.beta[:, None]
    paid = torch.stack([problem.cost(k, x) for k, x in enumerate(after)]) + kl
    sums = (gained - paid).flip(0).cumsum(0).flip(0)
    expected = problem.reward(path.final) + torch.cat([sums, torch.zeros(1, BATCH)])
    found = ReversedValues(GivenCostate(field), reverser).values(problem, policy, path)
    assert torch.equal(found.states, back.states)
    assert torch.allclose(found.values, expected, rtol=IDENTITY, atol=IDENTITY)


@pytest.mark.parametrize("last", [True, False])
def test_costates_are_pulled_back_and_moved(last: bool):
    """``a_k = A_k' a_{k+1} - grad f_k + J_{k+1} dx_k`` at the state after the step; the last step
    moves only where asked.
    """
    problem, policy, path, reverser, back = reversed_path()
    assert isinstance(problem.reward, Quadratic)
    assert isinstance(problem.reference, AffineReference)
    slopes, _ = right_field(problem.reward)
    moved = torch.einsum("kij,kbj->kbi", slopes[1:], back.drifts + back.noise_increments)
    if not last:
        moved[-1] = 0.0
    A, value = problem.reference.maps.dense(), problem.reward.gradient(path.final)
    found = list(
        ReversedBSDE(GivenCostate(field), reverser, last=last).backward_pass(problem, policy, path)
    )
    assert [step.k for step in found] == [*range(STEPS, -1, -1)]
    assert torch.equal(found[0].value, value)
    for step in found[1:]:
        next_costate = value + moved[step.k]
        x = back.states[step.k + 1].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(problem.cost(step.k, x).sum(), x)
        value = value @ A[step.k] - slope + moved[step.k]
        assert torch.equal(step.state, back.states[step.k])
        assert step.next_costate is not None
        assert torch.allclose(step.next_costate, next_costate, rtol=IDENTITY, atol=IDENTITY)
        assert torch.allclose(step.value, value, rtol=IDENTITY, atol=IDENTITY)
