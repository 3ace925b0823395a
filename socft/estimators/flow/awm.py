r"""Advantage weighted matching, AWM (Xue et al., arXiv 2509.25050).

With D entries, the velocity y of the pair, :math:`q(u) = |u - y|^2/D` and a transformation f of it,

.. math:: \max(-A\rho, -A\, \mathrm{clip}(\rho, 1 \pm \epsilon)) + \lambda\, |u - u^0|^2/D, \qquad
    \rho = \exp\big( f_k(q(u_{old})) - f_k(q(u)) \big).

Before an update the gradient is that of :math:`A f_k(q)`, a flow-matching loss weighted with
advantages. For :math:`f = w_k q` the fixed point solves RAM's equation with
:math:`b_k = \lambda\, \mathrm{std}(r)/(g w_k)` (`effective_beta`), for advantages that are
multiplied with g; with Huber's weightings f' at the residual of every pair enters (derived here).

====================  =====================================  =============
weighting             f_k(q), s the noise level              published as
====================  =====================================  =============
``UNIFORM``           q                                      ``Uniform``
``NOISE``             s q                                    ``t``
``NOISE_SQUARED``     s^2 q                                  ``t**2``
``HUBER``             s (q + 1e-10)^(1/2)                    ``huber``
``GENERAL_HUBER``     s (q + 1e-10)^p/p                      ``ghuber``
====================  =====================================  =============

up to constants that leave the ratio. The published runs for SD 3.5 have ``GENERAL_HUBER`` with
p = 1/4. The published term for an average of older models is left to the trainer. Ratios whose
logarithms are averaged over levels have the same gradient before an update.

Noise level: it enters the units of controls alone. The published option ``ELBO`` of the divergence
has the diffusion 0.7 sqrt(s/a) of Flow-GRPO, whatever the chain's.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from socft.checks import keep, positive, require_kinds
from socft.estimators.estimand import Estimand
from socft.estimators.flow.advantage_regression import (
    COVARIANCE,
    NORMALISED,
    AdvantageRegression,
    AdvantageRows,
    clipped_surrogate,
)
from socft.estimators.flow.renoising import PerStep, RenoisingLevels, denoising
from socft.estimators.flow.weightings import ResidualWeight
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Step
from socft.reward import PerSample

DIFFUSION, LEAST_SIGNAL = 0.7, 0.01
"""Of the published divergence."""


@dataclasses.dataclass(frozen=True)
class AWM(AdvantageRegression):
    """A flow-matching loss weighted with advantages; no derivative of reward or reference.

    Attributes:
        generator: makes the noise of the samples.
        advantages: how rewards are compared.
        lam: lambda, the weight of the divergence; zero leaves it out.
        clip: epsilon.
        weighting: f.
        power: p of ``GENERAL_HUBER``.
        by_diffusion: whether the divergence is divided by twice the squared diffusion.
        gain: g; the published runs scale advantages within 5 to 1.

    Raises:
        InvalidProblem: lam is negative, or clip, power or gain is not positive.

    >>> AWM(torch.Generator(), lam=0.0).estimates.equation.name
    'REWARD_ALONE'
    """

    lam: float = 1e-3
    clip: float = 1.0
    weighting: ResidualWeight = ResidualWeight.UNIFORM
    power: float = 0.25
    by_diffusion: bool = False
    gain: float = 0.2
    estimates: ClassVar[Estimand] = COVARIANCE
    source: ClassVar[str] = "arXiv 2509.25050 and published code"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kinds(self, weighting=ResidualWeight, by_diffusion=bool)
        keep(self, clip=positive(self.clip, "clip"), power=positive(self.power, "power"))
        keep(self, gain=positive(self.gain, "gain"))
        if self.lam > 0 and self.weighting.robust:
            object.__setattr__(self, "estimates", NORMALISED)

    def loss(
        self, problem: ControlProblem, policy: Policy, k: Step, rows: AdvantageRows
    ) -> PerSample:
        reference, control = denoising(problem), policy(k, rows.states)
        unit = reference.velocity_unit(k, rows.states)
        level = (-reference.endpoint_unit(k, rows.states) / unit).flatten()
        new, old = (
            self.weighting.of(rows.mean_square(unit * (each - rows.targets)), level, self.power)
            for each in (control, rows.controls)
        )
        surrogate = clipped_surrogate(self.gain * rows.advantages, old - new, self.clip)
        return surrogate + self.lam * self._measure(level) * rows.mean_square(unit * control)

    def _measure(self, level: Tensor) -> Tensor:
        """What multiplies the squared change of the velocity."""
        if not self.by_diffusion:
            return torch.ones_like(level)
        squared = DIFFUSION**2 * level / (1 - level).clamp(min=LEAST_SIGNAL)
        return 1 / (2 * squared)

    def divergence_share(self, levels: RenoisingLevels) -> PerStep:
        level = -levels.endpoint_units / levels.velocity_units
        return self._measure(level) / (self.gain * self.weighting.slope(level))
