"""The errors that linear-quadratic truths report, against balls of thousands of bits, over all that
constructors accept.
"""

from __future__ import annotations

import math

import flint
import pytest
import torch

from socft.density import Gaussian, affine_reference
from socft.problem import ControlProblem
from socft.reference import AffineReference, MatrixDiffusion, ScalarDiffusion
from socft.reward import Quadratic
from socft.schedule import ddpm, linear_levels
from socft.truth.base import ErrorBounds
from socft.truth.linear_quadratic import LinearQuadratic
from tests.support.quadratic.exact import ExactOptimum, deviation, exact_optimum
from tests.support.quadratic.problems import random_problem
from tests.support.tensors import F64, t

M = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
LAW = Gaussian([0.0, 0.0], torch.tensor([[2.0, 0.9], [0.9, 0.7]], dtype=F64))
LAST_BITS = 300.0
FEW = 5
"""States per step at which errors are measured."""


def true_errors(truth: LinearQuadratic, exact: ExactOptimum) -> ErrorBounds:
    """The largest ones at some states of every step (of some steps, if there are many)."""
    steps = truth.problem.steps
    chosen = sorted({*range(0, steps + 1, 1 + steps // 40), steps - 1, steps})
    found: list[list[float]] = [[], [], []]
    for k in chosen:
        x = truth.points(k)[:FEW]
        control = truth.control(k, x) if k < steps else None
        gradient, value = truth.value_gradient(k, x), truth.value(k, x)
        for i, state in enumerate(x):
            if control is not None:
                found[0].append(deviation(control[i], exact.control_at(k, state)))
            found[1].append(deviation(gradient[i], exact.gradient(k, state)))
            found[2].append(deviation(value[i : i + 1], [exact.value_at(k, state)]))
    control, gradient, value = (max(each) for each in found)
    return ErrorBounds(control, gradient, value, deviation(t(truth.objective), [exact.objective]))


def require_bounded(seed: int) -> float:
    """The ratio of bound and true error of the control."""
    truth = LinearQuadratic(random_problem(seed))
    exact, bound = exact_optimum(truth.problem), truth.errors
    if exact is None:
        assert math.isinf(bound.control)
        return math.inf
    true = true_errors(truth, exact)
    for name in ("control", "gradient", "value", "objective"):
        assert getattr(true, name) <= getattr(bound, name), name
    return bound.control / true.control if true.control else math.inf


@pytest.mark.parametrize("seed", range(20, 28))
def test_gaps_to_the_tilt_are_bounded(seed: int):
    problem = random_problem(seed)
    steady = ControlProblem(
        problem.reference, problem.reward, float(problem.beta.max()), problem.running_cost
    )
    truth = LinearQuadratic(steady)
    exact, bound = exact_optimum(steady), truth.gap_errors
    assert exact is not None
    with flint.ctx.workprec(4096):
        beta = flint.arb(float(steady.beta[0]))
        gaps = [
            -beta * (volume + trace) / 2
            for volume, trace in zip(exact.log_det, exact.trace, strict=True)
        ]
        for found, gap, most in zip(truth.kernel_gap(), gaps, bound.kernel, strict=True):
            assert deviation(found[None], [gap]) <= most <= 1e-6 * float(gap)
        if exact.memory is None:
            assert math.isinf(bound.memory)
        else:
            assert deviation(t(truth.memory_gap()), [exact.memory]) <= bound.memory


@pytest.mark.parametrize("seed", range(8))
def test_errors_are_bounded(seed: int):
    assert require_bounded(seed) >= 1


@pytest.mark.slow
def test_errors_of_eighty_problems_are_bounded_and_not_much_more():
    ratios = torch.tensor([require_bounded(seed) for seed in range(1000, 1080)])
    finite = ratios[torch.isfinite(ratios)]
    assert len(finite) >= 76
    assert float(finite.median()) < 200


@pytest.mark.parametrize("scale", [1e0, 1e4, 1e6, 1e8, 1e10, 1e12])
def test_stiff_rewards_keep_all_digits(scale: float):
    reference = affine_reference(LAW, ddpm(linear_levels(50)))
    reward = Quadratic(-scale * M, scale * t(0.3, -0.2))
    truth = LinearQuadratic(ControlProblem(reference, reward, 1.0))
    exact = exact_optimum(truth.problem)
    assert exact is not None
    x = t(0.3, -1.1)
    for k in (0, 20, 49):
        size = float(truth.value_gradient(k, x[None]).norm())
        wrong = deviation(truth.value_gradient(k, x[None])[0], exact.gradient(k, x))
        assert wrong <= 1e-13 * size
    assert truth.errors.control < 1e-12


@pytest.mark.parametrize("scale", [1e6, 1e12, 1e18])
def test_noise_in_one_direction_keeps_all_digits(scale: float):
    """In one step; after several the unsteered direction is known to the ulps of the reward."""
    noise = MatrixDiffusion([[[0.7], [0.1]]])
    A = torch.tensor([[[0.9, 0.2], [-0.1, 0.8]]], dtype=F64)
    problem = ControlProblem(AffineReference(A, noise), Quadratic(-scale * M), 1.0)
    truth, exact = LinearQuadratic(problem), exact_optimum(problem)
    assert exact is not None
    x = t(0.4, -0.6)
    assert deviation(truth.control(0, x[None])[0], exact.control_at(0, x)) <= 1e-14
    wrong = deviation(truth.value_gradient(0, x[None])[0], exact.gradient(0, x))
    assert wrong <= 1e-14 * float(truth.value_gradient(0, x[None]).norm())
    assert truth.error <= 1e-12


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("scale", [1e6, 1e12, 1e18])
def test_errors_of_noise_in_one_direction_over_several_stiff_steps_are_bounded(
    scale: float, steps: int
):
    """The curvature across what is steered is left of entries of the reward's size that cancel, so
    that their last bits decide: no order of operations knows it better, and the bound says so.
    """
    noise = MatrixDiffusion(t(0.7, 0.1).reshape(1, 2, 1).expand(steps, 2, 1))
    A = t(0.9, 0.2, -0.1, 0.8).reshape(1, 2, 2).expand(steps, 2, 2)
    problem = ControlProblem(AffineReference(A, noise), Quadratic(-scale * M), 1.0)
    truth, exact = LinearQuadratic(problem), exact_optimum(problem)
    assert exact is not None
    true, bound = true_errors(truth, exact), truth.errors
    for name in ("control", "gradient", "value", "objective"):
        assert getattr(true, name) <= getattr(bound, name), name
    assert bound.gradient <= LAST_BITS * torch.finfo(F64).eps * scale


@pytest.mark.parametrize("above", [1e-2, 1e-6, 1e-10, 1e-13])
def test_errors_next_to_the_smallest_beta(above: float):
    """The optimum grows like one over the distance to the threshold, and so does its error."""
    reference = AffineReference([[[0.9]]], ScalarDiffusion([0.5]))
    beta = 0.25 * 0.7 * (1 + above)
    truth = LinearQuadratic(ControlProblem(reference, Quadratic(t(0.7)[:, None], t(0.2)), beta))
    exact = exact_optimum(truth.problem)
    assert exact is not None
    true = true_errors(truth, exact)
    assert true.control <= truth.error
    assert truth.error <= 1e-13 / above**2


def test_the_precision_of_balls_is_left_alone():
    before = flint.ctx.prec
    assert LinearQuadratic(random_problem(3)).error > 0
    assert flint.ctx.prec == before
