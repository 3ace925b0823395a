"""Where a number along paths that is not finite comes from, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from socft.checks import InvalidProblem, require
from socft.path import Path
from socft.problem import ControlProblem

GROWTH = "the controls grow without bound: lower the learning rate or raise beta."
DOMAIN = "it must be a finite number on every path: check its domain and its weights."


def require_finite_paths(
    problem: ControlProblem, path: Path, values: Float[Tensor, "*lead batch"], what: str
) -> None:
    """Refuse values of paths that are not all finite, and name their cause.

    The first of the controls and states in the order of their making, the rewards and the running
    costs that is not finite is the cause; the values themselves where all of these are.

    Args:
        values: one number or several per path, the paths last.
        what: what they are, in the plural.

    Raises:
        InvalidProblem: one is not finite.
    """
    finite = values.isfinite().reshape(-1, values.shape[-1]).all(0)
    if bool(finite.all()):
        return
    for name, found, remedy in _causes(problem, path):
        _refuse(found, name, remedy)
    require(
        False,
        f"{what} are not finite on {int((~finite).sum())} of {len(finite)} paths, where states,"
        f" controls and rewards are; {GROWTH}",
    )


def _causes(problem: ControlProblem, path: Path) -> Iterator[tuple[str, Tensor, str]]:
    """What values are made of, in the order of their making: name, numbers per path, remedy."""
    for k, control in enumerate(path.controls):
        yield f"the state of step {k}", path.states[k], GROWTH
        yield f"the control of step {k}", control, GROWTH
    yield "the last state", path.final, GROWTH
    with torch.no_grad():
        yield "the reward", problem.reward(path.final), DOMAIN
        for k, x in enumerate(path.states[:-1]):
            yield f"the running cost of step {k}", problem.cost(k, x), DOMAIN


def _refuse(values: Float[Tensor, "batch *dims"], what: str, remedy: str) -> None:
    each = values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)
    bad: Bool[Tensor, " batch"] = ~each.isfinite().all(1)
    if bool(bad.any()):
        first = each[bad][0]
        raise InvalidProblem(
            f"{what} is {float(first[~first.isfinite()][0])} on {int(bad.sum())} of {len(bad)}"
            f" paths; {remedy}"
        )
