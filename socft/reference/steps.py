"""One step or one step per sample: coefficients and functions picked by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Step: TypeAlias = "int | Int[Tensor, ' batch']"
States: TypeAlias = Float[Tensor, "batch *dims"]
Noises: TypeAlias = Float[Tensor, "batch *noise_dims"]


def at_step(coefficients: Tensor, k: Step, x: Tensor) -> Tensor:
    """Pick coefficient(s) ``k`` in the dtype and device of ``x``, shaped to broadcast against
    ``batch *dims``.
    """
    picked = coefficients[k.to(coefficients.device) if isinstance(k, Tensor) else k].to(x)
    return picked if picked.ndim == 0 else picked.reshape(-1, *[1] * (x.ndim - 1))


def level_at(abar: Tensor, k: Step, x: Tensor) -> tuple[Tensor, Tensor]:
    """`at_step` of signal and noise level, ``abar`` and ``1 - abar``, each to the precision of
    ``x``: the difference of the rounded ones would lose the noise next to level 1.
    """
    return at_step(abar, k, x), at_step(1 - abar, k, x)


def by_step(k: Step, x: Tensor, function: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Apply ``function(step, rows)`` to the rows of each step, for one step or one step per sample.

    An empty batch goes to step 0, which gives the result its shape.
    """
    if isinstance(k, int):
        return function(k, x)
    if len(k) == 0:
        return function(0, x)
    parts = [(k == i).nonzero().flatten() for i in k.unique().tolist()]
    rows = torch.cat([function(int(k[part[0]]), x[part]) for part in parts])
    return rows[torch.cat(parts).argsort()]


def product(matrices: Float[Tensor, "steps n m"], k: Step, x: Tensor) -> Tensor:
    """``matrices[k] x`` of vectors."""
    if isinstance(k, Tensor):
        return (matrices[k.to(matrices.device)].to(x) @ x.unsqueeze(-1)).squeeze(-1)
    return x @ matrices[k].to(x).mT
