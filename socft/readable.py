"""Representations that a person can read: constructor arguments by name, tensors by shape and
range.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import textwrap
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 88
"""Longest representation on one line; a longer one has a line per argument."""
FEW = 4
"""Numbers of a tensor, or members of a collection, that are written out."""


class Readable:
    """A base class whose heirs are represented by what they were made of, dataclasses included."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "__repr__" not in vars(cls):  # before the decorator of a dataclass adds one
            cls.__repr__ = Readable.__repr__

    def __repr__(self) -> str:
        return call(type(self).__name__, self.shown())

    def shown(self) -> dict[str, Any]:
        """What the representation shows: the arguments of the constructor that were kept and are
        not None.
        """
        names = _arguments(type(self))
        kept = {name: vars(self).get(name, vars(self).get(f"_{name}")) for name in names}
        return {name: value for name, value in kept.items() if value is not None}


def summary(value: Any) -> str:
    """A short text for any value: tensors by shape and range, functions by name, the start of long
    collections.
    """
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}, {sum(p.numel() for p in value.parameters())} parameters>"
    if isinstance(value, str) or hasattr(type(value), "shown"):
        return repr(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {summary(v)}' for k, v in value.items())}}}"
    if isinstance(value, Sequence | Set):
        start = list(itertools.islice(value, FEW if len(value) <= FEW else 1))
        more = [f"... {len(value)} in all"] if len(value) > FEW else []
        return f"({', '.join([*map(summary, start), *more])}{',' * (len(value) == 1)})"
    if isinstance(value, functools.partial) or (callable(value) and hasattr(value, "__qualname__")):
        inner = value.func if isinstance(value, functools.partial) else value
        return f"<{inspect.unwrap(inner).__qualname__.rpartition('<locals>.')[2].strip('<>')}>"
    if isinstance(value, torch.Generator):
        return f"<generator of seed {value.initial_seed()}>"
    text = repr(value)
    return f"<{type(value).__name__}>" if " object at 0x" in text else text


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """``name(key=value, ...)``, on one line where it fits."""
    parts = [f"{key}={summary(value)}" for key, value in arguments.items()]
    line = f"{name}({', '.join(parts)})"
    if len(line) <= WIDTH and "\n" not in line:
        return line
    return f"{name}(\n" + textwrap.indent(",\n".join(parts), "    ") + ",\n)"


def _tensor(tensor: Tensor) -> str:
    found = tensor.detach()
    if found.numel() == 0:
        return f"Tensor{tuple(found.shape)}"
    if found.numel() <= FEW:
        return str(_rounded(found.tolist())).replace("'", "")
    low, high = float(found.min()), float(found.max())
    inside = f"all {low:.4g}" if low == high else f"from {low:.4g} to {high:.4g}"
    return f"<{'x'.join(map(str, found.shape))} numbers, {inside}>"


def _rounded(values: Any) -> Any:
    return [_rounded(each) for each in values] if isinstance(values, list) else f"{values:.6g}"


@functools.cache
def _arguments(kind: type) -> tuple[str, ...]:
    return tuple(inspect.signature(kind).parameters)
