r"""Policy gradient with the ratio of evidence bounds (McAllister et al., arXiv 2507.21053).

The bound of a sample's log-likelihood under the chain is

.. math:: \log p_\theta(z) \ge \mathrm{const} - \sum_k E\, |v_k(x_k) - w_k|^2/2 ,

because :math:`|v_k - w_k|^2/2` is the divergence of the kernel that goes by the pair from the
model's, for kernels of the DDIM form (derived here). The loss of a step is

.. math:: \max(-A\rho, -A\, \mathrm{clip}(\rho, 1 \pm \epsilon)) + \lambda\, |v_k|^2/2, \qquad
    \rho = \exp\big( |u_k - w_k|^2/2 - |v_k - w_k|^2/2 \big),

with the control u of the policy before an update. The fixed point solves RAM's equation with
:math:`b = \lambda\, \mathrm{std}(r)` at every level. The publication has no divergence, unweighted
matching losses in the place of the bound's (`AWM` with its defaults), and sums of several levels in
the exponent; the last has the same gradient before an update.

Noise level: that of the chain is the weight of the bound; the clip binds once
:math:`|v - u|` exceeds about :math:`\epsilon / |v - w|`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from socft.checks import keep, positive, require_kinds
from socft.estimators.estimand import Estimand
from socft.estimators.flow.advantage_regression import (
    COVARIANCE,
    WITHOUT_DIVERGENCE,
    AdvantageRegression,
    AdvantageRows,
    clipped_surrogate,
)
from socft.estimators.flow.renoising import PerStep, RenoisingLevels
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Step
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class ELBORatio(AdvantageRegression):
    """Clipped ratios of evidence bounds; no derivative of reward or reference.

    Attributes:
        generator: makes the noise of the samples.
        advantages: how rewards are compared.
        lam: lambda, the weight of the divergence; zero, as published, leaves it out.
        clip: epsilon.
        averaged: whether the bound, and the divergence, are averaged over the entries instead of
            summed.

    Raises:
        InvalidProblem: lam is negative or clip is not positive.

    >>> ELBORatio(torch.Generator(), lam=0.1).estimates.equation.name
    'ENDPOINT_COVARIANCE'
    """

    clip: float = 0.05
    averaged: bool = False
    estimates: ClassVar[Estimand] = WITHOUT_DIVERGENCE
    source: ClassVar[str] = "arXiv 2507.21053; the chain's own bound derived here"

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, clip=positive(self.clip, "clip"))
        require_kinds(self, averaged=bool)
        if self.lam > 0:
            object.__setattr__(self, "estimates", COVARIANCE)

    def loss(
        self, problem: ControlProblem, policy: Policy, k: Step, rows: AdvantageRows
    ) -> PerSample:
        control = policy(k, rows.states)
        entries = 1 if self.averaged else rows.states[0].numel()
        new, old, divergence = (
            rows.mean_square(each) * (entries / 2)
            for each in (control - rows.targets, rows.controls - rows.targets, control)
        )
        return clipped_surrogate(rows.advantages, old - new, self.clip) + self.lam * divergence

    def divergence_share(self, levels: RenoisingLevels) -> PerStep:
        return torch.ones_like(levels.signal)
