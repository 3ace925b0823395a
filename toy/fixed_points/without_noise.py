r"""Equations for the control of a flow without noise.

A control that satisfies Pontryagin's condition along its own paths need not be the best: where the
flow is steep, as between separated modes, the objective has several stationary points for one
start. Which of them sweeps reach then depends on where they begin and on their damping, and the
best of them is reached from what Bellman's equation on a fine grid finds.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from socft.estimators.flow.look_ahead import LevelWeight
from toy.fixed_points.equations import Coefficients, Equation, slope_of
from toy.fixed_points.line import Field, LineChain, WeightedFit

FINE = 2401
"""Points of the grid of Bellman's equation."""
ROWS = 300
"""Of them that are treated at once."""
KNOWN = 1e-3
"""Mass of which a node is taken to know that its coefficient is zero."""


@dataclasses.dataclass(frozen=True)
class FlowEquation(Equation):
    r"""An equation along the flow without noise: :math:`u_k - u^0_k = -\phi_k/\lambda`.

    Attributes:
        lam: lambda.
    """

    lam: float

    @abc.abstractmethod
    def costates(self, line: LineChain, control: Field, places: Tensor) -> Field:
        """phi of every step at the places of the flow."""

    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        places = line.flow(control)
        mass = line.start.expand(len(control), -1)
        costates = self.costates(line, control, places)
        wanted = []
        for k, (place, costate) in enumerate(zip(places[:-1], costates, strict=True)):
            x = place[:, None]
            velocity = line.reference.velocity(k, x) - costate[:, None] / self.lam
            wanted.append(line.reference.control_of(k, x, velocity)[:, 0])
        found = torch.stack(wanted)
        return WeightedFit(places[:-1], found, torch.ones_like(found), mass)


@dataclasses.dataclass(frozen=True)
class WithoutNoise(FlowEquation):
    r"""The optimum of :math:`r(x_T) - \lambda \sum_k |dt_k| |u_k - u^0_k|^2/2` along the flow, by
    lean costates :math:`a_k = (1 + dt_k \partial u^0_k) a_{k+1}`: :math:`u_k - u^0_k =
    -a_{k+1}/\lambda`.

    Attributes:
        own: whether the costate is that of the step's own state, a_k: the optimum up to O(dt).
    """

    own: bool = False

    def costates(self, line: LineChain, control: Field, places: Tensor) -> Field:
        costate = line.problem.reward.gradient(places[-1][:, None])[:, 0]
        found = [costate]
        for k in reversed(range(line.problem.steps)):
            slope = slope_of(lambda y, k=k: line.reference.velocity(k, y), places[k][:, None])
            found.append((1 + line.durations[k] * slope) * found[-1])
        found.reverse()
        return torch.stack(found[:-1] if self.own else found[1:])


@dataclasses.dataclass(frozen=True)
class LookAheadWithoutNoise(FlowEquation):
    r"""Guidance of the flow by the reward of the predicted endpoint, :math:`\phi_k = \gamma_k
    \nabla r(\hat x_0)`, with the velocity of the endpoint held.

    Attributes:
        weight: gamma of signal and noise.
        limit: the largest norm of the gradient.
    """

    weight: LevelWeight
    limit: float

    def costates(self, line: LineChain, control: Field, places: Tensor) -> Field:
        starts, found = line.reference.schedule.starts, []
        for k, place in enumerate(places[:-1]):
            v = line.control_at(control[k], place)[:, None]
            endpoint = line.reference.endpoint_of(k, place[:, None], v)
            slope = (starts.noise_rate / starts.wronskian)[k]
            slope = slope * line.problem.reward.gradient(endpoint)[:, 0]
            gamma = self.weight(starts.signal[k], starts.noise[k])
            found.append(gamma * slope.clamp(-self.limit, self.limit))
        return torch.stack(found)


def objective(line: LineChain, control: Field, lam: float) -> float:
    """That of the flow without noise."""
    places, paid = line.flow(control), torch.zeros_like(line.points)
    for k, place in enumerate(places[:-1]):
        v = line.control_at(control[k], place)[:, None]
        moved = line.reference.velocity_of(k, place[:, None], v)
        moved = moved - line.reference.velocity(k, place[:, None])
        paid = paid - line.durations[k] * moved[:, 0].square() * lam / 2
    return float(line.start @ (line.problem.reward(places[-1][:, None]) - paid))


def best_control(line: LineChain, lam: float) -> Coefficients:
    r"""The optimum of :math:`r(x_T) - \lambda \sum_k |dt_k| |u_k - u^0_k|^2/2`, from Bellman's
    equation :math:`V_k(x) = \max_{x'} V_{k+1}(x') - \lambda |x' - x - dt\, u^0_k|^2/(2 |dt|)`, in
    the class.
    """
    fine = torch.linspace(-line.reach, line.reach, FINE, dtype=torch.float64)
    value, after = line.problem.reward(fine[:, None]), []
    for k in reversed(range(line.problem.steps)):
        dt = float(line.durations[k])
        free = fine + dt * line.reference.velocity(k, fine[:, None])[:, 0]
        price = lam / (2 * abs(dt))
        rows = [
            (value - price * (fine - each[:, None]).square()).max(1) for each in free.split(ROWS)
        ]
        value = torch.cat([each.values for each in rows])
        after.append(fine[torch.cat([each.indices for each in rows])])
    return _followed(line, fine, after[::-1])


def _followed(line: LineChain, fine: Float[Tensor, " fine"], after: list[Tensor]) -> Coefficients:
    """Coefficients of the control that leads from each point to a given one, fitted along the
    paths.
    """
    place, states, wanted = line.points, [], []
    for k, following in enumerate(after):
        nearest = ((place - fine[0]) / (fine[1] - fine[0])).round().long().clamp(0, len(fine) - 1)
        moved = following[nearest] + place - fine[nearest]
        velocity = ((moved - place) / line.durations[k])[:, None]
        wanted.append(line.reference.control_of(k, place[:, None], velocity)[:, 0])
        states.append(place)
        place = moved
    found = torch.stack(wanted)
    fit = WeightedFit(
        torch.stack(states), found, torch.ones_like(found), line.start.expand(len(found), -1)
    )
    zero = line.hats.policy(line.problem.steps).weight.detach()
    return line.project(fit, zero, KNOWN)[0]
