"""Objects by name, as configurations and command lines give them."""

from __future__ import annotations

import functools
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from typing import Any

from socft.checks import InvalidProblem, described, quoted, told, tried


def import_object(path: str) -> Any:
    """The object at ``module:name``; the working directory is on the path.

    Raises:
        InvalidProblem: the path is malformed, or there is no such module or name.
    """
    module, _, name = path.partition(":")
    if not module or not name.isidentifier():
        raise InvalidProblem(f"{path!r} is no import path; give MODULE:NAME.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return pkgutil.resolve_name(path)
    except ValueError as error:
        raise InvalidProblem(f"{path!r} is no import path; give MODULE:NAME.") from error
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise InvalidProblem(
            f"there is no module {module!r}; run from its folder, or install it."
        ) from error
    except Exception as error:
        found = sys.modules.get(module)
        if found is None or not isinstance(error, AttributeError) or error.obj is not found:
            raise InvalidProblem(
                f"module {module!r} cannot be imported: {told(error)}; correct it there."
            ) from error
        public = ", ".join(sorted(each for each in vars(found) if each[0] != "_"))
        raise InvalidProblem(f"module {module!r} has no {name!r}; it has {public}.") from error


def make_object(what: str, path: str, options: Mapping[str, Any] | None = None) -> Any:
    """What the function or class at ``module:name`` makes, called with some options.

    Raises:
        InvalidProblem: see `import_object`; it cannot be called, refuses the options or fails.
    """
    return call_factory(what, path, import_object(path), options or {})


def call_factory(what: str, name: str, make: Any, options: Mapping[str, Any]) -> Any:
    """What a factory makes.

    Raises:
        InvalidProblem: it cannot be called, refuses the options or fails.
    """
    if not callable(make):
        raise InvalidProblem(
            f"{name} is {described(make)}; it must be a function or class that makes the {what}."
        )
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise InvalidProblem(
            f"the {what} {name!r} refuses its options {quoted(dict(options))}: {error}."
        ) from error
    except ValueError:  # no signature is known
        pass
    return tried(functools.partial(make, **options), (), f"the {what} {name!r}")
