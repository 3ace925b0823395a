"""Costates by nested regressions."""

from __future__ import annotations

import pytest
import torch

from socft.costates.adjoint import FullRecursion
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.reference import AffineReference
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import QuadraticCost
from tests.support.costate_cases import STEPS, quadratic_problem
from tests.support.costate_fields import lean_field, paths, root_mean_square, some_policy
from tests.support.tensors import F64, randn


def test_least_squares_costates_are_nested_regressions():
    """The last two steps by numpy-like normal equations, and convergence to the exact lean
    field.
    """
    problem, policy = quadratic_problem(), some_policy()
    path = paths(problem, policy, 20000, 27)
    fitted = LeastSquaresCostate(LinearRegression(Polynomial(1))).fit(problem, policy, path)
    exact, x = lean_field(problem, policy), randn(28, 50, 2)
    assert isinstance(problem.reference, AffineReference)
    assert isinstance(problem.running_cost, QuadraticCost)
    target = problem.reward.gradient(path.final)
    for k in (STEPS - 1, STEPS - 2):
        y = path.states[k]
        design = torch.cat([torch.ones(len(y), 1, dtype=F64), y], 1)
        pulled = (
            target @ problem.reference.transition[k]
            - y @ problem.running_cost.F
            - problem.running_cost.h
        )
        weight = torch.linalg.solve(design.T @ design, design.T @ pulled)
        target = design @ weight
        assert (fitted(k, y) - target).abs().max() < 1e-9
    for k in range(STEPS + 1):
        assert root_mean_square(fitted(k, x) - exact(k, x)) < 0.03


@pytest.mark.parametrize(
    "make",
    [
        LeastSquaresCostate(LinearRegression(Polynomial(1)), FullRecursion()),
        LeastSquaresValue(LinearRegression(Polynomial(2))),
    ],
)
def test_values_and_full_costates_give_the_policys_value_gradient(make):
    problem, policy = quadratic_problem(), some_policy()
    fitted = make.fit(problem, policy, paths(problem, policy, 20000, 29))
    exact, x = evaluate_affine(problem, policy).value.gradient, randn(30, 50, 2)
    errors = [root_mean_square(fitted(k, x) - exact(k, x)) for k in range(STEPS + 1)]
    assert max(errors) < 0.12
    assert root_mean_square(lean_field(problem, policy)(0, x) - exact(0, x)) > 0.3
