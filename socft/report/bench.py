"""One page on a user's estimator: what it returns against the exact gradient, and how it stands
among the built-in ones.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Kind
from socft.records import Record
from socft.report.base import Document, Report, provenance
from socft.report.claim_records import Claims
from socft.report.document import FrontPage, document
from socft.report.figures import note, panels, svg
from socft.report.gradient_variance.cells import NONE, value
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, figure, integer, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric

REASON = 160  # characters of a refusal that are shown
COLORS: dict[str, str] = dict(zip(Kind, ("#0072B2", "#009E73", "#56B4E9", "#E69F00"), strict=True))
MINE = "#000000"
SMALLEST = 1e-5  # errors below are drawn there


def report(study_name: str) -> Report:
    """The report on the study of one estimator, whose records are ``<study_name>.jsonl``."""
    return Report(
        study_name,
        functools.partial(compose, study_name=study_name),
        (schemas.VARIANCE.of_anything(study_name),),
    )


def compose(rows: Rows, claims: Claims, study_name: str = "bench") -> Document:
    """The document of the records."""
    mine = method(rows)
    places = titles(rows)
    picture = figure(
        "errors.svg",
        """Error at equal budget of all estimators that do not refuse, one panel per situation;
        black: yours. Colours are kinds: blue objective gradient, green fixed-point residual, light
        blue the same up to O(dt), orange biased; they do not compare with each other. Bars
        that reach the left edge are smaller.""",
        "errors",
        "Horizontal bars of error at equal budget for every estimator, one panel per situation.",
    )
    source = document(
        "An estimator against exact gradients",
        text(mine or study_name),
        FrontPage.of(rows, claims, ()),
        _abstract(rows, mine),
        standing(rows, mine, places),
        picture,
        f"#set text(size: 8.5pt)\n{provenance(rows)}",
    )
    return Document(source, {"errors.svg": errors(rows, mine, places)})


def method(rows: Rows) -> str | None:
    """The user's estimator: the one that is not built in, told by its import path."""
    found = rows.fields("estimator")
    others = [name for name in found if ":" in name and name not in CATALOGUE]
    return next(iter([*others, *(name for name in found if name not in CATALOGUE)]), None)


def titles(rows: Rows) -> list[str]:
    """The situations, in the order of the study."""
    return list(
        dict.fromkeys(str(record.setting["axis"]) for record in rows if "axis" in record.setting)
    )


def standing(rows: Rows, mine: str | None, places: Sequence[str]) -> str:
    """The table of situations."""
    return Table(
        header=(
            "situation",
            "bias",
            "variance",
            r"error at \ budget",
            "rank",
            r"best of \ its kind",
            r"median of \ its kind",
        ),
        rows=[_place(rows.where(axis=place), mine, place) for place in places]
        or [(NOT_MEASURED, *[""] * 6)],
        caption="""Bias with its standard error, variance of the estimate from one path, and
            root-mean-square error at equal budget, both together, in units of the exact gradient at
            the pre-trained model. Ranks are among the same kind, with their 95% intervals: of
            gradients by the error, of residuals by the noise relative to their size, at the optimum
            by the error relative to the size at the start. Rivals are built in and of the same
            kind.""",
        label="standing",
        align="lrrrrll",
        widths=("auto", "auto", "auto", "auto", "auto", "1fr", "auto"),
    ).markup


