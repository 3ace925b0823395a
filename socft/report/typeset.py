"""Typst sources from small pieces, and their compilation to PDF: bundled fonts, no clock, the same
bytes for the same records.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import typst

ARXIV = re.compile(r"arXiv (\d{4}\.\d{5}(?:v\d+)?)")
LOOSE = 0.1
EXCEEDED = 1.005  # rounds to 1.01
NOT_MEASURED = '#text(fill: luma(40%), style: "italic")[not measured]'

PREAMBLE = r"""
#set page(
  paper: "a4", margin: (x: 25mm, top: 23mm, bottom: 24mm), numbering: "1", number-align: center)
#set text(font: "New Computer Modern", size: 10pt, lang: "en")
#set par(justify: true, leading: 0.58em, spacing: 0.58em, first-line-indent: 1.3em)
#set heading(numbering: "1.1")
#show heading.where(level: 1): it => block(above: 1.7em, below: 0.85em, sticky: true, text(
  size: 12pt,
  if it.numbering != none { counter(heading).display() + h(0.7em) } + it.body,
))
#show heading.where(level: 2): it => block(above: 1.5em, below: 0.8em, sticky: true, text(
  size: 10.5pt,
  if it.numbering != none { counter(heading).display() + h(0.7em) } + it.body,
))
#set math.equation(numbering: "(1)")
#show math.equation.where(block: false): set math.frac(style: "horizontal")
#show math.equation.where(block: true): set block(above: 0.95em, below: 0.95em)
#set figure(placement: none, gap: 0.8em)
#show ref: it => {
  let target = it.element
  if target == none or target.func() != math.equation { return it }
  link(target.location(), numbering(target.numbering,
  ..counter(math.equation).at(target.location())))
}
#show figure: set block(above: 1.3em, below: 1.3em)
#show figure.caption: it => block(width: 94%, text(size: 9pt, align(left, {
  strong[#it.supplement #context it.counter.display(it.numbering).]
  h(0.45em)
  it.body
})))
#show figure.where(kind: table): set figure.caption(position: top)
#show figure.where(kind: table): set text(size: 9pt, hyphenate: false)
#show table: set par(justify: false)
#set table(stroke: none, inset: (x: 0.55em, y: 0.32em))
#show raw: set text(font: "DejaVu Sans Mono", size: 8.2pt)
#show raw.where(block: true): it => block(above: 1.1em, below: 1.1em, inset: (left: 1.3em), it)
#show link: it => if type(it.dest) == str { text(fill: rgb("#0b4f8a"), it) } else { it }
#let rule(weight) = table.hline(stroke: weight)
"""


LONG = """#show figure: set block(breakable: true)
#show figure.where(kind: table): set text(size: 8pt)
#show figure.caption: set block(sticky: true)
#set table(inset: (x: 0.4em, y: 0.32em))
#set table.cell(breakable: false)"""


def text(value: str) -> str:
    """Any string as Typst markup that shows exactly that string."""
    escaped = (
        value.replace("\\", "\\\\")
        .replace('"', '\\"')
        .replace("\n", "\\n")
        .replace("\r", "\\r")
        .replace("\t", "\\t")
    )
    return f'#"{escaped}";'


def paper(number: str) -> str:
    """A paper on arXiv as a link."""
    return f'#link("https://arxiv.org/abs/{number}")[{number}]'


def cited(source: str) -> str:
    """A source as markup, with links to its papers on arXiv."""
    parts = ARXIV.split(source)
    return "".join(paper(part) if i % 2 else text(part) for i, part in enumerate(parts) if part)


