r"""Malliavin weights (arXiv 2504.03461): the full adjoint without the gradient of the reward.

Derivatives of an expectation are expectations of values times weights, the Bismut-Elworthy-Li
formula: for :math:`x_{j+1} = M_j(x_j) + B_j \xi_j` and every :math:`j \ge k`

.. math:: E[\nabla V_{k+1}(x_{k+1}) \mid x_k] = E\Big[ (A_j - b_j)
    \Big(\frac{\partial x_{j+1}}{\partial x_{k+1}}\Big)^\top B_j^{-\top} \xi_j
    - \sum_{k < i \le j} \Big(\frac{\partial x_i}{\partial x_{k+1}}\Big)^\top \nabla c_i
    \,\Big|\, x_k \Big],

with the return :math:`A_j` after step j, a baseline :math:`b_j`, and the running and KL costs
:math:`c_i` of the steps before, which are differentiated: they are known. The mean over
j = k, ..., T - 1 is one backward recursion,

.. math:: a_{k+1} = \frac{(A_k - b_k)\, B_k^{-\top} \xi_k}{T - k} + \frac{T - k - 1}{T - k}
    \Big( (\nabla M_{k+1})^\top a_{k+2} - \nabla c_{k+1} \Big),

with one vjp per step (derived here). j = k alone is the score function; the mean over later noises
has less variance, the more steps there are.

Noise level: one weight is of order :math:`1/B_j`; their mean is of order one over the root of the
time that is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch

from socft.checks import InvalidProblem, require
from socft.costates.adjoint import FullRecursion
from socft.costates.base import Cost, CostateStep
from socft.estimators.base import LabelRows, Labels, MatchingEstimator, matching_labels
from socft.estimators.baseline import BaselineEstimator
from socft.estimators.estimand import Estimand, ObjectiveGradient
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import MatrixDiffusion, ScalarDiffusion


@dataclasses.dataclass(frozen=True)
class MalliavinAdjoint(BaselineEstimator[LabelRows], MatchingEstimator[LabelRows]):
    """Unbiased for the objective's gradient where the noise reaches every direction and does not
    depend on the state; no derivative of the reward.

    >>> print(MalliavinAdjoint().estimates.kind)
    objective gradient
    """

    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = "arXiv 2504.03461; the recursion and the KL derived here"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.baseline.unbiased,
            f"the baseline is {self.baseline!r}, which is biased; give an unbiased one, such as"
            " LeaveOneOut().",
        )

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1, policy_derivatives=1, memory="T")

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[LabelRows]:
        require_noise_everywhere(problem)
        return matching_labels(problem, path, self._backward_pass(problem, policy, path))

    def _backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        """Costates from k = T - 1 down to 0; there is none at the end."""
        own = IntegrationByParts(self.baseline).costates(problem, path)
        pulled = torch.zeros_like(path.final)
        for k in reversed(range(problem.steps)):
            share = 1 / (problem.steps - k)
            costate = share * own[k] + (1 - share) * pulled
            pulled = FullRecursion().vjp(problem, policy, k, path.states[k], costate)
            yield CostateStep(k, path.states[k], pulled, costate)


def require_noise_everywhere(problem: ControlProblem) -> None:
    """Refuse noise that depends on the state, or does not reach all of its directions."""
    diffusion = problem.reference.diffusion
    if not isinstance(diffusion, ScalarDiffusion | MatrixDiffusion):
        raise InvalidProblem(
            f"the noise is a {type(diffusion).__name__}; Malliavin weights are those of noise that"
            " does not depend on the state: give a ScalarDiffusion or a MatrixDiffusion."
        )
    if isinstance(diffusion, MatrixDiffusion):
        (n,) = problem.reference.dims
        rank = int(torch.linalg.matrix_rank(diffusion.matrices).min())
        require(
            rank == n,
            f"the noise reaches {rank} of {n} directions; Malliavin weights need all of them: use"
            " an estimator that differentiates the reward.",
        )
