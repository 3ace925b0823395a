"""Tutorials: pages whose code is run when the site is built, and shown with what it prints and
draws.

Blocks of a page run in order, as a reader would run them: those of Python in one namespace, those
of a shell in one folder, where a block with a title is first written to the file of that name. A
block that fails stops the build. Pages are run in processes of their own, side by side; what a run
gave is kept until the page or the package changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import html
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from base64 import b64decode, b64encode
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from docs.generator.pages import Page

BLOCK = re.compile(r"^```(python|sh)(?: title=\"([^\"]+)\")?\n(.*?)^```\n", re.M | re.S)
IMAGE = re.compile(r"!\[[^\]]*\]\(([\w.-]+)\)")
PACKAGES = ("socft", "toy", "verify", "sd_experiments")
PROCESSES = 2
LIMIT = 600
"""Seconds for a command."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """A page that was run.

    Attributes:
        text: Markdown, with what every block printed and drew beneath it.
        files: pictures by name.
    """

    text: str
    files: dict[str, bytes]


class Failed(Exception):
    """A block of a tutorial that failed."""


def pages(root: Path, folder: Path) -> list[Page]:
    """The tutorials, run, and their pictures.

    Args:
        root: the folder with the package.
        folder: where what runs gave is kept.
    """
    sources = sorted((root / "docs" / "tutorials").glob("*.md"))
    package = _digest(*(file for name in PACKAGES for file in sorted((root / name).rglob("*.py"))))
    kept = {file: folder / f"{file.stem}-{_digest(file)}-{package}.json" for file in sources}
    todo = [file for file in sources if not kept[file].exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        texts = [file.read_text(encoding="utf-8") for file in todo]
        for file, found in zip(todo, pool.map(run, texts, [f.stem for f in todo]), strict=True):
            content = {name: b64encode(data).decode() for name, data in found.files.items()}
            kept[file].write_text(json.dumps([found.text, content]), encoding="utf-8")
    return [page for file in sources for page in _pages(file, kept[file])]


def _pages(source: Path, kept: Path) -> list[Page]:
    text, files = json.loads(kept.read_text(encoding="utf-8"))
    title = text.partition("\n")[0].removeprefix("# ")
    pictures = (Page(f"tutorials/{name}", "", b64decode(data)) for name, data in files.items())
    return [Page(f"tutorials/{source.name}", title, text, ""), *pictures]


def _digest(*files: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def run(text: str, name: str) -> Executed:
    """A page with what its blocks print and draw.

    Args:
        text: Markdown.
        name: what its pictures are called.

    Raises:
        Failed: a block fails; says which, and why.
    """
    os.environ |= {"MPLBACKEND": "agg", "COLUMNS": "90", "NO_COLOR": "1"}
    namespace: dict[str, Any] = {"__name__": "__main__"}
    files: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.path.insert(0, folder)

        def told(block: re.Match[str]) -> str:
            printed = _ran(block[1], block[2], block[3], namespace, name)
            drawn = _figures(f"{name}-{len(files) + 1}")
            files.update(drawn)
            shown = f'\n<pre class="output">{html.escape(printed)}</pre>\n' if printed else ""
            return block[0] + shown + "".join(f"\n![]({each})\n" for each in drawn)

        made = BLOCK.sub(told, text)
        files |= {
            each: Path(each).read_bytes() for each in IMAGE.findall(text) if Path(each).exists()
        }
        sys.path.remove(folder)
    return Executed(made, files)


def _ran(kind: str, title: str | None, code: str, namespace: dict[str, Any], name: str) -> str:
    """What a block prints."""
    if title is not None:
        Path(title).write_text(code, encoding="utf-8")
        return ""
    printed = io.StringIO()
    try:
        if kind == "sh":
            return _shell(code)
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"<{name}>", "exec"), namespace)
    except Exception as error:
        raise Failed(f"{name}: {type(error).__name__}: {error}\n\n{code}") from error
    return printed.getvalue().rstrip()


def _shell(code: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", f'socft() {{ "{sys.executable}" -m socft.cli "$@"; }}\n{code}'],
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=LIMIT,
    )
    if done.returncode != 0:
        raise Failed(f"status {done.returncode}: {done.stdout}")
    return done.stdout.rstrip()


def _figures(name: str) -> dict[str, bytes]:
    """The figures that are open, closed and as pictures."""
    if "matplotlib.pyplot" not in sys.modules:
        return {}
    from matplotlib import pyplot

    found = {}
    for number in pyplot.get_fignums():
        stream = io.BytesIO()
        figure = pyplot.figure(number)
        figure.set_size_inches(7, 3.6)
        figure.set_layout_engine("constrained")
        figure.savefig(stream, format="svg", metadata={"Date": None})
        found[f"{name}-{number}.svg"] = stream.getvalue()
    pyplot.close("all")
    return found
