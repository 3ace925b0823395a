r"""Reciprocal adjoint matching for linear references: costates at bridges between the ends of
controlled paths.

For :math:`m_k(x) = A_k x + b_k` and no running cost the lean costate depends on the end of the path
alone, :math:`a_k = (A_{T-1} \cdots A_k)^\top \nabla r(x_T)`. Pairs :math:`(x_0, x_T)` come from the
policy; the states in between are drawn from the reference's own conditional law, so one pair gives
labels at any number of states without simulation. Where the optimal path law is the reference's
with other ends, as in continuous time with constant beta (the reciprocal class), bridges are
distributed as the optimal paths are; a chain that moves means only leaves that class by O(dt), as
does its fixed point. After the reciprocal projection of Adjoint Sampling (Havens et al., arXiv
2504.11713); in this form derived here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require, require_kinds
from socft.costates.base import Cost, CostateStep
from socft.estimators.base import CostateEstimator
from socft.estimators.estimand import ApproximateResidual, Estimand, ResidualZero
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference
from socft.truth.quadratic import affine_of, diffusion_apply


@dataclasses.dataclass(frozen=True)
class ReciprocalAdjoint(CostateEstimator):
    """Labels at bridges of an affine reference; no evaluation of reference or policy.

    Attributes:
        generator: makes the noise of the bridges.

    >>> print(ReciprocalAdjoint(torch.Generator().manual_seed(0)).estimates.kind)
    fixed-point residual up to O(dt)
    """

    estimates: ClassVar[Estimand] = ApproximateResidual(ResidualZero.BRIDGES)
    source: ClassVar[str] = "arXiv 2504.11713; derived here"

    generator: torch.Generator

    def __post_init__(self) -> None:
        require_kinds(self, generator=torch.Generator)

    @property
    def cost(self) -> Cost:
        return Cost(memory="T")

    @property
    def couples_batch(self) -> bool:
        """One generator serves all paths in turn."""
        return True

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        reference = affine_of(problem)
        require(
            problem.running_cost is None,
            "there is a running cost; costates at bridges need a reward at the end alone.",
        )
        noise = torch.randn(
            problem.steps, *path.final.shape, generator=self.generator, dtype=path.states.dtype
        )
        states, value = (
            bridge(reference, path.states[0], path.final, noise),
            problem.reward.gradient(path.final),
        )
        yield CostateStep(problem.steps, path.final, value, None)
        for k in reversed(range(problem.steps)):
            next_costate, value = value, value @ reference.transition[k].to(path.final)
            yield CostateStep(k, states[k], value, next_costate)


def bridge(
    reference: AffineReference,
    first: Float[Tensor, "batch n"],
    last: Float[Tensor, "batch n"],
    noise: Float[Tensor, "steps batch n"],
) -> Float[Tensor, "steps_plus_1 batch n"]:
    """Paths of the uncontrolled chain from ``first`` to ``last``, drawn backwards with standard
    normal noise.

    Given :math:`X_0`, :math:`X_k \\sim N(\\mu_k, C_k)`, and :math:`X_k | X_{k+1}` has gain
    :math:`G = C_k A_k^T C_{k+1}^+`.
    """
    steps, (n,) = reference.steps, reference.dims
    A = reference.transition
    factors = diffusion_apply(
        reference.diffusion,
        torch.eye(*reference.noise_dims, dtype=torch.float64).expand(steps, -1, -1),
    )
    means, covariances = [first], [torch.zeros(n, n, dtype=torch.float64)]
    for k in range(steps):
        means.append(means[-1] @ A[k].mT.to(first) + reference.offset[k].to(first))
        covariances.append(A[k] @ covariances[-1] @ A[k].mT + factors[k] @ factors[k].mT)
    states = [last]
    for k in reversed(range(steps)):
        gain = covariances[k] @ A[k].mT @ torch.linalg.pinv(covariances[k + 1], hermitian=True)
        spread, basis = torch.linalg.eigh(covariances[k] - gain @ covariances[k + 1] @ gain.mT)
        root = basis * spread.clamp(min=0).sqrt()
        drawn = noise[k] @ root.mT.to(first)
        states.append(means[k] + (states[-1] - means[k + 1]) @ gain.mT.to(first) + drawn)
    return torch.stack(states[::-1])
