"""One coordinate of an instance: a score and a reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from verify.support.rewards import ScalarReward
from verify.support.scores import MixtureScore, TanhScore


@dataclasses.dataclass(frozen=True)
class Factor:
    """One coordinate: a score and a reward."""

    score: MixtureScore | TanhScore
    reward: ScalarReward


def vector(values: Sequence[float]) -> Tensor:
    """Numbers as a tensor in double precision."""
    return torch.tensor(values, dtype=torch.float64)
