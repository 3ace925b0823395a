"""What bounds along paths know of a line: a modulus of its reward, profiles of its mean maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from socft import theory
from verify.support.instances import ProductInstance
from verify.support.rewards import build_reward
from verify.support.strategies import Sine

MIDDLES = torch.linspace(-12, 12, 801, dtype=torch.float64)
SAMPLED = 1e-3
"""Relative error of a profile over `MIDDLES`, and of a modulus between its distances."""


def known(instance: ProductInstance) -> tuple[theory.Modulus, Tensor]:
    """The modulus of the reward, and the profiles, shape (T, distances)."""
    distances, reference = theory.graded_distances(), instance.problem(1.0).reference
    profiles = [
        theory.line_profile(lambda x, k=k: reference.mean(k, x), distances, MIDDLES)
        for k in range(instance.steps)
    ]
    L0 = build_reward(instance.factors[0].reward).L0
    return theory.Modulus.of_reward(distances, L0, oscillation(instance)), torch.stack(profiles)


def oscillation(instance: ProductInstance) -> float:
    """``sup r - inf r``."""
    reward = instance.factors[0].reward
    return 2 * abs(reward.amplitude) if isinstance(reward, Sine) else math.inf
