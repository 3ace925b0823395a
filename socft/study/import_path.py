"""Objects by name, as configurations and command lines give them."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from socft.checks import InvalidProblem, described, meant, quoted, require_known, told, tried


def is_foreign(name: str) -> bool:
    """Whether a name on the command line means a file, a module or something in one."""
    return name.endswith(".py") or any(each in name for each in ":./\\")


def locate(path: str) -> Path:
    """The file of a module, given as ``FILE.py``, ``package.module`` or ``package:module``; the
    working directory is on the path.

    Raises:
        InvalidProblem: there is none.
    """
    if path.endswith(".py"):
        return _file(path)
    with _told(path.replace(":", "."), path):
        spec = importlib.util.find_spec(path.replace(":", "."))
    if spec is None and ":" in path:
        return locate(path.partition(":")[0])
    if spec is None or spec.origin is None:
        raise _no_module(path)
    return Path(spec.origin)


def import_module(path: str) -> ModuleType:
    """The module of a file ``FILE.py``, whose folder is then on the path, or of a name.

    Raises:
        InvalidProblem: there is none, it cannot be imported, or another one has its name.
    """
    name, file = path, None
    if path.endswith(".py"):
        file = _file(path).resolve()
        root, parts = file.parent, [file.stem]
        while (root / "__init__.py").is_file():
            root, parts = root.parent, [root.name, *parts]
        name = ".".join(parts)
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    with _told(name, path):
        found = importlib.import_module(name)
    origin = getattr(found, "__file__", None)
    if file is not None and (origin is None or Path(origin).resolve() != file):
        raise InvalidProblem(
            f"{path} has the name of another module, {origin or name}; rename the file."
        )
    return found


def import_object(path: str) -> Any:
    """The object at ``module:name`` or ``FILE.py:name``, which may be a module of a package; the
    working directory is on the path.

    Raises:
        InvalidProblem: the path is malformed, or there is no such module or name.
    """
    module, _, name = path.rpartition(":")
    if not module or ":" in module or not name.isidentifier():
        raise InvalidProblem(f"{path!r} is no import path; give MODULE:NAME.")
    found = import_module(module)
    if hasattr(found, name):
        return getattr(found, name)
    if hasattr(found, "__path__") and importlib.util.find_spec(f"{found.__name__}.{name}"):
        return import_module(f"{found.__name__}.{name}")
    public = sorted(each for each in vars(found) if each[0] != "_")
    remedy = meant(name, public, f"it has {', '.join(public)}.")
    raise InvalidProblem(f"module {module!r} has no {name!r}; {remedy}")


def _file(path: str) -> Path:
    file = Path(path)
    if file.is_file() and file.stem.isidentifier():
        return file
    if file.is_file():
        raise InvalidProblem(
            f"{path} cannot be imported by its name; rename it to letters, digits and underscores."
        )
    remedy = meant(
        file.stem,
        [each.stem for each in file.parent.glob("*.py")],
        "give the path of one.",
        lambda stem: str(file.with_name(f"{stem}.py")),
    )
    raise InvalidProblem(f"there is no file {path}; {remedy}")


def _no_module(name: str) -> InvalidProblem:
    files = {each.stem for each in Path().glob("*.py")} - {"setup", "conftest"}
    remedy = meant(name.partition(":")[0], files, "run from its folder, or install it.")
    return InvalidProblem(f"there is no module {name!r}; {remedy}")


@contextlib.contextmanager
def _told(module: str, path: str) -> Iterator[None]:
    """What goes wrong while a module is imported is the user's, and told in one sentence."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    importlib.invalidate_caches()
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise _no_module(path) from error
    except ValueError as error:
        if not isinstance(error, InvalidProblem) and not all(
            part.isidentifier() for part in module.split(".")
        ):
            raise InvalidProblem(f"{path!r} is no import path; give MODULE:NAME.") from error
        raise _broken(path, error) from error
    except Exception as error:
        raise _broken(path, error) from error


def _broken(path: str, error: Exception) -> InvalidProblem:
    return InvalidProblem(f"module {path!r} cannot be imported: {told(error)}; correct it there.")


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
        signature = inspect.signature(make)
    except ValueError:  # no signature is known
        signature = inspect.Signature([inspect.Parameter("_", inspect.Parameter.VAR_KEYWORD)])
    parameters = signature.parameters
    variable = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    for each in options if parameters and not variable else ():
        require_known(each, parameters, f"option of the {what} {name!r} named")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InvalidProblem(
            f"the {what} {name!r} refuses its options {quoted(dict(options))}: {error}."
        ) from error
    return tried(functools.partial(make, **options), (), f"the {what} {name!r}")
