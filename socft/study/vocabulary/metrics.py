"""Names of what is measured."""

from __future__ import annotations

import enum


class Metric(enum.StrEnum):
    """What the value of a record is."""

    # the objective and its parts
    OBJECTIVE = "objective"
    REWARD = "reward"
    KL = "kl"
    COST = "cost"
    COST_SIMULATED = "cost_simulated"
    REGRET = "regret"  # cost in excess of the optimum, over the optimum
    OBJECTIVE_GAP = "objective_gap"  # optimal objective minus the objective
    OBJECTIVE_GRADIENT = "objective_gradient"

    # parts of an objective gap
    BIAS_GAP = "bias_gap"
    NOISE_GAP = "noise_gap"
    PILOT_GAP = "pilot_gap"
    CLASS_GAP = "class_gap"  # of the features
    KERNEL_GAP = "kernel_gap"  # of Gaussian kernels, or of a chain from continuous time
    MEMORY_GAP = "memory_gap"  # of what the start says of the end
    DISCRETISATION_GAP = "discretisation_gap"

    # exact optima
    OPTIMUM = "optimum"
    UNRESTRICTED_OPTIMUM = "unrestricted_optimum"
    CONTINUOUS_OPTIMUM = "continuous_optimum"
    MINIMUM = "minimum"
    CONTINUOUS_MINIMUM = "continuous_minimum"
    START_MEAN = "start_mean"
    START_DEVIATION = "start_deviation"

    # convergence and its constants
    BETA = "beta"
    BETA_REQUIRED = "beta_required"
    SUFFICIENT_BETA = "sufficient_beta"
    L0_VALUE = "L0_value"
    L1_VALUE = "L1_value"
    CONTRACTION = "contraction"
    RATE = "rate"
    RATIO = "ratio"  # measured over bound
    CONTROL_ERROR = "control_error"
    VALUE_GRADIENT_ERROR = "value_gradient_error"

    # accuracy of the exact solutions
    TRUTH_ERROR = "truth_error"
    CLOSED_FORM_ERROR = "closed_form_error"
    INNER_ERROR = "inner_error"

    # gradients of the objective and their estimates
    BIAS = "bias"
    VARIANCE = "variance"
    FIT_VARIANCE = "fit_variance"
    ERROR_AT_BUDGET = "error_at_budget"
    RANK = "rank"
    REPETITIONS = "repetitions"  # their number, with products of their estimates
    GRADIENT_BIAS = "gradient_bias"
    GRADIENT_NOISE = "gradient_noise"
    GRADIENT_NORM = "gradient_norm"
    GRADIENT_SQUARED = "gradient_squared"
    MEAN_GRADIENT_SQUARED = "mean_gradient_squared"
    RELATIVE_NOISE = "relative_noise"
    AGREEMENT = "agreement"  # cosine between gradients of different batches
    ALIGNMENT = "alignment"  # cosine between what two estimators estimate
    FIDELITY = "fidelity"  # cosine between gradients with and without a limit
    REFUSED = "refused"

    # costates and target controls
    MSE = "mse"
    MSE_OVER_TIME = "mse_over_time"
    MSE_MAX = "mse_max"
    MSE_DESCENT = "mse_descent"
    CHAIN_MSE = "chain_mse"  # against the costate of the simulated chain
    COSTATE_MSE = "costate_mse"
    APPROXIMATION_MSE = "approximation_mse"
    INTEGRATOR_MSE = "integrator_mse"
    LIMIT_MSE = "limit_mse"  # of infinitely many paths
    LIMIT_MSE_OVER_TIME = "limit_mse_over_time"
    LIMIT_MSE_MAX = "limit_mse_max"
    LIMIT_OFFSET_FACTOR = "limit_offset_factor"
    CROSS = "cross"  # twice the product of sampling error and kernel gap
    WEAK_ERROR = "weak_error"
    LABEL_NOISE = "label_noise"
    CONTROL_L2 = "control_l2"
    EFFECTIVE_SHARE = "effective_share"
    ADJOINT = "adjoint"
    LOG_GROWTH = "log_growth"
    UNDECIDED = "undecided"
    UNDECIDED_EVEN = "undecided_even"
    RANK_CORRELATION = "rank_correlation"
    RANK_CORRELATION_EVEN = "rank_correlation_even"
    LIMITED = "limited"
    TARGET = "target"
    TARGET_NORM = "target_norm"
    TARGET_GROWTH = "target_growth"
    TARGET_NOISE = "target_noise"

    # distances between laws
    W1 = "w1"
    WASSERSTEIN1 = "wasserstein1"
    WASSERSTEIN2 = "wasserstein2"
    MMD = "mmd"

    # where a method converges to
    END_MEAN = "end_mean"
    END_VARIANCE = "end_variance"
    TV_TO_TILT = "tv_to_tilt"
    TV_TO_OPTIMUM = "tv_to_optimum"  # of the chain
    TV_TO_PREDICTION = "tv_to_prediction"
    KL_TO_TILT = "kl_to_tilt"
    KL_TO_REFERENCE = "kl_to_reference"
    DEVIATION = "deviation"  # from what is predicted, in standard errors
    EFFECTIVE_BETA = "effective_beta"
    LARGEST_RATE = "largest_rate"  # at which sweeps converge
    LEAST_BETA = "least_beta"  # at which sweeps converge
    LEAST_CURVATURE = "least_curvature"  # of the loss of a step, over states

    # the samples of another sampler than the one of training
    W1_TO_OWN = "w1_to_own"  # from the law of the chain that was trained
    W1_TO_TILT = "w1_to_tilt"
    W1_TO_LIMIT = "w1_to_limit"  # from the closed form
    REWARD_GAP = "reward_gap"  # above the mean reward of the chain that was trained
    ORDER = "order"  # of a distance in 1/T, or of a cost in what it grows with
    NEARER = "nearer"  # share of instances
    KL_RATIO = "kl_ratio"  # of the roots
    PREDICTED = "predicted"  # what a prediction says something about

    # guidance
    REGULARISED_VALUE = "regularised_value"
    MAXIMUM = "maximum"
    VALUE_AT_MEAN = "value_at_mean"
    OFF_SUPPORT = "off_support"
    OFF_SPHERE = "off_sphere"
    SCORE_ERROR = "score_error"
    EQUAL_KL = "equal_kl"  # KL at which a method reaches a reward
    EQUAL_DISTANCE = "equal_distance"
    FRONTIER_REWARD = "frontier_reward"
    FRONTIER_KL = "frontier_kl"
    FRONTIER_DISTANCE = "frontier_distance"
    FRONTIER_OFF_SPHERE = "frontier_off_sphere"

    # pictures
    OBJECTIVE_GAIN = "objective_gain"  # over the pre-trained model's, with the same noise
    REWARD_GAIN = "reward_gain"  # over the pre-trained model's, with the same noise
    ACCURACY = "accuracy"
    ACCURACY_GAIN = "accuracy_gain"
    DIVERSITY = "diversity"
    DROP = "drop"  # of the reward at the end below its best

    # what a measurement takes
    SECONDS = "seconds"
    SPEEDUP = "speedup"  # of one way to do the same work over another
    TASK_SECONDS = "task_seconds"
    RICCATI_SECONDS = "riccati_seconds"
    SWEEP_SECONDS = "sweep_seconds"
    PEAK_MB = "peak_mb"
    START_MB = "start_mb"

    # another device, and a run that continues, beside what they must equal
    CHAIN_DIFFERENCE = "chain_difference"
    LOG_RATIO = "log_ratio"
    RESUME_DIFFERENCE = "resume_difference"
