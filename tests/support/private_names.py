"""Private names of other packages in the sources: attributes, imports and names in strings that are
handed to ``setattr`` and its kin.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence

from tests.support.imports import Source, graph

BY_STRING = frozenset({"getattr", "setattr", "hasattr", "delattr", "__setattr__", "patch"})
"""Functions that are told an attribute by a string."""
DOCUMENTED = frozenset({"_asdict", "_exit", "_fields", "_make", "_replace"})
"""Public names of the standard library that look private."""


def is_private(path: str) -> bool:
    """Whether a part of a dotted name is private."""
    return any(
        part == "internal" or (part.startswith("_") and part.strip("_") and part[:2] != "__")
        for part in path.split(".")
    )


def foreign(sources: Sequence[Source], ours: Iterable[str]) -> set[tuple[str, str]]:
    """Every module that uses a private name of others, with that name.

    A name is own if a module of the packages ``ours`` defines it that is this one or imported here,
    or any at all for an attribute of ``self``, which may be inherited.
    """
    packages, arrows = frozenset(ours), graph(list(sources))
    defined = {source.name: _defined(source) for source in sources}
    inherited = set().union(*defined.values())
    found = set()
    for source in sources:
        own = set().union(*(defined[each] for each in (source.name, *arrows[source.name])))
        for node in source.nodes:
            known = inherited if _is_of_self(node) else own
            found |= {
                (source.name, name)
                for name in _names(node, packages)
                if is_private(name) and name not in known and name not in DOCUMENTED
            }
    return found


def _is_of_self(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="self" | "cls")):
            return True
    return False


def _names(node: ast.AST, packages: frozenset[str]) -> Iterator[str]:
    """What a node takes from other packages, public or not."""
    match node:
        case ast.Attribute(attr=name):
            yield name
        case ast.Import(names=aliases):
            yield from (each.name for each in aliases if _package(each.name) not in packages)
        case ast.ImportFrom(module=str(module), names=aliases, level=0):
            if _package(module) not in packages:
                yield from (f"{module}.{each.name}" for each in aliases)
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=args):
            if name in BY_STRING:
                yield from (
                    each.value
                    for each in args
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                    if each.value.isascii() and " " not in each.value
                )


def _package(module: str) -> str:
    return module.partition(".")[0]


def _defined(source: Source) -> set[str]:
    """Names of functions, classes, variables and attributes of ``self``."""
    found = set()
    for node in source.nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) if _is_of_self(node):
                found.add(name)
    return found
