"""Objects by name, as configurations and command lines give them."""

from __future__ import annotations

import pkgutil
import sys
from typing import Any

from socft.checks import InvalidProblem


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
    except AttributeError as error:
        found = sys.modules.get(module)
        if found is None or error.obj is not found:
            raise
        public = ", ".join(sorted(each for each in vars(found) if each[0] != "_"))
        raise InvalidProblem(f"module {module!r} has no {name!r}; it has {public}.") from error
