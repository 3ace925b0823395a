r"""Every constant and bound of the discrete control problem and of PI-FT, the one place that reports and tests take them from.

Setting (Han-Razaviyayn-Xu, arXiv 2412.18164v4; bare equation and theorem numbers below are theirs): a chain with coefficients
a_t, gain g_t (their ``1 - a_t``), sigma_t; a score that is L0s_t-Lipschitz with an L1s_t-Lipschitz Jacobian; a reward that is
L0r-Lipschitz with an L1r-Lipschitz gradient; W ~ N(0, I_d). Norms are Euclidean and operator norms. With the mean map
``m_t(y) = (y + g_t s_t(y)) / sqrt(a_t)``, the smoothing ``(G f)(x) = E f(x + sigma_t W)`` and ``rho_t = sigma_t^2 / beta_t``,
Bellman's equation (9) is a smoothing, a Moreau envelope and a composition (derived here):

.. math:: V_t = \Big[ \sup_\delta\, (G V_{t+1})(\cdot + \delta) - |\delta|^2 / (2 \rho_t) \Big] \circ m_t, \qquad
   \delta = \frac{g_t (U_t - s_t)}{\sqrt{a_t}} = \sigma_t v_t .

Write M, N for the Lipschitz constants of m_t and of its Jacobian, K for a bound on ``|Hess G V_{t+1}|``, ``third`` for a bound on
``|D^3 G V_{t+1}| / K``, and let beta_t >= sigma_t^2 K / (1 - lam_t), so that ``rho_t K <= q := 1 - lam_t``. The maximiser solves
``delta = rho grad(G V)(x + delta)``, so that ``x + delta`` has the Jacobian ``(I - rho H)^-1``, at most 1 / lam, and with

    D = M / lam                      Lipschitz constant of the controlled mean,       = (1 + g L0u) / sqrt(a)
    Z = q (third D^2 + N) / lam      Lipschitz constant of the Jacobian of the shift

the paper's constants become, when M = (1 + g L0s) / sqrt(a), K = L1V and third = C_d / sigma (reconstructed from the paper's
definitions and proofs, and proved again in the docstrings below; not a transcription of its displays)

    (14) L0V_t = M L0V               (16) L0u_t = L0s + sqrt(a) q D / g
    (15) L1V_t = N L0V + M D K       (17) L1u_t = L1s + sqrt(a) Z / g
    (38) Lb0_t = M (1 + q^2 / lam) Lb0
    (39) Lb1_t = N Lb0 + M D K + max_{m >= 1} q^m ( Z Lb0 + q D^2 (K + m third Lb0) ).

`Paper` evaluates them so. `Sharp` evaluates them with the constants derived in this module: M may be the exact Lipschitz constant
of the mean map, K is the smoothed curvature, ``third`` is free of the dimension. It stands beside the paper's, never instead.
`convergence` unrolls Theorem 3.1; `sharp_convergence` uses that the gradient of an unfinished value function is off only to second
order in what its control is off. A product of zero and infinity is zero: a quadratic reward has L0r = inf, which an affine score
(L1s = 0) never multiplies. An infinite constant means "no bound".

Each function says of what kind it is. *Equality*: an identity or an exact extremum. *Tight*: a bound attained, or approached, by an
instance the docstring names. *Upper bound*: not attained in general.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, per_step, require
from socft.reward import Reward
from socft.schedule import Schedule

PerStep = Float[Tensor, " steps"]
PerState = Float[Tensor, " steps_plus_1"]

SHARP = math.sqrt(2 / math.pi)
"""``E|W|`` in one dimension, the largest ``E|b.W|`` over unit vectors b in any dimension (equality)."""

SHARP_SECOND = math.sqrt(8 / (math.pi * math.e))
"""``E|W^2 - 1|`` in one dimension, the largest ``E|(b.W)(c.W) - b.c|`` over unit vectors b, c (equality, derived here).

