"""The instance of a record in words and mathematics.

What a claim recorded of an instance is a mapping of plain numbers, strings, lists and mappings; the
key ``type`` names the class of `verify` that a mapping was. What is not known here is shown as it
is recorded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from socft.report.typeset import NOT_MEASURED, number, text
from socft.report.unicode_math import markup

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Kind:
    """How the instances of a class are told, and the fields of theirs that this tells."""

    words: Callable[[Row], str]
    fields: tuple[str, ...]


SHOWN = 4
"""Longer lists are shown by their range."""
EXACT = 1e5
"""Whole numbers below this one are shown as such."""
SYMBOLS = {"updates": "m", "step": "t", "lam": "lambda", "dim": "d", "steps": "T", "eps": "epsilon"}
HIDDEN = ("count", "entry", "seed", "type")
"""What only rebuilding an instance needs."""


def words(instance: Row) -> str:
    """The instance as markup."""
    kind = KINDS.get(
        instance.get("type", "Staircase" if {"knots", "levels"} <= instance.keys() else "")
    )
    known = kind.fields if kind else ()
    phrases = [kind.words(instance)] if kind else []
    phrases += [
        _entry(key, value) for key, value in instance.items() if key not in (*HIDDEN, *known)
    ]
    return ", ".join(phrases) or NOT_MEASURED


def _entry(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return words(value) if value.get("type") in KINDS else f"{markup(key)}: {words(value)}"
    symbol = f"${SYMBOLS[key]}$" if key in SYMBOLS else markup(key)
    if "$" not in symbol:
        symbol = f"${symbol[1:-1]}$"  # a string of markup is one of mathematics too
    return f"{symbol} $=$ {_value(value)}".replace("$ $", " ")


def _value(value: Any) -> str:
    """A value, a short list of them, or the range of a long one."""
    if isinstance(value, bool) or value is None:
        return text(str(value).lower())
    if isinstance(value, str) and value not in ("inf", "-inf"):
        return markup(value)
    if not isinstance(value, list | tuple):
        return f"${_number(float(value))}$"
    flat = list(_flat(value))
    if not all(isinstance(x, float) for x in flat):
        return ", ".join(map(_value, flat[:SHOWN])) + (", …" if len(flat) > SHOWN else "")
    if len(set(flat)) == 1:
        return f"${_number(flat[0])}$"
    if len(flat) > SHOWN:
        return f"${_number(min(flat))}$ to ${_number(max(flat))}$"
    return f"$({', '.join(map(_number, flat))})$"


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    """The entries of nested lists, numbers as such."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            numeric = value in ("inf", "-inf") or (
                isinstance(value, int | float) and not isinstance(value, bool)
            )
            yield float(value) if numeric else value


def _number(value: float) -> str:
    """A number within mathematics: whole as it is, otherwise three digits, without zeros at the
    end.
    """
    if math.isfinite(value) and float(value).is_integer() and abs(value) < EXACT:
        return str(int(value))
    short = f"{value:.3g}"
    return short if math.isfinite(value) and "e" not in short else number(value).strip("$")


def _product(row: Row) -> str:
    size, factors = row.get("size", 1), row["factors"]
    each = "; and ".join(f"{_score(f['score'])}, {_reward(f['reward'])}" for f in factors)
    place = "" if size == 1 else "in every coordinate " if len(factors) == 1 else "in turn "
    return ", ".join(
        [f"$d = {size}$" + (", rotated" if size > 1 else ""), *_chain(row), place + each]
    )


def _quadratic(row: Row) -> str:
    score = f"$s(y) = S y + e$ with eigenvalues {_value(row['score'])}"
    reward = rf"$r(y) = y^top P y\/2 + q^top y$ with eigenvalues {_value(row['curvature'])}"
    bases = (
        ["in different bases"] if len(row["score"]) > 1 and row.get("rotation") is not None else []
    )
    return ", ".join([f"$d = {len(row['score'])}$", *_chain(row), score, reward, *bases])


