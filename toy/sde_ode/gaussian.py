r"""Gaussian data and quadratic rewards on the line: every law in closed form.

The optimal control of the chain is affine, so is its velocity, and mean and variance of any
sampler's end follow a recursion.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float

from socft.density import Gaussian
from socft.flow import affine_flow_reference, flow_reference
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import States, Step
from socft.reward import Quadratic
from socft.study.vocabulary.problems import ProblemName
from socft.theory import SamplerChange
from socft.truth.linear_quadratic import LinearQuadratic
from toy.sde_ode.samplers import LAST, Kernel, LineSampler, trained_schedule


@dataclasses.dataclass(frozen=True)
class Normal:
    """A law on the line.

    Attributes:
        mean: its mean.
        variance: its variance.
    """

    mean: float
    variance: float

    def wasserstein1(self, other: Normal) -> float:
        """``E|m + s Z|`` with the differences of means and of deviations: on the line the monotone
        map is the best.
        """
        m = self.mean - other.mean
        s = abs(math.sqrt(self.variance) - math.sqrt(other.variance))
        if s == 0:
            return abs(m)
        bell = math.exp(-((m / s) ** 2) / 2)
        return s * math.sqrt(2 / math.pi) * bell + m * math.erf(m / (s * math.sqrt(2)))

    def divergence(self, other: Normal) -> float:
        """``KL(self || other)``."""
        ratio = self.variance / other.variance
        moved = (self.mean - other.mean) ** 2 / other.variance
        return (ratio - 1 - math.log(ratio) + moved) / 2


@dataclasses.dataclass(frozen=True)
class ScalarProblem:
    """Data ``N(mean, variance)`` and the reward ``curvature x^2 / 2 + slope x`` at beta = 1.

    Attributes:
        mean: of the data.
        variance: of the data.
        curvature: of the reward.
        slope: of the reward at 0.
    """

    mean: float
    variance: float
    curvature: float
    slope: float

    @property
    def data(self) -> Normal:
        """The law at the last time, which is what the reward sees."""
        signal = 1 - LAST
        return Normal(signal * self.mean, signal**2 * self.variance + LAST**2)

    @property
    def tilt(self) -> Normal:
        """That law times ``e^r``."""
        return self.limit(1.0, 1.0)

    def limit(self, trained: float, used: float) -> Normal:
        """Where the law of the samples tends with the number of steps."""
        data = self.data
        change = SamplerChange(trained, used)
        return Normal(
            *change.moments(data.mean, data.variance, self.curvature, self.slope, beta=1.0)
        )

    def reward(self, law: Normal) -> float:
        """Its mean."""
        return self.curvature * (law.mean**2 + law.variance) / 2 + self.slope * law.mean

    def velocity(
        self, kernel: Kernel, steps: int, level: float
    ) -> tuple[Float[torch.Tensor, " steps"], Float[torch.Tensor, " steps"]]:
        """Slope and offset of the velocity of the chain's optimum."""
        law = Gaussian(self.mean, self.variance)
        schedule = trained_schedule(kernel, steps, level)
        reward = Quadratic(
            torch.tensor([[self.curvature]], dtype=torch.float64),
            torch.tensor([self.slope], dtype=torch.float64),
        )
        problem = ControlProblem(affine_flow_reference(law, schedule), reward, 1.0)
        policy = LinearQuadratic(problem).affine_policy
        return _affine(policy, schedule.steps, flow_reference(law, schedule).velocity_of)

    def laws(
        self, kernel: Kernel, steps: int, trained: float, used: tuple[float, ...]
    ) -> Mapping[float, Normal]:
        """The laws of the samples of every sampler, of a model trained at one level."""
        slope, offset = self.velocity(kernel, steps, trained)
        return {level: _end(LineSampler.of(kernel, steps, level), slope, offset) for level in used}


INSTANCES: Mapping[ProblemName, ScalarProblem] = {
    ProblemName.FLOW_LINEAR: ScalarProblem(0.3, 0.5, 0.0, 1.0),
    ProblemName.FLOW_QUADRATIC: ScalarProblem(0.7, 0.5, -1.5, 0.8),
    ProblemName.FLOW_CENTRED: ScalarProblem(0.0, 1.0, -2.0, 0.0),
}


def random_instance(generator: random.Random) -> ScalarProblem:
    """A Gaussian and a quadratic reward whose tilt has between a quarter and twice its variance."""
    variance = math.exp(generator.uniform(math.log(0.05), math.log(2.0)))
    at_end = (1 - LAST) ** 2 * variance + LAST**2
    curvature = generator.uniform(-3.0, 0.5) / at_end
    return ScalarProblem(generator.uniform(-1, 1), variance, curvature, generator.uniform(-1, 1))


@torch.no_grad()
def _affine(
    policy: AffinePolicy, steps: int, velocity_of: Callable[[Step, States, States], States]
) -> tuple[Float[torch.Tensor, " steps"], Float[torch.Tensor, " steps"]]:
    """Slope and offset of the velocity of a control."""
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    offset = [velocity_of(k, zero, policy(k, zero))[0, 0] for k in range(steps)]
    at_one = [velocity_of(k, one, policy(k, one))[0, 0] for k in range(steps)]
    return torch.stack(at_one) - torch.stack(offset), torch.stack(offset)


def _end(
    sampler: LineSampler,
    slope: Float[torch.Tensor, " steps"],
    offset: Float[torch.Tensor, " steps"],
) -> Normal:
    mean, variance = 0.0, 1.0
    maps = (sampler.state + sampler.velocity * slope, sampler.velocity * offset, sampler.sigma)
    for a, b, sigma in zip(*(each.tolist() for each in maps), strict=True):
        mean, variance = a * mean + b, a**2 * variance + sigma**2
    return Normal(mean, variance)
