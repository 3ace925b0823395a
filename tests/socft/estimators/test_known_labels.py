"""Labels that are known exactly, what they do not depend on, and what they share."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import lean_adjoint
from socft.costates.base import Cost
from socft.costates.marginal_score import KernelScore
from socft.costates.martingale import ExactCorrection
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.baseline import BatchMean, LeaveOneOut, RegressionBaseline
from socft.estimators.catalogue import CATALOGUE, factories, find_estimator
from socft.estimators.catalogue.context import FEW_DIMENSIONS, FEW_NOISES, EstimatorContext
from socft.estimators.catalogue.rows import evaluations_per_path
from socft.estimators.dpok import DPOK
from socft.estimators.integration_by_parts import IntegrationByParts, ValueIntegrationByParts
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.estimators.socm import SOCM, LinearFlow
from socft.path import Path
from socft.path_measure import optimal_weights
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, ScalarDiffusion, Step
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.sde import StateDiffusion
from socft.study.vocabulary.methods import MethodName
from tests.support.estimator_cases import (
    CONSTANT,
    FEW,
    GivenControl,
    away,
    paths,
    quadratic_problem,
)
from tests.support.tensors import F64, randn

SAME = 1e-10  # relative: differences of values of the size of one, and small least squares


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=SAME, atol=SAME)


def case(beta: float | Tensor = CONSTANT, count: int = 8) -> tuple[ControlProblem, Path]:
    problem = quadratic_problem(beta)
    return problem, paths(problem, away(problem), count=count)


@pytest.mark.parametrize(
    "made",
    [
        make(baseline)
        for make in (ScoreFunction, ScoreFunctionWithoutKLToGo, IntegrationByParts)
        for baseline in (
            LeaveOneOut(),
            RegressionBaseline(LinearRegression(Polynomial(1)), folds=2),
        )
    ]
    + [DPOK(BatchMean()), DPOK(LeaveOneOut())],
    ids=repr,
)
def test_baselines_take_away_what_all_returns_share(made: Estimator):
    problem, path = case(count=24)
    raised = ControlProblem(
        problem.reference,
        lambda x: problem.reward(x) + 100.0,
        problem.beta,
        problem.running_cost,
    )
    labels = [made.label(each, away(problem), path) for each in (problem, raised)]
    for name in vars(labels[0]):
        before, after = (getattr(each, name) for each in labels)
        torch.testing.assert_close(after, before, rtol=1e-8, atol=1e-8)


def test_the_difference_of_a_linear_value_is_the_move_by_the_noise():
    """``V_k(x) = k^2 + w . x``: ``V_{k+1}(x') - V_{k+1}(x' - B xi) = w . B xi``."""
    problem, path = case()
    w, diffusion = randn(20, 2), problem.reference.diffusion
    made = ValueIntegrationByParts(lambda k, x: torch.as_tensor(k**2) + k * (x @ w))
    moved = [
        (k + 1) * diffusion.apply(k, path.states[k], path.noise.steps[k]) @ w
        for k in range(problem.steps)
    ]
    close(made.differences(problem, path), torch.stack(moved))


def test_a_value_is_asked_for_where_the_noise_of_the_step_is_applied():
    """Noise that depends on the state: the state without it is the mean of the step."""
    chain = quadratic_problem().reference
    asked: list[Tensor] = []

    def value(k: Step, x: Tensor) -> Tensor:
        asked.append(x)
        return x.sum(1)

    noise = StateDiffusion(lambda k, x, z: (1 + x.square()) * z, (2,), (2,))
    curved = KernelReference(lambda k, x: 0.5 * x, noise, 3, chain.dims)
    problem = ControlProblem(curved, lambda x: x.sum(1), 1.0)
    path = paths(problem, Uncontrolled(curved), count=FEW)
    asked.clear()
    ValueIntegrationByParts(value).differences(problem, path)
    for k, still in enumerate(asked[1::2]):
        close(still, 0.5 * path.states[k])


def test_terms_of_a_polynomial_flow_are_sums_over_later_steps():
    """``((j - k)/T)^p F^T .. F^T c_j`` one by one, where the recursion has binomial sums."""
    problem, path = case()
    reference = problem.reference
    assert isinstance(reference, AffineReference)
    sources = _sources(problem, path)
    made, T = SOCM(flow=LinearFlow(), degree=3), problem.steps
    for k, found in made._moved(problem, path):
        for p in range(4):
            total = torch.zeros_like(path.final)
            for j in range(k + 1, T + 1):
                carried = sources[j]
                for i in reversed(range(k + 1, j)):
                    carried = carried @ reference.transition[i]
                total = total + ((j - k) / T) ** p * carried
            close(found[p], reference.diffusion.transpose(k, path.states[k], total))


def _sources(problem: ControlProblem, path: Path) -> dict[int, Tensor]:
    """``c_j`` of an affine chain by its derivatives: the lean costates of the work functional."""
    reference, beta = problem.reference, float(problem.beta[0])
    assert isinstance(reference, AffineReference)
    T = problem.steps
    noisy = [path.controls[k] + path.noise.steps[k] for k in range(T)]
    pushed = [reference.diffusion.solve_transpose(k, path.states[k], noisy[k]) for k in range(T)]
    found = {T: problem.reward.gradient(path.final) / beta - pushed[T - 1]}
    for j in range(1, T):
        x = path.states[j].clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(problem.cost(j, x).sum(), x)
        pulled = pushed[j] @ reference.transition[j]
        found[j] = pulled - slope / beta - pushed[j - 1]
    return found


def test_a_flow_is_fitted_so_that_targets_come_closest_to_the_controls():
    """Where controls are a target and a combination of the terms, the fit finds them: the same
    path, with noise that makes up for the other controls.
    """
    problem, path = case(count=12)
    plain = SOCM(degree=0).label(problem, away(problem), path).targets
    terms = dict(SOCM(degree=2)._moved(problem, path))
    wanted = torch.stack(
        [plain[k] + 0.7 * terms[k][1] - 1.3 * terms[k][2] for k in range(problem.steps)]
    )
    noise = dataclasses.replace(path.noise, steps=path.noise.steps + path.controls - wanted)
    other = Path(path.states, wanted, noise)
    weights = optimal_weights(problem, other, "a test")
    assert float(weights.min()) > 0
    found = SOCM(degree=2, folds=3).label(problem, GivenControl(wanted), other)
    torch.testing.assert_close(found.targets, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("move", "side"), [(1.0, 1.0), (-1.0, -1.0)])
def test_a_ratio_is_clipped_on_both_sides(move: float, side: float):
    """Outside of two intervals, losses differ by the advantage times what the ends differ by."""
    problem, path = case(count=20)
    policy, k = away(problem), 1
    rows = DPOK().label(problem, policy, path).step(k)
    moved = GivenControl(rows.controls + move * rows.noise)
    beyond = side * rows.log_ratio(moved(k, rows.states)) > 0.5
    assert int(beyond.sum()) > 5
    near, far = (DPOK(clip=clip).loss(problem, moved, k, rows) for clip in (0.1, 0.3))
    close((near - far)[beyond], (0.2 * side * rows.advantages)[beyond])


def test_labels_hold_no_copy_of_the_states_of_their_path():
    problem, path = case()
    labels = AdjointMatching().label(problem, away(problem), path)
    assert labels.states.data_ptr() == path.states.data_ptr()


def test_costates_cost_what_their_parts_do():
    """A derivative counts as two evaluations, a rollout as one of each network per step."""
    for part, price in (
        ("reference", 1),
        ("policy", 1),
        ("reference_derivatives", 2),
        ("policy_derivatives", 2),
    ):
        for count in (1, 3):
            cost = Cost(**{part: count})
            assert evaluations_per_path(cost, 10) == 20 + 10 * count * price
            assert evaluations_per_path(cost, 10, 4) == 20 + 4 * count * price


def test_corrections_by_the_mean_of_the_policys_costate_do_not_differentiate_the_mean():
    made = factories.exact_mean_martingale()
    assert isinstance(made, MartingaleAdjoint)
    assert isinstance(made.correction, ExactCorrection)
    assert made.correction.source.cost == Cost(policy=1, memory=0)


def test_the_degrees_of_the_catalogue_are_those_of_their_names():
    degrees = {MethodName.SOCM_IDENTITY: 0, MethodName.SOCM: 1, MethodName.SOCM_DEGREE_2: 2}
    problem, _ = case()
    context = EstimatorContext(problem, away(problem), 0)
    for name, degree in degrees.items():
        made = CATALOGUE[name].make(context)
        assert isinstance(made, SOCM)
        assert made.degree == degree


@pytest.mark.refusal
def test_what_makes_no_estimator_is_refused():
    with pytest.raises(InvalidProblem, match="math:pi is a float; it must be a class or function"):
        find_estimator("math:pi")


@pytest.mark.refusal
@pytest.mark.parametrize("n", [FEW_NOISES + 1, FEW_DIMENSIONS + 1])
def test_fits_that_grow_with_the_dimension_are_refused(n: int):
    chain = AffineReference(
        0.5 * torch.eye(n, dtype=F64).expand(2, n, n), ScalarDiffusion([0.5, 0.5])
    )
    problem = ControlProblem(chain, lambda x: x.sum(1), 1.0)
    context = EstimatorContext(problem, Uncontrolled(chain), 0)
    with pytest.raises(InvalidProblem, match=f"the noise has {n} dimensions"):
        factories.time_reversed_by(context, KernelScore())
    if n > FEW_DIMENSIONS:
        with pytest.raises(InvalidProblem, match=f"the state has {n} dimensions"):
            context.require_few_dimensions()


def test_lean_costates_are_those_of_their_own_states():
    """Of bridges, too: they begin and end with the path."""
    quadratic = quadratic_problem()
    problem = ControlProblem(quadratic.reference, quadratic.reward, CONSTANT)
    path = paths(problem, away(problem), count=FEW)
    labels = ReciprocalAdjoint(torch.Generator().manual_seed(0)).label(problem, away(problem), path)
    torch.testing.assert_close(labels.states[0], path.states[0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(labels.states[1], path.states[1])
    values = lean_adjoint(problem, path)
    pushed = problem.reference.diffusion.transpose(0, path.states[0], values[1])
    close(labels.targets[0], pushed / CONSTANT)
