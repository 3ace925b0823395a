r"""GRPO-Guard (Wang et al., arXiv 2510.22319): Flow-GRPO with a regulated ratio.

With the standard deviation :math:`\sigma_k` of the step and :math:`dm = \sigma_k (v_k - u_k)`, how
far its mean has moved,

.. math:: \log \rho'_k = \Big( \log \rho_k + \frac{|dm|^2}{2 D \sigma_k^2} \Big) \sigma_k
    = \frac1D\, dm \cdot \xi_k,

so that the mean of the log-ratio is zero and its spread the same at every step but for that of dm
(derived here); it is no likelihood ratio any more. The published code divides the loss of the
rewards by :math:`|dt_k|` besides; another implementation (Flow-Factory) does not. Hence the fixed
point is that of `FlowGRPO` with

=====================================  ===================================
option                                 beta_k
=====================================  ===================================
published                              lam abs(dt_k)^2 std(r) / sigma_k
``divided_by_dt=False``                lam abs(dt_k) std(r) / sigma_k
=====================================  ===================================

A KL weight per step of this kind belongs to no law of the samples.

Noise level: :math:`\sigma_k` enters beta; units of the states do, too.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, require_kinds
from socft.estimators.ddpo import RatioRows
from socft.estimators.estimand import EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.flow_grpo import FlowGRPO
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import ScalarDiffusion, Step, at_step
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class GRPOGuard(FlowGRPO):
    """Clipped regulated ratios of normalised rewards and a KL at stored states; for one standard
    deviation per step.

    Attributes, with those of `FlowGRPO`:
        divided_by_dt: whether the loss of the rewards is divided by ``|dt_k|``.

    >>> print(GRPOGuard().estimates.equation.name)
    NO_KL_TO_GO
    """

    divided_by_dt: bool = True
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.NO_KL_TO_GO)
    source: ClassVar[str] = "arXiv 2510.22319 and published code"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kinds(self, divided_by_dt=bool)

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: RatioRows) -> PerSample:
        control, n = policy(k, rows.states), self.entries(rows)
        moved = at_step(_deviations(problem), k, control) * (control - rows.controls)
        log_ratio = (moved * rows.noise).flatten(1).sum(1) / n
        divergence = control.flatten(1).square().sum(1) / (2 * n)
        weight = at_step(self.kl.weights(problem), k, divergence)
        share = at_step(self._shares(problem), k, divergence)
        return share * self.clipped(rows, log_ratio) + weight * divergence

    def effective_beta(self, problem: ControlProblem, spread: float) -> Float[Tensor, " steps"]:
        gained = _deviations(problem) * self._shares(problem)
        return super().effective_beta(problem, spread) / gained

    def _shares(self, problem: ControlProblem) -> Float[Tensor, " steps"]:
        """What the loss of the rewards is multiplied by."""
        if not self.divided_by_dt:
            return torch.ones(problem.steps, dtype=torch.float64)
        return 1 / self.kl.dt(problem)


def _deviations(problem: ControlProblem) -> Float[Tensor, " steps"]:
    diffusion = problem.reference.diffusion
    if not isinstance(diffusion, ScalarDiffusion):
        raise InvalidProblem(
            f"the noise is a {type(diffusion).__name__}; GRPO-Guard needs one standard deviation"
            " per step: give a ScalarDiffusion, or use Flow-GRPO."
        )
    return diffusion.sigma
