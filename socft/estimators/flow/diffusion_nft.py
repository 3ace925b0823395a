r"""DiffusionNFT (Zheng et al., arXiv 2509.16117): negative-aware fine-tuning.

With :math:`v^\pm = v^{old} \pm \beta (v - v^{old})` and
:math:`r' = \mathrm{clip}(A/2c + 1/2, 0, 1)` for advantages A and their limit c, the loss of a step
with D entries is

.. math:: \frac{c}{\beta} \big( r' \ell(v^+) + (1 - r')\, \ell(v^-) \big)
    + \lambda\, |u - u^0|^2/D ,

where :math:`\ell` is :math:`|u - y|^2/D` in the publication, and in its code
:math:`|\hat x_0 - z|^2/D` over the mean absolute entry of :math:`\hat x_0 - z`, held, at least
1e-5. Before an update the gradient is that of :math:`A\, \ell(v)` whatever beta (derived here), so
that the fixed point solves RAM's equation with :math:`b = \lambda\, \mathrm{std}(r)` in the first
case; in the second the residual of every pair is divided by its size, and no b fits. Solved to the
end for one set of samples, :math:`u = u^{old} + \mathrm{Cov}_q(A, y|x)/(\beta c)`, a first-order
tilt; repeated without :math:`\lambda` the greatest reward alone.

Noise level: it enters the units of controls alone. The published code samples with an older average
of the model, which here is the policy that labels.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from socft.checks import InvalidProblem, keep, positive, require, require_kinds
from socft.estimators.estimand import Estimand
from socft.estimators.flow.advantage_regression import (
    COVARIANCE,
    NORMALISED,
    AdvantageRegression,
    AdvantageRows,
)
from socft.estimators.flow.renoising import PerStep, RenoisingLevels, denoising
from socft.estimators.flow.weightings import AdvantageMode
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Noises, Step
from socft.reward import PerSample

SMALLEST = 1e-5
"""Of what residuals are divided by."""


@dataclasses.dataclass(frozen=True)
class DiffusionNFT(AdvantageRegression):
    """A positive and an implicit negative model matched to the samples; no derivative of reward or
    reference.

    Attributes:
        generator: makes the noise of the samples.
        advantages: how rewards are compared; they have a limit.
        lam: lambda, the weight of the divergence; zero leaves it out.
        beta: the step from the old model.
        normalised: whether the loss is that of the published code, of endpoints over their size.
        mode: what of the advantages is kept.

    Raises:
        InvalidProblem: lam is negative, beta is not positive, or advantages have no limit.

    >>> DiffusionNFT(torch.Generator(), normalised=False).estimates.equation.name
    'ENDPOINT_COVARIANCE'
    """

    lam: float = 1e-4
    beta: float = 1.0
    normalised: bool = True
    mode: AdvantageMode = AdvantageMode.ALL
    estimates: ClassVar[Estimand] = NORMALISED
    source: ClassVar[str] = "arXiv 2509.16117 and published code"

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, beta=positive(self.beta, "beta"))
        require_kinds(self, normalised=bool, mode=AdvantageMode)
        require(
            self.advantages.limit is not None,
            "the advantages have no limit, and the method weighs by their share of it; give"
            " GroupAdvantages(limit=5.0).",
        )
        if self.lam > 0 and not self.normalised:
            object.__setattr__(self, "estimates", COVARIANCE)

    def loss(
        self, problem: ControlProblem, policy: Policy, k: Step, rows: AdvantageRows
    ) -> PerSample:
        reference, control = denoising(problem), policy(k, rows.states)
        limit = self.advantages.limit or 1.0
        share = (self.mode.of(rows.advantages) / (2 * limit) + 0.5).clamp(0, 1)
        velocity = reference.velocity_unit(k, rows.states)
        unit = reference.endpoint_unit(k, rows.states) if self.normalised else velocity
        step = self.beta * (control - rows.controls)
        for_, against = (
            self._matched(rows, unit * (rows.controls + each - rows.targets))
            for each in (step, -step)
        )
        regression = limit / self.beta * (share * for_ + (1 - share) * against)
        return regression + self.lam * rows.mean_square(velocity * control)

    def _matched(self, rows: AdvantageRows, away: Noises) -> PerSample:
        squared = rows.mean_square(away)
        if not self.normalised:
            return squared
        return squared / away.detach().flatten(1).abs().mean(1).clamp(min=SMALLEST)

    def divergence_share(self, levels: RenoisingLevels) -> PerStep:
        if self.normalised:
            raise InvalidProblem(
                "normalised = True: no one b fits every residual; give normalised=False."
            )
        return torch.ones_like(levels.signal)
