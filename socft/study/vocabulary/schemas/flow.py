"""Schema of what is measured of the methods for flow models."""

from __future__ import annotations

from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.study.vocabulary.schema import StudySchema

FIXED_POINTS = StudySchema(
    "fixed_points",
    {
        Metric.OBJECTIVE,
        Metric.REWARD,
        Metric.END_MEAN,
        Metric.END_VARIANCE,
        Metric.TV_TO_TILT,
        Metric.TV_TO_OPTIMUM,
        Metric.TV_TO_PREDICTION,
        Metric.KL_TO_TILT,
        Metric.KL_TO_REFERENCE,
        Metric.DEVIATION,
        Metric.BIAS,
        Metric.EFFECTIVE_BETA,
        Metric.LARGEST_RATE,
        Metric.LEAST_BETA,
        Metric.LEAST_CURVATURE,
    },
    problems={
        ProblemName.FLOW_GAUSSIAN,
        ProblemName.FLOW_OVERLAPPING,
        ProblemName.FLOW_SEPARATED,
    },
    estimators={
        MethodName.FULL_ADJOINT,
        MethodName.ADJOINT_MATCHING,
        MethodName.FULL_STICKING_THE_LANDING,
        MethodName.LEAN_STICKING_THE_LANDING,
        MethodName.DETERMINISTIC_ADJOINT_MATCHING,
        MethodName.VGG_FLOW,
        MethodName.VGG_FLOW_LOOK_AHEAD_ALONE,
        MethodName.RESIDUAL_NABLA_DB,
        MethodName.RESIDUAL_NABLA_DB_SIMPLE,
        MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
        MethodName.DDPO_KL_IN_THE_REWARD,
        MethodName.EFFICIENT_ADJOINT_MATCHING,
        MethodName.DPOK_LEAVE_ONE_OUT,
        MethodName.FLOW_GRPO,
        MethodName.GRPO_GUARD,
        MethodName.RAM,
        MethodName.RAM_GROUP_MEAN,
        MethodName.AWM,
        MethodName.DIFFUSION_NFT_VELOCITY,
        MethodName.ELBO_RATIO,
        MethodName.DDPO,
        MethodName.DANCE_GRPO,
    },
)

SDE_ODE = StudySchema(
    "sde_ode",
    {
        Metric.W1_TO_OWN,
        Metric.W1_TO_TILT,
        Metric.W1_TO_LIMIT,
        Metric.KL_TO_TILT,
        Metric.REWARD,
        Metric.REWARD_GAP,
        Metric.END_MEAN,
        Metric.END_VARIANCE,
        Metric.ORDER,
        Metric.NEARER,
        Metric.KL_RATIO,
        Metric.PREDICTED,
    },
    problems={
        ProblemName.FLOW_LINEAR,
        ProblemName.FLOW_QUADRATIC,
        ProblemName.FLOW_CENTRED,
        ProblemName.FLOW_RANDOM,
        ProblemName.FLOW_OVERLAPPING,
        ProblemName.FLOW_SEPARATED,
    },
    estimators=frozenset(),
)

FLOW_BUDGET = StudySchema(
    "flow_budget",
    {
        Metric.BIAS,
        Metric.VARIANCE,
        Metric.FIT_VARIANCE,
        Metric.ERROR_AT_BUDGET,
        Metric.RANK,
        Metric.OBJECTIVE_GAP,
        Metric.PILOT_GAP,
        Metric.TV_TO_TILT,
        Metric.PREDICTED,
    },
    problems=FIXED_POINTS.problems,
    estimators=(FIXED_POINTS.estimators or frozenset())
    | {
        MethodName.HAMILTONIAN_ADJOINT_MATCHING,
        MethodName.MALLIAVIN_WEIGHTS,
    },
)
