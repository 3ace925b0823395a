r"""Guidance: a term added to the pre-trained score while sampling, as a control.

At signal level :math:`\alpha^2 = \bar a`, :math:`h = 1 - \bar a`, the posterior mean of the sample,
its Jacobian, and the posterior covariance belong together (Tweedie's formulas; J is symmetric where
the score is exact):

.. math:: \hat x_0 = E[x_0 | x] = \frac{x + h\, s(x)}{\alpha}, \qquad J = \mathrm{Jac}\,\hat x_0,
   \qquad \mathrm{Cov}[x_0 | x] = \frac h\alpha J .

Guo, Yuan, Yang, Chen and Wang (arXiv 2404.14743v2) model the objective by a linear response
:math:`y = g^\top x_0 + N(0, s^2)` and add to the score

.. math:: G = b'\,(y - g^\top \hat x_0)\, g \quad\text{(naive)}, \qquad G_{loss} = -b\,\nabla_x (y -
   g^\top \hat x_0)^2 = 2 b\,(y - g^\top \hat x_0)\, J^\top g \quad\text{(look-ahead, Definition
   1)}.

Where the data are Gaussian, :math:`\nabla_x \log p(y | x)` is the look-ahead term of strength
:math:`b = 1 / (2 (s^2 + g^\top \mathrm{Cov}[x_0|x]\, g))`, `PosteriorStrength` (derived here). The
strength of the published simulations, `PublishedStrength`, has :math:`h |J^\top g|^2 / \alpha^2` in
place of :math:`g^\top \mathrm{Cov}\, g = h\, g^\top J g / \alpha`: the same where the covariance of
the data has eigenvalues 0 and 1 only.

A change G of the score is the whitened control :math:`v = g_k\,G / (\sqrt{a_k}\,\sigma_k)`, so that
a guidance is a policy and :math:`|v|^2/2` its divergence from the pre-trained kernel. The paper's
:math:`\alpha(t), h(t), \beta(t), \sigma` are :math:`\alpha, h, b, s` here.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    keep,
    number,
    numbers,
    positive,
    probe,
    require,
    require_callable,
    require_finite,
    require_kind,
    require_kinds,
    require_positive,
    tensor,
)
from socft.density import Density, Gaussian
from socft.density.constants import noised_variance
from socft.policy import AffinePolicy, Policy
from socft.reference import (
    DenseMaps,
    LinearMaps,
    Noises,
    SpectralMaps,
    States,
    Step,
    affine_coefficients,
    at_step,
    level_at,
)
from socft.reward import Reward
from socft.schedule import Schedule

AFFINE = 1e-9
"""Largest relative distance of a policy from its affine interpolation at a further point: both are
sums of n products.
"""
TABULATED = 2**21
"""Matrix entries, 17 MB, up to which Jacobians are written down: one product in place of two."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The posterior mean of the sample at some noisy states.

    Attributes:
        x: the states, shape (batch, *dims).
        clean: ``E[x_0 | x]``, shape (batch, *dims).
        abar: signal level, to broadcast against the states.
        noise: noise level ``h = 1 - abar``, likewise.
        pullback: ``g -> J' g``, the gradient of ``g . E[x_0 | x]`` per sample; g is broadcast
            against the states.
    """

    x: States
    clean: States
    abar: Tensor
    noise: Tensor
    pullback: Callable[[Tensor], States]

    @property
    def signal(self) -> Tensor:
        """``alpha``."""
        return self.abar.sqrt()

    @property
    def score(self) -> States:
        """The score that predicts this posterior mean."""
        return (self.signal * self.clean - self.x) / self.noise


class Denoiser(abc.ABC):
    """A score model seen through the posterior mean that it predicts, at the levels ``abar`` of
    shape (T,).
    """

    def __init__(self, abar: Float[Tensor, " steps"]):
        self.abar = numbers(abar, "abar", ("steps",))
        require(len(self.abar) > 0, "abar has shape (0,); give at least one level.")
        require_positive(self.abar, "abar", "levels lie in (0, 1).")
        top = float(self.abar.max())
        require(
            top < 1,
            f"a level is {top:g}; there is nothing to predict at level 1, leave out the last level"
            " of the schedule.",
        )

    @abc.abstractmethod
    def at(self, k: Step, x: States) -> Prediction:
        """The prediction at step k."""

    def score(self, k: Step, x: States) -> States:
        """The score at step k."""
        return self.at(k, x).score


class ScoreDenoiser(Denoiser):
    """Any differentiable score ``(k, x) -> s_k(x)``: one vector-Jacobian product per pullback."""

    def __init__(self, score: Callable[[Step, States], States], abar: Float[Tensor, " steps"]):
        super().__init__(abar)
        require_callable(score, "the score", "of step and states")
        self._score = score

    def at(self, k: Step, x: States) -> Prediction:
        level, noise = level_at(self.abar, k, x)
        found = torch.func.vjp(lambda z: (z + noise * self.score(k, z)) / level.sqrt(), x)
        return Prediction(
            x, found[0], level, noise, lambda g: found[1](g.expand_as(x).contiguous())[0]
        )

    def score(self, k: Step, x: States) -> States:
        return probe(self._score, (k, x), tuple(x.shape), "the score")


class GaussianDenoiser(Denoiser):
    """The exact score of Gaussian data, possibly on a subspace: ``J = alpha S (alpha^2 S + h)^-1``
    in closed form.

    Args:
        law: the data law.
        abar: levels, shape (T,).
        jacobians: J at every level, where they are at hand: they depend on the covariance alone.
    """

    def __init__(
        self,
        law: Gaussian,
        abar: Float[Tensor, " steps"],
        jacobians: LinearMaps | None = None,
    ):
        super().__init__(abar)
        require_kind(law, Gaussian, "the law", "give a Gaussian.")
        self.law = law
        self._jacobians = self._tabulated() if jacobians is None else jacobians

    def _tabulated(self) -> LinearMaps:
        law, level = self.law, self.abar.unsqueeze(1)
        maps = SpectralMaps(
            level.sqrt() * law.spectra / noised_variance(level, law.spectra), law.bases[0]
        )
        small = len(self.abar) * law.dims[0] ** 2 <= TABULATED
        return DenseMaps(maps.dense()) if small else maps

    def recentred(self, mean: Float[Tensor, " n"]) -> GaussianDenoiser:
        """The score of the same covariance around another mean, with the same tables."""
        return GaussianDenoiser(Gaussian(mean, self.law.eigensystem), self.abar, self._jacobians)

    def at(self, k: Step, x: States) -> Prediction:
        (level, noise), mean = level_at(self.abar, k, x), self.law.means[0].to(x)
        clean = mean + self._jacobians.apply(k, x - level.sqrt() * mean)
        return Prediction(
            x, clean, level, noise, lambda g: self._jacobians.apply(k, g.expand_as(x))
        )

    def score(self, k: Step, x: States) -> States:
        return self.law.noised_score(at_step(self.abar, k, self.abar), x)


class LinearDenoiser(Denoiser):
    """A score in the linear class, ``s_k(x) = slope_k x + offset_k``.

    Attributes:
        slope: shape (T, n, n).
        offset: shape (T, n).
    """

    def __init__(
        self,
        slope: Float[Tensor, "steps n n"],
        offset: Float[Tensor, "steps n"],
        abar: Float[Tensor, " steps"],
    ):
        super().__init__(abar)
        steps = len(self.abar)
        n = numbers(slope, "slope", (steps, "n", "n")).shape[-1]
        self.slope = numbers(slope, "slope", (steps, n, n))
        self.offset = numbers(offset, "offset", (steps, n))

    @functools.cached_property
    def law(self) -> Gaussian:
        """The Gaussian whose score this is at the last level, ``C = -(alpha^2 S + h)^-1`` and
        ``b = -alpha C m``.
        """
        level, C = float(self.abar[-1]), (self.slope[-1] + self.slope[-1].mT) / 2
        values, basis = torch.linalg.eigh(C)
        spectrum = ((-1 / values - (1 - level)) / level).clamp(min=0)
        covariance = basis * spectrum @ basis.mT
        return Gaussian(
            -torch.linalg.solve(C, self.offset[-1]) / level**0.5, (covariance + covariance.mT) / 2
        )

    def at(self, k: Step, x: States) -> Prediction:
        (level, noise), slope = level_at(self.abar, k, x), self.slope[k].to(x)
        clean = (x + noise * self.score(k, x)) / level.sqrt()

        def pullback(g: Float[Tensor, "*#batch n"]) -> Float[Tensor, "batch n"]:
            rows = g.expand_as(x)
            bent = (slope.mT @ rows.unsqueeze(-1)).squeeze(-1) if slope.ndim == 3 else rows @ slope
            return (rows + noise * bent) / level.sqrt()

        return Prediction(x, clean, level, noise, pullback)

    def score(self, k: Step, x: States) -> States:
        slope = self.slope[k].to(x)
        moved = (slope @ x.unsqueeze(-1)).squeeze(-1) if slope.ndim == 3 else x @ slope.mT
        return moved + self.offset[k].to(x)


@dataclasses.dataclass(frozen=True)
class Response:
    """The linear response ``y = g . x_0 + noise`` that guidance conditions on.

    Attributes:
        gradient: g, shape (n,), or (batch, n) with one per sample of the batch that is guided.
        value: y, a number, or shape (batch,).
    """

    gradient: Float[Tensor, "*batch n"]
    value: float | Float[Tensor, ""] | Float[Tensor, "*batch"]

    def __post_init__(self) -> None:
        require_kinds(self, gradient=Tensor)
        require_finite(self.gradient, "gradient", "query the objective where it is differentiable.")
        tensor(self.gradient, "gradient", ("n", None))
        value = numbers(self.value, "value").to(self.gradient.dtype)
        require(
            value.ndim == 0 or self.gradient.shape[:-1] == value.shape,
            f"gradient has shape {tuple(self.gradient.shape)} and value {tuple(value.shape)}; give"
            " one value, or one per gradient.",
        )
        keep(self, value=value)

    def residual(self, clean: States) -> Float[Tensor, "batch 1"]:
        """``y - g . clean``."""
        shape, g = tuple(clean.shape), tuple(self.gradient.shape)
        require(g in (shape, shape[1:]), f"the gradient has shape {g}, the states have {shape}.")
        value = torch.as_tensor(self.value).to(clean)
        return (value - (clean * self.gradient.to(clean)).sum(-1)).unsqueeze(1)


class GuidanceStrength(abc.ABC):
    """How strongly a guidance pulls, as a function of the level."""

    @abc.abstractmethod
    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        """The factor, to broadcast against (batch, 1), from the direction g and its pullback
        ``J' g``.
        """


@dataclasses.dataclass(frozen=True)
class ConstantStrength(GuidanceStrength):
    """One number at every level."""

    value: float

    def __post_init__(self) -> None:
        keep(self, value=number(self.value, "strength"))

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        return torch.as_tensor(self.value).to(at.x)


@dataclasses.dataclass(frozen=True)
class _ResponseStrength(GuidanceStrength):
    """A strength for a response whose noise has the standard deviation ``noise``, times
    ``scale``.
    """

    noise: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        keep(self, noise=positive(self.noise, "noise"), scale=number(self.scale, "scale"))


class PublishedStrength(_ResponseStrength):
    """``b = scale / (2 (s^2 + h |J' g|^2 / alpha^2))``, of the simulations published with arXiv
    2404.14743v2.
    """

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        spread = at.noise / at.abar * pulled.square().sum(1, keepdim=True)
        return self.scale / (2 * (self.noise**2 + spread))


class PosteriorStrength(_ResponseStrength):
    """``b = scale / (2 (s^2 + g' Cov[x_0|x] g))``, exact where the posterior is Gaussian; the
    covariance is ``h J / alpha``.
    """

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        spread = at.noise / at.signal * (pulled * g).sum(1, keepdim=True)
        return self.scale / (2 * (self.noise**2 + spread))


class IsotropicStrength(_ResponseStrength):
    """``b' = scale alpha / (s^2 + h |g|^2)`` of the naive term, exact for data N(mu, I)
    (Proposition 3 of arXiv 2404.14743v2).
    """

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        return (
            self.scale * at.signal / (self.noise**2 + at.noise * g.square().sum(-1, keepdim=True))
        )


class Guidance(abc.ABC):
    """What is added to the score."""

    @abc.abstractmethod
    def __call__(self, at: Prediction) -> States:
        """The addition, shape (batch, *dims)."""


@dataclasses.dataclass(frozen=True)
class ConditionalGuidance(Guidance):
    """Guidance for a linear response: its residual times a direction.

    Attributes:
        response: y and g.
        strength: how strongly it pulls.
    """

    response: Response
    strength: GuidanceStrength

    def __post_init__(self) -> None:
        require_kinds(self, response=Response, strength=GuidanceStrength)

    @abc.abstractmethod
    def direction(self, at: Prediction) -> States:
        """The addition per unit of ``y - g . x_0hat``, shape (batch, *dims)."""

    def __call__(self, at: Prediction) -> States:
        return self.response.residual(at.clean) * self.direction(at)


class NaiveGuidance(ConditionalGuidance):
    """``b' (y - g . x_0hat) g``: the gradient of the objective itself, which leaves the data's
    subspace where g does.
    """

    def direction(self, at: Prediction) -> States:
        g = self.response.gradient.to(at.x)
        return self.strength(at, g, at.x) * g


class LookAheadGuidance(ConditionalGuidance):
    """``-b grad (y - g . x_0hat)^2``, the gradient through the denoiser (Definition 1 of arXiv
    2404.14743v2).
    """

    def direction(self, at: Prediction) -> States:
        g = self.response.gradient.to(at.x)
        pulled = at.pullback(g)
        return 2 * self.strength(at, g, pulled) * pulled


@dataclasses.dataclass(frozen=True)
class UniversalGuidance(Guidance):
    """``weight grad_x r(x_0hat)``, the forward term of universal guidance (Bansal et al., arXiv
    2302.07121, equation 6).
    """

    reward: Reward
    weight: float

    def __post_init__(self) -> None:
        require_kinds(self, reward=Reward)
        keep(self, weight=number(self.weight, "weight"))

    def __call__(self, at: Prediction) -> States:
        return self.weight * at.pullback(self.reward.gradient(at.clean))


@dataclasses.dataclass(frozen=True)
class ClassifierGuidance(Guidance):
    r"""``weight grad_x log E[exp(r(x_0) / beta) | x]``: guidance by an exact classifier of noisy
    states.

    Dhariwal and Nichol (arXiv 2105.05233, algorithm 1) with the classifier
    :math:`p(y | x_0) \propto e^{r(x_0)/\beta}`. Its gradient is the difference of the scores of the
    tilted and the plain law; at weight 1 it is the optimal control in continuous time.

    Attributes:
        density: the data law.
        tilted: the law times ``exp(r / beta)``.
        weight: the guidance scale.
    """

    density: Density
    tilted: Density
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_kinds(self, density=Density, tilted=Density)
        keep(self, weight=number(self.weight, "weight"))

    def __call__(self, at: Prediction) -> States:
        level = at.abar if at.abar.ndim == 0 else at.abar.flatten()
        return self.weight * (
            self.tilted.noised_score(level, at.x) - self.density.noised_score(level, at.x)
        )


@dataclasses.dataclass(frozen=True)
class NoGuidance(Guidance):
    """Nothing."""

    def __call__(self, at: Prediction) -> States:
        return torch.zeros_like(at.x)


class GuidancePolicy(Policy):
    """A guided score as a whitened control of the pre-trained chain.

    Args:
        schedule: the chain's coefficients.
        denoiser: the score model in use, at the levels ``schedule.abar[:-1]``.
        guidance: what is added to its score.
        pretrained: the pre-trained score model, where the one in use is another (fine-tuned): the
            control then has the change of the score in it, and its divergence counts it.
    """

    def __init__(
        self,
        schedule: Schedule,
        denoiser: Denoiser,
        guidance: Guidance,
        pretrained: Denoiser | None = None,
    ):
        require_kind(schedule, Schedule, "the schedule", "give a Schedule.")
        require_kind(denoiser, Denoiser, "the score model", "give a Denoiser.")
        require_kind(guidance, Guidance, "the guidance", "give a Guidance.")
        require(
            len(denoiser.abar) == schedule.steps,
            f"the score model has {len(denoiser.abar)} levels; this schedule has {schedule.steps}"
            " steps, give schedule.abar[:-1].",
        )
        self.schedule, self.denoiser, self.guidance, self.pretrained = (
            schedule,
            denoiser,
            guidance,
            pretrained,
        )
        self._unit = schedule.score_weight / (schedule.alpha.sqrt() * schedule.sigma)

    def __call__(self, k: Step, x: States) -> Noises:
        at = self.denoiser.at(k, x)
        change = self.guidance(at)
        if self.pretrained is not None:
            change = change + at.score - self.pretrained.score(k, x)
        return at_step(self._unit, k, x) * change


@torch.no_grad()
def affine_policy(policy: Policy, steps: int, n: int) -> AffinePolicy:
    """A policy that is affine in the state, tabulated: closed forms (`socft.truth.affine_policy`)
    apply to it.

    Raises:
        InvalidProblem: the policy is not affine.
    """
    gain, offset = affine_coefficients(policy, steps, n)
    probe = torch.linspace(-2, 1, n, dtype=torch.float64)
    values = torch.cat([policy(k, probe.unsqueeze(0)) for k in range(steps)])
    error = values - offset - gain @ probe
    worst = float(error.abs().max())
    scale = max(float(each.abs().max()) for each in (values, gain, offset))
    require(
        worst <= AFFINE * max(scale, 1.0),
        f"the policy is off affine by {worst:.2g} where it is {scale:.2g}; evaluate it by"
        " simulation.",
    )
    return AffinePolicy(gain, offset)
