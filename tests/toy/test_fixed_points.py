"""Where methods converge to: chains on the line, equations, and runs on samples."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch

from socft.checks import InvalidProblem
from socft.density import Gaussian
from socft.flow import affine_flow_reference, flow_reference, precise, uniform_times
from socft.problem import ControlProblem
from socft.reward import Linear, Sine
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.fixed_points.equations import (
    EndpointCovariance,
    ImpliedCostates,
    LeanCostates,
    ReturnsToGo,
    Weights,
    solve,
    sweeps,
)
from toy.fixed_points.line import Hats, LineChain
from toy.fixed_points.methods import PREDICTED_METHODS
from toy.fixed_points.problems import Targets, divergence, total_variation
from toy.fixed_points.runs import Effort
from toy.fixed_points.stability import largest_rate, least_weight, swept_rate
from toy.fixed_points.without_noise import WithoutNoise
from toy.studies.fixed_points import drift_task, run_task, solutions_task

LAW = Gaussian(0.3, 0.5)


def gaussian_line(steps: int, reward: Sine | Linear, beta: float, last: float = 0.05) -> LineChain:
    """A Gaussian, whose chain is affine."""
    schedule = precise(uniform_times(steps, last=last), math.sqrt(2))
    problem = ControlProblem(flow_reference(LAW, schedule), reward, beta)
    return LineChain(problem, Hats(-5.0, 5.0, 61), 5.5, 441)


def rest(problem: LineChain) -> torch.Tensor:
    """No control."""
    return torch.zeros_like(problem.means)


def test_laws_on_the_grid_are_those_of_the_affine_chain():
    found = gaussian_line(6, Sine(), 1.0)
    affine = affine_flow_reference(LAW, found.reference.schedule)
    mean, variance = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for k, law in enumerate(found.laws(found.kernels(rest(found)))):
        measured = float(law @ found.points)
        assert measured == pytest.approx(float(mean), abs=1e-7)
        spread = float(law @ (found.points - measured).square())
        assert spread == pytest.approx(float(variance), rel=3e-6)  # of cutting at 5.5
        if k < 6:
            slope = affine.mean(k, one) - affine.mean(k, zero)
            sigma = found.reference.schedule.sigma[k]
            variance = slope[0].square() * variance + sigma.square()
            mean = affine.mean(k, mean)


def test_what_the_flow_makes_of_a_gaussian_is_a_gaussian():
    found = gaussian_line(40, Sine(), 1.0, last=0.0001)
    law = found.flow_law(rest(found))
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    mean = float(law @ found.points)
    assert mean == pytest.approx(0.3, abs=2e-3)
    euler = 1.0
    for k, dt in enumerate(found.durations):
        s = float(found.reference.schedule.times[k])
        euler *= 1 + float(dt) * (s - (1 - s) * 0.5) / ((1 - s) ** 2 * 0.5 + s**2)
    assert float(law @ (found.points - mean).square()) == pytest.approx(euler**2, rel=2e-3)


@pytest.mark.parametrize("equation", [LeanCostates(), ReturnsToGo()])
def test_equations_of_the_optimum_lead_to_it(equation: LeanCostates | ReturnsToGo):
    targets = Targets.of(ProblemName.FLOW_OVERLAPPING, 5, 2.0)
    policy, _ = solve(targets.line, equation, 1.0)
    law = targets.line.samples(targets.line.controls(policy))
    assert total_variation(law, targets.optimum) < 1e-4  # of the piecewise linear class
    assert total_variation(law, targets.tilt) > 100 * 1e-4


@pytest.mark.slow
def test_without_kl_to_go_the_limit_is_half_the_control_for_twice_the_reward():
    gaps = []
    for steps in (10, 20):
        problem = gaussian_line(steps, Sine(), 1.0)
        twice = gaussian_line(steps, Sine(), 0.5)
        half = twice.controls(solve(twice, LeanCostates(), 1.0)[0]) / 2
        found = problem.controls(solve(problem, ReturnsToGo(kl=False), 1.0)[0])
        weight = problem.laws(problem.kernels(found))[:-1]
        scale = float((weight * half.square()).sum())
        gaps.append(math.sqrt(float((weight * (found - half).square()).sum()) / scale))
    own = solve(problem, LeanCostates(), 1.0)[0]
    optimum = problem.controls(own)
    assert gaps[1] < 0.6 * gaps[0]
    apart = math.sqrt(float((weight * (found - optimum).square()).sum()) / scale)
    assert apart > 3 * gaps[1]


@pytest.mark.slow
def test_without_noise_the_mean_moves_by_half_pi_deviations_and_the_variance_stays():
    shifts = []
    for steps in (15, 30):
        problem = gaussian_line(steps, Linear(torch.ones(1)), 2.0, last=0.0001)
        policy, change = solve(problem, WithoutNoise(lam=4.0), 1.0)
        assert change < 1e-7
        start = problem.flow_law(rest(problem))
        law, x = problem.flow_law(problem.controls(policy)), problem.points
        shifts.append(float(law @ x - start @ x))
        assert float(law @ (x - law @ x).square()) == pytest.approx(
            float(start @ (x - start @ x).square()), rel=1e-4
        )
    expected = math.pi / 2 * math.sqrt(0.5) / 4.0
    assert abs(shifts[1] - expected) < 0.6 * abs(shifts[0] - expected)
    assert shifts[1] == pytest.approx(expected, rel=0.05)


def test_endpoint_covariance_of_a_constant_reward_is_nothing():
    problem = gaussian_line(5, Linear(torch.zeros(1)), 1.0)
    policy, _ = solve(problem, EndpointCovariance(), 1.0)
    assert float(policy.weight.detach().abs().max()) < 1e-12


def test_endpoint_covariance_needs_a_weight_above_the_largest_deficit():
    with pytest.raises(InvalidProblem, match="diverges"):
        solve(gaussian_line(5, Sine(), 0.8), EndpointCovariance(), 0.5)


def test_weights_follow_the_spread_of_the_rewards():
    targets = Targets.of(ProblemName.FLOW_GAUSSIAN, 5, 2.0)
    weights = Weights((3.0,) * 5, normalised=True, floor=0.5)
    found = weights.of(targets.line, targets.pretrained)
    assert found.flatten().tolist() == pytest.approx([3 * (targets.spread + 0.5)] * 5)


def test_distances_of_two_masses():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert total_variation(p, q) == pytest.approx(0.25)
    assert divergence(p, q) == pytest.approx(0.5 * math.log(2))
    assert divergence(p, p) == 0.0


@pytest.mark.parametrize("method", [MethodName.ADJOINT_MATCHING, MethodName.DPOK_LEAVE_ONE_OUT])
def test_runs_end_where_their_equations_say(method: MethodName):
    records = run_task(
        ProblemName.FLOW_OVERLAPPING, method, 3, 2.0, Effort(300, 24, rate=0.5), seeds=5
    )
    found = {record.metric: record for record in records}
    assert found[Metric.DEVIATION].value < 4
    error = found[Metric.REWARD].stderr
    assert error is not None
    assert error < 0.004


def test_methods_are_those_of_the_schema():
    from socft.study.vocabulary.schemas import FIXED_POINTS

    assert FIXED_POINTS.estimators is not None
    assert set(PREDICTED_METHODS) == set(FIXED_POINTS.estimators)


def test_the_endpoints_of_the_data_law_renoised_have_no_control():
    found = gaussian_line(4, Sine(), 1.0)
    levels = found.reference.schedule.levels
    spread = 0.5 * float(levels.signal[-1]) ** 2 + float(levels.noise[-1]) ** 2
    centred = found.points - 0.3 * float(levels.signal[-1])
    law = torch.exp(-centred.square() / (2 * spread))
    for k in range(4):
        ends = found.renoised(k, law / law.sum())
        seen = ends.mass > 1e-6
        assert float((ends.given * ends.control).sum(1)[seen].abs().max()) < 1e-5
        away = torch.exp(-(centred - 0.5).square() / (2 * spread))
        moved = found.renoised(k, away / away.sum())
        assert float((moved.given * moved.control).sum(1)[seen].abs().min()) > 1e-3


def test_weights_drift_from_the_problem_s_own():
    found = {
        (each.estimator, each.setting["iteration"]): each.value
        for each in drift_task(ProblemName.FLOW_OVERLAPPING, 3, 2.0, Effort(300, 8, rate=0.5))
    }
    assert found[MethodName.AWM, 0] == pytest.approx(2.0)
    assert found[MethodName.FLOW_GRPO, 0] == pytest.approx(2.0)
    falls = [found[MethodName.AWM, i] for i in (0, 1, 2, 4, 8)]
    assert falls == sorted(falls, reverse=True)
    assert falls[-1] < 1.97


@pytest.mark.slow
def test_without_noise_the_best_control_is_found_by_sweeps_where_the_flow_is_not_steep():
    records = solutions_task(ProblemName.FLOW_GAUSSIAN, 4, 2.0)
    found = {
        (each.setting["source"], each.setting.get("start"), each.setting.get("damping")): each.value
        for each in records
        if each.metric == Metric.OBJECTIVE
    }
    assert len(found) == 5
    best = found.pop(("bellman", None, None))
    assert max(found.values()) - min(found.values()) < 1e-5
    assert 0 < max(found.values()) - best < 1e-3  # what the fine grid rounds


def test_costates_that_the_control_implies_have_the_same_solution_a_step_per_sweep():
    problem = gaussian_line(4, Sine(), 2.0)
    lean, implied = (
        problem.samples(problem.controls(solve(problem, equation, 1.0)[0]))
        for equation in (LeanCostates(), ImpliedCostates())
    )
    assert total_variation(lean, implied) < 1e-5  # of the piecewise linear class
    assert total_variation(lean, problem.samples(rest(problem))) > 1e-2
    found = itertools.islice(sweeps(problem, ImpliedCostates(), 1.0), 3)
    moved = [[float(each.abs().max()) > 0 for each in weight] for weight, _ in found]
    assert moved == [[False] * 3 + [True], [False] * 2 + [True] * 2, [False] + [True] * 3]


@pytest.mark.slow
def test_the_largest_rate_of_sweeps_is_that_of_the_derivative():
    problem = gaussian_line(3, Sine(), 0.5)
    weight = solve(problem, ReturnsToGo(), 1.0)[0].weight.detach()
    predicted = largest_rate(problem, ReturnsToGo(), weight, 1e-3)
    assert 1 < predicted < 2
    swept = swept_rate(problem, ReturnsToGo(), weight, 1e-3, predicted)
    assert swept == pytest.approx(predicted, rel=0.04)  # twice a step of the bisection


@pytest.mark.slow
def test_regressions_that_weigh_with_rewards_need_a_weight_above_the_largest_deficit():
    predicted = PREDICTED_METHODS[MethodName.RAM]
    targets_of = functools.partial(Targets.of, ProblemName.FLOW_GAUSSIAN, 3)
    least, curvature = least_weight(targets_of, predicted, 0.4, 3.0)
    assert 0.6 < least < 1  # sin x >= -1, more given a state of a step
    assert abs(curvature) < 0.1
