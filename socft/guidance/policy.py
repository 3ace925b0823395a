r"""Guidance: a term added to the pre-trained score while sampling, as a control.

Guo, Yuan, Yang, Chen and Wang (arXiv 2404.14743v2) model the objective by a linear response
:math:`y = g^\top x_0 + N(0, s^2)` and add to the score

.. math:: G = b'\,(y - g^\top \hat x_0)\, g \quad\text{(naive)}, \qquad G_{loss} = -b\,\nabla_x (y -
   g^\top \hat x_0)^2 = 2 b\,(y - g^\top \hat x_0)\, J^\top g \quad\text{(look-ahead, Definition
   1)},

with the posterior mean :math:`\hat x_0 = E[x_0 | x]` of the sample and its Jacobian J
(`socft.guidance.denoiser`), and strengths b and b' of the level (`socft.guidance.strength`).

A change G of the score is the whitened control :math:`v = g_k\,G / (\sqrt{a_k}\,\sigma_k)`, so that
a guidance is a policy and :math:`|v|^2/2` its divergence from the pre-trained kernel. The paper's
:math:`\alpha(t), h(t), \beta(t), \sigma` are :math:`\alpha, h, b, s` here.
"""

from __future__ import annotations

import abc
import dataclasses

import torch

from socft.checks import (
    keep,
    number,
    require,
    require_kind,
    require_kinds,
)
from socft.density import Density
from socft.guidance.denoiser import Denoiser, Prediction
from socft.guidance.strength import GuidanceStrength, Response
from socft.policy import AffinePolicy, Policy
from socft.reference import (
    Noises,
    States,
    Step,
    affine_coefficients,
    at_step,
)
from socft.reward import Reward
from socft.schedule import Schedule

AFFINE = 1e-9
"""Largest relative distance of a policy from its affine interpolation at a further point: both are
sums of n products.
"""


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
