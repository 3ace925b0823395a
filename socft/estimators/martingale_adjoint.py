r"""Adjoint matching with martingale-corrected costates: the same conditional means, with less noise
as the policy improves.

.. math:: a_T = \nabla r(x_T), \qquad \bar a_k = a_{k+1} - dM_k, \qquad a_k = \nabla m_k^\top \bar
   a_k - \nabla f_k, \qquad \text{target}_k = B_k^\top \bar a_k / \beta_k,

with a martingale increment :math:`dM_k` of `socft.costates.martingale`. For every costate field
that is fixed independently of the path's noise, conditional means given :math:`x_k` are those of
the uncorrected costates, so `MartingaleAdjoint` estimates what adjoint matching does and
`FullMartingaleAdjoint`, with the policy differentiated, what the full adjoint does. If the field is
that conditional mean itself, the exact increment leaves targets that are functions of :math:`x_k`
alone, at any step size; so does the first-order one in the linear-quadratic problem.

Martingale control variates are known (see `socft.costates.martingale`); for the recursions of
discrete lean and full costates, and with increments of other orders, derived here.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from socft.checks import require_kinds
from socft.costates.adjoint import Adjoint, FullRecursion, LeanRecursion, backward_pass
from socft.costates.base import Cost, CostateStep
from socft.costates.fields import Correction, total
from socft.estimators.base import CostateEstimator
from socft.estimators.estimand import Estimand, FixedPointResidual, ObjectiveGradient
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem


@dataclasses.dataclass(frozen=True)
class CorrectedAdjoint(CostateEstimator, abc.ABC):
    """Costates that pull back ``a_{k+1} - dM_k``.

    Attributes:
        correction: the increment and where its field comes from.
    """

    correction: Correction

    def __post_init__(self) -> None:
        require_kinds(self, correction=Correction)

    @property
    @abc.abstractmethod
    def adjoint(self) -> Adjoint:
        """What is corrected."""

    @property
    def cost(self) -> Cost:
        return total(self.adjoint.cost, self.correction.cost)

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        def corrected(k: int, after: Tensor) -> Tensor:
            return after - self.correction.increment(problem, policy, path, k)

        return backward_pass(self.adjoint, problem, policy, path, corrected)


@dataclasses.dataclass(frozen=True)
class MartingaleAdjoint(CorrectedAdjoint):
    """Zero in expectation at the optimum, as `AdjointMatching`.

    Attributes:
        correction: the increment and where its field comes from, such as
            ``FirstOrderCorrection(PolicyCostate())``.

    >>> from socft.costates.fields import PolicyCostate
    >>> from socft.costates.martingale import AntitheticCorrection
    >>> MartingaleAdjoint(AntitheticCorrection(PolicyCostate()))
    MartingaleAdjoint(
        correction=AntitheticCorrection(source=PolicyCostate(exact=True), last=True),
    )
    """

    estimates: ClassVar[Estimand] = FixedPointResidual()
    source: ClassVar[str] = (
        "Newton 1994; arXiv 1510.03141; arXiv 2409.08861, section 5; here for lean costates"
    )

    @property
    def adjoint(self) -> Adjoint:
        return LeanRecursion()


@dataclasses.dataclass(frozen=True)
class FullMartingaleAdjoint(CorrectedAdjoint):
    """Unbiased for the objective's gradient, as `FullAdjoint`.

    Attributes:
        correction: the increment and where its field comes from.

    >>> from socft.costates.fields import PolicyCostate
    >>> from socft.costates.martingale import AntitheticCorrection
    >>> print(FullMartingaleAdjoint(AntitheticCorrection(PolicyCostate())).estimates.kind)
    objective gradient
    """

    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = (
        "Newton 1994; arXiv 1510.03141; arXiv 2412.18164v4, equation 77; here for full costates"
    )

    @property
    def adjoint(self) -> Adjoint:
        return FullRecursion()
