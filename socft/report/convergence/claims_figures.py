"""The picture of all claims: how close every check came to its bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from socft.report.claim_records import ClaimLine, Claims
from socft.report.convergence.claims_chapter import numbered
from socft.report.figures import LOOKS, panels, svg

PER_DECADE = 10
"""Bars per decade; records resolve more."""
ROUNDING = 0.05
"""Share of a bar by which the beginning of a record's bin may be rounded."""
LEAST = 1e-6
"""Smaller ratios are drawn here."""
LARGEST = 3.0
ROW_HEIGHT, MARGIN = 0.145, 0.75  # inches
TALLEST = 9.1
"""Inches of a page above the caption; what is taller would push that into the page's number."""
FILLED, TOLERANCE = "#9bbfd9", "0.8"
NOT_MEASURED = "not measured"


def ratios(claims: Claims) -> bytes:
    """One row per claim: the distribution of the ratio, the worst ones marked, and the bound at
    1.
    """
    inches = min(MARGIN + ROW_HEIGHT * max(1, len(claims)), TALLEST)
    with panels(1, 1, inches) as (figure, (ax,)):
        for height, line in enumerate(claims):
            if line.ratio is None:
                ax.text(LEAST * 1.2, height, NOT_MEASURED, va="center", fontsize=7, color="0.35")
            else:
                _row(ax, height, line)
        _separate(ax, [len(lines) for lines in claims.topics().values()])
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xlim(LEAST, LARGEST)
        ax.set_ylim(len(claims) - 0.4, -0.7)
        ax.set_yticks(range(len(claims)), [numbered(line.title) for line in claims])
        ax.tick_params(axis="y", length=0, labelsize=6)
        ax.set_xlabel("measured / bound")
        figure.legend(handles=_legend(), loc="outside lower center", ncols=3)
        return svg(figure)


def _row(ax: Axes, height: int, line: ClaimLine) -> None:
    edges, share = bars(line.histogram)
    color = FILLED if line.compares_with_bound else TOLERANCE
    ax.stairs(
        height + 0.42 - 0.84 * share,
        edges,
        baseline=height + 0.42,
        fill=True,
        color=color,
        linewidth=0,
    )
    marks = (
        (line.ratio, LOOKS[0], "D", "full"),
        (line.ratio_sharp, LOOKS[2], "D", "none"),
        (line.attained, LOOKS[3], "x", "full"),
    )
    for value, look, marker, fill in marks:
        if value is not None:
            place = min(max(value, LEAST), LARGEST)
            ax.plot(
                [place],
                [height],
                marker=marker,
                color=look.color,
                fillstyle=fill,
                markersize=3.6,
                clip_on=False,
            )
    if line.status == "refuted":
        ax.text(
            LARGEST,
            height,
            " refuted",
            va="center",
            fontsize=7,
            color=LOOKS[2].color,
            weight="bold",
        )


def bars(histogram: Mapping[float, int]) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the bars, and the share of the fullest one; ratios below `LEAST` are in the first.

    A record's bin that begins at an edge is in the bar that ends there, so that ratios of 1 are
    left of the bound.
    """
    first, last = (math.floor(PER_DECADE * math.log10(end)) for end in (LEAST, LARGEST))
    counts = np.zeros(last - first + 1)
    for ratio, number in histogram.items():
        index = math.ceil(PER_DECADE * math.log10(ratio) - ROUNDING) - 1 - first
        counts[min(max(index, 0), len(counts) - 1)] += number
    return 10 ** (np.arange(first, last + 2) / PER_DECADE), counts / max(counts.max(), 1)


def _separate(ax: Axes, sizes: list[int]) -> None:
    """Thin lines between the topics."""
    for end in np.cumsum(sizes)[:-1]:
        ax.axhline(float(end) - 0.5, color="0.6", linewidth=0.4)


def _legend() -> list[Patch | Line2D]:
    def mark(index: int, marker: str, fill: Literal["full", "none", "top"], label: str) -> Line2D:
        return Line2D(
            [],
            [],
            color=LOOKS[index].color,
            marker=marker,
            fillstyle=fill,
            linestyle="none",
            label=label,
        )

    return [
        Patch(color=FILLED, label="checks against a bound"),
        Patch(color=TOLERANCE, label="checks against a tolerance"),
        mark(0, "D", "full", "worst ratio"),
        mark(2, "D", "none", "worst ratio to the sharper constant"),
        mark(3, "x", "full", "extremal instance"),
    ]
