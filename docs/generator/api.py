"""Pages of the modules, for the reference that is made of their docstrings."""

from __future__ import annotations

import inspect
from pathlib import Path

import socft
from docs.generator.mathematics import dollars
from docs.generator.pages import Page

STORY = (
    "schedule density flow reference sde reward problem policy path path_measure estimators"
    " costates train pi_ft trust_region regression truth measurement records metrics theory"
    " guidance conform study plot checks"
)
ROOMS = STORY.split()
"""In the order of the story; a folder has a page of all its modules."""


def pages(root: Path) -> list[Page]:
    """The front page of the reference and a page per room of ``socft``."""
    rooms = [
        Page(
            f"reference/{room}.md",
            room,
            _room(modules(root / "socft" / room, f"socft.{room}")),
            "Modules",
        )
        for room in ROOMS
    ]
    return [Page("reference/index.md", "Names", names(), ""), *rooms]


def modules(place: Path, name: str) -> list[str]:
    """The modules of a room, itself first, by their dotted names; without private ones."""
    if not place.is_dir():
        return [name]
    inside = sorted(file for file in place.rglob("*.py") if file.name != "__init__.py")
    found = [".".join((name, *file.relative_to(place).with_suffix("").parts)) for file in inside]
    return [name, *(each for each in found if "._" not in each)]


def _room(found: list[str]) -> str:
    title = f"# {found[0]}\n\n::: {found[0]}\n"
    rest = (
        f"## {each.removeprefix(found[0] + '.')}\n\n::: {each}\n"
        "    options:\n      heading_level: 3\n"
        for each in found[1:]
    )
    return "\n".join([title, *rest])


def names() -> str:
    """What ``from socft import ...`` has, by module, with the first sentence of each docstring."""
    rows: dict[str, list[str]] = {}
    for name in socft.__all__:
        each = getattr(socft, name)
        room = each.__module__.split(".")[1]
        first = (inspect.getdoc(each) or "").partition("\n\n")[0].replace("\n", " ")
        about = dollars(first).replace("|", "\\|")
        rows.setdefault(room, []).append(
            f"| [`{name}`][{each.__module__}.{each.__qualname__}] | {about} |"
        )
    header = "| name | |\n|---|---|\n"
    tables = (
        f"## socft.{room}\n\n{header}" + "\n".join(rows[room]) for room in ROOMS if room in rows
    )
    return (
        "# Reference\n\nEverything below is imported as `from socft import ...`. The pages of the"
        " modules have the rest: constants of the theory, costates, regressions, guidance.\n\n"
        + "\n\n".join(tables)
        + "\n"
    )
