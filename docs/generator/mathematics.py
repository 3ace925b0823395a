r"""Mathematics as MathML, which browsers show without a script and without a network.

Statements of claims and targets of estimators are Typst markup; docstrings and pages are LaTeX,
between dollars or in the roles of reStructuredText.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import typst
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

FRACTIONS = '#show math.equation.where(block: false): set math.frac(style: "horizontal")'
PIECE = '<div class="typst">'
INLINE = r"(?<![\\$])\$(?![\s$])([^$\n]*(?:\n[^$\n]+)*?)(?<!\s)\$(?!\d)"
BLOCK = re.compile(r"^( *)\$\$(.+?)\$\$ *$", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":math:`([^`]+)`")
DIRECTIVE = re.compile(r"^( *)\.\. math::[ ]*(.*(?:\n+\1 +.+)*)", re.MULTILINE)
BEFORE_LINKS, AFTER_CODE = 185, 24
"""Priorities: dollars are read before links and emphasis, displays after code in fences."""


def typst_html(pieces: Sequence[str]) -> list[str]:
    """HTML of pieces of Typst markup, mathematics as MathML; compiled at once.

    Raises:
        typst.TypstError: a piece does not compile; a note says where.
    """
    if not pieces:
        return []
    wrapped = (f'#html.elem("div", attrs: (class: "typst"))[{piece}]' for piece in pieces)
    source = "\n\n".join([FRACTIONS, *wrapped])
    with TemporaryDirectory() as folder:
        main = Path(folder) / "main.typ"
        main.write_text(source, encoding="utf-8")
        try:
            compiled = typst.Compiler(main, root=folder, ignore_system_fonts=True).compile(
                format="html"
            )
        except typst.TypstError as error:
            error.add_note(error.diagnostic)
            raise
    if not isinstance(compiled, bytes):
        raise TypeError("the typesetter returned several files instead of one page")
    found = compiled.decode().split(PIECE)[1:]
    return [_inside(each) for each in found]


def _inside(piece: str) -> str:
    """What stands before the end of the element that the piece is in."""
    return (
        piece.rpartition("</body>")[0].rpartition("</div>")[0]
        if "</body>" in piece
        else (piece.rstrip().removesuffix("</div>"))
    )


def latex_html(latex: str, display: bool = False) -> str:
    """MathML of a LaTeX formula.

    Raises:
        ValueError: a command of it is not known, and would be shown as it stands.
    """
    made = convert(
        " ".join(latex.split()).replace(r"\arg", r"\operatorname{arg}"),
        display="block" if display else "inline",
    )
    shown = [each.text for each in ElementTree.fromstring(made).iter() if each.text]
    unknown = [each for each in shown if each.startswith("\\") and len(each) > 1]
    if unknown:
        raise ValueError(f"the formula {latex!r} has the unknown command {unknown[0]}.")
    return made


def dollars(docstring: str) -> str:
    """A docstring with its mathematics between dollars.

    >>> dollars("As :math:`a^2`.")
    'As $a^2$.'
    """
    text = DIRECTIVE.sub(lambda found: f"{found[1]}$${' '.join(found[2].split())}$$", docstring)
    return ROLE.sub(lambda found: f"${' '.join(found[1].split())}$", text)


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(latex_html(m[1])), m.start(0), m.end(0)


class _Display(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        def stored(found: re.Match[str]) -> str:
            made = f'<div class="display">{latex_html(found[2], display=True)}</div>'
            return f"\n{found[1]}{self.md.htmlStash.store(made)}\n"

        return BLOCK.sub(stored, "\n".join(lines)).split("\n")


class Dollars(Extension):
    """LaTeX between dollars in Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Add both forms to the parser."""
        md.inlinePatterns.register(_Inline(INLINE, md), "dollars", BEFORE_LINKS)
        md.preprocessors.register(_Display(md), "display", AFTER_CODE)


def makeExtension(**options: object) -> Dollars:
    """What Markdown calls for ``docs.generator.mathematics``."""
    return Dollars(**options)