def number(value: float | None, digits: int = 3) -> str:
    """A number with significant digits, as inline mathematics; "not measured" for None and NaN."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if math.isinf(value):
        return "$infinity$" if value > 0 else "$-infinity$"
    if value == 0:
        return "$0$"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if -3 <= exponent < 5:
        return f"${value:.{max(0, digits - 1 - exponent)}f}$"
    mantissa = f"{value:.{digits - 1}e}".partition("e")[0]
    return f"${mantissa} times 10^({exponent})$"


def integer(value: float | None) -> str:
    """A whole number, as inline mathematics."""
    return NOT_MEASURED if value is None else f"${int(value)}$"


def fraction_of_bound(value: float | None) -> str:
    """A worst ratio of measured to bound: marked loose below a tenth, exceeded above one by more
    than the digits shown.
    """
    if value is None or math.isnan(value):
        return NOT_MEASURED
    return number(value) + (
        " (loose)" if value < LOOSE else " (*exceeded*)" if value > EXCEEDED else ""
    )


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in three rules.

    Attributes:
        header: column titles, as markup.
        rows: cells as markup; a row of one cell is a group title, spans the table and stands again
            on further pages.
        caption: markup.
        label: for references.
        align: one letter per column, l, c or r.
        widths: of the columns, as the typesetter says it; natural by default.
        long: whether it may run over pages; it is then set smaller.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str
    label: str
    align: str
    widths: Sequence[str] = ()
    long: bool = False

    @property
    def markup(self) -> str:
        """The table as a numbered figure."""
        names = {"l": "left", "c": "center", "r": "right"}
        align = ", ".join(names[letter] for letter in self.align)
        cells = [
            "rule(0.8pt)",
            "table.header(" + ", ".join(f"[{cell}]" for cell in self.header) + ")",
            "rule(0.4pt)",
        ]
        for index, row in enumerate(self.rows):
            if len(row) == 1:
                cells += ["rule(0.3pt)"] if index else []
                cells += [
                    f"table.header(level: 2, table.cell(colspan: {len(self.header)}, align:"
                    f" left)[#emph[{row[0]}]])"
                ]
            else:
                cells += [f"[{cell}]" for cell in row]
        cells.append("rule(0.8pt)")
        body = ",\n  ".join(cells)
        columns = f"({', '.join(self.widths)})" if self.widths else str(len(self.header))
        made = (
            f"#figure(kind: table, caption: [{self.caption}],\n"
            f"table(columns: {columns}, align: ({align},),\n  {body})) <{self.label}>"
        )
        return f"#[\n{LONG}\n{made}\n]" if self.long else made


def figure(picture: str, caption: str, label: str, alt: str) -> str:
    """A picture at its natural width, at the top or bottom of a page: the text runs on before
    it.
    """
    return (
        f"#figure(image({string(picture)}, alt: {string(alt)}), placement: auto,"
        f" caption: [{caption}]) <{label}>"
    )


def landscape(markup: str) -> str:
    """Pages of their own, turned."""
    return f"#page(flipped: true, margin: (x: 18mm, top: 18mm, bottom: 20mm))[\n{markup}\n]"


def picture_rows(pictures: Mapping[str, str], caption: str, label: str) -> str:
    """Bitmaps below each other, each with its title as markup on the left; enlarged without
    smoothing.
    """
    cells = [
        f'[{title}], image({string(name)}, width: 100%, scaling: "pixelated")'
        for title, name in pictures.items()
    ]
    body = ",\n  ".join(cells or [f"[{NOT_MEASURED}], []"])
    grid = f"grid(columns: (3.2cm, 1fr), align: (left + horizon, left), row-gutter: 2pt,\n  {body})"
    return f"#figure(kind: image, caption: [{caption}],\n{grid}) <{label}>"


def compile_pdf(source: str, pictures: Mapping[str, bytes]) -> bytes:
    """Typeset a source and the pictures it names.

    Raises:
        typst.TypstError: the source does not compile; a note says where.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, content in pictures.items():
            (Path(folder) / name).write_bytes(content)
        main = Path(folder) / "main.typ"
        main.write_text(source, encoding="utf-8")
        try:
            pdf = typst.Compiler(main, root=folder, ignore_system_fonts=True).compile(
                format="pdf", timestamp=0
            )
        except typst.TypstError as error:
            error.add_note(error.diagnostic)
            raise
    if not isinstance(pdf, bytes):
        raise TypeError("the typesetter returned several files instead of one PDF")
    return pdf


def string(value: str) -> str:
    """Any string as a string of Typst."""
    return text(value)[1:-1]
