"""What was read from disk against what it must be: values of JSON become frozen dataclasses, every
key and every type as declared.

A dataclass is the schema: its annotations say what each key holds. Keys that it lacks, and keys
that have no default and are missing, are refused with their place.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from socft.checks import InvalidProblem

_T = TypeVar("_T")
_Fit: TypeAlias = Callable[[Any], Any]
LARGEST = 2**63
"""Whole numbers are smaller: those of more digits are damage, and overflow where they are used."""
NAMES: Mapping[Any, str] = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
    type(None): "null",
}


def structured(kind: type[_T], value: Any, where: str, remedy: str, complete: bool = False) -> _T:
    """The dataclass ``kind`` of a value of JSON.

    Args:
        where: the place of the value, for the message.
        remedy: what to do about damage, for the message.
        complete: whether every key must be there, also those with a default.

    Raises:
        InvalidProblem: a key is missing or unknown, a value is of another type, or the dataclass
            refuses it.
    """
    try:
        if complete and isinstance(value, dict):
            _require_keys(_keys(kind), value)
        return _fit(kind)(value)
    except _Misfit as error:
        raise InvalidProblem(f"{where} is damaged: {error}; {remedy}.") from error
    except InvalidProblem as error:
        said = str(error).rstrip(".")
        raise InvalidProblem(f"{where} is damaged: {said}; {remedy}.") from error


@functools.cache
def _keys(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


class _Misfit(Exception):
    """A value that is not as declared, with its place."""

    def __init__(self, text: str):
        super().__init__(text)
        self.text, self.place = text, ""

    def __str__(self) -> str:
        return f"{self.place.lstrip('.') or 'it'} is {self.text}"

    def inside(self, place: str) -> _Misfit:
        """The same, seen from outside."""
        self.place = place + self.place
        return self


@functools.cache
def _fit(kind: Any) -> _Fit:
    """What turns a value into what an annotation says."""
    origin = get_origin(kind)
    if kind is Any:
        return lambda value: value
    if dataclasses.is_dataclass(kind):
        return _table(kind)
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind))
    if origin is Literal:
        return _choice(get_args(kind))
    if origin in (tuple, list):
        return _listed(get_args(kind))
    return _plain(kind) if origin is None else _mapping(get_args(kind)[1])


def _plain(kind: type) -> _Fit:
    def fit(value: Any) -> Any:
        if type(value) is kind and (kind is not int or abs(value) < LARGEST):
            return value
        if kind is float and type(value) is int and abs(value) < LARGEST:
            return float(value)
        raise _wanted(value, NAMES[kind])

    return fit


def _choice(values: tuple[Any, ...]) -> _Fit:
    def fit(value: Any) -> Any:
        for each in values:
            if type(each) is type(value) and each == value:
                return each
        raise _wanted(value, " or ".join(map(repr, values)))

    return fit


def _one_of(kinds: tuple[Any, ...]) -> _Fit:
    """The first of several annotations that fits; where none does, the first one says why."""
    fits = [_fit(kind) for kind in kinds]
    as_they_are = {kind for kind in kinds if kind in NAMES and kind is not int}

    def fit(value: Any) -> Any:
        if type(value) in as_they_are:
            return value
        misfits = []
        for each in fits:
            try:
                return each(value)
            except _Misfit as error:
                misfits.append(error)
        raise misfits[0]

    return fit


def _listed(kinds: tuple[Any, ...]) -> _Fit:
    same = _fit(kinds[0]) if len(kinds) == 1 or kinds[1:] == (Ellipsis,) else None
    each = None if same else [_fit(kind) for kind in kinds]

    def fit(value: Any) -> Any:
        if not isinstance(value, list) or (each is not None and len(value) != len(each)):
            raise _wanted(value, "a list" if each is None else f"a list of {len(each)}")
        return tuple(
            _inside(one, item, f"[{i}]")
            for i, (one, item) in enumerate(zip(each or [same] * len(value), value, strict=True))
        )

    return fit


def _mapping(kind: Any) -> _Fit:
    one = _fit(kind)

    def fit(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _wanted(value, "an object")
        return dict(value) if kind is Any else _each(value, lambda _: one)

    return fit


def _table(kind: Any) -> _Fit:
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    fits = {field.name: _fit(hints[field.name]) for field in fields}
    needed = [
        field.name
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    ]

    def fit(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _wanted(value, "an object")
        for name in value:
            if name not in fits:
                raise _Misfit("no key of it").inside(f".{name}")
        _require_keys(needed, value)
        return kind(**_each(value, fits.__getitem__))

    return fit


def _require_keys(names: Iterable[str], value: Mapping[str, Any]) -> None:
    missing = [name for name in names if name not in value]
    if missing:
        raise _Misfit(f"without {', '.join(missing)}")


def _each(value: Mapping[str, Any], fit: Callable[[str], _Fit]) -> dict[str, Any]:
    """Every item of an object, by the fit of its key."""
    found, key = {}, ""
    try:
        for key, item in value.items():
            found[key] = fit(key)(item)
    except _Misfit as error:
        raise error.inside(f".{key}") from None
    return found


def _inside(fit: Any, value: Any, place: str) -> Any:
    try:
        return fit(value)
    except _Misfit as error:
        raise error.inside(place) from None


def _wanted(value: Any, what: str) -> _Misfit:
    return _Misfit(f"{_shown(value)}, where {what} belongs")


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= LARGEST:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
