r"""A chain on the line with an exact model class: laws, conditional means and projections without
Monte-Carlo error.

States live on a uniform grid, a kernel is the matrix of its densities, and a control is piecewise
linear between nodes, one function per step: rich enough for the laws to be those of a free control
to :math:`O(h^2)` in the spacing, and finite, so that a fixed point of the population and that of a
method run on samples are in the same class.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from socft.estimators.flow.ode import flow_of
from socft.flow.reference import FlowReference
from socft.policy import FeaturePolicy, Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import States
from socft.regression.features import Features

Field = Float[Tensor, "steps points"]
"""A function of every step on the points of the line."""
RIDGE = 1e-9
"""Mass of a node below which its coefficient is left as it is."""


@dataclasses.dataclass(frozen=True)
class Hats(Features):
    """Piecewise linear functions between equidistant nodes, constant outside.

    Attributes:
        low: the first node.
        high: the last node.
        nodes: how many.

    >>> Hats(0.0, 1.0, 3)(torch.tensor([[0.25], [2.0]]))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """

    low: float
    high: float
    nodes: int

    def __call__(self, x: States) -> Float[Tensor, "batch count"]:
        place = (x - self.low) * ((self.nodes - 1) / (self.high - self.low))
        place = place.clamp(0, self.nodes - 1)
        index = torch.arange(self.nodes, dtype=x.dtype, device=x.device)
        return (1 - (place - index).abs()).clamp(min=0)

    def policy(self, steps: int) -> FeaturePolicy:
        """The pre-trained model in this class."""
        return FeaturePolicy(self, torch.zeros(steps, 1, self.nodes, dtype=torch.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class NoisedEnds(Readable):
    """Endpoints of a law with noise of one level.

    Attributes:
        mass: of each point, shape (points,).
        given: probability of each endpoint given the noised state, rows summing to one, shape
            (points, points).
        control: the whitened control whose kernel goes by each endpoint, shape (points, points).
    """

    mass: Float[Tensor, " points"]
    given: Float[Tensor, "points points"]
    control: Float[Tensor, "points points"]


class WeightedFit(NamedTuple):
    """Least squares of ``curvature v = wanted`` at states with masses, each of shape (steps,
    points); the curvature is near one.
    """

    states: Field
    wanted: Field
    curvature: Field
    mass: Field


@dataclasses.dataclass(frozen=True, eq=False)
class LineChain(Readable):
    """A one-dimensional problem on a grid.

    Attributes:
        problem: its reference is a `FlowReference` of one dimension.
        hats: the model class.
        reach: the grid covers (-reach, reach).
        count: number of its points.
    """

    problem: ControlProblem
    hats: Hats
    reach: float
    count: int

    @property
    def reference(self) -> FlowReference:
        """The pre-trained chain."""
        return flow_of(self.problem)

    @functools.cached_property
    def points(self) -> Float[Tensor, " points"]:
        """The grid."""
        return torch.linspace(-self.reach, self.reach, self.count, dtype=torch.float64)

    @functools.cached_property
    def reward(self) -> Float[Tensor, " points"]:
        """The reward on the grid."""
        return self.problem.reward(self.points[:, None])

    @functools.cached_property
    def means(self) -> Field:
        """The pre-trained mean map."""
        x = self.points[:, None]
        return torch.stack([self.reference.mean(k, x)[:, 0] for k in range(self.problem.steps)])

    @functools.cached_property
    def features(self) -> Float[Tensor, "points count"]:
        """The hats on the grid."""
        return self.hats(self.points[:, None])

    @torch.no_grad()
    def controls(self, policy: Policy) -> Field:
        """A policy on the grid."""
        x = self.points[:, None]
        return torch.stack([policy(k, x)[:, 0] for k in range(self.problem.steps)])

    def kernel(self, k: int, control: Float[Tensor, " points"]) -> Float[Tensor, "points points"]:
        """Probabilities of the next point, rows summing to one."""
        return _normal(self.points, self._centres(k, control), self._sigma(k))

    def noise(self, k: int, control: Float[Tensor, " points"]) -> Float[Tensor, "points points"]:
        """The noise that leads from a point to the next."""
        return (self.points - self._centres(k, control)[:, None]) / self._sigma(k)

    def kernels(self, control: Field) -> Float[Tensor, "steps points points"]:
        """Those of all steps."""
        return torch.stack([self.kernel(k, each) for k, each in enumerate(control)])

    @functools.cached_property
    def start(self) -> Float[Tensor, " points"]:
        """Masses of the initial state."""
        spread = float(self.reference.initial(torch.ones(1, 1, dtype=torch.float64)))
        return _normal(self.points, torch.zeros(1, dtype=torch.float64), spread)[0]

    def laws(self, kernels: Iterable[Tensor]) -> Float[Tensor, "steps_plus_1 points"]:
        """Masses of the states of every step under kernels."""
        law = [self.start]
        for kernel in kernels:
            law.append(law[-1] @ kernel)
        return torch.stack(law)

    def samples(self, control: Field) -> Float[Tensor, " points"]:
        """Masses of the end of the chain under a control."""
        return self.laws(self.kernels(control))[-1]

    def backward(
        self,
        kernels: Float[Tensor, "steps points points"],
        terminal: Float[Tensor, " points"],
        paid: Field,
    ) -> Float[Tensor, "steps_plus_1 points"]:
        """Conditional means of a terminal function less what every step pays."""
        values = [terminal]
        for k in reversed(range(self.problem.steps)):
            values.append(kernels[k] @ values[-1] - paid[k])
        return torch.stack(values[::-1])

    def renoised(self, k: int, law: Float[Tensor, " points"]) -> NoisedEnds:
        r"""Samples z of the chain, renoised to the level that step k starts from.

        What is left of the noise in them, :math:`z/a_T = x_0 + t e`, counts: fresh noise of
        variance :math:`s_k^2 - a_k^2 t^2` makes states of that level, and :math:`E[x_0 | x_k] =
        E[z/a_T - t^2 a_k (x_k - a_k z/a_T)/(s_k^2 - a_k^2 t^2) | x_k]`, by Tweedie's formula for z
        and an integration by parts.
        """
        likelihood, control = self._renoising[k]
        joint = law * likelihood
        total = joint.sum(1, keepdim=True)
        given = joint / total.clamp(min=torch.finfo(torch.float64).tiny)
        return NoisedEnds(total[:, 0] / total.sum(), given, control)

    @functools.cached_property
    def _renoising(self) -> list[tuple[Tensor, Tensor]]:
        """Likelihoods of states given samples, and the controls that go by the pairs, by step."""
        levels, x = self.reference.schedule.levels, self.points[:, None]
        clean = self.points / levels.signal[-1]
        left = float(levels.noise[-1] / levels.signal[-1]) ** 2
        found = []
        for k in range(self.problem.steps):
            signal = float(levels.signal[k])
            fresh = float(levels.noise[k]) ** 2 - signal**2 * left
            likelihood = torch.exp(-((x - signal * clean) ** 2) / (2 * fresh))
            ends = clean - left * signal * (x - signal * clean) / fresh
            own = self.reference.endpoint_of(k, x, torch.zeros_like(x))
            unit = self.reference.endpoint_of(k, x, torch.ones_like(x)) - own
            found.append((likelihood, (ends - own) / unit))
        return found

    def flow(self, control: Field) -> Float[Tensor, "steps_plus_1 points"]:
        """Where the points go without noise, by the velocity that a control stands for."""
        places = [self.points]
        for k in range(self.problem.steps):
            x = places[-1][:, None]
            v = self.control_at(control[k], places[-1])[:, None]
            places.append(
                places[-1] + self.durations[k] * self.reference.velocity_of(k, x, v)[:, 0]
            )
        return torch.stack(places)

    def flow_law(self, control: Field) -> Float[Tensor, " points"]:
        """Masses of the end without noise."""
        start = self.start
        ends = self.flow(control)[-1]
        below = torch.cat([torch.zeros(1, dtype=start.dtype), start.cumsum(0)])
        edges = torch.cat([ends[:1], (ends[1:] + ends[:-1]) / 2, ends[-1:]])
        half = float(self.points[1] - self.points[0]) / 2
        wanted = torch.cat([self.points - half, self.points[-1:] + half])
        found = np.interp(wanted.numpy(), edges.numpy(), below.numpy(), left=0.0, right=1.0)
        return torch.from_numpy(found).diff()

    @functools.cached_property
    def durations(self) -> Float[Tensor, " steps"]:
        """Of every step, negative."""
        return self.reference.schedule.times.diff()

    def project(
        self, fit: WeightedFit, now: Float[Tensor, "steps 1 count"], prior: float
    ) -> tuple[Float[Tensor, "steps 1 count"], Field]:
        """The Newton step of coefficients with curvature one, and what it does to the control at
        the states.

        Args:
            prior: mass of which a node is taken to know its coefficient.
        """
        rows, moved = [], []
        ridge = prior * torch.eye(self.hats.nodes, dtype=torch.float64)
        for k in range(self.problem.steps):
            phi = self.hats(fit.states[k][:, None])
            residual = fit.wanted[k] - fit.curvature[k] * (phi @ now[k, 0])
            gram = phi.T @ (phi * fit.mass[k][:, None]) + ridge
            rows.append(torch.linalg.solve(gram, phi.T @ (fit.mass[k] * residual)))
            moved.append(phi @ rows[-1])
        return torch.stack(rows)[:, None], torch.stack(moved)

    def control_at(
        self, values: Float[Tensor, " points"], places: Float[Tensor, " places"]
    ) -> Float[Tensor, " places"]:
        """A control of the points anywhere, piecewise linear."""
        found = np.interp(places.numpy(), self.points.numpy(), values.numpy())
        return torch.from_numpy(found)

    def _centres(self, k: int, control: Tensor) -> Tensor:
        return self.means[k] + self._sigma(k) * control

    def _sigma(self, k: int) -> float:
        return float(self.reference.schedule.sigma[k])


def _normal(points: Tensor, centres: Tensor, sigma: float) -> Tensor:
    weight = torch.exp(-0.5 * ((points - centres[:, None]) / sigma) ** 2)
    return weight / weight.sum(1, keepdim=True).clamp(min=math.ulp(0.0))
