r"""Fixed points of regressions on re-noised samples in one dimension, by quadrature.

The law q of the last states of a control is followed from node to node, and at every level the
control is solved for that q,

.. math:: v_k = \frac{E_q[(r - c)\, w_k \mid x]}{b_k + E_q[r - c \mid x]},

until neither changes. It shares no code with the estimators but the levels of the reference.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import DenoisingReference, Noises, States, Step
from tests.support.tensors import F64

HALF, NODES, SETTLED, MOST = 6.0, 241, 1e-8, 100


@dataclasses.dataclass(frozen=True, eq=False)
class Tabulated(Policy):
    """Controls at equidistant nodes, linear between them."""

    nodes: Tensor
    values: Tensor

    def __call__(self, k: Step, x: States) -> Noises:
        assert isinstance(k, int)
        spacing = float(self.nodes[1] - self.nodes[0])
        place = ((x[:, 0] - self.nodes[0]) / spacing).clamp(0, len(self.nodes) - 1.001)
        low = place.long()
        part, table = place - low, self.values[k]
        return (table[low] * (1 - part) + table[low + 1] * part)[:, None]


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """What the iteration ends at.

    Attributes:
        policy: the control.
        density: of the last states, at the nodes.
        spread: standard deviation of their rewards.
        mean: their mean reward.
        change: of the last iteration.
    """

    policy: Tabulated
    density: Tensor
    spread: float
    mean: float
    change: float


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """A problem in one dimension at equidistant nodes."""

    problem: ControlProblem

    def __post_init__(self) -> None:
        assert isinstance(self.problem.reference, DenoisingReference)

    @property
    def reference(self) -> DenoisingReference:
        assert isinstance(self.problem.reference, DenoisingReference)
        return self.problem.reference

    @functools.cached_property
    def nodes(self) -> Tensor:
        return torch.linspace(-HALF, HALF, NODES, dtype=F64)

    def normal(self, x: Tensor, mean: Tensor, deviation: float) -> Tensor:
        """Masses of the nodes x."""
        cell = 2 * HALF / (NODES - 1) / (deviation * math.sqrt(2 * math.pi))
        return cell * torch.exp(-((x - mean) / deviation).square() / 2)

    def law(self, control: Tensor) -> Tensor:
        """Masses of the last states under a control of shape (T, nodes)."""
        x = self.nodes
        scale = float(self.reference.initial(torch.ones(1, 1, dtype=F64)))
        mass = self.normal(x, torch.zeros_like(x), scale)
        for k in range(self.problem.steps):
            moved = self.reference.step(k, x[:, None], control[k][:, None])
            deviation = float(self.reference.diffusion.apply(k, x[:1, None], torch.ones(1, 1)))
            mass = mass @ self.normal(x[None], moved, deviation)
        return mass / mass.sum()

    @functools.cached_property
    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        return [self._pair(k) for k in range(self.problem.steps)]

    def _pair(self, k: int) -> tuple[Tensor, Tensor]:
        """The density of each node of level k given the sample, up to a factor, and the control
        that goes by the pair, both (nodes, nodes).
        """
        x, (signal, noise) = self.nodes[:, None], self.reference.signal_and_noise
        a, s, left = float(signal[k]), float(noise[k]), float(noise[-1] / signal[-1])
        z, fresh = self.nodes[None] / float(signal[-1]), math.sqrt(s**2 - (a * left) ** 2)
        likelihood = torch.exp(-((x - a * z) / fresh).square() / 2)
        endpoint = z - left**2 * a / fresh**2 * (x - a * z)
        rest = self.reference.control_to(k, x, torch.zeros_like(x))
        slope = self.reference.control_to(k, x, torch.ones_like(x)) - rest
        return likelihood, rest + slope * endpoint

    def pairs(self, k: int, mass: Tensor) -> tuple[Tensor, Tensor]:
        """The law of the sample given each node of level k, and the control that goes by the pair,
        both (nodes, nodes).
        """
        likelihood, control = self._pairs[k]
        weight = mass * likelihood
        return weight / weight.sum(1, keepdim=True), control

    def solve(
        self,
        beta: Callable[[float], Tensor],
        baseline: bool,
        step: Callable[[int, Tensor, Tensor, Tensor, float], Tensor] | None = None,
        damping: float = 0.0,
    ) -> FixedPoint:
        """Iterate from the pre-trained model.

        Args:
            beta: ``b_k`` for a standard deviation of the rewards.
            baseline: whether c is the mean reward instead of zero.
            step: what gives the next control of level k from weights, controls of the pairs, the
                present control and ``b_k``; the solution of the equation by default.
            damping: what is kept of the last control.
        """
        reward = self.problem.reward(self.nodes[:, None])
        control = torch.zeros(self.problem.steps, NODES, dtype=F64)
        change, mass = math.inf, self.law(control)
        for _ in range(MOST):
            mass = self.law(control)
            mean = float(mass @ reward)
            spread = float(mass @ (reward - mean).square()) ** 0.5
            compared, b = reward - mean * baseline, beta(spread)
            found = []
            for k in range(self.problem.steps):
                weight, pair = self.pairs(k, mass)
                weight = weight * compared
                found.append(
                    weight.mul(pair).sum(1) / (float(b[k]) + weight.sum(1))
                    if step is None
                    else step(k, weight, pair, control[k], float(b[k]))
                )
            new = damping * control + (1 - damping) * torch.stack(found)
            seen = mass > 1e-12
            change, control = float((new - control)[:, seen].abs().max()), new
            if change < SETTLED:
                break
        mass = self.law(control)
        mean = float(mass @ reward)
        spread = float(mass @ (reward - mean).square()) ** 0.5
        return FixedPoint(Tabulated(self.nodes, control), mass, spread, mean, change)
