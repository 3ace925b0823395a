r"""Noise schedules in denoising order, float64.

A schedule of ``T`` steps has signal levels :math:`\bar a_0 < \dots < \bar a_T \le 1` (from noise to
data) and turns a score :math:`s_t` into the pre-trained kernel

.. math:: Y_{t+1} = \frac{Y_t + g_t\, s_t(Y_t)}{\sqrt{a_t}} + \sigma_t W_t, \qquad a_t = \bar a_t /
    \bar a_{t+1}.

DDPM has :math:`g_t = 1 - a_t` (Han-Razaviyayn-Xu, arXiv 2412.18164v4, equation 1). DDIM(eta) keeps
the form with

.. math:: g_t = 1 - \bar a_t - \sqrt{a_t (1-\bar a_t)(1-\bar a_{t+1}-\sigma_t^2)},
   \qquad \sigma_t^2 = \eta^2 \frac{1-\bar a_{t+1}}{1-\bar a_t} (1-a_t),

so every formula of the paper holds with :math:`1-a_t` read as :math:`g_t`; at eta = 1 the two
coincide.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    Numbers,
    at_least_zero,
    monotone,
    number,
    numbers,
    positive,
    require,
    require_positive,
    whole,
    within,
)
from socft.readable import Readable


@dataclasses.dataclass(frozen=True)
class Schedule(Readable):
    """Coefficients of a ``T``-step denoising chain.

    Attributes:
        abar: signal levels, shape (T + 1,), strictly increasing from ``abar[0]`` (noise) to
            ``abar[T]`` (data).
        score_weight: ``g_t``, the weight of the score in the mean, shape (T,); ``1 - a_t`` for
            DDPM.
        sigma: noise scale of each kernel, shape (T,), strictly positive.

    >>> schedule = Schedule(abar=[0.2, 0.6, 0.9], score_weight=[0.7, 0.3], sigma=[0.8, 0.5])
    >>> schedule.steps, schedule.alpha
    (2, tensor([0.3333, 0.6667], dtype=torch.float64))
    """

    abar: Float[Tensor, " steps_plus_1"]
    score_weight: Float[Tensor, " steps"]
    sigma: Float[Tensor, " steps"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "abar", _levels(self.abar))
        for name in ("score_weight", "sigma"):
            object.__setattr__(self, name, numbers(getattr(self, name), name))
        require(
            self.score_weight.shape == self.sigma.shape == (self.steps,),
            f"score_weight has shape {tuple(self.score_weight.shape)} and sigma"
            f" {tuple(self.sigma.shape)}; with {len(self.abar)} levels give both ({self.steps},).",
        )
        require_positive(
            self.sigma,
            "sigma",
            "every step needs noise, or it cannot be steered at a finite KL: end the levels below"
            " 1, for instance with soften_last(abar), or use eta > 0.",
        )

    @property
    def steps(self) -> int:
        """Number of denoising steps T."""
        return len(self.abar) - 1

    @property
    def alpha(self) -> Float[Tensor, " steps"]:
        """``a_t = abar_t / abar_{t+1}``, shape (T,)."""
        return self.abar[:-1] / self.abar[1:]

    def shrinkage(self, variances: Float[Tensor, "*n"]) -> Float[Tensor, "steps n"]:
        """``1 - g_t / (abar_t v + 1 - abar_t)`` for each variance v of the data: the factor by
        which the mean shrinks a direction, times ``sqrt(a_t)``, where v is small the difference of
        nearly equal numbers.

        Summed as ``(1 - abar_t - g_t) + abar_t v``, with what ``1 - abar_t`` was rounded by.
        """
        level, noise = self.abar[:-1], 1 - self.abar[:-1]
        rounded = (1 - noise) - level
        signal = level.unsqueeze(1) * variances
        left = (noise - self.score_weight).unsqueeze(1) + (rounded.unsqueeze(1) + signal)
        return left / (signal + noise.unsqueeze(1))

    def memory(self, variance: float = 1.0) -> float:
        """Correlation between the first and the last state of the chain that denoises N(0,
        variance).

        Zero means memoryless: Y_0 and Y_T are independent, and the optimal law of Y_T is the
        exponential tilt of the pre-trained one. The chain for Gaussian data is linear, so the value
        is exact for that data.
        """
        level = torch.tensor(positive(variance, "variance"), dtype=torch.float64)
        transition = self.shrinkage(level).squeeze(1) / self.alpha.sqrt()
        spread = torch.ones((), dtype=torch.float64)
        for a, s in zip(transition, self.sigma, strict=True):
            spread = a**2 * spread + s**2
        return float(transition.prod() / spread.sqrt())

    def is_memoryless(self, tolerance: float = 0.01) -> bool:
        """Whether `memory` stays within ``tolerance`` for unit-variance data."""
        return abs(self.memory()) <= tolerance


def ddpm(abar: Numbers) -> Schedule:
    """Ancestral sampling with the forward variance, ``sigma_t^2 = 1 - a_t`` (Ho et al. 2020, first
    choice).

    >>> ddpm(linear_levels(50)).is_memoryless()
    True
    """
    abar = _levels(abar)
    beta = abar.diff() / abar[1:]
    return Schedule(abar=abar, score_weight=beta, sigma=beta.sqrt())


def ddim(abar: Numbers, eta: float = 1.0) -> Schedule:
    """DDIM(eta) kernels (Song et al. 2021, equation 16); eta = 1 is DDPM with the posterior
    variance.

    Raises:
        InvalidProblem: some ``sigma_t`` is zero, as at the last step when ``abar[-1] == 1`` or for
            eta = 0.

    >>> ddim(soften_last(linear_levels(50)), eta=0.5)
    Schedule(
        abar=<51 numbers, from 7.745e-06 to 0.999>,
        score_weight=<50 numbers, from 0.0006779 to 0.2652>,
        sigma=<50 numbers, from 0.01119 to 0.3162>,
    )
    """
    eta, abar = within(eta, "eta", 0, 1), _levels(abar)
    noise, clean_noise, a = 1 - abar[:-1], 1 - abar[1:], abar[:-1] / abar[1:]
    gained = abar.diff() / abar[1:]
    variance = eta**2 * clean_noise / noise * gained
    kept = clean_noise * ((1 - eta**2) * noise + eta**2 * a * clean_noise)
    score_weight = noise * (gained + a * variance) / (noise + (a * kept).sqrt())
    return Schedule(abar=abar, score_weight=score_weight, sigma=variance.sqrt())


def variance_preserving(steps: int, rate: float = 1.0) -> Schedule:
    """Euler discretisation of ``dY = (q Y / 2 + q s) dtau + sqrt(q) dB`` on [0, 1] with constant
    ``q = rate``.

    ``a_t = 1 - q dt`` and ``sigma_t^2 = q dt`` with ``dt = 1 / steps`` (section 4.2 of arXiv
    2412.18164v4); data at level 1.

    >>> variance_preserving(steps=20, rate=2.0).abar[[0, -1]]
    tensor([0.1216, 1.0000], dtype=torch.float64)
    """
    steps, rate = whole(steps, "steps"), number(rate, "rate")
    require(
        0 < rate < steps,
        f"rate / steps = {rate / steps:g}; it must lie in (0, 1), so use more than {rate:g} steps.",
    )
    return ddpm((1 - rate / steps) ** torch.arange(steps, -1, -1, dtype=torch.float64))


def linear_levels(
    steps: int, first: float = 1e-4, last: float = 0.02, train_steps: int = 1000
) -> Float[Tensor, " steps_plus_1"]:
    """Levels of the DDPM schedule whose forward variances grow linearly, rescaled from
    ``train_steps`` to ``steps``.

    >>> linear_levels(50)[[0, -1]]
    tensor([7.7448e-06, 1.0000e+00], dtype=torch.float64)
    """
    first, last = within(first, "first", 0, 1), within(last, "last", 0, 1)
    rescaled = whole(train_steps, "train_steps") / whole(steps, "steps")
    return _cumulative(torch.linspace(first, last, steps, dtype=torch.float64) * rescaled)


def scaled_linear_levels(
    steps: int, first: float = 0.00085, last: float = 0.012, train_steps: int = 1000
) -> Float[Tensor, " steps_plus_1"]:
    """Levels of Stable Diffusion's schedule, linear in the square root of the forward variance,
    rescaled to ``steps``.

    >>> scaled_linear_levels(50)[[0, -1]]
    tensor([0.0030, 1.0000], dtype=torch.float64)
    """
    first, last = within(first, "first", 0, 1), within(last, "last", 0, 1)
    rescaled = whole(train_steps, "train_steps") / whole(steps, "steps")
    roots = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64)
    return _cumulative(roots**2 * rescaled)


def cosine_levels(
    steps: int, offset: float = 0.008, largest: float = 0.999
) -> Float[Tensor, " steps_plus_1"]:
    """Levels of the cosine schedule (Nichol and Dhariwal 2021, equation 17), forward variances
    capped at ``largest``.

    >>> cosine_levels(3)
    tensor([2.4645e-04, 2.4645e-01, 7.4288e-01, 1.0000e+00], dtype=torch.float64)
    """
    offset, largest = at_least_zero(offset, "offset"), within(largest, "largest", 0, 1)
    time = torch.linspace(0, 1, whole(steps, "steps") + 1, dtype=torch.float64)
    level = torch.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2
    return _cumulative((1 - level[1:] / level[:-1]).clamp(max=largest))


def subsample(abar: Numbers, steps: int) -> Float[Tensor, " fewer_plus_1"]:
    """Every ``(T / steps)``-th level counted from the noisy end ("trailing" spacing), both ends
    kept.

    >>> levels = subsample(linear_levels(1000), 50)
    >>> levels.shape
    torch.Size([51])
    """
    abar = _levels(abar)
    full = len(abar) - 1
    steps = whole(steps, "steps", most=full)
    index = torch.linspace(0, full, steps + 1, dtype=torch.float64).round().long()
    return abar[index]


def soften_last(abar: Numbers) -> Float[Tensor, " steps_plus_1"]:
    """Replace the last level by ``(abar[-1] + abar[-2]) / 2`` so that the posterior variance of the
    last step is positive.

    >>> soften_last([0.25, 0.5, 1.0])
    tensor([0.2500, 0.5000, 0.7500], dtype=torch.float64)
    """
    abar = _levels(abar)
    return torch.cat([abar[:-1], (abar[-1:] + abar[-2:-1]) / 2])


def _cumulative(forward_variance: Tensor) -> Tensor:
    """Signal levels in denoising order from forward variances in noising order."""
    worst, least = float(forward_variance.max()), float(forward_variance.min())
    require(least > 0, f"a forward variance is {least:g}; it must be positive.")
    require(
        worst < 1,
        f"a forward variance is {worst:g}; it must stay below 1: sub-sample a longer schedule, as"
        " in subsample(linear_levels(1000), steps).",
    )
    levels = torch.cumprod(1 - forward_variance, 0).flip(0)
    return torch.cat([levels, torch.ones(1, dtype=torch.float64)])


def _levels(given: Numbers) -> Tensor:
    """Signal levels in denoising order, checked."""
    shape = "give a vector of at least two levels, such as linear_levels(50)."
    order = "levels must increase from noise to data."
    abar = monotone(given, "abar", True, shape, order)
    require(
        bool(abar[0] > 0 and abar[-1] <= 1),
        f"abar runs from {abar[0]:g} to {abar[-1]:g}; levels must lie in (0, 1].",
    )
    return abar
