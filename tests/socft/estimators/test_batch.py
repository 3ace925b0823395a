"""Every row of the catalogue says how few paths it can label, and refuses fewer."""

from __future__ import annotations

import dataclasses
import functools
import math

import pytest
import torch

from socft.checks import InvalidProblem
from socft.costates.fields import GivenCostate
from socft.costates.marginal_score import (
    AffineMarginals,
    DenoisingScore,
    ImplicitScore,
    KernelScore,
    MarginalScore,
    TransitionScore,
)
from socft.costates.time_reversal import Reverser
from socft.density import Gaussian
from socft.density.score import score_reference
from socft.estimators.base import Estimator
from socft.estimators.baseline import BatchMean, RegressionBaseline
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.catalogue.flow import RENOISED
from socft.estimators.ddpo import DDPO
from socft.estimators.log_variance import LogVariance
from socft.estimators.reversed_bsde import ReversedBSDE
from socft.estimators.score_function import ScoreFunction
from socft.estimators.socm import SOCM
from socft.estimators.variance import Variance
from socft.flow import flow_reference, flow_sde, uniform_times
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import Reference
from socft.regression.features import Polynomial
from socft.regression.functions import KernelRidge, LinearRegression
from socft.schedule import variance_preserving
from socft.study.vocabulary.methods import MethodName
from tests.support.estimator_cases import CONSTANT, paths, quadratic_problem
from tests.support.tensors import F64, t

DIMS = 2
AFFINE = DIMS + 1  # coefficients of an affine function, and points that span the space
SMALLEST: dict[str, int] = {
    MethodName.TIME_REVERSED_FITTED_COSTATE: AFFINE,
    MethodName.TIME_REVERSED_IMPLICIT_SCORE: AFFINE,
    MethodName.TIME_REVERSED_NEAREST_KERNEL_SCORE: AFFINE,
    MethodName.TIME_REVERSED_EXACT_COSTATE: AFFINE,
    MethodName.TIME_REVERSED_EXACT_COSTATE_PUBLISHED_PAIRING: AFFINE,
    MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT: 2,
    MethodName.SCORE_FUNCTION_REGRESSION_BASELINE: 2,
    MethodName.SCORE_FUNCTION_WITHOUT_KL_TO_GO: 2,
    MethodName.INTEGRATION_BY_PARTS: 2,
    MethodName.DDPO: 2,
    MethodName.DDPO_KL_IN_THE_REWARD: 2,
    MethodName.DPOK: 2,
    MethodName.DPOK_LEAVE_ONE_OUT: 2,
    MethodName.LOG_VARIANCE: 2,
    MethodName.VARIANCE: 2,
    MethodName.CROSS_ENTROPY: 2,
    MethodName.SOCM: 2,
    MethodName.SOCM_IDENTITY: 2,
    MethodName.SOCM_DEGREE_2: 2,
    MethodName.SOCM_ADJOINT: 2,
    MethodName.FLOW_GRPO: 2,
    MethodName.DANCE_GRPO: 2,
    MethodName.GRPO_GUARD: 2,
    MethodName.MALLIAVIN_WEIGHTS: 2,
    MethodName.RAM_GROUP_MEAN: 2,
    MethodName.AWM: 2,
    MethodName.AWM_GENERAL_HUBER: 2,
    MethodName.DIFFUSION_NFT: 2,
    MethodName.DIFFUSION_NFT_VELOCITY: 2,
    MethodName.ELBO_RATIO: 2,
}
"""Of those that compare paths or fit something to them; the others label one path alone."""
SCORED = {MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE, *(row.name for row in RENOISED)}
FLOWING = (
    MethodName.DETERMINISTIC_ADJOINT_MATCHING,
    MethodName.VGG_FLOW,
    MethodName.VGG_FLOW_LOOK_AHEAD_ALONE,
    MethodName.RESIDUAL_NABLA_DB,
    MethodName.RESIDUAL_NABLA_DB_SIMPLE,
)
"""Those that predict the end of a flow."""
SCORES: dict[MarginalScore, int] = {
    AffineMarginals(): 1,
    TransitionScore(): 2,
    KernelScore(): AFFINE,
    ImplicitScore(Polynomial(2)): 6,
    DenoisingScore(LinearRegression(Polynomial(2))): 6,
    DenoisingScore(LinearRegression(Polynomial(2), ridge=1e-3)): 1,
    DenoisingScore(KernelRidge()): 1,
}
ALONE = torch.tensor([0, 0, 1, 2, 2])
GROUPED: list[Estimator] = [DDPO(groups=ALONE), LogVariance(ALONE), Variance(ALONE)]


