"""The leaderboard of gradient estimators as a page, and as JSON beside it."""

from __future__ import annotations

from docs.generator.pages import Page
from toy.leaderboard import leaderboard

ADD = """
A row of your own: `socft bench mine:Mine` writes `build/bench/bench-mine-Mine.json`. A pull request
that adds this one file to `toy/rows/` adds the row; `socft leaderboard --rows build/bench` shows
before what the table will be. The same [as JSON](leaderboard.json), for other programs.
"""


def pages() -> list[Page]:
    """The page, and what it links to."""
    found = leaderboard()
    title, _, rest = found.markdown().partition("\n")
    return [
        Page("leaderboard.md", "Leaderboard", f"{title}\n{ADD}{rest}", ""),
        Page("leaderboard.json", "", found.json()),
    ]
