"""Trust-region iterations against optima by quadrature."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import GaussianMixture, score_reference
from socft.pi_ft import ExactPIFT
from socft.policy import FunctionPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion
from socft.reward import Quadratic, Sine
from socft.schedule import variance_preserving
from socft.trust_region import TrustRegion, proximal_problem
from socft.truth.grid import Grid
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from tests.support.tensors import F64

BETA = 1.2
X = torch.linspace(-1.5, 1.5, 7, dtype=F64)[:, None]
LAW = GaussianMixture([0.6, 0.4], [-1.0, 1.0], [0.3, 0.4])


def problem(steps: int) -> ControlProblem:
    chain = score_reference(LAW, variance_preserving(steps))
    return ControlProblem(chain, Sine(), BETA, lambda k, x: 0.1 / steps * x[:, 0].square())


def inner(steps: int, iterations: int = 9) -> ExactPIFT:
    """Of few nodes, enough for six digits."""
    corner = torch.tensor([6.5], dtype=F64)
    return ExactPIFT(iterations, (Grid.box(-corner, corner, (141,)),) * (steps + 1))


def apart(policy: Policy, other: Policy | Quadrature, steps: int) -> float:
    control = other.control if isinstance(other, Quadrature) else other
    gaps: list[Tensor] = [policy(k, X) - control(k, X) for k in range(steps)]
    return float(torch.stack(gaps).abs().max())


def test_the_first_iterate_is_the_optimum_of_a_larger_weight():
    at = problem(3)
    *_, first = TrustRegion(inner(3), [0.7]).iterations(at)
    truth = Quadrature(dataclasses.replace(at, beta=1.7 * at.beta), nodes=(201,))
    assert apart(first.policy, truth, 3) < 1e-5
    assert float(first.details["tau"]) == pytest.approx(1 / 1.7)


@pytest.mark.parametrize("curvature", [0.9, -1.5])
def test_the_distance_falls_at_the_rate_of_the_multiplier_and_the_curvature(curvature: float):
    """One step, ``r = P x^2 / 2 + x``: ``lambda / (lambda + 1 - sigma^2 P / beta)``."""
    sigma, multiplier = 0.6, 0.5
    chain = AffineReference([[[0.8]]], ScalarDiffusion([sigma]))
    reward = Quadratic(torch.tensor([[curvature]], dtype=F64), torch.ones(1, dtype=F64))
    at = ControlProblem(chain, reward, BETA)
    truth, method = LinearQuadratic(at), TrustRegion(inner(1, 20), [multiplier] * 3)
    found = [each.policy(0, X) - truth.control(0, X) for each in method.iterations(at)]
    rate = multiplier / (multiplier + 1 - sigma**2 * curvature / BETA)
    for before, after in itertools.pairwise(found):
        torch.testing.assert_close(after, rate * before, rtol=1e-6, atol=1e-8)


def test_the_limit_is_the_optimum():
    at = problem(3)
    truth, method = Quadrature(at, nodes=(201,)), TrustRegion(inner(3), [0.1] * 4)
    found = [apart(each.policy, truth, 3) for each in method.iterations(at)]
    assert found[-1] < 3e-4 * found[0]


def test_iterates_are_tilts_up_to_the_step():
    gaps = []
    for steps in (3, 6):
        at = problem(steps)
        at = ControlProblem(at.reference, at.reward, BETA)
        *_, second = TrustRegion(inner(steps), [1.0, 1.0]).iterations(at)
        tilted = dataclasses.replace(at, beta=at.beta / float(second.details["tau"]))
        truth = Quadrature(tilted, nodes=(201,))
        size = max(float(truth.control(k, X).abs().max()) for k in range(steps))
        gaps.append(apart(second.policy, truth, steps) / size)
    assert 1e-4 < gaps[1] < gaps[0] < 0.05
    assert 1.4 < gaps[0] / gaps[1] < 3.0


def test_the_objective_of_a_step_is_the_objective_less_the_divergence_from_the_last():
    """Term by term, for controls of which neither is optimal."""
    at, multiplier = problem(3), 0.8
    share = multiplier / (1 + multiplier)
    last, v = torch.sin(X), 0.4 * torch.cos(X)
    made = proximal_problem(at, FunctionPolicy(lambda k, x: torch.sin(x)), multiplier)
    for k in range(3):
        moved = v - share * last
        found = made.cost(k, X) + made.beta[k] * moved.square().sum(1) / 2
        near = at.beta[k] * (v - last).square().sum(1) / 2
        expected = at.cost(k, X) + at.beta[k] * v.square().sum(1) / 2 + multiplier * near
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        step = made.reference.step(k, X, moved)
        torch.testing.assert_close(step, at.reference.step(k, X, v), rtol=1e-12, atol=1e-12)


def test_wrong_multipliers_are_refused():
    for given, said in (([], "no multipliers"), ([0.5, -1.0], r"multipliers\[1\] = -1")):
        with pytest.raises(InvalidProblem, match=said):
            TrustRegion(inner(3), given)
