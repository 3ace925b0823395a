"""The pictures of studies in the report on gradients: errors against the number of paths, and
curves of training.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from socft.estimators.estimand import Kind
from socft.report.figures import LOOKS, draw, legend, panels, reference, svg
from socft.report.gradient_variance.figures import BROAD, below_column, finish_scaled
from socft.report.gradient_variance.linear import EULER, PUBLISHED_BY_PATHS, PUBLISHED_PATHS
from socft.report.rows import Rows
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

ROUNDING = 1e-12
COUNTED = {"evaluations": "evaluations", "iteration": "gradient steps"}
"""What curves of training are drawn against."""
DIVERGED = 1e3  # a published error that is off every scale


def samples(rows: Rows) -> bytes:
    """Errors of the linear study against N, measured and published, under both integrators."""
    found = rows.of(schemas.LINEAR).where(Metric.MSE, noise=1.0)
    names = (
        MethodName.ADJOINT_MATCHING,
        MethodName.MARTINGALE_FITTED_COSTATE,
        MethodName.TIME_REVERSED_EXACT_SCORE,
        MethodName.TIME_REVERSED_FITTED_COSTATE,
    )
    with panels(1, 2, 2.7) as (figure, axes):
        for ax, integrator in zip(axes, ("Euler-Maruyama", "exponential"), strict=True):
            here = found.where(integrator=integrator)
            for name, look in zip(names, LOOKS, strict=False):
                draw(ax, here.where(estimator=name).series("paths"), look, name)
            if integrator == EULER and here:
                for (name, values), look in zip(
                    PUBLISHED_BY_PATHS.items(), (LOOKS[0], LOOKS[2]), strict=True
                ):
                    shown = [
                        (x, y) for x, y in zip(PUBLISHED_PATHS, values, strict=True) if y < DIVERGED
                    ]
                    x, y = [list(each) for each in zip(*shown, strict=True)]
                    reference(
                        ax, x, y, look.color, f"published, {name.removesuffix(', published')}"
                    )
            gap = rows.of(schemas.LINEAR).where(Metric.KERNEL_GAP, integrator=integrator).one()
            finish_scaled(ax, "paths $N$", "mean-square error" if ax is axes[0] else "")
            ax.set_title(integrator)
            if gap is not None and ax.lines and gap.value > ROUNDING:
                ax.axhline(gap.value, color="0.5", linewidth=0.7, label="kernel gap")
        legend(figure, axes, 3)
        return svg(figure)


@dataclasses.dataclass(frozen=True)
class Curves:
    """A row of panels: a metric of a problem, and how it is called."""

    problem: str
    metric: Metric
    label: str


def learning(found: Rows, wanted: Sequence[Curves], key: str = "evaluations") -> bytes:
    """Curves of training: a row for everything that is wanted, a column per kind that was
    trained.
    """
    shown = {kind: methods(found, [each.problem for each in wanted], kind) for kind in Kind}
    kinds = [kind for kind in Kind if shown[kind]] or list(Kind)
    with panels(len(wanted), len(kinds), 1.55 * len(wanted) + 0.95) as (figure, axes):
        for row, each in enumerate(wanted):
            mine = found.where(each.metric, each.problem)
            for column, kind in enumerate(kinds):
                ax = axes[row * len(kinds) + column]
                here = mine.filter(lambda record, kind=kind: record.kind == kind)
                for name, look in zip(shown[kind], LOOKS, strict=False):
                    draw(ax, here.where(estimator=name).series(key), look, name)
                last = row == len(wanted) - 1
                finish_scaled(
                    ax,
                    COUNTED[key] if last else "",
                    each.label if column == 0 else "",
                    logarithmic_x=False,
                )
                if ax.lines:
                    ax.ticklabel_format(axis="x", style="sci", scilimits=(0, 3))
                if row == 0:
                    ax.set_title(textwrap.fill(kind, BROAD))
        for column, kind in enumerate(kinds):
            below_column(axes[column :: len(kinds)], shown[kind], offset=-0.42)
        return svg(figure)


def methods(found: Rows, problems: Sequence[str], kind: str) -> list[str]:
    """The methods of a kind that are drawn, at most as many as there are looks."""
    return found.filter(lambda record: record.kind == kind and record.problem in problems).fields(
        "estimator"
    )[: len(LOOKS)]
