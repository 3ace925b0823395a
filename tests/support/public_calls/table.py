"""The table of calls."""

# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from tests.support.mutations import Call


class Fresh:
    """An argument that is made anew for each call."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make


FIELD = Fresh(lambda: lambda k, x: -x)


CALLS: dict[str, Call] = {}


def add(
    make: Callable[..., Any],
    use: Callable[[Any], Any],
    name: str = "",
    **arguments: Callable[[], Any] | float | list[Any] | Tensor | str | bool | None,
) -> None:
    """A call of the table; classes and functions without arguments make theirs, others are what is
    given.
    """
    CALLS[name or make.__name__] = Call(make, _maker(arguments), use)


def _maker(arguments: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    return lambda: {
        name: each.make() if isinstance(each, Fresh) else each for name, each in arguments.items()
    }
