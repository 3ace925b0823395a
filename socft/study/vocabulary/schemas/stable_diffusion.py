"""Schemas of Stable Diffusion."""

from __future__ import annotations

from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema

FINE_TUNED = frozenset(
    {
        MethodName.ADJOINT_MATCHING,
        MethodName.DDPO,
        MethodName.DPOK,
        MethodName.CORRECTED_ADJOINT,
        MethodName.PI_FT,
        MethodName.DRAFT_1,
        MethodName.TIME_REVERSED_BSDE,
    }
)
"""The methods that fine-tune."""
FLOW_FINE_TUNED = frozenset(
    {
        MethodName.LEAN_STICKING_THE_LANDING,
        MethodName.FLOW_GRPO,
        MethodName.DIFFUSION_NFT,
    }
)
"""Those that fine-tune flow models only."""
STABLE_DIFFUSION = StudySchema(
    "stable_diffusion",
    {
        Metric.OBJECTIVE,
        Metric.REWARD,
        Metric.KL,
        Metric.GRADIENT_NOISE,
        Metric.GRADIENT_NORM,
        Metric.AGREEMENT,
        Metric.ALIGNMENT,
        Metric.TARGET,
        Metric.TARGET_NORM,
        Metric.TARGET_GROWTH,
        Metric.OBJECTIVE_GAIN,
        Metric.REWARD_GAIN,
        Metric.ACCURACY,
        Metric.ACCURACY_GAIN,
        Metric.DIVERSITY,
        Metric.DROP,
        Metric.SECONDS,
    },
    estimators=FINE_TUNED | FLOW_FINE_TUNED | {MethodName.PRE_TRAINED},
)
SD_GRADIENT_NORM = StudySchema(
    "sd_gradient_norm",
    {Metric.GRADIENT_SQUARED, Metric.MEAN_GRADIENT_SQUARED},
    estimators=frozenset(),
)
SD_COSTATE_SIZE = StudySchema(
    "sd_costate_size",
    {
        Metric.REWARD,
        Metric.AGREEMENT,
        Metric.ALIGNMENT,
        Metric.FIDELITY,
        Metric.ADJOINT,
        Metric.LOG_GROWTH,
        Metric.UNDECIDED,
        Metric.UNDECIDED_EVEN,
        Metric.RANK_CORRELATION,
        Metric.RANK_CORRELATION_EVEN,
        Metric.LIMITED,
        Metric.ACCURACY,
    },
    estimators=FINE_TUNED,
)
SD_BENCHMARK = StudySchema(
    "sd_benchmark",
    {Metric.REFUSED, Metric.SECONDS, Metric.PEAK_MB, Metric.START_MB, Metric.SPEEDUP},
    estimators={
        MethodName.FULL_ADJOINT,
        MethodName.ADJOINT_MATCHING,
        MethodName.TRUNCATED,
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
        MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE,
        MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
        MethodName.DDPO,
        MethodName.DPOK_LEAVE_ONE_OUT,
    },
)
SD_GPU = StudySchema(
    "sd_gpu",
    {
        Metric.CHAIN_DIFFERENCE,
        Metric.LOG_RATIO,
        Metric.RESUME_DIFFERENCE,
        *SD_BENCHMARK.metrics,
    },
    estimators=SD_BENCHMARK.estimators,
)
