r"""Reinforce adjoint matching, RAM (Bergmeister et al., arXiv 2605.10759).

The velocity of the pair :math:`(z, \epsilon)` corrects the pre-trained one by the reward:

.. math:: \frac1D \Big| u_\theta(x_k) - \mathrm{sg}\Big( u^0(x_k)
    + \frac{r(z)}{b} \big( y - u_\theta(x_k) \big) \Big) \Big|^2 .

In expectation it vanishes where, with the law q of the samples and no baseline (c = 0),

.. math:: u - u^0 = \frac1b E_q[(r - c)(y - u) \mid x_k] ,

at every level on its own. Where u is the velocity of q that is :math:`\mathrm{Cov}_q(r, y|x)/b`
whatever c; the optimum has :math:`\frac1b \int_0^1 \mathrm{Cov}_{q_\tau}(r, y|x)\, d\tau` over the
tilts of weight :math:`b/\tau`. They agree for linear rewards on Gaussian data; else the second
order in 1/b is twice that of the optimum (derived here). No law need solve the equation at all
levels: then u is not the velocity of its own samples, and c matters. It is a minimum where
:math:`b + E[r - c|x] > 0`, and successive solutions diverge where that fails.

=======================================  ==================================
option                                   b of the equation
=======================================  ==================================
``b``, the published 1/beta              b, by default the problem's beta
``advantages=COMPARED``                  b; c is the mean reward
``advantages`` divided by a spread       b std(r), whatever the reward's unit
=======================================  ==================================

Noise level: it enters the units of controls alone.
"""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import keep, positive, require_kinds
from socft.estimators.base import LabelRows, Labels, MatchingEstimator
from socft.estimators.estimand import EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.grpo import GroupAdvantages, Spread
from socft.estimators.flow.renoising import Renoised, RenoisingEstimator, matching_weights
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class RAM(RenoisingEstimator[LabelRows], MatchingEstimator[LabelRows]):
    """The velocity of re-noised samples, weighted with their rewards; no derivative of reward or
    reference.

    Attributes:
        generator: makes the noise of the samples.
        b: the weight of the divergence, one over the published reward scale; the problem's
            constant beta by default.
        advantages: how rewards are compared; None takes them as they are.
        averaged: whether the loss is averaged over the entries instead of summed.

    Raises:
        InvalidProblem: b is not positive.

    >>> print(RAM(torch.Generator(), b=0.5).estimates.equation)
    u - u_0 = E_q[(r - c) (y - u) | x] / b at every level
    """

    b: float | None = None
    advantages: GroupAdvantages | None = None
    averaged: bool = True
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.ENDPOINT_COVARIANCE)
    source: ClassVar[str] = "arXiv 2605.10759"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kinds(self, advantages=(GroupAdvantages, NoneType), averaged=bool)
        keep(self, b=None if self.b is None else positive(self.b, "b"))

    def smallest_batch(self, problem: ControlProblem) -> int:
        return 1 if self.advantages is None else 2

    def label_renoised(
        self, problem: ControlProblem, policy: Policy, renoised: Renoised, rewards: PerSample
    ) -> Labels[LabelRows]:
        compared = rewards if self.advantages is None else self.advantages.of(rewards)
        scale = renoised.per_sample(compared / self.weight(problem))
        targets = scale * (renoised.controls - renoised.controls_of(policy))
        entries = renoised.samples[0].numel() if self.averaged else 1
        share = renoised.levels.velocity_units.square() / entries
        return Labels(renoised.states, targets, matching_weights(problem, renoised, share))

    def weight(self, problem: ControlProblem) -> float:
        """b as it is given, or the problem's."""
        return problem.constant_beta("RAM without b") if self.b is None else self.b

    def effective_beta(self, problem: ControlProblem, spread: float) -> Float[Tensor, " steps"]:
        """b of the equation at each step, for infinitely many samples.

        Args:
            spread: the standard deviation of the rewards of the model's samples.
        """
        divided = self.advantages is not None and self.advantages.spread is not Spread.NONE
        scale = spread + self.advantages.floor if self.advantages and divided else 1.0
        return torch.full((problem.steps,), scale * self.weight(problem), dtype=torch.float64)
