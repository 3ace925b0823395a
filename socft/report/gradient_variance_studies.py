"""The tables of training, of the linear-quadratic sweeps and of the suite of arXiv 2312.02027."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from socft.records import Record
from socft.report.gradient_variance_catalogue import KINDS
from socft.report.gradient_variance_cells import (
    NONE,
    UNTIMED,
    ends,
    missing,
    only,
    pivot,
    plain,
    settings,
    small,
    title,
    value,
    varying,
    without,
)
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, text

TRAINING_TEXT = """Every estimator trains the same policies with Adam, at the rate that suited it best in a pilot run, until it
has spent the
same number of network evaluations: one with a dearer gradient takes fewer steps. The objective is exact at every point of a
curve. Gradient
noise is the variance of the estimate from one path in units of the squared gradient at the start, target noise the mean-square
distance of
the targets from their conditional mean, relative to that mean."""
SWEEPS_TEXT = """The costate of a controlled oscillator at time 0 is learnt from paths with linear features, along the axes of
#link("https://arxiv.org/abs/2410.04615")[2410.04615] and others. The policy is _given_, the chain's optimum; _iterated_, from
the costate of the
round before; or _published_, the same with a costate one step too early."""


def training(rows: Rows, problem: str) -> str:
    """Where training ends, one table per kind."""
    found = ends(rows.of("training").where(problem=problem), "iteration")
    metrics = [
        m for m in ("objective_gap", "kl", "wasserstein1", "wasserstein2", "gradient_noise", "target_noise") if found.where(m)
    ]
    tables = []
    for kind in KINDS:
        mine = only(found, lambda record, kind=kind: record.kind == kind)
        body = []
        for name in mine.fields("estimator"):
            cells = [mine.where(metric, estimator=name).one() for metric in metrics]
            first = next((cell for cell in cells if cell is not None), None)
            if first is None:
                continue
            body.append((text(name), *(NONE if cell is None else value(cell) for cell in cells), *_schedule(first)))
        tables.append(
            Table(
                header=("estimator", *(TRAINING.get(metric, title(metric)) for metric in metrics), "steps", "rate"),
                rows=body or [missing(3)],
                caption=f"""Training on {text(problem)}, kind _{kind}_: the end of the budget, with standard errors over seeds.""",
                label=f"training-{problem}-{KINDS.index(kind)}",
                align="l" + "r" * (len(metrics) + 2),
            ).markup
        )
    return small("\n\n".join(tables))


TRAINING: Mapping[str, str] = {"gradient_noise": r"gradient \ noise", "target_noise": r"target \ noise"}


def _schedule(record: Record) -> Sequence[str]:
    return tuple(plain(record.setting[key]) if key in record.setting else NONE for key in ("iteration", "rate"))


SWEEPS: Mapping[str, str] = {
    "dt": "dt",
    "exponential": "dt",
    "iteration": "dt",
    "limit": "dt",
    "limit-horizon": "horizon",
    "paths": "paths",
    "horizon": "horizon",
    "noise": "noise",
    "damping": "damping",
    "dimension": "d",
}
"""What varies along an axis of the sweeps."""


AXES: Mapping[str, str] = {
    "dt": "the step size, noise in all directions",
    "exponential": "the step size, exponential integrator",
    "iteration": "the step size, policy iterated",
    "paths": "the number of paths",
}


def sweeps(rows: Rows) -> str:
    """A table for every axis of the linear-quadratic sweeps."""
    found = without(only(rows.of("lq_sweeps"), lambda record: record.metric in ("mse", "limit_mse")), UNTIMED)
    axes = list(dict.fromkeys(str(record.setting.get("axis", "")) for record in found if record.metric == "mse"))
    tables = [_sweep(found.where("mse", axis=axis), axis, f"Sweep of {AXES.get(axis, axis)}") for axis in axes]
    return "\n\n".join(filter(None, (*_limits(found.where("limit_mse")), *tables))) or NOT_MEASURED


def _limits(found: Rows) -> list[str]:
    """For infinitely many paths: against the step size on the commonest horizon, and against the horizon."""
    horizons = [record.setting["horizon"] for record in found if "horizon" in record.setting]
    if not horizons:
        return []
    usual = max(dict.fromkeys(horizons), key=horizons.count)
    others = only(found, lambda record: record.setting.get("horizon") != usual)
    steps = others.distinct("dt")
    title = "Infinitely many paths, published policy"
    tables = [_sweep(found.where(horizon=usual), "limit", f"{title}, horizon {plain(usual)}")]
    return tables + [_sweep(found.where(dt=dt), "limit-horizon", rf"{title}, $Delta t = {dt:g}$") for dt in steps[:1]]


def _sweep(found: Rows, axis: str, caption: str) -> str:
    key = SWEEPS.get(axis) or next(iter(varying(found)), "dt")
    columns = found.distinct(key)
    if not columns:
        return ""
    symbol = {"dt": "Delta t", "paths": "N", "d": "d"}.get(key, f'"{key}"')
    return Table(
        header=("scheme", *(f"${symbol} = {each:g}$" if isinstance(each, int | float) else plain(each) for each in columns)),
        rows=pivot(found, key, columns, digits=2),
        caption=f"{caption}: mean-square error of the costate at time 0 against continuous time; in italics what is published.",
        label=f"sweep-{axis.replace(' ', '-')}",
        align="l" + "r" * len(columns),
        long=True,
    ).markup


def socm(rows: Rows) -> str:
    """Where the estimators end on every problem of the suite, one table per problem and kind."""
    found = rows.of("socm")
    for key in ("iteration", "index"):
        found = ends(found, key)
    tables = []
    for problem in found.fields("problem"):
        here = found.where(problem=problem)
        metrics = here.fields("metric")
        for kind in dict.fromkeys((*KINDS, *here.fields("kind"))):
            mine = only(here, lambda record, kind=kind: record.kind == kind)
            if mine:
                tables.append(_ended(mine, problem, kind, metrics))
    return "\n\n".join(tables) or NOT_MEASURED


def _ended(mine: Rows, problem: str, kind: str, metrics: Sequence[str]) -> str:
    keys = varying(mine, (*UNTIMED, "iteration", "index"))
    shown = [metric for metric in metrics if mine.where(metric)]
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for record in mine:
        about = settings(record, [key for key in keys if key in record.setting])
        groups.setdefault((record.estimator, about), {})[record.metric] = value(record)
    return Table(
        header=("estimator", *map(title, shown)),
        rows=[
            (text(name) + (f" ({about})" if about else ""), *(cells.get(metric, NONE) for metric in shown))
            for (name, about), cells in groups.items()
        ],
        caption=f"Suite of SOCM, {text(problem)}, kind _{text(kind)}_: the end of training.",
        label=f"socm-{problem}-{kind.replace(' ', '-')}",
        align="l" + "r" * len(shown),
        long=True,
    ).markup
