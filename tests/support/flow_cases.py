"""A Gaussian flow with a quadratic reward, as a flow and as an affine chain with the same kernels,
where equations of fixed points are solved exactly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from socft.density import Gaussian
from socft.flow import (
    FlowSchedule,
    affine_flow_reference,
    flow_reference,
    flow_sde,
    shift_times,
    uniform_times,
)
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.truth.affine_policy import evaluate_affine
from tests.support.tensors import F64


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianFlow:
    """Data N(0.4, variance), reward ``g x + w x^2 / 2``, in one dimension.

    Attributes:
        schedule: the kernels.
        slope: g.
        curvature: w.
        variance: of the data.
    """

    schedule: FlowSchedule
    slope: float = 1.0
    curvature: float = -0.3
    variance: float = 0.6

    @property
    def law(self) -> Gaussian:
        return Gaussian(0.4, self.variance)

    @property
    def reward(self) -> Quadratic:
        curvature = torch.tensor([[self.curvature]], dtype=F64)
        return Quadratic(curvature, torch.tensor([self.slope], dtype=F64))

    def problem(self, beta: float | Tensor = 1.0) -> ControlProblem:
        """On the flow."""
        return ControlProblem(flow_reference(self.law, self.schedule), self.reward, beta)

    def affine(self, beta: float | Tensor = 1.0) -> ControlProblem:
        """On the affine chain, which closed forms take."""
        return ControlProblem(affine_flow_reference(self.law, self.schedule), self.reward, beta)

    @functools.cached_property
    def kernels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes, offsets and standard deviations, shape (T,)."""
        chain = affine_flow_reference(self.law, self.schedule)
        return chain.transition[:, 0, 0], chain.offset[:, 0], self.schedule.sigma

    def without_kl_to_go(self, beta: Tensor) -> AffinePolicy:
        """``v_k = B_k E[W_{k+1}'] / beta_k`` with the mean reward W of the controlled chain."""
        P, q = torch.tensor(self.curvature, dtype=F64), torch.tensor(self.slope, dtype=F64)
        gain, offset = [], []
        for A, b, B, weight in list(zip(*self.kernels, beta, strict=True))[::-1]:
            scale = B / (weight - B.square() * P)
            gain.append(scale * P * A)
            offset.append(scale * (P * b + q))
            A, b = A + B * gain[-1], b + B * offset[-1]
            P, q = A.square() * P, A * (P * b + q)
        return as_policy(gain[::-1], offset[::-1])

    def spread(self, policy: AffinePolicy) -> float:
        """The standard deviation of the reward of the controlled chain."""
        found = evaluate_affine(self.affine(), policy)
        mean, variance = found.mean[-1, 0], found.covariance[-1, 0, 0]
        slope = self.slope + self.curvature * mean
        return float((slope.square() * variance + (self.curvature * variance).square() / 2).sqrt())


def as_policy(gain: list[Tensor], offset: list[Tensor]) -> AffinePolicy:
    """A policy of the gain and the offset of every step."""
    return AffinePolicy(torch.stack(gain)[:, None, None], torch.stack(offset)[:, None])


def flow(make: Callable[..., FlowSchedule] = flow_sde, steps: int = 4, level: float = 0.9):
    """Kernels at uneven times down to 0.18."""
    return GaussianFlow(make(shift_times(uniform_times(steps, last=0.1), 2.0), level))
