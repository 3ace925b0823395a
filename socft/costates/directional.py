"""Gradients of numbers, and directional derivatives of vector fields by forward-mode
differentiation, one pass each, in any nesting.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from socft.reference import Reference, States

VectorField = Callable[[Tensor], Tensor]


def gradient_of(number: Callable[[Tensor], Tensor], x: States) -> States:
    """The gradient of a number in x; where no gradients are recorded by plain automatic
    differentiation, which costs half as much as one that can be nested.
    """
    leaf = None if torch.is_grad_enabled() else _leaf(x)
    if leaf is None:
        return torch.func.grad(number)(x)
    with torch.enable_grad():
        value = number(leaf)
        if not value.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)[0]


def derivative(phi: VectorField, x: States, direction: States) -> Tensor:
    """``d/de phi(x + e u)`` at 0."""
    _load_forward_mode()
    return torch.func.jvp(phi, (x,), (direction,))[1]


def second_derivative(phi: VectorField, x: States, direction: States) -> Tensor:
    """``d^2/de^2 phi(x + e u)`` at 0."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():  # without it torch has no forward mode for the derivative of silu
        found = derivative(lambda y: derivative(phi, y, direction), x, direction)
    return found if wanted else found.detach()


def trace(phi: VectorField, x: States, directions: Iterable[States]) -> Tensor:
    """``sum_i`` of the second derivatives along each direction."""
    return torch.stack([second_derivative(phi, x, u) for u in directions]).sum(0)


def columns(reference: Reference, k: int, x: States) -> list[States]:
    """``B_k(x) e_i`` for every unit noise ``e_i``."""
    dims = reference.noise_dims
    units = torch.eye(math.prod(dims), dtype=x.dtype, device=x.device).unflatten(1, dims)
    return [reference.diffusion.apply(k, x, e.expand(len(x), *dims)) for e in units]


def _leaf(x: States) -> States | None:
    """States that record gradients; none inside a function that `torch.func` differentiates, where
    tensors cannot be told to.
    """
    try:
        return x.detach().requires_grad_(True)
    except RuntimeError:
        return None


@functools.cache
def _load_forward_mode() -> None:
    """Torch's own first use of forward mode warns that it uses ``torch.jit.script``, which is an
    error where warnings are.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", Warning)  # its category changes
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))
