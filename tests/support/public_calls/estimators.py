"""Calls that make estimators and what they are made of."""

# pyright: reportArgumentType=false

from __future__ import annotations

import torch

import socft
from socft.costates.adjoint import FullRecursion
from socft.costates.fields import GivenCostate, PolicyCostate
from socft.costates.landing import OwnStepByJvp
from socft.costates.marginal_score import DenoisingScore, GivenScore, KernelScore
from socft.costates.martingale import AntitheticCorrection, ExactCorrection
from socft.costates.time_reversal import Reverser
from socft.estimators.baseline import GivenBaseline, RegressionBaseline, ValueBaseline
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.flow.nabla_db import reverse_costates
from tests.support.public_calls import uses
from tests.support.public_calls.instances import (
    AFFINE,
    AFFINE_FIT,
    PATHS,
    generator,
    policy,
    problem,
)
from tests.support.public_calls.table import FIELD, Fresh, add
from tests.support.tensors import randn


def fill() -> None:
    """Add them all."""
    _adjoints()
    _ratios()
    _renoised()
    _look_ahead()
    _returns()
    _path_measures()
    _fields()


def _adjoints() -> None:
    for made in (
        socft.AdjointMatching,
        socft.PublishedAdjointMatching,
        socft.FullAdjoint,
        socft.CrossEntropy,
        socft.RelativeEntropy,
        socft.SOCMAdjoint,
        socft.HamiltonianAdjointMatching,
    ):
        add(made, uses.of_estimator)
    field = Fresh(lambda: PolicyCostate(exact=False))
    add(socft.SOCM, uses.of_estimator, degree=0, folds=2)
    add(socft.TDAdjoint, uses.of_estimator, field=field, lam=0.5)
    add(socft.TruncatedBackprop, uses.of_estimator, last=2, kl=True)
    add(socft.RandomTruncation, uses.of_estimator, generator=Fresh(generator), kl=True)
    add(socft.ReciprocalAdjoint, uses.nothing, generator=Fresh(generator))
    add(
        socft.ReversedBSDE,
        uses.of_estimator,
        field=field,
        reverser=Fresh(lambda: Reverser(DenoisingScore(AFFINE), generator())),
        adjoint=Fresh(FullRecursion),
        last=True,
    )
    for made in (socft.MartingaleAdjoint, socft.FullMartingaleAdjoint):
        add(
            made, uses.of_estimator, correction=Fresh(lambda: AntitheticCorrection(PolicyCostate()))
        )
    for made in (socft.LeanStickingTheLanding, socft.FullStickingTheLanding):
        add(made, uses.of_estimator, own_step=Fresh(OwnStepByJvp))
    add(AntitheticCorrection, uses.corrected, source=field, last=True)
    add(ExactCorrection, uses.corrected, source=field, last=True, nodes=4)


def _ratios() -> None:
    groups = torch.tensor([0, 0, 0, 0])
    add(
        socft.DDPO,
        uses.of_estimator,
        clip=0.1,
        groups=groups,
        divide=True,
        kl_in_reward=False,
        averaged=False,
    )
    add(socft.DPOK, uses.of_estimator, clip=0.1, averaged=False)
    advantages = {"floor": 0.1, "unbiased": True, "limit": 2.0, "leave_one_out": True}
    add(
        socft.GroupAdvantages,
        lambda made: [made.of(randn(3, PATHS))],
        groups=groups,
        spread=Fresh(lambda: socft.Spread.GROUP),
        **advantages,
    )
    add(
        socft.KLTerm,
        lambda made: [made.weights(problem())],
        lam=0.5,
        with_dt=False,
        durations=[0.3, 0.3, 0.4],
    )
    compared = {"advantages": Fresh(socft.GroupAdvantages), "clip": 0.1, "averaged": False}
    timed = Fresh(lambda: socft.KLTerm(0.5, durations=[0.3, 0.3, 0.4]))
    add(socft.FlowGRPO, uses.of_estimator, kl=timed, **compared)
    add(socft.DanceGRPO, uses.of_estimator, **compared)
    add(socft.GRPOGuard, uses.of_guard, kl=timed, divided_by_dt=True, **compared)


