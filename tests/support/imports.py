"""Which module imports which, read from the sources: imports inside functions count as well."""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Graph = dict[str, frozenset[str]]
"""Every module's name, with the names of the modules that it imports."""


@dataclass(frozen=True)
class Source:
    """A module: its name, its file and what is written there."""

    name: str
    file: Path
    tree: ast.Module

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Everything in the tree, which takes long to walk."""
        return list(ast.walk(self.tree))

    @property
    def folder(self) -> str:
        """Name of the package whose folder has the file."""
        return self.name if self.file.stem == "__init__" else self.name.rpartition(".")[0]

    @property
    def assigned(self) -> set[str]:
        """Names assigned at module level."""
        found = [
            target
            for node in self.tree.body
            for target in (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AnnAssign)
                else []
            )
        ]
        return {each.id for each in found if isinstance(each, ast.Name)}

    @property
    def classes(self) -> list[str]:
        """Public classes defined at module level."""
        return [
            node.name
            for node in self.tree.body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]


def read(root: Path, *packages: str) -> list[Source]:
    """The modules of the packages in the folder ``root``."""
    files = [file for package in packages for file in sorted((root / package).rglob("*.py"))]
    names = (".".join(file.relative_to(root).with_suffix("").parts) for file in files)
    gc.disable()  # trees grow by a million objects, none of which is garbage
    try:
        return [
            Source(name.removesuffix(".__init__"), file, ast.parse(file.read_text()))
            for name, file in zip(names, files, strict=True)
        ]
    finally:
        gc.enable()


def graph(sources: list[Source]) -> Graph:
    """What each of the modules imports of the others."""
    names = {source.name for source in sources}
    return {
        source.name: frozenset(names.intersection(_named(source, names)) - {source.name})
        for source in sources
    }


def _named(source: Source, names: set[str]) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(source.folder, node)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in names else origin


def _absolute(folder: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    base = folder.split(".")[: len(folder.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def cycle(arrows: Graph) -> list[str]:
    """Modules that import each other in a ring; none where there is no ring."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []
