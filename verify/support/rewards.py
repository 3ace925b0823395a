"""Rewards of one coordinate with known Lipschitz constants, plain enough to be written into a
record.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from socft.reward import Linear, LogSumExp, PseudoHuber, Quadratic, Reward, Sine, Softplus


@dataclasses.dataclass(frozen=True)
class SmoothMaximum:
    """The one-dimensional `LogSumExp` reward as plain numbers."""

    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    temperature: float


@dataclasses.dataclass(frozen=True)
class Slope:
    """The one-dimensional `Linear` reward ``w x``."""

    w: float


@dataclasses.dataclass(frozen=True)
class Parabola:
    """The one-dimensional `Quadratic` reward ``p x^2 / 2 + q x``; L0 is infinite, so the score must
    be affine.
    """

    p: float
    q: float = 0.0


ScalarReward = Sine | Softplus | PseudoHuber | SmoothMaximum | Slope | Parabola


@functools.singledispatch
def build_reward(plain: Any) -> Reward:
    """The reward on states of shape (batch, 1)."""
    return plain


@build_reward.register
def _(plain: SmoothMaximum) -> Reward:
    offsets = torch.tensor(plain.offsets, dtype=torch.float64)
    return LogSumExp(
        torch.tensor(plain.slopes, dtype=torch.float64)[:, None], offsets, plain.temperature
    )


@build_reward.register
def _(plain: Slope) -> Reward:
    return Linear(torch.tensor([plain.w], dtype=torch.float64))


@build_reward.register
def _(plain: Parabola) -> Reward:
    return Quadratic(
        torch.tensor([[plain.p]], dtype=torch.float64), torch.tensor([plain.q], dtype=torch.float64)
    )
