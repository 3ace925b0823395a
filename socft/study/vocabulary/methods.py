"""Names of the estimators, and of the other methods of the studies."""

from __future__ import annotations

import enum


class MethodName(enum.StrEnum):
    """Whose number a record is."""

    # the catalogue
    FULL_ADJOINT = "full adjoint"
    ADJOINT_MATCHING = "adjoint matching"
    ADJOINT_MATCHING_PUBLISHED_INDEX = "adjoint matching, published index"
    RECIPROCAL_ADJOINT_MATCHING = "reciprocal adjoint matching"
    TRUNCATED = "truncated backpropagation"
    TRUNCATED_1_STEP = "truncated backpropagation, 1 step"
    TRUNCATED_10_STEPS = "truncated backpropagation, 10 steps"
    TRUNCATED_LAST_FIFTH = "truncated backpropagation, last fifth"
    TRUNCATED_RANDOM = "truncated backpropagation, random"
    REFL = "ReFL"
    MARTINGALE_POLICY_COSTATE = "martingale, policy's costate"
    MARTINGALE_POLICY_COSTATE_FIRST_ORDER = "martingale, policy's costate, first order"
    MARTINGALE_POLICY_COSTATE_CHEAP = "martingale, policy's costate, cheap"
    MARTINGALE_POLICY_COSTATE_CHEAP_EXACT_MEAN = "martingale, policy's costate, cheap, exact mean"
    MARTINGALE_EXACT_LEAN_COSTATE = "martingale, exact lean costate"
    FULL_MARTINGALE_POLICY_COSTATE = "full martingale, policy's costate"
    FULL_MARTINGALE_FITTED_COSTATE = "full martingale, fitted costate"
    FULL_MARTINGALE_KERNEL_RIDGE_COSTATE = "full martingale, kernel-ridge costate"
    FULL_MARTINGALE_QUADRATIC_COSTATE_SECOND_ORDER = (
        "full martingale, quadratic costate, second order"
    )
    FULL_MARTINGALE_EXACT_COSTATE = "full martingale, exact costate"
    LEAN_STICKING_THE_LANDING = "sticking the landing"
    LEAN_STICKING_THE_LANDING_OWN_STEP = "sticking the landing, own step"
    FULL_STICKING_THE_LANDING = "full sticking the landing"
    FULL_STICKING_THE_LANDING_OWN_STEP = "full sticking the landing, own step"
    TD_09_FITTED_COSTATE = "TD(0.9), fitted costate"
    TD_0_FITTED_COSTATE = "TD(0), fitted costate"
    LEAST_SQUARES_COSTATE_FORM = "least squares, costate form"
    LEAST_SQUARES_VALUE_FORM = "least squares, value form"
    TIME_REVERSED_FITTED_COSTATE = "time-reversed, fitted costate"
    TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE = (
        "time-reversed, policy's costate, reference's score"
    )
    TIME_REVERSED_EXACT_SCORE = "time-reversed, exact score"
    TIME_REVERSED_IMPLICIT_SCORE = "time-reversed, implicit score"
    TIME_REVERSED_NEAREST_KERNEL_SCORE = "time-reversed, nearest-kernel score"
    TIME_REVERSED_VALUE_FORM = "time-reversed, value form"
    TIME_REVERSED_EXACT_COSTATE = "time-reversed, exact costate"
    TIME_REVERSED_EXACT_COSTATE_PUBLISHED_PAIRING = (
        "time-reversed, exact costate, published pairing"
    )
    SCORE_FUNCTION_NO_BASELINE = "score function, no baseline"
    SCORE_FUNCTION_LEAVE_ONE_OUT = "score function, leave-one-out"
    SCORE_FUNCTION_REGRESSION_BASELINE = "score function, regression baseline"
    SCORE_FUNCTION_WITHOUT_KL_TO_GO = "score function without KL-to-go"
    INTEGRATION_BY_PARTS = "integration by parts"
    INTEGRATION_BY_PARTS_EXACT_VALUE = "integration by parts, exact value"
    DDPO = "DDPO"
    DDPO_KL_IN_THE_REWARD = "DDPO, KL in the reward"
    DPOK = "DPOK"
    DPOK_NO_BASELINE = "DPOK, no baseline"
    DPOK_LEAVE_ONE_OUT = "DPOK, leave-one-out"
    RELATIVE_ENTROPY = "relative entropy"
    LOG_VARIANCE = "log-variance"
    MOMENT = "moment"
    VARIANCE = "variance"
    CROSS_ENTROPY = "cross entropy"
    SOCM = "SOCM"
    SOCM_IDENTITY = "SOCM, M = I"
    SOCM_DEGREE_2 = "SOCM, degree 2"
    SOCM_ADJOINT = "SOCM-adjoint"
    FLOW_GRPO = "Flow-GRPO"
    DANCE_GRPO = "DanceGRPO"
    GRPO_GUARD = "GRPO-Guard"
    HAMILTONIAN_ADJOINT_MATCHING = "Hamiltonian adjoint matching"
    MALLIAVIN_WEIGHTS = "Malliavin weights"
    RAM = "RAM"
    RAM_GROUP_MEAN = "RAM, group mean"
    AWM = "AWM"
    AWM_GENERAL_HUBER = "AWM, general Huber"
    DIFFUSION_NFT = "DiffusionNFT"
    DIFFUSION_NFT_VELOCITY = "DiffusionNFT, velocity"
    ELBO_RATIO = "ELBO ratio"
    EFFICIENT_ADJOINT_MATCHING = "efficient adjoint matching"
    DETERMINISTIC_ADJOINT_MATCHING = "deterministic adjoint matching"
    VGG_FLOW = "VGG-Flow"
    VGG_FLOW_LOOK_AHEAD_ALONE = "VGG-Flow, look-ahead alone"
    RESIDUAL_NABLA_DB = "residual nabla-DB"
    RESIDUAL_NABLA_DB_SIMPLE = "residual nabla-DB, simple"

    # the catalogue's costates in another class of functions, or learnt in another way
    ADJOINT_MATCHING_NETWORK = "adjoint matching, network"
    ADJOINT_MATCHING_PUBLISHED = "adjoint matching, published"
    ADJOINT_MATCHING_PUBLISHED_COLD = "adjoint matching, published, cold"
    MARTINGALE_FITTED_COSTATE = "martingale, fitted costate"
    MARTINGALE_FITTED_COSTATE_AFTER_RECURSION = "martingale, fitted costate, after recursion"
    MARTINGALE_FITTED_COSTATE_EXACT_MEAN = "martingale, fitted costate, exact mean"
    MARTINGALE_FITTED_COSTATE_FIRST_ORDER = "martingale, fitted costate, first order"
    MARTINGALE_FITTED_COSTATE_FIRST_ORDER_NETWORK = (
        "martingale, fitted costate, first order, network"
    )
    MARTINGALE_FITTED_COSTATE_NETWORK = "martingale, fitted costate, network"
    FULL_MARTINGALE_FITTED_COSTATE_AFTER_ONE_SWEEP = (
        "full martingale, fitted costate, after one sweep"
    )
    FULL_MARTINGALE_FITTED_COSTATE_NETWORK = "full martingale, fitted costate, network"
    TIME_REVERSED_NETWORK = "time-reversed, network"
    TIME_REVERSED_PUBLISHED = "time-reversed, published"

    # fixed points of the oscillator
    OPTIMUM_OF_THE_CHAIN = "chain's optimum"
    EXPLICIT_EULER_FOR_RICCATI = "explicit Euler for Riccati"
    FORWARD_PUBLISHED_INDEX = "forward, published index"

    # the pendulum
    NO_DESCENT = "start"
    AUTODIFF = "autodiff"
    EXACT_COSTATE = "exact costate"
    ANTITHETIC_CORRECTION = "antithetic correction"
    EXACT_CORRECTION = "exact correction"
    FIRST_ORDER_CORRECTION = "first-order correction"
    NO_CORRECTION = "no correction"

    # the mixture
    FITTED_BELLMAN_RECURSION = "fitted Bellman recursion"
    PI_FT_SAMPLED = "PI-FT, sampled"
    COSTATE_OF_THE_OWN_STEP = "costate of the own step"
    EXACT_CONTROL_ON_BUMPS = "exact control on bumps"
    START_NOT_LEARNED = "start not learned"

    # convergence of PI-FT
    EXACT_PI_FT = "exact PI-FT"
    MONTE_CARLO_PI_FT_LINEAR = "Monte Carlo PI-FT, linear"
    MONTE_CARLO_PI_FT_NETWORK = "Monte Carlo PI-FT, network"
    POLICY_GRADIENT_FULL_ADJOINT = "policy gradient, full adjoint"
    POLICY_GRADIENT_ADJOINT_MATCHING = "policy gradient, adjoint matching"
    OPTIMUM = "optimum"
    QUADRATURE = "quadrature"
    RICCATI = "Riccati"

    # guidance
    NAIVE = "G"
    LOOK_AHEAD = "G_loss"
    LOOK_AHEAD_EXACT = "G_loss, exact"
    LOOK_AHEAD_PUBLISHED = "G_loss, published"
    UNIVERSAL = "universal"
    CLASSIFIER = "classifier"
    FINE_TUNED_SCORE = "fine-tuned score"
    OPTIMAL_CONTROL = "optimal control"
    SCORE_NETWORK = "network"

    # fine-tuned pictures
    PRE_TRAINED = "pre-trained"
    PI_FT = "PI-FT"
    DRAFT_1 = "DRaFT-1"
    CORRECTED_ADJOINT = "martingale-corrected adjoint"
    TIME_REVERSED_BSDE = "time-reversed BSDE"
