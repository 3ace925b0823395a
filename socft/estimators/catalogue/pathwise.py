"""Estimators that differentiate along the path."""

from __future__ import annotations

from socft.estimators.adjoint_matching import AdjointMatching, PublishedAdjointMatching
from socft.estimators.catalogue import factories
from socft.estimators.catalogue.rows import FULL, LEAN, Anywhere, EstimatorRow, Group
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint
from socft.estimators.refl import ReFL
from socft.estimators.truncated_backprop import RandomTruncation, TruncatedBackprop
from socft.study.vocabulary.methods import MethodName

ROWS: tuple[EstimatorRow, ...] = (
    EstimatorRow(MethodName.FULL_ADJOINT, Anywhere(FullAdjoint), FullAdjoint, Group.PATHWISE, FULL),
    EstimatorRow(
        MethodName.ADJOINT_MATCHING,
        Anywhere(AdjointMatching),
        AdjointMatching,
        Group.PATHWISE,
        LEAN,
    ),
    EstimatorRow(
        MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX,
        Anywhere(PublishedAdjointMatching),
        PublishedAdjointMatching,
        Group.PATHWISE,
        "$B_k^top a_k\\/beta_k$, lean",
    ),
    EstimatorRow(
        MethodName.RECIPROCAL_ADJOINT_MATCHING,
        lambda context: ReciprocalAdjoint(context.generator()),
        ReciprocalAdjoint,
        Group.PATHWISE,
        "lean, at bridges of the reference",
    ),
    EstimatorRow(
        MethodName.TRUNCATED,
        Anywhere(TruncatedBackprop),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= T - K$, else $v_k$",
        labelled=lambda _: 1,
        compared=False,
    ),
    EstimatorRow(
        MethodName.TRUNCATED_1_STEP,
        Anywhere(lambda: TruncatedBackprop(1)),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= T - 1$, else $v_k$",
        labelled=lambda _: 1,
    ),
    EstimatorRow(
        MethodName.TRUNCATED_10_STEPS,
        lambda context: TruncatedBackprop(min(10, context.problem.steps)),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= T - 10$, else $v_k$",
        labelled=lambda steps: min(10, steps),
    ),
    EstimatorRow(
        MethodName.TRUNCATED_LAST_FIFTH,
        lambda context: TruncatedBackprop(factories.last_fifth(context.problem.steps)),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= 4 T\\/5$, else $v_k$",
        labelled=factories.last_fifth,
        compared=False,
    ),
    EstimatorRow(
        MethodName.TRUNCATED_RANDOM,
        lambda context: RandomTruncation(context.generator()),
        RandomTruncation,
        Group.PATHWISE,
        "full for $k >= T - K$, $K$ random",
        labelled=lambda steps: (steps + 1) / 2,
    ),
    EstimatorRow(
        MethodName.REFL,
        factories.refl,
        ReFL,
        Group.PATHWISE,
        "$v_k + nabla_v r(hat(x))\\/beta_k$, one $k >= 3 T\\/4$",
        labelled=lambda _: 1,
    ),
)
