"""Rollouts as functions of noise: recursion by hand, exact moments, common random numbers and the
parts of a return.
"""

from __future__ import annotations

import pytest
import torch

from socft.checks import InvalidProblem
from socft.path import Noise, Path, returns, rollout
from socft.policy import AffinePolicy, FunctionPolicy, MLPPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    Reference,
    ScalarDiffusion,
    at_step,
)
from socft.reward import FunctionReward, Quadratic
from socft.truth.base import simulate
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from tests.support.tensors import F64, generator, randn, t
from verify.support.sampling import STDERRS, require_mean

ROUNDING = 1e-12  # relative: a few dozen operations
SINGLE = 1e-5  # the same in float32
STEPS = 4


OSCILLATOR = AffineReference(
    t(1.0, 0.3, -0.2, 0.9).reshape(2, 2).expand(STEPS, 2, 2),
    MatrixDiffusion(0.5 * randn(0, STEPS, 2, 1)),
    0.1 * randn(1, STEPS, 2),
    t(1.0, -0.5),
    t(0.5, 0.0, 0.2, 0.3).reshape(2, 2),
)
IMAGES = KernelReference(
    lambda k, x: torch.tanh(x),
    ScalarDiffusion(t(0.5, 0.4, 0.3, 0.2)),
    STEPS,
    (3, 4, 4),
    lambda z: 1 + 2 * z,
)
REWARD = Quadratic(-torch.eye(2, dtype=F64), t(0.5, 0.1))
COST = QuadraticCost(0.3 * torch.eye(2, dtype=F64), t(0.2, 0.0))
BETA = t(0.5, 1.0, 2.0, 0.7)


def affine(reference: Reference) -> AffinePolicy:
    (m,), (n,) = reference.noise_dims, reference.dims
    return AffinePolicy(0.4 * randn(2, STEPS, m, n), 0.2 * randn(3, STEPS, m))


def test_noise_has_the_shapes_of_the_reference_and_unit_moments():
    noise = Noise.sample(OSCILLATOR, 5000, generator(4))
    assert noise.initial.shape == (5000, 2)
    assert noise.steps.shape == (STEPS, 5000, 1)
    for z in (noise.initial.flatten(), noise.steps.flatten()):
        assert abs(float(z.mean())) < STDERRS / len(z) ** 0.5
        assert abs(float(z.square().mean()) - 1) < STDERRS * (2 / len(z)) ** 0.5
    images = Noise.sample(IMAGES, 3, generator(4), torch.float32)
    assert images.initial.shape == (3, 3, 4, 4)
    assert images.steps.shape == (STEPS, 3, 3, 4, 4)
    assert images.initial.dtype == images.steps.dtype == torch.float32


@pytest.mark.parametrize("reference", [OSCILLATOR, IMAGES], ids=["vectors", "images"])
def test_the_same_seed_gives_the_same_paths_to_the_bit(reference: Reference):
    policy: Policy = Uncontrolled(reference)
    first, second, other = (
        rollout(reference, policy, Noise.sample(reference, 8, generator(s))) for s in (5, 5, 6)
    )
    assert torch.equal(first.states, second.states)
    assert not torch.equal(first.states, other.states)


def test_a_rollout_is_the_recursion_path_by_path():
    policy, noise = affine(OSCILLATOR), Noise.sample(OSCILLATOR, 3, generator(7))
    assert isinstance(OSCILLATOR.diffusion, MatrixDiffusion)
    path = rollout(OSCILLATOR, policy, noise)
    for i in range(3):
        x = t(1.0, -0.5) + t(0.5, 0.0, 0.2, 0.3).reshape(2, 2) @ noise.initial[i]
        for k in range(STEPS):
            v = policy.gain[k] @ x + policy.offset[k]
            assert (path.states[k, i] - x).abs().max() < ROUNDING
            assert (path.controls[k, i] - v).abs().max() < ROUNDING
            x = (
                OSCILLATOR.transition[k] @ x
                + OSCILLATOR.offset[k]
                + OSCILLATOR.diffusion.matrices[k] @ (v + noise.steps[k, i])
            )
        assert (path.final[i] - x).abs().max() < ROUNDING
    assert path.noise is noise
    assert path.states.shape == (STEPS + 1, 3, 2)


