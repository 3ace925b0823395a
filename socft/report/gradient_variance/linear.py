"""The tables of the studies of arXiv 2603.20455v2 that are replicated: a linear SDE, a pendulum,
fine-tuning of a mixture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from socft.records import Record
from socft.report.gradient_variance.cells import (
    NONE,
    UNTIMED,
    in_italics,
    missing,
    optimum_row,
    pivot,
    plain,
    small,
    title,
    value,
    without,
)
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

EULER = "Euler-Maruyama"
PUBLISHED_PATHS = (50, 100, 500, 2000, 5000, 10000)
PUBLISHED_BY_PATHS: dict[str, tuple[float, ...]] = {
    MethodName.ADJOINT_MATCHING_PUBLISHED: (0.62, 0.297, 0.0322, 0.0086, 0.0058, 0.0033),
    MethodName.TIME_REVERSED_PUBLISHED: (94000.0, 0.0181, 0.0055, 0.0049, 0.0050, 0.0051),
}
"""Mean-square errors of arXiv 2603.20455v2 at noise 1, with networks."""


def by(rows: Rows, key: str) -> str:
    """Mean-square errors of the linear study against the noise at N = 2000, or against N at noise
    1: of pipelines with a curve.
    """
    fixed = {"noise": ("paths", 2000), "paths": ("noise", 1.0)}[key]
    found = rows.of(schemas.LINEAR).where(Metric.MSE, **{fixed[0]: fixed[1]})
    columns, symbol = found.distinct(key), {"noise": "epsilon", "paths": "N"}[key]
    body = _by_class(found.where(integrator=EULER), key, columns)
    body += _by_class(found.where(integrator="exponential"), key, columns, ", exponential scheme")
    if key == "paths" and columns:
        body += [
            ("published, with networks",),
            *(_by_paths(name, columns) for name in PUBLISHED_BY_PATHS),
        ]
    where = "against the noise, $N = 2000$" if key == "noise" else r"against $N$, $epsilon = 1$"
    made = Table(
        header=(
            ("pipeline", *(f"${symbol} = {each:g}$" for each in columns))
            if columns
            else ("pipeline", "mean-square error")
        ),
        rows=body or [missing(2)],
        caption=f"""Linear study: mean-square error of the costate at time 0 {where}, with standard
            errors; Euler–Maruyama but where the exponential scheme is named; in italics what is
            published.""",
        label=f"linear-{key}",
        align="l" + "r" * max(1, len(columns)),
        long=key == "noise",
    ).markup
    return small(made, 7) if key == "paths" else made


def _by_paths(name: str, columns: Sequence[float]) -> Sequence[str]:
    known = dict(zip(PUBLISHED_PATHS, PUBLISHED_BY_PATHS[name], strict=True))
    title = name.removesuffix(", published")
    return (
        f"_{text(title)}_",
        *(f"_{number(known[each])}_" if each in known else NONE for each in columns),
    )


def _by_class(
    found: Rows, key: str, columns: Sequence[float], scheme: str = ""
) -> list[Sequence[str]]:
    """A pivot of pipelines, linear features first, then networks."""
    body: list[Sequence[str]] = []
    found = found.filter(lambda r: len(found.where(estimator=r.estimator).distinct(key)) > 1)
    for name, heading in (("linear", "linear features, exact regression"), ("network", "networks")):
        part = pivot(found.where(function_class=name), key, columns)
        body += [(heading + scheme,), *part] if part else []
    return body


def split(rows: Rows) -> str:
    """Where the error comes from, under both integrators."""
    found, body = rows.of(schemas.LINEAR), []
    gaps = {
        name: found.where(Metric.KERNEL_GAP, integrator=name).one()
        for name in found.distinct("integrator")
    }
    here = found.where(noise=1.0, paths=2000)
    for name in here.fields("estimator"):
        for integrator in here.where(estimator=name).distinct("integrator"):
            mine = here.where(estimator=name, integrator=integrator)
            whole, rest = mine.where(Metric.MSE).one(), mine.where(Metric.CHAIN_MSE).one()
            seconds = whole.seconds if whole else None
            body.append(
                (
                    text(name),
                    plain(integrator),
                    value(whole),
                    value(gaps.get(integrator)),
                    value(rest),
                    number(seconds, 2),
                )
            )
    return Table(
        header=(
            "pipeline",
            "integrator",
            r"mean-square \ error",
            r"kernel \ gap",
            r"against \ the chain",
            "seconds",
        ),
        rows=body or [missing(6)],
        caption="""Linear study at $epsilon = 1$, $N = 2000$: the error against continuous time
            beside its two sources, the chain's own distance from continuous time and the distance
            of what was learnt from the chain's own costate, and the time of one run on one thread.
            The errors are squares: the sources add up but for their inner product.""",
        label="linear-split",
        align="llrrrr",
        long=True,
    ).markup


REACHED = (Metric.COST, Metric.COST_SIMULATED, Metric.MSE, Metric.MSE_DESCENT)
"""What the pendulum study records of every pipeline."""


def pendulum(rows: Rows) -> str:
    """What the pipelines reach on the pendulum, and what that is made of."""
    found = rows.of(schemas.PENDULUM)
    reached = found.filter(lambda record: record.metric in REACHED)
    body = [_reached(reached.where(estimator=name), name) for name in reached.fields("estimator")]
    optimum = next((record.optimum for record in reached if record.optimum is not None), None)
    table = Table(
        header=(
            "pipeline",
            "$N$",
            r"gradient \ steps",
            Metric.COST,
            "published",
            r"simulated \ cost",
            r"$phi$ at \ $N(0, I)$",
            r"$phi$ on the \ way",
            "seconds",
        ),
        rows=body or [missing(9)],
        caption=f"""Pendulum: mean cost of initial states after descent along the learnt costate,
            exactly and by fresh simulation, with standard errors over seeds; the least possible
            cost is {number(optimum, 4)}. Beside it the mean-square error of the costate, over $N(0,
            I)$ and over the states passed on the way down. The adjoint _after it_ has the costate
            of the fitted Bellman recursion as control variate.""",
        label="pendulum",
        align="lrrrrrrrr",
        long=True,
    ).markup
    return (
        table + "\n\n" + _pendulum_parts(found.filter(lambda record: record.metric not in REACHED))
    )


def _reached(mine: Rows, name: str) -> Sequence[str]:
    cost, simulated, error, way = (mine.where(metric).one() for metric in REACHED)
    paths, seconds = mine.distinct("paths"), next((record.seconds for record in mine), None)
    steps = [each for each in mine.distinct("gradient_steps") if each]
    return (
        text(name),
        plain(paths[-1]) if paths else NONE,
        integer(steps[-1]) if steps else NONE,
        value(cost, 4),
        _published(cost),
        *(NONE if each is None else value(each) for each in (simulated, error, way)),
        NONE if seconds is None else number(seconds, 2),
    )


def _pendulum_parts(found: Rows) -> str:
    body = [
        (title(record.metric), text(record.estimator) or NONE, value(record, 4), _published(record))
        for record in found
    ]
    return Table(
        header=("quantity", "control variate", "value", "published"),
        rows=body or [missing(4)],
        caption="""Pendulum: least costs of the chain and in continuous time, the chain's distance
        from continuous time, the error of the
            features fitted to the exact costate, and the spread of one path's costate with exact
            control variates.""",
        label="pendulum-parts",
        align="llrr",
    ).markup


def _published(cell: Record | None) -> str:
    return (
        NONE
        if cell is None or cell.published is None or math.isnan(cell.published)
        else f"_{number(cell.published, 4)}_"
    )


def mixture(rows: Rows) -> str:
    """A table by temperature for every metric of the mixture study."""
    found = rows.of(schemas.MIXTURE)
    columns = sorted(found.distinct("temp"), reverse=True)
    named, exact = (
        found.filter(lambda record, has=has: bool(record.estimator) is has) for has in (True, False)
    )
    tables = [_by_temperature(named.where(metric), metric, columns) for metric in named.metrics]
    return "\n\n".join(filter(None, (*tables, _optima(exact, columns)))) or NOT_MEASURED


def _optima(found: Rows, columns: Sequence[float]) -> str:
    found = found.filter(lambda record: "temp" in record.setting)
    if not found:
        return ""
    return Table(
        header=("", *(f"temp ${each:g}$" for each in columns)),
        rows=[
            row
            for metric in found.metrics
            for row in pivot(found.where(metric), "temp", columns, 4)
        ],
        caption=(
            "Mixture study: the exact optimum and the best Gaussian start; in italics the same from"
            " the published setting."
        ),
        label="mixture-optima",
        align="l" + "r" * len(columns),
    ).markup


def _by_temperature(found: Rows, metric: Metric, columns: Sequence[float]) -> str:
    found = found.filter(lambda record: "temp" in record.setting)
    if not found:
        return ""
    digits = 4 if metric == Metric.COST else 3
    methods, exact = (
        without(found, UNTIMED).filter(lambda r, is_exact=is_exact: (r.kind == "exact") is is_exact)
        for is_exact in (False, True)
    )
    body, without_noise = (pivot(part, "temp", columns, digits) for part in (methods, exact))
    body += optimum_row(found, "temp", columns, digits)
    body += [("one thing wrong, and no noise",), *without_noise] if without_noise else []
    return Table(
        header=("method", *(f"temp ${each:g}$" for each in columns)),
        rows=body,
        caption=f"Mixture study: {title(metric)} by temperature{in_italics(found)}.",
        label=f"mixture-{metric.replace('_', '-')}",
        align="l" + "r" * len(columns),
        long=True,
    ).markup
