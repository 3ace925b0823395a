"""Small pieces of HTML and SVG: tables, links to papers, and numbers on a logarithmic axis.

Drawings take the colours of the page, so that they can be read on a dark one.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence

from socft.report.typeset import ARXIV

WIDTH, HEIGHT, MARGIN = 640, 54, 16
"""Of a strip, in units of its view box."""


def escaped(text: str) -> str:
    """Text as HTML."""
    return html.escape(text, quote=False)


def cited(source: str) -> str:
    """A source with links to its papers on arXiv."""
    parts = ARXIV.split(source)
    return "".join(
        f'<a href="https://arxiv.org/abs/{part}">arXiv {part}</a>' if i % 2 else escaped(part)
        for i, part in enumerate(parts)
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number with significant digits; "not measured" for None and NaN.

    >>> number(0.39776), number(None), number(2.2e-16)
    ('0.398', 'not measured', '2.2·10<sup>−16</sup>')
    """
    if value is None or math.isnan(value):
        return "not measured"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    shown = f"{value:.{digits}g}".replace("-", "−")
    mantissa, e, exponent = shown.partition("e")
    power = exponent.lstrip("+").replace("−0", "−").lstrip("0")
    return f"{mantissa}·10<sup>{power}</sup>" if e else mantissa


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of HTML cells; what a row has beyond the columns stands in lines beneath it.

    Args:
        numeric: the columns of numbers.
    """
    width = len(header)

    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f'<{tag} class="number">{cell}</{tag}>' if i in numeric else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    def beneath(cells: Sequence[str]) -> str:
        return "".join(
            f'<tr class="beneath"><td colspan="{width}">{c}</td></tr>' for c in cells if c
        )

    body = "\n".join(line(row[:width], "td") + beneath(row[width:]) for row in rows)
    return (
        '<div class="md-typeset__table"><table>\n'
        f"<thead>{line(header, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


@dataclasses.dataclass(frozen=True)
class Scale:
    """A logarithmic axis.

    Attributes:
        least: where it begins, positive; smaller numbers are drawn there.
        largest: where it ends; larger numbers are drawn there.
    """

    least: float
    largest: float

    def place(self, value: float) -> float:
        """Where a number is drawn."""
        kept = min(max(value, self.least), self.largest)
        share = math.log(kept / self.least) / math.log(self.largest / self.least)
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    @property
    def ticks(self) -> list[float]:
        """Powers of ten along it, at most eight."""
        first, last = math.ceil(math.log10(self.least)), math.floor(math.log10(self.largest))
        return [10.0**power for power in range(first, last + 1, max(1, (last - first + 7) // 8))]


def _axis(scale: Scale, bottom: int) -> str:
    line = f'<path class="axis" d="M{MARGIN} {bottom}H{WIDTH - MARGIN}"/>'
    return line + "".join(
        f'<path class="axis" d="M{scale.place(tick)} {bottom}v4"/>'
        f'<text x="{scale.place(tick)}" y="{bottom + 15}">{tick:g}</text>'
        for tick in scale.ticks
    )


def _svg(title: str, body: str, height: int = HEIGHT) -> str:
    return (
        f'<svg class="strip" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{escaped(title)}</title>{body}</svg>"
    )


def histogram(
    counts: Mapping[float, int], marks: Mapping[str, float], title: str, scale: Scale
) -> str:
    """Bars by where their bins begin, and marked numbers, on an axis with a line at 1.

    Args:
        counts: by the beginning of the bin.
        marks: numbers by what they are; the name is a class of the style sheet.
    """
    most, bottom = max(counts.values(), default=1), HEIGHT + 2
    heights: dict[float, int] = {}
    for begin, count in counts.items():
        heights[scale.place(begin)] = heights.get(scale.place(begin), 0) + count
    bars = "".join(
        f'<rect class="bar" x="{x - 2}" width="4" y="{bottom - 46 * min(count / most, 1):.1f}"'
        f' height="{46 * min(count / most, 1):.1f}"/>'
        for x, count in heights.items()
    )
    line = f'<path class="bound" d="M{scale.place(1)} 4V{bottom}"/>'
    shown = "".join(
        f'<path class="mark {name}" d="M{scale.place(value)} {bottom - 5}l4 -6 -4 -6 -4 6z"/>'
        for name, value in marks.items()
    )
    return _svg(title, bars + line + shown + _axis(scale, bottom), HEIGHT + 22)


def dots(values: Sequence[float], marked: float | None, title: str) -> str:
    """Numbers as dots on an axis, one of them marked."""
    known = [value for value in values if value > 0 and math.isfinite(value)]
    if not known:
        return ""
    scale, middle = Scale(min(known) / 1.5, max(max(known), 10 * min(known)) * 1.5), 14
    points = "".join(f'<circle cx="{scale.place(v)}" cy="{middle}" r="4"/>' for v in known)
    mark = (
        f'<circle class="mark" cx="{scale.place(marked)}" cy="{middle}" r="6"/>'
        if marked is not None and marked > 0
        else ""
    )
    return _svg(title, points + mark + _axis(scale, middle + 10), HEIGHT - 8)
