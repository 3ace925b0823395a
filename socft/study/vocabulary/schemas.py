"""What every study writes: the metrics and the problems of its records.

A study that writes another name is refused by its runner, a report that asks for a name that none
of its studies writes is refused by its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from socft.checks import require
from socft.records import Record
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName


@dataclasses.dataclass(frozen=True)
class StudySchema:
    """The names in the records of a study.

    Attributes:
        name: of the study and of its files.
        metrics: what it measures.
        problems: what it measures on; None where its settings say that, as prompts do.
    """

    name: str
    metrics: frozenset[Metric]
    problems: frozenset[ProblemName] | None = None

    def named(self, name: str) -> StudySchema:
        """The same of a study with another name."""
        return dataclasses.replace(self, name=name)

    def measures(self, metric: str | None, problem: str | None) -> bool:
        """Whether its records may have this metric and this problem; None is any."""
        return (metric is None or metric in self.metrics) and (
            problem is None or self.problems is None or problem in self.problems
        )

    def check(self, records: Iterable[Record]) -> None:
        """Refuse records with other names.

        Raises:
            InvalidProblem: a metric or a problem is not one of the study's.
        """
        for record in records:
            require(
                self.measures(record.metric, record.problem),
                f"study {self.name} does not measure {record.metric!r} on {record.problem!r}"
                " according to its schema in socft/study/vocabulary/schemas.py; name these there,"
                " or measure the study again.",
            )


CONVERGENCE = StudySchema(
    "convergence",
    frozenset(
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
        }
    ),
    frozenset(
        {
            ProblemName.LINEAR_QUADRATIC,
            ProblemName.GAUSSIAN_QUADRATIC,
            ProblemName.GAUSSIAN_SINE,
            ProblemName.MIXTURE_HUBER,
        }
    ),
)
TIGHTNESS = StudySchema(
    "tightness",
    frozenset(
        {
            Metric.BETA,
            Metric.RATIO,
        }
    ),
)
VARIANCE = StudySchema(
    "variance",
    frozenset(
        {
            Metric.BIAS,
            Metric.VARIANCE,
            Metric.FIT_VARIANCE,
            Metric.ERROR_AT_BUDGET,
            Metric.REFUSED,
            Metric.COSTATE_MSE,
        }
    ),
    frozenset(
        {
            ProblemName.LQ_FINE_TUNING,
            ProblemName.LQ_SDE,
            ProblemName.OSCILLATOR,
            ProblemName.MIXTURE,
        }
    ),
)
TRAINING = StudySchema(
    "training",
    frozenset(
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
        }
    ),
    frozenset({ProblemName.LQ_FINE_TUNING, ProblemName.MIXTURE}),
)
LINEAR = StudySchema(
    "linear",
    frozenset(
        {
            Metric.KERNEL_GAP,
            Metric.MSE,
            Metric.CHAIN_MSE,
        }
    ),
    frozenset({ProblemName.BSDE_LINEAR}),
)
LQ_SWEEPS = StudySchema(
    "lq_sweeps",
    frozenset(
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
        }
    ),
    frozenset({ProblemName.OSCILLATOR}),
)
PENDULUM = StudySchema(
    "pendulum",
    frozenset(
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
        }
    ),
    frozenset({ProblemName.BSDE_PENDULUM}),
)
MIXTURE = StudySchema(
    "mixture",
    frozenset(
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
        }
    ),
    frozenset({ProblemName.BSDE_MIXTURE}),
)
SOCM = StudySchema(
    "socm",
    frozenset(
        {
            Metric.OBJECTIVE_GAP,
            Metric.CONTROL_L2,
            Metric.EFFECTIVE_SHARE,
        }
    ),
    frozenset(
        {
            ProblemName.OU_QUADRATIC_EASY,
            ProblemName.OU_QUADRATIC_HARD,
            ProblemName.OU_LINEAR,
            ProblemName.DOUBLE_WELL,
        }
    ),
)
GUIDANCE = StudySchema(
    "guidance",
    frozenset(
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
        }
    ),
    frozenset(
        {
            ProblemName.F1_OFF,
            ProblemName.F1_ON,
            ProblemName.F2_ONES,
            ProblemName.F2_RANDOM,
            ProblemName.ISOTROPIC,
            ProblemName.ANISOTROPIC,
            ProblemName.SPHERE,
        }
    ),
)
GUIDANCE_NETWORK = StudySchema(
    "guidance_network",
    frozenset(
        {
            Metric.REWARD,
            Metric.KL,
            Metric.VALUE_AT_MEAN,
            Metric.OFF_SUPPORT,
            Metric.SCORE_ERROR,
        }
    ),
    frozenset({ProblemName.F1_OFF, ProblemName.SUBSPACE}),
)
STABLE_DIFFUSION = StudySchema(
    "stable_diffusion",
    frozenset(
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
            Metric.REWARD_GAIN,
            Metric.ACCURACY,
            Metric.ACCURACY_GAIN,
            Metric.DIVERSITY,
            Metric.DROP,
            Metric.SECONDS,
        }
    ),
)
SD_GRADIENT_NORM = StudySchema(
    "sd_gradient_norm",
    frozenset(
        {
            Metric.GRADIENT_SQUARED,
            Metric.MEAN_GRADIENT_SQUARED,
        }
    ),
)
SD_COSTATE_SIZE = StudySchema(
    "sd_costate_size",
    frozenset(
        {
            Metric.REWARD,
            Metric.AGREEMENT,
            Metric.ALIGNMENT,
            Metric.FIDELITY,
            Metric.ADJOINT,
            Metric.LOG_GROWTH,
            Metric.UNDECIDED,
            Metric.RANK_CORRELATION,
            Metric.LIMITED,
            Metric.ACCURACY,
        }
    ),
)
SD_BENCHMARK = StudySchema(
    "sd_benchmark",
    frozenset(
        {
            Metric.REFUSED,
            Metric.SECONDS,
            Metric.PEAK_MB,
            Metric.START_MB,
        }
    ),
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
    STABLE_DIFFUSION,
    SD_GRADIENT_NORM,
    SD_COSTATE_SIZE,
    SD_BENCHMARK,
)
