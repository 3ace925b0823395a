"""Score-function, zeroth-order and truncated estimators against exact gradients, densities and
automatic differentiation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.base import Cost
from socft.density import Gaussian
from socft.estimators.base import Estimator, Labels
from socft.estimators.baseline import (
    Baseline,
    BatchMean,
    GivenBaseline,
    LeaveOneOut,
    NoBaseline,
    RegressionBaseline,
    ValueBaseline,
    returns_to_go,
)
from socft.estimators.ddpo import DDPO, RatioRows
from socft.estimators.dpok import DPOK
from socft.estimators.estimand import Biased, ObjectiveGradient
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts, ValueIntegrationByParts
from socft.estimators.refl import ReFL
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.estimators.truncated_backprop import RandomTruncation, TruncatedBackprop
from socft.path import Path, returns
from socft.policy import AffinePolicy, MLPPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    ScalarDiffusion,
    ScoreReference,
    Step,
)
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.reward import Quadratic, Reward
from socft.schedule import variance_preserving
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticValue
from tests.support.estimator_cases import (
    CONSTANT,
    DETECTED,
    FEW,
    IDENTITY,
    PATHS,
    STEPS,
    VARYING,
    GivenControl,
    away,
    counted,
    estimates,
    in_order,
    minus_gradient,
    paths,
    quadratic_problem,
    reference,
)
from tests.support.tensors import F64, randn
from verify.support.sampling import STDERRS, distance, require_mean

STRONG = 0.3  # a KL weight at which controls are large


def test_the_distance_of_a_mean_is_the_absolute_value_of_a_normal_number() -> None:
    """Of one entry its own deviation, of copies that of the one; of independent entries
    half-normal, and larger for a shift.
    """
    x = randn(50, 400, 1) + 0.1
    alone = abs(float(x.mean())) / float(x.std()) * 20
    assert distance(x, 0.0) == pytest.approx(alone, rel=1e-9)
    assert distance(x * torch.tensor([1.0, -3.0, 0.5], dtype=F64), 0.0) == pytest.approx(
        alone, rel=1e-9
    )
    found = torch.tensor([distance(each, 0.0) for each in randn(51, 400, 500, 6)], dtype=F64)
    half_normal = (2 / math.pi) ** 0.5
    assert (
        abs(float(found.mean()) - half_normal)
        < STDERRS * ((1 - half_normal**2) / len(found)) ** 0.5
    )
    assert (
        distance(randn(52, 500, 6) + torch.tensor([0.3, 0, 0, 0, 0, 0], dtype=F64), 0.0) > STDERRS
    )


@functools.cache
def own_value(problem: ControlProblem, policy: AffinePolicy) -> QuadraticValue:
    return evaluate_affine(problem, policy).value


def value_baseline(problem: ControlProblem, policy: AffinePolicy) -> Baseline:
    return ValueBaseline(lambda k, x: own_value(problem, policy).value(k, x))


def ragged(k: Step, x: Tensor) -> Tensor:
    """Any function of step and state."""
    return torch.sin(2 * x[:, 0]) + k


BASELINES: dict[str, Callable[[ControlProblem, AffinePolicy], Baseline]] = {
    "none": lambda problem, policy: NoBaseline(),
    "leave one out": lambda problem, policy: LeaveOneOut(),
    "regression": lambda problem, policy: RegressionBaseline(
        LinearRegression(Polynomial(2)), folds=3
    ),
    "given": lambda problem, policy: GivenBaseline(ragged),
    "own value": value_baseline,
}


@pytest.mark.parametrize("noises", [2, 3])
@pytest.mark.parametrize("make", BASELINES.values(), ids=BASELINES)
def test_the_score_function_is_unbiased_with_every_baseline(make, noises: int) -> None:
    problem = quadratic_problem(noises=noises)
    policy = away(problem)
    path, expected = paths(problem, policy), minus_gradient(problem, policy)
    for estimator in (
        ScoreFunction(make(problem, policy)),
        IntegrationByParts(make(problem, policy)),
    ):
        assert estimator.estimates == ObjectiveGradient()
        require_mean(estimates(estimator, problem, policy, path), expected, 0.022)


def test_baselines_lower_the_variance() -> None:
    """In this order, by at least the factors given."""
    problem = quadratic_problem()
    policy = away(problem)
    path = paths(problem, policy)
    shifted = ControlProblem(
        problem.reference, shifted_reward(problem.reward, 3.0), problem.beta, problem.running_cost
    )
    spread = [
        float(
            estimates(ScoreFunction(BASELINES[name](shifted, policy)), shifted, policy, path)
            .var(0)
            .sum()
        )
        for name in ("none", "leave one out", "regression", "own value")
    ]
    assert spread[0] > 3 * spread[1]
    assert spread[1] > 1.5 * spread[2]
    assert spread[2] > spread[3]


def shifted_reward(reward: Reward, by: float) -> Quadratic:
    assert isinstance(reward, Quadratic)
    return Quadratic(reward.P, reward.linear, reward.c + by)


def test_leaving_one_out_and_value_baselines_ignore_a_constant_in_the_reward() -> None:
    problem = quadratic_problem()
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    shifted = ControlProblem(
        problem.reference, shifted_reward(problem.reward, 100.0), problem.beta, problem.running_cost
    )
    for name in ("leave one out", "own value"):
        first, second = (
            ScoreFunction(BASELINES[name](p, policy)).label(p, policy, path)
            for p in (problem, shifted)
        )
        torch.testing.assert_close(first.targets, second.targets, rtol=1e-10, atol=1e-10)


def test_the_batch_mean_scales_the_return_part() -> None:
    """By 1 - 1/N, exactly."""
    problem = quadratic_problem()
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    mean, others = (
        ScoreFunction(b).label(problem, policy, path).targets for b in (BatchMean(), LeaveOneOut())
    )
    torch.testing.assert_close(mean, others * (1 - 1 / FEW), rtol=IDENTITY, atol=IDENTITY)


def test_a_cross_fitted_baseline_of_a_path_does_not_see_its_return() -> None:
    problem = quadratic_problem()
    path = paths(problem, away(problem), count=30)
    baseline, values = RegressionBaseline(folds=3), returns_to_go(problem, path)
    changed = values.clone()
    changed[:, 7] += 100
    moved = (baseline.levels(problem, path, changed) != baseline.levels(problem, path, values)).any(
        0
    )
    assert moved.nonzero().flatten().tolist() == [i for i in range(30) if i % 3 != 7 % 3]


def test_returns_to_go_add_up() -> None:
    problem = quadratic_problem()
    path = paths(problem, away(problem), count=FEW)
    first = problem.cost(0, path.states[0]) + problem.beta[0] * path.controls[0].square().sum(1) / 2
    torch.testing.assert_close(
        returns_to_go(problem, path)[0] - first,
        returns(problem, path),
        rtol=IDENTITY,
        atol=IDENTITY,
    )
    torch.testing.assert_close(
        returns_to_go(problem, path)[-1], problem.reward(path.final), rtol=IDENTITY, atol=IDENTITY
    )


def test_with_more_noise_than_states_integration_by_parts_is_the_projected_score_function() -> None:
    problem = quadratic_problem(noises=3)
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    plain, reached = (
        e.label(problem, policy, path).targets for e in (ScoreFunction(), IntegrationByParts())
    )
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    B = problem.reference.diffusion.matrices
    projector = torch.linalg.pinv(B) @ B
    torch.testing.assert_close(
        reached, (projector.unsqueeze(1) @ plain.unsqueeze(3)).squeeze(3), rtol=1e-10, atol=1e-10
    )
    square = quadratic_problem()
    path = paths(square, away(square), count=FEW)
    plain, reached = (
        e.label(square, policy, path).targets for e in (ScoreFunction(), IntegrationByParts())
    )
    torch.testing.assert_close(reached, plain, rtol=1e-10, atol=1e-10)


def test_a_given_value_makes_a_residual_or_a_gradient() -> None:
    """The optimal value's fixed point is the optimum, the policy's own value gives the objective's
    gradient.
    """
    problem = quadratic_problem()
    truth, policy = LinearQuadratic(problem), away(problem)
    best, optimal = truth.affine_policy, ValueIntegrationByParts(truth.value)
    require_mean(estimates(optimal, problem, best, paths(problem, best)), 0.0, 0.005)
    path = paths(problem, policy)
    assert distance(estimates(optimal, problem, policy, path), 0.0) > DETECTED
    own = ValueIntegrationByParts(lambda k, x: own_value(problem, policy).value(k, x))
    require_mean(estimates(own, problem, policy, path), minus_gradient(problem, policy), 0.0079)


def test_relative_spread_as_the_noise_shrinks() -> None:
    """That of the score function grows like 1 / sigma; with the deterministic step as baseline it
    stays.
    """
    spreads = []
    for sigma in (0.1, 0.01):
        chain = AffineReference(
            torch.eye(2, dtype=F64).unsqueeze(0), ScalarDiffusion(torch.tensor([sigma], dtype=F64))
        )
        problem = ControlProblem(
            chain,
            Quadratic(-0.1 * torch.eye(2, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)),
            1.0,
        )
        policy = AffinePolicy.zeros(chain)
        path = paths(problem, policy, count=4000)
        given = ValueIntegrationByParts(lambda k, x, reward=problem.reward: reward(x))
        targets = [
            e.label(problem, policy, path).targets[0, :, 0] for e in (ScoreFunction(), given)
        ]
        spreads.append([float(t.std() / (sigma * 1.0)) for t in targets])
    (plain, kept), (plain_fine, kept_fine) = spreads
    assert plain_fine / plain == pytest.approx(10, rel=0.1)
    assert kept_fine / kept == pytest.approx(1, rel=0.1)


def dpok_expectation(problem: ControlProblem, policy: AffinePolicy) -> Tensor:
    """Exact: minus the gradient of reward minus running costs, and the gradient of the KL at fixed
    states.
    """
    doubled = ControlProblem(
        problem.reference, problem.reward, 2 * problem.beta, problem.running_cost
    )
    without_kl = 2 * minus_gradient(problem, policy) - minus_gradient(doubled, policy)
    law = evaluate_affine(problem, policy)
    second = law.covariance[:-1] + law.mean[:-1].unsqueeze(2) * law.mean[:-1].unsqueeze(1)
    gain, offset, beta = policy.gain.detach(), policy.offset.detach(), problem.beta[:, None, None]
    at_fixed = beta * (gain @ second + offset.unsqueeze(2) * law.mean[:-1].unsqueeze(1))
    return without_kl + in_order(
        at_fixed, (beta * (gain @ law.mean[:-1].unsqueeze(2) + offset.unsqueeze(2))).squeeze(2)
    )


WITHOUT_KL: dict[str, Estimator] = {
    "plain": DPOK(),
    "regression": DPOK(RegressionBaseline()),
    "unclipped": DPOK(GivenBaseline(ragged), None),
    "matching": ScoreFunctionWithoutKLToGo(),
}


@pytest.mark.parametrize("estimator", WITHOUT_KL.values(), ids=WITHOUT_KL)
def test_the_expectation_without_kl_to_go_is_known_exactly(estimator: Estimator) -> None:
    """At the optimum, where it is not zero, and away from it."""
    problem = quadratic_problem(STRONG)
    assert isinstance(estimator.estimates, Biased)
    for policy in (LinearQuadratic(problem).affine_policy, away(problem)):
        samples = estimates(estimator, problem, policy, paths(problem, policy))
        require_mean(samples, dpok_expectation(problem, policy), 0.024)


def test_without_kl_to_go_the_optimum_is_not_stationary() -> None:
    """Exactly, and found by sampling, where the unbiased estimate is zero within its error."""
    problem = quadratic_problem(STRONG)
    best = LinearQuadratic(problem).affine_policy
    assert dpok_expectation(problem, best).norm() > 0.2
    path = paths(problem, best)
    assert distance(estimates(DPOK(LeaveOneOut()), problem, best, path), 0.0) > DETECTED
    require_mean(estimates(ScoreFunction(), problem, best, path), 0.0, 0.015)


def network(problem: ControlProblem, seed: int = 6) -> MLPPolicy:
    policy = MLPPolicy(problem.reference, width=8, generator=torch.Generator().manual_seed(seed))
    last = list(policy.network.network.children())[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.copy_(0.5 * randn(seed, *last.weight.shape))
    return policy


def test_before_an_update_the_likelihood_ratio_is_exactly_one() -> None:
    problem = quadratic_problem()
    policy = network(problem)
    path = paths(problem, policy, count=FEW)
    labels = DDPO().label(problem, policy, path)
    with torch.no_grad():
        for k in range(STEPS):
            assert (labels.step(k).log_ratio(policy(k, labels.states[k])) == 0).all()
        k, sample = labels.pairs()
        rows = labels.rows(k, sample)
        assert rows.log_ratio(policy(k, rows.states)).abs().max() < IDENTITY


def test_the_likelihood_ratio_is_that_of_the_kernels() -> None:
    problem = quadratic_problem()
    policy, other = network(problem), network(problem, 7)
    path = paths(problem, policy, count=FEW)
    labels = DDPO().label(problem, policy, path)
    B = problem.reference.diffusion
    assert isinstance(B, MatrixDiffusion)
    for k in range(STEPS):
        x, after = path.states[k], path.states[k + 1]
        with torch.no_grad():
            means = [problem.reference.step(k, x, p(k, x)) for p in (other, policy)]
            found = labels.step(k).log_ratio(other(k, x))
        covariance = B.matrices[k] @ B.matrices[k].T
        laws = [torch.distributions.MultivariateNormal(mean, covariance) for mean in means]
        torch.testing.assert_close(
            found, laws[0].log_prob(after) - laws[1].log_prob(after), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize(
    "estimator", [DDPO(), DPOK(), DPOK(averaged=True)], ids=["DDPO", "DPOK", "averaged"]
)
def test_before_an_update_the_gradient_is_that_of_the_matching_targets(
    estimator: DDPO | DPOK,
) -> None:
    """``-beta target``, plus ``beta v`` from DPOK's KL."""
    problem = quadratic_problem()
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    labels = estimator.label(problem, policy, path)
    for k in range(STEPS):
        v = path.controls[k].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(
            estimator.loss(problem, GivenControl(v), k, labels.step(k)).sum(), v
        )
        kl = path.controls[k] if isinstance(estimator, DPOK) else 0
        torch.testing.assert_close(
            slope, problem.beta[k] * (kl - labels.targets[k]), rtol=IDENTITY, atol=IDENTITY
        )


