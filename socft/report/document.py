"""A whole report: its first page with findings, abstract and contents, its body, its references."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from importlib import metadata

from socft.records import commit_date
from socft.report import references
from socft.report.claim_records import Claims
from socft.report.findings import Finding, Question, block
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, PREAMBLE, Table, cited, string, text

AUTHORS = "The socft developers"
"""As in CITATION.cff."""
CHAPTER = re.compile("^= ", re.MULTILINE)
SHORT = 7
"""Digits of a commit."""


@dataclasses.dataclass(frozen=True)
class FrontPage:
    """What stands on the first page before the abstract.

    Attributes:
        byline: authors, version, date and commits, as markup.
        findings: of the records.
    """

    byline: str
    findings: Sequence[Finding]

    @classmethod
    def of(cls, rows: Rows, claims: Claims, questions: Sequence[Question]) -> FrontPage:
        """Of the records of a report."""
        return cls(byline(rows), [each.ask(rows, claims) for each in questions])

    @property
    def markup(self) -> str:
        """The lines below the title."""
        findings = f"#v(0.8em)\n{block(self.findings)}" if self.findings else ""
        return f"#align(center)[#text(size: 9.5pt)[{self.byline}]]\n{findings}"


@dataclasses.dataclass(frozen=True)
class Contribution:
    """Something that a report rests on.

    Attributes:
        what: markup.
        source: who it is from; empty for what is ours.
    """

    what: str
    source: str = ""


def byline(rows: Rows) -> str:
    """Authors and version, and when and from which code the records are."""
    commits = list(dict.fromkeys(record.commit for record in rows if record.commit))
    dates = sorted(filter(None, map(commit_date, commits)))
    parts = [
        text(AUTHORS),
        f"version {text(metadata.version('socft'))}",
        *([text(dates[-1])] if dates else []),
        ("records of commit " if len(commits) == 1 else "records of commits ")
        + (", ".join(text(commit[:SHORT]) for commit in commits) or NOT_MEASURED),
    ]
    return " · ".join(parts)


def contributions(each: Sequence[Contribution]) -> str:
    """What is known and what is ours, as a chapter."""
    known = [(one.what, cited(one.source)) for one in each if one.source]
    ours = [(one.what, "here") for one in each if not one.source]
    return Table(
        header=("", "source"),
        rows=[("known",), *known, ("ours",), *ours],
        caption="What this report takes from others, and what it adds.",
        label="contributions",
        align="ll",
        widths=("1fr", "5cm"),
        long=True,
    ).markup


def document(title: str, subtitle: str, front: FrontPage, abstract: str, *body: str) -> str:
    """The whole source: the references that it cites are added at the end."""
    head = f"""
#set document(title: {string(title)}, author: {string(AUTHORS)}, date: none)
{PREAMBLE}
#align(center)[
  #set par(justify: false)
  #text(size: 17pt, weight: "bold", hyphenate: false)[{text(title)}]

  #v(0.4em)
  #text(size: 11pt)[{subtitle}]
]
#v(0.3em)
{front.markup}
#v(0.8em)
#pad(x: 9mm)[
  #set text(size: 9.5pt)
  #set par(first-line-indent: 0pt)
  #align(center)[*Abstract*]
  #v(0.2em)
  {abstract}
]
"""
    chapters = any(CHAPTER.search(part) for part in body)
    source = "\n\n".join([head, *([CONTENTS] if chapters else []), *body])
    return f"{source}\n\n{references.section(source)}\n"


CONTENTS = """#v(0.8em)
#pad(x: 9mm)[
  #set text(size: 9pt)
  #align(center)[*Contents*]
  #v(0.2em)
  #columns(2, gutter: 8mm)[#outline(title: none, depth: 1)]
]
#v(0.6em)"""
