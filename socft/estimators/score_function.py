r"""The score-function (REINFORCE) gradient, with and without the KL of later steps.

As :math:`\nabla_\theta \log p(x_{k+1} | x_k) = (\nabla_\theta v_k)^\top \xi_k` for the kernels of
the chain,

.. math:: \nabla_\theta J = E \sum_k (\nabla_\theta v_k)^\top \big( (A_k - b_k)\, \xi_k - \beta_k
   v_k \big), \qquad A_k = r(x_T) - \sum_{j > k} \big( f_j(x_j) + \beta_j |v_j|^2/2 \big),

for every baseline :math:`b_k` that is independent of :math:`\xi_k` given :math:`x_k` (derived here
for the chain, from Williams 1992). It is the gradient of the matching loss with the targets
:math:`(A_k - b_k)\, \xi_k / \beta_k`: the KL of step k itself enters exactly.

Noise level: as :math:`B_k \to 0` the mean of a target falls like :math:`B_k` and its spread does
not, unless the baseline is the value of the deterministic step.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from socft.estimators.base import Labels, MatchingEstimator
from socft.estimators.baseline import (
    BaselineEstimator,
    Returns,
    returns_to_go,
)
from socft.estimators.estimand import Biased, Estimand, ObjectiveGradient
from socft.path import Path
from socft.path_measure import per_sample
from socft.policy import Policy
from socft.problem import ControlProblem


def score_labels(problem: ControlProblem, path: Path, advantages: Returns) -> Labels:
    """Targets ``advantage_k xi_k / beta_k``."""
    noise = path.noise.steps.to(path.controls)
    return Labels(
        path.states[:-1],
        per_sample(advantages / problem.beta.to(advantages)[:, None], noise) * noise,
    )


@dataclasses.dataclass(frozen=True)
class ScoreFunction(BaselineEstimator, MatchingEstimator):
    """Unbiased for the objective's gradient with every baseline but `BatchMean`; no derivative of
    reward, reference or policy.

    >>> print(ScoreFunction().estimates.kind)
    objective gradient
    """

    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = "Williams 1992; arXiv 2412.18164v4, equation 77; KL-to-go derived here"

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        returns = returns_to_go(problem, path)
        return score_labels(problem, path, returns - self.baseline.levels(problem, path, returns))


@dataclasses.dataclass(frozen=True)
class ScoreFunctionWithoutKLToGo(BaselineEstimator, MatchingEstimator):
    """The same with the KL of later steps left out of the returns: not zero at the optimum.

    >>> print(ScoreFunctionWithoutKLToGo().estimates.kind)
    biased
    """

    estimates: ClassVar[Estimand] = Biased("the KL of later steps is left out of the returns")
    source: ClassVar[str] = "the policy gradient of arXiv 2305.16381"

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        returns = returns_to_go(problem, path, kl=False)
        return score_labels(problem, path, returns - self.baseline.levels(problem, path, returns))
