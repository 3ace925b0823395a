"""Settings given on the command line past the file, ``--set KEY=VALUE``.

The key is dotted as in TOML, ``estimator.options.last``, and so is the value, ``[512, 512]``. A
setting that takes text takes it without quotes, ``reward.name=jpeg``; one that can be left out in a
file is left out by ``none``.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sd_experiments.config import Change, ExperimentConfig
from socft.checks import InvalidProblem, meant, nearest, quoted, require

NONE = "none"
FORM = "give KEY=VALUE, such as run.steps=20"


def read_assignments(texts: Sequence[str]) -> tuple[Change, ...]:
    """What ``KEY=VALUE`` texts set.

    Raises:
        InvalidProblem: a text has no value, its key is unknown or it is more than one value.
    """
    return tuple(map(_read, texts))


@functools.cache
def known_keys() -> Mapping[str, Any]:
    """Every key of a configuration, dotted, with the type of its value."""
    return {
        f"{table}.{key}": kind
        for table, content in get_type_hints(ExperimentConfig).items()
        for key, kind in get_type_hints(content).items()
        if not key.startswith("__")
    }


def _read(text: str) -> Change:
    name, equals, value = text.partition("=")
    require(bool(equals), f"--set {quoted(text)} has no value; {FORM}.")
    key = _key(name.strip(), text)
    return Change(key, _value(value.strip(), known_keys()[".".join(key[:2])], text))


def _key(name: str, text: str) -> tuple[str, ...]:
    """The parts of a dotted key, of which the first two are known."""
    found, parts = _parsed(f"{name} = 0"), []
    while isinstance(found, Mapping) and len(found) == 1:
        (part, found) = next(iter(found.items()))
        parts.append(part)
    require(found == 0 and bool(parts), f"--set {quoted(text)} has no key; {FORM}.")
    _require_known(tuple(parts))
    return tuple(parts)


def _require_known(parts: tuple[str, ...]) -> None:
    known, name = known_keys(), ".".join(parts)
    *_, leaf = parts
    inside = known.get(".".join(parts[:2])) if len(parts) > 1 else None
    if inside is not None and (len(parts) == 2 or get_origin(inside) is dict):
        return
    require(inside is None, f"there is no key {quoted(name)}; {'.'.join(parts[:2])} is no table.")
    within = [each for each in known if each.partition(".")[0] == name]
    require(not within, f"{name} is a table; set one of its keys, such as {within[:1]}.")
    last = [each for each in known if each.partition(".")[2] == leaf]
    tables = ", ".join(dict.fromkeys(each.partition(".")[0] for each in known))
    given, among = (last[0], last) if last else (name, [*known])
    given = given if nearest(given, among) else leaf
    remedy = meant(given, among, f"the tables are {tables}.")
    raise InvalidProblem(f"there is no key {quoted(name)}; {remedy}")


def _value(text: str, kind: Any, said: str) -> Any:
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if text == NONE and NoneType in members:
        return None
    found = _parsed(f"value = {text}")
    require(
        found is None or found.keys() == {"value"},
        f"--set {quoted(said)} sets more than one value; give --set once for each.",
    )
    if found is None:
        return text
    value = found["value"]
    return text if any(map(_is_text, members)) and not isinstance(value, str) else value


def _is_text(kind: Any) -> bool:
    return kind is str or get_origin(kind) is Literal


def _parsed(text: str) -> dict[str, Any] | None:
    """A TOML document; None where it is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None
