"""Numbers that rewards are made of, checked."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    Numbers,
    numbers,
    require,
    require_finite,
)

# absolute: a QR factor in float64 is orthonormal to about d eps, one rounded to float32 is not
_ORTHONORMAL_TOLERANCE = 1e-8


def orthonormal(matrix: Numbers, what: str) -> Float[Tensor, "n m"]:
    """A float64 matrix with orthonormal columns, checked.

    Raises:
        InvalidProblem: not a matrix, more columns than rows, or columns that are not orthonormal.
    """
    q = finite_tensor(matrix, what)
    require(
        q.ndim == 2 and q.shape[1] <= q.shape[0],
        f"{what} has shape {tuple(q.shape)}; give (n, m) with m <= n.",
    )
    error = float((q.T @ q - torch.eye(q.shape[1], dtype=q.dtype, device=q.device)).abs().max())
    require(
        error <= _ORTHONORMAL_TOLERANCE,
        f"{what} has columns that miss orthonormality by {error:g}; use the Q factor of its QR"
        " decomposition.",
    )
    return q


def finite_tensor(values: Numbers, what: str) -> Tensor:
    tensor = numbers(values, what)
    require(tensor.ndim >= 1, f"{what} is a single number; give a tensor.")
    require_finite(tensor, what, "every entry must be a finite number.")
    return tensor


def require_number(value: float, what: str) -> None:
    number = numbers(value, what)
    require(
        number.ndim == 0 and bool(number.isfinite()),
        f"{what} = {value}; it must be a finite number.",
    )


def require_positive(value: float, what: str) -> None:
    number = numbers(value, what)
    require(
        number.ndim == 0 and bool(number.isfinite()) and bool(number > 0),
        f"{what} = {value}; it must be a positive finite number.",
    )
