"""Shapes and types of arguments and results, checked while the tests run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)
"""An int is fine where a float is asked for, and a float where a complex number is."""


def typechecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now refuses what its annotations do not allow.

    ``Self`` has a meaning in its class alone, which the function does not know: it is not checked.
    """
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if hint not in ("Self", Self)
    }
    checked = beartype(conf=CONF)(function)
    return _fields(function, checked) if function.__name__ == "__init__" else checked


def _fields(function: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """The check of a dataclass: its annotations say what it keeps, which is what its
    ``__post_init__`` makes of what it is given.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def init(*args: Any, **kwargs: Any) -> Any:
        if not hasattr(type(args[0]), "__post_init__"):
            return checked(*args, **kwargs)
        kept = vars(args[0])
        if not kept:
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.arguments |= {name: kept[name] for name in given.arguments if name in kept}
        return checked(*given.args, **given.kwargs)

    return init
