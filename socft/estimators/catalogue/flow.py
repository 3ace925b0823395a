"""The methods of 2025 and 2026 for flow models, which are not held against exact gradients."""

from __future__ import annotations

from typing import Any

from socft.costates.base import Cost
from socft.costates.regression import StepwiseRegression
from socft.estimators.base import Estimator
from socft.estimators.catalogue.context import AFFINE, FITTED_PATHS, EstimatorContext
from socft.estimators.catalogue.rows import LEAN, Anywhere, EstimatorRow, Group
from socft.estimators.estimand import Estimand
from socft.estimators.flow import nabla_db as nabla
from socft.estimators.flow import vgg_flow as vgg
from socft.estimators.flow.advantage_regression import (
    COVARIANCE,
    NORMALISED,
)
from socft.estimators.flow.awm import AWM
from socft.estimators.flow.dance_grpo import DanceGRPO
from socft.estimators.flow.deterministic_adjoint import DeterministicAdjointMatching
from socft.estimators.flow.diffusion_nft import DiffusionNFT
from socft.estimators.flow.efficient_adjoint import EfficientAdjointMatching
from socft.estimators.flow.elbo_ratio import ELBORatio
from socft.estimators.flow.flow_grpo import FlowGRPO
from socft.estimators.flow.grpo import COMPARED, KLTerm
from socft.estimators.flow.grpo_guard import GRPOGuard
from socft.estimators.flow.hamiltonian_adjoint import HamiltonianAdjointMatching
from socft.estimators.flow.look_ahead import (
    CostateSampler,
    FittedCorrection,
    LookAheadCostate,
    LookAheadResidual,
)
from socft.estimators.flow.malliavin import MalliavinAdjoint
from socft.estimators.flow.nabla_db import ResidualNablaDB, reverse_costates
from socft.estimators.flow.ram import RAM
from socft.estimators.flow.renoising import RenoisingEstimator
from socft.estimators.flow.vgg_flow import VGGFlow
from socft.estimators.flow.weightings import ResidualWeight
from socft.flow import FlowReference
from socft.study.vocabulary.methods import MethodName

CONSISTENT = Cost(reference=2, policy=2, reference_derivatives=1, policy_derivatives=1)
"""Of a sample that VGG-Flow's correction is fitted to: its path without noise, its costate and its
guess.
"""
REVERSE = Cost(reference_derivatives=2, policy_derivatives=2)
"""Of one that the residual flow is fitted to: its reverse costate and its guess."""


def published_kl(context: EstimatorContext) -> KLTerm:
    """The KL without dt; a chain that is no flow takes one unit of time."""
    steps = context.problem.steps
    timed = isinstance(context.problem.reference, FlowReference)
    return KLTerm(durations=None if timed else [1 / steps] * steps)


def flow_grpo(context: EstimatorContext) -> Estimator:
    """Flow-GRPO as published."""
    return FlowGRPO(kl=published_kl(context))


def grpo_guard(context: EstimatorContext) -> Estimator:
    """GRPO-Guard as published."""
    return GRPOGuard(kl=published_kl(context))


def deterministic_adjoint(context: EstimatorContext) -> Estimator:
    """With the problem's KL weight as lambda."""
    return DeterministicAdjointMatching(_weight(context))


def vgg_flow(context: EstimatorContext) -> Estimator:
    """As published but for the fit of the correction, which is affine, to costates."""
    correction = _correction(context, vgg.PUBLISHED, vgg.consistent_costates)
    return VGGFlow(_weight(context), correction)


def nabla_db(context: EstimatorContext) -> Estimator:
    """As published but for the fit of the residual flow, which is affine, to reverse costates."""
    return ResidualNablaDB(_correction(context, LookAheadCostate(), reverse_costates))


def _weight(context: EstimatorContext) -> float:
    return context.problem.constant_beta("a weight of the change of the velocity")


def _correction(
    context: EstimatorContext, look_ahead: LookAheadCostate, costates: CostateSampler
) -> FittedCorrection:
    residual = LookAheadResidual(StepwiseRegression(AFFINE), look_ahead)
    return FittedCorrection(residual, costates, FITTED_PATHS, context.generator())


def renoised(
    name: MethodName,
    kind: type[RenoisingEstimator],
    target: str,
    group: Group = Group.ZEROTH_ORDER,
    estimand: Estimand | None = None,
    **options: Any,
) -> EstimatorRow:
    """The row of a class that draws noise, and of its options."""
    return EstimatorRow(
        name,
        lambda context: kind(context.generator(), **options),
        kind,
        group,
        f"{target}, re-noised",
        estimand=estimand,
        compared=False,
    )


