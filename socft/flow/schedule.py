r"""Sampling kernels of flow models, float64.

Every sampler of the field has the mean and standard deviation

.. math:: x' = e\,E[x_0|x] + n\,E[\epsilon|x] + \sigma \xi, \qquad \xi \sim N(0, I),

from level (a, s) to (a', s'). Two families:

- DDIM form: ``e = a'``, ``n = rho s'``, ``sigma = s' sqrt(1 - rho^2)`` for a correlation rho in
  [0, 1] of the noises of two levels; rho = 1 is the Euler step of the ordinary differential
  equation of rectified flow. Given the endpoint, the marginals are exact for every grid.
- Euler-Maruyama steps of :math:`dx = (u + \tfrac{\varsigma^2}{2} \nabla\log p)`, from noise to
  data: ``e = a + a_dot dt``, ``n = s + s_dot dt + varsigma^2 dt / (2 s)``, ``sigma^2 =
  varsigma^2 |dt|`` with dt < 0.

A velocity error :math:`\delta u` moves the mean by :math:`J \delta u` with
:math:`J = (n a - e s) / D`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from types import NoneType

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    Numbers,
    called,
    monotone,
    number,
    numbers,
    positive,
    quoted,
    require,
    require_callable,
    require_each,
    require_kind,
    require_kinds,
)
from socft.flow.interpolant import Interpolant, NoiseLevel, Rectified
from socft.readable import Readable

REMEDIES = (
    "end the times above 0 (`uniform_times(steps, last)`), absorb the last step into the reward"
    " (`absorb_last_step`), or leave it to the policy without a price (`free_last_step`)"
)


@dataclasses.dataclass(frozen=True)
class FlowSchedule(Readable):
    """Coefficients of a chain of T kernels along an interpolant.

    Attributes:
        times: from noise to data, strictly decreasing in [0, 1], shape (T + 1,).
        endpoint_weight: e, shape (T,).
        noise_weight: n, shape (T,).
        sigma: standard deviations, shape (T,); zero only at the last step.
        interpolant: rectified flow by default.

    Raises:
        InvalidProblem: shapes do not match, times do not decrease, or a number is not finite.

    >>> FlowSchedule([1.0, 0.5, 0.0], [0.5, 1.0], [0.0, 0.0], [0.5, 0.0])
    FlowSchedule(
        times=[1, 0.5, 0],
        endpoint_weight=[0.5, 1],
        noise_weight=[0, 0],
        sigma=[0.5, 0],
        interpolant=Rectified(),
    )
    """

    times: Float[Tensor, " steps_plus_1"]
    endpoint_weight: Float[Tensor, " steps"]
    noise_weight: Float[Tensor, " steps"]
    sigma: Float[Tensor, " steps"]
    interpolant: Interpolant = dataclasses.field(default_factory=Rectified)

    def __post_init__(self) -> None:
        require_kinds(self, interpolant=Interpolant)
        object.__setattr__(self, "times", _grid(self.times))
        for name in ("endpoint_weight", "noise_weight", "sigma"):
            object.__setattr__(self, name, numbers(getattr(self, name), name))
        shapes = [tuple(v.shape) for v in (self.endpoint_weight, self.noise_weight, self.sigma)]
        require(
            shapes == [(self.steps,)] * 3,
            f"endpoint_weight, noise_weight and sigma have shapes {shapes}; with"
            f" {len(self.times)} times give ({self.steps},) each.",
        )
        require_each(self.sigma, lambda x: x >= 0, "sigma", "a standard deviation is at least 0.")
        dead = (self.sigma[:-1] == 0).nonzero().flatten().tolist()
        require(
            not dead,
            f"sigma[{dead[0] if dead else 0}] = 0: a deterministic step before the last cannot be"
            " steered at a finite KL; use a noise level above 0.",
        )

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.times) - 1

    @functools.cached_property
    def levels(self) -> NoiseLevel:
        """The levels of all times, fields of shape (T + 1,)."""
        return self.interpolant.level(self.times)

    @functools.cached_property
    def starts(self) -> NoiseLevel:
        """The levels that the steps start from, fields of shape (T,)."""
        return self.interpolant.level(self.times[:-1])

    @property
    def velocity_weight(self) -> Float[Tensor, " steps"]:
        """``J``, the derivative of the mean in the velocity at fixed x, shape (T,)."""
        c = self.starts
        return (self.noise_weight * c.signal - self.endpoint_weight * c.noise) / c.wronskian

    @property
    def state_weight(self) -> Float[Tensor, " steps"]:
        """The derivative of the mean in x at fixed velocity, shape (T,)."""
        c = self.starts
        mixed = self.endpoint_weight * c.noise_rate - self.noise_weight * c.signal_rate
        return mixed / c.wronskian

    @property
    def deterministic_end(self) -> bool:
        """Whether the last step has no noise."""
        return bool(self.sigma[-1] == 0)

    def without_last(self) -> FlowSchedule:
        """The chain without its last step.

        Raises:
            InvalidProblem: there is only one step.
        """
        require(self.steps > 1, "the chain has one step; give at least two to remove the last.")
        return FlowSchedule(
            self.times[:-1],
            self.endpoint_weight[:-1],
            self.noise_weight[:-1],
            self.sigma[:-1],
            self.interpolant,
        )

    def memory(self, variance: float = 1.0) -> float:
        """Correlation between the first and the last state of the chain for data N(0, variance);
        exact.

        >>> round(flow_sde(uniform_times(10), noise_level=0.7).memory(), 4)
        0.2909
        """
        c, S = self.starts, positive(variance, "variance")
        spread = c.signal.square() * S + c.noise.square()
        slopes = (self.endpoint_weight * c.signal * S + self.noise_weight * c.noise) / spread
        total = self.levels.signal[0].square() + self.levels.noise[0].square()
        start = total
        for slope, sigma in zip(slopes, self.sigma, strict=True):
            total = slope.square() * total + sigma.square()
        return float(slopes.prod() * (start / total).sqrt())


Ends = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Correlation:
    """The squared correlation of the noises of two levels and what it lacks to 1, each without
    cancellation.
    """

    square: Tensor
    complement: Tensor

    @classmethod
    def of_log(cls, log_square: Tensor) -> Correlation:
        return cls(log_square.exp(), -torch.expm1(log_square))


def flow_ddim(
    times: Numbers, eta: float = 1.0, interpolant: Interpolant | None = None
) -> FlowSchedule:
    """DDIM(eta) (arXiv 2010.02502, equation 16): ``rho^2 = 1 - eta^2 (1 - ratio^2)``,
    ``ratio = s' a / (s a')``.

    At eta = 1 it is DDPM with the posterior variance, memoryless from pure noise.

    >>> flow_ddim(uniform_times(4, last=0.1)).memory()
    0.0
    """
    eta = number(eta, "eta")
    require(0 < eta <= 1, f"eta = {eta:g}; it must lie in (0, 1], 0 has no noise to steer.")

    def correlation(log_ratio: Tensor, _: Ends) -> Correlation:
        return Correlation(
            square=1 - eta**2 + eta**2 * (2 * log_ratio).exp(),
            complement=-(eta**2) * torch.expm1(2 * log_ratio),
        )

    return _ddim_form(times, correlation, interpolant)


def precise(
    times: Numbers, noise_level: float, interpolant: Interpolant | None = None
) -> FlowSchedule:
    """Precise (arXiv 2605.23522): ``rho = ratio^(eta^2 / 2)``, the exact integral of Flow-SDE with
    the endpoint frozen.

    At ``sqrt(2)`` it is DDIM(1).

    >>> precise([1.0, 0.5, 0.2], noise_level=0.7).sigma
    tensor([0.5000, 0.1404], dtype=torch.float64)
    """
    noise_level = positive(noise_level, "noise_level")
    return _ddim_form(
        times, lambda log_ratio, _: Correlation.of_log(noise_level**2 * log_ratio), interpolant
    )


def dance_precise(
    times: Numbers, noise_level: float, interpolant: Interpolant | None = None
) -> FlowSchedule:
    """The exact integral of a constant diffusion with the endpoint frozen,
    ``rho = exp(-eta^2/2 (1/s' - 1/s))``; rectified flow.

    >>> dance_precise([1.0, 0.5, 0.2], noise_level=0.7).sigma
    tensor([0.3112, 0.1755], dtype=torch.float64)
    """
    noise_level = positive(noise_level, "noise_level")
    require(
        interpolant is None or isinstance(interpolant, Rectified),
        f"interpolant = {quoted(interpolant)}; this kernel is for rectified flow.",
    )

    def correlation(_: Tensor, ends: Ends) -> Correlation:
        return Correlation.of_log(-(noise_level**2) * (1 / ends[1] - 1 / ends[0]))

    return _ddim_form(times, correlation, interpolant)


def cps(times: Numbers, noise_level: float, interpolant: Interpolant | None = None) -> FlowSchedule:
    """Coefficient-preserving sampling: ``rho = cos(eta pi / 2)`` whatever the step.

    Its noise does not vanish with the step, so refining the grid does not lead to the data law: on
    N(0, S) the variance tends to ``S cos(eta pi / 4)^2``.

    >>> cps([1.0, 0.5, 0.2], noise_level=0.5).sigma
    tensor([0.3536, 0.1414], dtype=torch.float64)
    """
    noise_level = number(noise_level, "noise_level")
    require(0 < noise_level <= 1, f"noise_level = {noise_level:g}; it must lie in (0, 1].")
    angle = noise_level * math.pi / 2

    def correlation(log_ratio: Tensor, _: Ends) -> Correlation:
        one = torch.ones_like(log_ratio)
        return Correlation(one * math.cos(angle) ** 2, one * math.sin(angle) ** 2)

    return _ddim_form(times, correlation, interpolant)


def euler_maruyama(
    times: Numbers,
    diffusion: Callable[[NoiseLevel], Tensor],
    interpolant: Interpolant | None = None,
) -> FlowSchedule:
    """Euler-Maruyama steps of the stochastic equation with any diffusion, which keeps the marginals
    of the flow in the limit.

    Args:
        diffusion: from the levels that the steps start from, fields of shape (T,), to the diffusion
            varsigma at each, shape (T,), positive.

    >>> euler_maruyama([1.0, 0.5, 0.2], lambda start: start.noise).sigma
    tensor([0.7071, 0.2739], dtype=torch.float64)
    """
    require_callable(diffusion, "the diffusion", "of a NoiseLevel, such as lambda c: c.noise")
    times, path = _grid(times), _path(interpolant)
    start, dt = path.level(times[:-1]), times.diff()
    rate = numbers(called(diffusion, (start,), tuple(dt.shape), "the diffusion"), "diffusion")
    require_each(rate, lambda x: x > 0, "diffusion", "a step needs noise: give positive numbers.")
    return FlowSchedule(
        times=times,
        endpoint_weight=start.signal + start.signal_rate * dt,
        noise_weight=start.noise + start.noise_rate * dt + rate.square() * dt / (2 * start.noise),
        sigma=rate * (-dt).sqrt(),
        interpolant=path,
    )


def flow_sde(
    times: Numbers, noise_level: float, interpolant: Interpolant | None = None
) -> FlowSchedule:
    """Flow-SDE of Flow-GRPO (arXiv 2505.05470): Euler-Maruyama with ``varsigma^2 = eta^2 s D / a``,
    for rectified flow ``eta^2 s / a``.

    At pure noise, where it is infinite, the published code divides by the second level's a.
    ``noise_level = sqrt(2)`` is the memoryless schedule of adjoint matching (arXiv 2409.08861).

    >>> flow_sde([1.0, 0.5, 0.2], noise_level=0.7).sigma
    tensor([0.7000, 0.3834], dtype=torch.float64)
    """
    noise_level = positive(noise_level, "noise_level")
    second = float(_path(interpolant).level(_grid(times)[1:2]).signal)

    def diffusion(start: NoiseLevel) -> Tensor:
        signal = torch.where(start.signal > 0, start.signal, second)
        return noise_level * (start.noise * start.wronskian / signal).sqrt()

    return euler_maruyama(times, diffusion, interpolant)


def dance_sde(
    times: Numbers, noise_level: float, interpolant: Interpolant | None = None
) -> FlowSchedule:
    """The sampler of DanceGRPO (arXiv 2505.07818): Euler-Maruyama with a constant diffusion.

    >>> dance_sde([1.0, 0.5, 0.2], noise_level=0.7).sigma
    tensor([0.4950, 0.3834], dtype=torch.float64)
    """
    noise_level = positive(noise_level, "noise_level")
    return euler_maruyama(
        times, lambda start: torch.full_like(start.noise, noise_level), interpolant
    )


def memoryless(times: Numbers, interpolant: Interpolant | None = None) -> FlowSchedule:
    """The memoryless schedule of adjoint matching (arXiv 2409.08861), ``varsigma^2 = 2 s D / a``:
    `flow_sde` at ``sqrt(2)``.

    >>> abs(memoryless(uniform_times(100)).memory()) < 1e-5
    True
    """
    return flow_sde(times, math.sqrt(2), interpolant)


def _ddim_form(
    times: Numbers,
    correlation: Callable[[Tensor, Ends], Correlation],
    interpolant: Interpolant | None,
) -> FlowSchedule:
    """The kernels whose noises of two levels are correlated as a function of ``log(s' a / (s a'))``
    and ``(s, s')``.
    """
    times, path = _grid(times), _path(interpolant)
    start, end = path.level(times[:-1]), path.level(times[1:])
    log_ratio = torch.log1p((end.noise - start.noise) / start.noise) - torch.log1p(
        (end.signal - start.signal) / start.signal
    )
    rho = correlation(log_ratio, (start.noise, end.noise))
    return FlowSchedule(
        times=times,
        endpoint_weight=end.signal,
        noise_weight=rho.square.clamp(min=0).sqrt() * end.noise,
        sigma=rho.complement.clamp(min=0).sqrt() * end.noise,
        interpolant=path,
    )


def _grid(times: Numbers) -> Tensor:
    shape = "give a vector of at least two, such as uniform_times(10)."
    order = "times must decrease from 1, noise, to 0, data."
    return monotone(times, "times", False, shape, order)


def _path(interpolant: Interpolant | None) -> Interpolant:
    remedy = "give an Interpolant, such as Rectified()."
    require_kind(interpolant, (Interpolant, NoneType), "interpolant", remedy)
    return interpolant or Rectified()
