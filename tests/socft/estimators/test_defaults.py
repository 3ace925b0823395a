"""What estimators cost, counted, and what their options are where nothing is said, from where they
are published.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from socft.costates.adjoint import FullRecursion, LeanRecursion
from socft.costates.base import Cost
from socft.costates.fields import GivenCostate, PolicyCostate
from socft.costates.increments import AnalyticIncrement, FiniteDifferenceIncrement
from socft.costates.landing import OwnStepAsIs
from socft.costates.martingale import AntitheticCorrection, ExactCorrection, FirstOrderCorrection
from socft.costates.time_reversal import Reverser
from socft.estimators.base import Estimator
from socft.estimators.baseline import LeaveOneOut, NoBaseline, RegressionBaseline
from socft.estimators.catalogue import CATALOGUE, context, factories
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.catalogue.flow import RENOISED
from socft.estimators.ddpo import DDPO
from socft.estimators.dpok import DPOK
from socft.estimators.flow.awm import AWM
from socft.estimators.flow.dance_grpo import DanceGRPO
from socft.estimators.flow.deterministic_adjoint import DeterministicAdjointMatching
from socft.estimators.flow.diffusion_nft import DiffusionNFT
from socft.estimators.flow.efficient_adjoint import EfficientAdjointMatching
from socft.estimators.flow.elbo_ratio import ELBORatio
from socft.estimators.flow.flow_grpo import FlowGRPO
from socft.estimators.flow.grpo import GroupAdvantages, KLTerm, Spread
from socft.estimators.flow.grpo_guard import GRPOGuard
from socft.estimators.flow.look_ahead import LookAheadCostate, signal_share, squared_signal
from socft.estimators.flow.malliavin import MalliavinAdjoint
from socft.estimators.flow.nabla_db import ResidualNablaDB
from socft.estimators.flow.ram import RAM
from socft.estimators.flow.vgg_flow import VGGFlow
from socft.estimators.flow.weightings import AdvantageMode, ResidualWeight
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.estimators.log_variance import LogVariance
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.refl import ReFL
from socft.estimators.reversed_bsde import ReversedBSDE
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.estimators.socm import SOCM, IdentityFlow, LinearFlow
from socft.estimators.sticking_the_landing import FullStickingTheLanding, LeanStickingTheLanding
from socft.estimators.td_adjoint import TDAdjoint
from socft.estimators.truncated_backprop import RandomTruncation, TruncatedBackprop
from socft.estimators.variance import Variance
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import KernelReference, ScalarDiffusion
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.study.vocabulary.methods import MethodName
from tests.support.estimator_cases import counted, paths

FEW, SHORT, LONG = 6, 5, 10
UNCOUNTED: dict[str, Cost] = {
    MethodName.RECIPROCAL_ADJOINT_MATCHING: Cost(memory="T"),
    MethodName.REFL: Cost(reference=1),
    MethodName.TRUNCATED_RANDOM: Cost(reference_derivatives=1, policy_derivatives=1),
    MethodName.DETERMINISTIC_ADJOINT_MATCHING: Cost(
        reference=1, policy=1, reference_derivatives=1, memory="T"
    ),
    MethodName.VGG_FLOW: Cost(reference=2, policy=2, memory="T"),
    MethodName.VGG_FLOW_LOOK_AHEAD_ALONE: Cost(reference=2, policy=2, memory="T"),
    MethodName.RESIDUAL_NABLA_DB: Cost(reference_derivatives=1, policy_derivatives=1, memory=0),
    MethodName.RESIDUAL_NABLA_DB_SIMPLE: Cost(
        reference_derivatives=1, policy_derivatives=1, memory=0
    ),
    MethodName.MARTINGALE_POLICY_COSTATE_FIRST_ORDER: Cost(
        reference_derivatives=3, policy_derivatives=1
    ),
    MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE: Cost(
        reference=2, policy=6, reference_derivatives=1, memory="T"
    ),
    MethodName.LEAN_STICKING_THE_LANDING_OWN_STEP: Cost(
        reference_derivatives=1, policy_derivatives=2
    ),
    MethodName.FULL_STICKING_THE_LANDING_OWN_STEP: Cost(
        reference_derivatives=1, policy_derivatives=2
    ),
    MethodName.TIME_REVERSED_EXACT_SCORE: Cost(
        reference=1, policy=1, reference_derivatives=1, policy_derivatives=1, memory="T"
    ),
} | {row.name: Cost(reference=1, policy=1) for row in RENOISED}
UNCOUNTED[MethodName.EFFICIENT_ADJOINT_MATCHING] = Cost(reference=1)
"""Of those that need a reference of a certain class, draw how many steps they label, or take
derivatives that a counter of calls does not see.
"""
AFFINE = LinearRegression(Polynomial(1))
DEFAULTS: dict[type[Any], dict[str, object]] = {
    DDPO: {
        "clip": 1e-4,  # arXiv 2305.13301, appendix D
        "groups": None,
        "divide": True,
        "kl_in_reward": False,
        "averaged": False,
    },
    DPOK: {"baseline": NoBaseline, "clip": 1e-4, "averaged": False},
    GroupAdvantages: {  # published code of arXiv 2505.05470: deviation of all, and 1e-4
        "groups": None,
        "spread": Spread.BATCH,
        "floor": 1e-4,
        "unbiased": False,
        "limit": 5.0,
        "leave_one_out": False,
    },
    KLTerm: {"lam": 0.04, "with_dt": False, "durations": None},
    FlowGRPO: {"advantages": GroupAdvantages(), "clip": 1e-4, "averaged": True, "kl": KLTerm()},
    DanceGRPO: {  # published code of arXiv 2505.07818: torch's deviation of the group, and 1e-8
        "advantages": GroupAdvantages(spread=Spread.GROUP, floor=1e-8, unbiased=True),
        "clip": 1e-4,
        "averaged": True,
    },
    GRPOGuard: {
        "advantages": GroupAdvantages(),
        "clip": 1e-4,
        "averaged": True,
        "kl": KLTerm(),
        "divided_by_dt": True,
    },
    DeterministicAdjointMatching: {"last": None},
    LookAheadCostate: {"weight": signal_share, "held": False, "limit": None},
    VGGFlow: {
        "correction": None,
        "look_ahead": LookAheadCostate(squared_signal, held=True, limit=1.0),
        "averaged": True,
    },
    ResidualNablaDB: {"correction": None, "look_ahead": LookAheadCostate, "of_scores": True},
    MalliavinAdjoint: {"baseline": LeaveOneOut},
    ScoreFunction: {"baseline": LeaveOneOut},
    ScoreFunctionWithoutKLToGo: {"baseline": LeaveOneOut},
    IntegrationByParts: {"baseline": LeaveOneOut},
    RegressionBaseline: {"regression": AFFINE, "folds": 2},
    SOCM: {"flow": IdentityFlow, "degree": 0, "folds": 2},
    LinearFlow: {"matrices": None},
    LogVariance: {"groups": None},
    Variance: {"groups": None},
    TruncatedBackprop: {"last": 1, "kl": True},  # DRaFT-1
    RandomTruncation: {"kl": True},
    ReFL: {"prediction": None, "kl": False},
    ReversedBSDE: {"adjoint": LeanRecursion, "move": AnalyticIncrement, "last": True},
    Reverser: {"generator": None, "published_pairing": False},
    PolicyCostate: {"exact": True},
    AntitheticCorrection: {"last": True},
    FirstOrderCorrection: {"last": True},
    LeanStickingTheLanding: {"own_step": OwnStepAsIs},
    FullStickingTheLanding: {"own_step": OwnStepAsIs},
    RAM: {"b": None, "advantages": None, "averaged": True},
    AWM: {  # scxue/advantage_weighted_matching, config/dgx_awm.py
        "advantages": GroupAdvantages(),
        "lam": 1e-3,
        "clip": 1.0,
        "weighting": ResidualWeight.UNIFORM,
        "power": 0.25,
        "by_diffusion": False,
        "gain": 0.2,
    },
    DiffusionNFT: {  # NVlabs/DiffusionNFT, config/base.py and config/nft.py
        "advantages": GroupAdvantages(),
        "lam": 1e-4,
        "beta": 1.0,
        "normalised": True,
        "mode": AdvantageMode.ALL,
    },
    ELBORatio: {"advantages": GroupAdvantages(), "lam": 0.0, "clip": 0.05, "averaged": False},
    EfficientAdjointMatching: {"data_score": None},
    EstimatorContext: {"repetition": 0, "value_gradient": None, "lean_mean": None, "value": None},
}
"""Without an equality of its own, by class."""


def chain(steps: int) -> ControlProblem:
    reference = KernelReference(
        lambda k, x: 0.9 * x + 0.1 * torch.sin(x), ScalarDiffusion([0.5] * steps), steps, (1,)
    )
    return ControlProblem(
        reference, lambda x: torch.sin(x[:, 0]), 1.0, lambda k, x: 0.1 * x[:, 0].square()
    )


def made(name: str, problem: ControlProblem) -> tuple[Estimator, AffinePolicy]:
    policy = AffinePolicy([[[0.3]]] * problem.steps, [[0.1]] * problem.steps)
    field = GivenCostate(lambda k, x: -x)
    where = EstimatorContext(problem, policy, 0, field, field, lambda k, x: x.sum(1))
    return CATALOGUE[name].make(where), policy


def counts(name: str, steps: int) -> dict[str, float]:
    """Evaluations per path, however many steps are labelled."""
    problem = chain(steps)
    estimator, policy = made(name, problem)
    found = counted(estimator, problem, policy, paths(problem, policy, count=FEW), FEW)
    return {key: value for key, value in vars(found).items() if key != "memory"}


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in UNCOUNTED])
def test_more_steps_cost_what_the_estimator_says(name: str) -> None:
    """The difference of two chains, since the first and the last step may cost less."""
    estimator, _ = made(name, chain(SHORT))
    more = CATALOGUE[name].labelled(LONG) - CATALOGUE[name].labelled(SHORT)
    short, long = counts(name, SHORT), counts(name, LONG)
    found = {key: long[key] - short[key] for key in short}
    assert found == {key: more * getattr(estimator.cost, key) for key in found}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_costs_that_cannot_be_counted_are_those_of_the_method(name: str) -> None:
    row = CATALOGUE[name]
    if name == MethodName.RECIPROCAL_ADJOINT_MATCHING or name == MethodName.TRUNCATED_RANDOM:
        estimator = row.estimator(torch.Generator())  # type: ignore[call-arg]
    elif name == MethodName.REFL:
        estimator = ReFL(0, 1, torch.Generator())
    else:
        estimator, _ = made(name, chain(SHORT))
    assert estimator.cost == UNCOUNTED[name]


@pytest.mark.parametrize("kind", DEFAULTS, ids=lambda kind: kind.__name__)
def test_options_have_the_published_defaults(kind: type[Any]) -> None:
    """Every default of the class, and no other."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
    assert set(found) == set(DEFAULTS[kind])
    for name, expected in DEFAULTS[kind].items():
        value = found[name]
        assert type(value) is expected if isinstance(expected, type) else value == expected


