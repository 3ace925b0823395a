r"""PI-FT's own value functions bounded along paths, and its errors, with proofs.

Moduli of continuity and profiles are those of `socft.theory.moduli`; updates are undamped, :math:`q
= \rho K < 1` with K a bound of :math:`|\nabla^2 G V|`, :math:`\Phi(z, \delta) = G V(z + \delta) -
|\delta|^2/(2\rho)`, and :math:`\bar\delta` its maximiser.

**Slope and curvature together.** If :math:`|\nabla V| \le \Lambda`, then at every point

.. math:: |\nabla^2 G V| \le \frac{\Lambda}{\sigma}\, \kappa\big(|\nabla G V| / \Lambda\big),
   \qquad \kappa(g) = \min_{\nu \ge 0} E\sqrt{Z^2 + \nu^2} - \nu g ,

so that where the slope is large the curvature is small; :math:`\kappa` falls. *Proof.* With
:math:`F = \nabla V(x + \sigma W)`, :math:`E F = \nabla G V = \gamma\hat g` and unit vectors b, c,
:math:`b^\top \nabla^2 G V c = E[(b \cdot F) (c \cdot W)]/\sigma`. For every :math:`\nu \ge 0`, as
:math:`F \cdot y \le \Lambda |y|`, :math:`E[F \cdot (b\, c \cdot W + \nu\hat g)] - \nu\gamma \le
\Lambda E|b\, c \cdot W + \nu\hat g| - \nu\gamma`, and as :math:`c \cdot W` is symmetric and the
root concave, :math:`E\sqrt{Z^2 + 2\nu Z\, b \cdot \hat g + \nu^2} \le E\sqrt{Z^2 + \nu^2}`. On
the line :math:`\kappa(g) = 2 n(N^{-1}((1 + g)/2))` with the normal density and distribution
function, and is attained by a step of V': it is the Gaussian isoperimetric inequality of Bobkov.

**Updates.** Let :math:`\Gamma(0) = 0`, :math:`\Gamma' = \kappa(\Gamma)`, continued by
:math:`\kappa(0) u` to u < 0, and :math:`|\nabla G V| \le L \le \Lambda`. Then :math:`|\delta_m -
\bar\delta| \le \sigma e_m` with

.. math:: e_m = \max_u e_m(u), \quad e_0(u) = \xi\Gamma(u), \quad e_{j+1}(u) = \xi[\Gamma(u) -
   \Gamma(u - e_j(u))], \quad \xi = \rho\Lambda/\sigma, \quad 0 \le u, \; \Gamma(u) \le L/\Lambda .

*Proof.* Let :math:`p = z + \bar\delta`, :math:`|\nabla G V(p)| = \Lambda\Gamma(u)`; the fixed point
says :math:`|\bar\delta| = \rho\Lambda\Gamma(u)`. On the segment from p to :math:`z + \delta_j`, at
the distance :math:`\sigma r` from p, :math:`\Gamma^{-1}` of the slope over :math:`\Lambda` has by
the lemma a derivative of at most 1 in r while the slope is not zero, so it is at least :math:`u -
r`, and the curvature is at most :math:`(\Lambda/\sigma)\Gamma'(u - r)`. Its integral is that of
:math:`|\delta_{j+1} - \bar\delta|/\rho`. If :math:`\delta_j` belongs to another function in front,
whose smoothed gradient is off by eps, each update adds :math:`\rho` eps. Where K is less,
:math:`\Gamma' = \min\{\kappa(\Gamma), \sigma K/\Lambda\}` serves.

**Values of iterates.** :math:`V_t^{(m)}(x) = \Phi(m_t(x), \delta_m)` is at most :math:`g_t = (1 +
q) \sigma_t^2 e_m^2/(2\rho_t)` below the maximum. So, with the shift :math:`\delta_m` of the first
point for both, :math:`V_t^{(m)}(x) - V_t^{(m)}(y) \le E[V_{t+1}(X) - V_{t+1}(Y)] + g_t`, and with
:math:`|\nabla\Phi(z, \delta_m(z))| \le (1 + o_m) L` (`socft.theory.one_sided`), :math:`o_m =
q^{m+1}(1 - q^m)/(1 - q)`,

.. math:: \omega_t(s) = \min\big( E\,\omega_{t+1}(\varphi_t(s) + 2\sigma_t Z) + g_t, \; (1 + o_m) L
   \varphi_t(s) \big)

is a modulus of the iterate's value. Its steep beginning is as wide as :math:`g_t` allows, and the
noise of the next step smooths it: L there is the slope of :math:`E\,\omega(s + 2\sigma Z)` at 0,
and nothing compounds. Where :math:`\omega_t` is a modulus with these jumps, its curvature
bounds hold for the iterates' smoothed values.

**Errors.** :math:`0 \le V^*_t - V_t^{(m)} \le v_t = v_{t+1} + g_t`, and likewise with :math:`(1 +
q^*)|\delta_m - \delta^*|^2/(2\rho)` for :math:`g_t`, by the performance difference. The smoothed
gradients in front differ by at most :math:`v_{t+1}/(\sigma\sqrt{2\pi})`, so the updates' bound with
the optimum's constants and this eps bounds :math:`|\delta_m - \delta^*|`; and the smoothed
curvatures differ by at most :math:`\sqrt{8/(\pi e)}\, v_{t+1}/(2\sigma^2)`.

Derived here but for the isoperimetric inequality (S. Bobkov, Ann. Probab. 25, 1997).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from types import NoneType

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, constant, keep, numbers, require, require_kind
from socft.theory.chain import ChainConstants
from socft.theory.moduli import Modulus, coupled_moduli, step_curvature
from socft.theory.numbers import StateValues, StepValues, positive_beta, vector, whole_rounds
from socft.theory.one_sided import MeanMap, optimal_step
from socft.theory.one_step import (
    SHARP,
    SHARP_SECOND,
    mean_smoothness,
    one_sided_mean_lipschitz,
)
from socft.theory.smoothness import Smoothed, Smoothness

_NODES = 2001


@dataclasses.dataclass(frozen=True)
class SlopeCurve:
    """Gamma: how fast the slope of a smoothed function may rise, from 0, with the distance over
    sigma, as a share of the slope's bound before smoothing.

    Attributes:
        places: u, from 0 on, increasing, shape (n,).
        values: ``Gamma(u)``, from 0 to 1, shape (n,).
    """

    places: Float[Tensor, " n"]
    values: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        places = numbers(self.places, "places", ("places",))
        values = numbers(self.values, "values", ("places",))
        require(
            len(places) == len(values) > 1
            and float(places[0]) == float(values[0]) == 0
            and bool((places.diff() > 0).all() and (values.diff() >= 0).all())
            and float(values[-1]) <= 1,
            "the curve does not rise from (0, 0) to 1 at most; give increasing places, and values"
            " that never fall.",
        )
        keep(self, places=places, values=values)

    @classmethod
    def of_line(cls) -> SlopeCurve:
        """In one dimension, ``Gamma(u) = 2 N(u) - 1``; tight."""
        places = torch.linspace(0, 6, _NODES, dtype=torch.float64)
        values = torch.erf(places / math.sqrt(2))
        values[-1] = 1
        return cls(places, values)

    @classmethod
    def of_space(cls) -> SlopeCurve:
        """In any dimension, by the parameter nu: ``Gamma = E[nu / sqrt(Z^2 + nu^2)]`` and ``kappa =
        E[Z^2 / sqrt(Z^2 + nu^2)]``, which are Bessel functions, and ``u`` is the integral of
        ``d Gamma / kappa``; upper bound.
        """
        nu = torch.logspace(-3, 3, 4 * _NODES, dtype=torch.float64)
        k0, k1 = (
            bessel(nu.square() / 4)
            for bessel in (
                torch.special.scaled_modified_bessel_k0,
                torch.special.scaled_modified_bessel_k1,
            )
        )
        start = nu.new_tensor([SHARP])
        slopes = torch.cat([start.new_zeros(1), nu * k0 / math.sqrt(2 * math.pi)])
        bends = torch.cat([start, nu.square() * (k1 - k0) / math.sqrt(8 * math.pi)])
        slopes[-1] = 1
        steps = slopes.diff() * (1 / bends[1:] + 1 / bends[:-1]) / 2
        return cls(torch.cat([start.new_zeros(1), steps.cumsum(0)]), slopes)

    def at(self, u: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
        """``Gamma(u)``, linear between the nodes and below 0."""
        last = len(self.places) - 1
        right = torch.searchsorted(self.places, u.clamp(min=0)).clamp(1, last)
        left = right - 1
        slope = (self.values[right] - self.values[left]) / (self.places[right] - self.places[left])
        inside = self.values[left] + slope * (
            u.clamp(max=float(self.places[-1])) - self.places[left]
        )
        return torch.where(u < 0, self.values[1] / self.places[1] * u, inside)

    def capped(self, bend: float) -> SlopeCurve:
        """The curve with ``Gamma' <= bend``, for curvatures that are bounded by that as well."""
        steps = torch.maximum(self.places.diff(), self.values.diff() / bend)
        return SlopeCurve(torch.cat([steps.new_zeros(1), steps.cumsum(0)]), self.values)

    def unfinished(self, ratio: float, most: float, rounds: int, front: float = 0.0) -> float:
        """``e_m``, what m updates leave of a shift, over sigma; upper bound.

        Args:
            ratio: ``xi = rho Lambda / sigma``.
            most: ``L / Lambda``.
            rounds: m.
            front: ``rho eps / sigma``, with the error eps of the smoothed gradient in front.
        """
        places = self.places[: int(torch.searchsorted(self.values, most)) + 1]
        top = self.at(places)
        left = ratio * top
        for _ in range(rounds):
            left = ratio * (top - self.at(places - left)) + front
        return float(left.max())