The expectation is convex in the angle's cosine c = b.c, because the quadratic form has eigenvalues (c + 1) / 2 and (c - 1) / 2, and
the two ends c = 1, -1 agree.
"""

_ROUNDING = 1e-9
"""Relative slack for comparing two numbers that are equal in exact arithmetic (thousands of float64 roundings)."""

_BISECTION = 1e-12
"""Relative width at which a bisection on beta stops."""

_LARGEST = 1e250
"""Weights beyond this one, or below its inverse, count as infinite or zero (far from overflow)."""


def expected_norm(dim: int) -> float:
    """``C_d = E|W| = sqrt(2) Gamma((d + 1) / 2) / Gamma(d / 2)``, the constant in (17); equality."""
    require(dim >= 1, f"dim = {dim}; give at least 1.")
    return math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))


@dataclasses.dataclass(frozen=True)
class Chain:
    """What the theory knows of a problem: coefficients and Lipschitz constants, one value per step where the shape is (T,).

    Attributes:
        alpha: ``a_t``, shape (T,).
        gain: ``g_t`` (``1 - a_t`` for DDPM), shape (T,).
        sigma: noise scale, shape (T,).
        score_L0: Lipschitz constant of the score, shape (T,) or one number.
        score_L1: Lipschitz constant of the score's Jacobian, shape (T,) or one number.
        reward_L0: Lipschitz constant of the reward, possibly infinite.
        reward_L1: Lipschitz constant of the reward's gradient, possibly infinite.
        dim: dimension d of a state; only the paper's constant (17) depends on it.

    Raises:
        InvalidProblem: a coefficient that is not positive, a Lipschitz constant that is negative or not a number.
    """

    alpha: PerStep
    gain: PerStep
    sigma: PerStep
    score_L0: PerStep
    score_L1: PerStep
    reward_L0: float
    reward_L1: float
    dim: int = 1

    def __post_init__(self) -> None:
        steps = len(torch.as_tensor(self.alpha))
        for name in ("alpha", "gain", "sigma", "score_L0", "score_L1"):
            object.__setattr__(self, name, per_step(getattr(self, name), steps, name))
        for name in ("alpha", "gain", "sigma"):
            _require_each(getattr(self, name), lambda x: (x > 0) & x.isfinite(), name, "it must be positive and finite.")
        for name in ("score_L0", "score_L1"):
            _require_each(getattr(self, name), lambda x: (x >= 0) & x.isfinite(), name, "a Lipschitz constant is finite and >= 0.")
        for name in ("reward_L0", "reward_L1"):
            value = getattr(self, name)
            require(value >= 0, f"{name} = {value}; a Lipschitz constant is >= 0, or inf where there is none.")
        require(self.dim >= 1, f"dim = {self.dim}; give at least 1.")

    @classmethod
    def of(cls, schedule: Schedule, score_L0: float | Tensor, score_L1: float | Tensor, reward: Reward, dim: int = 1) -> Chain:
        """The chain of a schedule, a score with known Lipschitz constants and a reward."""
        L0s, L1s = (per_step(values, schedule.steps, name) for values, name in ((score_L0, "score_L0"), (score_L1, "score_L1")))
        return cls(schedule.alpha, schedule.gain, schedule.sigma, L0s, L1s, reward.L0, reward.L1, dim)

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.alpha)


def shift_unit(chain: Chain) -> PerStep:
    """``sqrt(a_t) / g_t``: ``U = s + shift_unit delta`` with ``delta = sigma v`` the shift of the mean; equality, shape (T,)."""
    return chain.alpha.sqrt() / chain.gain


def score_unit(chain: Chain) -> PerStep:
    """``sqrt(a_t) sigma_t / g_t``: ``U = s + score_unit v`` with v whitened; equality, shape (T,)."""
    return shift_unit(chain) * chain.sigma


def kl_weight(chain: Chain) -> PerStep:
    """``g^2 / (2 a sigma^2)``: Lemma 2.5, (5)-(6), ``KL_t = kl_weight |U_t - s_t|^2 = |v_t|^2 / 2``; equality, (T,)."""
    return chain.gain.square() / (2 * chain.alpha * chain.sigma.square())


def proximal_step(chain: Chain, beta: float | Tensor) -> PerStep:
    """``rho_t = sigma_t^2 / beta_t``, the parameter of the Moreau envelope; equality, (T,)."""
    return chain.sigma.square() / _weights(beta, chain.steps)


def control_gain(chain: Chain, beta: float | Tensor) -> PerStep:
    """``kappa_t = sqrt(a_t) sigma_t^2 / (beta_t g_t)``, with which ``u* = s + kappa E grad V_{t+1}`` (18), (20); equality, (T,)."""
    return shift_unit(chain) * proximal_step(chain, beta)


def concavity_modulus(chain: Chain, beta: float | Tensor, curvature: Tensor) -> PerStep:
    """(19): Bellman's bracket is strongly concave in u with modulus ``(g^2 / a) (beta / sigma^2 - K)``; tight lower bound, (T,).

    Attained by a quadratic V with curvature +K.

    Args:
        curvature: a bound K on ``|Hess G V_{t+1}|``, shape (T,); the paper's is L1V_{t+1}.
    """
    beta, curvature = _weights(beta, chain.steps), per_step(curvature, chain.steps, "curvature")
    return chain.gain.square() / chain.alpha * (beta / chain.sigma.square() - curvature)


def control_size(chain: Chain, beta: float | Tensor, value_L0: PerState) -> PerStep:
    """``|u*_t - s_t| <= kappa_t L0V_{t+1}``, from (18); tight: attained by a linear reward with ``s(y) = +L0s y``, (T,).

    Args:
        value_L0: ``L0V``, shape (T + 1,).
    """
    return control_gain(chain, beta) * value_L0[1:]


def mean_lipschitz(chain: Chain) -> PerStep:
    """``M_t = (1 + g L0s) / sqrt(a)``, a Lipschitz constant of the mean map; tight: attained by ``s(y) = +L0s y``, (T,)."""
    return (1 + chain.gain * chain.score_L0) / chain.alpha.sqrt()


def mean_smoothness(chain: Chain) -> PerStep:
    """``N_t = g L1s / sqrt(a)``, the Lipschitz constant of the mean map's Jacobian; equality when L1s is exact, (T,)."""
    return chain.gain * chain.score_L1 / chain.alpha.sqrt()


