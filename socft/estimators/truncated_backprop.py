r"""Back-propagation of the reward through some of the last steps: DRaFT-K and AlignProp.

With the path cut off at step T - K, automatic differentiation of the return gives step k >= T - K
the matching targets :math:`B_k^\top a_{k+1}/\beta_k` with the full adjoint :math:`a`, and earlier
steps nothing. What it gives is exact: for parameters of their own per step, the objective's
gradient with the first T - K blocks left out; for shared parameters, part of the sum (derived
here). K = T is the full adjoint. Published versions have no KL: their targets are
:math:`v_k + B_k^\top a_{k+1}/\beta_k` with the adjoint of the reward alone.

Noise level: targets and their spread both shrink with :math:`B_k`, as for the adjoints.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from socft.checks import keep, require, require_kinds, whole
from socft.costates.base import Cost
from socft.estimators.base import Labels, MatchingEstimator
from socft.estimators.estimand import Biased, Estimand, LastStepsGradient
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem

RANDOM_STEPS = Biased(
    "the objective's gradient of step k as often as K > T - 1 - k", zero_at_optimum=True
)
WITHOUT_KL = Biased("the gradient of the reward alone in the last K steps, none in earlier ones")


@dataclasses.dataclass(frozen=True)
class TruncatedBackprop(MatchingEstimator):
    """DRaFT-K, DRaFT-1 by default. The cost is that of each of the last K steps; the others
    cost nothing.

    Attributes:
        last: K.
        kl: whether the return includes the KL of the last K steps.

    >>> print(TruncatedBackprop(last=1).estimates.kind)
    biased
    """

    last: int = 1
    kl: bool = True
    estimates: ClassVar[Estimand] = LastStepsGradient()
    source: ClassVar[str] = "DRaFT, arXiv 2309.17400"

    def __post_init__(self) -> None:
        keep(self, last=whole(self.last, "last"))
        require_kinds(self, kl=bool)
        _without_kl(self)

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1, policy_derivatives=1)

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        require(
            1 <= self.last <= problem.steps,
            f"last = {self.last}; give 1 to {problem.steps}, the number of steps.",
        )
        return _truncated(problem, policy, path, self.last, self.kl)


@dataclasses.dataclass(frozen=True)
class RandomTruncation(MatchingEstimator):
    """AlignProp: K drawn anew for every batch, uniformly from 1 to T; the cost is that of each of
    the last K steps.

    Attributes:
        generator: draws K, on the CPU.
        kl: whether the return includes the KL of the last K steps.

    >>> print(RandomTruncation(torch.Generator().manual_seed(0)).estimates.kind)
    biased
    """

    generator: torch.Generator
    kl: bool = True
    estimates: ClassVar[Estimand] = RANDOM_STEPS
    source: ClassVar[str] = "AlignProp, arXiv 2310.03739"

    def __post_init__(self) -> None:
        require_kinds(self, generator=torch.Generator, kl=bool)
        _without_kl(self)

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1, policy_derivatives=1)

    @property
    def couples_batch(self) -> bool:
        """One generator serves all paths in turn."""
        return True

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        last = int(torch.randint(1, problem.steps + 1, (), generator=self.generator))
        return _truncated(problem, policy, path, last, self.kl)


def _without_kl(estimator: TruncatedBackprop | RandomTruncation) -> None:
    """State what an estimator estimates that does not pay the KL."""
    if not estimator.kl:
        object.__setattr__(estimator, "estimates", WITHOUT_KL)


def _truncated(problem: ControlProblem, policy: Policy, path: Path, last: int, kl: bool) -> Labels:
    """Targets of the last steps; the others have weight zero."""
    first, beta, diffusion = (
        problem.steps - last,
        problem.beta.to(path.states),
        problem.reference.diffusion,
    )
    targets, weights = (
        torch.zeros_like(path.controls),
        path.states.new_zeros(path.controls.shape[:2]),
    )
    costate = problem.reward.gradient(path.final)
    for k in reversed(range(first, problem.steps)):
        x = path.states[k]
        pushed = diffusion.transpose(k, x, costate) / beta[k]
        targets[k], weights[k] = pushed if kl else pushed + path.controls[k], 1
        if k > first:
            costate = _pull_back(problem, policy, path, k, costate, kl)
    return Labels(path.states[:-1], targets, weights)


def _pull_back(
    problem: ControlProblem, policy: Policy, path: Path, k: int, costate: Tensor, kl: bool
) -> Tensor:
    """One step of the full adjoint, with or without the price of the control."""
    with torch.enable_grad():
        x = path.states[k].detach().requires_grad_(True)
        v = policy(k, x)
        scalar = (problem.reference.step(k, x, v + path.noise.steps[k].to(x)) * costate).sum()
        scalar = scalar - problem.cost(k, x).sum()
        if kl:
            scalar = scalar - problem.beta[k].to(x) * v.square().sum() / 2
        return torch.autograd.grad(scalar, x)[0]
