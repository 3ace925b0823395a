r"""Iterated guidance: gradients of an objective queried at generated samples guide the next round
(Algorithms 1 and 2).

Round k of Algorithm 1 (Guo et al., arXiv 2404.14743v2) takes :math:`g_k = \nabla f(z_k)` at what
round k - 1 generated, sets a target :math:`y_k`, and generates with the guidance for the response
:math:`y_k = g_k^\top x_0 + N(0, s^2)`. Algorithm 2 also adapts the score to the new samples. Where
the score is that of :math:`N(\bar\mu, \bar\Sigma)` one exactly guided round moves the mean to

.. math:: \mu_{k+1} = \bar\mu + \bar\Sigma g_k\, \frac{y_k - g_k^\top \bar\mu}{s^2 + g_k^\top
    \bar\Sigma g_k},

so that the target :math:`y_k = g_k^\top\bar\mu + (s^2 + g_k^\top\bar\Sigma g_k)/\lambda`,
`StepSizeTarget`, makes Algorithm 1 the iteration
:math:`\mu_{k+1} = \bar\mu + \bar\Sigma\nabla f(\mu_k)/\lambda` for the maximum of
:math:`f(x) - \tfrac\lambda2 |x - \bar\mu|^2_{\bar\Sigma^{-1}}`, and Algorithm 2 with
`RecentredScore` the ascent :math:`\mu_{k+1} = \mu_k + \bar\Sigma\nabla f(\mu_k)/\lambda`. The
published simulations set :math:`y_k = \delta + g_k^\top z_k` instead, `IncrementTarget`. Its fixed
point is that of :math:`\lambda = s^2/\delta`, and along a line of curvature :math:`f''` the
iteration multiplies the distance from it by :math:`(\bar\Sigma g^2 + \delta\bar\Sigma
f'')/(\bar\Sigma g^2 + s^2)` (both derived here).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    InvalidProblem,
    at_least_zero,
    keep,
    numbers,
    positive,
    require,
    require_callable,
    require_kind,
    require_kinds,
    whole,
)
from socft.density import Gaussian
from socft.guidance.denoiser import Denoiser, GaussianDenoiser, LinearDenoiser
from socft.guidance.policy import Guidance, GuidancePolicy, NoGuidance
from socft.guidance.strength import Response
from socft.path import Noise, rollout
from socft.policy import Policy
from socft.reference import Reference, States, affine_coefficients
from socft.reward import PerSample, Reward
from socft.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class GuidanceRound:
    """What one round generated.

    Attributes:
        index: 0 is the pre-trained model.
        samples: shape (batch, n).
        kl: divergence of each path's kernels from the pre-trained ones, summed over the steps,
            shape (batch,).
        policy: what generated them, as a control of the pre-trained chain.
        denoiser: the score model of this round.
        response: what the round was guided to; None for round 0.
    """

    index: int
    samples: States
    kl: PerSample
    policy: Policy
    denoiser: Denoiser
    response: Response | None = None


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a policy generated: samples of shape (batch, n), and the divergence of each path, shape
    (batch,).
    """

    samples: States
    kl: PerSample


class Passes(abc.ABC):
    """How the chain is simulated under a policy."""

    @abc.abstractmethod
    def generate(self, policy: GuidancePolicy, batch: int, generator: torch.Generator) -> Generated:
        """Independent samples, with the divergence of their paths from the pre-trained chain's."""


@dataclasses.dataclass(frozen=True)
class Rollouts(Passes):
    """Step by step, whatever the chain and the score model."""

    reference: Reference

    @torch.no_grad()
    def generate(self, policy: GuidancePolicy, batch: int, generator: torch.Generator) -> Generated:
        path = rollout(self.reference, policy, Noise.sample(self.reference, batch, generator))
        return Generated(path.final, path.kl().sum(0))


class Query(abc.ABC):
    """Where the objective's gradient is asked for."""

    @abc.abstractmethod
    def points(self, samples: States) -> Float[Tensor, "*points n"]:
        """One point per sample, or one for all."""


@dataclasses.dataclass(frozen=True)
class MeanQuery(Query):
    """At the mean of the batch, as in the paper's Algorithms 1 and 2."""

    def points(self, samples: States) -> Float[Tensor, "*points n"]:
        return samples.mean(0)


