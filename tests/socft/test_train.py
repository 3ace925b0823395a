"""The training loop: what it yields, that it reaches exact optima, is deterministic and stops
before it spoils the policy.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.measurement import observe
from socft.path import Noise, returns, rollout
from socft.pi_ft import PolicyGradient
from socft.policy import AffinePolicy, FeaturePolicy, MLPPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference, MatrixDiffusion
from socft.regression.features import RadialBasis
from socft.reward import FunctionReward, Quadratic
from socft.schedule import variance_preserving
from socft.train import fit
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from socft.truth.quadrature import Quadrature
from tests.support.tensors import F64, generator, randn, t
from toy.convergence.chains import linear_quadratic_problem
from toy.problems import fine_tuning

EXACT = 1e-13  # relative: the gradient of a mean of returns in another order
REACHED = (
    0.01  # objective gap relative to that of the start after 150 noisy steps with a decaying rate
)
FLEXIBLE = 0.03  # the same for 27 features on a sine


def plane_problem() -> ControlProblem:
    """Degenerate noise, running cost, beta per step."""
    T = 3
    reference = AffineReference(
        0.8 * torch.eye(2, dtype=F64) + 0.2 * randn(0, T, 2, 2),
        MatrixDiffusion(0.8 * randn(1, T, 2, 1)),
        0.3 * randn(2, T, 2),
    )
    return ControlProblem(
        reference,
        Quadratic(-torch.eye(2, dtype=F64), t(0.7, -0.4)),
        t(1.0, 0.7, 0.9),
        QuadraticCost(0.2 * torch.eye(2, dtype=F64)),
    )


def test_each_step_sees_minus_the_mean_gradient_of_fresh_returns():
    """The gradient handed to the optimiser, against automatic differentiation through the rollout
    of the same noise.
    """
    problem = plane_problem()
    policy = AffinePolicy(0.3 * randn(3, 3, 1, 2), 0.3 * randn(4, 3, 1))
    still = torch.optim.SGD(policy.parameters(), lr=0.0)
    iterations, gradients = [], []
    for iteration in fit(problem, policy, FullAdjoint(), still, generator(5), batch=16, steps=2):
        iterations.append(iteration)
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    stream = generator(5)
    for seen in gradients[1:]:
        path = rollout(problem.reference, policy, Noise.sample(problem.reference, 16, stream))
        expected = torch.autograd.grad(-returns(problem, path).mean(), list(policy.parameters()))
        for a, b in zip(seen, expected, strict=True):
            assert (a - b).abs().max() < EXACT * 100 * (1 + float(b.abs().max()))
    assert [i.index for i in iterations] == [0, 1, 2]
    norm = torch.cat([g.flatten() for g in gradients[2]]).norm()
    assert abs(float(iterations[2].details["gradient_norm"] - norm)) < EXACT * 100 * float(norm)
    assert all(i.policy is policy for i in iterations)


def test_the_first_iterate_is_the_policy_before_any_step():
    problem = plane_problem()
    policy = AffinePolicy.zeros(problem.reference)
    loop = fit(
        problem,
        policy,
        FullAdjoint(),
        torch.optim.SGD(policy.parameters(), lr=0.1),
        generator(0),
        batch=4,
        steps=3,
    )
    first = next(loop)
    assert (first.index, first.seconds, first.evaluations) == (0, 0.0, 0)
    assert policy.gain.detach().abs().max() == 0
    second = next(loop)
    assert second.index == 1
    assert policy.gain.detach().abs().max() > 0
    assert second.seconds > 0
    assert next(loop).evaluations == 2 * second.evaluations > 0


@pytest.mark.parametrize("estimator", [FullAdjoint(), AdjointMatching()], ids=["full", "lean"])
@pytest.mark.parametrize(
    "make", [lambda: linear_quadratic_problem(1, 3), plane_problem], ids=["line", "plane"]
)
def test_an_affine_policy_reaches_the_linear_quadratic_optimum(make, estimator: Estimator):
    problem = make()
    truth = LinearQuadratic(problem)
    method = PolicyGradient(
        lambda: AffinePolicy.zeros(problem.reference), estimator, steps=150, batch=64, rate=0.1
    )
    first, last = observe(truth, method.iterations(problem), every=150)
    assert 0 <= last.objective_gap < REACHED * first.objective_gap


def test_features_come_near_the_optimum_of_a_sine():
    truth = Quadrature(
        fine_tuning("gaussian-sine").problem(variance_preserving(3, 1.0), 1.5), nodes=(401,)
    )
    bumps = RadialBasis(torch.linspace(-3, 3, 15, dtype=F64)[:, None], 0.5)
    method = PolicyGradient(
        lambda: FeaturePolicy(bumps, torch.zeros(3, 1, 17, dtype=F64)),
        FullAdjoint(),
        120,
        64,
        rate=0.05,
    )
    first, last = observe(truth, method.iterations(truth.problem), every=120)
    assert 0 < last.objective_gap < FLEXIBLE * first.objective_gap


@pytest.mark.parametrize("estimator", [FullAdjoint(), AdjointMatching()], ids=["full", "lean"])
def test_training_is_a_function_of_its_seeds(estimator: Estimator):
    problem = plane_problem()

    def trained(seed: int) -> list[Tensor]:
        policy: Policy = MLPPolicy(problem.reference, 8, 1, generator(6))
        optimiser = torch.optim.Adam(policy.parameters(), lr=1e-2)
        for _ in fit(problem, policy, estimator, optimiser, generator(seed), batch=8, steps=5):
            pass
        return [p.detach().clone() for p in policy.parameters()]

    first, second, other = trained(7), trained(7), trained(8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_gradient_that_is_not_finite_leaves_the_last_finite_parameters():
    """The reward's slope is undefined left of -1.5, where the first paths do not go and pushed ones
    do.
    """
    reference = linear_quadratic_problem(1, 3).reference
    problem = ControlProblem(
        reference, FunctionReward(lambda x: -(x[:, 0] + 1.5).sqrt() * 30), 0.01
    )
    policy = AffinePolicy.zeros(reference)
    optimiser = torch.optim.SGD(policy.parameters(), lr=1e-3)
    kept, reached = [], 0

    def train() -> None:
        nonlocal kept, reached
        for iteration in fit(
            problem, policy, FullAdjoint(), optimiser, generator(9), batch=2, steps=200
        ):
            kept, reached = [p.detach().clone() for p in policy.parameters()], iteration.index

    with pytest.raises(
        InvalidProblem,
        match=r"the reward is nan on \d of 2 paths; it must be a finite number on every path",
    ):
        train()
    assert 0 < reached < 200
    assert all(bool(p.isfinite().all()) for p in policy.parameters())
    assert all(torch.equal(a, b.detach()) for a, b in zip(kept, policy.parameters(), strict=True))


def test_parameters_that_are_not_trained_stay_put():
    problem = plane_problem()
    policy = AffinePolicy.zeros(problem.reference)
    optimiser = torch.optim.SGD([policy.offset], lr=0.1)
    for _ in fit(problem, policy, FullAdjoint(), optimiser, generator(10), batch=4, steps=2):
        pass
    assert policy.gain.detach().abs().max() == 0
    assert policy.offset.detach().abs().max() > 0


def test_observers_between_steps_do_not_change_the_training():
    problem = plane_problem()

    def trained(watch: bool) -> Tensor:
        policy = AffinePolicy.zeros(problem.reference)
        truth = LinearQuadratic(problem)
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.05)
        for iteration in fit(
            problem, policy, FullAdjoint(), optimiser, generator(11), batch=4, steps=3
        ):
            if watch:
                assert math.isfinite(truth.evaluate(iteration.policy).objective)
                torch.randn(3)
        return policy.gain.detach().clone()

    assert torch.equal(trained(False), trained(True))
