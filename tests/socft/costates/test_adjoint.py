"""Adjoints and matching estimators against automatic differentiation of the rollout, finite
differences and exact gradients.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from socft.costates.adjoint import full_adjoint, lean_adjoint
from socft.costates.base import CostateStep
from socft.density import Gaussian, affine_reference
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator, matching_labels
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, returns, rollout
from socft.policy import (
    AffinePolicy,
    FeaturePolicy,
    FunctionPolicy,
    Policy,
    ResidualPolicy,
    ScaledPolicy,
)
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    Diffusion,
    KernelReference,
    MatrixDiffusion,
    Reference,
    ScalarDiffusion,
    Step,
)
from socft.regression.features import Polynomial, RadialBasis
from socft.reward import FunctionReward, Quadratic
from socft.schedule import ddpm, linear_levels, subsample, variance_preserving
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from socft.truth.quadrature import Quadrature
from tests.support.costate_cases import network_policy
from tests.support.tensors import F64, generator, randn, t
from toy.problems import fine_tuning
from verify.support.sampling import STDERRS, require_mean

IDENTITY = 1e-12  # relative: the same products in another order
DIFFERENCE = 1e-8  # relative: central differences at step 1e-5
ENVELOPE = 1e-9  # values at the nodes of a resolved problem
STEPS, PATHS = 4, 6


def curved_mean(k, x: Tensor) -> Tensor:
    time = (k if isinstance(k, int) else k.to(x).unsqueeze(1)) / STEPS
    return 0.9 * x + 0.3 * torch.tanh(x.roll(1, 1)) * (1 + time)


def curved_cost(k, x: Tensor) -> Tensor:
    time = k if isinstance(k, int) else k.to(x)
    return 0.1 * x.square().sum(1) + 0.2 * torch.sin(x[:, 0]) * (1 + time)


def curved_reward(x: Tensor) -> Tensor:
    return torch.sin(x).sum(1) - 0.3 * x.pow(2).sum(1) * x[:, 0].cos()


class Breathing(Diffusion):
    """Noise whose scale moves with the state, ``B(x) = diag(0.4 + 0.2 tanh x)``."""

    def apply(self, k: Step, x: Tensor, z: Tensor) -> Tensor:
        return (0.4 + 0.2 * torch.tanh(x)) * z

    def transpose(self, k: Step, x: Tensor, a: Tensor) -> Tensor:
        return self.apply(k, x, a)

    def whiten(self, k: Step, x: Tensor, shift: Tensor) -> Tensor:
        return shift / (0.4 + 0.2 * torch.tanh(x))

    def solve_transpose(self, k: Step, x: Tensor, z: Tensor) -> Tensor:
        return self.whiten(k, x, z)

    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        return dims


REFERENCES: dict[str, Reference] = {
    "scalar": KernelReference(curved_mean, ScalarDiffusion(t(0.7, 0.5, 0.4, 0.2)), STEPS, (2,)),
    "more noise than states": KernelReference(
        curved_mean, MatrixDiffusion(0.5 * randn(0, STEPS, 2, 3)), STEPS, (2,)
    ),
    "noise that moves with the state": KernelReference(curved_mean, Breathing(), STEPS, (2,)),
    "degenerate": KernelReference(
        curved_mean,
        MatrixDiffusion(0.5 * randn(1, STEPS, 2, 1)),
        STEPS,
        (2,),
        lambda z: 1 + 0.5 * z,
    ),
}


def problem_on(reference: Reference, running: bool) -> ControlProblem:
    return ControlProblem(
        reference,
        FunctionReward(curved_reward),
        t(0.7, 1.5, 0.4, 1.1),
        curved_cost if running else None,
    )


def affine_policy(reference: Reference) -> Policy:
    (m,), (n,) = reference.noise_dims, reference.dims
    return AffinePolicy(0.4 * randn(2, STEPS, m, n), 0.3 * randn(3, STEPS, m))


def feature_policy(reference: Reference) -> Policy:
    (m,) = reference.noise_dims
    bumps = RadialBasis(randn(6, 5, 2), 0.8)
    return FeaturePolicy(bumps, 0.3 * randn(7, STEPS, m, 8))


class FineTuned(torch.nn.Module):
    """The reference's mean with trained corrections."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(0.2 * randn(8, 2, 2))

    def forward(self, k, x: Tensor) -> Tensor:
        return curved_mean(k, x) + torch.tanh(x @ self.weight)


