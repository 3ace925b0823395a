r"""Flow-GRPO (Liu et al., arXiv 2505.05470).

With the control v of the model, u of the one that made the path, D entries of the noise and
advantages A (`socft.estimators.flow.grpo`), the loss of a step is

.. math:: \max\big( -A \rho_k, -A\, \mathrm{clip}(\rho_k, 1 \pm \epsilon) \big)
    + \lambda |dt_k| \frac{|v_k|^2}{2D}, \qquad
    \rho_k = \exp\Big( \frac1D \big( (v_k - u_k) \cdot \xi_k - |v_k - u_k|^2/2 \big) \Big).

The published code averages log-likelihoods over the coordinates: :math:`\rho` is the D-th root of
the likelihood ratio, with mean other than 1, and with 1/D of its gradient. It leaves dt out of the
variance in the KL, and takes the KL at the states of the paths. Hence (derived here) the gradient
vanishes where

.. math:: v_k = B_k^\top E[\nabla W_{k+1}(x_{k+1}) \mid x_k]/\beta_k, \qquad
    W_k(x) = E[r(x_T) \mid x_k = x], \qquad \beta_k = \lambda\, |dt_k|\, \mathrm{std}(r),

not at the optimum: the KL of later steps is left out, and the limit is half the optimal control for
twice the reward as dt falls with a constant :math:`\beta_k`. Without a KL it is the greatest reward
alone.

=====================================  ==========================
option                                 what it does to beta_k
=====================================  ==========================
published                              lam abs(dt_k) std(r)
``KLTerm(with_dt=True)``               lam std(r)
``GroupAdvantages(spread=NONE)``       without std(r)
``averaged=False``                     nothing; the ratio is one
``GroupAdvantages(leave_one_out)``     times (N - 1)/N
=====================================  ==========================

With all of them it is DPOK with the other paths' mean as the baseline.

Noise level: the published default is 0.7, a quarter of the variance of the memoryless schedule; the
clip binds once :math:`|v - u|` exceeds about :math:`\epsilon D`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from socft.checks import require_kinds
from socft.estimators.ddpo import RatioRows
from socft.estimators.estimand import EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.grpo import GroupRelative, KLTerm, Spread
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Step, at_step
from socft.reward import PerSample

WITHOUT_KL = EquationResidual(FixedPointEquation.REWARD_ALONE)


@dataclasses.dataclass(frozen=True)
class FlowGRPO(GroupRelative):
    """Clipped ratios of normalised rewards and a KL at stored states; no derivative of reward or
    reference.

    Attributes:
        advantages: how rewards are compared.
        clip: epsilon.
        averaged: whether log-likelihoods, and the KL, are averaged over the entries of the noise
            instead of summed.
        kl: the weight of the KL.

    >>> FlowGRPO().estimates.equation.name, FlowGRPO(kl=KLTerm(0.0)).estimates.equation.name
    ('NO_KL_TO_GO', 'REWARD_ALONE')
    """

    kl: KLTerm = dataclasses.field(default_factory=KLTerm)
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.NO_KL_TO_GO)
    source: ClassVar[str] = "arXiv 2505.05470 and published code"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kinds(self, kl=KLTerm)
        if self.kl.lam == 0:
            object.__setattr__(self, "estimates", WITHOUT_KL)

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: RatioRows) -> PerSample:
        control, n = policy(k, rows.states), self.entries(rows)
        divergence = control.flatten(1).square().sum(1) / (2 * n)
        weight = at_step(self.kl.weights(problem), k, divergence)
        return self.clipped(rows, rows.log_ratio(control) / n) + weight * divergence

    def effective_beta(self, problem: ControlProblem, spread: float) -> Float[Tensor, " steps"]:
        """``beta_k`` of the equation that holds at the fixed point of infinitely many paths.

        Args:
            spread: the standard deviation of the model's rewards.
        """
        divided = self.advantages.spread is not Spread.NONE
        return self.kl.weights(problem) * (spread + self.advantages.floor if divided else 1.0)
