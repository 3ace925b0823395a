"""Schemas of convergence and tightness."""

from __future__ import annotations

from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.study.vocabulary.schema import StudySchema

CONVERGENCE = StudySchema(
    "convergence",
    {
        Metric.REWARD,
        Metric.KL,
        Metric.OBJECTIVE_GAP,
        Metric.KERNEL_GAP,
        Metric.MEMORY_GAP,
        Metric.BETA_REQUIRED,
        Metric.L0_VALUE,
        Metric.L1_VALUE,
        Metric.CONTRACTION,
        Metric.RATE,
        Metric.CONTROL_ERROR,
        Metric.VALUE_GRADIENT_ERROR,
        Metric.TRUTH_ERROR,
        Metric.CLOSED_FORM_ERROR,
        Metric.INNER_ERROR,
        Metric.W1,
        Metric.RICCATI_SECONDS,
        Metric.SWEEP_SECONDS,
    },
    problems={
        ProblemName.LINEAR_QUADRATIC,
        ProblemName.GAUSSIAN_QUADRATIC,
        ProblemName.GAUSSIAN_SINE,
        ProblemName.MIXTURE_HUBER,
    },
    estimators={
        MethodName.EXACT_PI_FT,
        MethodName.MONTE_CARLO_PI_FT_LINEAR,
        MethodName.MONTE_CARLO_PI_FT_NETWORK,
        MethodName.POLICY_GRADIENT_FULL_ADJOINT,
        MethodName.POLICY_GRADIENT_ADJOINT_MATCHING,
        MethodName.OPTIMUM,
        MethodName.QUADRATURE,
        MethodName.RICCATI,
    },
)
TIGHTNESS = StudySchema(
    "tightness",
    {
        Metric.BETA,
        Metric.SUFFICIENT_BETA,
        Metric.RATIO,
        Metric.CONTROL_ERROR,
        Metric.VALUE_GRADIENT_ERROR,
        Metric.OBJECTIVE_GAP,
    },
    estimators=frozenset(),
)
