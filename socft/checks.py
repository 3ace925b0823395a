"""Validation at the door: one sentence that quotes the value and names the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

_Entry: TypeAlias = Tensor | np.ndarray | float
Numbers: TypeAlias = (
    _Entry | Sequence[_Entry] | Sequence[Sequence[_Entry]] | Sequence[Sequence[Sequence[_Entry]]]
)
"""What `numbers` makes a float64 tensor of: lists up to a matrix per step."""

SYMMETRY_TOLERANCE = 1e-10
"""Relative skewness of a matrix that counts as symmetric: float64 products are to about n eps."""


class InvalidProblem(ValueError):
    """The mathematics refuses these inputs; the message quotes the offending value and the remedy.

    >>> try:
    ...     ddpm(50)
    ... except InvalidProblem as error:
    ...     print(error)
    abar has shape (); give a vector of at least two levels, such as linear_levels(50).
    """


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


def numbers(values: Numbers, what: str) -> Tensor:
    """A float64 tensor of a number, a tensor or array of any precision, or nested lists.

    Raises:
        InvalidProblem: not real numbers, or lists of unequal length.
    """
    require(
        not (isinstance(values, Tensor | np.ndarray) and "complex" in str(values.dtype)),
        f"{what} is complex; give real numbers.",
    )
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidProblem(
            f"{what} = {values!s:.60}; give a number, an array, or lists of equal length."
        ) from error


def per_step(values: Numbers, steps: int, what: str) -> Tensor:
    """Broadcast a scalar to one float64 value per step; a tensor must have shape (steps,)."""
    tensor = numbers(values, what)
    tensor = (tensor.expand(steps) if tensor.ndim == 0 else tensor).clone()
    require(
        tensor.shape == (steps,),
        f"{what} has shape {tuple(tensor.shape)}; give one number or {steps} values, one per step.",
    )
    return tensor