@dataclasses.dataclass(frozen=True)
class _Front:
    """A step with bounds of the value function in front, whose curvature is at most ``bend``."""

    modulus: Modulus
    sigma: float
    rho: float
    bend: float
    curve: SlopeCurve

    @functools.cached_property
    def steepest(self) -> float:
        """Lambda."""
        return self.modulus.lipschitz

    @functools.cached_property
    def slope(self) -> float:
        """L, of ``|grad G V|``."""
        return min(self.modulus.smoothed_slope(self.sigma), self.steepest)

    @property
    def rate(self) -> float:
        """q."""
        return self.rho * self.bend

    def shift_error(self, rounds: int, front: float = 0.0) -> float:
        """``sigma e_m``, or ``q^m rho L`` with the errors in front added up, if that is less."""
        q, added = self.rate, self.rho * front
        if self.bend == 0:
            return 0.0**rounds * self.rho * self.slope + added * min(rounds, 1)
        curve = self.curve.capped(self.bend * self.sigma / self.steepest)
        ratio, most = self.rho * self.steepest / self.sigma, self.slope / self.steepest
        joint = self.sigma * curve.unfinished(ratio, most, rounds, added / self.sigma)
        return min(joint, q**rounds * self.rho * self.slope + added * (1 - q**rounds) / (1 - q))

    def value_gap(self, shift: float) -> float:
        """``(1 + q) |delta - max|^2 / (2 rho)``."""
        return (1 + self.rate) * shift**2 / 2 / self.rho

    def behind(self, profile: Tensor, rounds: int, oscillation: float) -> tuple[Modulus, float]:
        """The modulus of the iterate's value at this step, and how far it is below the maximum."""
        q, ahead = self.rate, self.modulus
        gap = self.value_gap(self.shift_error(rounds))
        overshoot = q ** (rounds + 1) * (1 - q**rounds) / (1 - q)
        jumped = ahead.reflected(self.sigma, profile) + gap
        values = torch.minimum(jumped, (1 + overshoot) * self.slope * profile)
        return ahead.replaced(values.clamp(max=oscillation)), gap


