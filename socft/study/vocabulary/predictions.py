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
