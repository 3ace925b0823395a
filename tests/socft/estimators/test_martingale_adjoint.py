"""Adjoints corrected by martingale increments: their means whatever the field, and what is left of
their variance."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from socft.costates.adjoint import full_adjoint, lean_adjoint
from socft.costates.base import Cost
from socft.costates.fields import (
    FREE,
    Correction,
    CostateSource,
    GivenCostate,
    PolicyCostate,
)
from socft.costates.martingale import (
    AntitheticCorrection,
    ExactCorrection,
    FieldCorrection,
    FirstOrderCorrection,
    SecondOrderCorrection,
)
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.path import Path
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import MatrixDiffusion
from socft.schedule import ddpm, linear_levels, subsample
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from tests.support.costate_cases import CORRECTIONS, STEPS, quadratic_problem
from tests.support.costate_fields import (
    BREATH,
    GROWTH,
    IDENTITY,
    STDERRS,
    VANISHED,
    geometric,
    largest_scores,
    lean_field,
    paths,
    scores,
    some_policy,
    wrong_field,
)
from toy.problems import fine_tuning

# relative variance left by an interpolated field, against at least 1e-4 for the other increments
QUADRATURE = 1e-8


@dataclasses.dataclass(frozen=True)
class NotAMartingale(Correction):
    """The field itself, whose mean is not zero."""

    @property
    def cost(self) -> Cost:
        return FREE

    def increment(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> Tensor:
        return wrong_field(k + 1, path.states[k + 1]) / 2


@pytest.mark.parametrize("last", [True, False], ids=["", "last step uncorrected"])
@pytest.mark.parametrize("make", CORRECTIONS)
def test_full_costates_are_unbiased_whatever_the_field(make: type[FieldCorrection], last: bool):
    problem, policy = quadratic_problem(), some_policy()
    exact = evaluate_affine(problem, policy).value.gradient
    estimator = FullMartingaleAdjoint(make(GivenCostate(wrong_field), last))
    assert largest_scores(estimator, exact, problem, policy) < STDERRS


@pytest.mark.parametrize("make", CORRECTIONS)
def test_lean_costates_keep_their_means_whatever_the_field(make: type[FieldCorrection]):
    problem, policy = quadratic_problem(), some_policy()
    estimator = MartingaleAdjoint(make(GivenCostate(wrong_field)))
    assert largest_scores(estimator, lean_field(problem, policy), problem, policy) < STDERRS
    full = FullMartingaleAdjoint(make(GivenCostate(wrong_field)))
    assert largest_scores(full, lean_field(problem, policy), problem, policy) > 2 * STDERRS


def test_what_is_not_a_martingale_increment_biases():
    problem, policy = quadratic_problem(), some_policy()
    exact = evaluate_affine(problem, policy).value.gradient
    assert (
        largest_scores(FullMartingaleAdjoint(NotAMartingale()), exact, problem, policy)
        > 2 * STDERRS
    )


def variance_ratio(
    estimator: Estimator,
    plain: Estimator,
    problem: ControlProblem,
    policy: Policy,
    exact: Tensor,
    path: Path,
) -> float:
    found, noisy = (each.label(problem, policy, path).targets for each in (estimator, plain))
    assert not found.requires_grad
    return float((found - exact).square().mean() / (noisy - exact).square().mean())


@pytest.mark.parametrize("make", CORRECTIONS)
@pytest.mark.parametrize("source", ["value gradient", "policy"])
def test_no_variance_is_left_at_the_linear_quadratic_optimum(
    make: type[FieldCorrection], source: str
):
    truth = LinearQuadratic(quadratic_problem())
    field: CostateSource = (
        PolicyCostate() if source == "policy" else GivenCostate(truth.value_gradient)
    )
    path = paths(truth.problem, truth.affine_policy, 200, 7)
    exact = torch.stack([truth.control(k, path.states[k]) for k in range(STEPS)])
    for estimator, plain in (
        (MartingaleAdjoint(make(field)), AdjointMatching()),
        (FullMartingaleAdjoint(make(field)), FullAdjoint()),
    ):
        assert (
            variance_ratio(estimator, plain, truth.problem, truth.affine_policy, exact, path)
            < VANISHED
        )


@pytest.mark.parametrize("make", CORRECTIONS)
def test_no_variance_is_left_at_any_affine_policy_with_its_own_value_gradient(
    make: type[FieldCorrection],
):
    problem, policy = quadratic_problem(), some_policy()
    value, path = evaluate_affine(problem, policy).value, paths(problem, policy, 200, 8)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    B, beta = problem.reference.diffusion.matrices, problem.beta
    with torch.no_grad():
        means = [
            problem.reference.step(k, path.states[k], policy(k, path.states[k]))
            for k in range(STEPS)
        ]
        exact = torch.stack(
            [value.gradient(k + 1, m) @ B[k] / beta[k] for k, m in enumerate(means)]
        )
    estimator = FullMartingaleAdjoint(make(GivenCostate(value.gradient)))
    assert variance_ratio(estimator, FullAdjoint(), problem, policy, exact, path) < VANISHED
    assert (
        variance_ratio(
            MartingaleAdjoint(make(GivenCostate(value.gradient))),
            FullAdjoint(),
            problem,
            policy,
            exact,
            path,
        )
        > 1e-3
    )
    costates = estimator.costates(problem, policy, path)
    for k in range(STEPS + 1):
        assert (costates.values[k] - value.gradient(k, path.states[k])).abs().max() < IDENTITY * 100


def test_coarse_steps_need_the_exact_increment():
    truth = Quadrature(
        fine_tuning("mixture-huber").problem(ddpm(subsample(linear_levels(1000), 4)), 1.0)
    )
    problem, path = truth.problem, paths(truth.problem, truth.policy, 1000, 9)
    exact = torch.stack([truth.control(k, path.states[k]) for k in range(STEPS)])
    left = {
        make: variance_ratio(
            MartingaleAdjoint(correction), AdjointMatching(), problem, truth.policy, exact, path
        )
        for make, correction in (
            (FirstOrderCorrection, FirstOrderCorrection(GivenCostate(truth.value_gradient))),
            (AntitheticCorrection, AntitheticCorrection(GivenCostate(truth.value_gradient))),
            (SecondOrderCorrection, SecondOrderCorrection(GivenCostate(truth.value_gradient))),
            (ExactCorrection, ExactCorrection(GivenCostate(truth.value_gradient), nodes=80)),
        )
    }
    assert left[ExactCorrection] < QUADRATURE
    assert left[AntitheticCorrection] < 0.6
    assert min(left[FirstOrderCorrection], left[SecondOrderCorrection]) > 1


def test_costates_made_from_the_policy_are_unbiased_away_from_the_optimum():
    problem, policy = quadratic_problem(), some_policy()
    exact = evaluate_affine(problem, policy).value.gradient
    for correction in (
        FirstOrderCorrection(PolicyCostate()),
        AntitheticCorrection(PolicyCostate(exact=False)),
    ):
        assert largest_scores(FullMartingaleAdjoint(correction), exact, problem, policy) < STDERRS


def test_the_lean_adjoint_is_biased_where_the_noise_depends_on_the_state():
    """It gives g^(2 (T - k)) x: what is missing is E[sum_k Jac(B_k)' q_k], q_k = a_{k+1} xi_k
    (arXiv 2604.08580).
    """
    problem = geometric()
    policy = Uncontrolled(problem.reference)
    path = paths(problem, policy, 20000, 10)
    exact, biased = ((GROWTH**2 + BREATH**2) ** 3, GROWTH**6)
    lean, full = lean_adjoint(problem, path)[0], full_adjoint(problem, policy, path)[0]
    x = path.states[0]
    assert scores(full - exact * x, x).abs().max() < STDERRS
    assert scores(lean - biased * x, x).abs().max() < STDERRS
    assert scores(lean - exact * x, x).abs().max() > 2 * STDERRS
    repaired = path.final
    for k in reversed(range(3)):
        repaired = GROWTH * repaired + BREATH * path.noise.steps[k] * repaired
    assert (repaired - full).abs().max() < IDENTITY * float(full.abs().max())


def test_corrections_stay_unbiased_where_the_noise_depends_on_the_state():
    """The derivative of the noise must act on the uncorrected costate: with the corrected one there
    is a bias.
    """
    problem = geometric()
    policy = Uncontrolled(problem.reference)
    path = paths(problem, policy, 20000, 11)
    x, exact = path.states[0], (GROWTH**2 + BREATH**2) ** 3
    correction = FirstOrderCorrection(GivenCostate(lambda k, y: 1.5 * y))
    found = FullMartingaleAdjoint(correction).costates(problem, policy, path).values[0]
    assert scores(found - exact * x, x).abs().max() < STDERRS
    naive = path.final
    for k in reversed(range(3)):
        after = naive - correction.increment(problem, policy, path, k)
        naive = (GROWTH + BREATH * path.noise.steps[k]) * after
    assert scores(naive - exact * x, x).abs().max() > 2 * STDERRS
