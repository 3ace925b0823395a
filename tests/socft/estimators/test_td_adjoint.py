"""TD(lambda) between adjoint matching and bootstrapping."""

from __future__ import annotations

import pytest

from socft.checks import InvalidProblem
from socft.costates.fields import (
    GivenCostate,
    PolicyCostate,
)
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.td_adjoint import TDAdjoint
from socft.reference import AffineReference
from socft.truth.linear_quadratic import QuadraticCost
from tests.support.costate_cases import STEPS, quadratic_problem
from tests.support.costate_fields import (
    IDENTITY,
    STDERRS,
    largest_scores,
    lean_field,
    paths,
    some_policy,
    wrong_field,
)


def test_lambda_one_is_adjoint_matching_and_lambda_zero_bootstraps():
    problem, policy = quadratic_problem(), some_policy()
    path = paths(problem, policy, 30, 12)
    one = TDAdjoint(GivenCostate(wrong_field), 1.0).label(problem, policy, path).targets
    assert (
        one - AdjointMatching().label(problem, policy, path).targets
    ).abs().max() < IDENTITY * 10
    zero = TDAdjoint(GivenCostate(wrong_field), 0.0).costates(problem, policy, path)
    assert zero.next_costate is not None
    for k in range(STEPS - 1):
        assert (
            zero.next_costate[k] - wrong_field(k + 1, path.states[k + 1])
        ).abs().max() < IDENTITY
    half = TDAdjoint(GivenCostate(wrong_field), 0.5).costates(problem, policy, path)
    assert half.next_costate is not None
    assert isinstance(problem.reference, AffineReference)
    assert isinstance(problem.running_cost, QuadraticCost)
    for k in range(STEPS):
        bootstrap = (
            wrong_field(k + 1, path.states[k + 1])
            if k + 1 < STEPS
            else problem.reward.gradient(path.final)
        )
        mixed = (half.values[k + 1] + bootstrap) / 2
        pulled = (
            mixed @ problem.reference.transition[k]
            - path.states[k] @ problem.running_cost.F
            - problem.running_cost.h
        )
        assert (half.next_costate[k] - mixed).abs().max() < IDENTITY * 10
        assert (half.values[k] - pulled).abs().max() < IDENTITY * 10


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_bootstrapping_is_unbiased_with_the_exact_field_and_biased_with_another(lam: float):
    problem, policy = quadratic_problem(), some_policy()
    exact = lean_field(problem, policy)
    assert largest_scores(TDAdjoint(GivenCostate(exact), lam), exact, problem, policy) < STDERRS
    assert (
        largest_scores(TDAdjoint(GivenCostate(wrong_field), lam), exact, problem, policy)
        > 2 * STDERRS
    )


@pytest.mark.parametrize("lam", [-0.1, 1.5])
def test_lambda_outside_the_unit_interval_is_refused(lam: float):
    with pytest.raises(InvalidProblem, match=rf"lam = {lam}; it must lie in \[0, 1\]"):
        TDAdjoint(PolicyCostate(), lam)
