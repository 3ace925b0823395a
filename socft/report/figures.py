"""Pictures in one style: vector, deterministic, distinguishable without colour."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from socft.report.rows import Series

NOT_MEASURED = "not measured"
DECADE, FEW = 30, 4  # an axis that spans less is labelled within decades, and more finely
WIDTH = 6.3  # inches, the width of the text
STYLE: dict[Any, Any] = {
    "font.family": "serif",
    "font.serif": ["cmr10"],
    "mathtext.fontset": "cm",
    "axes.formatter.use_mathtext": True,
    "axes.unicode_minus": False,
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.2,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "socft",
    "svg.fonttype": "path",
}


@dataclasses.dataclass(frozen=True)
class Look:
    """How one curve looks: colours differ for the colour-blind (Okabe and Ito), dashes and markers
    without colour.
    """

    color: str
    linestyle: str | tuple[int, tuple[float, ...]]
    marker: str


LOOKS = (
    Look("#000000", "-", "o"),
    Look("#0072B2", (0, (5, 1.6)), "s"),
    Look("#D55E00", (0, (5, 1.2, 1, 1.2)), "^"),
    Look("#009E73", (0, (1.2, 1.2)), "D"),
    Look("#CC79A7", (0, (7, 1.2, 1, 1.2, 1, 1.2)), "v"),
    Look("#E69F00", (0, (2.6, 1.2)), "P"),
    Look("#56B4E9", (0, (1.2, 1.2, 5, 1.2)), "X"),
)


@contextlib.contextmanager
def panels(
    rows: int, columns: int, height: float, width: float = WIDTH
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of ``rows`` times ``columns`` axes in the style of all reports."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, list(np.asarray(figure.subplots(rows, columns, squeeze=False)).flat)


def curve(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    look: Look,
    label: str | None = None,
    markers: int = 7,
) -> None:
    """A curve with a few markers along it."""
    every = max(1, len(x) // markers)
    axes.plot(
        x,
        y,
        color=look.color,
        linestyle=look.linestyle,
        marker=look.marker,
        markevery=every,
        label=label,
    )


def reference(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    color: str = "0.35",
    label: str | None = None,
) -> None:
    """A theoretical curve: thin and dashed."""
    axes.plot(x, y, color=color, linestyle=(0, (3, 2)), linewidth=0.7, label=label)


def draw(axes: Axes, line: Series, look: Look, label: str, markers: int = 7) -> None:
    """The curve of a series, if anything was measured."""
    if line:
        curve(axes, line.x, line.y, look, label, markers)


def finish(axes: Axes, title: str, x: str, y: str, empty: str = NOT_MEASURED) -> bool:
    """Title and labels of a panel; whether it shows anything, which it says where it does not."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if not axes.lines:
        axes.set_xticks([])
        axes.set_yticks([])
        note(axes, empty)
    return bool(axes.lines)


def logarithmic(axes: Axes) -> None:
    """A logarithmic scale of what the curves reach, with a few labels; values that are not positive
    are left out.
    """
    values = [float(v) for line in axes.lines for v in line.get_ydata() if v > 0]  # type: ignore[union-attr]
    axes.set_yscale("log", nonpositive="mask")
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if values and max(values) < DECADE * min(values):
        subs = (1, 2, 3, 5) if max(values) > FEW * min(values) else (1, 1.5, 2, 3, 4, 5, 6, 8)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def labelled(axes: Sequence[Axes]) -> dict[str, Any]:
    """What is drawn on some panels, by label, each label once."""
    return {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }


def legend(figure: Figure, axes: Sequence[Axes], columns: int, order: Sequence[str] = ()) -> None:
    """One legend below all panels, each label once, in a given order or in that of appearance."""
    handles = labelled(axes)
    labels = [label for label in order if label in handles] if order else list(handles)
    if labels:
        figure.legend(
            [handles[label] for label in labels], labels, loc="outside lower center", ncols=columns
        )


def note(axes: Axes, message: str) -> None:
    """A message in the middle of an empty panel."""
    axes.text(
        0.5,
        0.5,
        message,
        transform=axes.transAxes,
        ha="center",
        va="center",
        style="normal",
        color="0.35",
    )


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same curves."""
    stream = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
