"""Objects by name, as configurations and command lines give them."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from socft.checks import InvalidProblem, require


def imported(path: str) -> Any:
    """The object at ``module:name``; the working directory is on the path.

    Raises:
        InvalidProblem: the path is malformed, or there is no such module or name.
    """
    module, _, name = path.partition(":")
    require(bool(module) and name.isidentifier(), f"{path!r} is no import path; give MODULE:NAME.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise InvalidProblem(
            f"there is no module {module!r}; run from its folder, or install it."
        ) from error
    require(
        hasattr(found, name),
        f"module {module!r} has no {name!r}; it has"
        f" {', '.join(sorted(n for n in vars(found) if n[0] != '_'))}.",
    )
    return getattr(found, name)
