"""Minimising a sampled loss by gradient steps: the loop, once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from socft.checks import require


@dataclasses.dataclass(frozen=True)
class GradientStep:
    """The sampled loss before a gradient step, and the norm of its gradient."""

    loss: Tensor
    norm: Tensor


def gradient_descent(
    loss: Callable[[], Tensor],
    optimiser: Optimizer,
    steps: int,
    schedule: LRScheduler | None = None,
    remedy: str = "lower the learning rate.",
) -> Iterator[GradientStep]:
    """Gradient steps, each on a fresh sample of the loss and made when it is asked for.

    Args:
        loss: a sample of the loss, with a graph.
        optimiser: holds the parameters, which are changed in place.
        schedule: of the learning rate, one step of it after each gradient step; a constant rate
            where left out.
        remedy: what to do about a gradient that is not finite.

    Raises:
        InvalidProblem: a gradient is not finite; the parameters keep their last finite values.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index in range(1, steps + 1):
        optimiser.zero_grad()
        with torch.enable_grad():
            value = loss()
            value.backward()
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        require(
            bool(norm.isfinite()),
            f"the gradient norm is {norm} at gradient step {index}; {remedy}",
        )
        optimiser.step()
        if schedule is not None:
            schedule.step()
        yield GradientStep(value.detach(), norm)


def minimise(
    loss: Callable[[], Tensor],
    optimiser: Optimizer,
    steps: int,
    schedule: LRScheduler | None = None,
) -> list[float]:
    """All the steps of `gradient_descent`; returns the losses."""
    return [float(step.loss) for step in gradient_descent(loss, optimiser, steps, schedule)]