@dataclasses.dataclass(frozen=True)
class PathConvergence:
    """Bounds along paths of PI-FT with m updates at every step; upper bounds.

    Attributes:
        curvature: of ``|Hess G V_{t+1}^(m)|``, shape (T,).
        rate: by which updates contract, ``rho`` times the larger of it and of the optimum's, shape
            (T,).
        shift: of ``|delta_m - delta*|``, shape (T,).
        whitened: the same over sigma, in units of the control, shape (T,).
        value: of ``V* - V^(m)``, shape (T + 1,).
    """

    curvature: StepValues
    rate: StepValues
    shift: StepValues
    whitened: StepValues
    value: StateValues


def path_curvature(
    chain: ChainConstants,
    moduli: tuple[Modulus, ...],
    beta: float | Tensor,
    oscillation: float = math.inf,
) -> StepValues:
    """``K_t >= |Hess G V*_{t+1}|`` by the recursion of one-sided constants, with slopes and
    curvatures by coupling wherever these are less, shape (T,); upper bound.

    Args:
        moduli: of the optimal value functions of steps 0..T, from `coupled_moduli`.
        beta: KL weights, one number or shape (T,).
        oscillation: ``sup r - inf r``.

    Raises:
        InvalidProblem: beta is too small for the constants to be finite.
    """
    require_kind(chain, ChainConstants, "the chain", "give ChainConstants.")
    weights = positive_beta(beta, chain.steps)
    require(
        isinstance(moduli, list | tuple)
        and len(moduli) == chain.steps + 1
        and all(isinstance(each, Modulus) for each in moduli),
        f"moduli are not those of {chain.steps + 1} value functions; give those of coupled_moduli.",
    )
    sigma, rho = chain.sigma.tolist(), (chain.sigma.square() / weights).tolist()
    means = zip(one_sided_mean_lipschitz(chain), mean_smoothness(chain), strict=True)
    means = [MeanMap(float(M), float(N)) for M, N in means]
    value, found = Smoothness(chain.reward_L0, chain.reward_up, chain.reward_down), []
    for t in reversed(range(chain.steps)):
        L0 = min(value.L0, moduli[t + 1].lipschitz)
        own = dataclasses.replace(value, L0=L0).smoothed(sigma[t])
        coupled = [
            step_curvature(moduli[t + 1], sigma[t], oscillation, side)
            for side in (value.up, value.down)
        ]
        best = Smoothed(L0, min(own.up, coupled[0]), min(own.down, coupled[1]), 0.0)
        found.append(best.curvature)
        _require_contraction(t, float(weights[t]), rho[t] * best.up)
        value = optimal_step(means[t], best, rho[t])
    return vector(found[::-1])


