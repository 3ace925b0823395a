"""Validation at the door: one sentence that quotes the value and names the remedy."""

from __future__ import annotations

import torch
from torch import Tensor


class InvalidProblem(ValueError):
    """The mathematics refuses these inputs; the message quotes the offending value and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise `InvalidProblem` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InvalidProblem(message)


def require_finite(values: Tensor, what: str, remedy: str) -> None:
    """Raise `InvalidProblem` naming the first non-finite entry of ``values``."""
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        index = bad[0].tolist()
        raise InvalidProblem(f"{what}{index} = {values[tuple(index)].item()}; {remedy}")


def per_step(values: float | Tensor, steps: int, what: str) -> Tensor:
    """Broadcast a scalar to one float64 value per step; a tensor must have shape (steps,)."""
    tensor = torch.as_tensor(values, dtype=torch.float64)
    tensor = (tensor.expand(steps) if tensor.ndim == 0 else tensor).clone()
    require(
        tensor.shape == (steps,),
        f"{what} has shape {tuple(tensor.shape)}; give one number or {steps} values, one per step.",
    )
    return tensor