def test_rows_have_the_options_that_their_names_say() -> None:
    problem = chain(SHORT)
    row = {
        name: made(name, problem)[0]
        for name in CATALOGUE
        if not CATALOGUE[name].fitted or "TD" in name
        if name not in UNCOUNTED
    }
    degrees = {MethodName.SOCM: 1, MethodName.SOCM_IDENTITY: 0, MethodName.SOCM_DEGREE_2: 2}
    for name, degree in degrees.items():
        found = row[name]
        assert isinstance(found, SOCM)
        assert (found.degree, found.folds, type(found.flow)) == (degree, 2, IdentityFlow)
    lams = {MethodName.TD_09_FITTED_COSTATE: 0.9, MethodName.TD_0_FITTED_COSTATE: 0.0}
    for name, lam in lams.items():
        found = row[name]
        assert isinstance(found, TDAdjoint)
        assert found.lam == lam
    plain, dpok = row[MethodName.SCORE_FUNCTION_NO_BASELINE], row[MethodName.DPOK_NO_BASELINE]
    assert isinstance(plain, ScoreFunction)
    assert isinstance(dpok, DPOK)
    assert type(plain.baseline) is type(dpok.baseline) is NoBaseline
    assert row[MethodName.DDPO_KL_IN_THE_REWARD] == DDPO(clip=1e-4, kl_in_reward=True)
    averaged = row[MethodName.DPOK_LEAVE_ONE_OUT]
    assert isinstance(averaged, DPOK)
    assert (type(averaged.baseline), averaged.clip, averaged.averaged) == (LeaveOneOut, 1e-4, True)
    first, cheap = PolicyCostate(exact=True), PolicyCostate(exact=False)
    assert row[MethodName.MARTINGALE_POLICY_COSTATE] == MartingaleAdjoint(
        AntitheticCorrection(first, last=True)
    )
    assert row[MethodName.MARTINGALE_POLICY_COSTATE_CHEAP] == MartingaleAdjoint(
        AntitheticCorrection(cheap, last=True)
    )
    assert row[MethodName.MARTINGALE_POLICY_COSTATE_CHEAP_EXACT_MEAN] == MartingaleAdjoint(
        ExactCorrection(cheap, nodes=8)
    )
    assert row[MethodName.FULL_MARTINGALE_POLICY_COSTATE] == FullMartingaleAdjoint(
        AntitheticCorrection(first, last=True)
    )


