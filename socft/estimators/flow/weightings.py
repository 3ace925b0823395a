"""What published codes make of squared residuals and of limited advantages, by their names."""

from __future__ import annotations

import enum

import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.reward import PerSample

SMALLEST = 1e-10
"""Added to squares before a root is taken."""


class ResidualWeight(enum.Enum):
    """What advantage weighted matching makes of a mean square q at noise level s.

    >>> ResidualWeight.NOISE.of(torch.ones(1), torch.tensor([0.3]), power=0.25)
    tensor([0.3000])
    """

    UNIFORM = "Uniform"
    NOISE = "t"
    NOISE_SQUARED = "t**2"
    HUBER = "huber"
    GENERAL_HUBER = "ghuber"

    @property
    def robust(self) -> bool:
        """Whether it grows slower than q, so that the size of every residual enters."""
        return self in (ResidualWeight.HUBER, ResidualWeight.GENERAL_HUBER)

    def of(self, squared: PerSample, level: Tensor, power: float) -> PerSample:
        """``q``, ``s q``, ``s^2 q``, ``s q^(1/2)`` or ``s q^p / p``."""
        if self is ResidualWeight.HUBER:
            return level * (squared + SMALLEST).sqrt()
        if self is ResidualWeight.GENERAL_HUBER:
            return level * (squared + SMALLEST).pow(power) / power
        return self.slope(level) * squared

    def slope(self, level: Tensor) -> Tensor:
        """What multiplies q.

        Raises:
            InvalidProblem: nothing that is the same for every residual.
        """
        if self.robust:
            raise InvalidProblem(
                f"weighting = {self.name}: no one b fits residuals of every size; give UNIFORM,"
                " NOISE or NOISE_SQUARED."
            )
        powers = (ResidualWeight.UNIFORM, ResidualWeight.NOISE, ResidualWeight.NOISE_SQUARED)
        return level.pow(powers.index(self))


class AdvantageMode(enum.Enum):
    """What DiffusionNFT keeps of limited advantages.

    >>> AdvantageMode.POSITIVE.of(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    ALL = "all"
    POSITIVE = "positive_only"
    NEGATIVE = "negative_only"
    ONE = "one_only"
    SIGN = "binary"

    def of(self, advantages: PerSample) -> PerSample:
        """What is kept."""
        if self is AdvantageMode.POSITIVE:
            return advantages.clamp(min=0)
        if self is AdvantageMode.NEGATIVE:
            return advantages.clamp(max=0)
        if self is AdvantageMode.ONE:
            return (advantages > 0).to(advantages)
        return torch.sign(advantages) if self is AdvantageMode.SIGN else advantages
