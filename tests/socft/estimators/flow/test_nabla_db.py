"""Residual nabla-DB against its published losses, written in scores, and at its fixed points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.fields import GivenCostate
from socft.costates.regression import StepwiseRegression
from socft.density import GaussianMixture
from socft.density.score import score_reference
from socft.estimators.base import MatchingEstimator
from socft.estimators.estimand import EquationResidual, FixedPointEquation
from socft.estimators.flow.look_ahead import (
    FittedCorrection,
    LookAheadCostate,
    LookAheadResidual,
    signal_share,
    unweighted,
)
from socft.estimators.flow.nabla_db import ResidualNablaDB, reverse_costates
from socft.flow import FlowReference, flow_ddim, flow_reference, flow_sde, uniform_times
from socft.policy import AffinePolicy, FunctionPolicy, Policy, StepwisePolicy
from socft.problem import ControlProblem
from socft.reference import affine_coefficients
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.reward import FunctionReward
from socft.schedule import ddim
from socft.truth.linear_quadratic import LinearQuadratic
from tests.support.estimator_cases import estimates, paths, quadratic_problem
from tests.support.flow_cases import GaussianFlow, as_policy, flow
from tests.support.tensors import F64
from verify.support.sampling import distance, require_mean

FEW, DIM, STEPS, BETA = 6, 2, 4, 0.7
ROUNDING = 1e-11  # relative: the same numbers by another way
RESOLUTION = 0.03  # standard errors, in units of the largest entry of a residual away from zero
LAW = GaussianMixture([0.7, 0.3], [[-1.5, 0.2], [1.5, 0.0]], [0.16, 0.4])
OLD = FunctionPolicy(lambda k, x: 0.3 * torch.cos(x))
NEW = FunctionPolicy(lambda k, x: torch.sin(2 * x))
NONE = FunctionPolicy(lambda k, x: torch.zeros_like(x))
NU = GivenCostate(lambda k, x: 0.1 * torch.cos(x))


def bent() -> ControlProblem:
    chain = flow_reference(LAW, flow_sde(uniform_times(STEPS, last=0.1), 0.7))
    reward = FunctionReward(lambda x: torch.sin(x).sum(1) + 0.3 * x[:, 0] * x[:, 1])
    return ControlProblem(chain, reward, BETA)


def flow_of(problem: ControlProblem) -> FlowReference:
    assert isinstance(problem.reference, FlowReference)
    return problem.reference


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= ROUNDING * expected.abs().max())


def log_prob(problem: ControlProblem, policy: Policy, k: int, x: Tensor, after: Tensor) -> Tensor:
    chain = flow_of(problem)
    return chain.log_prob(k, x, after, chain.velocity_of(k, x, policy(k, x)))


def look_ahead(problem: ControlProblem, policy: Policy, k: int, x: Tensor) -> Tensor:
    """``abar grad r(x - s u(x))`` through the model; the reward's own gradient at the end."""
    chain = flow_of(problem)
    y = x.clone().requires_grad_(True)
    if k == STEPS:
        return torch.autograd.grad(problem.reward(y).sum(), y)[0]
    s = chain.schedule.times[k]
    endpoint = y - s * chain.velocity_of(k, y, policy(k, y))
    (found,) = torch.autograd.grad(problem.reward(endpoint).sum(), y)
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2) * found


@pytest.mark.parametrize("correction", [None, NU], ids=["simple", "full"])
def test_it_is_the_published_loss_of_scores(correction: GivenCostate | None) -> None:
    """The forward one: log-densities by automatic differentiation in the state after the step."""
    problem = bent()
    path, method = paths(problem, OLD, count=FEW), ResidualNablaDB(correction)
    labels = method.label(problem, OLD, path)
    for k in range(STEPS):
        after = path.states[k + 1].clone().requires_grad_(True)
        ratio = log_prob(problem, NEW, k, path.states[k], after) - log_prob(
            problem, NONE, k, path.states[k], after
        )
        (score,) = torch.autograd.grad(ratio.sum(), after)
        target = look_ahead(problem, OLD, k + 1, path.states[k + 1])
        if correction is not None and k + 1 < STEPS:
            target = target + 0.1 * torch.cos(path.states[k + 1])
        expected = (score - target / BETA).square().mean(1)
        assert close(method.loss(problem, NEW, k, labels.step(k)), expected)


