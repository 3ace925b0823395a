r"""Bounds of optimal value functions along paths, whatever the scores and beta, with proofs.

**Setting.** :math:`|m_t(x) - m_t(y)| \le \varphi_t(|x - y|)`, the *profile* of the mean map, which
sees how far an expansion reaches where a Lipschitz constant only sees that there is one; the reward
has the modulus of continuity :math:`\omega_T`, :math:`|r(x) - r(y)| \le \omega_T(|x - y|)`.

**Moduli.** With :math:`\omega` continued to negative numbers as an odd function,

.. math:: \omega_t(s) = E\,\omega_{t+1}\big(\varphi_t(s) + 2\sigma_t Z\big), \qquad
   |V^*_t(x) - V^*_t(y)| \le \omega_t(|x - y|) .

*Coupling.* Let :math:`e = (a - b)/|a - b|`, :math:`X = a + \sigma W`; let Y = X with probability
:math:`\min(1, n(X - b)/n(X - a))`, n the density of :math:`\sigma W`, and :math:`Y = b + \sigma
(I - 2 e e^\top) W` otherwise. Then :math:`Y \sim N(b, \sigma^2 I)`, the reflection in the middle
between a and b, and :math:`|X - Y|` has on s > 0 the density :math:`n_{2\sigma}(s - |a-b|) -
n_{2\sigma}(s + |a-b|)`, so that :math:`E\,\omega(|X-Y|) = E\,\omega(|a - b| + 2\sigma Z)` for odd
:math:`\omega`; that increases with :math:`|a - b|` if :math:`\omega` does.

*Proof.* Let :math:`\delta` be the shift that is best at x. It is allowed at y for the same price:
:math:`V_t(x) - V_t(y) \le E[V_{t+1}(X) - V_{t+1}(Y)]` with :math:`a = m_t(x) + \delta`, :math:`b =
m_t(y) + \delta`. **The control cancels**: :math:`|a - b| \le \varphi_t(|x - y|)`.

**Gradients.** :math:`|\nabla V^*_t| \le \liminf_{s \to 0} \omega_t(s)/s`. With :math:`\varphi_t(s)
= M_t s` it is the product of the :math:`M_t`; but a difference that the noise, or a contraction
farther out, takes off the ridge between two modes is stretched no more, and nothing compounds.

**Curvature.** By parts, :math:`b^\top \nabla^2 G V\, b = E[V(x + \sigma W)((b \cdot W)^2 - 1)] /
\sigma^2`. Given the part of W across b, only the even part e of V along b counts, and the factor
has mean 0: so it is :math:`E[(e(|Z|) - e(1))(Z^2 - 1)]/\sigma^2`, at most

.. math:: K = E\big[\, |Z^2 - 1|\; \omega(\sigma\, ||Z| - 1|) \,\big] / \sigma^2 ,

:math:`\sqrt{2/\pi}\, L_0/\sigma` for :math:`\omega(s) = L_0 s`. And it is at most
:math:`\sqrt{8/(\pi e)}\, \mathrm{osc}/(2 \sigma^2)` with the oscillation :math:`\sup V - \inf V`,
which neither smoothing nor envelope increases. So :math:`\beta_t \ge \sigma_t^2 K_t/(1 - \lambda)`
suffices, without a recursion in beta (`socft.theory.beta_from_curvature`).

Derived here. Reflection coupling for controlled diffusions in continuous time, where the control
cancels likewise, is known (arXiv 2301.00083, 2502.01353).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    at_least_zero,
    constant,
    keep,
    numbers,
    per_step,
    positive,
    probe,
    require,
    require_callable,
    require_each,
    require_kind,
    require_positive,
    whole,
)
from socft.theory.numbers import StepValues, vector
from socft.theory.one_step import SHARP_SECOND

Distances = Float[Tensor, " distances"]

_REACH, _CELLS = 12.0, 6000
"""Where the normal density ends, and cells of the sum over it, with an edge at 1 where the
integrand of a curvature has a kink.
"""
_MOST = 10**6
"""Largest number of distances."""


@dataclasses.dataclass(frozen=True)
class Modulus:
    """A modulus of continuity, linear between given distances.

    Attributes:
        distances: from 0 on, increasing, shape (n,).
        values: from 0 on, never falling, shape (n,).
        slope: beyond the last distance.
    """

    distances: Distances
    values: Distances
    slope: float

    def __post_init__(self) -> None:
        places = numbers(self.distances, "distances", ("distances",))
        values = numbers(self.values, "values", ("distances",))
        require(
            len(places) == len(values) > 1
            and float(places[0]) == float(values[0]) == 0
            and bool((places.diff() > 0).all() and (values.diff() >= 0).all())
            and at_least_zero(self.slope, "slope") >= 0,
            "the values of a modulus do not start at (0, 0) and rise from there; give increasing"
            " distances, and values and a last slope that never fall.",
        )
        keep(self, distances=places, values=values, slope=float(self.slope))

    @classmethod
    def of_reward(cls, distances: Distances, L0: float, oscillation: float = math.inf) -> Modulus:
        """``min(L0 s, sup r - inf r)``."""
        lipschitz, largest = at_least_zero(L0, "L0"), constant(oscillation, "oscillation")
        places = numbers(distances, "distances", ("distances",))
        values = (lipschitz * places).clamp(max=largest)
        return cls(places, values, lipschitz if math.isinf(largest) else 0.0)

    @property
    def lipschitz(self) -> float:
        """The largest ``omega(s) / s``."""
        return float((self.values[1:] / self.distances[1:]).max())

    def at(self, distance: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``omega(s)`` for s >= 0."""
        distance = numbers(distance, "distance", ("n",))
        last = len(self.distances) - 1
        left = (torch.searchsorted(self.distances, distance, right=True) - 1).clamp(0, last)
        return self.values[left] + self._slopes[left] * (distance - self.distances[left])

    def reflected(self, sigma: float, apart: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``E omega(apart + 2 sigma Z)`` with omega odd: the mean modulus of two points with noise
        sigma that are coupled by reflection; equality, kink by kink.
        """
        apart = numbers(apart, "apart", ("n",))
        slopes, scale = self._slopes, 2 * positive(sigma, "sigma")
        bends, knots = slopes.diff(), self.distances[1:]
        right = _ramp((apart[:, None] - knots) / scale)
        left = _ramp((-apart[:, None] - knots) / scale)
        return slopes[0] * apart + scale * ((right - left) @ bends)

    def smoothed_slope(self, sigma: float) -> float:
        """The slope of ``E omega(s + 2 sigma Z)`` at s = 0, which bounds the slope of ``G V`` where
        omega is a modulus of V; equality.
        """
        slopes = self._slopes
        beyond = 2 * torch.special.ndtr(-self.distances[1:] / (2 * sigma))
        return float(slopes[0] + beyond @ slopes.diff())

    def replaced(self, values: Distances) -> Modulus:
        """With the running maximum of other values from 0 on, and their last slope."""
        rising = torch.cat([values.new_zeros(1), values[1:].clamp(min=0).cummax(0).values])
        last = (rising[-1] - rising[-2]) / (self.distances[-1] - self.distances[-2])
        return Modulus(self.distances, rising, float(last))

    @property
    def _slopes(self) -> Distances:
        """To the right of each distance."""
        inner = self.values.diff() / self.distances.diff()
        return torch.cat([inner, inner.new_tensor([self.slope])])


def _ramp(u: Tensor) -> Tensor:
    """``E max(u + Z, 0)``."""
    density = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)
    return u * torch.special.ndtr(u) + density


def graded_distances(farthest: float = 16.0, count: int = 260) -> Distances:
    """From 0 on, denser towards 0, where a ridge between modes is narrow; shape (count,)."""
    graded = torch.linspace(0, 1, whole(count, "count", 2, _MOST), dtype=torch.float64).square()
    return positive(farthest, "farthest") * graded


def line_profile(
    mean: Callable[[Float[Tensor, "n 1"]], Float[Tensor, "n 1"]],
    distances: Distances,
    middles: Float[Tensor, " middles"],
) -> Distances:
    """``max_x |m(x + s/2) - m(x - s/2)|`` of a map of the line over the given x, rising with s,
    shape (n,); equality where they are dense, as at a maximum over x the derivative vanishes.
    """
    require_callable(mean, "the mean", "of states of shape (n, 1)")
    apart = numbers(distances, "distances", ("distances",))
    among = numbers(middles, "middles", ("middles",))
    require(len(among) > 0, "middles has shape (0,); give at least one point.")
    ends = [(among + sign * apart[:, None] / 2).reshape(-1, 1) for sign in (1, -1)]
    with torch.no_grad():
        shape = (len(apart), len(among))
        upper, lower = (probe(mean, (x,), tuple(x.shape), "the mean").reshape(shape) for x in ends)
    return (upper - lower).abs().amax(1).cummax(0).values


def coupled_moduli(
    reward: Modulus, profiles: Float[Tensor, "steps distances"], sigma: StepValues
) -> tuple[Modulus, ...]:
    """Moduli of continuity of the optimal value functions of steps 0..T, for every beta; upper
    bound, attained by linear rewards and affine scores that stretch all directions alike.

    Args:
        reward: of the reward.
        profiles: ``phi_t(s) >= |m_t(x) - m_t(y)|`` at the reward's distances ``|x - y| = s``.
        sigma: noise scales, shape (T,).
    """
    require_kind(reward, Modulus, "the reward", "give a Modulus, such as Modulus.of_reward.")
    apart = numbers(profiles, "profiles", ("steps", len(reward.distances)))
    require_each(apart, lambda s: s >= 0, "profiles", "a distance is at least 0.")
    scales = _scales(sigma, len(apart))
    found = [reward]
    for profile, scale in zip(apart.flip(0), reversed(scales), strict=True):
        found.append(found[-1].replaced(found[-1].reflected(scale, profile)))
    return tuple(reversed(found))


def coupled_curvature(
    moduli: tuple[Modulus, ...], sigma: StepValues, oscillation: float = math.inf
) -> StepValues:
    """``K_t >= |Hess G V_{t+1}|``: the smaller of what the modulus and what the oscillation of the
    reward allow, shape (T,); upper bound.
    """
    require(
        isinstance(moduli, list | tuple) and all(isinstance(each, Modulus) for each in moduli),
        "moduli are no moduli of value functions; give those of coupled_moduli.",
    )
    scales = _scales(sigma, len(moduli) - 1)
    pairs = zip(moduli[1:], scales, strict=True)
    return vector(step_curvature(modulus, scale, oscillation) for modulus, scale in pairs)


def step_curvature(
    modulus: Modulus, sigma: float, oscillation: float = math.inf, side: float = math.inf
) -> float:
    """The same at one step, of a V with this modulus; with ``V'' <= side``, or ``-V'' <= side``,
    along all lines, of one side of the spectrum.

    Half the difference of the slopes of V at ``+-sigma y`` is at most ``min(L0, side sigma y)``, so
    that its integral from 1 to ``|Z|`` bounds what omega does. Without a modulus that is
    `smoothed_curvature`.
    """
    require_kind(modulus, Modulus, "the modulus", "give a Modulus, such as Modulus.of_reward.")
    scale, steepest = positive(sigma, "sigma"), constant(side, "side")
    by_range = SHARP_SECOND * constant(oscillation, "oscillation") / 2 / scale**2
    return min(_by_parts(modulus, scale, steepest), by_range)


def oscillation_curvature(oscillation: float, sigma: StepValues) -> StepValues:
    """``|Hess G V| <= sqrt(8/(pi e)) osc / (2 sigma^2)``; tight: attained by the indicator of
    ``|x| < sigma``.

    ``E[V ((b.W)^2 - 1)]`` is the same with V centred between its bounds. So ``rho K`` is at most
    ``0.484 osc / beta``, at every step, for every chain and in every dimension.
    """
    scales = numbers(sigma, "sigma", ("steps",))
    require_positive(scales, "sigma", "every step has noise.")
    return SHARP_SECOND * constant(oscillation, "oscillation") / 2 / scales.square()


def _scales(sigma: StepValues, steps: int) -> list[float]:
    scales = per_step(sigma, steps, "sigma")
    require_positive(scales, "sigma", "every step has noise.")
    return scales.tolist()


def _by_parts(modulus: Modulus, sigma: float, side: float) -> float:
    """``E[|Z^2 - 1| min(omega(sigma ||Z| - 1|), |P(|Z|) - P(1)|)] / sigma^2``, by the midpoint
    rule, with P the integral of ``sigma min(L0, side sigma y)``.
    """
    step, L0 = _REACH / _CELLS, modulus.lipschitz
    z = (torch.arange(_CELLS, dtype=torch.float64) + 0.5) * step
    density = math.sqrt(2 / math.pi) * torch.exp(-z.square() / 2) * step
    risen = _risen(z, sigma, L0, side) - _risen(torch.ones_like(z[:1]), sigma, L0, side)
    away = torch.minimum(modulus.at(sigma * (z - 1).abs()), risen.abs())
    return float((density * (z.square() - 1).abs()) @ away) / sigma**2


def _risen(z: Tensor, sigma: float, L0: float, side: float) -> Tensor:
    """P(z), quadratic up to where ``side sigma y`` reaches L0."""
    if math.isinf(side) or L0 == 0:
        return L0 * sigma * z
    bent = z.clamp(max=L0 / (side * sigma)) if side > 0 else z
    return side * (sigma * bent).square() / 2 + L0 * sigma * (z - bent)
