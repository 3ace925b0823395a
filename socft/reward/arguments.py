"""Numbers that rewards are made of, checked."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import Numbers, numbers, require

# absolute: a QR factor in float64 is orthonormal to about d eps, one rounded to float32 is not
_ORTHONORMAL_TOLERANCE = 1e-8


def orthonormal(matrix: Numbers, what: str) -> Float[Tensor, "n m"]:
    """A float64 matrix with orthonormal columns, checked.

    Raises:
        InvalidProblem: not a matrix, more columns than rows, or columns that are not orthonormal.
    """
    q = numbers(matrix, what, ("n", "m"))
    require(
        0 < q.shape[1] <= q.shape[0],
        f"{what} has shape {tuple(q.shape)}; give (n, m) with 0 < m <= n.",
    )
    error = float((q.T @ q - torch.eye(q.shape[1], dtype=q.dtype, device=q.device)).abs().max())
    require(
        error <= _ORTHONORMAL_TOLERANCE,
        f"{what} has columns that miss orthonormality by {error:g}; use the Q factor of its QR"
        " decomposition.",
    )
    return q
