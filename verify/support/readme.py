"""Writes README.md of this folder, and the claims that reports know, from the claims:
``python -m verify.support.readme``.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
from pathlib import Path

from socft.files import write_atomically
from socft.report.claim_records import STATED
from verify.support.claims import Claim

FOLDER = Path(__file__).parents[1]
HEADING = """# Claims

Each file states one result about controlled diffusion chains and checks it: on instances drawn at
random and steered towards the worst case, on the instance that attains it, without the assumption
it needs (and must then see it fail), and where it has a closed form in ball arithmetic. Whatever is
checked is measured against an exact solution, never against the formula itself.

    socft verify                       # every claim; records in build/records/verify.jsonl
    socft verify theorem_2_8_i         # those whose names begin so
    socft verify 'lemma_*'             # or match a pattern
    socft verify --minutes 30          # search for worse instances; an interrupted search continues
    pytest verify/ -n 2                # the same checks as tests

A *tight* bound is attained, or approached, by an instance; an *upper bound* is not; a *limit* holds
as a parameter grows.

Statements are in the notation of [Typst](https://typst.app/docs/reference/math/), from which the
reports typeset them.
"""


def claims(folder: Path = FOLDER) -> list[Claim]:
    """The claims of the files of this folder, in the order of the table."""
    names = [
        file.stem
        for file in folder.glob("*.py")
        if re.search(r"^CLAIM\b.*=", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    found = [importlib.import_module(f"{folder.name}.{name}").CLAIM for name in names]
    return sorted(found, key=lambda claim: claim.place)


def text(found: list[Claim]) -> str:
    """The content of README.md: one table per topic."""
    topics = itertools.groupby(found, key=lambda claim: claim.topic)
    return HEADING + "".join(map(_table, (list(group) for _, group in topics)))


def headings(found: list[Claim]) -> str:
    """The content of the file of claims that reports know."""
    return json.dumps([claim.heading for claim in found], ensure_ascii=False, indent=1) + "\n"


def _table(group: list[Claim]) -> str:
    rows = [
        f"| [{_cell(c.title)}]({c.name}.py) | `{_cell(c.statement)}` | {c.kind}"
        f" | {_cell(c.source)} |"
        for c in group
    ]
    header = ["| Claim | Statement | Kind | Source |", "| --- | --- | --- | --- |"]
    return f"\n## {group[0].topic.title}\n\n" + "\n".join([*header, *rows]) + "\n"


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


if __name__ == "__main__":
    write_atomically(FOLDER / "README.md", text(claims()).encode())
    write_atomically(STATED, headings(claims()).encode())
