"""The pictures of the report on flow models, each a function from records to SVG."""

from __future__ import annotations

from matplotlib.axes import Axes

from socft.records import Record
from socft.report.figures import LOOKS, draw, finish, legend, logarithmic, panels, svg
from socft.report.flow.tables import PROBLEMS
from socft.report.rows import Rows
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

DRAWN = (MethodName.ADJOINT_MATCHING, MethodName.DPOK_LEAVE_ONE_OUT, MethodName.RAM)


def distance(rows: Rows) -> bytes:
    """Distance of the predicted laws from the tilt, against steps and against strengths."""
    with panels(1, 2, 2.7) as (figure, axes):
        found = rows.where(Metric.TV_TO_TILT, ProblemName.FLOW_OVERLAPPING, source="equation")
        for name, look in zip(DRAWN, LOOKS, strict=False):
            mine = found.where(estimator=name)
            beta, steps = _most(mine, "T", "beta"), _most(mine, "beta", "T")
            draw(axes[0], mine.where(beta=beta).series("T"), look, name)
            draw(axes[1], mine.where(T=steps).series("beta"), look, name)
        _finish(axes[0], "steps $T$")
        _finish(axes[1], "weight $b$ of the divergence")
        legend(figure, axes, 3)
        return svg(figure)


def _finish(axes: Axes, x: str) -> None:
    if finish(axes, "total variation to the tilt", x, ""):
        axes.set_xscale("log", base=2)
        logarithmic(axes)


def _most(rows: Rows, varied: str, fixed: str) -> float | None:
    """The value of one setting at which another was varied most."""
    return max(
        rows.distinct(fixed),
        key=lambda value: len(rows.where(**{fixed: value}).distinct(varied)),
        default=None,
    )


def limits(rows: Rows) -> bytes:
    """Predicted and measured mean rewards, a row per method."""
    names = [name for name in rows.fields("estimator") if name]
    with panels(1, len(PROBLEMS), 0.6 + 0.17 * max(len(names), 4)) as (figure, axes):
        for ax, (problem, title) in zip(axes, PROBLEMS.items(), strict=True):
            mine = rows.where(Metric.REWARD, problem)
            run = mine.where(source="samples")
            for height, name in enumerate(reversed(names)):
                for record in run.where(estimator=name):
                    _point(ax, record, height)
                    for expected in mine.where(
                        estimator=name,
                        source="equation",
                        T=record.setting["T"],
                        beta=record.setting["beta"],
                    ):
                        ax.plot([expected.value], [height], "D", color="#D55E00", fillstyle="none")
            _levels(ax, mine, run, len(names))
            finish(ax, title, "mean reward", "")
            ax.set_yticks(range(len(names)), list(reversed(names)) if ax is axes[0] else [])
            ax.set_ylim(-0.7, len(names) - 0.3)
        return svg(figure)


def _point(ax: Axes, record: Record, height: int) -> None:
    error = 2 * (record.stderr or 0.0)
    ax.errorbar([record.value], [height], xerr=[error], fmt=".", color="#0072B2", capsize=2)


def _levels(ax: Axes, mine: Rows, run: Rows, count: int) -> None:
    """The tilt and the chain's optimum at the setting of the runs."""
    setting = next((r.setting for r in run), None)
    if setting is None:
        return
    for source, dashes in (("tilt", (3, 2)), ("optimum", (1, 1.5))):
        for record in mine.where(source=source, T=setting["T"], beta=setting["beta"]):
            ax.plot(
                [record.value] * 2,
                [-0.5, count - 0.5],
                color="0.35",
                linewidth=0.7,
                linestyle=(0, dashes),
            )
