"""Time-reversed costates and values of an affine field on an affine chain are finite sums of
products along the reversed path.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from socft.costates.fields import GivenCostate
from socft.costates.marginal_score import AffineMarginals, GivenScore
from socft.costates.time_reversal import Reversal, Reverser
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.path import Noise, Path
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, MatrixDiffusion, ScalarDiffusion, States, Step
from socft.reward import FunctionReward, Quadratic
from tests.support.estimator_cases import IDENTITY, STEPS, away, paths, quadratic_problem
from tests.support.tensors import F64, generator, randn
from verify.support.sampling import require_estimates

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


@pytest.mark.parametrize("published", [False, True])
def test_costates_on_a_random_walk_have_their_exact_mean(published: bool):
    r"""Backwards from x by :math:`\sigma \xi`, under :math:`\phi = \sin`, a costate is
    :math:`\sin x - \sigma^2 \sum_k E \sin X_j` in the mean, with j = k + 1, or j = k as
    published, and :math:`E \sin X_j = \sin(x) e^{-\sigma^2 (T - j)/2}`: noise is paired with the
    state before it either way.
    """
    steps, sigma, x, paths = 4, 0.7, 1.1, 40_000
    reference = AffineReference(
        torch.ones(steps, 1, 1, dtype=F64), ScalarDiffusion(torch.full((steps,), sigma, dtype=F64))
    )
    problem = ControlProblem(reference, FunctionReward(lambda y: -torch.cos(y[:, 0])), 1.0)
    ends = torch.full((steps + 1, paths, 1), x, dtype=F64)
    still_noise = torch.zeros(steps, paths, 1, dtype=F64)
    path = Path(ends, still_noise, Noise(ends[0], still_noise))
    still = GivenScore(lambda k, y: torch.zeros_like(y))
    reverser = Reverser(still, generator(31), published_pairing=published)
    found = ReversedBSDE(GivenCostate(lambda k, y: torch.sin(y)), reverser)
    costates = found.costates(problem, Uncontrolled(reference), path).values[0, :, 0]
    after = [steps - k if published else steps - k - 1 for k in range(steps)]
    mean = math.sin(x) * (1 - sigma**2 * sum(math.exp(-(sigma**2) * n / 2) for n in after))
    require_estimates(costates.mean(), costates.std() / paths**0.5, mean, 0.006)
