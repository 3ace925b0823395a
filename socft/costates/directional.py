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
from torch._C._functorch import maybe_current_level

from socft.reference import Reference, States

VectorField = Callable[[Tensor], Tensor]


def gradient_of(number: Callable[[Tensor], Tensor], x: States) -> States:
    """The gradient of a number in x; where no gradients are recorded by plain automatic
    differentiation, which costs half as much as one that can be nested.
    """
    if not (torch.is_grad_enabled() or _transformed()):
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            return torch.autograd.grad(number(y), y)[0]
    return torch.func.grad(number)(x)


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


def _transformed() -> bool:
    """Whether a function is being differentiated by `torch.func`, inside which tensors cannot be
    told to record gradients.
    """
    return maybe_current_level() is not None


@functools.cache
def _load_forward_mode() -> None:
    """Torch's own first use of forward mode warns that it uses ``torch.jit.script``, which is an
    error where warnings are.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", Warning)  # its category changes
        torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.zeros(1),))