def smoothed_curvature(L0: float, L1: float, sigma: float) -> float:
    """``|Hess G V| <= L1 erf( L0 / (sqrt(2) sigma L1) )`` for an L0-Lipschitz V with L1-Lipschitz gradient; tight (derived here).

    By parts (26), ``b.Hess(G V)b = E[f(w) w] / sigma`` where ``f(w)`` is the slope of V along b at distance ``sigma w``. Only its
    odd part counts, which is at most ``min(L0, sigma L1 |w|)``; for that function the expectation is
    ``sigma L1 P(|w| < L0 / (sigma L1))``. Attained in every dimension by the slope ``clip(L1 x, -L0, L0)`` along one axis. Never
    above ``min(L1, sqrt(2/pi) L0 / sigma)``, and equal to the second when L1 is infinite, so that a reward with kinks is admitted.
    """
    if L0 == 0 or L1 == 0:
        return 0.0
    if math.isinf(L0):
        return L1
    if math.isinf(L1):
        return SHARP * L0 / sigma
    reach = math.sqrt(2) * sigma * L1
    return L1 * math.erf(L0 / reach) if reach > 0 else L1


def smoothed_third(L0: float, L1: float, sigma: float) -> float:
    """``|D^3 G V| <= min( sqrt(2/pi) L1 / sigma, sqrt(8/(pi e)) L0 / sigma^2 )``; each entry tight (derived here).

    By parts, ``D^3(G V)[a, b, c] = E[Hess V[a, b] (c.W)] / sigma = E[(a.grad V) ((b.W)(c.W) - b.c)] / sigma^2``; bound the first
    factor and use `SHARP` and `SHARP_SECOND`. Attained in the limit, in d = 1, by ``V'' = L1 sign(x)`` and by
    ``V' = L0 sign(x^2 - sigma^2)``.
    """
    return min(SHARP * L1 / sigma, SHARP_SECOND * L0 / sigma**2)


def value_lipschitz(L0: float, mean_L0: float) -> float:
    """(14) ``L0V_t = M L0V_{t+1}``; tight: attained by a linear reward with ``s(y) = +L0s y``.

    The envelope's gradient is ``grad(G V)(x + delta*)`` and smoothing keeps the Lipschitz constant.
    """
    return _times(mean_L0, L0)


def value_smoothness(L0: float, curvature: float, mean_L0: float, mean_L1: float, lam: float) -> float:
    """(15) ``L1V_t = N L0V_{t+1} + M^2 K / lam``; tight: attained by a convex quadratic reward with an affine mean map.

    The envelope's Hessian is ``H (I - rho H)^-1`` with H = Hess(G V) at ``x + delta*``, at most ``K / (1 - rho K) <= K / lam``, and
    its gradient is at most L0V. Only the smoothed curvature H enters, so any bound on it may stand for L1V here and in the
    condition on beta.
    """
    return _times(mean_L1, L0) + _times(mean_L0, mean_L0, curvature) / lam


def shift_lipschitz(mean_L0: float, lam: float) -> float:
    """``q D = q M / lam``, Lipschitz constant of the optimal shift ``delta*_t(m_t(y))``, which gives (16); tight, attained as (15).

    ``Jac delta* = (I - rho H)^-1 rho H`` is at most ``q / lam``; H is again the smoothed curvature. (16) adds L0s to it, which is
    attained where the score is ``+L0s y``.
    """
    return (1 - lam) * mean_L0 / lam


def shift_smoothness(mean_L0: float, mean_L1: float, third: float, lam: float) -> float:
    """``Z = q (third D^2 + N) / lam``, Lipschitz constant of the optimal shift's Jacobian, with which (17) follows; upper bound.

    With ``P = (I - rho H)^-1`` the second derivative of delta* is ``P rho D^3(G V)[P, P]``, at most ``rho |D^3 G V| / lam^3``, and
    ``rho |D^3 G V| <= rho K third <= q third``; composing with m_t adds ``|Jac delta*| N``. Here H = Hess(G V), but D^3(G V) sees
    the unsmoothed Hess V: a smaller K needs a larger ``third``. Not attained, since H and D^3(G V) are largest at different points.
    """
    D = mean_L0 / lam
    return (1 - lam) * (_times(third, D, D) + mean_L1) / lam


def peak(lam: float, constant: float, slope: float) -> float:
    """``max_{m >= 1} q^m (constant + slope m)`` with ``q = 1 - lam``, 0 < lam <= 1, and non-negative coefficients; equality.

    The ratio of successive terms, ``q (1 + slope / (constant + slope m))``, decreases to ``q < 1``: the terms rise, then fall. So
    the maximum is attained, at the first m whose ratio is at most 1, that is ``m >= q / lam - constant / slope``.
    """
    if lam == 1 or (constant == 0 and slope == 0):
        return 0.0
    if math.isinf(constant) or math.isinf(slope):
        return math.inf
    turn = (1 - lam) / lam - constant / slope if slope > 0 else 1.0
    first = math.floor(max(1.0, turn))
    return max(math.exp(m * math.log1p(-lam)) * (constant + slope * m) for m in (first, first + 1))


def iterate_excess(L0: float, curvature: float, mean_L0: float, mean_L1: float, third: float, lam: float) -> float:
    """``max_{m >= 1} R(m)`` in (39), ``R(m) = q^m ( Z Lb0 + q D^2 (K + m third Lb0) )``; upper bound.

    It is what (55) adds to the envelope identity, ``grad V^(m) = Jac m^T G_m + Jac delta_m^T (G_m - G_{m-1})`` with ``G_m`` the
    gradient of G V at ``m_t + delta_m``: there ``|Jac delta_m| <= q D``, its Lipschitz constant is at most Z, ``|G_m - G_{m-1}|
    <= q^m Lb0`` and, by induction over m, ``|Jac(G_m - G_{m-1})| <= q^m D (K + m third Lb0)``.
    """
    q, D = 1 - lam, mean_L0 / lam
    Z = shift_smoothness(mean_L0, mean_L1, third, lam)
    return peak(lam, _times(Z, L0) + _times(q, D, D, curvature), _times(q, D, D, third, L0))