def path_convergence(
    chain: ChainConstants,
    reward: Modulus,
    profiles: Float[Tensor, "steps distances"],
    beta: float | Tensor,
    rounds: int | Tensor,
    *,
    oscillation: float = math.inf,
    curve: SlopeCurve | None = None,
) -> PathConvergence:
    """Theorem 3.1 along paths, for exactly these numbers of undamped updates (derived here).

    Args:
        chain: its one-sided constants, for `path_curvature`.
        reward: the reward's modulus of continuity.
        profiles: ``phi_t(s) >= |m_t(x) - m_t(y)|`` at the reward's distances ``|x - y| = s``.
        beta: KL weights, one number or shape (T,).
        rounds: updates m_t, one number or shape (T,).
        oscillation: ``sup r - inf r``.
        curve: how slope and curvature go together; that of all dimensions by default.

    Raises:
        InvalidProblem: beta is too small for updates to contract.
    """
    require_kind(chain, ChainConstants, "the chain", "give ChainConstants.")
    require_kind(reward, Modulus, "the reward", "give a Modulus, such as Modulus.of_reward.")
    require_kind(curve, (SlopeCurve, NoneType), "the curve", "give a SlopeCurve, or None.")
    range_, curve = constant(oscillation, "oscillation"), curve or SlopeCurve.of_space()
    weights, m = positive_beta(beta, chain.steps), whole_rounds(rounds, chain.steps)
    sigma, rho = chain.sigma.tolist(), (chain.sigma.square() / weights).tolist()
    best = coupled_moduli(reward, profiles, chain.sigma)
    profiles = numbers(profiles, "profiles", (chain.steps, len(reward.distances)))
    bends = path_curvature(chain, best, weights, range_).tolist()
    ahead, gaps, shifts, found = reward, [0.0], [], []
    for t in reversed(range(chain.steps)):
        optimum = _Front(best[t + 1], sigma[t], rho[t], bends[t], curve)
        near = bends[t] + SHARP_SECOND * gaps[-1] / 2 / sigma[t] ** 2
        bend = min(step_curvature(ahead, sigma[t], range_), near)
        front = dataclasses.replace(optimum, modulus=ahead, bend=bend)
        _require_contraction(t, float(weights[t]), max(front.rate, optimum.rate))
        shifts.append(optimum.shift_error(m[t], SHARP * gaps[-1] / 2 / sigma[t]))
        ahead, gap = front.behind(profiles[t], m[t], range_)
        gaps.append(gaps[-1] + min(gap, optimum.value_gap(shifts[-1])))
        found.append((bend, max(front.rate, optimum.rate)))
    (curvature, rate), shift = zip(*found[::-1], strict=True), vector(shifts[::-1])
    return PathConvergence(
        vector(curvature), vector(rate), shift, shift / chain.sigma, vector(gaps[::-1])
    )


def _require_contraction(t: int, beta: float, rate: float) -> None:
    if not rate < 1:
        raise InvalidProblem(
            f"beta[{t}] = {beta:g}; updates contract where beta[{t}] > {beta * rate:g} by these"
            " bounds, so raise it."
        )
