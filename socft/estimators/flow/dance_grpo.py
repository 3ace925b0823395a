r"""DanceGRPO (Xue et al., arXiv 2505.07818): Flow-GRPO without a KL.

The loss of a step is :math:`\max(-A \rho_k, -A\, \mathrm{clip}(\rho_k, 1 \pm \epsilon))` with the
ratio of `FlowGRPO`; rewards are divided by the standard deviation of their group, with N - 1
degrees of freedom. Nothing holds the model to the pre-trained one but the number of its steps: the
fixed point is the greatest reward alone. The published code trains on 60 % of the steps of a path,
drawn anew, which scales the gradient; here every step has a label.

Noise level: the published one is constant, `dance_sde` with 0.3.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from socft.estimators.ddpo import RatioRows
from socft.estimators.estimand import EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.grpo import GroupAdvantages, GroupRelative, Spread
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Step
from socft.reward import PerSample

DANCE = GroupAdvantages(spread=Spread.GROUP, floor=1e-8, unbiased=True)


@dataclasses.dataclass(frozen=True)
class DanceGRPO(GroupRelative):
    """Clipped ratios of normalised rewards alone; no derivative of reward or reference.

    Attributes:
        advantages: how rewards are compared.
        clip: epsilon.
        averaged: whether log-likelihoods are averaged over the entries of the noise instead of
            summed.

    >>> print(DanceGRPO().estimates.equation)
    the greatest reward, whatever the divergence
    """

    advantages: GroupAdvantages = dataclasses.field(default_factory=lambda: DANCE)
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.REWARD_ALONE)
    source: ClassVar[str] = "arXiv 2505.07818 and published code"

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: RatioRows) -> PerSample:
        log_ratio = rows.log_ratio(policy(k, rows.states))
        return self.clipped(rows, log_ratio / self.entries(rows))
