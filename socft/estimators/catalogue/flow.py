"""The methods of 2025 and 2026 for flow models, which are not held against exact gradients."""

from __future__ import annotations

from socft.estimators.base import Estimator
from socft.estimators.catalogue.rows import LEAN, Anywhere, EstimatorRow, Group
from socft.estimators.context import EstimatorContext
from socft.estimators.flow.dance_grpo import DanceGRPO
from socft.estimators.flow.flow_grpo import FlowGRPO
from socft.estimators.flow.grpo import KLTerm
from socft.estimators.flow.grpo_guard import GRPOGuard
from socft.estimators.flow.hamiltonian_adjoint import HamiltonianAdjointMatching
from socft.estimators.flow.malliavin import MalliavinAdjoint
from socft.flow import FlowReference
from socft.study.vocabulary.methods import MethodName


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


ROWS: tuple[EstimatorRow, ...] = (
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
)