@pytest.mark.parametrize(
    ("estimator", "both"), [(DDPO(clip=0.1), False), (DPOK(clip=0.1), True)], ids=["DDPO", "DPOK"]
)
def test_clipped_ratios_have_no_gradient(estimator: Estimator, both: bool) -> None:
    """DDPO's where it would leave further, DPOK's on both sides; ratios inside are not clipped."""
    problem = quadratic_problem()
    noise = torch.tensor([[1.0, 0.0]] * 6, dtype=F64)
    change = torch.tensor([0.3, 0.3, -0.3, -0.3, 0.05, 0.05], dtype=F64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=F64)
    zeros = torch.zeros_like(noise)
    rows = RatioRows(zeros, zeros, controls=zeros, noise=noise, advantages=advantages)
    v = torch.stack([change, torch.zeros(6, dtype=F64)], 1).requires_grad_(True)
    (slope,) = torch.autograd.grad(estimator.loss(problem, GivenControl(v), 0, rows).sum(), v)
    kl = problem.beta[0] * v.detach() if both else zeros
    free = ((slope - kl).abs() > IDENTITY).any(1)
    assert free.tolist() == [False, not both, not both, False, True, True]


def test_averaged_likelihoods_leave_the_log_likelihood_of_a_step_n_times_as_much_room() -> None:
    problem, epsilon = quadratic_problem(), 0.1
    rooms = {}
    for averaged in (False, True):
        estimator = DPOK(clip=epsilon, averaged=averaged)
        zero = torch.zeros(1, 2, dtype=F64)
        rows = RatioRows(
            zero,
            zero,
            controls=zero,
            noise=torch.tensor([[2.0, 0.0]], dtype=F64),
            advantages=torch.ones(1, dtype=F64),
        )
        inside = []
        for log_ratio in torch.linspace(0.005, 0.3, 60, dtype=F64):
            change = 2 - (4 - 2 * log_ratio).sqrt()  # solves change * (2 - change / 2) = log_ratio
            v = torch.stack([change, 0 * change])[None].requires_grad_(True)
            (slope,) = torch.autograd.grad(
                estimator.loss(problem, GivenControl(v), 0, rows).sum(), v
            )
            inside += (
                [float(log_ratio)]
                if (slope - problem.beta[0] * v.detach()).abs().max() > IDENTITY
                else []
            )
        rooms[averaged] = max(inside)
    exact = torch.tensor([1 + epsilon]).log()
    assert rooms[False] == pytest.approx(float(exact), abs=0.005)
    assert rooms[True] == pytest.approx(2 * float(exact), abs=0.005)


