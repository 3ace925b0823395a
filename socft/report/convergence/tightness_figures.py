"""The pictures of the chapter on tightness, and the records of a curve: the largest of those found
at a point of an axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from socft.records import Record
from socft.report.figures import LOOKS, draw, finish, labelled, legend, panels, svg
from socft.report.rows import Rows, Series
from socft.study.vocabulary.metrics import Metric

CONSTANTS: Mapping[str, str] = {"paper": "the paper's constants", "sharp": "the sharper constants"}
RULES: Mapping[str, str] = {
    "paper": "the paper's constants",
    "sharp": "the sharper constants",
    "sharp, exact mean maps": "sharper, exact mean maps",
    "one-sided": "one-sided constants",
}
NECESSARY = "necessary weight"
PANELS: Mapping[str, Mapping[str, str]] = {
    "Theorem 2.8": {
        "theorem_2_8_i_value_lipschitz": "(14)",
        "theorem_2_8_i_value_smoothness": "(15)",
        "theorem_2_8_iii_control_lipschitz": "(16)",
        "theorem_2_8_iii_control_smoothness": "(17)",
        "strong_concavity": "(19)",
        "third_derivative_lemma": "third derivative",
    },
    "Lemma 3.2": {
        "lemma_3_2_lipschitz": "(38)",
        "lemma_3_2_smoothness": "(39)",
        "lemma_3_2_control": "slope of $U$",
        "lemma_3_2_control_jacobian": "bend of $U$",
        "lemma_3_2_increments": "increments",
    },
    "Convergence": {
        "contraction": "(67)",
        "lemma_3_3": "Lemma 3.3",
        "lemma_3_4": "Lemma 3.4",
        "theorem_3_1": "Theorem 3.1",
    },
}
"""Curves by row of panels, and how legends call them; smoothed curvature has no axis but d, on
which nothing happens.
"""
AXES: Mapping[str, str] = {"d": "dimension $d$", "T": "steps $T$", "lam": r"$\lambda$"}
SHOWN: Mapping[str, tuple[str, ...]] = {"paper": ("d", "T", "lam"), "sharp": ("T", "lam")}
"""Axes of a kind of constants; the sharper ones do not depend on d."""
HEIGHT = 1.35  # inches of a row of panels
ROOM = 1.25  # above the bound, on a logarithmic axis
SHORT = 30  # an axis that spans less is labelled within decades


@dataclasses.dataclass(frozen=True)
class Base:
    """The setting from which one of dimension, steps and design constant is varied."""

    d: int
    T: int
    lam: float


def base(found: Rows) -> Base | None:
    """The base setting of the records; single steps are searched there too, at T = 1."""
    here = found.where(Metric.RATIO, axis="base")
    return Base(*(here.distinct(key)[-1] for key in ("d", "T", "lam"))) if here else None


def largest(found: Rows, name: str, constants: str, **elsewhere: float) -> Record | None:
    """The record of the largest ratio to an inequality at the base setting, or away from it in some
    of d, T and lam.
    """
    place = base(found)
    if place is None:
        return None
    where: dict[str, Any] = dataclasses.asdict(place) | elsewhere
    return max(
        found.where(Metric.RATIO, name, constants=constants, **where),
        key=lambda record: record.value,
        default=None,
    )


def along(found: Rows, name: str, constants: str, axis: str) -> Series:
    """The largest ratio against an axis."""
    places = found.where(Metric.RATIO, name, constants=constants).distinct(axis)
    best = {
        x: record.value
        for x in places
        if (record := largest(found, name, constants, **{axis: x})) is not None
    }
    return Series(tuple(best), tuple(best.values()))


def ratios(found: Rows, constants: str) -> bytes:
    """Largest ratios: a row of panels per result, a column per axis."""
    axes = SHOWN[constants]
    with panels(len(PANELS), len(axes), HEIGHT * len(PANELS)) as (figure, drawn):
        for row, (group, names) in enumerate(PANELS.items()):
            mine = drawn[row * len(axes) : (row + 1) * len(axes)]
            for ax, axis in zip(mine, axes, strict=True):
                for (name, label), look in zip(names.items(), LOOKS, strict=False):
                    draw(ax, along(found, name, constants, axis), look, label)
                _finish(
                    ax,
                    axis,
                    AXES[axis] if row == len(PANELS) - 1 else "",
                    f"{group}: ratio" if ax is mine[0] else "",
                )
            _share(mine)
            _beside(mine, names.values())
        return svg(figure)


def weights(found: Rows) -> bytes:
    """Sufficient and necessary weights against the number of steps, one panel per family."""
    here = found.where(Metric.BETA)
    families = here.fields("problem") or [""]
    names = {"necessary": NECESSARY, **RULES}
    with panels(1, len(families), 1.85) as (figure, axes):
        for ax, family in zip(axes, families, strict=True):
            for (rule, name), look in zip(names.items(), LOOKS, strict=False):
                draw(ax, here.where(problem=family, rule=rule).series("T"), look, name, markers=9)
            if finish(ax, family, "steps $T$", r"$\beta$" if ax is axes[0] else ""):
                ax.set_yscale("log")
                ax.yaxis.set_major_locator(LogLocator(numticks=6))
                ax.yaxis.set_minor_formatter(NullFormatter())
                _steps(ax)
        legend(figure, axes, 2, tuple(names.values()))
        return svg(figure)


def _finish(ax: Axes, axis: str, x: str, y: str) -> None:
    if not finish(ax, "", x, y):
        return
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(numticks=5))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(top=ROOM)
    if axis == "lam":
        ax.set_xlim(0, 1)
    else:
        _steps(ax)


def _steps(ax: Axes) -> None:
    """A logarithmic abscissa of whole numbers, labelled where something was measured."""
    ax.set_xscale("log", base=2)
    ticks = sorted({float(x) for line in ax.lines for x in np.asarray(line.get_xdata())})
    ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


def _share(axes: Sequence[Axes]) -> None:
    """One range of ratios in a row, a short one labelled within decades."""
    shown = [ax for ax in axes if ax.lines]
    least = min(
        (float(y) for ax in shown for line in ax.lines for y in np.asarray(line.get_ydata())),
        default=1.0,
    )
    for ax in shown:
        ax.set_ylim(bottom=least / ROOM)
        if least * SHORT > 1:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
            ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _beside(axes: Sequence[Axes], order: Iterable[str]) -> None:
    """A legend to the right of a row of panels."""
    handles = labelled(axes)
    labels = [label for label in order if label in handles]
    if labels:
        axes[-1].legend(
            [handles[label] for label in labels],
            labels,
            loc="center left",
            bbox_to_anchor=(1.02, 0.5),
        )
