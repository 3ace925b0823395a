"""What every study writes: the metrics, the problems and the estimators of its records."""

from socft.study.vocabulary.schemas.convergence import CONVERGENCE, TIGHTNESS
from socft.study.vocabulary.schemas.costates import LINEAR, LQ_SWEEPS, MIXTURE, PENDULUM
from socft.study.vocabulary.schemas.flow import FIXED_POINTS, FLOW_BUDGET, SDE_ODE
from socft.study.vocabulary.schemas.gradient_variance import SOCM, TRAINING, VARIANCE
from socft.study.vocabulary.schemas.guidance import GUIDANCE, GUIDANCE_NETWORK
from socft.study.vocabulary.schemas.speed import SPEED
from socft.study.vocabulary.schemas.stable_diffusion import (
    SD_BENCHMARK,
    SD_COSTATE_SIZE,
    SD_GPU,
    SD_GRADIENT_NORM,
    STABLE_DIFFUSION,
)

STUDIES = (
    CONVERGENCE,
    TIGHTNESS,
    VARIANCE,
    TRAINING,
    LINEAR,
    LQ_SWEEPS,
    PENDULUM,
    MIXTURE,
    SOCM,
    GUIDANCE,
    GUIDANCE_NETWORK,
    FIXED_POINTS,
    FLOW_BUDGET,
    SDE_ODE,
    SPEED,
    STABLE_DIFFUSION,
    SD_GRADIENT_NORM,
    SD_COSTATE_SIZE,
    SD_BENCHMARK,
    SD_GPU,
)

__all__ = [
    "CONVERGENCE",
    "FIXED_POINTS",
    "FLOW_BUDGET",
    "GUIDANCE",
    "GUIDANCE_NETWORK",
    "LINEAR",
    "LQ_SWEEPS",
    "MIXTURE",
    "PENDULUM",
    "SDE_ODE",
    "SD_BENCHMARK",
    "SD_COSTATE_SIZE",
    "SD_GPU",
    "SD_GRADIENT_NORM",
    "SOCM",
    "SPEED",
    "STABLE_DIFFUSION",
    "STUDIES",
    "TIGHTNESS",
    "TRAINING",
    "VARIANCE",
]
