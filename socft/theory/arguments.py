"""Arguments of the theory's functions, checked by their names: each name is one quantity."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from socft.checks import LARGEST, InvalidProblem, quoted, require_kind, whole

P = ParamSpec("P")
R = TypeVar("R")

_BOUNDS = {"L0", "L1", "curvature", "mean_L0", "mean_L1", "third_derivative_ratio", "value_L0"} | {
    "iterates_L0",
    "gradient_error",
    "step",
    "rho",
    "steepest",
    "b",
    "constant",
    "slope",
}
"""Bounds: not negative, infinite where there is none."""
_RANGES = dict.fromkeys(_BOUNDS, (0.0, math.inf)) | {
    "lam": (1 / LARGEST, 1.0),
    "q": (0.0, 1.0),
    "sigma": (1 / LARGEST, LARGEST),
}
_COUNTS = {"dim": 1, "rounds": 0}
"""Least whole numbers."""


def checked(
    lam: tuple[float, float] | None = None, **kinds: type | tuple[type, ...]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Refuse numbers outside the range of their name, or arguments of another kind than given here;
    numbers of single precision are taken in double.

    Args:
        lam: the range of lam, where it is not that of a design constant.
        kinds: of arguments that are no numbers.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        given = inspect.signature(function).parameters
        plain = {name for name, each in given.items() if each.annotation in ("float", "int")}
        ranges = _RANGES | ({} if lam is None else {"lam": lam})

        def check(name: str) -> Callable[[Any], Any] | None:
            if name in kinds:
                return functools.partial(_of_kind, kinds[name], name)
            if name in _COUNTS and name in plain:
                return lambda value: whole(value, name, _COUNTS[name])
            if name in ranges and name in plain:
                return functools.partial(_within, *ranges[name], name)
            return None

        checks = {name: check(name) for name in given}
        in_order = tuple(checks.values())

        def taken(check: Callable[[Any], Any] | None, value: Any) -> Any:
            return value if check is None else check(value)

        @functools.wraps(function)
        def refusing(*args: P.args, **kwargs: P.kwargs) -> R:
            first = [taken(check, value) for check, value in zip(in_order, args, strict=False)]
            named = {name: taken(checks.get(name), value) for name, value in kwargs.items()}
            return function(*first, *args[len(in_order) :], **named)  # type: ignore[arg-type]

        return refusing

    return decorate


def _of_kind(kinds: type | tuple[type, ...], name: str, value: object) -> object:
    if not isinstance(value, kinds):
        first = kinds[0] if isinstance(kinds, tuple) else kinds
        require_kind(value, kinds, name, f"give an object of the class {first.__name__}.")
    return value


def _within(low: float, high: float, name: str, value: Any) -> float:
    """A number of any kind in full precision; an infinite end belongs to the interval."""
    if type(value) is float and low <= value <= high:
        return value
    try:
        plain = not isinstance(value, str | bytes) and getattr(value, "ndim", 0) == 0
        if plain and low <= (found := float(value)) <= high:
            return found
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise InvalidProblem(f"{name} = {quoted(value)}; give one number in [{low:g}, {high:g}].")
