"""Shapes and types of arguments and results, checked while the tests run.

A function is checked at its first calls in every test: what is wrong with later ones is, but for
rare branches, wrong with these, and a check takes as long as a small step.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pkgutil
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from unittest import mock

import jaxtyping
import pytest
from hypothesis.strategies import DrawFn

with mock.patch("random.getrandbits", random.Random(0).getrandbits):
    # Which entry of a list is checked is drawn; from the generator that tests seed, this would
    # change what they see.
    from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True)
"""An int is fine where a float is asked for, and a float where a complex number is."""
UNCHECKED = (Self, "Self", DrawFn, "DrawFn")
"""Has a meaning in its class alone, which a function does not know; a protocol of Hypothesis that
cannot be checked while a program runs.
"""


CALLS = 20
"""Of a function in a test that are checked."""
_called: Counter[Callable[..., Any]] = Counter()
_jaxtyped = jaxtyping.jaxtyped
PACKAGES = ("socft", "toy", "verify", "sd_experiments")
_ROOT = Path(__file__).resolve().parents[2]


def install() -> None:
    """Check what is called in the packages.

    Raises:
        pytest.UsageError: one is imported already, so that nothing of it would be checked.
    """
    early = [package for package in PACKAGES if package in sys.modules]
    if early:
        raise pytest.UsageError(f"{early[0]} is imported already; check shapes before.")
    modules = [
        f"{package}.{module.name}"
        for package in PACKAGES
        for module in pkgutil.iter_modules([str(_ROOT / package)])
        if module.name != "conftest"  # pytest looks at the functions themselves
    ]
    jaxtyping.jaxtyped = first_calls  # what the hook decorates functions with
    jaxtyping.install_import_hook(modules, f"{__name__}.{typechecked.__name__}")


def begin_test() -> None:
    """Check the next calls of every function."""
    _called.clear()


def first_calls(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped` for the first calls of a function in every test; made at the first."""
    if function is None:
        return functools.partial(first_calls, typechecker=typechecker)
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function) and "__init__" in vars(function):
            function.__init__ = first_calls(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    made = functools.cache(lambda: _jaxtyped(function, typechecker=typechecker))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        _called[function] += 1
        return (made() if _called[function] <= CALLS else function)(*args, **kwargs)

    @functools.wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Any:
        return (yield from call(*args, **kwargs))

    return generate if inspect.isgeneratorfunction(function) else call


def typechecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which now refuses what its annotations do not allow."""
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if hint not in UNCHECKED
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
