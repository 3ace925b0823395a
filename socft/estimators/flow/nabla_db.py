r"""Residual nabla-DB (Liu et al., arXiv 2412.07775): gradients of a detailed balance.

A flow F balances the kernels where :math:`F_k(x)\, p(x'|x) = F_{k+1}(x')\, p_0(x'|x)` with
:math:`F_T = e^{r/\beta}`. Its gradients in x' and x, with the gradient of
:math:`\beta \log F` guessed as the look-ahead
:math:`\phi_k = \gamma_k \nabla_x r(\hat x_0(x)) + g_k(x)`, :math:`\phi_T = \nabla r`, are

.. math:: B_k^{-\top} v_k(x) = \phi_{k+1}(x')/\beta_k, \qquad
    -\beta_k \nabla_x \log \frac{p(x'|x)}{p_0(x'|x)} = \phi_k(x).

The published losses are their mean squares over the D entries, the first one trains the model, both
train the residual flow g; the published reward scale is :math:`1/\beta`. The left side of the
second is :math:`\nabla m_k^\top B_k^{-\top} \beta_k v_k - \beta_k \nabla v_k^\top \xi_k`, whose
mean is the costate that the control implies: with its conditional mean in the place of
:math:`\phi_k` the first is the optimality condition of the chain (derived here), though no Gaussian
kernels satisfy the balance itself. `reverse_costates` has its samples, to which
`LookAheadResidual` fits g. Without g, the simple form, the fixed point is guidance by the
look-ahead, the optimum only for Gaussians, linear rewards and :math:`\gamma = 1`.

The published regularisation towards the previous model is left out. Noise level: targets and their
spread shrink with :math:`B_k`.
"""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import ClassVar

import torch
from torch import Tensor

from socft.checks import require_kinds
from socft.costates.base import Cost, Costates
from socft.costates.directional import gradient_of
from socft.costates.fields import CostateSource, total
from socft.estimators.base import LabelRows, Labels, MatchingEstimator
from socft.estimators.estimand import Biased, EquationResidual, Estimand, FixedPointEquation
from socft.estimators.flow.look_ahead import LookAheadCostate, corrected
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Step
from socft.reward import PerSample

CORRECTED = Biased(
    "wrong where the residual flow is; with the exact one it vanishes at the optimum"
)


@dataclasses.dataclass(frozen=True)
class ResidualNablaDB(MatchingEstimator[LabelRows]):
    """The forward loss, for a `DenoisingReference`.

    Attributes:
        correction: where the residual flow comes from; None is the simple form.
        look_ahead: the guess.
        of_scores: whether the loss is the published one of scores; otherwise it is that of controls
            in units of the objective, as of other estimators.

    >>> print(ResidualNablaDB().estimates.equation.name)
    LOOK_AHEAD
    """

    correction: CostateSource | None = None
    look_ahead: LookAheadCostate = dataclasses.field(default_factory=LookAheadCostate)
    of_scores: bool = True
    estimates: ClassVar[Estimand] = EquationResidual(FixedPointEquation.LOOK_AHEAD)
    source: ClassVar[str] = "arXiv 2412.07775 and published code"

    def __post_init__(self) -> None:
        sources = {"correction": (CostateSource, NoneType), "look_ahead": LookAheadCostate}
        require_kinds(self, of_scores=bool, **sources)
        if self.correction is not None:
            object.__setattr__(self, "estimates", CORRECTED)

    @property
    def cost(self) -> Cost:
        sources = (self.look_ahead, self.correction)
        return total(*(each.cost for each in sources if each is not None))

    @property
    def couples_batch(self) -> bool:
        """A residual flow may be fitted anew for every batch."""
        return self.correction is not None

    @torch.no_grad()
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[LabelRows]:
        value = corrected(problem, policy, self.look_ahead, self.correction)
        diffusion, beta = problem.reference.diffusion, problem.beta.to(path.states)
        targets = torch.empty_like(path.controls)
        for k, (x, after) in enumerate(zip(path.states[:-1], path.states[1:], strict=True)):
            targets[k] = diffusion.transpose(k, x, value(k + 1, after).detach()) / beta[k]
        return Labels(path.states[:-1], targets)

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: LabelRows) -> PerSample:
        if not self.of_scores:
            return super().loss(problem, policy, k, rows)
        away = policy(k, rows.states) - rows.targets
        scores = problem.reference.diffusion.solve_transpose(k, rows.states, away)
        return scores.flatten(1).square().mean(1)


@torch.no_grad()
def reverse_costates(problem: ControlProblem, policy: Policy, path: Path) -> Costates:
    """``-beta_k grad_x log p(x' | x) / p_0(x' | x)`` along a path, and the gradient of the reward
    at its end.
    """
    values = torch.empty_like(path.states)
    values[-1] = problem.reward.gradient(path.final)
    for k, (x, after) in enumerate(zip(path.states[:-1], path.states[1:], strict=True)):

        def log_ratio(y: Tensor, k: int = k, after: Tensor = after) -> Tensor:
            v = policy(k, y)
            z = problem.reference.diffusion.whiten(k, y, after - problem.reference.mean(k, y))
            return (v * (z - v / 2)).sum()

        values[k] = -problem.beta[k].to(x) * gradient_of(log_ratio, x)
    return Costates(path.states, values)
