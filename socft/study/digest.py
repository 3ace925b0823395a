"""What a task's records depend on, as a digest: function, arguments, code and versions."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import socft
from socft.checks import InvalidProblem
from socft.records import environment
from socft.study.tasks import Task

_NOT_MEASURING = ("cli/", "study/progress.py", "report/")
_BESIDE = frozenset({"socft", "toy", "verify"})
INSTALLED = Path(sysconfig.get_path("purelib"))
"""Where other packages lie beside `socft` too, and all of them change with their versions alone."""


def fingerprint(task: Task) -> str:
    """Digest of everything a task's records depend on: function, arguments, code and versions.

    Raises:
        InvalidProblem: an argument is not plain data.
    """
    arguments = {
        name: _plain(value, f"argument {name!r} of task {task.name!r}")
        for name, value in task.arguments.items()
    }
    where = f"{task.function.__module__}.{task.function.__qualname__}"
    content = json.dumps(
        [
            task.name,
            where,
            arguments,
            code_version(task.function.__module__),
            dict(environment().versions),
        ],
        sort_keys=True,
    )
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _plain(getattr(value, field.name), what)
            for field in dataclasses.fields(value)
        }
        return {"type": type(value).__qualname__} | fields
    raise InvalidProblem(
        f"{what} is a {type(value).__name__}; give plain numbers, strings or dataclasses of these."
    )


@functools.cache
def code_version(module: str) -> str:
    """Digest of the packages that `_packages` names, but for what does not measure."""
    digest = hashlib.sha256()
    for name, folder in sorted(_packages(module).items()):
        for file in sorted(folder.rglob("*.py")):
            relative = file.relative_to(folder).as_posix()
            if name == "socft" and relative.startswith(_NOT_MEASURING):
                continue
            digest.update(f"{name}/{relative}\0".encode() + file.read_bytes())
    for file in _beside(module):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def statements_digest(module: str) -> str:
    """Digest of the statements, without comments and docstrings, of a module and of those of this
    package, and of the packages beside it, that it imports, but for what does not measure.
    """
    root, left, seen = Path(socft.__file__).parents[1], {module}, dict[str, str]()
    while left:
        name = left.pop()
        place = root.joinpath(*name.split("."))
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if name in seen or not file.exists():
            continue
        relative = file.relative_to(root).as_posix().removeprefix("socft/")
        if relative.startswith(_NOT_MEASURING):
            continue
        tree = ast.parse(file.read_bytes())
        left |= {each for each in _imported(tree) if each.partition(".")[0] in _BESIDE}
        seen[name] = _statements(tree)
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:32]


def _statements(tree: ast.Module) -> str:
    """Digest of a module's statements; its docstrings are taken out of the tree."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            text = body[0].value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                body[0] = ast.Pass()
    return hashlib.sha256(json.dumps(structure(tree)).encode()).hexdigest()


def structure(node: Any) -> Any:
    """A syntax tree as plain data, without what is empty: versions of Python differ in what they
    say of that, and the same code is to have the same digest in all.

    >>> structure(ast.parse("x = 1").body[0].value)
    ['Constant', {'value': '1'}]
    """
    if isinstance(node, list):
        return [structure(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    return [type(node).__name__, {name: structure(value) for name, value in fields.items()}]


def _beside(module: str) -> list[Path]:
    """The file of a module that is in no package, and the files in its folder that it imports."""
    origin = getattr(importlib.import_module(module), "__file__", None)
    if "." in module or origin is None or Path(origin).name == "__init__.py":
        return []
    root, left, seen = Path(origin).parent, {module}, set()
    while left:
        seen.add(name := left.pop())
        imported = {each for each in _imports(root, name) if (root / f"{each}.py").is_file()}
        left |= imported - seen
    return [root / f"{name}.py" for name in sorted(seen)]


def _packages(module: str) -> dict[str, Path]:
    """Folders of the packages whose code a task of this module runs: `socft`, the module's own, and
    those beside `socft` that the modules of its own package that it reaches import.
    """
    own = module.partition(".")[0]
    folders = {"socft": Path(socft.__file__).parent}
    with contextlib.suppress(ImportError):
        for folder in getattr(importlib.import_module(own), "__path__", ()):
            folders[own] = Path(folder)
    if own not in folders:
        return folders
    beside, left, seen = folders["socft"].parent, {module}, set()
    while left:
        seen.add(name := left.pop())
        for imported in _imports(folders[own].parent, name):
            top = imported.partition(".")[0]
            if top == own:
                left |= {imported} - seen
            elif beside != INSTALLED and (beside / top / "__init__.py").exists():
                folders[top] = beside / top
    return folders


def _imports(root: Path, module: str) -> set[str]:
    """What a module imports, by name, wherever the statements stand; none where ``module`` is the
    name of an object in one.
    """
    place = root.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return _imported(ast.parse(file.read_bytes())) if file.exists() else set()


def _imported(tree: ast.Module) -> set[str]:
    """What a module imports, by name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{each.name}" for each in node.names}
    return found