@dataclasses.dataclass(frozen=True)
class SampleQuery(Query):
    """At every sample, which then has its own guidance, as in the published simulations."""

    def points(self, samples: States) -> Float[Tensor, "*points n"]:
        return samples


class GuidanceTarget(abc.ABC):
    """How ``y_k`` is set."""

    @abc.abstractmethod
    def __call__(self, points: Tensor, gradient: Tensor, denoiser: Denoiser) -> Tensor:
        """The target(s) at the query point(s) with these gradient(s)."""


@dataclasses.dataclass(frozen=True)
class IncrementTarget(GuidanceTarget):
    """``y = delta + g . z``: ask for ``delta`` more than the linearised objective has at z
    (appendix E.1 of arXiv 2404.14743v2).

    Attributes:
        delta: one number, or one per query point.
    """

    delta: float | Float[Tensor, " points"]

    def __post_init__(self) -> None:
        axes = numbers(self.delta, "delta").ndim
        require(axes <= 1, f"delta has {axes} axes; give one number, or one per query point.")

    def __call__(self, points: Tensor, gradient: Tensor, denoiser: Denoiser) -> Tensor:
        return self.delta + (gradient * points).sum(-1)


@dataclasses.dataclass(frozen=True)
class StepSizeTarget(GuidanceTarget):
    """``y = g . m + (s^2 + g' S g) / lam`` with m, S the mean and covariance of the score model: a
    step of exactly ``S g / lam``.

    Attributes:
        lam: weight of the regularisation, positive.
        noise: s, the standard deviation in the guidance's strength.
    """

    lam: float
    noise: float

    def __post_init__(self) -> None:
        keep(self, lam=positive(self.lam, "lam"), noise=at_least_zero(self.noise, "noise"))

    def __call__(self, points: Tensor, gradient: Tensor, denoiser: Denoiser) -> Tensor:
        law = _gaussian(denoiser).law
        spread = (gradient @ law.covariance * gradient).sum(-1)
        return gradient @ law.mean + (self.noise**2 + spread) / self.lam


class ScoreFineTuning(abc.ABC):
    """How the score model adapts to new samples."""

    @abc.abstractmethod
    def update(self, denoiser: Denoiser, samples: States, generator: torch.Generator) -> Denoiser:
        """The score model for the next round."""


@dataclasses.dataclass(frozen=True)
class FrozenScore(ScoreFineTuning):
    """Algorithm 1: the pre-trained score stays."""

    def update(self, denoiser: Denoiser, samples: States, generator: torch.Generator) -> Denoiser:
        return denoiser


@dataclasses.dataclass(frozen=True)
class RecentredScore(ScoreFineTuning):
    """The exact score of a Gaussian whose mean follows the samples and whose covariance is kept.

    This is score matching in the linear class with its slope frozen, and infinitely many noises per
    sample.

    Attributes:
        rate: share of the way to the samples' mean, 1 for all of it.
    """

    rate: float = 1.0

    def __post_init__(self) -> None:
        rate = positive(self.rate, "rate")
        require(rate <= 1, f"rate = {rate:g}; it must lie in (0, 1].")
        keep(self, rate=rate)

    def update(self, denoiser: Denoiser, samples: States, generator: torch.Generator) -> Denoiser:
        model = _gaussian(denoiser)
        mean = model.law.means[0].lerp(samples.mean(0), self.rate)
        if isinstance(model, GaussianDenoiser):
            return model.recentred(mean)
        return GaussianDenoiser(Gaussian(mean, model.law.covariance), model.abar)


@dataclasses.dataclass(frozen=True)
class LeastSquaresScore(ScoreFineTuning):
    """Denoising score matching in the linear class ``s_k(x) = C_k x + b_k`` on the samples, noised
    ``draws`` times each.

    Attributes:
        draws: noises per sample.
        slope: whether C_k is learnt too; with one round's samples it then forgets every direction
            that guidance has narrowed.
    """

    draws: int = 16
    slope: bool = False

    def __post_init__(self) -> None:
        require_kinds(self, slope=bool)
        keep(self, draws=whole(self.draws, "draws"))

    def update(self, denoiser: Denoiser, samples: States, generator: torch.Generator) -> Denoiser:
        fit = fit_linear(
            samples.repeat(self.draws, 1),
            denoiser.abar,
            generator,
            None if self.slope else slopes(denoiser, samples),
        )
        return fit


