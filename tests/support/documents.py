"""The commands that the documents show."""

from __future__ import annotations

import re
from pathlib import Path

PROGRAMS = ("socft", "make", "pytest", "python", "torchrun", "source", "git", "ruff", "pyright")


DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "verify/README.md",
    "docs/install.md",
    "docs/guides/claim.md",
    "docs/guides/cluster.md",
    "docs/guides/estimator.md",
    "docs/guides/records.md",
    "docs/guides/reward.md",
    "docs/guides/sampler.md",
    "docs/guides/study.md",
    "docs/guides/trainer.md",
    "docs/guides/trl.md",
    "docs/guides/which-estimator.md",
)
"""Those that show commands but for tutorials, whose commands run when the site is built."""
FILES = ("docs/guides/estimator.md", "docs/guides/study.md", "docs/tutorials/theorist.md")
"""Documents with the files that their commands are about."""


def files(root: Path) -> dict[str, str]:
    """The code of the files that documents show, by name: that of a first comment, or of a
    title.
    """
    block = re.compile(
        r"^```python(?: title=\"(?P<title>\S+\.py)\"\n|\n(?=# (?P<name>\S+\.py)\n))"
        r"(?P<code>.*?)^```",
        re.DOTALL | re.MULTILINE,
    )
    texts = [(root / document).read_text(encoding="utf-8") for document in FILES]
    found = [each for text in texts for each in block.finditer(text)]
    return {each["title"] or each["name"]: each["code"] for each in found}


def commands(document: Path) -> list[str]:
    """The commands of a Markdown file, in order and without comments: blocks of shell, indented
    blocks, and code within sentences that begins with the name of a program.
    """
    text = document.read_text()
    shell = re.compile(r"^```sh\n(?P<block>.*?)^```$", re.DOTALL | re.MULTILINE)
    other = re.compile(r"^```\w+\n.*?^```$", re.DOTALL | re.MULTILINE)
    text = other.sub("", shell.sub(lambda found: _indented(found["block"]), text))
    pattern = re.compile(r"^ {4}(?P<line>\S.*)$|(?<!`)`(?P<code>[^`\n]+(?:\n[^`\n]+)?)`(?!`)", re.M)
    found = [each["line"] or " ".join(each["code"].split()) for each in pattern.finditer(text)]
    stripped = (re.sub(r"\s+# .*$", "", line).strip() for line in found)
    return [line for line in stripped if re.match(rf"({'|'.join(PROGRAMS)}) ", line)]


def _indented(block: str) -> str:
    return "\n" + "".join(f"    {line}\n" for line in block.splitlines())
