"""Schemas of learnt costates."""

from __future__ import annotations

from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.study.vocabulary.schema import StudySchema

LEARNT_COSTATES = frozenset(
    {
        MethodName.ADJOINT_MATCHING,
        MethodName.MARTINGALE_FITTED_COSTATE,
        MethodName.TIME_REVERSED_EXACT_SCORE,
        MethodName.TIME_REVERSED_VALUE_FORM,
        MethodName.LEAST_SQUARES_COSTATE_FORM,
        MethodName.LEAST_SQUARES_VALUE_FORM,
    }
)
"""Regressed in the linear class on uncontrolled or controlled paths."""
NETWORKS = frozenset(
    {
        MethodName.ADJOINT_MATCHING_NETWORK,
        MethodName.ADJOINT_MATCHING_PUBLISHED,
        MethodName.TIME_REVERSED_NETWORK,
        MethodName.TIME_REVERSED_PUBLISHED,
    }
)
"""With a network over time and state, and as published."""
LINEAR = StudySchema(
    "linear",
    {Metric.KERNEL_GAP, Metric.MSE, Metric.CHAIN_MSE},
    problems={ProblemName.BSDE_LINEAR},
    estimators=LEARNT_COSTATES
    | NETWORKS
    | {
        MethodName.MARTINGALE_FITTED_COSTATE_FIRST_ORDER_NETWORK,
        MethodName.TIME_REVERSED_FITTED_COSTATE,
    },
)
LQ_SWEEPS = StudySchema(
    "lq_sweeps",
    {
        Metric.KERNEL_GAP,
        Metric.MSE,
        Metric.MSE_OVER_TIME,
        Metric.MSE_MAX,
        Metric.CHAIN_MSE,
        Metric.INTEGRATOR_MSE,
        Metric.LIMIT_MSE,
        Metric.LIMIT_MSE_OVER_TIME,
        Metric.LIMIT_MSE_MAX,
        Metric.LIMIT_OFFSET_FACTOR,
        Metric.CROSS,
        Metric.WEAK_ERROR,
    },
    problems={ProblemName.OSCILLATOR},
    estimators=LEARNT_COSTATES
    | {
        MethodName.OPTIMUM_OF_THE_CHAIN,
        MethodName.EXPLICIT_EULER_FOR_RICCATI,
        MethodName.FORWARD_PUBLISHED_INDEX,
    },
)
PENDULUM = StudySchema(
    "pendulum",
    {
        Metric.COST,
        Metric.COST_SIMULATED,
        Metric.KERNEL_GAP,
        Metric.MINIMUM,
        Metric.CONTINUOUS_MINIMUM,
        Metric.MSE,
        Metric.MSE_DESCENT,
        Metric.APPROXIMATION_MSE,
        Metric.LABEL_NOISE,
    },
    problems={ProblemName.BSDE_PENDULUM},
    estimators=NETWORKS
    | {
        MethodName.ADJOINT_MATCHING,
        MethodName.MARTINGALE_FITTED_COSTATE_NETWORK,
        MethodName.AUTODIFF,
        MethodName.NO_DESCENT,
        MethodName.EXACT_COSTATE,
        MethodName.ANTITHETIC_CORRECTION,
        MethodName.EXACT_CORRECTION,
        MethodName.FIRST_ORDER_CORRECTION,
        MethodName.NO_CORRECTION,
        MethodName.MARTINGALE_FITTED_COSTATE_AFTER_RECURSION,
        MethodName.MARTINGALE_FITTED_COSTATE,
        MethodName.MARTINGALE_FITTED_COSTATE_EXACT_MEAN,
        MethodName.MARTINGALE_FITTED_COSTATE_FIRST_ORDER,
        MethodName.FITTED_BELLMAN_RECURSION,
    },
)
MIXTURE = StudySchema(
    "mixture",
    {
        Metric.COST,
        Metric.REGRET,
        Metric.OPTIMUM,
        Metric.UNRESTRICTED_OPTIMUM,
        Metric.CONTINUOUS_OPTIMUM,
        Metric.START_MEAN,
        Metric.START_DEVIATION,
        Metric.CONTROL_L2,
        Metric.W1,
    },
    problems={ProblemName.BSDE_MIXTURE},
    estimators=NETWORKS
    | {
        MethodName.FULL_ADJOINT,
        MethodName.ADJOINT_MATCHING,
        MethodName.FITTED_BELLMAN_RECURSION,
        MethodName.PI_FT_SAMPLED,
        MethodName.ADJOINT_MATCHING_PUBLISHED_COLD,
        MethodName.COSTATE_OF_THE_OWN_STEP,
        MethodName.EXACT_CONTROL_ON_BUMPS,
        MethodName.START_NOT_LEARNED,
        MethodName.FULL_MARTINGALE_FITTED_COSTATE,
        MethodName.FULL_MARTINGALE_FITTED_COSTATE_AFTER_ONE_SWEEP,
        MethodName.FULL_MARTINGALE_POLICY_COSTATE,
        MethodName.FULL_MARTINGALE_FITTED_COSTATE_NETWORK,
        MethodName.MARTINGALE_FITTED_COSTATE,
    },
)
