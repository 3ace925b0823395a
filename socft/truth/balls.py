"""Matrices in ball arithmetic (FLINT): every entry is an interval with the exact number in it."""

from __future__ import annotations

import math

import torch
from flint import arb, arb_mat
from jaxtyping import Float
from torch import Tensor


def balls(values: Tensor) -> arb_mat:
    """The exact numbers of a matrix; of a vector as a column."""
    table = values.unsqueeze(1) if values.ndim == 1 else values
    rows, columns = table.shape
    return arb_mat(rows, columns, [arb(entry) for entry in table.flatten().tolist()])


def identity(n: int) -> arb_mat:
    """The identity matrix."""
    return balls(torch.eye(n, dtype=torch.float64))


def stack(left: arb_mat, right: arb_mat) -> arb_mat:
    """Side by side."""
    rows = [a + b for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    return arb_mat(rows)


def columns(matrix: arb_mat, which: range) -> arb_mat:
    """Some columns."""
    return arb_mat([[row[i] for i in which] for row in matrix.tolist()])


def above(matrix: arb_mat) -> Float[Tensor, "rows columns"]:
    """Moduli, from above; infinite where nothing is known."""
    entries = [_above(entry) for entry in matrix.entries()]
    shape = matrix.nrows(), matrix.ncols()
    return torch.tensor(entries, dtype=torch.float64).reshape(shape)


def _above(ball: arb) -> float:
    if not ball.is_finite():
        return math.inf
    return float(ball.abs_upper()) * (1 + 2**-52)


def norm(matrix: arb_mat) -> float:
    """The Frobenius norm, from above."""
    square = sum((entry * entry for entry in matrix.entries()), arb(0))
    return _above(square.abs_upper().sqrt()) if square.is_finite() else math.inf


def is_sharp(matrix: arb_mat, bits: int) -> bool:
    """Whether every entry is known to ``2^-bits`` of the largest."""
    sizes = [abs(entry.mid()) for entry in matrix.entries()]
    if not all(entry.is_finite() for entry in matrix.entries()):
        return False
    top, widest = max(sizes, default=arb(0)), max((e.rad() for e in matrix.entries()), default=0)
    return bool(widest == 0 or widest * arb(2) ** bits <= top)


def solution(matrix: arb_mat, right: arb_mat) -> arb_mat | None:
    """``matrix^-1 right``; None unless the matrix is proven regular."""
    try:
        return matrix.solve(right)
    except ZeroDivisionError:
        return None


def log_det(matrix: arb_mat) -> arb | None:
    """Of a symmetric matrix, by elimination; None unless it is proven positive definite."""
    rows, total = matrix.tolist(), arb(0)
    for i, pivot in enumerate(rows):
        if not pivot[i] > 0:
            return None
        total += pivot[i].log()
        for row in rows[i + 1 :]:
            factor = row[i] / pivot[i]
            for j in range(i + 1, len(rows)):
                row[j] -= factor * pivot[j]
    return total
