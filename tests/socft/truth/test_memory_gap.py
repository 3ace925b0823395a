"""Tilts of Gaussian laws: what the kernels and the memory of a chain leave between the optimum and
the tilt."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import Schedule, ddpm, linear_levels, subsample, variance_preserving
from socft.truth.linear_quadratic import (
    LinearQuadratic,
    evaluate_affine,
    wasserstein,
)
from tests.support.quadratic.cases import QUADRATURE, ROUNDING, SUMMED, denoiser, general, order
from tests.support.tensors import F64, randn


def line(
    schedule: Schedule, curvature: float = 0.3, beta: float = 1.0, variance: float = 0.5
) -> ControlProblem:
    """Fine-tuning N(0.4, variance) in one dimension."""
    reference = denoiser(
        schedule, torch.tensor([variance]), torch.eye(1, dtype=F64), torch.tensor([0.4], dtype=F64)
    )
    reward = Quadratic(torch.tensor([[curvature]], dtype=F64), torch.tensor([0.7], dtype=F64), 0.1)
    return ControlProblem(reference, reward, torch.tensor(beta))


def conditional_law(problem: ControlProblem, start: float) -> tuple[float, float]:
    """Mean and variance of X_T given X_0 in one dimension."""
    mean, variance = torch.tensor([[start]], dtype=F64), 0.0
    for k in range(problem.steps):
        one = torch.ones(1, 1, dtype=F64)
        rate = float(problem.reference.mean(k, one) - problem.reference.mean(k, 0 * one))
        mean, variance = (
            problem.reference.mean(k, mean),
            rate**2 * variance + float(problem.reference.diffusion.apply(k, one, one)) ** 2,
        )
    return float(mean), variance


def gibbs_value(problem: ControlProblem, mean: float, variance: float) -> float:
    """``beta log E exp(r / beta)`` under N(mean, variance), by adaptive quadrature."""
    beta, spread = float(problem.beta[0]), variance**0.5

    def weighed(z: float) -> float:
        reward = float(problem.reward(torch.tensor([[mean + spread * z]], dtype=F64)))
        return math.exp(reward / beta - z * z / 2) / math.sqrt(2 * math.pi)

    return beta * math.log(
        quad(weighed, -40, 40, epsabs=0, epsrel=QUADRATURE, limit=400, points=[0.0])[0]
    )


@pytest.mark.parametrize("curvature", [0.3, -2.0])
def test_the_kernel_gap_is_the_excess_of_the_whole_chains_gibbs_value(curvature: float):
    problem = line(variance_preserving(6), curvature)
    truth = LinearQuadratic(problem)
    for start in (-1.0, 0.0, 2.0):
        excess = gibbs_value(problem, *conditional_law(problem, start)) - float(
            truth.value(0, torch.tensor([[start]], dtype=F64))
        )
        assert float(truth.kernel_gap().sum()) == pytest.approx(excess, abs=10 * QUADRATURE)
    assert bool((truth.kernel_gap() > 0).all())


@pytest.mark.parametrize("running", [False, True])
def test_the_kernel_gap_in_two_dimensions_from_the_stacked_noise(running: bool):
    """Reward minus costs is quadratic in all noises at once, so the Gibbs value is one Gaussian
    integral in T m dimensions.
    """
    beta = 3.0
    problem = dataclasses.replace(general(2, 1, 5, 21, running), beta=torch.tensor(beta))
    truth, zero = LinearQuadratic(problem), torch.zeros(5, dtype=F64)
    for start in randn(2, 3, 2):

        def outcome(noises: Tensor, start: Tensor = start) -> Tensor:
            x, total = start[None], torch.zeros(1, dtype=F64)
            for k in range(5):
                total = total - problem.cost(k, x)
                x = problem.reference.step(k, x, noises[k].reshape(1, 1))
            return (total + problem.reward(x))[0]

        bend = torch.autograd.functional.hessian(outcome, zero)
        assert isinstance(bend, Tensor)
        inner = torch.eye(5, dtype=F64) - bend / beta
        (slope,) = torch.autograd.functional.vjp(outcome, zero, torch.ones((), dtype=F64))[1:]
        gibbs = (
            outcome(zero)
            + slope @ torch.linalg.solve(inner, slope) / beta / 2
            - beta * torch.logdet(inner) / 2
        )
        assert float(truth.kernel_gap().sum()) == pytest.approx(
            float(gibbs - truth.value(0, start[None])[0]), rel=SUMMED
        )


def test_the_kernel_gap_vanishes_at_order_one():
    gaps = [
        float(LinearQuadratic(line(variance_preserving(T))).kernel_gap().sum())
        for T in (50, 100, 200, 400)
    ]
    assert order(gaps) == pytest.approx(1.0, abs=0.02)


def test_the_memory_gap_is_the_difference_of_two_gibbs_values():
    problem = line(variance_preserving(8))
    laws = [conditional_law(problem, start) for start in (0.0, 1.0)]
    (mean, variance), slope = laws[0], laws[1][0] - laws[0][0]
    whole = gibbs_value(problem, mean, variance + slope**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    split = [gibbs_value(problem, *conditional_law(problem, float(node))) for node in nodes]
    assert LinearQuadratic(problem).memory_gap() == pytest.approx(
        whole - float(weights @ split) / weights.sum(), abs=10 * QUADRATURE
    )


def test_the_memory_gap_in_two_dimensions_from_the_tilt_of_a_gaussian():
    problem = dataclasses.replace(general(2, 2, 4, 50, running=False), beta=torch.tensor(4.0))
    truth = LinearQuadratic(problem)
    law = evaluate_affine(problem, AffinePolicy.zeros(problem.reference)).final_law
    path_value = truth.objective + float(truth.kernel_gap().sum())
    assert truth.memory_gap() == pytest.approx(
        4.0 * law.tilted(problem.reward, 4.0).log_normaliser - path_value, rel=SUMMED
    )


def test_more_steps_do_not_remove_the_memory_gap_but_a_memoryless_schedule_does():
    remembering = [
        LinearQuadratic(line(variance_preserving(T))).memory_gap() for T in (100, 200, 400, 800)
    ]
    assert order([abs(a - b) for a, b in itertools.pairwise(remembering)]) == pytest.approx(
        1.0, abs=0.05
    )
    limit = 2 * remembering[-1] - remembering[-2]
    assert limit > 0.5 * remembering[0] > 0.01
    levels = linear_levels(1000)
    memoryless = ddpm(subsample(levels, 200))
    assert memoryless.is_memoryless()
    assert LinearQuadratic(line(memoryless)).memory_gap() < 10 * memoryless.memory() ** 2
    fading = [
        LinearQuadratic(line(variance_preserving(400, rate))).memory_gap()
        for rate in (2.0, 4.0, 8.0)
    ]
    assert fading[0] > 5 * fading[1] > 5 * 5 * fading[2] > 0


def test_the_memory_gap_is_infinite_where_only_the_controlled_problem_is_well_posed():
    problem = line(variance_preserving(50), curvature=2.0)
    law = evaluate_affine(problem, AffinePolicy.zeros(problem.reference)).final_law
    _, variance = conditional_law(problem, 0.0)
    between = 2.0 * (float(law.covariance) + variance) / 2
    tilt = dataclasses.replace(problem, beta=torch.tensor(between))
    assert LinearQuadratic(tilt).memory_gap() == math.inf
    with pytest.raises(InvalidProblem, match="not integrable"):
        LinearQuadratic(tilt).tilt()


def test_the_optimal_law_tends_to_the_tilt_only_without_memory():
    distances = {}
    for name, schedules in {
        "memoryless": [
            ddpm(subsample(linear_levels(4000, train_steps=1000), T)) for T in (100, 200, 400)
        ],
        "remembering": [variance_preserving(T) for T in (100, 200, 400)],
    }.items():
        truths = [LinearQuadratic(line(schedule, curvature=-1.0)) for schedule in schedules]
        distances[name] = [wasserstein(truth.final_law, truth.tilt()) for truth in truths]
    assert order(distances["memoryless"]) == pytest.approx(1.0, abs=0.1)
    assert distances["remembering"][-1] > 0.9 * distances["remembering"][0] > 0.02


def test_the_wasserstein_distance_of_gaussians():
    first, second = (
        Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])),
        Gaussian(torch.zeros(2), torch.tensor([1.0, 1.0])),
    )
    assert wasserstein(first, second) == pytest.approx(math.sqrt(5 + 1 + 4), rel=ROUNDING)
    root = torch.tensor(
        [[2.0, 0.5], [0.5, 1.0]], dtype=F64
    )  # the symmetric positive map of the standard law is optimal
    third = Gaussian(torch.zeros(2), root @ root)
    assert wasserstein(third, second) == pytest.approx(
        float((root - torch.eye(2, dtype=F64)).norm()), rel=ROUNDING
    )
    assert wasserstein(third, third) < math.sqrt(ROUNDING)
