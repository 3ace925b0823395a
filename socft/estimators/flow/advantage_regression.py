r"""What the methods that weigh a regression on re-noised samples with advantages share.

The loss of a label has the form :math:`\mathcal L(A, v_k(x_k), w_k) + \lambda D(v_k(x_k))` with
the advantage A of the sample, the control :math:`w_k` that goes by the pair, and a divergence D
from the pre-trained model; its gradient before an update is that of
:math:`A\, g_k |v_k - w_k|^2/2 + \lambda h_k |v_k|^2/2`. Hence its fixed point solves

.. math:: v_k = \frac{1}{b_k} E_q[(r - c)(w_k - v_k) \mid x_k], \qquad
    b_k = \lambda\, \frac{h_k}{g_k}\, \mathrm{std}_q(r),

which is RAM's equation with a b that falls as the rewards concentrate, and that depends on the
level unless g and h are alike; without :math:`\lambda` it is the greatest reward alone (derived
here). Limits on A replace r by a clipped reward. The control before an update is that of the policy
that labels; published code may sample with an older average of it.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import at_least_zero, keep, number, require_kinds
from socft.estimators.base import LabelRows, Labels
from socft.estimators.estimand import EquationResidual, FixedPointEquation
from socft.estimators.flow.grpo import GroupAdvantages, Spread
from socft.estimators.flow.renoising import (
    PerStep,
    Renoised,
    RenoisingEstimator,
    RenoisingLevels,
    denoising,
)
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reward import PerSample

WITHOUT_DIVERGENCE = EquationResidual(FixedPointEquation.REWARD_ALONE)
COVARIANCE = EquationResidual(FixedPointEquation.ENDPOINT_COVARIANCE)
NORMALISED = EquationResidual(FixedPointEquation.NORMALISED_COVARIANCE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdvantageRows(LabelRows):
    """Rows of `AdvantageLabels`."""

    controls: Float[Tensor, "rows *noise_dims"]
    advantages: Float[Tensor, " rows"]

    def mean_square(self, away: Float[Tensor, "rows *noise_dims"]) -> Float[Tensor, " rows"]:
        """Mean over the entries."""
        return away.flatten(1).square().mean(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdvantageLabels(Labels[AdvantageRows]):
    """The controls that go by the pairs of re-noised samples, and what the samples are worth.

    Attributes:
        controls: of the policy before an update, shape (T, batch, *noise_dims).
        advantages: shape (T, batch).
    """

    row_type: ClassVar[type[Any]] = AdvantageRows

    controls: Float[Tensor, "steps batch *noise_dims"]
    advantages: Float[Tensor, "steps batch"]


@dataclasses.dataclass(frozen=True)
class AdvantageRegression(RenoisingEstimator[AdvantageRows], abc.ABC):
    """A regression on re-noised samples that is weighted with advantages.

    Attributes:
        generator: makes the noise of the samples.
        advantages: how rewards are compared.
        lam: lambda, the weight of the divergence; zero leaves it out.
    """

    advantages: GroupAdvantages = dataclasses.field(default_factory=GroupAdvantages)
    lam: float = 0.0
    label_type: ClassVar[type[Labels[Any]]] = AdvantageLabels

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kinds(self, advantages=GroupAdvantages)
        keep(self, lam=at_least_zero(number(self.lam, "lam"), "lam"))
        if self.lam == 0:
            object.__setattr__(self, "estimates", WITHOUT_DIVERGENCE)

    def smallest_batch(self, problem: ControlProblem) -> int:
        return 2

    def label_renoised(
        self, problem: ControlProblem, policy: Policy, renoised: Renoised, rewards: PerSample
    ) -> AdvantageLabels:
        return AdvantageLabels(
            renoised.states,
            renoised.controls,
            controls=renoised.controls_of(policy),
            advantages=self.advantages.of(rewards).expand(problem.steps, -1),
        )

    @abc.abstractmethod
    def divergence_share(self, levels: RenoisingLevels) -> PerStep:
        """``h_k / g_k``.

        Raises:
            InvalidProblem: the regression depends on the size of a residual, so that there is none.
        """

    def effective_beta(self, problem: ControlProblem, spread: float) -> PerStep:
        """``b_k`` of the equation for infinitely many samples whose advantages meet no limit.

        Args:
            spread: the standard deviation of the rewards of the model's samples.

        Raises:
            InvalidProblem: see `divergence_share`.
        """
        divided = self.advantages.spread is not Spread.NONE
        scale = spread + self.advantages.floor if divided else 1.0
        share = self.divergence_share(RenoisingLevels(denoising(problem)))
        return self.lam * scale * share


def clipped_surrogate(advantages: PerSample, log_ratio: PerSample, clip: float) -> PerSample:
    """``max(-A rho, -A clip(rho, 1 - epsilon, 1 + epsilon))`` of a ratio given by its logarithm."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
