"""An instance in words and mathematics, as markup of Typst.

What a claim recorded of an instance is a mapping of plain numbers, strings, lists and mappings; one
that describes an object is told by its class, the rest entry by entry. Keys are markup, but those
of one letter and those in `SYMBOLS` are symbols.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from socft.reward import PseudoHuber, Sine, Softplus
from verify.support.chained import Unequal
from verify.support.instances import Instance, ProductInstance, QuadraticInstance, rebuild
from verify.support.rewards import Parabola, Slope, SmoothMaximum
from verify.support.scores import MixtureScore, TanhScore
from verify.support.staircase import OneStep

SHOWN = 4
"""Longer lists are shown by their range."""
EXACT = 1e5
"""Whole numbers below this one are shown as such."""
SYMBOLS = {
    **{name: name for name in ("beta", "delta", "eta", "sigma", "tau", "theta")},
    **{"lam": "lambda", "updates": "m", "step": "t", "dim": "d", "steps": "T", "eps": "epsilon"},
}
HIDDEN = ("count", "entry", "seed", "type")
"""What only rebuilding an instance needs."""


def words(row: Mapping[str, Any]) -> str:
    """The instance of a record."""
    told, known = [], set()
    if row.get("type") in TOLD:
        instance = rebuild(row)
        known = {field.name for field in dataclasses.fields(instance)}
        told = [tell(instance)]
    entries = [_entry(k, value) for k, value in row.items() if k not in {*HIDDEN, *known}]
    return ", ".join(told + entries)


@functools.singledispatch
def tell(instance: Any) -> str:
    """An instance in words."""
    raise NotImplementedError(f"a {type(instance).__name__} has no words; register some.")


@tell.register
def _(instance: ProductInstance) -> str:
    size, factors = instance.size, instance.factors
    each = "; and ".join(f"{score(f.score)}, $r(x) = {formula(f.reward)}$" for f in factors)
    place = "" if size == 1 else "in every coordinate " if len(factors) == 1 else "in turn "
    rotated = ", rotated" if size > 1 else ""
    return ", ".join([f"$d = {size}${rotated}", *_chain(instance), place + each])


@tell.register
def _(instance: QuadraticInstance) -> str:
    affine = f"$s(y) = S y + e$ with eigenvalues {_value(instance.score)}"
    reward = f"$r(y) = y^⊤ P y/2 + q^⊤ y$ with eigenvalues {_value(instance.curvature)}"
    several = instance.dim > 1 and instance.rotation is not None
    bases = ["in different bases"] if several else []
    return ", ".join([f"$d = {instance.dim}$", *_chain(instance), affine, reward, *bases])


@tell.register
def _(instance: OneStep) -> str:
    V = instance.value
    return (
        f"one step with $m(y) = y$, $rho = {number(instance.q)}$, "
        f"$sigma = {number(instance.sigma)}$,"
        f" $V'' =$ {_value(V.levels)} between knots {_value(V.knots)}"
    )


@tell.register
def _(instance: Unequal) -> str:
    return (
        f"{len(instance.lam)} steps with $m(y) = y$, $sigma = 1$, a reward of slope"
        f' $op("clip")(x, -{number(instance.corner)}, {number(instance.corner)})$,'
        f" λ = {_value(instance.lam)}, updates {_value(instance.rounds)}"
    )


TOLD = frozenset(kind.__name__ for kind in tell.registry)


@functools.singledispatch
def score(plain: Any) -> str:
    """A score in words."""
    raise NotImplementedError(f"a {type(plain).__name__} has no words; register some.")


@score.register
def _(plain: MixtureScore) -> str:
    weights = [number(w) for w in plain.weights] if len(plain.weights) > 1 else [""]
    laws = [
        f"{w} N({number(m)}, {number(v)})"
        for w, m, v in zip(weights, plain.means, plain.variances, strict=True)
    ]
    return f"score of ${_sum(laws)}$"


@score.register
def _(plain: TanhScore) -> str:
    bend = f"tanh({_times(plain.w, 'y')})"
    return f"$s(y) = {_linear((-plain.c, 'y'), (plain.b, bend), (plain.e, ''))}$"


@functools.singledispatch
def formula(reward: Any) -> str:
    """A reward of x as mathematics."""
    raise NotImplementedError(f"a {type(reward).__name__} has no formula; register one.")


@formula.register
def _(r: Sine) -> str:
    return _linear((r.amplitude, f"sin({_linear((r.frequency, 'x'), (r.phase, ''))})"))


@formula.register
def _(r: Softplus) -> str:
    exponential = f"e^({_times(r.sharpness, _shifted(r.center))})"
    return _linear((r.slope / r.sharpness, f"log(1 + {exponential})"))


@formula.register
def _(r: PseudoHuber) -> str:
    unit = number(r.delta) == "1"
    inside = _shifted(r.center) if unit else f"({_shifted(r.center)}/{number(r.delta)})"
    return _linear((r.weight * r.delta**2, f"(sqrt(1 + {inside}^2) - 1)"))


@formula.register
def _(r: SmoothMaximum) -> str:
    levels = [_linear((w, "x"), (b, "")) for w, b in zip(r.slopes, r.offsets, strict=True)]
    divided = "" if number(r.temperature) == "1" else f"/{number(r.temperature)}"
    total = " + ".join(f"e^(({level}){divided})" for level in levels)
    return _linear((r.temperature, f"log({total})"))


@formula.register
def _(r: Slope) -> str:
    return _linear((r.w, "x"))


@formula.register
def _(r: Parabola) -> str:
    return _linear((r.p / 2, "x^2"), (r.q, "x"))


def _chain(instance: Instance) -> list[str]:
    """The schedule, and the design constants."""
    levels = instance.levels
    signal = f"signal level ${number(levels[0])}$ to ${number(levels[-1])}$"
    kernels = ["posterior variances"] if instance.posterior else []
    return [f"$T = {instance.steps}$", signal, *kernels, _entry("lam", instance.lam)]


def _entry(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return words(value) if value.get("type") in TOLD else f"{key}: {words(value)}"
    symbol = SYMBOLS.get(key, key if len(key) == 1 else "")
    shown = _value(value)
    if symbol and shown.startswith("$"):
        return f"${symbol} = {shown[1:]}"
    return f"${symbol} =$ {shown}" if symbol else f"{key} $=$ {shown}"


def _value(value: Any) -> str:
    """A value, a short list of them, or the range of a long one."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str) and value not in ("inf", "-inf"):
        return f"`{value}`"
    if not isinstance(value, list | tuple):
        return f"${number(float(value))}$"
    flat = list(_flat(value))
    if not all(isinstance(x, float) for x in flat):
        return ", ".join(map(_value, flat[:SHOWN])) + (", …" if len(flat) > SHOWN else "")
    if len(set(flat)) == 1:
        return f"${number(flat[0])}$"
    if len(flat) > SHOWN:
        return f"${number(min(flat))}$ to ${number(max(flat))}$"
    return f"$({', '.join(map(number, flat))})$"


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


def number(value: float) -> str:
    """A number within mathematics: whole as it is, otherwise three digits, without zeros at the
    end.
    """
    if not math.isfinite(value):
        return '"undefined"' if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    if value.is_integer() and abs(value) < EXACT:
        return str(int(value))
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa} times 10^({int(exponent)})" if exponent else mantissa


def _linear(*terms: tuple[float, str]) -> str:
    """A sum of multiples of symbols, without zero terms."""
    return _sum([_times(c, symbol) for c, symbol in terms if c != 0]) or "0"


def _sum(terms: Sequence[str]) -> str:
    return " + ".join(term.strip() for term in terms).replace("+ -", "- ")


def _times(c: float, symbol: str) -> str:
    if not symbol:
        return number(c)
    shown = number(c)
    return symbol if shown == "1" else f"-{symbol}" if shown == "-1" else f"{shown} {symbol}"


def _shifted(center: float) -> str:
    return "x" if center == 0 else f"(x {'-' if center > 0 else '+'} {number(abs(center))})"
