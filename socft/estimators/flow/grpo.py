r"""What the methods of the flow-GRPO family share: rewards of a group compared with each other,
likelihood ratios of their steps that are clipped, and a KL term at the states of the paths.

Advantages are :math:`A = (r - \bar r)/(s + \epsilon)` with the mean :math:`\bar r` of the sample's
group, itself included, and a standard deviation s. Centring by a mean that includes the sample
multiplies a gradient by 1 - 1/N. Dividing by s makes it blind to the scale of the reward: the KL
weight that it leaves, `effective_beta`, is proportional to s, which falls as the model
concentrates. A limit on the size of A replaces the reward by a clipped one (derived here).
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from types import NoneType
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from socft.checks import (
    Numbers,
    at_least_zero,
    keep,
    number,
    per_step,
    positive,
    require_kinds,
    require_positive,
)
from socft.costates.base import Cost
from socft.estimators.base import BatchEstimator, Labels
from socft.estimators.baseline import returns_to_go
from socft.estimators.ddpo import RatioLabels, RatioRows, centred_rewards, ratio_labels
from socft.finite import require_finite_paths
from socft.flow import FlowReference
from socft.path import Path
from socft.path_measure import group_mean
from socft.policy import Policy
from socft.problem import ControlProblem, require_reference
from socft.readable import Readable
from socft.reward import PerSample


class Spread(enum.Enum):
    """Whose standard deviation rewards are divided by.

    >>> GroupAdvantages(spread=Spread.GROUP).spread.value
    'the paths of the group'
    """

    BATCH = "all paths"
    GROUP = "the paths of the group"
    NONE = "nobody's"


@dataclasses.dataclass(frozen=True)
class GroupAdvantages(Readable):
    """Rewards compared within groups.

    Attributes:
        groups: index of each path's group, such as its prompt, shape (batch,); one by default.
        spread: whose standard deviation to divide by.
        floor: added to it.
        unbiased: whether it is that of N - 1 degrees of freedom.
        limit: the largest size of an advantage; None where there is none.
        leave_one_out: whether the mean is that of the other paths of the group.

    Raises:
        InvalidProblem: floor is negative or limit is not positive.

    >>> advantages = GroupAdvantages(spread=Spread.NONE, leave_one_out=True)
    >>> advantages.of(torch.tensor([1.0, 2.0, 6.0]))
    tensor([-3.0000, -1.5000,  4.5000])
    """

    groups: Int[Tensor, " batch"] | None = None
    spread: Spread = Spread.BATCH
    floor: float = 1e-4
    unbiased: bool = False
    limit: float | None = 5.0
    leave_one_out: bool = False

    def __post_init__(self) -> None:
        require_kinds(
            self,
            groups=(Tensor, NoneType),
            spread=Spread,
            unbiased=bool,
            leave_one_out=bool,
        )
        limit = None if self.limit is None else positive(self.limit, "limit")
        keep(self, floor=at_least_zero(self.floor, "floor"), limit=limit)

    def of(self, rewards: PerSample) -> PerSample:
        """The advantage of each path.

        Raises:
            InvalidProblem: a group has one path only.
        """
        found = centred_rewards(rewards, self.groups, divide=False)
        if self.leave_one_out:
            count = group_mean(rewards, self.groups)[1]
            found = found * count / (count - 1)
        if self.spread is not Spread.NONE:
            found = found / (self._deviation(rewards) + self.floor)
        return found if self.limit is None else found.clamp(-self.limit, self.limit)

    def _deviation(self, rewards: PerSample) -> PerSample:
        groups = self.groups if self.spread is Spread.GROUP else None
        mean, count = group_mean(rewards, groups)
        squared = group_mean((rewards - mean).square(), groups)[0]
        return (squared * count / (count - 1) if self.unbiased else squared).sqrt()


COMPARED = GroupAdvantages(spread=Spread.NONE, limit=None, leave_one_out=True)
"""Rewards less the mean of the other paths: unbiased for the gradient of the mean reward."""


@dataclasses.dataclass(frozen=True)
class GroupRelative(BatchEstimator[RatioRows], abc.ABC):
    """A method that weighs clipped likelihood ratios with advantages.

    Attributes:
        advantages: how rewards are compared.
        clip: epsilon.
        averaged: whether log-likelihoods, and the KL, are averaged over the entries of the noise
            instead of summed.
    """

    advantages: GroupAdvantages = dataclasses.field(default_factory=GroupAdvantages)
    clip: float = 1e-4
    averaged: bool = True
    label_type: ClassVar[type[Labels[Any]]] = RatioLabels

    def __post_init__(self) -> None:
        keep(self, clip=positive(self.clip, "clip"))
        require_kinds(self, advantages=GroupAdvantages, averaged=bool)

    @property
    def cost(self) -> Cost:
        return Cost()

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> RatioLabels:
        total = returns_to_go(problem, path, kl=False)[0] - problem.cost(0, path.states[0])
        require_finite_paths(problem, path, total, "the rewards that are compared")
        return ratio_labels(problem, path, self.advantages.of(total).expand(problem.steps, -1))

    def entries(self, rows: RatioRows) -> int:
        """What sums over the entries of the noise are divided by."""
        return rows.noise[0].numel() if self.averaged else 1

    def clipped(self, rows: RatioRows, log_ratio: PerSample) -> PerSample:
        """``max(-A rho, -A clip(rho, 1 - epsilon, 1 + epsilon))``."""
        ratio = log_ratio.exp()
        kept = ratio.clamp(1 - self.clip, 1 + self.clip)
        return torch.maximum(-rows.advantages * ratio, -rows.advantages * kept)


@dataclasses.dataclass(frozen=True)
class KLTerm(Readable):
    """A weight of the KL of each step, at the states of the paths.

    The published term is :math:`|m - m_0|^2/(2\\varsigma^2)` with the diffusion :math:`\\varsigma`
    in the place of the kernel's standard deviation :math:`\\varsigma |dt|^{1/2}` of Flow-SDE: it is
    :math:`|dt_k|` times the KL of the step. Kernels of other samplers know no such diffusion; there
    take the variance with dt.

    Attributes:
        lam: the weight; zero leaves the term out.
        with_dt: whether the term is the KL of the step, the variance with dt.
        durations: ``|dt_k|`` of the steps, shape (T,), for a chain that is no `FlowReference`,
            which knows its own.

    >>> KLTerm(lam=0.1, with_dt=True)
    KLTerm(lam=0.1, with_dt=True)
    """

    lam: float = 0.04
    with_dt: bool = False
    durations: Numbers | None = None

    def __post_init__(self) -> None:
        require_kinds(self, with_dt=bool)
        keep(self, lam=at_least_zero(number(self.lam, "lam"), "lam"))

    def weights(self, problem: ControlProblem) -> Float[Tensor, " steps"]:
        """The weight of the KL of each step."""
        if self.lam == 0 or self.with_dt:
            return torch.full((problem.steps,), self.lam, dtype=torch.float64)
        return self.lam * self.dt(problem)

    def dt(self, problem: ControlProblem) -> Float[Tensor, " steps"]:
        """``|dt_k|``.

        Raises:
            InvalidProblem: nothing says how long a step takes.
        """
        if self.durations is not None:
            given = per_step(self.durations, problem.steps, "durations")
            require_positive(given, "durations", "every step takes a positive time.")
            return given
        remedy = (
            "its steps have no durations, which the published KL needs: give"
            " KLTerm(durations=...), or with_dt=True."
        )
        reference = require_reference(problem, FlowReference, remedy)
        return -reference.schedule.times.diff()
