"""What every study writes: the metrics, the problems and the estimators of its records.

A study that writes another name is refused by its runner, a report that asks for a name that none
of its studies writes is refused by its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from socft.checks import require
from socft.records import Record
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName


@dataclasses.dataclass(frozen=True)
class StudySchema:
    """The names in the records of a study.

    Attributes:
        name: of the study and of its files.
        metrics: what it measures.
        problems: what it measures on; None where its settings say that, as prompts do.
        estimators: what it measures there, besides what belongs to no method; None is anything, as
            a user's own.
    """

    name: str
    metrics: frozenset[Metric]
    problems: frozenset[ProblemName] | None = None
    estimators: frozenset[MethodName] | None = None

    def named(self, name: str) -> StudySchema:
        """The same of a study with another name."""
        return dataclasses.replace(self, name=name)

    def of_anything(self, name: str) -> StudySchema:
        """The same of a study with another name and any estimators."""
        return dataclasses.replace(self, name=name, estimators=None)

    def measures(
        self, metric: str | None, problem: str | None = None, estimator: str | None = None
    ) -> bool:
        """Whether its records may have these; None is any, and no estimator is the empty name."""
        return (
            (metric is None or metric in self.metrics)
            and (problem is None or self.problems is None or problem in self.problems)
            and (not estimator or self.estimators is None or estimator in self.estimators)
        )

    def check(self, records: Iterable[Record]) -> None:
        """Refuse records with other names.

        Raises:
            InvalidProblem: a metric, a problem or an estimator is not one of the study's.
        """
        for record in records:
            require(
                self.measures(record.metric, record.problem, record.estimator),
                f"study {self.name} does not measure {record.metric!r} on {record.problem!r} with"
                f" estimator {record.estimator!r} according to its schema in"
                " socft/study/vocabulary/schemas.py; name these there, or measure the study again.",
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
    estimators=frozenset(
        {
            MethodName.EXACT_PI_FT,
            MethodName.MONTE_CARLO_PI_FT_LINEAR,
            MethodName.MONTE_CARLO_PI_FT_NETWORK,
            MethodName.POLICY_GRADIENT_FULL_ADJOINT,
            MethodName.POLICY_GRADIENT_ADJOINT_MATCHING,
            MethodName.OPTIMUM,
            MethodName.QUADRATURE,
            MethodName.RICCATI,
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
    estimators=frozenset(),
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
    estimators=frozenset(
        {
            MethodName.FULL_ADJOINT,
            MethodName.ADJOINT_MATCHING,
            MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX,
            MethodName.RECIPROCAL_ADJOINT_MATCHING,
            MethodName.TRUNCATED_1_STEP,
            MethodName.TRUNCATED_10_STEPS,
            MethodName.TRUNCATED_RANDOM,
            MethodName.REFL,
            MethodName.MARTINGALE_POLICY_COSTATE,
            MethodName.MARTINGALE_POLICY_COSTATE_FIRST_ORDER,
            MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
            MethodName.FULL_MARTINGALE_FITTED_COSTATE,
            MethodName.FULL_MARTINGALE_KERNEL_RIDGE_COSTATE,
            MethodName.FULL_MARTINGALE_QUADRATIC_COSTATE_SECOND_ORDER,
            MethodName.FULL_MARTINGALE_EXACT_COSTATE,
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
            MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
            MethodName.SCORE_FUNCTION_REGRESSION_BASELINE,
            MethodName.SCORE_FUNCTION_WITHOUT_KL_TO_GO,
            MethodName.INTEGRATION_BY_PARTS,
            MethodName.DDPO,
            MethodName.DPOK,
            MethodName.RELATIVE_ENTROPY,
            MethodName.LOG_VARIANCE,
            MethodName.MOMENT,
            MethodName.VARIANCE,
            MethodName.CROSS_ENTROPY,
            MethodName.SOCM,
            MethodName.SOCM_ADJOINT,
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
    estimators=frozenset(
        {
            MethodName.FULL_ADJOINT,
            MethodName.ADJOINT_MATCHING,
            MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX,
            MethodName.TRUNCATED_LAST_FIFTH,
            MethodName.MARTINGALE_POLICY_COSTATE,
            MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
            MethodName.MARTINGALE_POLICY_COSTATE_CHEAP_EXACT_MEAN,
            MethodName.MARTINGALE_EXACT_LEAN_COSTATE,
            MethodName.FULL_MARTINGALE_POLICY_COSTATE,
            MethodName.FULL_MARTINGALE_EXACT_COSTATE,
            MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
            MethodName.DDPO,
            MethodName.DDPO_KL_IN_THE_REWARD,
            MethodName.DPOK_NO_BASELINE,
            MethodName.LOG_VARIANCE,
        }
    ),
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
    estimators=frozenset(
        {
            MethodName.LEAN_ADJOINT,
            MethodName.CORRECTED_ADJOINT,
            MethodName.TIME_REVERSED_COSTATE,
            MethodName.TIME_REVERSED_VALUE,
            MethodName.LEAST_SQUARES_COSTATE,
            MethodName.LEAST_SQUARES_VALUE,
            MethodName.LEAN_ADJOINT_NETWORK,
            MethodName.LEAN_ADJOINT_PUBLISHED,
            MethodName.CORRECTED_ADJOINT_NETWORK,
            MethodName.TIME_REVERSED_COSTATE_LEARNT_SCORE,
            MethodName.TIME_REVERSED_COSTATE_NETWORK,
            MethodName.TIME_REVERSED_COSTATE_PUBLISHED,
        }
    ),
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
    estimators=frozenset(
        {
            MethodName.LEAN_ADJOINT,
            MethodName.CORRECTED_ADJOINT,
            MethodName.TIME_REVERSED_COSTATE,
            MethodName.TIME_REVERSED_VALUE,
            MethodName.LEAST_SQUARES_COSTATE,
            MethodName.LEAST_SQUARES_VALUE,
            MethodName.OPTIMUM_OF_THE_CHAIN,
            MethodName.EXPLICIT_EULER_FOR_RICCATI,
            MethodName.FORWARD_PUBLISHED_INDEX,
        }
    ),
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
    estimators=frozenset(
        {
            MethodName.LEAN_ADJOINT,
            MethodName.LEAN_ADJOINT_NETWORK,
            MethodName.LEAN_ADJOINT_PUBLISHED,
            MethodName.CORRECTED_ADJOINT_NETWORK,
            MethodName.TIME_REVERSED_COSTATE_NETWORK,
            MethodName.TIME_REVERSED_COSTATE_PUBLISHED,
            MethodName.NO_DESCENT,
            MethodName.EXACT_COSTATE,
            MethodName.ANTITHETIC,
            MethodName.EXACT_MEAN,
            MethodName.FIRST_ORDER,
            MethodName.NO_CORRECTION,
            MethodName.CORRECTED_ADJOINT_AFTER_RECURSION,
            MethodName.CORRECTED_ADJOINT_ANTITHETIC,
            MethodName.CORRECTED_ADJOINT_EXACT,
            MethodName.CORRECTED_ADJOINT_FIRST_ORDER,
            MethodName.FITTED_BELLMAN_RECURSION,
        }
    ),
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
    estimators=frozenset(
        {
            MethodName.FULL_ADJOINT,
            MethodName.ADJOINT_MATCHING,
            MethodName.FITTED_BELLMAN_RECURSION,
            MethodName.PI_FT_SAMPLED,
            MethodName.ADJOINT_MATCHING_NETWORK,
            MethodName.ADJOINT_MATCHING_PUBLISHED,
            MethodName.ADJOINT_MATCHING_PUBLISHED_COLD,
            MethodName.COSTATE_OF_THE_OWN_STEP,
            MethodName.EXACT_CONTROL_ON_BUMPS,
            MethodName.START_NOT_LEARNED,
            MethodName.CORRECTED_FULL_ADJOINT,
            MethodName.CORRECTED_FULL_ADJOINT_AFTER_ONE_SWEEP,
            MethodName.CORRECTED_FULL_ADJOINT_FROM_THE_POLICY,
            MethodName.CORRECTED_FULL_ADJOINT_NETWORK,
            MethodName.CORRECTED_LEAN_ADJOINT,
            MethodName.TIME_REVERSED_BSDE_NETWORK,
            MethodName.TIME_REVERSED_BSDE_PUBLISHED,
        }
    ),
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
    estimators=frozenset(
        {
            MethodName.ADJOINT_MATCHING,
            MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
            MethodName.RELATIVE_ENTROPY,
            MethodName.LOG_VARIANCE,
            MethodName.MOMENT,
            MethodName.VARIANCE,
            MethodName.CROSS_ENTROPY,
            MethodName.SOCM_IDENTITY,
            MethodName.SOCM_DEGREE_2,
            MethodName.SOCM_ADJOINT,
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
    estimators=frozenset(
        {
            MethodName.NAIVE,
            MethodName.LOOK_AHEAD,
            MethodName.LOOK_AHEAD_EXACT,
            MethodName.LOOK_AHEAD_PUBLISHED,
            MethodName.UNIVERSAL,
            MethodName.CLASSIFIER,
            MethodName.FINE_TUNED_SCORE,
            MethodName.OPTIMAL_CONTROL,
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
    estimators=frozenset(
        {
            MethodName.NAIVE,
            MethodName.LOOK_AHEAD,
            MethodName.SCORE_NETWORK,
        }
    ),
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
    estimators=frozenset(
        {
            MethodName.ADJOINT_MATCHING,
            MethodName.DDPO,
            MethodName.DPOK,
            MethodName.CORRECTED_ADJOINT,
            MethodName.PRE_TRAINED,
            MethodName.PI_FT,
            MethodName.DRAFT_1,
            MethodName.TIME_REVERSED_BSDE,
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
    estimators=frozenset(),
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
    estimators=frozenset(
        {
            MethodName.ADJOINT_MATCHING,
            MethodName.DDPO,
            MethodName.DPOK,
            MethodName.CORRECTED_ADJOINT,
            MethodName.PI_FT,
            MethodName.DRAFT_1,
            MethodName.TIME_REVERSED_BSDE,
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
    estimators=frozenset(
        {
            MethodName.FULL_ADJOINT,
            MethodName.ADJOINT_MATCHING,
            MethodName.TRUNCATED,
            MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
            MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE,
            MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
            MethodName.DDPO,
            MethodName.DPOK_LEAVE_ONE_OUT,
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
