"""What was predicted before a study was run."""

from __future__ import annotations

import enum


class SamplerPrediction(enum.StrEnum):
    """Of a model that was trained with one sampler and is used in another."""

    ANY_SAMPLER = "trained at the memoryless level, every sampler's law nears the tilt as 1/T"
    OWN_SAMPLER = "trained at any level, the law of the chain itself nears the tilt as 1/T"
    CLOSED_FORM = "trained at another level, the law without noise nears the closed form"
    GAP_STAYS = "trained at another level, the law without noise stays away from the chain's"
    OVERSHOOT = "without noise the reward is too high below the memoryless level, too low above"
    MOSTLY_NEARER = "the law without noise is nearer the tilt in most random instances, not in all"
    NEARER_ON_MIXTURES = "it is nearer on mixtures, trained at the memoryless level"
    COUNTER_EXAMPLE = "it is farther on N(0, 1) with the reward -x^2, at every number of steps"


class BudgetPrediction(enum.StrEnum):
    """Of methods for flow models at an equal budget."""

    UNBIASED = "the mean of what estimates the gradient is the gradient, at every place"
    RESIDUALS_VANISH = "the mean of residuals of the optimum is zero there"
    LANDING = "at the optimum sticking the landing has less noise than adjoint matching"
    LANDING_IN_T = "and the less the more steps"
    POLICY_GRADIENTS = "the noise of policy gradients grows as T"
    ADJOINTS = "that of adjoints does not grow with T"
    RENOISED = "nor does that of regressions on re-noised samples"
    MALLIAVIN = "that of Malliavin weights grows as log T at most"
    ENDPOINT_COVARIANCE = "at the pre-trained model these regressions are off by O(1/T)"
    TILT = "efficient adjoint matching is off the optimum by O(1/T)"
    WITHOUT_KL = "without a KL term the optimum is left as fast as the start"
    GRADIENT_TRAINS = "methods with the reward's gradient train better than all without"
    LANDING_TRAINS = "sticking the landing trains no worse than adjoint matching"
    KL_TRAINS = "DDPO trains better with the KL in the reward than without"
    WITHOUT_NOISE_TRAINS = "what is trained without noise ends farther from the chain's optimum"
