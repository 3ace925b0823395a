r"""The von Mises-Fisher law on a sphere, uniform included, noised exactly.

The law of :math:`R\,u + \sqrt\tau\,\epsilon` with u on the unit sphere of :math:`\mathbb R^D`, of
density proportional to :math:`\exp(\eta\cdot u)`. Given x, u is von Mises-Fisher again with the
natural parameter :math:`\eta + R x/\tau`, so that with

.. math:: C(\kappa) = E_{\text{uniform}}\, e^{\kappa u_1} = {}_0F_1\big(;\tfrac
   D2;\tfrac{\kappa^2}4\big), \qquad A(\kappa) = (\log C)' =
   \frac{I_{D/2}(\kappa)}{I_{D/2-1}(\kappa)}, \qquad \zeta = \eta + R x/\tau,

.. math:: \log p(x) = -\frac{|x|^2 + R^2}{2\tau} - \frac D2 \log(2\pi\tau) + \log C(|\zeta|) - \log
   C(|\eta|), \qquad \nabla \log p(x) = \frac{R\,A(|\zeta|)\,\zeta/|\zeta| - x}{\tau} .

Noising to a level :math:`\bar a` maps :math:`(R, \tau)` to
:math:`(\sqrt{\bar a} R, \bar a \tau + 1 - \bar a)`, and tilting by a linear reward moves
:math:`\eta`: the family is closed under both. Ratios come from Gauss's continued fraction, and from
scaled Bessel functions where it converges slowly. With :math:`B_D = A/\kappa` and
:math:`q = \kappa^2`, :math:`dB_D/dq = B_D (B_{D+2} - B_D)/2`, so scores can be differentiated any
number of times. Formulas derived here; the law is von Mises and Fisher's (Mardia and Jupp 2000,
section 9.3).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import gammaln, ive
from scipy.stats import vonmises_fisher
from torch import Tensor
from torch.autograd.function import FunctionCtx

from socft.checks import (
    InvalidProblem,
    at_least_zero,
    positive,
    require,
    whole,
    zeros_or,
)
from socft.density import Density, ScoreConstants, Tilt
from socft.density.base import broadcast_level
from socft.density.constants import THIRD_MOMENT
from socft.guidance.denoiser import Denoiser, Prediction
from socft.reference import States, Step, level_at
from socft.reward import Linear, PerSample, Reward

TERMS = 64
"""Terms of the continued fraction; for arguments up to the dimension, or 128, the remainder is
below eps.
"""
FRACTION_UP_TO = 128.0
LARGEST_DIMENSION = 2000
"""Scaled Bessel functions of half this order underflow where the continued fraction has not
converged.
"""


class Sphere(Density):
    """``R u + sqrt(spread) eps`` with u von Mises-Fisher on the unit sphere of D dimensions.

    Args:
        dim: D, at least 2.
        natural: direction times concentration, shape (D,); zero, the uniform law, by default.
        radius: R, positive.
        spread: variance of the noise, 0 for the law on the sphere itself, which has no density.

    Raises:
        InvalidProblem: a parameter is out of range or of the wrong shape.
    """

    def __init__(
        self,
        dim: int,
        natural: Float[Tensor, " D"] | None = None,
        radius: float = 1.0,
        spread: float = 0.0,
    ):
        self.dims = (whole(dim, "dim", 2, LARGEST_DIMENSION),)
        self.natural = zeros_or(natural, "natural", self.dims)
        self.radius = positive(radius, "radius")
        self.spread = at_least_zero(spread, "spread")

    @property
    def regular(self) -> bool:
        return self.spread > 0

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """Mean of the law."""
        return self.radius * mean_direction(self.natural.unsqueeze(0))[0]

    def sample(self, batch: int, generator: torch.Generator) -> States:
        require(batch >= 1, f"batch = {batch}; give at least one sample.")
        u = self._directions(batch, generator)
        if not self.regular:
            return self.radius * u
        noise = torch.randn(
            batch, *self.dims, generator=generator, dtype=torch.float64, device=generator.device
        )
        return self.radius * u + self.spread**0.5 * noise

    def _directions(self, batch: int, generator: torch.Generator) -> States:
        """Unit vectors, seeded by ``generator``."""
        device = generator.device
        concentration = float(self.natural.norm())
        if concentration == 0:
            z = torch.randn(
                batch, *self.dims, generator=generator, dtype=torch.float64, device=device
            )
            return z / z.norm(dim=1, keepdim=True)
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        mean = (self.natural / concentration).numpy()
        law = vonmises_fisher(mean, concentration)  # type: ignore[arg-type]
        u = law.rvs(batch, random_state=np.random.default_rng(seed))
        return torch.from_numpy(u).to(device)

    def noised(self, abar: float) -> Sphere:
        require(
            0 < abar <= 1,
            f"abar = {abar}; the noised law is a sphere for a signal level in (0, 1].",
        )
        return Sphere(
            self.dims[0], self.natural, abar**0.5 * self.radius, abar * self.spread + (1 - abar)
        )

    def noised_log_prob(self, abar: float | Tensor, x: States) -> PerSample:
        scale, spread = self._level(abar, x)
        natural = self.natural.to(x)
        squares = (x.square().sum(1, keepdim=True) + scale.square()) / spread
        size = torch.log(2 * math.pi * spread) * self.dims[0]
        peak = log_moment((natural + scale / spread * x).square().sum(1), self.dims[0])
        return (
            -(squares + size).squeeze(1) / 2
            + peak
            - log_moment(natural.square().sum().reshape(1), self.dims[0])
        )

    def noised_score(self, abar: float | Tensor, x: States) -> States:
        scale, spread = self._level(abar, x)
        return (scale * mean_direction(self.natural.to(x) + scale / spread * x) - x) / spread

    def posterior_means(
        self, signal: float | Tensor, noise: float | Tensor, x: States
    ) -> tuple[States, States]:
        a, s = (broadcast_level(value, x, 1) for value in (signal, noise))
        total = a.square() * self.spread + s.square()
        own, spread, scale = (v.to(x) for v in (a * self.spread / total, total, a * self.radius))
        direction = mean_direction(self.natural.to(x) + scale / spread * x)
        rest = x - scale * direction
        return self.radius * direction + own.to(x) * rest, s.to(x) / spread * rest

    def score_jacobian(self, x: States) -> Float[Tensor, "batch n n"]:
        self._require_regular()
        pullback = torch.func.vjp(self.score, x)[1]
        rows = [pullback(e.expand_as(x).contiguous())[0] for e in torch.eye(*self.dims).to(x)]
        return torch.stack(rows, 1)

    def noised_constants(self, abar: Float[Tensor, " levels"]) -> ScoreConstants:
        """``up`` and ``down`` exactly, from ``0 <= Cov[u | x] <= I / D`` with both ends attained or
        approached; L1 an upper bound.

        A third central moment of a coordinate, whose range is 2, is at most ``8 / (6 sqrt 3)``.
        """
        scale, spread = abar.sqrt() * self.radius, abar * self.spread + (1 - abar)
        up = (scale.square() / (spread * self.dims[0]) - 1) / spread
        yes = torch.ones_like(up, dtype=torch.bool)
        L1 = (2 * scale / spread) ** 3 * THIRD_MOMENT
        return ScoreConstants(up, 1 / spread, L1, yes, yes, ~yes)

    def tilted(self, reward: Reward, beta: float) -> Tilt[Sphere]:
        """The law times ``exp(w . x / beta)``; only linear rewards have one in the family, and only
        on the sphere itself.
        """
        require(
            math.isfinite(beta) and beta > 0, f"beta = {beta}; it must be a positive finite number."
        )
        require(
            self.spread == 0,
            f"spread = {self.spread:g}; tilt the law on the sphere and noise it afterwards.",
        )
        if not isinstance(reward, Linear) or reward.w.shape != self.dims:
            name = type(reward).__name__
            raise InvalidProblem(
                f"{name} has no closed-form tilt of a sphere; use Linear with {self.dims[0]}"
                " weights.",
            )
        natural = self.natural + self.radius * reward.w / beta
        before, after = (
            log_moment(n.square().sum().reshape(1), self.dims[0]) for n in (self.natural, natural)
        )
        return Tilt(
            Sphere(self.dims[0], natural, self.radius), float(after - before) + reward.c / beta
        )

    def _level(self, abar: float | Tensor, x: States) -> tuple[Tensor, Tensor]:
        """Radius and spread at a level, to broadcast against (batch, D)."""
        require(
            x.ndim == 2 and x.shape[1:] == self.dims,
            f"x has shape {tuple(x.shape)}; give (batch, {self.dims[0]}).",
        )
        level = broadcast_level(abar, x, 1)
        scale, spread = level.sqrt() * self.radius, level * self.spread + (1 - level)
        return scale.to(x).expand(len(x), 1), spread.to(x).expand(len(x), 1)


class SphereDenoiser(Denoiser):
    """The exact score of data on a sphere, with ``J = (alpha R^2 / h) (B I + 2 B' zeta zeta')`` in
    closed form.

    Args:
        law: the data law, without noise.
        abar: levels, shape (T,).
        natural: the law's natural parameter in the m orthonormal directions whose coordinates
            states are given in; by default in all. The denoiser commutes with rotations that keep
            the law, so it maps vectors in the span of directions among which the natural parameter
            is to themselves.
    """

    def __init__(
        self,
        law: Sphere,
        abar: Float[Tensor, " steps"],
        natural: Float[Tensor, " m"] | None = None,
    ):
        super().__init__(abar)
        require(
            law.spread == 0,
            f"spread = {law.spread:g}; give the law on the sphere itself, the levels add the"
            " noise.",
        )
        self.law, self._natural = law, law.natural if natural is None else natural

    def at(self, k: Step, x: States) -> Prediction:
        (level, noise), R, D = level_at(self.abar, k, x), self.law.radius, self.law.dims[0]
        slope = level.sqrt() * R / noise
        zeta = self._natural.to(x) + slope * x
        q = zeta.square().sum(1)
        after = bessel_slope(q, D + 2).unsqueeze(1)
        B = 1 / (D + q.unsqueeze(1) * after)
        curvature = B * (after - B)

        def pullback(g: Float[Tensor, "*#batch n"]) -> Float[Tensor, "batch n"]:
            return R * slope * (B * g + curvature * (zeta * g).sum(1, keepdim=True) * zeta)

        return Prediction(x, R * B * zeta, level, noise, pullback)


def mean_direction(zeta: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
    """``E u`` under the von Mises-Fisher law of natural parameter ``zeta``,
    ``A(|zeta|) zeta / |zeta|``; differentiable.
    """
    return bessel_slope(zeta.square().sum(1), zeta.shape[1]).unsqueeze(1) * zeta


def bessel_slope(q: PerSample, D: int) -> PerSample:
    """``B_D(q) = I_{D/2}(k) / (k I_{D/2-1}(k))`` with ``k = sqrt(q)``, q >= 0; ``1 / D`` at zero;
    differentiable.
    """
    return _Slope.apply(q, D)  # type: ignore[return-value]


def log_moment(q: PerSample, D: int) -> PerSample:
    """``log C(sqrt(q))``, the log of ``E exp(k u_1)`` on the unit sphere; differentiable."""
    return _LogMoment.apply(q, D)  # type: ignore[return-value]


class _OfSquare(torch.autograd.Function):
    """A function of q in D dimensions; keeps both."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.D = inputs[1]  # type: ignore[attr-defined]


