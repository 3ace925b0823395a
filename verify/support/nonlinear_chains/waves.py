"""One step towards a value function of waves, and differences of fourth order."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

F64 = torch.float64
STEP = 1e-3
DIFFERENCE = 1e-7
"""Error of `differences` of waves, relative to one."""


@dataclasses.dataclass(frozen=True, eq=False)
class WaveStep(abc.ABC):
    """``V(x) = sum_j c_j sin(w_j . x + p_j)`` behind ``m(x) = A x + 0.3 tanh(x)`` and noise that a
    subclass makes of ``B``, beta = 1.

    Attributes:
        c, w, p: shapes (J,), (J, n), (J,).
        A: shape (n, n).
        B: shape (n, m).
    """

    c: Tensor
    w: Tensor
    p: Tensor
    A: Tensor
    B: Tensor

    @classmethod
    def drawn(cls, n: int, m: int, seed: int, size: float) -> Self:
        """Random ones whose smoothed curvature is at most ``size < 1`` in units of the noise."""
        draw = torch.Generator().manual_seed(seed)
        c, p = (torch.randn(4, generator=draw, dtype=F64) for _ in range(2))
        w, A, B = (torch.randn(k, n, generator=draw, dtype=F64) for k in (4, n, m))
        step = cls(c, w, p, A / 2, B.T / 2)
        return dataclasses.replace(step, c=size * c / step.curvature)

    @property
    @abc.abstractmethod
    def curvature(self) -> Tensor:
        """A bound of the smoothed curvature in units of the noise."""

    def mean(self, x: Tensor) -> Tensor:
        """m."""
        return x @ self.A.T + 0.3 * torch.tanh(x)

    def angles(self, x: Tensor) -> Tensor:
        """``w_j . x + p_j``."""
        return x @ self.w.T + self.p

    def bends(self, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and Hessian of waves of amplitudes ``c``, each row's own or common ones."""
        angle = self.angles(y)
        hessian = -torch.einsum("bj,jn,jk->bnk", c * angle.sin(), self.w, self.w)
        return (c * angle.cos()) @ self.w, hessian


def differences(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Derivatives by each coordinate of ``x``, of shape (batch, n); they come last."""
    columns = []
    for e in torch.eye(x.shape[1], dtype=F64):
        near, far = (function(x + h * e) - function(x - h * e) for h in (STEP, 2 * STEP))
        columns.append((8 * near - far) / (12 * STEP))
    return torch.stack(columns, -1)