def residual_policy(reference: Reference) -> Policy:
    return ResidualPolicy(reference, FineTuned())


def scaled_policy(reference: Reference) -> Policy:
    return ScaledPolicy(affine_policy(reference), t(0.5, 1.0, 0.0, 2.0))


POLICIES: dict[str, Callable[[Reference], Policy]] = {
    "affine": affine_policy,
    "network": network_policy,
    "features": feature_policy,
    "residual": residual_policy,
    "scaled": scaled_policy,
}


def estimate(
    estimator: Estimator, problem: ControlProblem, policy: Policy, noise: Noise
) -> list[Tensor]:
    """Minus the gradient of the summed loss over all steps and paths in one batch."""
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
        labels = estimator.label(problem, policy, path)
    assert not labels.targets.requires_grad
    k, sample = labels.pairs()
    loss = estimator.loss(problem, policy, k, labels.rows(k, sample))
    return [-g for g in torch.autograd.grad(loss.sum(), list(policy.parameters()))]


def pathwise(problem: ControlProblem, policy: Policy, noise: Noise) -> list[Tensor]:
    """The gradient of the summed returns through the simulator."""
    path = rollout(problem.reference, policy, noise)
    return list(torch.autograd.grad(returns(problem, path).sum(), list(policy.parameters())))