def test_truncations_and_refl_label_the_steps_that_their_names_say() -> None:
    for steps, fifth in ((1, 1), (5, 1), (10, 2), (50, 10)):
        problem = chain(steps)
        ten, last = (
            made(name, problem)[0]
            for name in (MethodName.TRUNCATED_10_STEPS, MethodName.TRUNCATED_LAST_FIFTH)
        )
        assert ten == TruncatedBackprop(min(10, steps))
        assert last == TruncatedBackprop(fifth)
    for steps, first in ((40, 30), (4, 3), (1, 0)):  # 10 of 40 steps, arXiv 2304.05977
        refl = made(MethodName.REFL, chain(steps))[0]
        assert isinstance(refl, ReFL)
        assert (refl.first, refl.last) == (first, steps - 1)


def test_time_reversal_by_the_reference_is_the_cheap_one() -> None:
    found = factories.time_reversed_by_reference()
    assert isinstance(found, ReversedBSDE)
    assert (found.field, found.adjoint) == (PolicyCostate(exact=False), LeanRecursion())
    assert isinstance(found.move, FiniteDifferenceIncrement)
    assert found.last
    fitted, _ = made(MethodName.TIME_REVERSED_FITTED_COSTATE, chain(SHORT))
    assert isinstance(fitted, ReversedBSDE)
    assert isinstance(fitted.adjoint, FullRecursion)


