r"""DPOK (Fan et al., arXiv 2305.16381): policy gradient of the reward, and the gradient of every
step's KL at fixed states.

.. math:: E\Big[ -\sum_k (A_k - b_k(x_k))\, \nabla_\theta \log p(x_{k+1} | x_k)
   + \sum_k \beta_k \nabla_\theta |v_k(x_k)|^2/2 \Big], \qquad A_k = r(x_T) - \sum_{j>k} f_j(x_j) .

That a control changes the states, and so the KL, of later steps is left out: at the optimum the
expectation is not zero but
:math:`-E \sum_k (\nabla_\theta v_k)^\top \xi_k \sum_{j>k} \beta_j |v_j|^2/2` (derived here). On
later updates of the same paths :math:`\nabla \log p` becomes the gradient of the likelihood ratio,
clamped to :math:`1 \pm \epsilon` on both sides: unlike DDPO's, a ratio outside has no gradient even
where it would come back. The published code averages log-likelihoods over the n entries of the
noise; n times the ratio of these has the same gradient before an update, and its clamp is wider:
the log-likelihood of a step may change by about :math:`n\epsilon`. The paper's baseline is a
regression of the reward on (k, x_k): `RegressionBaseline` of a network, or `GivenBaseline`;
`LeaveOneOut` needs no fit where all paths have the same prompt.

Noise level: as for the score function.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from socft.checks import keep, positive, require_kinds
from socft.estimators.base import Labels
from socft.estimators.baseline import Baseline, BaselineEstimator, NoBaseline, returns_to_go
from socft.estimators.ddpo import RatioLabels, RatioRows, ratio_labels
from socft.estimators.estimand import Biased, Estimand
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Step, at_step
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class DPOK(BaselineEstimator[RatioRows]):
    """Not zero at the optimum; no derivative of reward or reference.

    Attributes:
        baseline: what to subtract from the reward.
        clip: epsilon; None leaves the ratio as it is.
        averaged: whether log-likelihoods are averaged over the entries of the noise instead of
            summed, as in the published code.

    Raises:
        InvalidProblem: clip is not positive.

    >>> DPOK(clip=None)
    DPOK(baseline=NoBaseline(), averaged=False)
    """

    baseline: Baseline = dataclasses.field(default_factory=NoBaseline)
    clip: float | None = 1e-4
    averaged: bool = False
    estimates: ClassVar[Estimand] = Biased(
        "the KL of later steps is taken at states that do not follow the control"
    )
    source: ClassVar[str] = "arXiv 2305.16381 and published code"
    label_type: ClassVar[type[Labels[Any]]] = RatioLabels

    def __post_init__(self) -> None:
        super().__post_init__()
        require_kinds(self, averaged=bool)
        keep(self, clip=None if self.clip is None else positive(self.clip, "clip"))

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> RatioLabels:
        returns = returns_to_go(problem, path, kl=False)
        return ratio_labels(problem, path, returns - self.baseline.levels(problem, path, returns))

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: RatioRows) -> PerSample:
        control = policy(k, rows.states)
        n = rows.noise[0].numel() if self.averaged else 1
        ratio = (rows.log_ratio(control) / n).exp()
        if self.clip is not None:
            ratio = ratio.clamp(1 - self.clip, 1 + self.clip)
        kl = control.flatten(1).square().sum(1) / 2
        return at_step(problem.beta, k, kl) * kl - n * ratio * rows.advantages
