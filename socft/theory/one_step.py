"""One step of the backward recursion: how Lipschitz constants pass through smoothing, Moreau
envelope and mean map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from socft.checks import numbers, per_step
from socft.theory.arguments import checked
from socft.theory.chain import ChainConstants, score_step
from socft.theory.numbers import StateValues, StepValues, positive_beta, product

SHARP = math.sqrt(2 / math.pi)
"""``E|W|`` in one dimension, the largest ``E|b.W|`` over unit vectors b in any dimension
(equality).
"""

SHARP_SECOND = math.sqrt(8 / (math.pi * math.e))
"""``E|W^2 - 1|`` in one dimension, the largest ``E|(b.W)(c.W) - b.c|`` over unit vectors b, c
(equality, derived here).

The expectation is convex in the angle's cosine c = b.c, because the quadratic form has eigenvalues
(c + 1) / 2 and (c - 1) / 2, and the two ends c = 1, -1 agree.
"""

SHARP_THIRD = math.sqrt(2 / math.pi) * (1 + 4 * math.exp(-1.5))
"""``E|W^3 - 3 W|`` in one dimension: third derivatives of ``G f`` are at most this times
``sup |f| / sigma^3`` (equality, derived here).

A symmetric form of order three is largest on the diagonal, and ``W^3 - 3 W`` has the antiderivative
``-(W^2 - 1)`` against the normal density.
"""

_FEW = 300
"""Dimensions up to which gamma functions are finite; above, five terms of Stirling's series for
their quotient are exact in float64.
"""


@checked()
def expected_norm(dim: int) -> float:
    """``C_d = E|W| = sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2)``, the constant in (17);
    equality.
    """
    if dim <= _FEW:
        return math.sqrt(2) * math.gamma((dim + 1) / 2) / math.gamma(dim / 2)
    coefficients = (-1 / 4, 1 / 32, 5 / 128, -21 / 2048, -399 / 8192)
    series = sum(c * float(dim) ** -(n + 1) for n, c in enumerate(coefficients))
    return math.sqrt(dim) * (1 + series)


@checked(chain=ChainConstants)
def concavity_modulus(chain: ChainConstants, beta: float | Tensor, curvature: Tensor) -> StepValues:
    """(19): Bellman's bracket is strongly concave in u with modulus
    ``(g^2 / a) (beta / sigma^2 - K)``; tight lower bound, (T,).

    Attained by a quadratic V with curvature +K.

    Args:
        curvature: a bound K on ``|Hess G V_{t+1}|``, shape (T,); the paper's is L1V_{t+1}.
    """
    beta, curvature = (
        positive_beta(beta, chain.steps),
        per_step(curvature, chain.steps, "curvature"),
    )
    return chain.score_weight.square() / chain.alpha * (beta / chain.sigma.square() - curvature)


@checked(chain=ChainConstants)
def control_size(chain: ChainConstants, beta: float | Tensor, value_L0: StateValues) -> StepValues:
    """``|u*_t - s_t| <= kappa_t L0V_{t+1}``, from (18); tight: attained by a linear reward with
    ``s(y) = +L0s y``, (T,).

    Args:
        value_L0: ``L0V``, shape (T + 1,).
    """
    return score_step(chain, beta) * numbers(value_L0, "value_L0", (chain.steps + 1,))[1:]


@checked(chain=ChainConstants)
def mean_lipschitz(chain: ChainConstants) -> StepValues:
    """``M_t = (1 + g L0s) / sqrt(a)``, a Lipschitz constant of the mean map; tight: attained by
    ``s(y) = +L0s y``, (T,).
    """
    return (1 + chain.score_weight * chain.score_L0) / chain.alpha.sqrt()


@checked(chain=ChainConstants)
def one_sided_mean_lipschitz(chain: ChainConstants) -> StepValues:
    """``M_t = max(1 + g up, g down - 1) / sqrt(a)`` with ``-down I <= Jac s <= up I``; equality
    where these are exact, (T,).

    The Jacobian of the mean map, ``(I + g Jac s) / sqrt(a)``, has its spectrum between
    ``(1 - g down) / sqrt(a)`` and ``(1 + g up) / sqrt(a)``. For the score of noised data,
    ``Jac s = abar Cov(x_0 | x_t) / (1 - abar)^2 - I / (1 - abar)``, and DDPM's weight
    ``g = 1 - a <= 1 - abar`` makes it positive: ``up`` alone decides, and M < 1 wherever
    ``up < (sqrt(a) - 1) / g``, about -1/2: the chain contracts, while ``(1 + g L0s) / sqrt(a)``
    always exceeds 1.
    """
    g = chain.score_weight
    stretch = torch.maximum(1 + g * chain.score_up, g * chain.score_down - 1)
    return stretch / chain.alpha.sqrt()


@checked(chain=ChainConstants)
def mean_smoothness(chain: ChainConstants) -> StepValues:
    """``N_t = g L1s / sqrt(a)``, the Lipschitz constant of the mean map's Jacobian; equality when
    L1s is exact, (T,).
    """
    return chain.score_weight * chain.score_L1 / chain.alpha.sqrt()


@checked()
def smoothed_curvature(L0: float, L1: float, sigma: float) -> float:
    """``|Hess G V| <= L1 erf( L0 / (sqrt(2) sigma L1) )`` for an L0-Lipschitz V with L1-Lipschitz
    gradient; tight (derived here).

    By parts (26), ``b.Hess(G V)b = E[f(w) w] / sigma`` where ``f(w)`` is the slope of V along b at
    distance ``sigma w``. Only its odd part counts, which is at most ``min(L0, sigma L1 |w|)``; for
    that function the expectation is ``sigma L1 P(|w| < L0 / (sigma L1))``. Attained in every
    dimension by the slope ``clip(L1 x, -L0, L0)`` along one axis. Never above
    ``min(L1, sqrt(2/pi) L0 / sigma)``, and equal to the second when L1 is infinite, so that a
    reward with kinks is admitted.
    """
    if L0 == 0 or L1 == 0:
        return 0.0
    if math.isinf(L0):
        return L1
    if math.isinf(L1):
        return SHARP * L0 / sigma
    reach = math.sqrt(2) * sigma * L1
    return L1 * math.erf(L0 / reach) if reach > 0 else L1


@checked()
def smoothed_third(L0: float, L1: float, sigma: float) -> float:
    """``|D^3 G V| <= min( sqrt(2/pi) L1 / sigma, sqrt(8/(pi e)) L0 / sigma^2 )``; each entry tight
    (derived here).

    By parts, ``D^3(G V)[a, b, c] = E[Hess V[a, b] (c.W)] / sigma = E[(a.grad V) ((b.W)(c.W) - b.c)]
    / sigma^2``; bound the first factor and use `SHARP` and `SHARP_SECOND`. Attained in the limit,
    in d = 1, by ``V'' = L1 sign(x)`` and by ``V' = L0 sign(x^2 - sigma^2)``.
    """
    return min(SHARP * L1 / sigma, SHARP_SECOND * L0 / sigma**2)


@checked()
def value_lipschitz(L0: float, mean_L0: float) -> float:
    """(14) ``L0V_t = M L0V_{t+1}``; tight: attained by a linear reward with ``s(y) = +L0s y``.

    The envelope's gradient is ``grad(G V)(x + delta*)`` and smoothing keeps the Lipschitz constant.
    """
    return product(mean_L0, L0)


@checked()
def value_smoothness(
    L0: float, curvature: float, mean_L0: float, mean_L1: float, lam: float
) -> float:
    """(15) ``L1V_t = N L0V_{t+1} + M^2 K / lam``; tight: attained by a convex quadratic reward with
    an affine mean map.

    The envelope's Hessian is ``H (I - rho H)^-1`` with H = Hess(G V) at ``x + delta*``, at most
    ``K / (1 - rho K) <= K / lam``, and its gradient is at most L0V. Only the smoothed curvature H
    enters, so any bound on it may stand for L1V here and in the condition on beta.
    """
    return product(mean_L1, L0) + product(mean_L0, mean_L0, curvature) / lam


@checked()
def shift_lipschitz(mean_L0: float, lam: float) -> float:
    """``q D = q M / lam``, Lipschitz constant of the optimal shift ``delta*_t(m_t(y))``, which
    gives (16); tight, attained as (15).

    ``Jac delta* = (I - rho H)^-1 rho H`` is at most ``q / lam``; H is again the smoothed curvature.
    (16) adds L0s to it, which is attained where the score is ``+L0s y``.
    """
    return (1 - lam) * mean_L0 / lam


@checked()
def shift_smoothness(
    mean_L0: float, mean_L1: float, third_derivative_ratio: float, lam: float
) -> float:
    """``Z = q (tau D^2 + N) / lam``, Lipschitz constant of the optimal shift's Jacobian, with
    which (17) follows; upper bound.

    With ``P = (I - rho H)^-1`` the second derivative of delta* is ``P rho D^3(G V)[P, P]``, at most
    ``rho |D^3 G V| / lam^3``, and ``rho |D^3 G V| <= rho K tau <= q tau`` for a bound tau on
    ``|D^3 G V| / K``; composing with m_t
    adds ``|Jac delta*| N``. Here H = Hess(G V), but D^3(G V) sees the unsmoothed Hess V: a smaller
    K needs a larger tau. Not attained, since H and D^3(G V) are largest at different points.
    """
    D = mean_L0 / lam
    return (1 - lam) * (product(third_derivative_ratio, D, D) + mean_L1) / lam


@checked(lam=(0, 1))
def geometric_peak(lam: float, constant: float, slope: float) -> float:
    """``max_{m >= 1} q^m (constant + slope m)`` with ``q = 1 - lam``, 0 <= lam <= 1, and
    non-negative coefficients; equality (a supremum at lam = 0).

    The ratio of successive terms, ``q (1 + slope / (constant + slope m))``, decreases to ``q < 1``:
    the terms rise, then fall. So the maximum is attained, at the first m whose ratio is at most 1,
    that is ``m >= q / lam - constant / slope``.
    """
    if lam == 1 or (constant == 0 and slope == 0):
        return 0.0
    if math.isinf(constant) or math.isinf(slope):
        return math.inf
    if lam == 0:
        return math.inf if slope > 0 else constant
    turn = (1 - lam) / lam - constant / slope if slope > 0 else 1.0
    first = math.floor(max(1.0, turn))
    return max(math.exp(m * math.log1p(-lam)) * (constant + slope * m) for m in (first, first + 1))


@checked()
def increment_smoothness(
    L0: float, curvature: float, mean_L0: float, third_derivative_ratio: float, lam: float
) -> tuple[float, float]:
    """c and d of ``|Jac(G_m - G_{m-1})| <= q^m (c + d m)``, ``c = D K`` and ``d = D tau Lb0``,
    m >= 1, for the costates G_m that successive updates see; upper bound.

    By induction: ``Jac delta_{m+1} = rho Jac G_m``, so that the difference is that of H_m and
    H_{m-1}, at most ``K tau rho q^{m-1} Lb0``, times ``I + Jac delta_{m-1}``, at most D, and H_m
    times rho times the difference before it.
    """
    D = mean_L0 / lam
    return product(D, curvature), product(D, third_derivative_ratio, L0)


@checked()
def iterate_excess(
    L0: float,
    curvature: float,
    mean_L0: float,
    mean_L1: float,
    third_derivative_ratio: float,
    lam: float,
) -> float:
    """``max_{m >= 1} R(m)`` in (39), ``R(m) = q^m ( Z Lb0 + q D^2 (K + m tau Lb0) )``; upper
    bound.

    It is what (55) adds to the envelope identity,
    ``grad V^(m) = Jac m^T G_m + Jac delta_m^T (G_m - G_{m-1})`` with ``G_m`` the gradient of G V at
    ``m_t + delta_m``: there ``|Jac delta_m| <= q D``, its Lipschitz constant is at most Z,
    ``|G_m - G_{m-1}| <= q^m Lb0`` and `increment_smoothness`.
    """
    Z = shift_smoothness(mean_L0, mean_L1, third_derivative_ratio, lam)
    turn = shift_lipschitz(mean_L0, lam)
    constant, slope = increment_smoothness(L0, curvature, mean_L0, third_derivative_ratio, lam)
    return geometric_peak(lam, product(Z, L0) + product(turn, constant), product(turn, slope))
