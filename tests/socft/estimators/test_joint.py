"""Every estimator says whether the labels of a path depend on the other paths of its batch."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch
from torch import Tensor

import socft.estimators
from socft.costates.fields import GivenCostate, PolicyCostate
from socft.costates.landing import OwnStepByJvp, OwnStepExact
from socft.costates.marginal_score import (
    AffineMarginals,
    DenoisingScore,
    ImplicitScore,
    KernelScore,
    TransitionScore,
)
from socft.costates.martingale import AntitheticCorrection
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching, PublishedAdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.baseline import (
    BatchMean,
    GivenBaseline,
    LeaveOneOut,
    NoBaseline,
    RegressionBaseline,
    ValueBaseline,
)
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.ddpo import DDPO
from socft.estimators.dpok import DPOK
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts, ValueIntegrationByParts
from socft.estimators.log_variance import LogVariance
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.moment import Moment
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint
from socft.estimators.refl import ReFL
from socft.estimators.relative_entropy import RelativeEntropy
from socft.estimators.reversed_bsde import ReversedBSDE
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.estimators.socm import SOCM
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.sticking_the_landing import FullStickingTheLanding, LeanStickingTheLanding
from socft.estimators.td_adjoint import TDAdjoint
from socft.estimators.truncated_backprop import RandomTruncation, TruncatedBackprop
from socft.estimators.variance import Variance
from socft.path import Noise, Path
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from tests.support.estimator_cases import CONSTANT, away, paths, quadratic_problem

GENERATOR = torch.Generator()
ALONE = 1e-9  # relative: the same sums in other shapes


def level(k: object, x: Tensor) -> Tensor:
    return x.sum(1)


BASELINES = [
    NoBaseline(),
    BatchMean(),
    LeaveOneOut(),
    RegressionBaseline(),
    GivenBaseline(level),
    ValueBaseline(level),
]
SCORES = [
    AffineMarginals(),
    DenoisingScore(LinearRegression(Polynomial(1))),
    ImplicitScore(Polynomial(1)),
    TransitionScore(),
    KernelScore(),
]
DETERMINED: list[Estimator] = [
    AdjointMatching(),
    PublishedAdjointMatching(),
    CrossEntropy(),
    DDPO(),
    *(DPOK(baseline) for baseline in BASELINES),
    FullAdjoint(),
    *(IntegrationByParts(baseline) for baseline in BASELINES),
    ValueIntegrationByParts(level),
    LogVariance(),
    LeanStickingTheLanding(OwnStepByJvp()),
    FullStickingTheLanding(OwnStepExact()),
    MartingaleAdjoint(AntitheticCorrection(PolicyCostate())),
    FullMartingaleAdjoint(AntitheticCorrection(PolicyCostate())),
    Moment(lambda x: x.sum(1)),
    RelativeEntropy(),
    *(ReversedBSDE(GivenCostate(lambda k, x: x), Reverser(score)) for score in SCORES),
    *(ScoreFunction(baseline) for baseline in BASELINES),
    *(ScoreFunctionWithoutKLToGo(baseline) for baseline in BASELINES),
    SOCM(),
    SOCM(degree=1),
    SOCMAdjoint(),
    TDAdjoint(PolicyCostate(), 0.5),
    TruncatedBackprop(2),
    Variance(),
]
RANDOM: list[Estimator] = [
    RandomTruncation(GENERATOR),
    ReFL(0, 1, GENERATOR),
    ReciprocalAdjoint(GENERATOR),
]
"""They draw from a generator of their own, so a path has not the same labels in another place."""


def named(estimator: Estimator) -> str:
    part = getattr(estimator, "baseline", None) or getattr(
        getattr(estimator, "reverser", None), "score", None
    )
    return type(estimator).__name__ + (f" with {type(part).__name__}" if part else "")


@pytest.mark.parametrize("estimator", DETERMINED, ids=named)
def test_labels_depend_on_other_paths_where_the_estimator_says_so(estimator: Estimator):
    problem = quadratic_problem(CONSTANT)
    policy = away(problem)
    path = paths(problem, policy, 3, 12)
    first = torch.arange(6)
    noise = Noise(path.noise.initial[first], path.noise.steps[:, first])
    half = Path(path.states[:, first], path.controls[:, first], noise)
    whole = estimator.label(problem, policy, path).samples(first)
    alone = estimator.label(problem, policy, half)
    pairs = [
        (whole.states, alone.states),
        (whole.targets, alone.targets),
        (whole.weights, alone.weights),
    ]
    apart = max(
        float((a - b).abs().max() / b.abs().max())
        for a, b in pairs
        if a is not None and b is not None
    )
    assert (apart > ALONE) is estimator.couples_batch
    assert not any(each.requires_grad for pair in pairs for each in pair if each is not None)


def test_none_is_forgotten():
    modules = [
        importlib.import_module(f"socft.estimators.{each.name}")
        for each in pkgutil.iter_modules(socft.estimators.__path__)
    ]
    kinds = {
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Estimator)
    }
    assert {kind for kind in kinds if not inspect.isabstract(kind)} == {
        type(each) for each in [*DETERMINED, *RANDOM]
    }
    assert all(each.couples_batch for each in RANDOM)
    assert ReversedBSDE(PolicyCostate(), Reverser(AffineMarginals(), GENERATOR)).couples_batch
