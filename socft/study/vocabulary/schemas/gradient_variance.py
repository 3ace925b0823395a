"""Schemas of gradient estimates and of trainings."""

from __future__ import annotations

from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.study.vocabulary.schema import StudySchema

TRAINED = frozenset(
    {
        MethodName.FULL_ADJOINT,
        MethodName.ADJOINT_MATCHING,
        MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX,
        MethodName.MARTINGALE_POLICY_COSTATE,
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
        MethodName.FULL_MARTINGALE_EXACT_COSTATE,
        MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
        MethodName.DDPO,
        MethodName.LOG_VARIANCE,
    }
)
"""What is trained as well as measured."""
PATH_MEASURES = frozenset(
    {
        MethodName.RELATIVE_ENTROPY,
        MethodName.MOMENT,
        MethodName.VARIANCE,
        MethodName.CROSS_ENTROPY,
        MethodName.SOCM_ADJOINT,
    }
)
"""Trained in the study of path measures alone."""
VARIANCE = StudySchema(
    "variance",
    {
        Metric.BIAS,
        Metric.VARIANCE,
        Metric.FIT_VARIANCE,
        Metric.ERROR_AT_BUDGET,
        Metric.REPETITIONS,
        Metric.REFUSED,
        Metric.COSTATE_MSE,
    },
    problems={
        ProblemName.LQ_FINE_TUNING,
        ProblemName.LQ_SDE,
        ProblemName.OSCILLATOR,
        ProblemName.MIXTURE,
    },
    estimators=TRAINED
    | PATH_MEASURES
    | {
        MethodName.RECIPROCAL_ADJOINT_MATCHING,
        MethodName.TRUNCATED_1_STEP,
        MethodName.TRUNCATED_10_STEPS,
        MethodName.TRUNCATED_RANDOM,
        MethodName.REFL,
        MethodName.MARTINGALE_POLICY_COSTATE_FIRST_ORDER,
        MethodName.LEAN_STICKING_THE_LANDING,
        MethodName.LEAN_STICKING_THE_LANDING_OWN_STEP,
        MethodName.FULL_STICKING_THE_LANDING,
        MethodName.FULL_STICKING_THE_LANDING_OWN_STEP,
        MethodName.FULL_MARTINGALE_FITTED_COSTATE,
        MethodName.FULL_MARTINGALE_KERNEL_RIDGE_COSTATE,
        MethodName.FULL_MARTINGALE_QUADRATIC_COSTATE_SECOND_ORDER,
        MethodName.TD_09_FITTED_COSTATE,
        MethodName.TD_0_FITTED_COSTATE,
        MethodName.LEAST_SQUARES_COSTATE_FORM,
        MethodName.LEAST_SQUARES_VALUE_FORM,
        MethodName.TIME_REVERSED_FITTED_COSTATE,
        MethodName.TIME_REVERSED_EXACT_SCORE,
        MethodName.TIME_REVERSED_IMPLICIT_SCORE,
        MethodName.TIME_REVERSED_NEAREST_KERNEL_SCORE,
        MethodName.TIME_REVERSED_VALUE_FORM,
        MethodName.TIME_REVERSED_EXACT_COSTATE,
        MethodName.TIME_REVERSED_EXACT_COSTATE_PUBLISHED_PAIRING,
        MethodName.SCORE_FUNCTION_NO_BASELINE,
        MethodName.SCORE_FUNCTION_REGRESSION_BASELINE,
        MethodName.SCORE_FUNCTION_WITHOUT_KL_TO_GO,
        MethodName.INTEGRATION_BY_PARTS,
        MethodName.DPOK,
        MethodName.SOCM,
    },
)
TRAINING = StudySchema(
    "training",
    {
        Metric.REWARD,
        Metric.KL,
        Metric.OBJECTIVE_GAP,
        Metric.OBJECTIVE_GRADIENT,
        Metric.BIAS_GAP,
        Metric.NOISE_GAP,
        Metric.PILOT_GAP,
        Metric.CLASS_GAP,
        Metric.KERNEL_GAP,
        Metric.MEMORY_GAP,
        Metric.DISCRETISATION_GAP,
        Metric.GRADIENT_BIAS,
        Metric.GRADIENT_NOISE,
        Metric.GRADIENT_NORM,
        Metric.RELATIVE_NOISE,
        Metric.TARGET_NOISE,
        Metric.WASSERSTEIN1,
        Metric.WASSERSTEIN2,
        Metric.MMD,
    },
    problems={ProblemName.LQ_FINE_TUNING, ProblemName.MIXTURE},
    estimators=TRAINED
    | {
        MethodName.TRUNCATED_LAST_FIFTH,
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP_EXACT_MEAN,
        MethodName.MARTINGALE_EXACT_LEAN_COSTATE,
        MethodName.FULL_MARTINGALE_POLICY_COSTATE,
        MethodName.DDPO_KL_IN_THE_REWARD,
        MethodName.DPOK_NO_BASELINE,
    },
)
SOCM = StudySchema(
    "socm",
    {Metric.OBJECTIVE_GAP, Metric.CONTROL_L2, Metric.EFFECTIVE_SHARE},
    problems={
        ProblemName.OU_QUADRATIC_EASY,
        ProblemName.OU_QUADRATIC_HARD,
        ProblemName.OU_LINEAR,
        ProblemName.DOUBLE_WELL,
    },
    estimators=PATH_MEASURES
    | {
        MethodName.ADJOINT_MATCHING,
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
        MethodName.LOG_VARIANCE,
        MethodName.SOCM_IDENTITY,
        MethodName.SOCM_DEGREE_2,
    },
)