class IteratedGuidance:
    """Rounds of guided generation; Algorithm 1 with a frozen score, Algorithm 2 with a fine-tuning.

    Args:
        guide: the guidance for a response, such as
            ``lambda response: LookAheadGuidance(response, PublishedStrength(0.1))``.
        target: how ``y_k`` is set.
        query: where gradients are asked for.
        fine_tuning: how the score adapts; not at all by default.
        start: first round before which it does.
    """

    def __init__(
        self,
        guide: Callable[[Response], Guidance],
        target: GuidanceTarget,
        query: Query | None = None,
        fine_tuning: ScoreFineTuning | None = None,
        start: int = 1,
    ):
        require_callable(guide, "the guidance", "of a Response")
        require_kind(target, GuidanceTarget, "the target", "give a GuidanceTarget.")
        self.guide, self.target, self.start = guide, target, whole(start, "start", 0)
        self.query, self.fine_tuning = query or MeanQuery(), fine_tuning or FrozenScore()

    def rounds(
        self,
        reference: Reference | Passes,
        schedule: Schedule,
        denoiser: Denoiser,
        reward: Reward,
        batch: int,
        count: int,
        generator: torch.Generator,
    ) -> Iterator[GuidanceRound]:
        """Yield round 0, the pre-trained model, and ``count`` guided rounds of ``batch`` samples
        each.

        Args:
            reference: the pre-trained chain, or how to simulate it.
            schedule: its coefficients.
            denoiser: its score model.
            reward: the objective f, differentiable.
        """
        count = whole(count, "count", 0)
        passes = Rollouts(reference) if isinstance(reference, Reference) else reference
        pretrained, model = denoiser, denoiser
        policy = GuidancePolicy(schedule, pretrained, NoGuidance())
        path = passes.generate(policy, batch, generator)
        yield (last := GuidanceRound(0, path.samples, path.kl, policy, model))
        for index in range(1, count + 1):
            points = self.query.points(last.samples)
            gradient = reward.gradient(points.reshape(-1, points.shape[-1])).reshape(points.shape)
            if index >= self.start:
                model = self.fine_tuning.update(model, last.samples, generator)
            response = Response(gradient, self.target(points, gradient, model))
            policy = GuidancePolicy(
                schedule, model, self.guide(response), None if model is pretrained else pretrained
            )
            path = passes.generate(policy, batch, generator)
            yield (last := GuidanceRound(index, path.samples, path.kl, policy, model, response))


def fit_linear(
    samples: States,
    abar: Float[Tensor, " steps"],
    generator: torch.Generator,
    slope: Float[Tensor, "steps n n"] | None = None,
) -> LinearDenoiser:
    r"""Least squares of ``-eps / sqrt(h)`` on ``(x, 1)`` at every level,
    ``x = alpha x_0 + sqrt(h) eps``: score matching.

    With infinitely many noises the solution is the score of the Gaussian with the samples' mean and
    covariance, whatever their law; given a slope, only the offset is fitted.
    """
    offsets, gains = [], []
    for k, level in enumerate(abar.tolist()):
        eps = torch.randn(samples.shape, generator=generator, dtype=samples.dtype)
        x, goal = level**0.5 * samples + (1 - level) ** 0.5 * eps, -eps / (1 - level) ** 0.5
        if slope is None:
            weight = torch.linalg.lstsq(
                torch.cat([x, torch.ones_like(x[:, :1])], 1), goal, driver="gelsd"
            ).solution
            gains.append(weight[:-1].mT)
            offsets.append(weight[-1])
        else:
            offsets.append((goal - x @ slope[k].mT).mean(0))
    return LinearDenoiser(
        torch.stack(gains) if slope is None else slope, torch.stack(offsets), abar
    )


def slopes(denoiser: Denoiser, like: States) -> Float[Tensor, "steps n n"]:
    """``C_k`` of a score that is affine in the state, from its values at the unit vectors."""
    if isinstance(denoiser, LinearDenoiser):
        return denoiser.slope
    slope, _ = affine_coefficients(denoiser.score, len(denoiser.abar), like.shape[1])
    return slope.to(like)


def _gaussian(denoiser: Denoiser) -> GaussianDenoiser | LinearDenoiser:
    if not isinstance(denoiser, GaussianDenoiser | LinearDenoiser):
        name = type(denoiser).__name__
        raise InvalidProblem(
            f"the score model is a {name}; this needs the mean and covariance of a GaussianDenoiser"
            " or LinearDenoiser.",
        )
    return denoiser