@functools.cache
def problem(name: str = "") -> ControlProblem:
    """Without a running cost, which bridges do not take; with the chain that a row needs."""
    whole, law = quadratic_problem(CONSTANT), Gaussian(t(0.3, 0.0), torch.eye(DIMS, dtype=F64))
    chain: Reference = whole.reference
    if name in SCORED:
        chain = score_reference(law, variance_preserving(4, 2.0))
    if name in FLOWING:
        chain = flow_reference(law, flow_sde(uniform_times(4), 0.7))
    return ControlProblem(chain, whole.reward, CONSTANT)


def made(name: str) -> tuple[Estimator, ControlProblem]:
    where = problem(name)
    field = GivenCostate(lambda k, x: -x)
    policy = AffinePolicy.zeros(where.reference)
    context = EstimatorContext(
        where, policy, value_gradient=field, lean_mean=field, value=lambda k, x: x.sum(1)
    )
    return CATALOGUE[name].make(context), where


def labels(estimator: Estimator, where: ControlProblem, count: int):
    policy = AffinePolicy.zeros(where.reference)
    return estimator.label(where, policy, paths(where, policy, count=count))


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_row_labels_its_smallest_batch_and_refuses_a_smaller_one(name: str) -> None:
    estimator, where = made(name)
    smallest = estimator.smallest_batch(where)
    assert smallest == SMALLEST.get(name, 1)
    found = labels(estimator, where, smallest)
    assert found.targets.shape == (where.steps, smallest, DIMS)
    assert found.targets.isfinite().all()
    for count in range(1, smallest):
        with pytest.raises(InvalidProblem, match=rf"batch = {count};|has 1 path|for {count} paths"):
            labels(made(name)[0], where, count)


def test_labels_that_are_said_not_to_read_the_controls_do_not():
    unread = {name for name in CATALOGUE if not made(name)[0].reads_controls}
    assert {MethodName.ADJOINT_MATCHING, MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX} <= unread
    for name in unread:
        estimator, where = made(name)
        path = paths(where, AffinePolicy.zeros(where.reference), count=2)
        unknown = dataclasses.replace(path, controls=torch.full_like(path.controls, math.nan))
        policy = AffinePolicy.zeros(where.reference)
        found, expected = (estimator.label(where, policy, each) for each in (unknown, path))
        assert torch.equal(found.targets, expected.targets)


@pytest.mark.parametrize(("score", "smallest"), SCORES.items(), ids=repr)
def test_every_fit_of_a_score_knows_how_few_paths_determine_it(
    score: MarginalScore, smallest: int
) -> None:
    estimator = ReversedBSDE(GivenCostate(lambda k, x: -x), Reverser(score))
    assert estimator.smallest_batch(problem()) == smallest
    assert labels(estimator, problem(), smallest).targets.isfinite().all()
    if smallest > 1:
        with pytest.raises(InvalidProblem, match=rf"{type(score).__name__} .* least {smallest}\."):
            labels(estimator, problem(), smallest - 1)


@pytest.mark.parametrize("estimator", GROUPED, ids=lambda each: type(each).__name__)
def test_a_group_of_one_path_is_refused(estimator: Estimator) -> None:
    with pytest.raises(InvalidProblem, match=r"a group has 1 path; .* at least 2 in each\."):
        labels(estimator, problem(), len(ALONE))


@pytest.mark.parametrize(
    ("estimator", "smallest"),
    [
        (ScoreFunction(BatchMean()), 2),
        (ScoreFunction(RegressionBaseline(folds=5)), 5),
        (SOCM(degree=1, folds=4), 4),
        (SOCM(degree=0, folds=4), 2),
    ],
    ids=repr,
)
def test_options_decide_how_few_paths_there_may_be(estimator: Estimator, smallest: int) -> None:
    assert estimator.smallest_batch(problem()) == smallest
    labels(estimator, problem(), smallest)
    with pytest.raises(InvalidProblem, match=rf"batch = {smallest - 1};|for {smallest - 1} paths"):
        labels(estimator, problem(), smallest - 1)
