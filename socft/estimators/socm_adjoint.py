r"""SOCM-adjoint (arXiv 2312.02027): lean adjoint targets, weighted to the optimal path measure.

The targets of adjoint matching, :math:`B_k^\top a_{k+1}/\beta` with the lean costate of
`socft.costates.adjoint.lean_adjoint`, carry the weight :math:`dP^*/dP^u` on paths of any policy u.
They are those of `SOCM` for reparametrisation matrices that follow the path,
:math:`M_k(j+1) = \nabla m_j M_k(j)`, for which no noise term is left; so their weighted mean is
exactly the mean controlled noise of the optimal path measure, the minimiser of `CrossEntropy`
(derived here for the chain). With weights of one it is adjoint matching, whose fixed point is the
optimal control of the chain exactly, but on its own paths only.

Noise level: as for adjoint matching; targets and their spread both shrink with :math:`B_k`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from socft.costates.adjoint import LeanRecursion, backward_pass
from socft.costates.base import Cost
from socft.estimators.base import BatchEstimator, Labels, MatchingEstimator, matching_labels
from socft.estimators.estimand import ApproximateResidual, Estimand, ResidualZero
from socft.path import Path
from socft.path_measure import optimal_weights
from socft.policy import Policy
from socft.problem import ControlProblem


class SOCMAdjoint(BatchEstimator, MatchingEstimator):
    """Zero at the control of least cross-entropy, on paths of any policy; one vjp of the reference
    per step.

    Weights are normalised over the batch, which biases a batch of N by O(1/N).

    Raises:
        InvalidProblem: beta is not constant, there is one path only, a weight is not finite.

    >>> print(SOCMAdjoint().estimates.kind)
    fixed-point residual up to O(dt)
    """

    estimates: ClassVar[Estimand] = ApproximateResidual(ResidualZero.LEAST_CROSS_ENTROPY)
    source: ClassVar[str] = "arXiv 2312.02027, SOCM-adjoint"

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1)

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        weights = optimal_weights(problem, path, "SOCM-adjoint")
        labels = matching_labels(
            problem, path, backward_pass(LeanRecursion(), problem, policy, path)
        )
        return dataclasses.replace(labels, weights=weights.expand(problem.steps, -1))
