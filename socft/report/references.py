"""The literature: an entry for everything that a report cites, found in its source."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path

from socft.checks import InvalidProblem
from socft.report.typeset import paper, text

FILE = Path(__file__).with_name("references.json")
NUMBER = re.compile(r"arxiv\.org/abs/(\d{4}\.\d{4,5})")
NAMED = re.compile(r"([A-Z]\w+(?: and [A-Z]\w+)?),? \(?((?:19|20)\d\d)\)?(?![\d.-])")


@functools.cache
def entries() -> Mapping[str, str]:
    """Authors, title and year, by the number on arXiv or by names and year."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def section(source: str) -> str:
    """The references of a source, as an unnumbered chapter; nothing where it cites nothing.

    Raises:
        InvalidProblem: a number on arXiv has no entry.
    """
    numbers = sorted(set(NUMBER.findall(source)))
    missing = [number for number in numbers if number not in entries()]
    if missing:
        raise InvalidProblem(
            f"arXiv {', '.join(missing)} is cited and has no entry; add one to {FILE.name}."
        )
    named = {f"{names} {year}" for names, year in NAMED.findall(source)} & set(entries())
    found = [(entries()[key], key, key in numbers) for key in (*numbers, *named)]
    if not found:
        return ""
    lines = "\n".join(
        f"- {text(entry)}. {f'arXiv {paper(key)}.' if preprint else ''}"
        for entry, key, preprint in sorted(found)
    )
    return f"""#heading(level: 1, numbering: none)[References]
#[
#set text(size: 8.5pt)
#set list(marker: none, indent: 0pt, body-indent: 0pt, spacing: 0.5em)
{lines}
]"""
