r"""DDPO with importance sampling (Black et al., arXiv 2305.13301), and the labels of estimators
that clip a likelihood ratio.

On a path of the control u, step k has under the control v the likelihood ratio

.. math:: \rho_k = \frac{p^v(x_{k+1} | x_k)}{p^u(x_{k+1} | x_k)}
    = \exp\big( (v_k - u_k) \cdot \xi_k - |v_k - u_k|^2/2 \big),

exactly 1 before an update. DDPO maximises
:math:`E \sum_k \min(\rho_k A, \mathrm{clip}(\rho_k, 1 \pm \epsilon) A)` with normalised rewards
:math:`A` in the place of returns: no KL, and a gradient divided by the spread of the rewards. A KL
in the reward takes :math:`r - \sum_k f_k - \sum_k \beta_k (v_k \cdot \xi_k + |v_k|^2/2)`, with the
log-ratio of the kernels instead of its mean :math:`|v_k|^2/2`, because then the score function
alone has the gradient of the KL too: :math:`E[\xi_k (v_k \cdot \xi_k)] = v_k` (derived here).
Centred, not divided, this is the objective's gradient times 1 - 1/N.

Noise level: as for the score function; the clip binds once :math:`|v - u|` exceeds about epsilon,
whatever :math:`B_k`.
"""

from __future__ import annotations

import dataclasses
from types import NoneType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from socft.checks import keep, positive, require, require_kinds
from socft.costates.base import Cost
from socft.estimators.base import BatchEstimator, LabelRows, Labels
from socft.estimators.baseline import returns_to_go
from socft.estimators.estimand import Biased, Estimand
from socft.estimators.score_function import score_labels
from socft.finite import require_finite_paths
from socft.path import Path
from socft.path_measure import group_mean, log_likelihoods
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Noises, Step
from socft.reward import PerSample

EQUAL = 8.0
"""Roundings, relative to the size of the rewards, up to which the rewards of a group are equal."""

SCALED = Biased(
    "the objective's gradient over the spread of the returns, up to O(1/N)", zero_at_optimum=True
)
CENTRED = Biased("the objective's gradient times 1 - 1/N", zero_at_optimum=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatioRows(LabelRows):
    """Rows of `RatioLabels`."""

    controls: Float[Tensor, "rows *noise_dims"]
    noise: Float[Tensor, "rows *noise_dims"]
    advantages: Float[Tensor, " rows"]

    def log_ratio(self, control: Noises) -> PerSample:
        """``log rho`` of each row under a control, zero for the one that made it."""
        change = control - self.controls
        return (change * (self.noise - change / 2)).flatten(1).sum(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatioLabels(Labels[RatioRows]):
    """Labels with what a likelihood ratio needs; the targets are those of the same estimator before
    an update.

    Attributes:
        controls: controls of the policy that made the paths, shape (T, batch, *noise_dims).
        noise: the noise of each step, shape (T, batch, *noise_dims).
        advantages: shape (T, batch).
    """

    row_type: ClassVar[type[Any]] = RatioRows

    controls: Float[Tensor, "steps batch *noise_dims"]
    noise: Float[Tensor, "steps batch *noise_dims"]
    advantages: Float[Tensor, "steps batch"]


def ratio_labels(
    problem: ControlProblem, path: Path, advantages: Float[Tensor, "steps batch"]
) -> RatioLabels:
    """Labels of a path with given advantages."""
    targets = score_labels(problem, path, advantages).targets
    noise = path.noise.steps.to(path.controls)
    return RatioLabels(
        path.states[:-1], targets, controls=path.controls, noise=noise, advantages=advantages
    )


def centred_rewards(
    rewards: PerSample, groups: Int[Tensor, " batch"] | None, divide: bool
) -> PerSample:
    """Rewards less the mean of their group, over its standard deviation where asked.

    A group whose rewards are equal up to rounding says nothing of what is better: zero.

    Raises:
        InvalidProblem: a group has one path only.
    """
    mean, count = group_mean(rewards, groups)
    require(
        bool((count >= 2).all()),
        "a group has 1 path; rewards are compared within a group: give at least 2 in each.",
    )
    centred = rewards - mean
    centred = centred - group_mean(centred, groups)[0]  # what the first mean lost to rounding
    size = group_mean(rewards.square(), groups)[0].sqrt()
    spread = group_mean(centred.square(), groups)[0].sqrt()
    differ = spread > EQUAL * torch.finfo(rewards.dtype).eps * size
    centred = torch.where(differ, centred, 0.0)
    return centred / torch.where(differ, spread, 1.0) if divide else centred


@dataclasses.dataclass(frozen=True)
class DDPO(BatchEstimator[RatioRows]):
    """Clipped likelihood ratios of normalised rewards, without a KL term; no derivative of reward
    or reference.

    Attributes:
        clip: epsilon.
        groups: index of each path's group, such as its prompt, in which rewards are centred and
            divided by their standard deviation, shape (batch,); one group by default.
        divide: whether to divide by the standard deviation.
        kl_in_reward: whether the reward includes the KL of the path.
        averaged: whether the log-ratio is averaged over the entries of the noise instead of summed,
            as in the published code.

    Raises:
        InvalidProblem: clip is not positive, a group has one path only, or a reward is not finite.

    >>> DDPO(clip=0.01)
    DDPO(clip=0.01, divide=True, kl_in_reward=False, averaged=False)
    """

    clip: float = 1e-4
    groups: Int[Tensor, " batch"] | None = None
    divide: bool = True
    kl_in_reward: bool = False
    averaged: bool = False
    estimates: ClassVar[Estimand] = Biased("no KL, and over the spread of the rewards")
    source: ClassVar[str] = "arXiv 2305.13301 and published code; KL in the reward derived here"
    label_type: ClassVar[type[Labels[Any]]] = RatioLabels

    def __post_init__(self) -> None:
        keep(self, clip=positive(self.clip, "clip"))
        require_kinds(
            self, groups=(Tensor, NoneType), divide=bool, kl_in_reward=bool, averaged=bool
        )
        if self.kl_in_reward:
            object.__setattr__(self, "estimates", SCALED if self.divide else CENTRED)

    @property
    def cost(self) -> Cost:
        return Cost()

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> RatioLabels:
        total = returns_to_go(problem, path, kl=False)[0] - problem.cost(0, path.states[0])
        if self.kl_in_reward:
            total = total - (
                problem.beta.to(total)[:, None] * log_likelihoods(path.controls, path)
            ).sum(0)
        require_finite_paths(problem, path, total, "the rewards that DDPO compares")
        advantages = centred_rewards(total, self.groups, self.divide)
        return ratio_labels(problem, path, advantages.expand(problem.steps, -1))

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: RatioRows) -> PerSample:
        log_ratio = rows.log_ratio(policy(k, rows.states))
        ratio = (log_ratio / rows.noise[0].numel() if self.averaged else log_ratio).exp()
        return -torch.minimum(
            ratio * rows.advantages, ratio.clamp(1 - self.clip, 1 + self.clip) * rows.advantages
        )