PATHS: tuple[EstimatorRow, ...] = (
    EstimatorRow(
        MethodName.FLOW_GRPO,
        flow_grpo,
        FlowGRPO,
        Group.ZEROTH_ORDER,
        "clipped ratio averaged over entries, rewards normalised, KL at fixed states",
        compared=False,
    ),
    EstimatorRow(
        MethodName.DANCE_GRPO,
        Anywhere(DanceGRPO),
        DanceGRPO,
        Group.ZEROTH_ORDER,
        "clipped ratio averaged over entries, rewards normalised",
        compared=False,
    ),
    EstimatorRow(
        MethodName.GRPO_GUARD,
        grpo_guard,
        GRPOGuard,
        Group.ZEROTH_ORDER,
        "clipped regulated ratio, rewards normalised, KL at fixed states",
        compared=False,
    ),
    EstimatorRow(
        MethodName.HAMILTONIAN_ADJOINT_MATCHING,
        Anywhere(HamiltonianAdjointMatching),
        HamiltonianAdjointMatching,
        Group.PATHWISE,
        f"{LEAN}, with $nabla (B_k (v_k + xi_k))$",
        compared=False,
    ),
    EstimatorRow(
        MethodName.MALLIAVIN_WEIGHTS,
        Anywhere(MalliavinAdjoint),
        MalliavinAdjoint,
        Group.ZEROTH_ORDER,
        "$B_k^top a_(k+1)\\/beta_k$, full, rewards times weights",
        compared=False,
    ),
    EstimatorRow(
        MethodName.DETERMINISTIC_ADJOINT_MATCHING,
        deterministic_adjoint,
        DeterministicAdjointMatching,
        Group.PATHWISE,
        "$-a_(k+1)\\/lambda$ for the velocity, lean, without noise",
        compared=False,
    ),
    EstimatorRow(
        MethodName.VGG_FLOW,
        vgg_flow,
        VGGFlow,
        Group.PATHWISE,
        "$-(eta_k nabla r(hat(x)_0) + nu_k)\\/lambda$ for the velocity, without noise",
        estimand=vgg.CORRECTED,
        fitted=((FITTED_PATHS, CONSISTENT),),
        compared=False,
    ),
    EstimatorRow(
        MethodName.VGG_FLOW_LOOK_AHEAD_ALONE,
        lambda context: VGGFlow(_weight(context)),
        VGGFlow,
        Group.PATHWISE,
        "$-eta_k nabla r(hat(x)_0)\\/lambda$ for the velocity, without noise",
        compared=False,
    ),
    EstimatorRow(
        MethodName.RESIDUAL_NABLA_DB,
        nabla_db,
        ResidualNablaDB,
        Group.PATHWISE,
        "$B_k^top (gamma_(k+1) nabla r(hat(x)_0) + g_(k+1))\\/beta_k$",
        estimand=nabla.CORRECTED,
        fitted=((FITTED_PATHS, REVERSE),),
        compared=False,
    ),
    EstimatorRow(
        MethodName.RESIDUAL_NABLA_DB_SIMPLE,
        Anywhere(ResidualNablaDB),
        ResidualNablaDB,
        Group.PATHWISE,
        "$B_k^top gamma_(k+1) nabla r(hat(x)_0)\\/beta_k$",
        compared=False,
    ),
)
"""Those on paths."""

RENOISED: tuple[EstimatorRow, ...] = (
    renoised(MethodName.RAM, RAM, "$r thin (w_k - v_k)\\/b$"),
    renoised(
        MethodName.RAM_GROUP_MEAN,
        RAM,
        "$(r - macron(r)) thin (w_k - v_k)\\/b$",
        advantages=COMPARED,
    ),
    renoised(MethodName.AWM, AWM, "$w_k$, weight $A$"),
    renoised(
        MethodName.AWM_GENERAL_HUBER,
        AWM,
        "$w_k$, weight $A$ and of its residual",
        estimand=NORMALISED,
        weighting=ResidualWeight.GENERAL_HUBER,
    ),
    renoised(MethodName.DIFFUSION_NFT, DiffusionNFT, "$w_k$ by $v^plus.minus$, over its residual"),
    renoised(
        MethodName.DIFFUSION_NFT_VELOCITY,
        DiffusionNFT,
        "$w_k$ by $v^plus.minus$",
        estimand=COVARIANCE,
        normalised=False,
    ),
    renoised(MethodName.ELBO_RATIO, ELBORatio, "$w_k$, clipped ratio of bounds"),
    renoised(
        MethodName.EFFICIENT_ADJOINT_MATCHING,
        EfficientAdjointMatching,
        "lean, of a linear base",
        Group.PATHWISE,
    ),
)
"""Those that regress on re-noised samples."""

ROWS: tuple[EstimatorRow, ...] = (*PATHS, *RENOISED)
