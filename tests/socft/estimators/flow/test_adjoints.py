"""The costate of the Hamiltonian where noise depends on the state, and Malliavin weights in the
place of the reward's gradient.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.baseline import BatchMean, NoBaseline, ValueBaseline
from socft.estimators.estimand import FixedPointResidual, ObjectiveGradient
from socft.estimators.flow.hamiltonian_adjoint import HamiltonianAdjointMatching
from socft.estimators.flow.malliavin import MalliavinAdjoint
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.path import Noise, rollout
from socft.policy import AffinePolicy, FunctionPolicy
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    Noises,
    ScalarDiffusion,
    States,
    Step,
)
from socft.reward import Quadratic, Sine
from socft.sde import StateDiffusion
from socft.truth.affine_policy import evaluate_affine
from tests.support.estimator_cases import (
    IDENTITY,
    away,
    estimates,
    minus_gradient,
    paths,
    quadratic_problem,
)
from tests.support.tensors import F64
from verify.support.sampling import require_mean

STEPS = 12


def bent_noise(steps: int = 3) -> ControlProblem:
    """``B(x) = 0.5 + 0.3 sin x`` on a bent chain in one dimension."""

    def apply(k: Step, x: States, z: Noises) -> States:
        return (0.5 + 0.3 * torch.sin(x)) * z

    chain = KernelReference(
        lambda k, x: 0.9 * x + 0.2 * torch.sin(x), StateDiffusion(apply, (1,), (1,)), steps, (1,)
    )
    return ControlProblem(chain, Sine(), 0.7, lambda k, x: 0.1 * x[:, 0].square())


def control(k: Step, x: States) -> Noises:
    return 0.4 * torch.cos(1.3 * x)


def test_the_costate_is_the_gradient_of_the_simulator_with_controls_held() -> None:
    """Of the return of the steps that follow, by automatic differentiation of the simulation."""
    problem, policy = bent_noise(), FunctionPolicy(control)
    path = paths(problem, policy, count=6)
    found = HamiltonianAdjointMatching().costates(problem, policy, path)
    for k in range(problem.steps):
        x = path.states[k].clone().requires_grad_(True)
        state, total = x, torch.zeros(len(x), dtype=F64)
        for j in range(k, problem.steps):
            total = total - problem.cost(j, state)
            state = problem.reference.step(j, state, path.controls[j] + path.noise.steps[j])
        (expected,) = torch.autograd.grad((total + problem.reward(state)).sum(), x)
        assert (found.values[k] - expected).abs().max() < IDENTITY
    lean = AdjointMatching().costates(problem, policy, path)
    assert (found.values[0] - lean.values[0]).abs().max() > 0.01


def test_it_is_adjoint_matching_where_the_noise_does_not_depend_on_the_state() -> None:
    problem = quadratic_problem(noises=3)
    policy = away(problem)
    path = paths(problem, policy, count=6)
    found, lean = (
        each.label(problem, policy, path).targets
        for each in (HamiltonianAdjointMatching(), AdjointMatching())
    )
    assert (found - lean).abs().max() < IDENTITY
    assert HamiltonianAdjointMatching().estimates == FixedPointResidual(any_noise=True)


@pytest.mark.parametrize("noises", [2, 3])
@pytest.mark.parametrize("valued", [False, True])
def test_malliavin_weights_are_unbiased_for_the_objectives_gradient(
    noises: int, valued: bool
) -> None:
    """With running costs, a KL weight per step, and more noises than states."""
    problem = quadratic_problem(noises=noises)
    policy = away(problem)
    value = evaluate_affine(problem, policy).value
    baseline = ValueBaseline(value.value) if valued else NoBaseline()
    found = estimates(MalliavinAdjoint(baseline), problem, policy, paths(problem, policy))
    assert MalliavinAdjoint().estimates == ObjectiveGradient()
    require_mean(found, minus_gradient(problem, policy), 0.022)


def smooth(steps: int) -> tuple[ControlProblem, AffinePolicy]:
    chain = AffineReference([[[1 - 0.6 / steps]]] * steps, ScalarDiffusion([steps**-0.5] * steps))
    problem = ControlProblem(
        chain, Quadratic(torch.tensor([[-1.0]], dtype=F64), torch.ones(1, dtype=F64)), 1.0
    )
    return problem, AffinePolicy([[[-0.3]]] * steps, [[0.2]] * steps)


def test_the_mean_of_the_weights_has_less_spread_than_one() -> None:
    """Of the first step's target, by the number of steps; one weight alone is integration by
    parts.
    """
    problem, policy = smooth(STEPS)
    path = paths(problem, policy, count=4000)
    mean, one, exact = (
        each.label(problem, policy, path).targets[0].std()
        for each in (MalliavinAdjoint(), IntegrationByParts(), FullAdjoint())
    )
    assert exact < mean < 0.4 * one


def test_of_one_step_it_is_integration_by_parts() -> None:
    problem, policy = smooth(1)
    path = paths(problem, policy, count=10)
    found, parts = (
        each.label(problem, policy, path).targets
        for each in (MalliavinAdjoint(), IntegrationByParts())
    )
    assert torch.equal(found, parts)


class Unseen(Sine):
    """A reward that has no gradient."""

    def gradient(self, x: Tensor) -> Tensor:
        raise AssertionError


def test_no_gradient_of_the_reward_is_taken() -> None:
    problem, policy = smooth(3)
    black = ControlProblem(problem.reference, Unseen(), 1.0)
    labels = MalliavinAdjoint().label(black, policy, paths(black, policy, count=4))
    assert bool(labels.targets.isfinite().all())


def test_what_malliavin_weights_do_not_hold_for_is_refused() -> None:
    turning = bent_noise()
    with pytest.raises(InvalidProblem, match="StateDiffusion; Malliavin weights are those of"):
        MalliavinAdjoint().label(
            turning, FunctionPolicy(control), paths(turning, FunctionPolicy(control), count=4)
        )
    chain = AffineReference(
        0.9 * torch.eye(2, dtype=F64).expand(3, 2, 2), MatrixDiffusion([[[0.0], [0.5]]] * 3)
    )
    forced = ControlProblem(chain, Quadratic(-torch.eye(2, dtype=F64)), 1.0)
    policy = AffinePolicy.zeros(chain)
    with pytest.raises(InvalidProblem, match="reaches 1 of 2 directions"):
        MalliavinAdjoint().label(forced, policy, paths(forced, policy, count=4))
    with pytest.raises(InvalidProblem, match=r"BatchMean.*give an unbiased one"):
        MalliavinAdjoint(BatchMean())


def test_rollouts_agree_on_devices_of_other_precision() -> None:
    """Labels keep the dtype of the path."""
    problem, policy = smooth(3)
    noise = Noise.sample(problem.reference, 8, torch.Generator().manual_seed(0), torch.float32)
    single = policy.to(torch.float32)
    with torch.no_grad():
        path = rollout(problem.reference, single, noise)
    for estimator in (MalliavinAdjoint(), HamiltonianAdjointMatching()):
        assert estimator.label(problem, single, path).targets.dtype == torch.float32
