r"""Efficient adjoint matching, EAM (Shin et al., arXiv 2605.11480).

The base is the memoryless chain of :math:`N(0, I)`, linear, in the place of the pre-trained one,
and its reward is :math:`g = r/b + \log p - \log N(0, I)` with the density p of the data, so that
the optimum is the same law. The lean costates of a linear base depend on the sample alone; the
score that they ask for at level k, with :math:`n^2 = a_k^2 + s_k^2`, is

.. math:: -\frac{x}{n^2} + \frac{a_k}{n^2} E_q[G(z) \mid x], \qquad
    G = \nabla \log p + \nabla r/b + z ,

:math:`(a^2\, \text{target score} + s^2\, \text{denoising score})/n^2`, with a spread that is
bounded at both ends (derived here; of the publication the abstract and the beginning were read,
the discrete loss is reconstructed). The loss is the matching loss of the control that goes by the
endpoint :math:`(a_k x_k + s_k^2 G)/n^2`. For q the tilt :math:`p\, e^{r/b}/Z` the mean of the
label is the tilt's own endpoint, exactly (integration by parts), so that the tilt is a fixed point
up to the O(dt) of the sampler; b is the problem's beta. Mass moves between separated modes only
through the overlap of their noised laws.

:math:`\nabla \log p` is asked for at the samples; a chain knows it up to the noise of its last
step, :math:`O(s_{T-1}^2)`, which is what is taken where it is not given.

Noise level: it enters the units of controls alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from socft.checks import probe, require_callable
from socft.costates.base import Cost
from socft.estimators.base import LabelRows, Labels, MatchingEstimator
from socft.estimators.estimand import EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.renoising import Renoised, RenoisingEstimator
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import States
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class EfficientAdjointMatching(RenoisingEstimator[LabelRows], MatchingEstimator[LabelRows]):
    """Lean costates of a linear base in closed form; one gradient of the reward and one score per
    sample.

    Attributes:
        generator: makes the noise of the samples.
        data_score: gradient of the log-density of the last states of the pre-trained chain; that of
            its last step by default.

    >>> print(EfficientAdjointMatching(torch.Generator()).estimates.kind)
    fixed-point residual up to O(dt)
    """

    data_score: Callable[[States], States] | None = None
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.TILT)
    source: ClassVar[str] = "arXiv 2605.11480, its discrete form derived here"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_score is not None:
            require_callable(self.data_score, "the score of the data", "of states")

    @property
    def cost(self) -> Cost:
        return Cost(reference=1)

    def label_renoised(
        self, problem: ControlProblem, policy: Policy, renoised: Renoised, rewards: PerSample
    ) -> Labels[LabelRows]:
        levels, x = renoised.levels, renoised.states
        slope = self._slope(problem, renoised)
        a, fresh, s = (
            levels.per_step(each, x) for each in (levels.signal, levels.fresh, levels.noise)
        )
        kept = 1 - levels.left.to(x).square()
        endpoints = (kept * a * x + s.square() * slope) / (a.square() + fresh.square())
        return Labels(x, renoised.controls_to(endpoints))

    def _slope(self, problem: ControlProblem, renoised: Renoised) -> Tensor:
        """``G`` at the clean samples, whose scale is that of the data."""
        samples, scale = renoised.samples, renoised.levels.scale.to(renoised.samples)
        b = problem.constant_beta("EfficientAdjointMatching")
        if self.data_score is None:
            score = self._last_score(renoised)
        else:
            shape = tuple(samples.shape)
            score = scale * probe(self.data_score, (samples,), shape, "the score of the data")
        return score + scale * problem.reward.gradient(samples) / b + samples / scale

    def _last_score(self, renoised: Renoised) -> Tensor:
        """That of the data at the level of the last step."""
        reference, last = renoised.levels.reference, renoised.levels.reference.steps - 1
        signal = renoised.levels.signal[last].to(renoised.samples)
        x = signal * renoised.samples / renoised.levels.scale.to(renoised.samples)
        uncontrolled = torch.zeros_like(x)
        return signal * reference.score_of(last, x, uncontrolled)
