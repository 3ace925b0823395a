"""Methods along the path of a flow's own velocity: their published losses, the optimum without
noise, and that it is no tilt.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.fields import GivenCostate
from socft.costates.regression import StepwiseRegression
from socft.density import Gaussian, GaussianMixture
from socft.estimators.estimand import EquationResidual, FixedPointEquation
from socft.estimators.flow.deterministic_adjoint import DeterministicAdjointMatching
from socft.estimators.flow.look_ahead import (
    LookAheadCostate,
    LookAheadResidual,
    signal_share,
    squared_signal,
    unweighted,
)
from socft.estimators.flow.ode import ode_costates, ode_states
from socft.estimators.flow.vgg_flow import VGGFlow
from socft.flow import FlowReference, flow_ddim, flow_reference, flow_sde, uniform_times
from socft.policy import AffinePolicy, FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion, affine_coefficients
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.reward import FunctionReward, Linear
from socft.truth.linear_quadratic import LinearQuadratic
from tests.support.estimator_cases import paths, quadratic_problem
from tests.support.flow_cases import GaussianFlow, as_policy
from tests.support.tensors import F64, randn

LAM, FEW, DIM, STEPS = 0.8, 6, 2, 4
ROUNDING = 1e-11  # relative: the same numbers by another way
LAW = GaussianMixture([0.7, 0.3], [[-1.5, 0.2], [1.5, 0.0]], [0.16, 0.4])
BENT = FunctionPolicy(lambda k, x: 0.3 * torch.cos(x))
AFFINE = StepwiseRegression(LinearRegression(Polynomial(1)))


def bent() -> ControlProblem:
    """A mixture's flow in two dimensions, with KL weights that do not matter."""
    chain = flow_reference(LAW, flow_sde(uniform_times(STEPS, last=0.1), 0.7))
    reward = FunctionReward(lambda x: torch.sin(x).sum(1) + 0.3 * x[:, 0] * x[:, 1])
    return ControlProblem(chain, reward, [0.4, 0.7, 0.3, 1.2])


def flow_of(problem: ControlProblem) -> FlowReference:
    assert isinstance(problem.reference, FlowReference)
    return problem.reference


def change(problem: ControlProblem, policy: Policy, k: int, x: Tensor) -> Tensor:
    """``u - u_0``."""
    chain = flow_of(problem)
    return chain.velocity_of(k, x, policy(k, x)) - chain.velocity(k, x)


def close(found: Tensor, expected: Tensor, rounding: float = ROUNDING) -> bool:
    return bool((found - expected).abs().max() <= rounding * expected.abs().max())


def test_the_path_is_that_of_the_policys_velocity() -> None:
    problem = bent()
    chain, start = flow_of(problem), randn(0, FEW, DIM)
    states = ode_states(problem, BENT, start)
    for k in range(STEPS):
        velocity = chain.velocity_of(k, states[k], BENT(k, states[k]))
        step = chain.schedule.times[k + 1] - chain.schedule.times[k]
        assert close(states[k + 1], states[k] + step * velocity)


def test_the_costate_is_the_gradient_of_the_end_with_controls_held() -> None:
    problem = bent()
    chain, dt = flow_of(problem), flow_of(problem).schedule.times.diff()
    found = ode_costates(problem, BENT, randn(0, FEW, DIM), STEPS)
    held = [change(problem, BENT, k, x) for k, x in enumerate(found.states[:-1])]
    for k in range(STEPS + 1):
        x = found.states[k].clone().requires_grad_(True)
        state = x
        for j in range(k, STEPS):
            state = state + dt[j] * (chain.velocity(j, state) + held[j])
        (expected,) = torch.autograd.grad(problem.reward(state).sum(), x)
        assert close(found.values[k], expected)


def test_deterministic_adjoint_matching_is_the_regression_of_velocities() -> None:
    problem = bent()
    path = paths(problem, BENT, count=FEW)
    method = DeterministicAdjointMatching(LAM)
    labels = method.label(problem, BENT, path)
    costates = ode_costates(problem, BENT, path.states[0], STEPS)
    other = FunctionPolicy(lambda k, x: torch.sin(2 * x))
    for k in range(STEPS):
        away = change(problem, other, k, labels.states[k]) + costates.values[k + 1] / LAM
        assert close(method.loss(problem, other, k, labels.step(k)), away.square().sum(1))
    assert method.estimates == EquationResidual(FixedPointEquation.DETERMINISTIC)


def test_truncated_it_has_labels_for_the_last_steps_alone() -> None:
    problem = bent()
    path = paths(problem, BENT, count=FEW)
    whole, last = (
        DeterministicAdjointMatching(LAM, last=n).label(problem, BENT, path) for n in (None, 2)
    )
    assert torch.equal(last.targets[2:], whole.targets[2:])
    assert last.weights is not None
    assert bool((last.weights[:2] == 0).all())
    assert bool((last.weights[2:] > 0).all())