@pytest.mark.parametrize("running", [False, True], ids=["", "running cost"])
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_full_adjoint_is_the_derivative_of_the_simulator(
    policy: str, reference: str, running: bool
):
    problem = problem_on(REFERENCES[reference], running)
    chosen = POLICIES[policy](problem.reference)
    noise = Noise.sample(problem.reference, PATHS, generator(9))
    found, expected = (
        estimate(FullAdjoint(), problem, chosen, noise),
        pathwise(problem, chosen, noise),
    )
    assert len(found) == len(expected) > 0
    largest = max(float(g.abs().max()) for g in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < IDENTITY * largest
    assert largest > 1e-2


def test_the_lean_adjoint_is_another_direction_away_from_the_optimum():
    """The failing twin: without the policy's state dependence the identity above is off by far more
    than rounding.
    """
    problem = problem_on(REFERENCES["scalar"], running=True)
    policy, noise = (
        affine_policy(problem.reference),
        Noise.sample(problem.reference, PATHS, generator(9)),
    )
    found, expected = (
        torch.cat([g.flatten() for g in gradient])
        for gradient in (
            estimate(AdjointMatching(), problem, policy, noise),
            pathwise(problem, policy, noise),
        )
    )
    assert (found - expected).norm() > 0.05 * expected.norm()


def test_the_loss_on_one_step_is_its_share_of_the_loss_on_all():
    problem = problem_on(REFERENCES["degenerate"], running=True)
    policy, noise = (
        network_policy(problem.reference),
        Noise.sample(problem.reference, PATHS, generator(10)),
    )
    estimator = FullAdjoint()
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
        labels = estimator.label(problem, policy, path)
    k, sample = labels.pairs()
    together = estimator.loss(problem, policy, k, labels.rows(k, sample)).reshape(STEPS, PATHS)
    for i in range(STEPS):
        single = estimator.loss(problem, policy, i, labels.step(i))
        assert (single - together[i]).abs().max() < IDENTITY * together[i].abs().max()
        v = policy(i, labels.states[i])
        by_hand = problem.beta[i] / 2 * ((v - labels.targets[i]) ** 2).sum(1)
        assert (single - by_hand).abs().max() < IDENTITY * by_hand.max()


def controlled(reference: str, seed: int) -> tuple[ControlProblem, Policy, Noise]:
    """A problem with a running cost, an affine policy, and noise."""
    problem = problem_on(REFERENCES[reference], running=True)
    noise = Noise.sample(problem.reference, PATHS, generator(seed))
    return problem, affine_policy(problem.reference), noise


@pytest.mark.parametrize("reference", REFERENCES)
def test_full_costates_are_differences_of_the_remaining_return(reference: str):
    """Central differences of the return of the same noise from a moved state at each step."""
    problem, policy, noise = controlled(reference, 11)
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
        costates = full_adjoint(problem, policy, path)
        direction, h = randn(12, PATHS, 2), 1e-5

        def remaining(k: int, x: Tensor) -> Tensor:
            total = torch.zeros(PATHS, dtype=F64)
            for i in range(k, STEPS):
                v = policy(i, x)
                total -= problem.beta[i] * v.square().sum(1) / 2 + curved_cost(i, x)
                x = problem.reference.step(i, x, v + noise.steps[i])
            return total + problem.reward(x)

        for k in range(STEPS + 1):
            x = path.states[k]
            slope = (remaining(k, x + h * direction) - remaining(k, x - h * direction)) / (2 * h)
            assert (slope - (costates[k] * direction).sum(1)).abs().max() < DIFFERENCE * (
                1 + float(slope.abs().max())
            )


@pytest.mark.parametrize("reference", ["scalar", "more noise than states", "degenerate"])
def test_lean_costates_are_full_ones_with_the_controls_frozen(reference: str):
    problem, policy, noise = controlled(reference, 13)
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
    frozen = FunctionPolicy(lambda k, x: path.controls[k])
    start = noise.initial.clone().requires_grad_(True)
    replay = rollout(problem.reference, frozen, Noise(start, noise.steps))
    assert torch.equal(replay.states, path.states)
    (slope,) = torch.autograd.grad(returns(problem, replay).sum(), start)
    lean = lean_adjoint(problem, path)
    moved = torch.autograd.grad(problem.reference.initial(start).sum(), start)[
        0
    ]  # the initial map is affine and acts entrywise
    assert (lean[0] * moved - slope).abs().max() < IDENTITY * float(slope.abs().max())
    assert (lean - full_adjoint(problem, frozen, path)).abs().max() < IDENTITY * float(
        lean.abs().max()
    )


def test_targets_are_the_next_costates_seen_through_the_noise():
    problem = problem_on(REFERENCES["degenerate"], running=False)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    path = rollout(
        problem.reference,
        affine_policy(problem.reference),
        Noise.sample(problem.reference, PATHS, generator(14)),
    )
    costates = randn(15, STEPS + 1, PATHS, 2)
    given = [
        CostateStep(k, path.states[k], costates[k], costates[k + 1] if k < STEPS else None)
        for k in range(STEPS + 1)
    ]
    targets = matching_labels(problem, path, given).targets
    for k in range(STEPS):
        by_hand = costates[k + 1] @ problem.reference.diffusion.matrices[k] / problem.beta[k]
        assert (targets[k] - by_hand).abs().max() < IDENTITY * 10


def test_adjoints_of_images_in_single_precision():
    """``batch *dims`` with dims = (3, 4, 4); the linear chain has the closed-form lean costate a_k
    = 0.9^(T - k) w.
    """
    reference = KernelReference(
        lambda k, x: 0.9 * x, ScalarDiffusion(t(0.5, 0.4, 0.3)), 3, (3, 4, 4)
    )
    w = randn(16, 3, 4, 4)
    problem = ControlProblem(
        reference, FunctionReward(lambda x: (x * w.to(x)).flatten(1).sum(1)), 2.0
    )
    noise = Noise.sample(reference, 5, generator(17), torch.float32)
    scale = torch.nn.Parameter(torch.tensor(0.1))
    policy = FunctionPolicy(lambda k, x: scale * x)
    path = rollout(reference, policy, noise)
    lean, full = lean_adjoint(problem, path), full_adjoint(problem, policy, path)
    assert lean.dtype == full.dtype == torch.float32
    assert lean.shape == full.shape == (4, 5, 3, 4, 4)
    for k in range(4):
        assert (lean[k] - 0.9 ** (3 - k) * w).abs().max() < 1e-5  # float32
    target = AdjointMatching().label(problem, policy, path).targets
    sigma = t(0.5, 0.4, 0.3)
    assert (
        target - (sigma * 0.9 ** t(2.0, 1.0, 0.0) / 2).reshape(3, 1, 1, 1, 1) * w
    ).abs().max() < 1e-5


@functools.cache
def linear_quadratic() -> LinearQuadratic:
    """Two-dimensional, degenerate noise, running cost, beta per step."""
    n, m, T = 2, 1, 4
    reference = AffineReference(
        0.8 * torch.eye(n, dtype=F64) + 0.2 * randn(20, T, n, n),
        MatrixDiffusion(0.6 * randn(21, T, n, m)),
        0.3 * randn(22, T, n),
    )
    cost = QuadraticCost(0.2 * torch.eye(n, dtype=F64), t(0.1, -0.2))
    reward = Quadratic(t(-0.8, 0.2, 0.2, -0.5).reshape(2, 2), t(0.7, -0.4))
    return LinearQuadratic(ControlProblem(reference, reward, t(1.0, 0.7, 0.9, 1.2), cost))


def scores(samples: Tensor) -> Tensor:
    """Means of samples (batch, ...) in standard errors."""
    return samples.mean(0) / (samples.std(0) / len(samples) ** 0.5)


def moments_of_residual(
    truth, estimator: Estimator, policy: Policy, paths: int, seed: int
) -> list[Tensor]:
    """(target - policy) (1, x) per path and step, the gradient of a matching loss in an affine
    policy over beta.
    """
    noise = Noise.sample(truth.problem.reference, paths, generator(seed))
    with torch.no_grad():
        path = rollout(truth.problem.reference, policy, noise)
        labels = estimator.label(truth.problem, policy, path)
        ones = torch.ones(truth.problem.steps, paths, 1, dtype=F64)
        basis = torch.cat([ones, labels.states], 2)
        return list(
            ((labels.targets - path.controls).unsqueeze(-1) * basis.unsqueeze(2)).flatten(2)
        )


@pytest.mark.parametrize("estimator", [AdjointMatching(), FullAdjoint()], ids=["lean", "full"])
def test_the_optimum_is_a_fixed_point_in_the_linear_quadratic_problem(estimator: Estimator):
    truth = linear_quadratic()
    for samples in moments_of_residual(truth, estimator, truth.policy, 20000, 23):
        require_mean(samples, 0.0, 0.016)


@pytest.mark.parametrize("estimator", [AdjointMatching(), FullAdjoint()], ids=["lean", "full"])
def test_the_optimum_is_a_fixed_point_for_a_mixture_and_a_bounded_reward(estimator: Estimator):
    truth = Quadrature(
        fine_tuning("mixture-huber").problem(ddpm(subsample(linear_levels(1000), 4)), 1.0)
    )
    for samples in moments_of_residual(truth, estimator, truth.policy, 20000, 24):
        require_mean(samples, 0.0, 0.0052)


def affine_directions(truth: LinearQuadratic, policy: AffinePolicy) -> list[Tensor]:
    exact = truth.gradient(policy)
    return [
        torch.cat([exact.offset[k, :, None], exact.gain[k]], 1).flatten() / truth.problem.beta[k]
        for k in range(truth.problem.steps)
    ]


def test_away_from_the_optimum_only_the_full_adjoint_estimates_the_objectives_gradient():
    truth = linear_quadratic()
    policy = AffinePolicy(0.5 * randn(25, 4, 1, 2), 0.5 * randn(26, 4, 1))
    exact = affine_directions(truth, policy)
    full = moments_of_residual(truth, FullAdjoint(), policy, 20000, 27)
    lean = moments_of_residual(truth, AdjointMatching(), policy, 20000, 27)
    for samples, expected in zip(full, exact, strict=True):
        require_mean(samples, expected, 0.034)
    assert (
        max(float(scores(s - e).abs().max()) for s, e in zip(lean, exact, strict=True))
        > 5 * STDERRS
    )


def test_at_zero_control_lean_and_full_agree_on_every_path_of_a_policy_without_state_dependence():
    """There the frozen policy is the policy; with a gain, as in the test above, it is not."""
    problem = problem_on(REFERENCES["scalar"], running=True)
    path = rollout(
        problem.reference,
        AffinePolicy.zeros(problem.reference),
        Noise.sample(problem.reference, PATHS, generator(28)),
    )
    policy = AffinePolicy.zeros(problem.reference)
    assert torch.equal(
        AdjointMatching().label(problem, policy, path).targets,
        FullAdjoint().label(problem, policy, path).targets,
    )


def test_the_expected_targets_at_zero_control_are_not_the_optimum():
    truth = linear_quadratic()
    policy = AffinePolicy.zeros(truth.problem.reference)
    noise = Noise.sample(truth.problem.reference, 20000, generator(29))
    with torch.no_grad():
        path = rollout(truth.problem.reference, policy, noise)
        labels = AdjointMatching().label(truth.problem, policy, path)
    off = [
        float(scores(labels.targets[k] - truth.control(k, labels.states[k])).abs().max())
        for k in range(4)
    ]
    assert max(off) > 5 * STDERRS


@pytest.mark.parametrize("name", ["gaussian-sine", "mixture-huber"])
def test_the_envelope_identity_links_successive_value_gradients(name: str):
    """grad V_k(y) = (d m_k)' E grad V_{k+1}(m_k(y) + B_k (v*_k(y) + W)) (equation 34), by
    Gauss-Legendre on nine deviations.
    """
    truth = Quadrature(fine_tuning(name).problem(ddpm(subsample(linear_levels(1000), 3)), 2.0))
    problem = truth.problem
    node, weight = np.polynomial.legendre.leggauss(200)
    w = torch.from_numpy(9 * node)[:, None]
    density = torch.from_numpy(9 * weight / math.sqrt(2 * math.pi)) * torch.exp(
        -w[:, 0].square() / 2
    )
    for k in range(3):
        for y in truth.points(k)[::40]:
            x = y[None].clone().requires_grad_(True)
            v = truth.control(k, x.detach())
            pushed = problem.reference.step(k, x.detach().expand(len(w), 1), v + w)
            next_costate = (
                problem.reward.gradient(pushed) if k == 2 else truth.value_gradient(k + 1, pushed)
            )
            (slope,) = torch.autograd.grad(problem.reference.mean(k, x).sum(), x)
            assert (
                abs(
                    float(
                        slope[0, 0] * (density @ next_costate[:, 0])
                        - truth.value_gradient(k, y[None])[0, 0]
                    )
                )
                < ENVELOPE
            )


def test_a_grid_policy_is_differentiated_like_any_other():
    """The optimal control of a quadrature, also where a path leaves its grid."""
    schedule = variance_preserving(3, 1.0)
    problem = ControlProblem(
        affine_reference(Gaussian(t(0.5), t(0.5)[:, None]), schedule),
        Quadratic(t(-1.0)[:, None]),
        1.0,
    )
    truth = Quadrature(problem, nodes=(201,))
    noise = Noise(t(0.3, -1.2, 15.0)[:, None], randn(30, 3, 3, 1))
    path = rollout(problem.reference, truth.policy, noise)
    found = full_adjoint(problem, truth.policy, path)
    exact = full_adjoint(problem, LinearQuadratic(problem).affine_policy, path)
    assert bool((path.states[0] > truth.grids[0].upper).any())
    assert (found - exact).abs().max() < ENVELOPE * 15


def test_fixed_point_labels_do_not_depend_on_the_policy_except_through_the_path():
    problem = problem_on(REFERENCES["scalar"], running=False)
    path = rollout(
        problem.reference,
        affine_policy(problem.reference),
        Noise.sample(problem.reference, PATHS, generator(31)),
    )
    first, second = (
        AdjointMatching().label(problem, make(problem.reference), path)
        for make in (affine_policy, network_policy)
    )
    assert torch.equal(first.targets, second.targets)
    assert first.states.shape == (STEPS, PATHS, 2)
    assert torch.equal(first.states, path.states[:-1])


def test_polynomial_features_of_degree_one_make_the_affine_policy():
    reference = REFERENCES["degenerate"]
    affine = affine_policy(reference)
    assert isinstance(affine, AffinePolicy)
    same = FeaturePolicy(
        Polynomial(1), torch.cat([affine.offset.detach().unsqueeze(2), affine.gain.detach()], 2)
    )
    x = randn(32, 7, 2)
    for k in range(STEPS):
        assert (same(k, x) - affine(k, x)).abs().max() < IDENTITY * 10