def test_ddpo_normalises_in_groups() -> None:
    problem = quadratic_problem()
    policy, groups = away(problem), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    path = paths(problem, policy, count=7)
    found = DDPO(groups=groups).label(problem, policy, path).advantages
    for members in (groups == 0, groups == 1):
        assert found[0, members].mean().abs() < IDENTITY
        assert found[0, members].square().mean() == pytest.approx(1, rel=IDENTITY)
    assert (found == found[0]).all()
    steep = ControlProblem(
        problem.reference, scaled_reward(problem, 7.0), 7.0, lambda k, x: 7 * problem.cost(k, x)
    )
    torch.testing.assert_close(
        DDPO(groups=groups).label(steep, policy, path).advantages, found, rtol=1e-10, atol=1e-10
    )


def scaled_reward(problem: ControlProblem, by: float) -> Quadratic:
    assert isinstance(problem.reward, Quadratic)
    return Quadratic(by * problem.reward.P, by * problem.reward.linear, 5.0)


def test_ddpo_with_kl_in_the_reward_has_the_objective_gradient_times_one_minus_one_over_n() -> None:
    """Centred but not divided; averaging over entries divides by their number; as published it does
    not vanish at the optimum.
    """
    problem = quadratic_problem()
    policy, best = away(problem), LinearQuadratic(problem).affine_policy
    path = paths(problem, policy)
    centred = estimates(DDPO(divide=False, kl_in_reward=True), problem, policy, path)
    require_mean(centred, (1 - 1 / PATHS) * minus_gradient(problem, policy), 0.022)
    averaged = estimates(
        DDPO(divide=False, kl_in_reward=True, averaged=True), problem, policy, path
    )
    torch.testing.assert_close(averaged, centred / 2, rtol=IDENTITY, atol=IDENTITY)
    assert distance(estimates(DDPO(), problem, best, paths(problem, best)), 0.0) > DETECTED


