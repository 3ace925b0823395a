r"""The cross-entropy loss :math:`KL(P^* \| P^v)` (arXiv 2312.02027), estimated on paths of any
policy u.

.. math:: KL(P^* \| P^v) = E_{P^u}\Big[ \frac{dP^*}{dP^u} \sum_k |v_k - z_k|^2/2 \Big] +
    \text{constant}, \qquad z_k = u_k + \xi_k ,

exactly for the chain: the targets are the controlled noises, weighted by :math:`dP^*/dP^u`. The
minimiser is the mean controlled noise of the optimal path measure,
:math:`v_k = B_k^\top \nabla \log E\, e^{V^\circ_{k+1}(m_k + B_k \xi)/\beta}` with
:math:`V^\circ_k = \beta \log E[e^{(r - \sum_{j \ge k} f_j)/\beta} | x_k]`. That is the optimal
control of the chain in the linear-quadratic case, and otherwise differs from it by a relative
O(dt), because kernels of the optimal measure also change their covariance (derived here). A weight
that depends on the past multiplies numerator and denominator alike, so random starts are allowed.

Noise level: the spread of a target is 1 whatever :math:`B_k`, and its mean of order :math:`B_k`.
"""

from __future__ import annotations

from typing import ClassVar

from socft.costates.base import Cost
from socft.estimators.base import BatchEstimator, Labels, MatchingEstimator
from socft.estimators.estimand import ApproximateResidual, Estimand, ResidualZero
from socft.path import Path
from socft.path_measure import controlled_noises, optimal_weights
from socft.policy import Policy
from socft.problem import ControlProblem


class CrossEntropy(BatchEstimator, MatchingEstimator):
    """Zero at the control of least cross-entropy, on paths of any policy; no derivatives.

    Weights are normalised over the batch, which biases a batch of N by O(1/N);
    `socft.path_measure.effective_size` of the labels' weights tells how many paths they are worth.

    Raises:
        InvalidProblem: beta is not constant, there is one path only, a weight is not finite.

    >>> print(CrossEntropy().estimates.kind)
    fixed-point residual up to O(dt)
    """

    estimates: ClassVar[Estimand] = ApproximateResidual(
        ResidualZero.LEAST_CROSS_ENTROPY, any_noise=True
    )
    source: ClassVar[str] = "arXiv 2312.02027; Nusken and Richter, arXiv 2005.05409"

    @property
    def cost(self) -> Cost:
        return Cost()

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        weights = optimal_weights(problem, path, "cross entropy")
        return Labels(path.states[:-1], controlled_noises(path), weights.expand(problem.steps, -1))
