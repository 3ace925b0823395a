"""The four objectives that a policy stands between."""

from __future__ import annotations

import math

import pytest
import torch

from socft import (
    AffinePolicy,
    ControlProblem,
    Gaussian,
    LinearQuadratic,
    Quadratic,
    Quadrature,
    Rotated,
    ScaledPolicy,
    Separable,
    SeparableTruth,
    Sine,
    Uncontrolled,
    affine_reference,
    compare,
    ddpm,
    linear_levels,
    subsample,
)
from socft.truth.affine_policy import evaluate_affine

SCHEDULE = ddpm(subsample(linear_levels(1000), 3))
BETA = 2.0


def known(value: float | None) -> float:
    assert value is not None
    return value


def quadratic() -> ControlProblem:
    reference = affine_reference(Gaussian([0.5], [[0.3]]), SCHEDULE)
    reward = Quadratic(-torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    return ControlProblem(reference, reward, BETA)


def test_the_tilt_is_that_of_the_final_law_in_closed_form():
    truth = LinearQuadratic(quadratic())
    found = compare(truth, truth.policy)
    zero = AffinePolicy.zeros(truth.problem.reference)
    final = evaluate_affine(truth.problem, zero).final_law
    exact = BETA * final.tilted(truth.problem.reward, BETA).log_normaliser
    assert found.tilt == pytest.approx(exact, rel=1e-12)
    assert found.chain == truth.objective
    assert found.pre_trained < found.chain < known(found.continuous) < known(found.tilt)


def test_quadrature_and_the_linear_quadratic_solution_agree():
    problem = quadratic()
    half = ScaledPolicy(LinearQuadratic(problem).policy, [0.5] * problem.steps)
    first, second = (compare(make(problem), half) for make in (LinearQuadratic, Quadrature))
    assert second.continuous == pytest.approx(first.continuous, abs=1e-9)
    assert second.tilt == pytest.approx(first.tilt, abs=1e-9)


def test_coordinates_add_up():
    law = Gaussian(0.3, 0.5)
    truth = SeparableTruth(
        Rotated(torch.eye(2), [law] * 2), Separable(torch.eye(2), [Sine(), Sine()]), SCHEDULE, BETA
    )
    one = compare(truth.parts[0], truth.parts[0].policy)
    both = compare(truth, truth.policy)
    assert both.continuous == pytest.approx(2 * known(one.continuous))
    assert both.tilt == pytest.approx(2 * known(one.tilt))


def test_what_is_not_known_is_left_out():
    reference = affine_reference(Gaussian([0.0, 0.0], 0.5), SCHEDULE)
    truth = Quadrature(ControlProblem(reference, lambda x: x.sum(1), BETA), nodes=(41, 41))
    found = compare(truth, truth.policy)
    assert found.tilt is None
    assert "tilt" not in str(found)
    assert found.share == pytest.approx(1)


def test_a_policy_that_loses_stands_before_the_pre_trained_model():
    problem = quadratic()
    truth = LinearQuadratic(problem)
    away = ScaledPolicy(truth.policy, [-1.0] * problem.steps)
    found = compare(truth, away)
    assert found.share < 0
    assert str(found).startswith("policy ")
    still = compare(truth, Uncontrolled(problem.reference))
    assert still.share == pytest.approx(0, abs=0.05)


def test_no_way_is_no_share():
    reference = affine_reference(Gaussian([0.5], [[0.3]]), SCHEDULE)
    truth = LinearQuadratic(
        ControlProblem(reference, Quadratic(torch.zeros(1, 1, dtype=torch.float64)), BETA)
    )
    assert math.isnan(compare(truth, truth.policy).share)