class _Slope(_OfSquare):
    """``B_D`` and ``dB_D/dq = B_D (B_{D+2} - B_D) / 2``."""

    @staticmethod
    def forward(q: Tensor, D: int) -> Tensor:
        return torch.from_numpy(_slope(q.detach().double().cpu().numpy(), D)).to(q)

    @staticmethod
    def _rate(ctx: FunctionCtx) -> Tensor:
        (q,) = ctx.saved_tensors  # type: ignore[attr-defined]
        D = ctx.D  # type: ignore[attr-defined]
        here = bessel_slope(q, D)
        return here * (bessel_slope(q, D + 2) - here) / 2

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * _Slope._rate(ctx), None


class _LogMoment(_OfSquare):
    """``log C`` as a function of q, with the derivative ``B_D / 2``."""

    @staticmethod
    def forward(q: Tensor, D: int) -> Tensor:
        return torch.from_numpy(_log_moment(q.detach().double().cpu().numpy(), D)).to(q)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (q,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * bessel_slope(q, ctx.D) / 2, None  # type: ignore[attr-defined]


def _slope(q: np.ndarray, D: int) -> np.ndarray:
    """``B_D = 1 / (D + q B_{D+2})``, started where ``B`` is
    ``1 / (m - 1/2 + sqrt((m + 1/2)^2 + q))`` to leading order, m = D/2.
    """
    b, slow = np.empty_like(q), q > max(FRACTION_UP_TO, D) ** 2
    b[~slow] = _fraction(q[~slow], D)
    k = np.sqrt(q[slow])
    b[slow] = ive(D / 2, k) / (k * ive(D / 2 - 1, k))
    return b


def _fraction(q: np.ndarray, D: int) -> np.ndarray:
    """The continued fraction from its last term to its first, in place."""
    terms = _terms(float(q.max(initial=0.0)) ** 0.5, D)
    last = D + 2 * terms
    b = 1 / ((last - 1) / 2 + np.sqrt(((last + 1) / 2) ** 2 + q))
    for order in range(last - 2, D - 2, -2):
        b *= q
        b += order
        np.reciprocal(b, out=b)
    return b


def _terms(largest: float, D: int) -> int:
    """Terms after which the remainder is below eps for arguments up to ``largest``; fewer do for
    small ones.
    """
    return 16 if largest <= 5 + D / 4 else 32 if largest <= 20 + D / 2 else TERMS


def _log_moment(q: np.ndarray, D: int) -> np.ndarray:
    """Series of positive terms for small arguments, ``log(Gamma(D/2) (2/k)^nu I_nu(k))`` for large
    ones, nu = D/2 - 1.
    """
    slow, out = q > max(FRACTION_UP_TO, D) ** 2, np.empty_like(q)
    j = np.arange(2 * int(max(FRACTION_UP_TO, D)) + 16)[:, None]
    small = q[~slow]
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = np.where(j == 0, 0.0, j * np.log(small / 4))
    terms = powers - gammaln(j + 1) - gammaln(D / 2 + j) + gammaln(D / 2)
    out[~slow] = np.logaddexp.reduce(terms, 0)
    k, nu = np.sqrt(q[slow]), D / 2 - 1
    out[slow] = gammaln(D / 2) + nu * np.log(2 / k) + np.log(ive(nu, k)) + k
    return out
