"""Scores with known Lipschitz constants, plain enough to be written into a record."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.density import GaussianMixture, NoisedScore
from socft.reference import Step
from socft.schedule import Schedule

SECH_SLOPE = 4 / (3 * math.sqrt(3))
"""Lipschitz constant of sech^2, attained at tanh = 1 / sqrt(3)."""


@dataclasses.dataclass(frozen=True)
class ScoreAndMeanConstants:
    """Per step: Lipschitz constants of the score, of its Jacobian, and of the mean map (exact where
    L0 is signed), and the exact one-sided constants of the score, shape (T,).
    """

    L0: Float[Tensor, " steps"]
    L1: Float[Tensor, " steps"]
    mean_L0: Float[Tensor, " steps"]
    up: Float[Tensor, " steps"]
    down: Float[Tensor, " steps"]


class Score(abc.ABC):
    """A one-dimensional score ``s_t``; ``__call__`` builds it for a schedule."""

    @abc.abstractmethod
    def function(self, schedule: Schedule) -> Any:
        """``(k, x) -> s_k(x)`` on states of shape (batch, 1)."""

    @abc.abstractmethod
    def constants(self, schedule: Schedule) -> ScoreAndMeanConstants:
        """Its Lipschitz constants."""


@dataclasses.dataclass(frozen=True)
class MixtureScore(Score):
    """Scores of a noised Gaussian (one component) or Gaussian mixture."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]

    def function(self, schedule: Schedule) -> NoisedScore:
        return NoisedScore(
            GaussianMixture(self.weights, self.means, self.variances), schedule.abar[:-1]
        )

    def constants(self, schedule: Schedule) -> ScoreAndMeanConstants:
        found = self.function(schedule).constants
        stretch = 1 + schedule.score_weight * found.L0
        if len(self.weights) == 1:
            stretch = (1 - schedule.score_weight * found.L0).abs()
        mean = stretch / schedule.alpha.sqrt()
        return ScoreAndMeanConstants(found.L0, found.L1, mean, found.up, found.down)


@dataclasses.dataclass(frozen=True)
class TanhScore(Score):
    """``s(y) = -c y + b tanh(w y) + e`` at every step, affine for b = 0; its slope takes every
    value between -c and b w - c.
    """

    c: float
    b: float = 0.0
    w: float = 1.0
    e: float = 0.0

    def function(self, schedule: Schedule) -> Any:
        return self

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        return -self.c * x + self.b * torch.tanh(self.w * x) + self.e

    def constants(self, schedule: Schedule) -> ScoreAndMeanConstants:
        slopes = (-self.c, self.b * self.w - self.c)
        L0 = torch.full_like(schedule.score_weight, max(abs(s) for s in slopes))
        L1 = torch.full_like(schedule.score_weight, abs(self.b) * self.w**2 * SECH_SLOPE)
        mean = (
            torch.stack([(1 + schedule.score_weight * s).abs() for s in slopes]).amax(0)
            / schedule.alpha.sqrt()
        )
        up, down = (torch.full_like(L0, x) for x in (max(slopes), -min(slopes)))
        return ScoreAndMeanConstants(L0, L1, mean, up, down)
