"""Functions that a user supplies, tried at the door on two states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import probe

Probes = Float[Tensor, "2 *dims"]


def probe_states(dims: tuple[int, ...]) -> Probes:
    """Two states at which functions of a state are tried."""
    values = torch.linspace(-0.5, 0.5, 2, dtype=torch.float64)
    return values.reshape(2, *[1] * len(dims)).expand(2, *dims).contiguous()


def probe_initial(initial: Callable[[Tensor], Tensor] | None, dims: tuple[int, ...]) -> None:
    """Refuse a map of noise to initial states that does not make finite states."""
    if initial is not None:
        with torch.no_grad():
            probe(initial, (probe_states(dims),), (2, *dims), "the initial map")


def probe_steps(
    function: Callable[[int, Tensor], Tensor],
    steps: int,
    initial: Callable[[Tensor], Tensor],
    dims: tuple[int, ...],
    what: str,
) -> None:
    """Refuse a function of step and state that does not make finite states of initial ones, at the
    first and the last step.
    """
    with torch.no_grad():
        start = initial(probe_states(dims))
        for k in (0, steps - 1):
            probe(function, (k, start), (2, *dims), what)
