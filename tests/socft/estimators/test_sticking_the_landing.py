"""Sticking the landing against derivatives of the simulator, exact zeros and noise orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import backward_pass
from socft.costates.fields import GivenCostate, PolicyCostate
from socft.costates.landing import FullLanding, OwnStep, OwnStepAsIs, OwnStepByJvp, OwnStepExact
from socft.costates.martingale import FirstOrderCorrection
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import CostateEstimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.sticking_the_landing import FullStickingTheLanding, LeanStickingTheLanding
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, MatrixDiffusion, ScalarDiffusion
from socft.reward import FunctionReward, Quadratic
from socft.truth.linear_quadratic import LinearQuadratic
from tests.support.costate_cases import STEPS, quadratic_problem
from tests.support.tensors import F64, generator, randn, t

IDENTITY = 1e-12  # relative: the same products in another order
VANISHED = 1e-20  # relative variance: rounding squared
STDERRS = 4.0
SMALL = 0.02  # standard error of a mean of differences, where labels are of size one
ORDER = 0.2  # on a measured order, from the next one
LADDER = (50, 100)
LANDINGS = [
    make(own)
    for make in (LeanStickingTheLanding, FullStickingTheLanding)
    for own in (OwnStepAsIs(), OwnStepByJvp(), OwnStepExact())
]


def paths(problem: ControlProblem, policy: Policy, batch: int, seed: int) -> Path:
    noise = Noise.sample(problem.reference, batch, generator(seed))
    with torch.no_grad():
        return rollout(problem.reference, policy, noise)


def bent(k: object, x: Tensor) -> Tensor:
    return torch.sin(x) + 0.4 * x.roll(1, 1)


def breathing() -> ControlProblem:
    """Noise that depends on the state."""
    noise = MatrixDiffusion(0.5 * randn(1, STEPS, 2, 2))
    noise.apply = lambda k, x, z: z * (0.4 + 0.2 * torch.tanh(x))  # type: ignore[method-assign]
    chain = KernelReference(lambda k, x: 0.9 * x + 0.3 * torch.tanh(x.roll(1, 1)), noise, 4, (2,))
    return ControlProblem(chain, FunctionReward(lambda x: torch.sin(x).sum(1)), t(0.7, 1, 0.4, 1.1))


def scalar(steps: int) -> ControlProblem:
    """An affine chain over one unit of time."""
    chain = AffineReference([[[1 - 0.5 / steps]]] * steps, ScalarDiffusion([steps**-0.5] * steps))
    return ControlProblem(chain, Quadratic(-0.9 * torch.eye(1, dtype=F64), t(0.4)), 1.0)


@pytest.mark.parametrize("make", [quadratic_problem, breathing])
def test_full_costates_differentiate_the_return_with_fixed_noise_in_the_score(make):
    """``r - sum f - sum beta |v + xi|^2 / 2``, differentiated in the first state."""
    problem, policy = make(), FunctionPolicy(bent)
    path = paths(problem, policy, 5, 0)
    *_, first = backward_pass(FullLanding(), problem, policy, path)
    x = start = path.states[0].clone().requires_grad_(True)
    total = torch.zeros(5, dtype=F64)
    for k in range(STEPS):
        noisy = policy(k, x) + path.noise.steps[k]
        total = total - problem.cost(k, x) - problem.beta[k] * noisy.square().sum(1) / 2
        x = problem.reference.step(k, x, noisy)
    total = total + problem.reward(x)
    (exact,) = torch.autograd.grad(total.sum(), start)
    assert (first.value - exact).abs().max() < IDENTITY * exact.abs().max()


def relative_noise(estimator: CostateEstimator, truth: LinearQuadratic, batch: int = 4000) -> float:
    """Of targets at the optimum, in units of the control."""
    policy = truth.affine_policy
    path = paths(truth.problem, policy, batch, 7)
    found = estimator.label(truth.problem, policy, path).targets
    assert not found.requires_grad
    return float((found - path.controls).square().mean() / path.controls.square().mean())


@pytest.mark.parametrize(
    "problem", [quadratic_problem(), *map(scalar, (1, 5, 50))], ids=["plane", "1", "5", "50"]
)
def test_nothing_is_left_of_full_costates_with_the_exact_own_step(problem: ControlProblem):
    truth = LinearQuadratic(problem)
    assert relative_noise(FullStickingTheLanding(OwnStepExact()), truth, 200) < VANISHED
    assert relative_noise(FullStickingTheLanding(OwnStepByJvp()), truth, 200) > VANISHED


ORDERS: list[tuple[CostateEstimator, float]] = [
    (FullAdjoint(), 0),
    (AdjointMatching(), 0),
    (FullStickingTheLanding(), 1),
    (LeanStickingTheLanding(), 1),
    (LeanStickingTheLanding(OwnStepByJvp()), 2),
    (LeanStickingTheLanding(OwnStepExact()), 2),
    (FullStickingTheLanding(OwnStepByJvp()), 3),
    (MartingaleAdjoint(FirstOrderCorrection(PolicyCostate(exact=False))), 2),
    (FullMartingaleAdjoint(FirstOrderCorrection(PolicyCostate(exact=False))), 2),
]


@pytest.mark.parametrize(("estimator", "order"), ORDERS, ids=str)
def test_orders_of_the_noise_in_the_step(estimator: CostateEstimator, order: float):
    coarse, fine = (relative_noise(estimator, LinearQuadratic(scalar(T))) for T in LADDER)
    assert float(t(coarse / fine).log2()) == pytest.approx(order, abs=ORDER)


def test_full_costates_are_those_of_the_exact_first_order_correction():
    """At the optimum of a quadratic problem, path by path; the target of a step differs by its own
    noise.
    """
    truth = LinearQuadratic(quadratic_problem())
    problem, policy = truth.problem, truth.affine_policy
    path = paths(problem, policy, 50, 3)
    corrected = FullMartingaleAdjoint(FirstOrderCorrection(GivenCostate(truth.value_gradient)))
    found, expected = (
        each.costates(problem, policy, path) for each in (FullStickingTheLanding(), corrected)
    )
    assert (found.values - expected.values).abs().max() < IDENTITY * 100
    assert (found.next_costate - expected.next_costate).abs().max() > 0.1  # type: ignore[operator]


@pytest.mark.parametrize("estimator", LANDINGS, ids=str)
def test_targets_keep_their_means_at_every_policy(estimator: CostateEstimator):
    """Of products with 1, x and sin 2x; doubled increments would too, other paths' noise would
    not.
    """
    problem = quadratic_problem()
    policy = AffinePolicy(0.4 * randn(3, STEPS, 2, 2), 0.3 * randn(4, STEPS, 2))
    path = paths(problem, policy, 20000, 6)
    plain = FullAdjoint() if isinstance(estimator, FullStickingTheLanding) else AdjointMatching()
    found, expected = (each.label(problem, policy, path).targets for each in (estimator, plain))
    x = path.states[:-1]
    tests = torch.cat([torch.ones_like(x[..., :1]), x, torch.sin(2 * x)], 2)
    products = (tests.unsqueeze(3) * (found - expected).unsqueeze(2)).flatten(2)
    stderr = products.std(1) / 20000**0.5
    assert (products.mean(1).abs() / stderr.clamp(min=1e-12)).max() < STDERRS
    assert 0 < float(stderr.max()) < SMALL


@pytest.mark.parametrize("own", [OwnStepAsIs(), OwnStepByJvp(), OwnStepExact()], ids=str)
def test_without_a_control_there_is_nothing_to_subtract(own: OwnStep):
    problem = quadratic_problem()
    policy = Uncontrolled(problem.reference)
    path = paths(problem, policy, 3, 1)
    assert own.increment(problem, policy, path, 1).abs().max() == 0
    found, plain = (
        each.label(problem, policy, path).targets
        for each in (FullStickingTheLanding(own), FullAdjoint())
    )
    assert torch.equal(found, plain)


def test_the_exact_own_step_is_for_vectors():
    noise = ScalarDiffusion([0.5])
    problem = ControlProblem(
        KernelReference(lambda k, x: x, noise, 1, (2, 2)), lambda x: x.flatten(1).sum(1), 1.0
    )
    policy = Uncontrolled(problem.reference)
    with pytest.raises(InvalidProblem, match=r"states have shape \(2, 2\); the exact own step"):
        OwnStepExact().increment(problem, policy, paths(problem, policy, 2, 0), 0)
