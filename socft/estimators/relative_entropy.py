r"""The relative-entropy loss :math:`KL(P^v \| P^*)` (arXiv 2312.02027), which is the objective.

With the optimal path measure :math:`dP^* = \exp((r - \sum_k f_k - V_0)/\beta)\, dP`,
:math:`V_0 = V_0(x_0)` and the same start,

.. math:: \beta\, KL(P^v \| P^*) = E V_0(X_0) - J(v)

holds for the chain at any step size (derived here). Differentiated path by path its gradient is the
simulator's derivative, the full adjoint: this class labels with that, and differs from
`FullAdjoint` in refusing a beta that no path measure belongs to. The value of the loss is the mean
of `socft.path_measure.work_functional` plus a constant.

Noise level: as for the full adjoint; targets and their spread both shrink with :math:`B_k`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from socft.costates.base import CostateStep
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem


class RelativeEntropy(FullAdjoint):
    """Unbiased for the objective's gradient; on paths of the policy itself only.

    Raises:
        InvalidProblem: beta is not constant.

    >>> print(RelativeEntropy().estimates.kind)
    objective gradient
    """

    source: ClassVar[str] = "arXiv 2312.02027; Nusken and Richter, arXiv 2005.05409"

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        problem.constant_beta("relative entropy")
        return super().backward_pass(problem, policy, path)
