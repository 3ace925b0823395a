r"""Any data law on the line and any reward: laws by quadrature.

The optimal control of the chain comes from `Quadrature`. Densities live on a uniform grid, where
sums are accurate to all orders; a step with noise is a matrix of Gaussian densities, and the flow
moves quantiles of its start, between which a cubic spline gives density and distribution.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from socft.density import Density, GaussianMixture
from socft.flow import flow_reference
from socft.problem import ControlProblem
from socft.reward import Sine
from socft.study.vocabulary.problems import ProblemName
from socft.truth.quadrature import Quadrature
from toy.sde_ode.samplers import LAST, Kernel, LineSampler, trained_schedule

LAWS: Mapping[ProblemName, Density] = {
    ProblemName.FLOW_OVERLAPPING: GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.5),
    ProblemName.FLOW_SEPARATED: GaussianMixture([0.7, 0.3], [-1.5, 1.5], 0.16),
}
REWARD = Sine(1.0, 1.0)
REACH, POINTS = 6.0, 901
TINY = torch.finfo(torch.float64).tiny


def grid() -> Float[Tensor, " points"]:
    """Where densities are known."""
    return torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)


SPACING = 2 * REACH / (POINTS - 1)


@dataclasses.dataclass(frozen=True, eq=False)
class LineLaw:
    """A density on the grid.

    Attributes:
        density: shape (points,).
        cumulative: the distribution function, shape (points,).
    """

    density: Float[Tensor, " points"]
    cumulative: Float[Tensor, " points"]

    @classmethod
    def of(cls, density: Float[Tensor, " points"]) -> LineLaw:
        """That of a density up to its normaliser."""
        density = density / (density.sum() * SPACING)
        whole = CubicSpline(grid().numpy(), density.numpy()).antiderivative()(grid().numpy())
        return cls(density, torch.from_numpy(whole))

    def mean(self, values: Float[Tensor, " points"]) -> float:
        """Of a function on the grid."""
        return float(self.density @ values) * SPACING

    def wasserstein1(self, other: LineLaw) -> float:
        """``int |F - G|``."""
        return float((self.cumulative - other.cumulative).abs().sum()) * SPACING

    def divergence(self, other: LineLaw) -> float:
        """``KL(self || other)``."""
        p, q = self.density, other.density.clamp(min=TINY)
        return float(torch.where(p > 0, p * (p.clamp(min=TINY) / q).log(), 0.0).sum()) * SPACING


def tilt(law: Density) -> LineLaw:
    """The law at the last time, times ``e^r``."""
    x, signal = grid()[:, None], 1 - LAST
    size = math.hypot(signal, LAST)
    return LineLaw.of((law.noised_log_prob((signal / size) ** 2, x / size) + REWARD(x)).exp())


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The velocity of a chain's optimum on the grid.

    Attributes:
        kernel: of the chain.
        velocity: shape (steps, points).
    """

    kernel: Kernel
    velocity: Float[Tensor, "steps points"]

    @classmethod
    def of(cls, law: Density, kernel: Kernel, steps: int, level: float) -> Trained:
        """Solved by quadrature, beta = 1."""
        reference = flow_reference(law, trained_schedule(kernel, steps, level))
        policy = Quadrature(ControlProblem(reference, REWARD, 1.0)).policy
        x = grid()[:, None]
        with torch.no_grad():
            rows = [reference.velocity_of(k, x, policy(k, x))[:, 0] for k in range(steps)]
        return cls(kernel, torch.stack(rows))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.velocity)

    def law(self, level: float) -> LineLaw:
        """The law of the samples of a sampler."""
        sampler = LineSampler.of(self.kernel, self.steps, level)
        return self._moved(sampler) if level == 0 else self._noised(sampler)

    def _noised(self, sampler: LineSampler) -> LineLaw:
        x = grid()
        density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
        mass, away = density, x[:, None]
        for k in range(self.steps):
            centres, sigma = self._means(sampler, k), float(sampler.sigma[k])
            away = (x[:, None] - centres) / sigma
            kernel = torch.exp(-away.square() / 2) * (SPACING / (sigma * math.sqrt(2 * math.pi)))
            mass, density = density, kernel @ density
        return LineLaw(density, SPACING * torch.special.ndtr(away) @ mass)

    def _moved(self, sampler: LineSampler) -> LineLaw:
        """Quantiles follow the velocity between the points by a cubic spline."""
        x = grid().numpy()
        ends = x
        for k in range(self.steps):
            ends = CubicSpline(x, self._means(sampler, k).numpy())(ends)
        start = CubicSpline(ends, x)
        inside = (x >= ends[0]) & (x <= ends[-1])
        places = np.where(inside, start(x), np.where(x < ends[0], -REACH, REACH))
        density = np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi) * start(x, 1) * inside
        return LineLaw(torch.from_numpy(density), torch.special.ndtr(torch.from_numpy(places)))

    def _means(self, sampler: LineSampler, k: int) -> Float[Tensor, " points"]:
        return sampler.state[k] * grid() + sampler.velocity[k] * self.velocity[k]
