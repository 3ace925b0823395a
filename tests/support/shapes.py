"""Shapes and types of arguments and results, checked while the tests run."""

from __future__ import annotations

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
    return beartype(conf=CONF)(function)
