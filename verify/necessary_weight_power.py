r"""How the necessary KL weight falls with the number of steps: a kink forms wherever the reward's
slope rises.

Setting: a line, affine mean maps with slopes :math:`A_t > 0`; the reward is convex, its slope rises
from p to q, :math:`L = (q-p)/2`, and it stays :math:`d(x) \ge 0` above the larger of its two
asymptotes, which cross at x = 0; :math:`L_t = L\prod_{j \ge t} A_j`; :math:`s_t^2` is the variance
of :math:`x_T` given :math:`x_t` without control.

Statement: $a_t = ρ_t sup ∇^2 G V_(t+1) ≥ ξ_t^2/(ξ_t^2 + 2 C_t)$ with $ξ_t = σ_t L_(t+1)/β_t$ and
$e^(C_t) = bb(E) [e^(d(X)\/β) + e^(d(−X)\/β)]_(X > 0)$, $X ∼ N(L s_t^2\/β, s_t^2)$; so that $a_t ≤ 1
− λ$ needs $β ≥ σ_t L_(t+1) sqrt(λ/(2 (1 − λ) C_t))$

It suffices that :math:`\beta \ge \sqrt{2/\pi}\,\sigma_t L_{t+1}/(1-\lambda)`: both are of the order
of :math:`\sigma_t \sim T^{-1/2}`, since :math:`C_t \to \log 2` as beta falls. A linear reward
changes nothing but where things are, so let p = -q. Value functions stay convex with the asymptotes
:math:`\pm L_t x + c_t`, :math:`c_t = c_{t+1} + \rho_t L_{t+1}^2/2`. A convex function of slopes
:math:`\pm L` whose second derivative is at most K lies at least :math:`L^2/(2K)` above the crossing
of its asymptotes. And :math:`V_t(0) \le \beta \log E[e^{r(x_T)/\beta} | x_t = 0] \le c_t + \beta
C_t`: the controlled chain is one path law among all, and under the tilt by either asymptote
:math:`x_T` is :math:`\pm X`. So :math:`G V_{t+1}(0) \le V_t(0)` lies at most :math:`\beta C_t +
\rho_t L_{t+1}^2/2` above :math:`c_{t+1}`, which is at least :math:`L_{t+1}^2/(2 K_t)`.

Kind: upper bound

Source: derived here.

How it is measured: curvatures of exact solutions by quadrature, and necessary weights, for softplus
and convex pseudo-Huber rewards; quadratic rewards in closed form.

What would refute it: a curvature below the bound by more than quadrature error.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.checks import InvalidProblem
from verify.beta_tightness import measure as necessary_weight
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.one_sided import weights
from verify.support.scores import MixtureScore
from verify.support.strategies import (
    PseudoHuber,
    Softplus,
    gaussian_scores,
    line_instances,
    numbers,
)
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Power of the necessary weight", topics.ONE_SIDED)
Convex = Softplus | PseudoHuber
NODES = 20001
LENGTHS = (8, 32)
POWER = 0.1
"""By how much an exponent between 8 and 32 steps may differ from its limit -1/2."""
SAMPLED = 1e-4


def convex_rewards() -> st.SearchStrategy[Convex]:
    """Slopes that rise from 0 to a positive one, or from minus one to one."""
    return st.one_of(
        st.builds(Softplus, numbers(0.5, 3), numbers(1, 6), numbers(-1, 1)),
        st.builds(PseudoHuber, numbers(0.2, 1), numbers(-1, 1), numbers(0.5, 3)),
    )


def measure(instance: ProductInstance, beta: Tensor) -> Tensor:
    """``rho_t sup (G V_{t+1})''``, shape (T,)."""
    return instance.suprema(beta).smoothed_hessian * theory.proximal_step(instance.chain, beta)


def bound(instance: ProductInstance, beta: float, share: float = 1.0) -> Tensor:
    """The statement's at a constant weight, shape (T,), with a share of ``C_t``."""
    slopes, sigma = instance.mean_L0, instance.schedule.sigma
    later = torch.cat([slopes.flip(0).cumprod(0).flip(0)[1:], slopes.new_ones(1)])
    spread = (sigma * later).square().flip(0).cumsum(0).flip(0).sqrt()
    reward = instance.factors[0].reward
    assert isinstance(reward, Convex)
    steep = _steepness(reward)
    xi = sigma * later * steep / beta
    excess = torch.tensor([_log_mass(reward, steep, float(s), beta) for s in spread])
    return xi.square() / (xi.square() + 2 * share * excess)


@settings(max_examples=15)
@given(line_instances(scores=gaussian_scores(), rewards=convex_rewards(), steps=6))
def test_holds(instance: ProductInstance) -> None:
    statement = theory.Theorem28(theory.OneSidedBounds(theory.BestRelaxation()))
    beta = weights(instance, statement).max()
    where = {"instance": instance.describe(), "beta": float(beta)}
    seen = measure(instance, beta.expand(instance.steps))
    CLAIM.holds(bound(instance, float(beta)), seen, where, slack=SAMPLED, floor=ACCURACY)