def test_paths_do_not_depend_on_the_rest_of_the_batch():
    policy, noise = affine(OSCILLATOR), Noise.sample(OSCILLATOR, 6, generator(8))
    rows = torch.tensor([4, 1])
    part = rollout(OSCILLATOR, policy, Noise(noise.initial[rows], noise.steps[:, rows]))
    assert (rollout(OSCILLATOR, policy, noise).states[:, rows] - part.states).abs().max() < ROUNDING


def test_simulated_moments_are_the_exact_ones():
    problem = ControlProblem(OSCILLATOR, REWARD, BETA, COST)
    policy = affine(OSCILLATOR)
    exact = LinearQuadratic(problem).evaluate(policy)
    with torch.no_grad():
        path = rollout(OSCILLATOR, policy, Noise.sample(OSCILLATOR, 20000, generator(9)))
    for k in range(STEPS + 1):
        x = path.states[k]
        require_mean(x, exact.mean[k], 0.012)
        products = (x - exact.mean[k]).unsqueeze(2) * (x - exact.mean[k]).unsqueeze(1)
        require_mean(products, exact.covariance[k], 0.026)
    require_mean(path.kl().T, exact.kl, 0.004)
    require_mean(returns(problem, path), exact.objective, 0.041)
    found = simulate(problem, policy, path.noise).objective
    assert abs(found - float(returns(problem, path).mean())) < ROUNDING


def test_antithetic_paths_mirror_the_noise_of_the_steps_only():
    """So the mean of a pair of affine paths is the path without noise, whatever the draws."""
    policy, noise = affine(OSCILLATOR), Noise.sample(OSCILLATOR, 5, generator(10))
    mirror = noise.antithetic()
    assert mirror.initial is noise.initial
    quiet = Noise(noise.initial, torch.zeros_like(noise.steps))
    with torch.no_grad():
        first, second, still = (
            rollout(OSCILLATOR, policy, z).states for z in (noise, mirror, quiet)
        )
    assert ((first + second) / 2 - still).abs().max() < ROUNDING
    assert (first - still).abs().max() > 0.1
    assert torch.equal(mirror.antithetic().steps, noise.steps)


@pytest.mark.parametrize("running", [False, True])
def test_a_return_is_the_reward_minus_costs_minus_weighted_divergence(running: bool):
    problem = ControlProblem(OSCILLATOR, REWARD, BETA, COST if running else None)
    with torch.no_grad():
        path = rollout(OSCILLATOR, affine(OSCILLATOR), Noise.sample(OSCILLATOR, 5, generator(11)))
        total = returns(problem, path)
    for i in range(5):
        x = path.states[:, i]
        by_hand = -x[-1].square().sum() / 2 + t(0.5, 0.1) @ x[-1]
        for k in range(STEPS):
            by_hand = by_hand - BETA[k] * path.controls[k, i].square().sum() / 2
            if running:
                by_hand = by_hand - (0.15 * x[k].square().sum() + 0.2 * x[k, 0])
        assert abs(float(total[i] - by_hand)) < ROUNDING * (1 + abs(float(by_hand)))


def test_the_divergence_of_images_sums_over_all_their_entries():
    policy = FunctionPolicy(lambda k, x: x * at_step(t(0.1, 0.2, 0.3, 0.4), k, x))
    path = rollout(IMAGES, policy, Noise.sample(IMAGES, 2, generator(12)))
    for k in range(STEPS):
        for i in range(2):
            assert (
                abs(float(path.kl()[k, i] - (path.controls[k, i] ** 2).sum() / 2)) < ROUNDING * 100
            )
    assert path.kl().shape == (STEPS, 2)


