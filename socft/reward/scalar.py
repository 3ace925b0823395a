"""Rewards of one number, with exact constants."""

from __future__ import annotations

import dataclasses

import torch

from socft.checks import keep, number, positive, require_states
from socft.reward.base import PerSample, Reward, Scalars


@dataclasses.dataclass(frozen=True)
class Sine(Reward):
    """Scalar ``r(x) = amplitude sin(frequency x + phase)``. L0 = |amplitude| frequency, L1 =
    |amplitude| frequency^2.

    >>> Sine(amplitude=0.5, frequency=2.0).L1
    2.0
    """

    amplitude: float = 1.0
    frequency: float = 1.0
    phase: float = 0.0

    def __post_init__(self) -> None:
        keep(
            self,
            amplitude=number(self.amplitude, "amplitude"),
            frequency=positive(self.frequency, "frequency"),
            phase=number(self.phase, "phase"),
        )

    @property
    def L0(self) -> float:
        return abs(self.amplitude) * self.frequency

    @property
    def L1(self) -> float:
        return abs(self.amplitude) * self.frequency**2

    def __call__(self, x: Scalars) -> PerSample:
        return self.amplitude * torch.sin(self.frequency * _scalar(x) + self.phase)

    def gradient(self, x: Scalars) -> Scalars:
        y = _scalar(x).detach().unsqueeze(1)
        return self.amplitude * self.frequency * torch.cos(self.frequency * y + self.phase)


@dataclasses.dataclass(frozen=True)
class Softplus(Reward):
    """Scalar ``r(x) = slope log(1 + exp(sharpness (x - center))) / sharpness``: from flat to
    ``slope``.

    L0 = |slope| (in the limit x -> inf), L1 = |slope| sharpness / 4 (at the center).

    >>> Softplus()(torch.zeros(1, 1))
    tensor([0.6931])
    """

    slope: float = 1.0
    sharpness: float = 1.0
    center: float = 0.0

    def __post_init__(self) -> None:
        keep(
            self,
            slope=number(self.slope, "slope"),
            sharpness=positive(self.sharpness, "sharpness"),
            center=number(self.center, "center"),
        )

    @property
    def L0(self) -> float:
        return abs(self.slope)

    @property
    def L1(self) -> float:
        return abs(self.slope) * self.sharpness / 4

    @property
    def semiconcavity(self) -> float:
        return max(self.slope, 0.0) * self.sharpness / 4

    @property
    def semiconvexity(self) -> float:
        return max(-self.slope, 0.0) * self.sharpness / 4

    def __call__(self, x: Scalars) -> PerSample:
        rise = self.sharpness * (_scalar(x) - self.center)
        return -self.slope / self.sharpness * torch.nn.functional.logsigmoid(-rise)

    def gradient(self, x: Scalars) -> Scalars:
        y = _scalar(x).detach().unsqueeze(1)
        return self.slope * torch.sigmoid(self.sharpness * (y - self.center))


@dataclasses.dataclass(frozen=True)
class PseudoHuber(Reward):
    """Scalar ``r(x) = weight delta^2 (sqrt(1 + ((x - center) / delta)^2) - 1)``: quadratic near the
    center, linear far away.

    A negative weight rewards closeness to the center. L0 = |weight| delta (in the limit), L1 =
    |weight| (at the center).

    >>> PseudoHuber(center=1.0)(torch.tensor([[1.0], [4.0]]))
    tensor([-0.0000, -2.1623])
    """

    delta: float = 1.0
    center: float = 0.0
    weight: float = -1.0

    def __post_init__(self) -> None:
        keep(
            self,
            delta=positive(self.delta, "delta"),
            center=number(self.center, "center"),
            weight=number(self.weight, "weight"),
        )

    @property
    def L0(self) -> float:
        return abs(self.weight) * self.delta

    @property
    def L1(self) -> float:
        return abs(self.weight)

    @property
    def semiconcavity(self) -> float:
        return max(self.weight, 0.0)

    @property
    def semiconvexity(self) -> float:
        return max(-self.weight, 0.0)

    def __call__(self, x: Scalars) -> PerSample:
        square = ((_scalar(x) - self.center) / self.delta).square()
        return self.weight * self.delta**2 * square / (1 + (1 + square).sqrt())

    def gradient(self, x: Scalars) -> Scalars:
        u = (_scalar(x).detach().unsqueeze(1) - self.center) / self.delta
        return self.weight * self.delta * u / torch.hypot(u, torch.ones_like(u))


def _scalar(x: Scalars) -> PerSample:
    require_states(x, (1,), "a scalar reward", ", or wrap it in RidgeFunction")
    return x[:, 0]
