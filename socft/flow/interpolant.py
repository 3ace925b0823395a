r"""Interpolants between data and noise, and what a flow model may predict along them.

At time :math:`\tau \in [0, 1]`, from data to noise,

.. math:: x = a\,x_0 + s\,\epsilon, \qquad u(x) = E[\dot a\,x_0 + \dot s\,\epsilon \mid x],

with signal :math:`a(\tau)`, noise :math:`s(\tau)` and dots for derivatives in :math:`\tau`. A model
of the velocity u is a model of the endpoint :math:`E[x_0|x]`, of the noise :math:`E[\epsilon|x]`
and of the score :math:`-E[\epsilon|x]/s`, because :math:`x = a E[x_0|x] + s E[\epsilon|x]`: with
:math:`D = a \dot s - s \dot a > 0`,

.. math:: E[x_0|x] = (\dot s\,x - s\,u)/D, \qquad E[\epsilon|x] = (a\,u - \dot a\,x)/D.

Where a = 0 the noise and the score say nothing about the endpoint, and where s = 0 the endpoint
says nothing about the noise: only the velocity is right at both ends.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    Numbers,
    number,
    numbers,
    positive,
    require,
    require_each,
    require_finite,
    require_floating_tensors,
    require_shape,
    whole,
)
from socft.readable import Readable
from socft.reference import States

MOST_STEPS = 10**6
"""The largest number of steps of a chain."""


@dataclasses.dataclass(frozen=True)
class NoiseLevel(Readable):
    """Signal, noise and their derivatives at one time or at many; converts what models predict.

    Every conversion takes states ``batch *dims`` and a prediction of the same shape; the fields
    broadcast against them.

    Attributes:
        signal: a.
        noise: s.
        signal_rate: the derivative of a.
        noise_rate: the derivative of s.

    >>> level = Rectified().level(0.25)
    >>> x, velocity = torch.tensor([[1.0]]), torch.tensor([[2.0]])
    >>> level.endpoint(x, velocity), level.noise_estimate(x, velocity)
    (tensor([[0.5000]]), tensor([[2.5000]]))
    """

    signal: Tensor
    noise: Tensor
    signal_rate: Tensor
    noise_rate: Tensor

    def __post_init__(self) -> None:
        require_floating_tensors(**vars(self))
        for name, each in vars(self).items():
            require_finite(each.detach(), name, "it must be a finite number.")
        shapes = {tuple(each.shape) for each in vars(self).values()}
        require(len(shapes) == 1, f"the fields have shapes {sorted(shapes)}; give one for all.")

    @property
    def wronskian(self) -> Tensor:
        """``D = a s' - s a'``, positive; 1 for rectified flow."""
        return self.signal * self.noise_rate - self.noise * self.signal_rate

    def endpoint(self, x: States, velocity: States) -> States:
        """``E[x_0 | x]``."""
        c = self._like(x, velocity=velocity)
        return (c.noise_rate * x - c.noise * velocity) / c.wronskian

    def noise_estimate(self, x: States, velocity: States) -> States:
        """``E[eps | x]``."""
        c = self._like(x, velocity=velocity)
        return (c.signal * velocity - c.signal_rate * x) / c.wronskian

    def score(self, x: States, velocity: States) -> States:
        """``grad log p(x) = -E[eps | x] / s``.

        Raises:
            InvalidProblem: the noise is 0.
        """
        self._require_positive(self.noise, "noise", "score")
        return -self.noise_estimate(x, velocity) / self._like(x).noise

    def velocity_from_endpoint(self, x: States, endpoint: States) -> States:
        """The velocity of a model of ``E[x_0 | x]``.

        Raises:
            InvalidProblem: the noise is 0, where the endpoint is x whatever the velocity.
        """
        self._require_positive(self.noise, "noise", "endpoint")
        c = self._like(x, endpoint=endpoint)
        return (c.noise_rate * x - c.wronskian * endpoint) / c.noise

    def velocity_from_noise(self, x: States, noise_estimate: States) -> States:
        """The velocity of a model of ``E[eps | x]``.

        Raises:
            InvalidProblem: the signal is 0, where the noise is x whatever the velocity.
        """
        self._require_positive(self.signal, "signal", "noise")
        c = self._like(x, noise_estimate=noise_estimate)
        return (c.signal_rate * x + c.wronskian * noise_estimate) / c.signal

    def velocity_from_score(self, x: States, score: States) -> States:
        """The velocity of a model of the score.

        Raises:
            InvalidProblem: the signal is 0, where the score is -x whatever the velocity.
        """
        return self.velocity_from_noise(x, -self._like(x, score=score).noise * score)

    def each(self, function: Callable[[Tensor], Tensor]) -> NoiseLevel:
        """A function of every field; nothing is copied, so that derivatives pass."""
        return NoiseLevel(*(function(getattr(self, f.name)) for f in dataclasses.fields(self)))

    def _like(self, x: States, **predicted: States) -> _Coefficients:
        """The same numbers, shaped to broadcast against ``x``, in its dtype; refuses predictions
        that are not of the shape of ``x``.
        """
        require_floating_tensors(x=x, **predicted)
        for name, each in predicted.items():
            require_shape(each, name, tuple(x.shape))
        fields = (self.signal, self.noise, self.signal_rate, self.noise_rate, self.wronskian)
        return _Coefficients(*(_shaped(each, x) for each in fields))

    @staticmethod
    def _require_positive(values: Tensor, name: str, prediction: str) -> None:
        require(
            bool((values > 0).all()),
            f"the {name} is 0 at a time where the {prediction} is asked for, and says nothing"
            " there; use the velocity.",
        )


class _Coefficients(NamedTuple):
    """A level beside states."""

    signal: Tensor
    noise: Tensor
    signal_rate: Tensor
    noise_rate: Tensor
    wronskian: Tensor


def _shaped(value: Tensor, x: Tensor) -> Tensor:
    """One number, or one per sample, to broadcast against ``batch *dims``."""
    value = value.to(x)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (x.ndim - 1))


class Interpolant(Readable, abc.ABC):
    """Signal and noise as differentiable functions of time, ``a(0) = 1, s(0) = 0, a(1) = 0,
    s(1) = 1``.

    >>> isinstance(Rectified(), Interpolant)
    True
    """

    @abc.abstractmethod
    def level(self, time: Numbers) -> NoiseLevel:
        """The level at times in [0, 1], float64, of the shape of ``time``.

        Raises:
            InvalidProblem: a time is not in [0, 1].
        """


class Rectified(Interpolant):
    """Rectified flow: ``a = 1 - tau``, ``s = tau``, ``u = E[eps - x_0 | x]`` (arXiv 2209.03003).

    >>> Rectified().level(0.25)
    NoiseLevel(signal=0.75, noise=0.25, signal_rate=-1, noise_rate=1)
    """

    def level(self, time: Numbers) -> NoiseLevel:
        tau = _times(time)
        one = torch.ones_like(tau)
        return NoiseLevel(1 - tau, tau, -one, one)


class Trigonometric(Interpolant):
    """Variance preserving: ``a = cos(pi tau / 2)``, ``s = sin(pi tau / 2)`` (arXiv 2303.08797).

    >>> Trigonometric().level(0.5).signal
    tensor(0.7071, dtype=torch.float64)
    """

    def level(self, time: Numbers) -> NoiseLevel:
        angle = _times(time) * (math.pi / 2)
        signal, noise = ((1 - _times(time)) * (math.pi / 2)).sin(), angle.sin()
        return NoiseLevel(signal, noise, -noise * (math.pi / 2), signal * (math.pi / 2))


def uniform_times(steps: int, last: float = 0.0) -> Float[Tensor, " steps_plus_1"]:
    """``steps + 1`` equidistant times from 1, pure noise, down to ``last``.

    >>> uniform_times(4, last=0.2)
    tensor([1.0000, 0.8000, 0.6000, 0.4000, 0.2000], dtype=torch.float64)
    """
    count, end = whole(steps, "steps", most=MOST_STEPS), number(last, "last")
    require(0 <= end < 1, f"last = {end:g}; the last time must lie in [0, 1).")
    return torch.linspace(1, end, count + 1, dtype=torch.float64)


def shift_times(times: Numbers, shift: float) -> Float[Tensor, " steps_plus_1"]:
    r"""``tau -> shift tau / (1 + (shift - 1) tau)``, the timestep shift of models for large images
    (arXiv 2403.03206, equation 23).

    For rectified flow it divides a/s by ``shift`` at every time, and so equals scaling the data by
    ``1 / shift``.

    >>> shift_times([1.0, 0.5, 0.0], shift=3.0)
    tensor([1.0000, 0.7500, 0.0000], dtype=torch.float64)
    """
    tau, factor = _times(times), positive(shift, "shift")
    return factor * tau / (1 - tau + factor * tau)


def _times(time: Numbers) -> Tensor:
    tau = numbers(time, "time")
    require(tau.numel() > 0, f"time has shape {tuple(tau.shape)}; give at least one time.")
    remedy = "times must lie in [0, 1], 0 for data and 1 for noise."
    require_each(tau, lambda each: (each >= 0) & (each <= 1), "time", remedy)
    return tau
