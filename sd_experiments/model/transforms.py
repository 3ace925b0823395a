"""Whether a transform of torch.func or forward-mode differentiation is at work.

Torch has no public name for either, but documents what it refuses outside or inside of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad


class _WithoutContext(torch.autograd.Function):
    """A function that lacks ``setup_context``, which every transform of torch.func asks for."""

    @staticmethod
    def forward(ctx: Any) -> None:
        return None


def is_transforming() -> bool:
    """Whether a transform of torch.func (``vjp``, ``jvp``, ``vmap``, ...) is being evaluated."""
    try:
        _WithoutContext.apply()
    except RuntimeError:
        return True
    return False


def is_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open, beside which torch opens no second
    one.

    The level, and not whether some tensor has a tangent: a reverse mode inside the forward mode
    hides it.
    """
    try:
        with forward_ad.dual_level():
            return False
    except RuntimeError:
        return True