@pytest.mark.slow
def test_power() -> None:
    """Between 8 and 32 steps of a constant rate, necessary and sufficient weights."""
    reward, found = Softplus(2.0, 4.0), {}
    for steps in LENGTHS:
        instance = _member(reward, steps)
        found[steps] = (necessary_weight(instance, 0.5), _least(instance), _sufficient(instance))
        where = {"instance": instance.describe(), "weights": found[steps]}
        CLAIM.holds(found[steps][1], found[steps][0], where, slack=SAMPLED, part="lower")
        CLAIM.holds(found[steps][0], found[steps][2], where, slack=SAMPLED, part="upper")
    few, many = (found[steps] for steps in LENGTHS)
    ratio = math.log(LENGTHS[1] / LENGTHS[0])
    powers = [math.log(b / a) / ratio for a, b in zip(few, many, strict=True)]
    where = {"reward": str(reward), "weights": found}
    CLAIM.holds(abs(powers[0] + 0.5), POWER, where, part="exponent")
    CLAIM.finding(
        f"{type(reward).__name__}: exponents of the necessary, the lower and the upper weight"
        f" between {LENGTHS[0]} and {LENGTHS[1]} steps: {powers[0]:.3f}, {powers[1]:.3f},"
        f" {powers[2]:.3f}",
        where,
    )


@pytest.mark.parametrize("steps", [1, 5, 40])
def test_no_power_for_convex_quadratic_rewards(steps: int) -> None:
    """Without a bounded slope the weight does not fall: well posed exactly for ``beta > h s_0^2``,
    with the variance of all noise.
    """
    instance, least = _quadratic(steps)
    enough, less = (torch.full((steps,), x * least, dtype=torch.float64) for x in (1.001, 0.999))
    exact, rho = instance.solve(enough), theory.proximal_step(instance.chain, enough)
    rates = [float(rho[t] * exact.hessian(t + 1)[0, 0]) for t in range(steps)]
    CLAIM.holds(max(rates), 1.0, instance, part="quadratic")
    CLAIM.holds(0.9, max(rates), instance, part="quadratic, nearly ill posed")
    CLAIM.breaks(_refused(instance, less), 0.0, instance, "quadratic, well posed")


def _refused(instance: QuadraticInstance, beta: Tensor) -> float:
    """1 where the exact solution refuses the weights as ill posed, else 0."""
    try:
        instance.solve(beta)
    except InvalidProblem:
        return 1.0
    return 0.0


def test_needs_a_slope_that_rises() -> None:
    """For a concave reward the curvature is below the bound: nothing kinks."""
    instance = _member(PseudoHuber(0.3, 0.0, -4.0), 16)
    beta = torch.full((16,), 0.3, dtype=torch.float64)
    convex = bound(_member(PseudoHuber(0.3, 0.0, 4.0), 16), 0.3)
    gap = float((convex / measure(instance, beta)).max())
    CLAIM.breaks(gap, 1 + SAMPLED, instance, "convex reward")


def test_needs_the_room_of_the_tilt() -> None:
    """With an eighth of ``C_t`` the bound fails."""
    instance, beta = _member(Softplus(2.0, 4.0), 16), 0.4
    seen = measure(instance, torch.full((16,), beta, dtype=torch.float64))
    CLAIM.breaks(float((bound(instance, beta, 1 / 8) / seen).max()), 1.0, instance, "C")


def _steepness(reward: Convex) -> float:
    """Half of what the slope rises by."""
    return reward.slope / 2 if isinstance(reward, Softplus) else reward.L0


def _above(reward: Convex, x: Tensor) -> Tensor:
    """How far the reward is above its asymptotes at distance x from their crossing."""
    if isinstance(reward, Softplus):
        return reward.slope / reward.sharpness * torch.log1p(torch.exp(-reward.sharpness * x))
    root = (1 + (x / reward.delta).square()).sqrt()
    return reward.L0 * reward.delta * (root - x / reward.delta)


def _log_mass(reward: Convex, steep: float, spread: float, beta: float) -> float:
    """``C_t``, by the trapezoidal rule; rewards are even but for a linear one."""
    centre = steep * spread**2 / beta
    x = torch.linspace(0, centre + 10 * spread, NODES, dtype=torch.float64)
    density = torch.exp(-((x - centre) / spread).square() / 2) / (spread * math.sqrt(2 * math.pi))
    mass = torch.trapezoid(density * torch.exp(_above(reward, x) / beta), x)
    return math.log(2 * float(mass))


def _member(reward: Convex, steps: int) -> ProductInstance:
    """Standard normal data at a constant rate: all mean maps contract alike."""
    levels = tuple(math.exp(-2 * (1 - t / steps)) * 0.999 for t in range(steps + 1))
    factor = Factor(MixtureScore((1.0,), (0.0,), (1.0,)), reward)
    return ProductInstance(levels=levels, lam=(0.5,) * steps, factors=(factor,))


def _least(instance: ProductInstance) -> float:
    """The weight below which ``a_t <= 1/2`` is impossible, by bisection."""
    low, high = 1e-3, 1e3
    while high / low > 1 + SAMPLED / 10:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if float(bound(instance, middle).max()) > 0.5 else (low, middle)
    return low


def _sufficient(instance: ProductInstance) -> float:
    bounds = theory.OneSidedBounds()
    return float(theory.constant_beta(instance.chain, 0.5, theory.Theorem28(bounds)).beta[0])


def _quadratic(steps: int) -> tuple[QuadraticInstance, float]:
    """A convex quadratic reward, and ``h s_0^2``."""
    levels = tuple(0.3 * (0.95 / 0.3) ** (t / steps) for t in range(steps + 1))
    instance = QuadraticInstance(
        levels=levels,
        lam=(0.5,) * steps,
        score=(-0.8,),
        shift=(0.0,),
        curvature=(1.5,),
        slope=(0.0,),
    )
    squares = instance.mean_L0.square()
    later = torch.cat([squares.flip(0).cumprod(0).flip(0)[1:], squares.new_ones(1)])
    return instance, 1.5 * float((instance.schedule.sigma.square() * later).sum())
