"""Cells and tables that fit any study: a number with its error, and metrics or settings side by
side.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from socft.records import Record
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, number, text
from socft.study.vocabulary.metrics import Metric

NONE = "–"
NEGLIGIBLE = 1e-3  # a standard error below this share of the number is not shown
CONSTANT = ("problem", "axis", "seed", "beta")
"""Settings that tables do not repeat."""
UNTIMED = ("rounds", "note", "rate", "iterations", "reason")
"""Settings that say how a run went, not what was asked."""
TITLES: Mapping[str, str] = {
    Metric.MINIMUM: "least cost, chain",
    Metric.CONTINUOUS_MINIMUM: "least cost, continuous time",
    Metric.KERNEL_GAP: "kernel gap",
    Metric.APPROXIMATION_MSE: "error of the features",
    Metric.LABEL_NOISE: "spread of a costate",
    Metric.MSE: "mean-square error",
    Metric.CHAIN_MSE: "against the chain",
    Metric.COST: "cost",
    Metric.REGRET: "regret",
    Metric.WASSERSTEIN1: "$W_1$ to the target",
    Metric.W1: "$W_1$ to the law of the optimum",
    Metric.CONTROL_L2: "mean-square error of the control",
    Metric.COST_SIMULATED: "simulated cost",
    Metric.WASSERSTEIN2: "$W_2$ to the tilt",
    Metric.OBJECTIVE_GAP: "$J^* - J$",
    Metric.KL: "KL",
    Metric.MMD: "MMD",
}
SYMBOLS: Mapping[str, str] = {
    "d": "$d$",
    "steps": "$T$",
    "paths": "$N$",
    "noise": "noise",
    "temp": "temperature",
    "horizon": "horizon",
    "scale": "scale",
}


def value(record: Record | None, digits: int = 3) -> str:
    """The value of a record with its standard error, if it has one; a record without a number is a
    divergence.
    """
    if record is None:
        return NOT_MEASURED
    return (
        "diverged" if math.isnan(record.value) else with_error(record.value, record.stderr, digits)
    )


def with_error(mean: float, stderr: float | None, digits: int = 3) -> str:
    """A number and its standard error to one digit, in the same power of ten."""
    if stderr is None or not (math.isfinite(stderr) and math.isfinite(mean)) or stderr <= 0:
        return number(mean, digits)
    if stderr < NEGLIGIBLE * abs(mean):
        return number(mean, digits + 1)
    size = max(abs(mean), stderr)
    power = int(f"{size:e}".partition("e")[2])
    power = 0 if -3 <= power < 5 else power
    error = stderr / 10**power
    decimals = max(0, -int(f"{error:.0e}".partition("e")[2]))
    shown = f"{mean / 10**power:.{decimals}f} plus.minus {error:.{decimals}f}"
    return f"${shown}$" if power == 0 else f"$({shown}) 10^({power})$"


def small(markup: str, points: float = 7.6) -> str:
    """A wide table, set smaller, its numbers in one piece."""
    return f"""#[
#show figure.where(kind: table): set text(size: {points}pt)
#set table(inset: (x: 0.38em, y: 0.3em))
#show table.cell: it => {{ show math.equation: box; it }}
{markup}
]"""


def settings(record: Record, keys: Iterable[str]) -> str:
    """Some settings of a record as markup."""
    return ", ".join(
        f"{SYMBOLS.get(key, text(key.replace('_', ' ')))} {plain(record.setting[key])}"
        for key in keys
    )


def plain(setting: Any) -> str:
    """The value of a setting as markup."""
    if isinstance(setting, bool) or not isinstance(setting, int | float):
        return text(str(setting))
    return f"${setting:g}$"


def varying(rows: Rows, but: Sequence[str] = ()) -> list[str]:
    """The settings in which records differ, or that only some have, in order of appearance."""
    keys = dict.fromkeys(
        key for record in rows for key in record.setting if key not in (*CONSTANT, *but)
    )
    return [key for key in keys if len({repr(record.setting.get(key)) for record in rows}) > 1]


def ends(rows: Rows, key: str) -> Rows:
    """The records of every problem, estimator and metric with the largest value of a setting; all
    of them where none has it.
    """
    last: dict[tuple[str, str, str], Any] = {}
    for record in rows:
        if key in record.setting:
            who = (record.problem, record.estimator, record.metric)
            last[who] = max(last.get(who, -math.inf), record.setting[key])
    return (
        rows.filter(
            lambda r: (
                key not in r.setting or r.setting[key] == last[r.problem, r.estimator, r.metric]
            )
        )
        if last
        else rows
    )


def pivot(rows: Rows, key: str, columns: Sequence[Any], digits: int = 3) -> list[Sequence[str]]:
    """A row per estimator and combination of the other varying settings, a column per value of one
    setting.

    Beneath an estimator whose records hold a published number or an exact optimum there is a row of
    each.
    """
    others, body = varying(rows, (key,)), []
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in rows:
        if key in record.setting:
            groups.setdefault(
                (record.estimator, *(repr(record.setting.get(k)) for k in others)), []
            ).append(record)
    for records in groups.values():
        mine, first = Rows(tuple(records)), records[0]
        about = settings(first, [k for k in others if k in first.setting])
        title = text(first.estimator or first.metric.replace("_", " ")) + (
            f" ({about})" if about and _several(groups, first) else ""
        )
        found = [mine.where(**{key: each}).one() for each in columns]
        body.append((title, *(value(record, digits) for record in found)))
        body += beside(found, "published", digits)
    return body


def optimum_row(
    rows: Rows, key: str, columns: Sequence[Any], digits: int = 3
) -> list[Sequence[str]]:
    """The exact optima of a metric, where the records hold them."""
    found = [
        next((r.optimum for r in rows.where(**{key: each}) if r.optimum is not None), None)
        for each in columns
    ]
    if not any(found):  # an optimum of zero says nothing
        return []
    return [("exact optimum", *(NONE if each is None else number(each, digits) for each in found))]


def _several(groups: Mapping[tuple[str, ...], object], record: Record) -> bool:
    return sum(key[0] == record.estimator for key in groups) > 1


def beside(found: Sequence[Record | None], name: str, digits: int) -> list[Sequence[str]]:
    """A row of another number that the records of a row hold, if any of them does."""
    values = [None if record is None else getattr(record, name) for record in found]
    if all(each is None or math.isnan(each) for each in values):
        return []
    shown = (
        NONE if each is None or math.isnan(each) else f"_{number(each, digits)}_" for each in values
    )
    return [(f"#h(1em) _{name}_", *shown)]


def in_italics(rows: Rows) -> str:
    """What a caption says of published numbers, if there are any."""
    known = any(
        record.published is not None and not math.isnan(record.published) for record in rows
    )
    return "; in italics what is published" if known else ""


def title(metric: str) -> str:
    """How a metric is called."""
    return TITLES.get(metric, text(metric.replace("_", " ")))


def without(found: Rows, keys: Sequence[str]) -> Rows:
    """The records without some settings, so that these do not split a row."""
    kept = [
        dataclasses.replace(r, setting={k: v for k, v in r.setting.items() if k not in keys})
        for r in found
    ]
    return Rows(tuple(kept))


def missing(columns: int) -> Sequence[str]:
    """A row that says that nothing was measured."""
    return NOT_MEASURED, *[""] * (columns - 1)
