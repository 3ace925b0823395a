r"""One velocity, any sampler: kernels of noise level n, and the flow's own equation at level 0.

What is compared lives on the same times; a fine-tuned control is a velocity, and that velocity is
used in every sampler.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float

from socft.flow import FlowSchedule, flow_sde, precise, uniform_times

LAST = 0.05
"""The last time; every kernel before it has noise."""
MEMORYLESS = math.sqrt(2)


class Kernel(enum.StrEnum):
    """How a noise level becomes a kernel."""

    PRECISE = "precise"
    FLOW_SDE = "flow-sde"


MADE: Mapping[Kernel, Callable[[torch.Tensor, float], FlowSchedule]] = {
    Kernel.PRECISE: precise,
    Kernel.FLOW_SDE: flow_sde,
}


def trained_schedule(kernel: Kernel, steps: int, level: float) -> FlowSchedule:
    """The chain that is trained on."""
    return MADE[kernel](uniform_times(steps, last=LAST), level)


@dataclasses.dataclass(frozen=True, eq=False)
class LineSampler:
    """The kernels ``x' = w_k x + J_k u_k(x) + sigma_k xi``, fields of shape (T,).

    Attributes:
        state: w.
        velocity: J.
        sigma: standard deviations, 0 for the ordinary differential equation.
    """

    state: Float[torch.Tensor, " steps"]
    velocity: Float[torch.Tensor, " steps"]
    sigma: Float[torch.Tensor, " steps"]

    @classmethod
    def of(cls, kernel: Kernel, steps: int, level: float) -> LineSampler:
        """That of a noise level; 0 takes Euler steps of the flow."""
        if level == 0:
            dt = uniform_times(steps, last=LAST).diff()
            return cls(torch.ones_like(dt), dt, torch.zeros_like(dt))
        schedule = trained_schedule(kernel, steps, level)
        return cls(schedule.state_weight, schedule.velocity_weight, schedule.sigma)
