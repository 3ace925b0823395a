"""Tensors in float64 that the tests share: given numbers, and seeded random ones."""

from __future__ import annotations

import torch
from torch import Tensor

F64 = torch.float64


def t(*values: float) -> Tensor:
    """A vector."""
    return torch.tensor(values, dtype=F64)


def generator(seed: int) -> torch.Generator:
    """Random numbers that start anew."""
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers, a function of the seed."""
    return torch.randn(*shape, generator=generator(seed), dtype=F64)