class Bounds(abc.ABC):
    """Which constants enter the recursions: of the mean map, of the smoothed value function, and of PI-FT's overshoot."""

    name: ClassVar[str]

    @abc.abstractmethod
    def mean_lipschitz(self, chain: Chain) -> PerStep:
        """``M``, shape (T,)."""

    @abc.abstractmethod
    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """``K >= |Hess G V|`` for an L0-Lipschitz V with L1-Lipschitz gradient."""

    @abc.abstractmethod
    def third(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """``third >= |D^3 G V| / K``."""

    @abc.abstractmethod
    def overshoot(self, lam: float) -> float:
        """``Lb0_t / (M Lb0_{t+1}) - 1``, by how much an unfinished iterate's value may be steeper than a finished one's."""


class Paper(Bounds):
    """The paper's constants."""

    name = "paper"

    def mean_lipschitz(self, chain: Chain) -> PerStep:
        """``(1 + g L0s) / sqrt(a)``."""
        return mean_lipschitz(chain)

    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """``L1V``: smoothing does not increase it."""
        return L1

    def third(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """``C_d / sigma``, from ``|E[Hess V W]| <= L1V E|W|``; it grows like ``sqrt(d)``."""
        return expected_norm(dim) / sigma

    def overshoot(self, lam: float) -> float:
        """``q^2 / lam``, from ``|Jac delta_m| <= q D`` and ``|G_m - G_{m-1}| <= q^m Lb0`` with m >= 1 (38)."""
        return (1 - lam) ** 2 / lam


class Sharp(Bounds):
    """The constants derived here; at the same beta none is above the paper's.

    At the same lam the required beta is smaller, which may make the control rougher: L1u may then exceed the paper's in dimension
    one.

    Args:
        mean_L0: exact Lipschitz constants of the mean maps where they are known, shape (T,); ``(1 + g L0s) / sqrt(a)`` by default.
            Replacing M is allowed everywhere, because the score enters only through the mean map.
    """

    name = "sharp"

    def __init__(self, mean_L0: Tensor | None = None):
        self.mean_L0 = mean_L0

    def mean_lipschitz(self, chain: Chain) -> PerStep:
        """``mean_L0`` where given.

        Raises:
            InvalidProblem: a given constant is negative or exceeds ``(1 + g L0s) / sqrt(a)``, and so is not the exact one.
        """
        largest = mean_lipschitz(chain)
        if self.mean_L0 is None:
            return largest
        exact = per_step(self.mean_L0, chain.steps, "mean_L0")
        outside = (~((exact >= 0) & (exact <= largest * (1 + _ROUNDING)))).nonzero().flatten().tolist()
        if outside:
            t = outside[0]
            require(False, f"mean_L0[{t}] = {exact[t]:g}; it must lie between 0 and (1 + g L0s) / sqrt(a) = {largest[t]:g}.")
        return exact

    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """`smoothed_curvature`."""
        return smoothed_curvature(L0, L1, sigma)

    def third(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """`smoothed_third` over `smoothed_curvature`, between ``sqrt(2/pi) / sigma`` (where K = L1V) and ``1.36 / sigma``.

        ``sqrt(2/pi) / sigma`` alone would be wrong beside the smoothed curvature: the slope ``V' = L0 sign(x^2 - sigma^2)`` has
        ``D^3 G V = 2 / (sqrt(e) sigma) = 1.21 / sigma`` times ``sqrt(2/pi) L0 / sigma`` at x = 0.
        """
        curvature = smoothed_curvature(L0, L1, sigma)
        if curvature == 0 or math.isinf(curvature):
            return SHARP / sigma
        return smoothed_third(L0, L1, sigma) / curvature

    def overshoot(self, lam: float) -> float:
        """``max_{m >= 1} q^{m+1} (1 - q^m) / lam <= q / (4 lam)``, because ``|Jac delta_m| <= (q + ... + q^m) M``.

        As a function of ``x = q^m`` it is ``q x (1 - x) / lam``: an integer next to ``x = 1/2`` attains the maximum.
        """
        if lam == 1:
            return 0.0
        log = math.log1p(-lam)
        middle = max(1, math.floor(math.log(0.5) / log))
        powers = (math.exp(m * log) for m in (middle, middle + 1))
        return max((1 - lam) * x * (1 - x) / lam for x in powers)


@dataclasses.dataclass(frozen=True)
class Regularity:
    """Lipschitz constants of value functions and controls along the chain.

    Attributes:
        L0V: of the value functions, shape (T + 1,).
        L1V: of their gradients, shape (T + 1,).
        L0u: of the controls U in the paper's score units, shape (T,).
        L1u: of the Jacobians of U, shape (T,).
        L0v: of the whitened controls, shape (T,).
        L1v: of their Jacobians, shape (T,).
        curvature: K, the bound on ``|Hess G V_{t+1}|``, shape (T,).
        third: the bound on ``|D^3 G V_{t+1}| / K``, shape (T,).
        mean_L0: M, of the mean maps, shape (T,).
        lam: design constants, shape (T,); every inner step contracts by ``1 - lam``.
        beta_required: ``sigma^2 K / (1 - lam)``, the smallest beta with these lam, shape (T,); zero where K = 0.
    """

    L0V: PerState
    L1V: PerState
    L0u: PerStep
    L1u: PerStep
    L0v: PerStep
    L1v: PerStep
    curvature: PerStep
    third: PerStep
    mean_L0: PerStep
    lam: PerStep
    beta_required: PerStep


@dataclasses.dataclass(frozen=True)
class Link:
    """The numbers of one step: Lipschitz constants of the mean map, bounds on the smoothed next value function, and lam."""

    mean_L0: float
    mean_L1: float
    curvature: float
    third: float
    lam: float


class Statement(abc.ABC):
    """A backward recursion of (L0V, L1V) under a set of `Bounds`."""

    source: ClassVar[str]

    def __init__(self, bounds: Bounds):
        self.bounds = bounds

    @property
    def name(self) -> str:
        """The statement's number and its constants."""
        return f"{self.source}, {self.bounds.name}"

    @abc.abstractmethod
    def step(self, link: Link, L0: float, L1: float) -> tuple[float, float]:
        """``(L0V_t, L1V_t)`` from ``(L0V_{t+1}, L1V_{t+1})``."""


class Optimum(Statement):
    """Theorem 2.8: regularity of the optimal value functions and controls, (14)-(17); upper bounds."""

    source = "Theorem 2.8"

    def step(self, link: Link, L0: float, L1: float) -> tuple[float, float]:
        """(14) and (15)."""
        smooth = value_smoothness(L0, link.curvature, link.mean_L0, link.mean_L1, link.lam)
        return value_lipschitz(L0, link.mean_L0), smooth


class Iterates(Statement):
    """Lemma 3.2: regularity of the value functions and controls of every iterate of PI-FT, (38)-(39); upper bounds.

    The controls obey (16)-(17) with the larger curvature. The constants are infinite for a reward with L0r = inf.
    """

    source = "Lemma 3.2"

    def step(self, link: Link, L0: float, L1: float) -> tuple[float, float]:
        """(38) and (39)."""
        smooth = value_smoothness(L0, link.curvature, link.mean_L0, link.mean_L1, link.lam)
        excess = iterate_excess(L0, link.curvature, link.mean_L0, link.mean_L1, link.third, link.lam)
        return _times(link.mean_L0, 1 + self.bounds.overshoot(link.lam), L0), smooth + excess


def paper_constants(chain: Chain, lam: float | Tensor) -> Regularity:
    """Theorem 2.8 with the paper's constants, (14)-(17), for ``beta_t >= sigma_t^2 L1V_{t+1} / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
    """
    return constants(chain, lam, Optimum(Paper()))


def sharp_constants(chain: Chain, lam: float | Tensor, mean_L0: Tensor | None = None) -> Regularity:
    """Theorem 2.8 with the constants derived here (see `Sharp`), valid for ``beta_t >= sigma_t^2 K_t / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
        mean_L0: exact Lipschitz constants of the mean maps where known, shape (T,).
    """
    return constants(chain, lam, Optimum(Sharp(mean_L0)))


def iterate_constants(chain: Chain, lam: float | Tensor, bounds: Bounds) -> Regularity:
    """Lemma 3.2, (38)-(39), for every iterate of PI-FT with ``beta_t >= sigma_t^2 K_t / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
        bounds: `Paper` (then K = Lb1_{t+1}, the condition of Lemmas 3.3 and 3.4) or `Sharp`.
    """
    return constants(chain, lam, Iterates(bounds))


def constants(chain: Chain, lam: float | Tensor, statement: Statement) -> Regularity:
    """The constants of a statement for chosen design constants ``lam`` in (0, 1), one number or shape (T,)."""
    rates = per_step(lam, chain.steps, "lam")
    _require_each(rates, lambda x: (x > 0) & (x < 1), "lam", "every design constant must lie in (0, 1).")
    values = rates.tolist()
    return _backward(chain, statement, lambda t, _: values[t])


def constants_at(chain: Chain, beta: float | Tensor, statement: Statement) -> Regularity:
    """The constants of a statement for a given beta, with the largest design constants ``lam_t = 1 - sigma_t^2 K_t / beta_t``.

    Args:
        beta: KL weights, one positive number or shape (T,).

    Raises:
        InvalidProblem: some beta is too small for the statement; the message names the step and the beta that would do.
    """
    weights, variance = _weights(beta, chain.steps).tolist(), chain.sigma.square().tolist()

    def rate(t: int, curvature: float) -> float:
        enough = variance[t] * curvature
        ratio = enough / weights[t]
        if not ratio < 1:
            remedy = f"raise beta[{t}] above {enough:g}" if math.isfinite(enough) else "give a reward with finite constants"
            raise InvalidProblem(
                f"beta[{t}] = {weights[t]:g} gives sigma^2 L1 / beta = {ratio:g}, not below 1 ({statement.name}); {remedy}."
            )
        return 1 - ratio

    found = _backward(chain, statement, rate)
    return dataclasses.replace(found, beta_required=torch.where(found.curvature > 0, _weights(beta, chain.steps), 0.0))


def _backward(chain: Chain, statement: Statement, rate: Callable[[int, float], float]) -> Regularity:
    """Run a statement from t = T - 1 down to 0, asking ``rate(t, K)`` for the design constant of each step."""
    stretch = statement.bounds.mean_lipschitz(chain)
    M, N, sigma = stretch.tolist(), mean_smoothness(chain).tolist(), chain.sigma.tolist()
    L0, L1, links, values = chain.reward_L0, chain.reward_L1, [], [(chain.reward_L0, chain.reward_L1)]
    for t in reversed(range(chain.steps)):
        curvature = statement.bounds.curvature(L0, L1, sigma[t])
        third = statement.bounds.third(L0, L1, sigma[t], chain.dim)
        link = Link(M[t], N[t], curvature, third, rate(t, curvature))
        L0, L1 = statement.step(link, L0, L1)
        links.append(link)
        values.append((L0, L1))
    return _collect(chain, stretch, links[::-1], values[::-1])


def _collect(chain: Chain, stretch: Tensor, links: list[Link], values: list[tuple[float, float]]) -> Regularity:
    lam, curvature = _vector(x.lam for x in links), _vector(x.curvature for x in links)
    shift_L0 = _vector(shift_lipschitz(x.mean_L0, x.lam) for x in links)
    shift_L1 = _vector(shift_smoothness(x.mean_L0, x.mean_L1, x.third, x.lam) for x in links)
    required = torch.where(curvature > 0, chain.sigma.square() * curvature / (1 - lam), 0.0)
    return Regularity(
        L0V=_vector(x for x, _ in values),
        L1V=_vector(x for _, x in values),
        L0u=chain.score_L0 + shift_unit(chain) * shift_L0,
        L1u=chain.score_L1 + shift_unit(chain) * shift_L1,
        L0v=shift_L0 / chain.sigma,
        L1v=shift_L1 / chain.sigma,
        curvature=curvature,
        third=_vector(x.third for x in links),
        mean_L0=stretch,
        lam=lam,
        beta_required=required,
    )


def control_error_bound(size: float, eps: float, gain: float, lam: float, rounds: int) -> float:
    """Lemma 3.3: ``|U_t^(m) - u*_t| <= q^m kappa L0V*_{t+1} + kappa eps_{t+1} / lam``; upper bound.

    The update map contracts by q (67) and moves u* by at most ``kappa eps``, so that m updates from ``|s - u*| <= kappa L0V*``
    leave ``q^m |s - u*| + (1 + q + q^2 + ...) kappa eps``.

    Args:
        size: ``L0V*_{t+1}``, Lipschitz constant of the optimal value function.
        eps: ``sup |grad V_{t+1}^(m) - grad V*_{t+1}|``.
        gain: ``kappa_t`` for score units, ``rho_t`` for shifts, ``rho_t / sigma_t`` for whitened controls.
        rounds: m, the number of updates at this step.
    """
    return _times((1 - lam) ** rounds, gain, size) + _times(gain, eps) / lam


def value_gradient_error_bound(size: float, steepest: float, eps: float, mean_L0: float, lam: float, rounds: int) -> float:
    """Lemma 3.4: ``eps_t <= M ( eps_{t+1} / lam + q^{m+1} (L0V*_{t+1} + Lb0_{t+1} / lam) )``; upper bound.

    By (55) the error is ``Jac m^T (G_m - grad G V*) + Jac delta_m^T (G_m - G_{m-1})``. The first bracket is at most K times the
    error of Lemma 3.3 (in shifts) plus eps, the second term at most ``q D q^m Lb0``.

    Args:
        size: ``L0V*_{t+1}``.
        steepest: ``Lb0_{t+1}``, Lipschitz constant of every iterate's value function.
    """
    unfinished = _times((1 - lam) ** (rounds + 1), size + steepest / lam)
    return _times(mean_L0, eps / lam + unfinished)


def envelope_error_bound(steepest: float, eps: float, mean_L0: float, lam: float, rho: float, third: float, rounds: int) -> float:
    """``eps_t <= M ( eps_{t+1} + q^{2m} Lb0 ((1 + q)(q + m c) + q c / 2) ) / lam`` with ``c = third rho Lb0``; upper bound.

    Derived here: Lemma 3.4 with the square of its rate, because the two terms of (55) cancel to first order, as an envelope's must.
    With e the distance of delta_m from the fixed point delta of the update map, H the Hessian of G V there and H' its mean over the
    segment between, the envelope's gradient is off by ``((Jac delta - Jac delta_m)(I - rho H) + (I + Jac delta_m) rho (H - H')) e``
    over rho, up to transposition, where ``|e| <= q^m rho Lb0``, ``rho |H - H'| <= q third |e| / 2`` and, by induction over m,
    ``|Jac delta - Jac delta_m| <= q^m (q + m c) / lam``. And changing V_{t+1} by eps changes the finished envelope's gradient,
    delta / rho, by at most ``eps / lam``.

    Args:
        steepest: ``Lb0_{t+1}``.
        rho: ``sigma_t^2 / beta_t``.
        third: bound on ``|D^3 G V_{t+1}| / K``, of every iterate.
    """
    q, c = 1 - lam, _times(third, rho, steepest)
    unfinished = _times(q ** (2 * rounds), steepest, (1 + q) * (q + _times(rounds, c)) + _times(q, c) / 2)
    return _times(mean_L0, eps + unfinished) / lam


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Theorem 3.1 unrolled: how far PI-FT is from the optimum after m_t updates at every step.

    Attributes:
        score: bound on ``sup |U_t^(m_t) - u*_t|`` in score units, shape (T,).
        shift: the same for shifts of the mean, ``g (U - s) / sqrt(a)``, shape (T,).
        whitened: the same for whitened controls, shape (T,).
        value_gradient: bound on ``sup |grad V_t^(m_t) - grad V*_t|``, shape (T + 1,), zero at T.
        rates: factor by which the bound on step t shrinks per additional update of all steps as m grows, shape (T,).
    """

    score: PerStep
    shift: PerStep
    whitened: PerStep
    value_gradient: PerState
    rates: PerStep


def convergence(chain: Chain, iterates: Regularity, beta: float | Tensor, rounds: int | Tensor) -> Convergence:
    """Theorem 3.1 with its constants, by Lemmas 3.3 and 3.4 from t = T - 1 down to 0; upper bounds.

    Args:
        iterates: constants of Lemma 3.2, from `iterate_constants` or `constants_at` with `Iterates`.
        beta: KL weights, one number or shape (T,), at least ``iterates.beta_required``.
        rounds: updates m_t, one number or shape (T,).

    Raises:
        InvalidProblem: beta is below the required one, or a number of updates is negative.
    """
    return _unroll(chain, iterates, beta, rounds, (_first_order,), guaranteed_rates(iterates.lam))


def sharp_convergence(chain: Chain, iterates: Regularity, beta: float | Tensor, rounds: int | Tensor) -> Convergence:
    """Theorem 3.1 with the smaller of Lemma 3.4 and `envelope_error_bound` at every step; upper bounds (derived here).

    Later steps then count with the squares of their rates: with m updates at every step and one lam, the control error is
    ``q^m kappa L0V*`` plus a term of order ``m q^{2m}``. Arguments and errors as in `convergence`.
    """
    return _unroll(chain, iterates, beta, rounds, (_first_order, _second_order), sharp_rates(iterates.lam))


@dataclasses.dataclass(frozen=True)
class _Round:
    """The numbers of one step of Theorem 3.1."""

    size: float
    steepest: float
    eps: float
    mean_L0: float
    lam: float
    rho: float
    third: float
    rounds: int


def _first_order(x: _Round) -> float:
    return value_gradient_error_bound(x.size, x.steepest, x.eps, x.mean_L0, x.lam, x.rounds)


def _second_order(x: _Round) -> float:
    return envelope_error_bound(x.steepest, x.eps, x.mean_L0, x.lam, x.rho, x.third, x.rounds)


def _unroll(
    chain: Chain,
    iterates: Regularity,
    beta: float | Tensor,
    rounds: int | Tensor,
    lemmas: tuple[Callable[[_Round], float], ...],
    rates: PerStep,
) -> Convergence:
    rho, m = proximal_step(chain, _admitted(beta, iterates)).tolist(), _whole(rounds, chain.steps)
    M, lam = iterates.mean_L0.tolist(), iterates.lam.tolist()
    steepest, third = iterates.L0V.tolist(), iterates.third.tolist()
    size, errors, shifts = chain.reward_L0, [0.0], []
    for t in reversed(range(chain.steps)):
        shifts.append(control_error_bound(size, errors[-1], rho[t], lam[t], m[t]))
        step = _Round(size, steepest[t + 1], errors[-1], M[t], lam[t], rho[t], third[t], m[t])
        errors.append(min(lemma(step) for lemma in lemmas))
        size = value_lipschitz(size, M[t])
    shift = _vector(shifts[::-1])
    return Convergence(shift_unit(chain) * shift, shift, shift / chain.sigma, _vector(errors[::-1]), rates)


def _admitted(beta: float | Tensor, iterates: Regularity) -> PerStep:
    """The weights, refused where they are below what the constants require."""
    weights, required = _weights(beta, len(iterates.lam)), iterates.beta_required
    low = (weights < required * (1 - _ROUNDING)).nonzero().flatten().tolist()
    if low:
        t = low[0]
        require(False, f"beta[{t}] = {weights[t]:g}; these constants need beta[{t}] >= {required[t]:g}, so raise it.")
    return weights


def _whole(rounds: int | Tensor, steps: int) -> list[int]:
    counts = per_step(rounds, steps, "rounds")
    _require_each(counts, lambda x: (x >= 0) & (x == x.round()), "rounds", "give a whole number of updates >= 0.")
    return [int(x) for x in counts.tolist()]


def guaranteed_rates(lam: PerStep) -> PerStep:
    """``max_{s >= t} (1 - lam_s)``, the factor per update of all steps in Theorem 3.1 as m grows; equality for the bound, (T,)."""
    return _largest_later(1 - lam)


def sharp_rates(lam: PerStep) -> PerStep:
    """``max(q_t, max_{s > t} q_s^2)``, ``q = 1 - lam``: the factor in `sharp_convergence` as m grows; tight, (T,).

    Attained by a linear-quadratic problem whose rates are ``sigma^2 |P_{t+1}| / beta = q_t``.
    """
    q = 1 - lam
    later = torch.cat([_largest_later(q.square())[1:], q.new_zeros(1)])
    return torch.maximum(q, later)


def _largest_later(values: PerStep) -> PerStep:
    return values.flip(0).cummax(0).values.flip(0)


def quadratic_rate(sigma: PerStep, beta: float | Tensor, curvature: PerStep) -> float:
    """``max_t sigma_t^2 |P_{t+1}| / beta_t``: rate of PI-FT's largest error on a linear-quadratic problem; equality (derived here).

    The update of a shift is the affine map ``delta <- rho (P (x + delta) + q)``, whose slowest error mode shrinks by ``rho |P|``.
    The error of one step's control has the rates of `sharp_rates`, whose largest is this one.

    Args:
        curvature: ``|P_{t+1}|``, spectral norms of the optimal value's Hessians, shape (T,).
    """
    weights = _weights(beta, len(sigma))
    return float((sigma.square() * per_step(curvature, len(sigma), "curvature") / weights).max())


@dataclasses.dataclass(frozen=True)
class BetaChoice:
    """KL weights and what they guarantee.

    Attributes:
        beta: shape (T,).
        rule: the rule that chose it.
        margin: beta over the smallest the rule admits at that step, shape (T,); inf where every beta > 0 is admitted.
        lam: guaranteed design constants, shape (T,); each inner update contracts by ``1 - lam``.
    """

    beta: PerStep
    rule: str
    margin: PerStep
    lam: PerStep


def scheduled_beta(chain: Chain, lam: float | Tensor, statement: Statement) -> BetaChoice:
    """``beta_t = sigma_t^2 K_t / (1 - lam_t)``, the smallest weights with exactly the design constants ``lam``.

    Raises:
        InvalidProblem: a step needs no KL weight at all (zero curvature) or an infinite one.
    """
    found = constants(chain, lam, statement)
    return _equality(found.beta_required, found.lam, f"schedule for lam ({statement.name})")


def beta_from_curvature(sigma: PerStep, curvature: PerStep, lam: float | Tensor) -> BetaChoice:
    """``beta_t = sigma_t^2 sup|Hess G V_{t+1}| / (1 - lam_t)`` from a curvature measured on the instance (derived here).

    Necessary as well as sufficient for a contraction by ``1 - lam_t``: the update map has the Jacobian ``rho Hess(G V_{t+1})``. As
    V_{t+1} depends on the later weights, measure and choose backwards from t = T - 1.

    Args:
        sigma: noise scales, shape (T,).
        curvature: ``sup |Hess G V_{t+1}|``, shape (T,).
        lam: design constants in (0, 1), one number or shape (T,).
    """
    rates, measured = per_step(lam, len(sigma), "lam"), per_step(curvature, len(sigma), "curvature")
    _require_each(rates, lambda x: (x > 0) & (x < 1), "lam", "every design constant must lie in (0, 1).")
    return _equality(sigma.square() * measured / (1 - rates), rates, "measured curvature")


def constant_beta(chain: Chain, lam: float, statement: Statement) -> BetaChoice:
    """The smallest constant beta under which a statement guarantees ``lam_t >= lam`` at every step, by bisection.

    A larger beta has larger design constants, which give smaller Lipschitz constants, so the admissible weights form a half-line.

    Args:
        lam: the least design constant wanted, in [0, 1); 0 gives the infimum of the admissible weights.

    Raises:
        InvalidProblem: no finite beta is admissible, or every positive one is.
    """
    require(0 <= lam < 1, f"lam = {lam}; the least design constant must lie in [0, 1).")

    def admissible(beta: float) -> bool:
        try:
            return bool((constants_at(chain, beta, statement).lam >= lam).all())
        except InvalidProblem:
            return False

    beta = _least(admissible, statement.name)
    found = constants_at(chain, beta, statement)
    margin = beta * (1 - lam) / (chain.sigma.square() * found.curvature)
    return BetaChoice(torch.full_like(chain.sigma, beta), f"constant ({statement.name})", margin, found.lam)


def _least(admissible: Callable[[float], bool], name: str) -> float:
    """The least admissible number, from above, to relative width `_BISECTION`."""
    high = 1.0
    while not admissible(high):
        high *= 16
        require(high < _LARGEST, f"no beta below {_LARGEST:g} satisfies {name}; give finite Lipschitz constants or sharper bounds.")
    low = high
    while admissible(low):
        low /= 16
        require(low > 1 / _LARGEST, f"every beta > 0 satisfies {name}, whose value functions are affine; choose it by the reward.")
    while high - low > _BISECTION * high:
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (low, middle) if admissible(middle) else (middle, high)
    return high


def _equality(beta: Tensor, lam: Tensor, rule: str) -> BetaChoice:
    _require_each(beta, lambda x: (x > 0) & x.isfinite(), "required beta", "use a constant beta or finite Lipschitz constants.")
    return BetaChoice(beta, rule, torch.ones_like(beta), lam)


def _times(*factors: float) -> float:
    """The product in which zero times infinity is zero."""
    return 0.0 if 0 in factors else math.prod(factors)


def _vector(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _weights(beta: float | Tensor, steps: int) -> PerStep:
    weights = per_step(beta, steps, "beta")
    _require_each(weights, lambda x: x > 0, "beta", "every KL weight must be positive.")
    return weights


def _require_each(values: Tensor, holds: Callable[[Tensor], Tensor], what: str, remedy: str) -> None:
    """Raise `InvalidProblem` naming the first entry for which ``holds`` is false."""
    bad = (~holds(values)).nonzero().flatten().tolist()
    if bad:
        require(False, f"{what}[{bad[0]}] = {values[bad[0]]:g}; {remedy}")