def test_single_precision_stays_single_and_agrees():
    problem = ControlProblem(
        IMAGES,
        FunctionReward(lambda x: x.flatten(1).mean(1)),
        BETA,
        lambda k, x: x.flatten(1).square().mean(1),
    )
    policy = FunctionPolicy(lambda k, x: 0.1 * x)
    noise = Noise.sample(IMAGES, 4, generator(13))
    double = rollout(IMAGES, policy, noise)
    single = rollout(IMAGES, policy, Noise(noise.initial.float(), noise.steps.float()))
    assert single.states.dtype == single.controls.dtype == single.kl().dtype == torch.float32
    assert returns(problem, single).dtype == torch.float32
    assert (single.states - double.states).abs().max() < SINGLE * 10
    assert (returns(problem, single) - returns(problem, double)).abs().max() < SINGLE * 10


def test_rollouts_are_differentiable_in_parameters_and_noise_when_asked():
    policy = MLPPolicy(OSCILLATOR, 4, 1, generator(14))
    noise = Noise.sample(OSCILLATOR, 3, generator(15))
    assert rollout(OSCILLATOR, policy, noise).final.requires_grad
    with torch.no_grad():
        assert not rollout(OSCILLATOR, policy, noise).final.requires_grad
    start = noise.initial.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(
        rollout(OSCILLATOR, Uncontrolled(OSCILLATOR), Noise(start, noise.steps)).final.sum(), start
    )
    through = torch.linalg.multi_dot([*OSCILLATOR.transition.flip(0), OSCILLATOR.initial_factor])
    assert (slope - through.sum(0)).abs().max() < ROUNDING


def test_simulated_evaluations_report_their_standard_error():
    problem = ControlProblem(OSCILLATOR, REWARD, BETA, COST)
    policy, exact = (
        affine(OSCILLATOR),
        LinearQuadratic(problem).evaluate(affine(OSCILLATOR)).objective,
    )
    scores = []
    for seed in range(40):
        found = simulate(problem, policy, Noise.sample(OSCILLATOR, 500, generator(100 + seed)))
        scores.append((found.objective - exact) / found.stderr)
    spread = torch.tensor(scores, dtype=F64).square().mean()
    assert abs(float(spread) - 1) < STDERRS * (2 / 40) ** 0.5


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("initial", "steps"),
    [
        ((3, 1), (STEPS, 3, 1)),
        ((3, 2), (STEPS - 1, 3, 1)),
        ((3, 2), (STEPS, 2, 1)),
        ((3, 2), (STEPS, 3, 2)),
        ((3, 2, 1), (STEPS, 3, 1)),
    ],
)
def test_noise_of_another_shape_is_refused_with_the_right_one(initial: tuple, steps: tuple):
    noise = Noise(torch.zeros(initial, dtype=F64), torch.zeros(steps, dtype=F64))
    with pytest.raises(
        InvalidProblem,
        match=r"noise has shapes .*; this reference needs \(batch, 2\) and \(4, 3, 1\)",
    ):
        rollout(OSCILLATOR, Uncontrolled(OSCILLATOR), noise)


def test_no_paths_are_refused():
    with pytest.raises(InvalidProblem, match="batch = 0; give a whole number that is at least 1"):
        Noise.sample(OSCILLATOR, 0, generator(0))


def test_a_path_keeps_what_made_it():
    noise = Noise.sample(OSCILLATOR, 2, generator(16))
    path = rollout(OSCILLATOR, Uncontrolled(OSCILLATOR), noise)
    assert isinstance(path, Path)
    assert torch.equal(path.final, path.states[-1])
    assert path.kl().abs().max() == 0


@pytest.mark.refusal
def test_noise_is_that_of_a_batch_of_paths():
    for initial, steps, name in (
        (torch.zeros(2), torch.zeros(3, 2, 1), "initial"),
        (torch.zeros(2, 1), torch.zeros(3, 2), "steps"),
        (torch.zeros(2, 1, dtype=torch.long), torch.zeros(3, 2, 1), "initial"),
    ):
        with pytest.raises(InvalidProblem, match=f"{name} is a tensor of .*; give floating-point"):
            Noise(initial, steps)
