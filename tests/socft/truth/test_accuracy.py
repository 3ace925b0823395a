"""What truths by quadrature say of their own errors, and the accuracy that is asked of them."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from socft.checks import InvalidProblem
from socft.density import GaussianMixture, score_reference
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, ScalarDiffusion
from socft.reward import FunctionReward, Reward, Sine
from socft.schedule import ddpm, linear_levels, subsample
from socft.truth.backward import resized, solve_backward
from socft.truth.base import Truth
from socft.truth.grid import Grid
from socft.truth.least_beta import measured_beta
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import AccuracyWarning, Quadrature
from tests.socft.truth.test_quadrature import LINEAR_QUADRATIC, solved
from tests.support.tensors import t

PESSIMISM = 100.0
LEAST = 4e-15  # below it the true error is luck
ANGLE = 0.6


def off(truth: Quadrature, exact: Truth) -> float:
    """The largest error of the control at nodes and between them."""
    return max(
        float((truth.control(k, x) - exact.control(k, x)).norm(dim=1).max())
        for k in range(truth.problem.steps)
        for x in [torch.cat([truth.points(k), truth.points(k) - truth.grids[k].spacing / 3])]
    )


@pytest.mark.parametrize("name", LINEAR_QUADRATIC)
def test_the_error_of_linear_quadratic_problems_is_bounded_within_a_hundredfold(name: str):
    truth = solved(name)
    true = off(truth, LinearQuadratic(truth.problem))
    assert true <= truth.error <= PESSIMISM * max(true, LEAST)


def turned() -> torch.Tensor:
    return t(math.cos(ANGLE), -math.sin(ANGLE), math.sin(ANGLE), math.cos(ANGLE)).reshape(2, 2)


def drift(x: torch.Tensor) -> torch.Tensor:
    return 0.8 * x + 0.3 * torch.tanh(x)


def separable() -> tuple[ControlProblem, ControlProblem]:
    """A sum of the same reward of either coordinate after a turn, and the problem of one."""
    turn, sigma = turned(), ScalarDiffusion(t(0.6, 0.5, 0.4))
    wave = lambda y: torch.sin(1.4 * y)  # noqa: E731
    plane = KernelReference(
        lambda k, x: drift(x @ turn.T) @ turn, sigma, 3, (2,), lambda noise: noise
    )
    line = KernelReference(lambda k, x: drift(x), sigma, 3, (1,), lambda noise: noise)
    both = FunctionReward(lambda x: wave(x @ turn.T).sum(1), L0=2.0, L1=2.0)
    one = FunctionReward(lambda x: wave(x[:, 0]), L0=1.4, L1=2.0)
    return ControlProblem(plane, both, 1.5), ControlProblem(line, one, 1.5)


@functools.cache
def coordinate() -> Quadrature:
    return Quadrature(separable()[1])


def product_error(truth: Quadrature) -> float:
    """The largest error of the control in the plane against twice the line's."""
    turn, found = turned(), []
    for k in range(truth.problem.steps):
        x = torch.cat([truth.points(k), truth.points(k) - truth.grids[k].spacing / 3])
        each = [coordinate().control(k, (x @ turn.T)[:, i : i + 1]) for i in range(2)]
        found.append(float((truth.control(k, x) - torch.cat(each, 1) @ turn).norm(dim=1).max()))
    return max(found)


@pytest.mark.parametrize("nodes", [33, 57])
def test_the_error_in_the_plane_is_bounded_within_a_hundredfold(nodes: int):
    truth = Quadrature(separable()[0], nodes=(nodes, nodes))
    true = product_error(truth)
    assert 1e-13 < true <= truth.error <= PESSIMISM * true


def test_grids_in_the_plane_are_refined_to_the_accuracy_that_is_asked():
    rough, fine = (Quadrature(separable()[0], accuracy=wanted) for wanted in (1e-2, 1e-4))
    assert product_error(rough) <= rough.error <= 1e-2
    assert product_error(fine) <= fine.error <= 1e-4
    assert rough.grids[0].shape < fine.grids[0].shape


def modes(reward: Reward) -> ControlProblem:
    data = GaussianMixture([0.7, 0.3], [[-1.5], [1.5]], 0.16)
    return ControlProblem(
        score_reference(data, ddpm(subsample(linear_levels(1000), 5))), reward, 1.0
    )


KINK = FunctionReward(lambda x: (x[:, 0] - 0.31).abs(), L0=1.0)


def denser(truth: Quadrature) -> Quadrature:
    grids = tuple(Grid.box(g.lower, g.upper, (4 * g.shape[0] + 3,)) for g in truth.grids)
    return Quadrature(truth.problem, grids)


def test_the_error_of_a_smooth_problem_on_the_line_is_bounded_within_a_hundredfold():
    truth = Quadrature(modes(Sine(1.0, 1.0)), nodes=(301,))
    true = off(truth, denser(truth))
    assert true <= truth.error <= PESSIMISM * true


def test_the_error_at_a_kink_is_bounded_and_told():
    with pytest.warns(AccuracyWarning, match=r"gradient of the smoothed reward is off by some \d"):
        truth = Quadrature(modes(KINK))
    assert 1e-3 < off(truth, denser(truth)) <= truth.error
    with pytest.warns(AccuracyWarning, match=r"and accuracy = 1e-06 was asked for"):
        truth = Quadrature(modes(KINK), accuracy=1e-6)
    assert off(truth, denser(truth)) <= truth.error


def test_an_accuracy_is_a_positive_number_in_place_of_grids():
    problem = modes(Sine(1.0, 1.0))
    with pytest.raises(InvalidProblem, match=r"accuracy = -1; it must be positive"):
        Quadrature(problem, accuracy=-1.0)
    with pytest.raises(InvalidProblem, match="an accuracy chooses its own grids; give one"):
        Quadrature(problem, nodes=(301,), accuracy=1e-6)


@pytest.mark.parametrize("lam", [0.2, 0.7])
def test_the_least_weight_is_from_above_and_to_six_digits(lam: float):
    """By the rate of contraction on grids of twice the usual nodes."""
    reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5, 0.4, 0.6]))
    problem = ControlProblem(reference, Sine(1.0, 2.0), 1.0)
    choice = measured_beta(problem, lam)
    beta = float(choice.beta[0])
    usual = Quadrature(ControlProblem(reference, problem.reward, beta)).grids
    for share in (1.5, 2.0):
        for weight, admitted in ((beta, True), (beta * (1 - 1e-6), False)):
            weighted = ControlProblem(reference, problem.reward, weight)
            rate = solve_backward(weighted, resized(usual, share)).largest_rate
            assert (rate <= 1 - lam) == admitted
    assert float(choice.lam.min()) == pytest.approx(lam, abs=1e-7)
