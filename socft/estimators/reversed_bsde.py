r"""Time-reversed backward stochastic differential equations (Mei and Taghvaei, arXiv 2603.20455v2;
arXiv 2410.04615).

States run backwards from :math:`X_T`, and costates or values ride on the same noise. For a chain
:math:`x' = \bar x_k(x) + B_k \xi`, :math:`\bar x_k = m_k + B_k v_k`, with constant :math:`B_k`,
drift :math:`\bar x_k(x) - x` and :math:`D_k = B_k B_k^\top`,

.. math:: X_k = X - (\bar x_k(X) - X) + K_k, \qquad K_k = D_k \nabla \log p_{k+1}(X) + B_k \xi'_k,
    \qquad X = X_{k+1},

with fresh noise :math:`\xi'`. From an approximate costate :math:`\phi`, all evaluated at X:

* costates: :math:`Y_k = \nabla m_k^\top Y_{k+1} - \nabla f_k + \nabla\phi_{k+1} K_k + \sum_j
  \nabla^2 \phi_{k+1}[B_k e_j, B_k
  e_j]` (`LeanRecursion`; with `FullRecursion` the policy is differentiated and :math:`\beta_k
  \nabla v_k^\top v_k` subtracted);
* values: :math:`Y_k = Y_{k+1} - f_k - \beta_k |v_k|^2 / 2 + \phi_{k+1} \cdot K_k + \mathrm{tr}(D_k
  \nabla \phi_{k+1})`.

The trace has coefficient 1: one half from Ito's formula and one from the equation that :math:`\phi`
solves. With exact field and score :math:`Y_k = \phi_k(X_k)` up to O(dt) in the mean, and for each
sample up to O(dt) where :math:`\phi` is affine in the costate form, up to its square root
elsewhere. A refit of :math:`\phi` on (X, Y) and a repetition is the paper's Picard iteration
(`socft.costates.regression.refine`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch

from socft.checks import require_kinds
from socft.costates.adjoint import Adjoint, LeanRecursion
from socft.costates.base import Cost, CostateStep
from socft.costates.directional import columns, derivative
from socft.costates.fields import CostateSource, differentiated, total, with_terminal
from socft.costates.increments import AnalyticIncrement, CostateIncrement
from socft.costates.regression import ValueSamples
from socft.costates.time_reversal import Reverser
from socft.estimators.base import CostateEstimator
from socft.estimators.estimand import Biased, Estimand
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem


@dataclasses.dataclass(frozen=True)
class ReversedBSDE(CostateEstimator):
    r"""The costate form: labels at reversed states, off by O(dt) with exact field and score.

    Attributes:
        field: where the costate field comes from.
        reverser: makes the reversed states.
        adjoint: whether the policy is differentiated.
        move: how the terms in :math:`\phi` are computed.
        last: whether there are any between T and T - 1, where :math:`\phi` is the gradient of the
            reward.

    >>> from socft.costates.fields import PolicyCostate
    >>> from socft.costates.marginal_score import AffineMarginals
    >>> from socft.costates.time_reversal import Reverser
    >>> print(ReversedBSDE(PolicyCostate(), Reverser(AffineMarginals())).estimates.kind)
    biased
    """

    estimates: ClassVar[Estimand] = Biased(
        "off by O(dt) with the exact score and costate field, and by what these are wrong"
    )
    source: ClassVar[str] = "arXiv 2603.20455v2"

    field: CostateSource
    reverser: Reverser
    adjoint: Adjoint = dataclasses.field(default_factory=LeanRecursion)
    move: CostateIncrement = dataclasses.field(default_factory=AnalyticIncrement)
    last: bool = True

    def __post_init__(self) -> None:
        require_kinds(
            self,
            field=CostateSource,
            reverser=Reverser,
            adjoint=Adjoint,
            move=CostateIncrement,
            last=bool,
        )

    @property
    def cost(self) -> Cost:
        """With noise of one dimension."""
        own = Cost(reference=1, policy=1, memory="T")
        return total(
            own, self.reverser.score.cost, self.adjoint.cost, self.move.cost(self.field.cost)
        )

    @property
    def couples_batch(self) -> bool:
        return self.reverser.couples_batch

    def smallest_batch(self, problem: ControlProblem) -> int:
        return self.reverser.score.smallest_batch(problem)

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        phi, back = (
            with_terminal(problem, self.field.field(problem, policy)),
            self.reverser.run(problem, policy, path),
        )
        value = problem.reward.gradient(path.final)
        yield CostateStep(problem.steps, back.states[-1], value, None)
        for k in reversed(range(problem.steps)):
            x, (step, _) = back.states[k + 1], back.place(k)
            moved = torch.zeros_like(x)
            if self.last or step < problem.steps:
                moved = self.move.along(problem, lambda y, step=step: phi(step, y), back, k)
            next_costate = value + moved
            value = self.adjoint.vjp(problem, policy, k, x, value) + moved
            yield CostateStep(k, back.states[k], value, next_costate)


@dataclasses.dataclass(frozen=True)
class ReversedValues:
    """The value form, for `Potential` regressions; its costates differentiate the policy, as any
    value does.
    """

    source: ClassVar[str] = "arXiv 2603.20455v2"

    field: CostateSource
    reverser: Reverser

    def __post_init__(self) -> None:
        require_kinds(self, field=CostateSource, reverser=Reverser)

    @property
    def cost(self) -> Cost:
        """With noise of one dimension; each further one takes one more derivative of the field."""
        field = total(self.field.cost, differentiated(self.field.cost))
        return total(Cost(reference=1, policy=1, memory="T"), self.reverser.score.cost, field)

    @torch.no_grad()
    def values(self, problem: ControlProblem, policy: Policy, path: Path) -> ValueSamples:
        """Samples of the policy's value at reversed states."""
        phi, back = (
            with_terminal(problem, self.field.field(problem, policy)),
            self.reverser.run(problem, policy, path),
        )
        values = [problem.reward(path.final)]
        for k in reversed(range(problem.steps)):
            x, (step, place) = back.states[k + 1], back.place(k)
            spread = sum(
                (derivative(lambda y, step=step: phi(step, y), place, u) * u).sum(1)
                for u in columns(problem.reference, k, place)
            )
            price = (
                problem.cost(k, x) + problem.beta[k].to(x) * back.controls[k].square().sum(1) / 2
            )
            values.append(
                values[-1]
                - price
                + (phi(step, place) * (back.drifts[k] + back.noise_increments[k])).sum(1)
                + spread
            )
        return ValueSamples(back.states, torch.stack(values[::-1]).detach())