def test_fits_are_of_a_thousand_paths_of_their_own() -> None:
    """And of 200 where a kernel method takes their cube; every repetition has others."""
    problem = chain(SHORT)
    _, policy = made(MethodName.FULL_ADJOINT, problem)
    first, second = (EstimatorContext(problem, policy, repetition) for repetition in (0, 1))
    assert first.own_paths().states.shape[1] == 1000
    assert (context.FEW_NOISES, context.FEW_DIMENSIONS, factories.CENTRES) == (4, 16, 200)
    assert torch.equal(first.own_paths().states, first.own_paths().states)
    assert not torch.equal(first.own_paths().states, second.own_paths().states)
    for name, fits in (
        (MethodName.FULL_MARTINGALE_KERNEL_RIDGE_COSTATE, ((200, 1, 1),)),
        (MethodName.FULL_MARTINGALE_FITTED_COSTATE, ((1000, 1, 1),)),
        (MethodName.LEAST_SQUARES_VALUE_FORM, ((1000, 0, 0),)),
        (MethodName.TIME_REVERSED_VALUE_FORM, ((1000, 1, 1), (1000, 0, 0))),
    ):
        found = CATALOGUE[name].fitted
        derivatives = [(n, c.reference_derivatives, c.policy_derivatives) for n, c in found]
        assert tuple(derivatives) == fits