def test_reverse_costates_are_the_published_ones() -> None:
    """By automatic differentiation in the state before the step."""
    problem = bent()
    path = paths(problem, OLD, count=FEW)
    found = reverse_costates(problem, NEW, path)
    for k in range(STEPS):
        x = path.states[k].clone().requires_grad_(True)
        ratio = log_prob(problem, NEW, k, x, path.states[k + 1]) - log_prob(
            problem, NONE, k, x, path.states[k + 1]
        )
        (slope,) = torch.autograd.grad(ratio.sum(), x)
        assert close(found.values[k], -BETA * slope)
    assert close(found.values[STEPS], problem.reward.gradient(path.final))


def test_losses_of_scores_and_of_controls_have_the_same_target() -> None:
    """The published one weighs the square with ``2 / (beta D sigma^2)``."""
    problem = bent()
    path = paths(problem, OLD, count=FEW)
    published, plain = ResidualNablaDB(NU), ResidualNablaDB(NU, of_scores=False)
    labels = published.label(problem, OLD, path)
    assert torch.equal(labels.targets, plain.label(problem, OLD, path).targets)
    for k, sigma in enumerate(flow_of(problem).schedule.sigma):
        rows = labels.step(k)
        found = published.loss(problem, NEW, k, rows)
        assert close(plain.loss(problem, NEW, k, rows), found * BETA * DIM * sigma**2 / 2)
    assert isinstance(plain, MatchingEstimator)


def simple_stop(case: GaussianFlow, beta: float, weighted: bool) -> AffinePolicy:
    """``v_k = B_k E[gamma_{k+1} grad r(x_0(x_{k+1}))] / beta`` of its own endpoints, backwards."""
    problem = case.problem()
    chain = flow_of(problem)
    P, q = torch.tensor(case.curvature, dtype=F64), torch.tensor(case.slope, dtype=F64)
    gain: list[Tensor] = []
    offset: list[Tensor] = []
    for k in reversed(range(case.schedule.steps)):
        A, b, B = (each[k] for each in case.kernels)
        scale = B / (beta - B.square() * P)
        gain.append(scale * P * A)
        offset.append(scale * (P * b + q))

        def endpoint(_: int, x: Tensor, k: int = k) -> Tensor:
            return chain.endpoint_of(k, x, gain[-1] * x + offset[-1])

        slope, start = affine_coefficients(endpoint, 1, 1)
        a, s = (getattr(case.schedule.starts, name)[k] for name in ("signal", "noise"))
        gamma = a**2 / (a**2 + s**2) if weighted else 1.0
        E, e = slope[0, 0, 0], start[0, 0]
        P, q = gamma * E**2 * case.curvature, gamma * E * (case.curvature * e + case.slope)
    return as_policy(gain[::-1], offset[::-1])


@pytest.mark.parametrize("weighted", [True, False])
def test_the_simple_form_stops_at_guidance_by_the_look_ahead(weighted: bool) -> None:
    """And not at the optimum."""
    case = flow()
    problem, weight = case.problem(BETA), signal_share if weighted else unweighted
    method = ResidualNablaDB(None, LookAheadCostate(weight), of_scores=False)
    assert method.estimates == EquationResidual(FixedPointEquation.LOOK_AHEAD)
    start = AffinePolicy.zeros(case.affine().reference)
    unit = float(estimates(method, problem, start, paths(problem, start)).mean(0).norm())
    stop = simple_stop(case, BETA, weighted)
    found = estimates(method, problem, stop, paths(problem, stop))
    require_mean(found / unit, 0.0, RESOLUTION)
    best = LinearQuadratic(case.affine(BETA)).affine_policy
    assert distance(estimates(method, problem, best, paths(problem, best)), 0.0) > 4


def test_unweighted_it_is_nearly_exact_for_linear_rewards_on_gaussians() -> None:
    """With kernels whose predicted endpoints are a martingale, down to a small noise level; the
    published weights are far from it.
    """
    case = GaussianFlow(flow_ddim(uniform_times(8, last=1e-3), 1.0), curvature=0.0)
    best = LinearQuadratic(case.affine(BETA)).affine_policy
    apart = [
        float((simple_stop(case, BETA, weighted).offset - best.offset).detach().norm())
        for weighted in (False, True)
    ]
    apart = [each / float(best.offset.detach().norm()) for each in apart]
    assert apart[0] < 0.01
    assert apart[1] > 0.1


