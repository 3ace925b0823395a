"""Schemas of guidance."""

from __future__ import annotations

from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.study.vocabulary.schema import StudySchema

GUIDANCE = StudySchema(
    "guidance",
    {
        Metric.REWARD,
        Metric.KL,
        Metric.REGULARISED_VALUE,
        Metric.MAXIMUM,
        Metric.VALUE_AT_MEAN,
        Metric.OFF_SUPPORT,
        Metric.OFF_SPHERE,
        Metric.EQUAL_KL,
        Metric.EQUAL_DISTANCE,
        Metric.FRONTIER_REWARD,
        Metric.FRONTIER_KL,
        Metric.FRONTIER_DISTANCE,
        Metric.FRONTIER_OFF_SPHERE,
        Metric.TASK_SECONDS,
    },
    problems={
        ProblemName.F1_OFF,
        ProblemName.F1_ON,
        ProblemName.F2_ONES,
        ProblemName.F2_RANDOM,
        ProblemName.ISOTROPIC,
        ProblemName.ANISOTROPIC,
        ProblemName.SPHERE,
    },
    estimators={
        MethodName.NAIVE,
        MethodName.LOOK_AHEAD,
        MethodName.LOOK_AHEAD_EXACT,
        MethodName.LOOK_AHEAD_PUBLISHED,
        MethodName.UNIVERSAL,
        MethodName.CLASSIFIER,
        MethodName.FINE_TUNED_SCORE,
        MethodName.OPTIMAL_CONTROL,
    },
)
GUIDANCE_NETWORK = StudySchema(
    "guidance_network",
    {Metric.REWARD, Metric.KL, Metric.VALUE_AT_MEAN, Metric.OFF_SUPPORT, Metric.SCORE_ERROR},
    problems={ProblemName.F1_OFF, ProblemName.SUBSPACE},
    estimators={MethodName.NAIVE, MethodName.LOOK_AHEAD, MethodName.SCORE_NETWORK},
)
