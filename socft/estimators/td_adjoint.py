r"""TD(lambda) costates: a bootstrapped adjoint,

.. math:: \bar a_k = \lambda\, a_{k+1} + (1 - \lambda)\, \phi_{k+1}(x_{k+1}), \qquad a_k = \nabla
   m_k^\top \bar a_k - \nabla f_k, \qquad \text{target}_k = B_k^\top \bar a_k / \beta_k,

with a costate field :math:`\phi` and :math:`a_T = \phi_T = \nabla r`. This is the value-gradient
learning VGL(lambda) of Fairbank and Alonso (2012), TD(lambda) of Sutton (1988) for the gradient of
the value; lambda = 0 is dual heuristic programming, lambda = 1 back-propagation through the
pre-trained chain, adjoint matching. Biased where the field is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from socft.checks import keep, require_kinds, within
from socft.costates.adjoint import LeanRecursion, backward_pass
from socft.costates.base import Cost, CostateStep
from socft.costates.fields import CostateSource, total, with_terminal
from socft.estimators.base import CostateEstimator
from socft.estimators.estimand import Biased, Estimand, FixedPointResidual
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem


@dataclasses.dataclass(frozen=True)
class TDAdjoint(CostateEstimator):
    """Less noise for more bias as lambda falls.

    Attributes:
        field: where the costate field comes from.
        lam: lambda, in [0, 1].

    >>> from socft.costates.fields import PolicyCostate
    >>> TDAdjoint(PolicyCostate(), lam=0.5)
    TDAdjoint(field=PolicyCostate(exact=True), lam=0.5)
    """

    estimates: ClassVar[Estimand] = Biased("wrong where the costate field is, by 1 - lambda of it")
    source: ClassVar[str] = "Fairbank and Alonso 2012, VGL(lambda)"

    field: CostateSource
    lam: float

    def __post_init__(self) -> None:
        require_kinds(self, field=CostateSource)
        keep(self, lam=within(self.lam, "lam", 0, 1))
        if self.lam == 1:
            object.__setattr__(self, "estimates", FixedPointResidual())

    @property
    def cost(self) -> Cost:
        return total(LeanRecursion().cost, self.field.cost)

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        phi = with_terminal(problem, self.field.field(problem, policy))

        def next_costate(k: int, after: Tensor) -> Tensor:
            with torch.no_grad():
                return self.lam * after + (1 - self.lam) * phi(k + 1, path.states[k + 1]).detach()

        return backward_pass(LeanRecursion(), problem, policy, path, next_costate)