def test_with_the_exact_correction_it_vanishes_at_the_optimum() -> None:
    """The mean of the labels, with whatever look-ahead."""
    case = flow()
    problem, truth = case.problem(BETA), LinearQuadratic(case.affine(BETA))
    best, guess = truth.affine_policy, LookAheadCostate()
    ahead = guess.field(problem, best)
    correction = GivenCostate(lambda k, x: truth.value_gradient(k, x) - ahead(k, x))
    method = ResidualNablaDB(correction, guess, of_scores=False)
    start = AffinePolicy.zeros(case.affine().reference)
    unit = float(estimates(method, problem, start, paths(problem, start)).mean(0).norm())
    found = estimates(method, problem, best, paths(problem, best))
    require_mean(found / unit, 0.0, RESOLUTION)


def test_reverse_costates_are_unbiased_for_the_value_gradient_at_the_optimum() -> None:
    """Given the state: against its constant and linear part."""
    case = flow()
    problem, truth = case.problem(BETA), LinearQuadratic(case.affine(BETA))
    path = paths(problem, truth.affine_policy)
    found = reverse_costates(problem, truth.affine_policy, path)
    for k in range(STEPS):
        x = path.states[k]
        away = found.values[k] - truth.value_gradient(k, x)
        require_mean(torch.cat([away, away * x], 1), 0.0, 0.02)


def test_the_fit_is_what_the_look_ahead_lacks() -> None:
    """Where both are affine, on costates without noise."""
    case = flow()
    problem, truth = case.problem(BETA), LinearQuadratic(case.affine(BETA))
    policy = truth.affine_policy
    path = paths(problem, policy, count=FEW)
    exact = torch.stack([truth.value_gradient(k, x) for k, x in enumerate(path.states)])
    fit = LookAheadResidual(StepwiseRegression(LinearRegression(Polynomial(1))), LookAheadCostate())
    costates = reverse_costates(problem, policy, path)
    found = fit.fit(problem, policy, type(costates)(path.states, exact)).field(problem, policy)
    ahead = fit.look_ahead.field(problem, policy)
    for k, x in enumerate(path.states):
        assert float((found(k, x) + ahead(k, x) - exact[k]).detach().abs().max()) < 1e-9
    assert float(found(STEPS, path.final).abs().max()) < 1e-9


def test_trained_with_its_residual_flow_it_converges_to_the_optimum() -> None:
    """Alternating affine fits of the flow and of the control, from zero; the simple form does
    not. Errors are those of fits to 4000 paths.
    """
    case = flow()
    problem, best = case.problem(BETA), LinearQuadratic(case.affine(BETA)).affine_policy
    regression = LinearRegression(Polynomial(1))
    residual = LookAheadResidual(StepwiseRegression(regression), LookAheadCostate())
    draw = torch.Generator().manual_seed(0)
    flows = {"full": FittedCorrection(residual, reverse_costates, 4000, draw), "simple": None}
    apart = {}
    for name, correction in flows.items():
        policy: Policy = NONE
        for seed in range(STEPS + 2):
            path = paths(problem, policy, seed, 4000)
            labels = ResidualNablaDB(correction).label(problem, policy, path)
            pairs = zip(labels.states, labels.targets, strict=True)
            policy = StepwisePolicy([regression.fit(x, y) for x, y in pairs])
        path = paths(problem, best, 99, 4000)
        exact = torch.stack([best(k, x) for k, x in enumerate(path.states[:-1])]).detach()
        found = torch.stack([policy(k, x) for k, x in enumerate(path.states[:-1])]).detach()
        apart[name] = float((found - exact).norm() / exact.norm())
    assert apart["full"] < 0.05
    assert apart["simple"] > 0.2


def test_it_runs_on_the_chain_of_a_score_and_refuses_others() -> None:
    chain = score_reference(LAW, ddim([1e-2, 0.3, 0.7, 0.95], 0.8))
    problem = ControlProblem(chain, bent().reward, BETA)
    labels = ResidualNablaDB().label(problem, OLD, paths(problem, OLD, count=FEW))
    assert bool(labels.targets.isfinite().all())
    other = quadratic_problem()
    policy = AffinePolicy.zeros(other.reference)
    with pytest.raises(InvalidProblem, match="AffineReference; an endpoint is predicted by"):
        ResidualNablaDB().label(other, policy, paths(other, policy, count=2))
