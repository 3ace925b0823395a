r"""Least-squares Monte Carlo for the forward backward-SDE, as costate fields (arXiv 2410.04615, the
method it compares with).

Along forward paths, backwards in k, each conditional expectation is a regression on the state:

* costates: :math:`\phi_T = \nabla r`, :math:`\phi_k = \text{regression of } \nabla m_k^\top
  \phi_{k+1}(x_{k+1}) - \nabla f_k` on :math:`x_k` (`LeanRecursion`; with `FullRecursion` the policy
  is differentiated too);
* values: :math:`V_T = r`,
  :math:`V_k = \text{regression of } V_{k+1}(x_{k+1}) - f_k - \beta_k |v_k|^2/2`, and
  :math:`\phi_k = \nabla V_k`.

The first is TD(0) for costates; both converge to the chain's own costate as the samples and the
features grow. Per step and path the costate form takes one derivative of the reference (with
`FullRecursion` one of the policy too), the value form no evaluation; both keep one state or number
per path, and the fits of all steps.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from socft.costates.adjoint import Adjoint, LeanRecursion
from socft.costates.fields import CostateField, with_terminal
from socft.costates.regression import GradientField, StepwiseField
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.regression.functions import Regression


@dataclasses.dataclass(frozen=True)
class LeastSquaresCostate:
    """The costate form.

    Attributes:
        regression: one fit per step.
        adjoint: whether the policy is differentiated.
    """

    source: ClassVar[str] = "arXiv 2410.04615"

    regression: Regression
    adjoint: Adjoint = dataclasses.field(default_factory=LeanRecursion)

    @torch.no_grad()
    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> CostateField:
        """The costate field of the policy, k = 0..T."""
        after, fits = problem.reward.gradient(path.final), []
        for k in reversed(range(problem.steps)):
            x = path.states[k]
            fits.append(
                self.regression.fit(
                    x, self.adjoint.vjp(problem, policy, k, x, after), fits[-1] if fits else None
                )
            )
            after = fits[-1](x)
        return with_terminal(problem, StepwiseField(fits[::-1]))


@dataclasses.dataclass(frozen=True)
class LeastSquaresValue:
    """The value form; its costate is that of the policy, differentiated as any value is.

    Attributes:
        regression: one fit per step.
    """

    source: ClassVar[str] = "arXiv 2410.04615"

    regression: Regression

    @torch.no_grad()
    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> CostateField:
        """The gradient of the fitted value function of the policy, k = 0..T."""
        after, fits = problem.reward(path.final), []
        for k in reversed(range(problem.steps)):
            x, v = path.states[k], path.controls[k]
            target = (
                after
                - problem.cost(k, x)
                - problem.beta[k].to(x) * v.flatten(1).square().sum(1) / 2
            )
            fits.append(self.regression.fit(x, target.unsqueeze(1), fits[-1] if fits else None))
            after = fits[-1](x)[:, 0]
        return with_terminal(problem, GradientField(StepwiseField(fits[::-1])))
