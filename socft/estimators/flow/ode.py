r"""Paths of a flow without noise, Euler steps :math:`x' = x + u_k(x)\, dt` of the policy's
velocity with dt < 0, and costates along them.

The control problem on them is the deterministic one,

.. math:: \max_u\; r(x_T) - \frac{\lambda}{2} \sum_k |dt_k|\, |u_k(x_k) - u^0_k(x_k)|^2,

for every start; its optimum is no tilt of the law of the data. Targets of the velocity are targets
of the whitened control, :math:`|u - y|^2 = c_k^2 |v - w|^2` with :math:`c_k = \sigma_k/J_k`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.costates.base import Costates
from socft.costates.directional import gradient_of
from socft.estimators.base import LabelRows, Labels
from socft.flow import FlowReference
from socft.policy import Policy
from socft.problem import ControlProblem, require_reference
from socft.reference import States

ShiftOf = Callable[[int, States], States]
"""``(k, x_k) -> u - u_0``, the change of the velocity that a step is to have."""


def flow_of(problem: ControlProblem) -> FlowReference:
    """The reference of a problem without running cost, refused unless it is that of a flow."""
    remedy = (
        "this method follows the velocity of a flow: give a FlowReference, such as"
        " flow_reference(density, schedule)."
    )
    reference = require_reference(problem, FlowReference, remedy)
    require_end_alone(problem)
    return reference


def require_end_alone(problem: ControlProblem) -> None:
    """Refuse a running cost."""
    require(
        problem.running_cost is None,
        "there is a running cost; this method sees the reward of samples alone: use another, such"
        " as adjoint matching.",
    )


def ode_states(
    problem: ControlProblem, policy: Policy, start: States
) -> Float[Tensor, "steps_plus_1 batch *dims"]:
    """Euler steps of the policy's velocity from ``start``."""
    reference = flow_of(problem)
    states, dt = [start], reference.schedule.times.diff()
    for k in range(problem.steps):
        x = states[-1]
        states.append(x + reference.velocity_of(k, x, policy(k, x)) * dt[k].to(x))
    return torch.stack(states)


def ode_costates(problem: ControlProblem, policy: Policy, start: States, last: int) -> Costates:
    r"""Lean costates :math:`a_k = (I + dt\, \nabla u^0_k)^\top a_{k+1}` along the policy's
    path, of the last steps; zero before them. At the optimum the gradient of the value, by the
    envelope identity.
    """
    reference, states = flow_of(problem), ode_states(problem, policy, start)
    dt, values = reference.schedule.times.diff(), torch.zeros_like(states)
    values[-1] = problem.reward.gradient(states[-1])
    for k in reversed(range(problem.steps - last, problem.steps)):
        after = values[k + 1]
        pull = gradient_of(lambda x, k=k, a=after: (reference.velocity(k, x) * a).sum(), states[k])
        values[k] = after + dt[k].to(states) * pull
    return Costates(states, values)


def velocity_labels(
    problem: ControlProblem,
    states: Float[Tensor, "steps batch *dims"],
    shifts: Float[Tensor, "steps batch *dims"],
    share: Float[Tensor, " steps"],
) -> Labels[LabelRows]:
    """Labels whose matching loss is ``share_k |u - u_0 - shift|^2``, summed over the entries."""
    reference, beta = flow_of(problem), problem.beta.to(states)
    unit = torch.stack([reference.velocity_unit(k, x).to(x) for k, x in enumerate(states)])
    weights = (2 * share.to(unit) * unit.square() / beta)[:, None].expand(states.shape[:2])
    scale = unit.reshape(-1, *[1] * (states.ndim - 1))
    return Labels(states, shifts / scale, weights.contiguous())
