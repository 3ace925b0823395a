"""The table of recommendations in the README and in its guide, made of the records.

``python -m docs.generator.advice`` writes it into both; a test holds them against the records.
"""

from __future__ import annotations

import re
from pathlib import Path

from docs.generator.pages import slug
from socft.report.gradient_variance.advice import HEADER, markdown
from socft.report.gradient_variance.report import REPORT

ROOT = Path(__file__).resolve().parents[2]
TABLE = re.compile(rf"^\| {HEADER[0]} \| {HEADER[1]} \|.*?\n(?!\|)", re.MULTILINE | re.DOTALL)


def tables() -> dict[Path, str]:
    """The table by the file that shows it."""
    rows = REPORT.rows(ROOT / "reports" / "records")
    return {
        ROOT / "README.md": markdown(rows),
        ROOT / "docs/guides/which-estimator.md": markdown(
            rows, lambda name: f"[{name}](../estimators/{slug(name)}.md)"
        ),
    }


def written(page: str, table: str) -> str:
    """A page with the table in place of the one it has."""
    return TABLE.sub(lambda _: f"{table}\n", page, count=1)


def main() -> None:
    """Write the tables."""
    for file, table in tables().items():
        page = file.read_text(encoding="utf-8")
        file.write_text(written(page, table), encoding="utf-8")


if __name__ == "__main__":
    main()
