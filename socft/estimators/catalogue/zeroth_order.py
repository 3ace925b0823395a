"""Estimators that take no derivative of the reward."""

from __future__ import annotations

import functools

from socft.estimators.baseline import LeaveOneOut, NoBaseline, RegressionBaseline
from socft.estimators.catalogue import factories
from socft.estimators.catalogue.rows import Anywhere, EstimatorRow, Group
from socft.estimators.ddpo import DDPO, SCALED
from socft.estimators.dpok import DPOK
from socft.estimators.estimand import ObjectiveGradient
from socft.estimators.integration_by_parts import (
    IntegrationByParts,
    ValueIntegrationByParts,
    ValueOwner,
)
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.study.vocabulary.methods import MethodName

RETURN = "(A_k - b_k) thin xi_k\\/beta_k"
ROWS: tuple[EstimatorRow, ...] = (
    EstimatorRow(
        MethodName.SCORE_FUNCTION_NO_BASELINE,
        Anywhere(lambda: ScoreFunction(NoBaseline())),
        ScoreFunction,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b = 0$",
    ),
    EstimatorRow(
        MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
        Anywhere(lambda: ScoreFunction(LeaveOneOut())),
        ScoreFunction,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b$ of the other paths",
    ),
    EstimatorRow(
        MethodName.SCORE_FUNCTION_REGRESSION_BASELINE,
        Anywhere(lambda: ScoreFunction(RegressionBaseline())),
        ScoreFunction,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b$ regressed",
    ),
    EstimatorRow(
        MethodName.SCORE_FUNCTION_WITHOUT_KL_TO_GO,
        Anywhere(lambda: ScoreFunctionWithoutKLToGo(LeaveOneOut())),
        ScoreFunctionWithoutKLToGo,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, no KL in $A_k$",
    ),
    EstimatorRow(
        MethodName.INTEGRATION_BY_PARTS,
        Anywhere(lambda: IntegrationByParts(RegressionBaseline())),
        IntegrationByParts,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, as a costate",
    ),
    EstimatorRow(
        MethodName.INTEGRATION_BY_PARTS_EXACT_VALUE,
        lambda context: ValueIntegrationByParts(context.known(context.value), ValueOwner.POLICY),
        ValueIntegrationByParts,
        Group.ZEROTH_ORDER,
        "$(V_(k+1) (x_(k+1)) - V_(k+1) (m_k + B_k v_k)) thin xi_k\\/beta_k$",
        oracle=True,
        compared=False,
        estimand=ObjectiveGradient(),
    ),
    EstimatorRow(
        MethodName.DDPO,
        Anywhere(DDPO),
        DDPO,
        Group.ZEROTH_ORDER,
        "clipped ratio, rewards normalised",
    ),
    EstimatorRow(
        MethodName.DDPO_KL_IN_THE_REWARD,
        Anywhere(functools.partial(DDPO, kl_in_reward=True)),
        DDPO,
        Group.ZEROTH_ORDER,
        "clipped ratio, rewards and KL normalised",
        compared=False,
        estimand=SCALED,
    ),
    EstimatorRow(
        MethodName.DPOK,
        Anywhere(lambda: DPOK(RegressionBaseline())),
        DPOK,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, KL at fixed states",
    ),
    EstimatorRow(
        MethodName.DPOK_NO_BASELINE,
        Anywhere(DPOK),
        DPOK,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b = 0$, KL at fixed states",
        compared=False,
    ),
    EstimatorRow(
        MethodName.DPOK_LEAVE_ONE_OUT,
        Anywhere(factories.leave_one_out_dpok),
        DPOK,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b$ of the other paths, KL at fixed states",
        compared=False,
    ),
)
