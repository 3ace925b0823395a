"""Mutants of the modules of a folder: each is one change of one module, under a name that stays
while the function it is in is not edited.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support.mutation.operators import Change, changed, changes, enclosing

ROOT = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        name: eight digits, of what follows and the text of the function.
        file: relative to the repository.
        where: qualified name of the outermost function, or of the class; empty for the module.
        operator: the kind of mistake.
        before: the expression.
        after: what stands in its place.
    """

    name: str
    file: str
    where: str
    operator: str
    before: str
    after: str

    @property
    def module(self) -> str:
        """Name of its module."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def __str__(self) -> str:
        words = [" ".join(text.split()) for text in (self.before, self.after)]
        return f"{self.name} {self.file} {self.where}: {self.operator}: {words[0]} -> {words[1]}"


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


@functools.cache
def _found(file: str) -> dict[str, tuple[Mutant, Change]]:
    tree, seen = _tree(file), Counter()
    found: dict[str, tuple[Mutant, Change]] = {}
    for change in changes(tree):
        where, function = enclosing(tree, change.path)
        after = "(left out)" if change.after is None else ast.unparse(change.after)
        body = "" if function is None else ast.unparse(function)
        text = "\0".join((file, where, change.operator, change.before, after, body))
        seen[text] += 1
        digest = hashlib.sha256(f"{text}\0{seen[text]}".encode()).hexdigest()[:8]
        mutant = Mutant(digest, file, where, change.operator, change.before, after)
        found[digest] = (mutant, change)
    return found


def mutants(*patterns: str) -> Iterator[Mutant]:
    """Of all modules whose paths match, in the order of their files and lines."""
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            for mutant, _ in _found(str(path.relative_to(ROOT))).values():
                yield mutant


def compiled(mutant: Mutant) -> types.CodeType:
    """The code of the mutant's module, at the lines of the original."""
    _, change = _found(mutant.file)[mutant.name]
    return compile(changed(_tree(mutant.file), change), str(ROOT / mutant.file), "exec")


def is_local(mutant: Mutant) -> bool:
    """Whether the mistake is in the body of a function, whose code can be exchanged."""
    _, change = _found(mutant.file)[mutant.name]
    return enclosing(_tree(mutant.file), change.path)[1] is not None


def code_of(module: types.CodeType, where: str) -> list[types.CodeType]:
    """The code of the functions of a qualified name; several where a property has a setter."""
    found, open_codes = [], [module]
    while open_codes:
        for each in open_codes.pop().co_consts:
            if isinstance(each, types.CodeType):
                open_codes.append(each)
                if each.co_qualname == where:
                    found.append(each)
    return found