def gaussian(steps: int = STEPS, **options: float) -> GaussianFlow:
    return GaussianFlow(flow_sde(uniform_times(steps, last=0.1), 0.9), **options)


def best_without_noise(case: GaussianFlow, lam: float) -> tuple[AffinePolicy, LinearQuadratic]:
    """The optimal velocity by Riccati, as a control, and the problem in which it is one.

    ``dt (u - u_0) = B w`` with ``B = (|dt| / lam)^(1/2)`` costs ``|w|^2 / 2``; gains of a quadratic
    problem do not depend on the noise.
    """
    chain, dt = flow_of(case.problem()), case.schedule.times.diff()
    slope, offset = affine_coefficients(chain.velocity, case.schedule.steps, 1)
    push = (-dt / lam).sqrt()
    still = AffineReference(
        1 + dt[:, None, None] * slope, ScalarDiffusion(push), dt[:, None] * offset
    )
    truth = LinearQuadratic(ControlProblem(still, case.reward, 1.0))
    x = torch.zeros(1, 1, dtype=F64)
    unit = torch.stack([chain.velocity_unit(k, x) for k in range(case.schedule.steps)])
    scale = push / dt / unit
    best = truth.affine_policy
    return (
        as_policy(
            list(scale * best.gain[:, 0, 0].detach()), list(scale * best.offset[:, 0].detach())
        ),
        truth,
    )


def test_it_vanishes_at_the_optimum_without_noise() -> None:
    """For every start, to rounding; not at the chain's optimum, whatever its KL weight."""
    case = gaussian()
    problem = case.problem()
    best, _ = best_without_noise(case, LAM)
    path = paths(problem, best, count=FEW)
    labels = DeterministicAdjointMatching(LAM).label(problem, best, path)
    controls = torch.stack([best(k, x) for k, x in enumerate(labels.states)]).detach()
    assert close(labels.targets, controls, 1e-9)
    apart = []
    for beta in torch.logspace(-1, 1, 21, dtype=F64):
        stochastic = LinearQuadratic(case.affine(float(beta))).affine_policy
        found = DeterministicAdjointMatching(LAM).label(problem, stochastic, path)
        taken = torch.stack([stochastic(k, x) for k, x in enumerate(found.states)]).detach()
        apart.append(float((found.targets - taken).norm() / taken.norm()))
    assert min(apart) > 0.1


def test_it_is_the_optimum_of_the_price_of_velocities() -> None:
    """By automatic differentiation of reward and price along the path, where a control is free at
    every start.
    """
    case = gaussian()
    problem, (best, _) = case.problem(), best_without_noise(gaussian(), LAM)
    chain, dt = flow_of(problem), case.schedule.times.diff()
    start = randn(3, FEW, 1)
    states = ode_states(problem, best, start).detach()
    held = torch.stack([change(problem, best, k, x) for k, x in enumerate(states[:-1])]).detach()
    held.requires_grad_(True)
    state = start
    for k in range(STEPS):
        state = state + dt[k] * (chain.velocity(k, state) + held[k])
    price = LAM / 2 * (-dt[:, None, None] * held.square()).sum()
    (slope,) = torch.autograd.grad(problem.reward(state).sum() - price, held)
    assert float(slope.abs().max()) < 1e-10


def test_on_gaussians_it_moves_the_mean_by_the_root_of_the_variance_and_nothing_else() -> None:
    """(pi / 2) S^(1/2) g / lambda up to O(dt) from pure noise to data, for two variances; the tilt
    moves it by S g / b.
    """
    slope = 0.7
    for variance in (0.3, 2.0):
        errors, spreads = [], []
        for steps in (16, 32, 64):
            chain = flow_reference(
                Gaussian(0.4, variance), flow_sde(uniform_times(steps), noise_level=0.7)
            )
            problem = ControlProblem(chain, Linear(torch.tensor([slope], dtype=F64)), 1.0)
            start = torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64)
            before = ode_states(problem, Uncontrolled(chain), start)[-1]
            targets = (
                DeterministicAdjointMatching(LAM)
                .label(problem, Uncontrolled(chain), paths(problem, Uncontrolled(chain), count=2))
                .targets
            )  # of the first path: costates of a linear reward are the same for all
            moved = ode_states(
                problem, FunctionPolicy(lambda k, x, w=targets: w[k, :1].expand_as(x)), start
            )[-1]
            expected = math.pi / 2 * variance**0.5 * slope / LAM
            errors.append(float((moved - before)[1]) / expected - 1)
            spreads.append(float((moved[2] - moved[0]) / (before[2] - before[0])))
        assert abs(errors[-1]) < 0.04
        orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
        assert all(abs(order - 1) < 0.1 for order in orders)
        assert all(abs(spread - 1) < 1e-12 for spread in spreads)


@pytest.mark.parametrize("averaged", [True, False])
def test_vgg_flow_is_the_published_regression(averaged: bool) -> None:
    """On velocities, with the prediction's velocity held, and gradients of norm 1 at most; with a
    correction.
    """
    problem = bent()
    chain, path = flow_of(problem), paths(problem, BENT, count=FEW)
    nu = GivenCostate(lambda k, x: 0.1 * torch.cos(x))
    method = VGGFlow(LAM, nu, averaged=averaged)
    labels = method.label(problem, BENT, path)
    other = FunctionPolicy(lambda k, x: torch.sin(2 * x))
    limited = 0
    for k in range(STEPS):
        x, s = labels.states[k].clone().requires_grad_(True), chain.schedule.times[k]
        velocity = chain.velocity_of(k, x, BENT(k, x)).detach()
        (gradient,) = torch.autograd.grad(problem.reward(x - s * velocity).sum(), x)
        norm = gradient.norm(dim=1, keepdim=True)
        limited += int((norm > 1).sum())
        guess = (1 - s) ** 2 * gradient / norm * norm.clamp(max=1)
        x = x.detach()
        away = change(problem, other, k, x) + (guess + 0.1 * torch.cos(x)) / LAM
        expected = away.square().mean(1) if averaged else away.square().sum(1)
        assert close(method.loss(problem, other, k, labels.step(k)), expected)
    assert 0 < limited < STEPS * FEW


def test_with_the_exact_correction_vgg_flow_stops_at_the_optimum_without_noise() -> None:
    """Up to O(dt); the correction is fitted to costates on the optimum's paths, where it is affine,
    and its fit is the value's gradient.
    """
    look_ahead, apart = LookAheadCostate(squared_signal, held=True), []
    for steps in (8, 16, 32):
        case = gaussian(steps)
        problem, (best, truth) = case.problem(), best_without_noise(case, LAM)
        path = paths(problem, best, count=FEW)
        costates = ode_costates(problem, best, path.states[0], steps)
        values = torch.stack([truth.value_gradient(k, x) for k, x in enumerate(costates.states)])
        assert close(costates.values, values, 1e-8)
        correction = LookAheadResidual(AFFINE, look_ahead).fit(problem, best, costates)
        labels = VGGFlow(LAM, correction, look_ahead).label(problem, best, path)
        controls = torch.stack([best(k, x) for k, x in enumerate(labels.states)]).detach()
        apart.append(float((labels.targets - controls).norm() / controls.norm()))
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(apart)]
    assert all(abs(order - 1) < 0.25 for order in orders)
    without = VGGFlow(LAM, None, look_ahead).label(problem, best, path)
    assert float((without.targets - controls).norm() / controls.norm()) > 5 * apart[-1]


def test_weights_of_levels_are_the_published_ones() -> None:
    a, s = torch.tensor([0.0, 0.6, 1.0], dtype=F64), torch.tensor([1.0, 0.8, 0.0], dtype=F64)
    assert close(signal_share(a, s), torch.tensor([0.0, 0.36, 1.0], dtype=F64))
    assert close(squared_signal(a, s), torch.tensor([0.0, 0.36, 1.0], dtype=F64))
    assert close(signal_share(2 * a, 2 * s), signal_share(a, s))
    assert torch.equal(unweighted(a, s), torch.ones(3, dtype=F64))


@pytest.mark.parametrize("method", [DeterministicAdjointMatching(LAM), VGGFlow(LAM)], ids=repr)
def test_noise_and_kl_weights_do_not_matter(method: VGGFlow) -> None:
    """Losses of the same velocities on the same start are the same on other kernels."""
    found = []
    for schedule, beta in ((flow_sde, 0.3), (flow_ddim, 2.0)):
        chain = flow_reference(LAW, schedule(uniform_times(STEPS, last=0.1), 0.7))
        problem = dataclasses.replace(bent(), reference=chain, beta=beta)
        other = FunctionPolicy(lambda k, x, c=chain: torch.sin(2 * x) / c.velocity_unit(k, x))
        labels = method.label(problem, other, paths(problem, other, count=FEW))
        found.append([method.loss(problem, other, k, labels.step(k)) for k in range(STEPS)])
    assert close(torch.stack(found[0]), torch.stack(found[1]), 1e-9)


def test_chains_without_a_velocity_and_running_costs_are_refused() -> None:
    other = quadratic_problem()
    policy = AffinePolicy.zeros(other.reference)
    path = paths(other, policy, count=2)
    for method in (DeterministicAdjointMatching(LAM), VGGFlow(LAM)):
        with pytest.raises(InvalidProblem, match="AffineReference; this method follows the"):
            method.label(other, policy, path)
        problem = dataclasses.replace(bent(), running_cost=lambda k, x: x[:, 0].square())
        with pytest.raises(InvalidProblem, match="there is a running cost; this method sees"):
            method.label(problem, BENT, paths(problem, BENT, count=2))
    with pytest.raises(InvalidProblem, match="last = 9; give 1 to 4"):
        DeterministicAdjointMatching(LAM, last=9).label(bent(), BENT, paths(bent(), BENT, count=2))
