"""The pictures of the report on gradients, each a function from records to SVG; kinds never share a
panel.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from socft.estimators.estimand import Kind
from socft.records import Record
from socft.report.figures import LOOKS, draw, finish, labelled, logarithmic, panels, svg
from socft.report.rows import Rows, Series
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

SPAN = 1e7  # curves that fall further below the largest value of their panel leave it
SHOWN: Mapping[str, tuple[str, ...]] = {
    Kind.OBJECTIVE_GRADIENT: (
        MethodName.FULL_ADJOINT,
        MethodName.FULL_MARTINGALE_EXACT_COSTATE,
        MethodName.FULL_MARTINGALE_FITTED_COSTATE,
        MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
        MethodName.INTEGRATION_BY_PARTS,
        MethodName.LOG_VARIANCE,
    ),
    Kind.FIXED_POINT_RESIDUAL: (
        MethodName.ADJOINT_MATCHING,
        MethodName.MARTINGALE_POLICY_COSTATE,
        MethodName.MARTINGALE_POLICY_COSTATE_FIRST_ORDER,
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
    ),
    Kind.APPROXIMATE_RESIDUAL: (
        MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX,
        MethodName.RECIPROCAL_ADJOINT_MATCHING,
        MethodName.SOCM,
        MethodName.SOCM_ADJOINT,
        MethodName.CROSS_ENTROPY,
        MethodName.VARIANCE,
    ),
    Kind.BIASED: (
        MethodName.TRUNCATED_10_STEPS,
        MethodName.TD_09_FITTED_COSTATE,
        MethodName.TIME_REVERSED_FITTED_COSTATE,
        MethodName.DDPO,
        MethodName.DPOK,
    ),
}
COSTATES: Mapping[str, tuple[str, ...]] = {
    Kind.OBJECTIVE_GRADIENT: (
        MethodName.FULL_ADJOINT,
        MethodName.FULL_MARTINGALE_EXACT_COSTATE,
        MethodName.FULL_MARTINGALE_FITTED_COSTATE,
    ),
    Kind.FIXED_POINT_RESIDUAL: (
        MethodName.ADJOINT_MATCHING,
        MethodName.MARTINGALE_POLICY_COSTATE,
        MethodName.MARTINGALE_POLICY_COSTATE_FIRST_ORDER,
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
    ),
    Kind.APPROXIMATE_RESIDUAL: (MethodName.RECIPROCAL_ADJOINT_MATCHING,),
    Kind.BIASED: (
        MethodName.TD_09_FITTED_COSTATE,
        MethodName.TD_0_FITTED_COSTATE,
        MethodName.TIME_REVERSED_FITTED_COSTATE,
        MethodName.TIME_REVERSED_EXACT_COSTATE,
        MethodName.TIME_REVERSED_EXACT_COSTATE_PUBLISHED_PAIRING,
    ),
}
BROAD = 17
"""Letters beneath or above one of four columns."""
SHORTER = {
    "truncated backpropagation": "truncated",
    "published pairing": "published",
    "policy's": "own",
    "full martingale": "martingale",
}
Select = Callable[[Rows], Rows]


def _near(record: Record, problem: str, *axes: str) -> bool:
    return record.problem == problem and record.setting.get("axis") in axes


AXES: tuple[tuple[str, str, Select, bool], ...] = (
    (
        "distance $1 - s$ from the optimum",
        "scale",
        lambda rows: rows.filter(lambda r: _near(r, ProblemName.LQ_FINE_TUNING, "distance")),
        False,
    ),
    (
        "dimension $d$",
        "d",
        lambda rows: rows.filter(
            lambda r: _near(r, ProblemName.LQ_FINE_TUNING, "dimension", "distance")
        ).where(scale=0.9),
        True,
    ),
    (
        "steps $T$, fixed horizon",
        "steps",
        lambda rows: rows.filter(lambda r: _near(r, ProblemName.LQ_SDE, "steps")),
        True,
    ),
    (
        "horizon, fixed step size",
        "horizon",
        lambda rows: rows.filter(lambda r: _near(r, ProblemName.LQ_SDE, "horizon")),
        True,
    ),
    (
        "noise level",
        "noise",
        lambda rows: rows.filter(lambda r: _near(r, ProblemName.OSCILLATOR, "noise")),
        True,
    ),
)


def variances(rows: Rows) -> bytes:
    """Variance along every axis: a row of panels per axis, a column per kind."""
    found = rows.of(schemas.VARIANCE).where(Metric.VARIANCE)
    with panels(len(AXES), len(Kind), 7.7) as (figure, axes):
        for index, (label, key, select, logarithmic) in enumerate(AXES):
            for column, kind in enumerate(Kind):
                ax = axes[index * len(Kind) + column]
                _curves(ax, select(found), SHOWN[kind], key)
                finish_scaled(ax, label, "variance" if column == 0 else "", logarithmic)
                if index == 0:
                    ax.set_title(textwrap.fill(kind, BROAD))
        for column, kind in enumerate(Kind):
            below_column(axes[column :: len(Kind)], SHOWN[kind], offset=-0.66)
        return svg(figure)


def costates(rows: Rows) -> bytes:
    """Mean-square error of costate samples against the step, at the optimum of two problems: a
    column per kind.
    """
    found = (
        rows.of(schemas.VARIANCE)
        .where(Metric.COSTATE_MSE, scale=1.0)
        .filter(lambda r: r.setting.get("axis") in ("distance", "mixture"))
    )
    with panels(2, len(Kind), 4.9) as (figure, axes):
        for row, (problem, name) in enumerate(
            ((ProblemName.LQ_FINE_TUNING, "Gaussian"), (ProblemName.MIXTURE, "mixture"))
        ):
            for column, kind in enumerate(Kind):
                ax = axes[row * len(Kind) + column]
                _curves(ax, found.where(problem=problem), COSTATES[kind], "k")
                finish_scaled(
                    ax,
                    "step $k$",
                    f"{name}: costate error" if column == 0 else "",
                    logarithmic_x=False,
                )
                if row == 0:
                    ax.set_title(textwrap.fill(kind, BROAD))
        for column, kind in enumerate(Kind):
            below_column(axes[column :: len(Kind)], COSTATES[kind])
        return svg(figure)


def _curves(ax: Axes, found: Rows, names: Sequence[str], key: str) -> None:
    for name, look in zip(names, LOOKS, strict=False):
        line = found.where(estimator=name).series(key)
        if key == "scale":
            pairs = sorted((1 - x, y) for x, y in zip(line.x, line.y, strict=True))
            line = Series(tuple(x for x, _ in pairs), tuple(y for _, y in pairs))
        draw(ax, line, look, name)


def finish_scaled(
    ax: Axes, x: str, y: str, logarithmic_x: bool = True, logarithmic_y: bool = True
) -> None:
    """Labels, scales and the message of an empty panel."""
    if not finish(ax, "", textwrap.fill(x, BROAD), y):
        return
    if logarithmic_x:
        ax.set_xscale("log")
        ticks = sorted({float(v) for line in ax.lines for v in line.get_xdata()})  # type: ignore[union-attr]
        if len(ticks) <= 6:
            ax.set_xticks(ticks, [f"{v:g}" for v in ticks])
        ax.xaxis.set_minor_formatter(NullFormatter())
    if logarithmic_y:
        logarithmic(ax)
        values = [float(v) for line in ax.lines for v in line.get_ydata() if v > 0]  # type: ignore[union-attr]
        if values and min(values) * SPAN < max(values):
            ax.set_ylim(max(values) / SPAN, max(values) * 3)


def below_column(axes: Sequence[Axes], names: Sequence[str], offset: float = -0.34) -> None:
    """A legend beneath the last panel of a column."""
    handles = labelled(axes)
    labels = [name for name in names if name in handles]
    if labels:
        axes[-1].legend(
            [handles[label] for label in labels],
            [textwrap.fill(short(label), BROAD) for label in labels],
            loc="upper center",
            bbox_to_anchor=(0.5, offset),
            ncols=1,
            borderaxespad=0.0,
            handlelength=1.8,
        )


def short(name: str) -> str:
    """A name that fits below a panel."""
    for long, brief in SHORTER.items():
        name = name.replace(long, brief)
    return name