def _renoised() -> None:
    drawn = {"generator": Fresh(generator), "advantages": Fresh(socft.GroupAdvantages)}
    add(socft.RAM, uses.of_renoised, b=0.5, averaged=True, **drawn)
    add(
        socft.AWM,
        uses.of_renoised,
        lam=0.5,
        clip=0.1,
        weighting=Fresh(lambda: socft.ResidualWeight.HUBER),
        power=0.5,
        by_diffusion=True,
        gain=0.2,
        **drawn,
    )
    add(
        socft.DiffusionNFT,
        uses.of_renoised,
        lam=0.5,
        beta=0.1,
        normalised=True,
        mode=Fresh(lambda: socft.AdvantageMode.SIGN),
        **drawn,
    )
    add(socft.ELBORatio, uses.of_renoised, lam=0.5, clip=0.1, averaged=True, **drawn)
    add(
        socft.EfficientAdjointMatching,
        uses.of_renoised,
        generator=Fresh(generator),
        data_score=Fresh(lambda: lambda x: -x),
    )


def _look_ahead() -> None:
    ahead = Fresh(socft.LookAheadCostate)
    residual = Fresh(lambda: socft.LookAheadResidual(AFFINE_FIT, socft.LookAheadCostate()))
    add(
        socft.LookAheadCostate,
        uses.of_source,
        weight=Fresh(lambda: lambda a, s: a.square()),
        held=True,
        limit=2.0,
    )
    add(
        socft.LookAheadResidual,
        uses.nothing,
        regression=Fresh(lambda: AFFINE_FIT),
        look_ahead=ahead,
    )
    add(
        socft.FittedCorrection,
        uses.of_source,
        residual=residual,
        costates=Fresh(lambda: reverse_costates),
        paths=5,
        generator=Fresh(generator),
    )
    add(socft.DeterministicAdjointMatching, uses.of_flow_estimator, lam=0.5, last=2)
    add(socft.VGGFlow, uses.of_flow_estimator, lam=0.5, averaged=True, look_ahead=ahead)
    add(socft.ResidualNablaDB, uses.of_flow_estimator, look_ahead=ahead, of_scores=True)


def _returns() -> None:
    add(socft.MalliavinAdjoint, uses.of_estimator, baseline=Fresh(RegressionBaseline))
    add(socft.ScoreFunction, uses.of_estimator, baseline=Fresh(RegressionBaseline))
    add(socft.ScoreFunctionWithoutKLToGo, uses.of_estimator, baseline=Fresh(RegressionBaseline))
    add(socft.IntegrationByParts, uses.of_estimator, baseline=Fresh(RegressionBaseline))
    value = Fresh(lambda: lambda k, x: x.sum(1))
    add(socft.ValueIntegrationByParts, uses.of_estimator, value=value)
    add(
        socft.ReFL,
        uses.of_estimator,
        first=0,
        last=2,
        generator=Fresh(generator),
        prediction=Fresh(lambda: lambda k, x, v: x + v),
        kl=True,
    )
    add(GivenBaseline, uses.with_baseline, function=value)
    add(ValueBaseline, uses.with_baseline, value=value)
    add(RegressionBaseline, uses.with_baseline, regression=Fresh(lambda: AFFINE), folds=2)


def _path_measures() -> None:
    groups = torch.tensor([0, 0, 0, 0])
    add(socft.LogVariance, uses.of_estimator, groups=groups)
    add(socft.Variance, uses.of_estimator, groups=groups)
    add(socft.Moment, uses.of_estimator, start=Fresh(lambda: lambda x: x.sum(1)))


def _fields() -> None:
    add(GivenCostate, lambda made: uses.of_estimator(socft.TDAdjoint(made, 0.5)), function=FIELD)
    add(GivenScore, uses.with_score, score=FIELD)
    add(DenoisingScore, uses.with_score, regression=Fresh(lambda: AFFINE))
    add(KernelScore, uses.with_score, width=0.5)
    add(Reverser, uses.nothing, score=Fresh(KernelScore), generator=Fresh(generator))
    add(
        EstimatorContext,
        uses.nothing,
        problem=Fresh(problem),
        policy=Fresh(policy),
        repetition=1,
    )