def _chain(row: Row) -> list[str]:
    """The schedule, and the design constants."""
    levels = row["levels"]
    signal = f"signal level ${_number(levels[0])}$ to ${_number(levels[-1])}$"
    kernels = ["posterior variances"] if row.get("posterior") else []
    return [f"$T = {len(levels) - 1}$", signal, *kernels, _entry("lam", row["lam"])]


def _score(row: Row) -> str:
    if row["type"] == "MixtureScore":
        single = len(row["weights"]) == 1
        parts = zip(row["weights"], row["means"], row["variances"], strict=True)
        return (
            "score of"
            f" ${_sum([('' if single else _number(w)) + f' N({_number(m)}, {_number(v)})' for w, m, v in parts])}$"
        )
    bend = f"tanh({_times(row['w'], 'y')})"
    return f"$s(y) = {_linear((-row['c'], 'y'), (row['b'], bend), (row['e'], ''))}$"


def _reward(row: Row) -> str:
    return (
        f"$r(x) = {REWARDS[row['type']](row)}$"
        if row["type"] in REWARDS
        else f"reward {words(row)}"
    )


def _sine(r: Row) -> str:
    return _linear((r["amplitude"], f"sin({_linear((r['frequency'], 'x'), (r['phase'], ''))})"))


def _softplus(r: Row) -> str:
    return _linear(
        (
            r["slope"] / r["sharpness"],
            f"log(1 + e^({_times(r['sharpness'], _shifted(r['center']))}))",
        )
    )


def _pseudo_huber(r: Row) -> str:
    inside = (
        _shifted(r["center"])
        if _number(r["delta"]) == "1"
        else rf"({_shifted(r['center'])}\/{_number(r['delta'])})"
    )
    return _linear((r["weight"] * r["delta"] ** 2, f"(sqrt(1 + {inside}^2) - 1)"))


def _smooth_maximum(r: Row) -> str:
    levels = [_linear((w, "x"), (b, "")) for w, b in zip(r["slopes"], r["offsets"], strict=True)]
    divided = "" if _number(r["temperature"]) == "1" else rf"\/{_number(r['temperature'])}"
    total = " + ".join(f"e^(({level}){divided})" for level in levels)
    return _linear((r["temperature"], f"log({total})"))


def _one_step(row: Row) -> str:
    """One step with a given slope of the next value function."""
    return (
        rf"one step with $m(y) = y$, $rho = {_number(row['q'])}$, $sigma ="
        rf" {_number(row['sigma'])}$, {_staircase(row['value'])}"
    )


def _staircase(row: Row) -> str:
    return f"$V'' =$ {_value(row['levels'])} between knots {_value(row['knots'])}"


REWARDS: Mapping[str, Callable[[Row], str]] = {
    "Sine": _sine,
    "Softplus": _softplus,
    "PseudoHuber": _pseudo_huber,
    "SmoothMaximum": _smooth_maximum,
    "Slope": lambda r: _linear((r["w"], "x")),
    "Parabola": lambda r: _linear((r["p"] / 2, "x^2"), (r["q"], "x")),
}
KINDS: Mapping[str, Kind] = {
    "ProductInstance": Kind(
        _product, ("levels", "lam", "posterior", "factors", "size", "rotation")
    ),
    "QuadraticInstance": Kind(
        _quadratic,
        ("levels", "lam", "posterior", "score", "shift", "curvature", "slope", "rotation"),
    ),
    "OneStep": Kind(_one_step, ("value", "q", "sigma")),
    "Staircase": Kind(_staircase, ("knots", "levels")),
}


def _linear(*terms: tuple[float, str]) -> str:
    """A sum of multiples of symbols, without zero terms."""
    return _sum([_times(c, symbol) for c, symbol in terms if c != 0]) or "0"


def _sum(terms: Sequence[str]) -> str:
    return " + ".join(term.strip() for term in terms).replace("+ -", "- ")


def _times(c: float, symbol: str) -> str:
    if not symbol:
        return _number(c)
    shown = _number(c)
    return symbol if shown == "1" else f"-{symbol}" if shown == "-1" else f"{shown} {symbol}"


def _shifted(center: float) -> str:
    return "x" if center == 0 else f"(x {'-' if center > 0 else '+'} {_number(abs(center))})"
