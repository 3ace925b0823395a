"""The schema of the study of costs."""

from __future__ import annotations

from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.study.vocabulary.schema import StudySchema

SPEED = StudySchema(
    "speed",
    {Metric.SECONDS, Metric.SPEEDUP, Metric.ORDER},
    problems={ProblemName.MIXTURE, ProblemName.LINEAR_QUADRATIC},
    estimators={
        MethodName.MONTE_CARLO_PI_FT_NETWORK,
        MethodName.ADJOINT_MATCHING,
        MethodName.QUADRATURE,
        MethodName.RICCATI,
        MethodName.EXACT_PI_FT,
    },
)
