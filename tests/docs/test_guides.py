"""What guides and tutorials show runs, and says what they say that it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib import pyplot

from docs.generator.tutorials import Failed, run

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
SHOWN = ("install", *(f"guides/{guide.stem}" for guide in GUIDES))
ELSEWHERE = ("import pandas", "import polars", "images[")
"""Blocks of other packages, and of pictures."""


@pytest.mark.slow
@pytest.mark.parametrize("page", SHOWN)
def test_code_of_guides_runs(page: str, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(ROOT)
    namespace: dict[str, object] = {"__name__": "guide"}
    for indent, code in re.findall(r"^( *)```python\n(.*?)^ *```$", text, re.M | re.S):
        if not any(other in code for other in ELSEWHERE):
            lines = (line.removeprefix(indent) for line in code.splitlines())
            exec(compile("\n".join(lines), page, "exec"), namespace)
    pyplot.close("all")


def test_what_a_block_prints_and_draws_stands_beneath_it():
    page = (
        "# T\n\n```python\nprint('<one>')\n```\n\nText.\n\n```sh\ncat a.txt\n```\n\n"
        "```python\nfrom matplotlib import pyplot\npyplot.plot([1, 2])\n```\n"
    )
    found = run(page.replace("```sh", '```python title="a.txt"\ntwo\n```\n\n```sh'), "t")
    assert '<pre class="output">&lt;one&gt;</pre>' in found.text
    assert found.text.index("&lt;one") < found.text.index("Text.") < found.text.index(">two<")
    ((name, picture),) = found.files.items()
    assert f"![]({name})" in found.text
    assert picture.startswith(b"<?xml")


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [("python", "1 / 0", "ZeroDivisionError"), ("sh", "false", "status 1")],
)
def test_a_block_that_fails_stops_the_page(kind: str, code: str, said: str):
    with pytest.raises(Failed, match=said):
        run(f"```{kind}\n{code}\n```\n", "t")