def _place(here: Rows, mine: str | None, place: str) -> Sequence[str]:
    own = here.where(estimator=mine) if mine is not None else Rows(())
    refusal = own.where(Metric.REFUSED).one()
    if refusal is not None:
        reason = str(refusal.setting.get("reason", ""))
        shown = reason if len(reason) <= REASON else reason[:REASON] + "…"
        return text(place), "refused", NONE, NONE, NONE, f"#emph[{text(shown)}]", NONE
    bias, variance, error = (
        own.where(metric).one() for metric in (Metric.BIAS, Metric.VARIANCE, Metric.ERROR_AT_BUDGET)
    )
    everyone = here.where(Metric.ERROR_AT_BUDGET)
    if error is None:
        return text(place), *(NOT_MEASURED for _ in range(3)), NONE, NONE, NONE
    rivals = everyone.filter(lambda record: record.kind == error.kind and record.estimator != mine)
    best = min(rivals, key=lambda record: record.value, default=None)
    return (
        text(place),
        value(bias),
        number(variance.value if variance else None),
        number(error.value),
        _rank(error),
        NONE if best is None else f"{text(best.estimator)}, {number(best.value)}",
        NONE if best is None else number(statistics.median(record.value for record in rivals)),
    )


def _rank(error: Record) -> str:
    """The rank with its interval, as `toy.ranks` found it."""
    rank, of = error.setting.get("rank"), error.setting.get("of")
    if rank is None:
        return NONE
    first, last = error.setting["rank_interval"]
    return f"{integer(rank)} ({integer(first)} to {integer(last)}) of {integer(of)}"


def errors(rows: Rows, mine: str | None, places: Sequence[str]) -> bytes:
    """Bars of error at equal budget of every estimator, a panel per situation."""
    columns = max(1, len(places))
    with panels(1, columns, 3.9) as (drawn, axes):
        names = rows.where(Metric.ERROR_AT_BUDGET).fields("estimator")
        for index, (ax, place) in enumerate(zip(axes, places, strict=False)):
            found = rows.where(Metric.ERROR_AT_BUDGET, axis=place)
            _bars(
                ax,
                found,
                [
                    *(name for name in names if name != mine),
                    *([mine] if mine is not None and mine in names else []),
                ],
                mine,
            )
            ax.set_title(place.replace(", ", ",\n"), fontsize=6.5)
            if index:
                ax.set_yticklabels([])
        if not names:
            note(axes[0], "not measured")
        return svg(drawn)


def _bars(ax: Axes, found: Rows, names: Sequence[str], mine: str | None) -> None:
    bars = [
        (height, record)
        for height, name in enumerate(names)
        if (record := found.where(estimator=name).one()) is not None
    ]
    colors = [
        MINE if record.estimator == mine else COLORS.get(record.kind, "0.6") for _, record in bars
    ]
    widths = [max(record.value, SMALLEST) - SMALLEST / 2 for _, record in bars]
    ax.barh([height for height, _ in bars], widths, left=SMALLEST / 2, height=0.7, color=colors)
    ax.set_xscale("log")
    ax.set_xlim(left=SMALLEST / 2)
    ax.set_yticks(
        range(len(names)), [name if name != mine else "yours" for name in names], fontsize=4.6
    )
    ax.tick_params(axis="x", labelsize=5.5)
    ax.set_ylim(-0.6, len(names) - 0.4)


def _abstract(rows: Rows, mine: str | None) -> str:
    found = rows.where(estimator=mine) if mine is not None else Rows(())
    claimed = ", ".join(
        f"_{text(kind)}_"
        for kind in found.filter(lambda r: r.metric != Metric.REFUSED).fields("kind")
    )
    cost = next(iter(found.where(Metric.BIAS)), None)
    seconds = None if cost is None or cost.seconds is None else 1000 * cost.seconds
    refused, places = len(found.where(Metric.REFUSED).records), len(titles(found))
    said = (
        f"It refused or failed in {integer(refused)} of {integer(places)} situations."
        if refused
        else "It refused nowhere."
    )
    return f"""
The estimator claims to estimate: {claimed or NOT_MEASURED}. Its bias, variance and cost are
measured where the exact gradient is known, beside the built-in estimators. It takes
{number(seconds, 2)} seconds per 1000 paths, on one thread and with the rollout, and
{integer(cost.evaluations if cost else None)} network evaluations per path.
{said if mine is not None else NOT_MEASURED}
"""