def curved(k: Step, x: Tensor) -> Tensor:
    return 0.9 * x + 0.3 * torch.tanh(x.roll(1, 1))


def curved_problem() -> ControlProblem:
    chain = KernelReference(
        curved, ScalarDiffusion(torch.tensor([0.7, 0.5, 0.4, 0.3], dtype=F64)), STEPS, (2,)
    )
    return ControlProblem(
        chain, quadratic_problem().reward, VARYING, lambda k, x: 0.1 * x.square().sum(1)
    )


@pytest.mark.parametrize("kl", [True, False])
@pytest.mark.parametrize("last", [1, 2, STEPS])
def test_truncated_backprop_is_automatic_differentiation_of_the_cut_path(
    last: int, kl: bool
) -> None:
    """Of the return from step T - K on, the state there being fixed, for a policy with shared
    parameters.
    """
    problem = curved_problem()
    policy, estimator = network(problem), TruncatedBackprop(last, kl)
    path = paths(problem, policy, count=FEW)
    labels = estimator.label(problem, policy, path)
    loss = sum(estimator.loss(problem, policy, k, labels.step(k)).sum() for k in range(STEPS))
    assert isinstance(loss, Tensor)
    x, total = path.states[STEPS - last], torch.zeros(FEW, dtype=F64)
    for k in range(STEPS - last, STEPS):
        v = policy(k, x)
        total = total - problem.cost(k, x) - (problem.beta[k] * v.square().sum(1) / 2 if kl else 0)
        x = problem.reference.step(k, x, v + path.noise.steps[k])
    expected = torch.autograd.grad(-(total + problem.reward(x)).sum(), list(policy.parameters()))
    for found, wanted in zip(
        torch.autograd.grad(loss, list(policy.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(
            found, wanted, rtol=1e-10, atol=IDENTITY * float(wanted.abs().max() + 1)
        )


def test_all_steps_make_the_full_adjoint_and_fewer_leave_steps_out() -> None:
    """For parameters per step the rest is exact: unbiased in the last blocks, zero in the
    others.
    """
    problem = quadratic_problem()
    policy = away(problem)
    path = paths(problem, policy)
    whole = FullAdjoint().label(problem, policy, path).targets
    torch.testing.assert_close(
        TruncatedBackprop(STEPS).label(problem, policy, path).targets,
        whole,
        rtol=IDENTITY,
        atol=IDENTITY,
    )
    samples, expected = (
        estimates(TruncatedBackprop(2), problem, policy, path),
        minus_gradient(problem, policy),
    )
    half = len(expected) // 2
    require_mean(samples[:, half:], expected[half:], 0.0043)
    assert (samples[:, :half] == 0).all()
    assert expected[:half].norm() > 0.1 * expected.norm()


def test_random_truncation_draws_every_length_and_repeats_itself() -> None:
    problem = curved_problem()
    policy = network(problem)
    path = paths(problem, policy, count=FEW)
    lengths = []
    for _ in range(2):
        estimator = RandomTruncation(torch.Generator().manual_seed(0))
        weights = [estimator.label(problem, policy, path).weights for _ in range(40)]
        lengths.append([int(each[:, 0].sum()) for each in weights if each is not None])
    assert lengths[0] == lengths[1]
    assert set(lengths[0]) == {1, 2, 3, 4}
    found, last = (
        RandomTruncation(torch.Generator().manual_seed(0)).label(problem, policy, path),
        lengths[0][0],
    )
    expected = TruncatedBackprop(last).label(problem, policy, path)
    torch.testing.assert_close(
        (found.targets, found.weights), (expected.targets, expected.weights), rtol=0, atol=0
    )


GAUSSIAN = Gaussian(
    torch.tensor([1.0, -0.5], dtype=F64), torch.tensor([[0.8, 0.2], [0.2, 0.5]], dtype=F64)
)


def score_problem() -> ControlProblem:
    schedule = variance_preserving(STEPS, 2.0)
    chain = ScoreReference(
        schedule, lambda k, x: GAUSSIAN.noised_score(float(schedule.abar[k]), x), (2,)
    )  # type: ignore[arg-type]
    return ControlProblem(chain, quadratic_problem().reward, VARYING)


@pytest.mark.parametrize("kl", [True, False])
def test_refl_is_automatic_differentiation_of_the_predicted_reward(kl: bool) -> None:
    """By Tweedie's formula, the posterior mean for the pre-trained Gaussian."""
    problem = score_problem()
    policy, chain = network(problem), problem.reference
    assert isinstance(chain, ScoreReference)
    path = paths(problem, policy, count=FEW)
    estimator = ReFL(2, 2, torch.Generator().manual_seed(0), kl=kl)
    labels, x, level = (
        stepwise(estimator, problem, policy, path),
        path.states[2],
        float(chain.schedule.abar[2]),
    )
    loss = sum(estimator.loss(problem, policy, k, labels.step(k)).sum() for k in range(STEPS))
    assert isinstance(loss, Tensor)
    v = policy(2, x)
    predicted = (x + (1 - level) * chain.score_of(2, x, v)) / level**0.5
    expected = (
        problem.beta[2] * (v.square().sum() / 2 if kl else 0) - problem.reward(predicted).sum()
    )
    wanted = torch.autograd.grad(expected, list(policy.parameters()))
    for found, want in zip(
        torch.autograd.grad(loss, list(policy.parameters())), wanted, strict=True
    ):
        torch.testing.assert_close(
            found, want, rtol=1e-10, atol=IDENTITY * float(want.abs().max() + 1)
        )
    gain = (
        level**0.5
        * GAUSSIAN.covariance
        @ torch.linalg.inv(level * GAUSSIAN.covariance + (1 - level) * torch.eye(2, dtype=F64))
    )
    posterior = GAUSSIAN.mean + (x - level**0.5 * GAUSSIAN.mean) @ gain.T
    torch.testing.assert_close(
        (x + (1 - level) * chain.score(2, x)) / level**0.5, posterior, rtol=1e-10, atol=1e-10
    )


def stepwise(estimator: Estimator, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
    """Labels, for a score that takes one step at a time."""
    reference = problem.reference
    assert isinstance(reference, ScoreReference)
    levels = reference.schedule.abar

    def score(k: Step, x: Tensor) -> Tensor:
        if isinstance(k, int):
            return GAUSSIAN.noised_score(float(levels[k]), x)
        return torch.cat(
            [
                GAUSSIAN.noised_score(float(levels[i]), row[None])
                for i, row in zip(k, x, strict=True)
            ]
        )

    chain = ScoreReference(reference.schedule, score, (2,))
    return estimator.label(ControlProblem(chain, problem.reward, problem.beta), policy, path)


def test_refl_draws_one_step_per_path_from_its_range() -> None:
    problem = score_problem()
    policy = network(problem)
    path = paths(problem, policy, count=200)
    weights = stepwise(ReFL(1, 3, torch.Generator().manual_seed(1)), problem, policy, path).weights
    assert weights is not None
    assert (weights.sum(0) == 1).all()
    assert weights.sum(1)[0] == 0
    assert (weights.sum(1)[1:] > 40).all()
    curved_one = curved_problem()
    given = ReFL(
        3, 3, torch.Generator(), prediction=lambda k, x, v: curved_one.reference.step(k, x, v)
    )
    still = paths(curved_one, policy, count=FEW)
    targets = given.label(curved_one, policy, still).targets[3]
    after = curved_one.reference.step(3, still.states[3], still.controls[3])
    expected = still.controls[3] + 0.3 * curved_one.reward.gradient(after) / VARYING[3]
    torch.testing.assert_close(targets, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("estimator", "steps"),
    [
        (ScoreFunction(), STEPS),
        (ScoreFunction(RegressionBaseline()), STEPS),
        (ScoreFunctionWithoutKLToGo(), STEPS),
        (DDPO(kl_in_reward=True), STEPS),
        (DPOK(), STEPS),
        (IntegrationByParts(), STEPS),
        (ValueIntegrationByParts(ragged), STEPS),
        (TruncatedBackprop(1), 0),
        (TruncatedBackprop(3, False), 2),
        (TruncatedBackprop(STEPS), STEPS - 1),
    ],
    ids=lambda item: str(item) if isinstance(item, int) else type(item).__name__,
)
def test_costs_are_what_is_evaluated(estimator: Estimator, steps: int) -> None:
    """Per step and path; of a truncated back-propagation per step between two that learn."""
    problem = quadratic_problem(CONSTANT)
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    found = counted(estimator, problem, policy, path, FEW * max(steps, 1))
    assert found == (estimator.cost if steps else Cost())


def test_refl_costs_one_evaluation_per_path() -> None:
    problem, calls = score_problem(), []
    chain = problem.reference
    assert isinstance(chain, ScoreReference)
    counting = ScoreReference(chain.schedule, lambda k, x: calls.append(len(x)) or -x, (2,))  # type: ignore[func-returns-value]
    counted_problem = ControlProblem(counting, problem.reward, problem.beta)
    policy = network(problem)
    path = paths(counted_problem, policy, count=FEW)
    calls.clear()
    estimator = ReFL(0, 3, torch.Generator())
    estimator.label(counted_problem, policy, path)
    assert sum(calls) == FEW * estimator.cost.reference


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "ratio": (lambda: DDPO(clip=0.0), "clip = 0.0; it must be a positive"),
    "clamp": (lambda: DPOK(clip=-1.0), "clip = -1.0; it must be a positive"),
    "alone": (
        lambda: labels_of(ScoreFunction(), 1),
        "batch = 1; leaving one path out needs at least 2",
    ),
    "folds": (
        lambda: labels_of(ScoreFunction(RegressionBaseline(folds=5)), 3),
        "folds = 5 for 3 paths",
    ),
    "groups": (
        lambda: labels_of(DDPO(groups=torch.tensor([0, 1])), 3),
        r"groups has shape \(2,\); give one index for each of the 3",
    ),
    "too long": (
        lambda: labels_of(TruncatedBackprop(5), 3),
        "last = 5; give 1 to 4, the number of steps",
    ),
    "no step": (lambda: labels_of(TruncatedBackprop(0), 3), "last = 0; give a whole number"),
    "range": (
        lambda: labels_of(ReFL(2, 4, torch.Generator()), 3),
        "steps run from 2 to 4; give 0 <= first <= last <= 3",
    ),
    "prediction": (
        lambda: labels_of(ReFL(0, 3, torch.Generator()), 3),
        "the reference is an AffineReference; Tweedie's formula needs",
    ),
}


def labels_of(estimator: Estimator, count: int) -> Labels:
    problem = quadratic_problem()
    policy = AffinePolicy.zeros(reference())
    return estimator.label(problem, policy, paths(problem, policy, count=count))


@pytest.mark.refusal
@pytest.mark.parametrize(("attempt", "message"), REFUSED.values(), ids=REFUSED)
def test_inputs_that_make_no_sense_are_refused(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidProblem, match=message):
        attempt()


@pytest.mark.parametrize(
    "estimator", [DPOK(clip=None), DDPO(clip=10.0)], ids=lambda each: type(each).__name__
)
def test_ratios_follow_the_policy_after_an_update(estimator: Estimator) -> None:
    """Without a clip, the mean over old paths of the loss's gradient is that of fresh ones: the
    ratio corrects one step's law.
    """
    chain = AffineReference(
        torch.eye(1, dtype=F64).unsqueeze(0), ScalarDiffusion(torch.tensor([0.7], dtype=F64))
    )
    problem = ControlProblem(
        chain, Quadratic(-torch.eye(1, dtype=F64), torch.ones(1, dtype=F64)), 1.0
    )
    old = AffinePolicy(torch.tensor([[[0.2]]], dtype=F64), torch.tensor([[0.1]], dtype=F64))
    new = AffinePolicy(torch.tensor([[[0.0]]], dtype=F64), torch.tensor([[0.4]], dtype=F64))
    if isinstance(estimator, DDPO):
        estimator = dataclasses.replace(estimator, divide=False)
    samples = estimates(estimator, problem, new, paths(problem, old))
    doubled = ControlProblem(chain, problem.reward, 2.0)
    expected = 2 * minus_gradient(problem, new) - minus_gradient(doubled, new)
    if isinstance(estimator, DPOK):
        expected = minus_gradient(problem, new)
    require_mean(samples, expected, 0.018)
