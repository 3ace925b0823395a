"""The lines of ``verify.jsonl``, one per claim."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from socft.checks import require
from socft.files import read_rows, write_rows
from socft.records import environment
from verify.support.recording.tally import Tally, plain
from verify.support.recording.words import words

DAMAGED = "remove the file and check all claims again, or bring it back from a copy"
_TOOLS = ("hypothesis", "python-flint", "sympy", "mpmath")


def record_of(heading: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    """A line of the record; ``heading`` is what it says whatever was measured."""
    here, shown = environment(), tally.failure or tally.worst
    tools = {name: version for name in _TOOLS if (version := _version(name))}
    line = {
        **heading,
        "status": tally.status,
        "checked": tally.checked,
        "check": shown.what if shown else None,
        "measured": shown.measured if shown else None,
        "bound": shown.bound if shown else None,
        "ratio": shown.ratio if shown else None,
        "ratio_sharp": tally.sharp,
        "instance": shown.instance if shown else None,
        "words": words(shown.instance) if shown else None,
        "attained": tally.attained,
        "control": tally.control,
        "certified": tally.certified,
        "parts": [
            {
                "checked": part.checked,
                **dataclasses.asdict(part.extreme),
                "words": words(part.extreme.instance),
            }
            for part in tally.parts.values()
        ],
        "finding": [
            {"text": text, "instance": instance} for text, instance in tally.findings.items()
        ],
        "quantiles": tally.quantiles,
        "histogram": tally.histogram,
        "errors": tally.errors,
        "seconds": round(tally.seconds, 2),
        "seed": tally.seeds,
        "versions": {**here.versions, **tools},
        "commit": here.commit,
        "dirty": here.dirty,
    }
    return plain(line)


def summary(line: Mapping[str, Any]) -> str:
    """A line of the record in one line of text."""
    shown = (("worst ratio", "ratio"), ("sharp", "ratio_sharp"), ("attained", "attained"))
    ratios = ", ".join(
        f"{name} {float(line[key]):.4g}" for name, key in shown if line[key] is not None
    )
    flags = [name for name in ("control", "certified") if line[name]]
    about = [
        text
        for text in (
            ratios,
            f"{line['checked']} checks",
            *flags,
            *line["errors"],
            f"{line['seconds']:.1f} s",
        )
        if text
    ]
    return f"{line['claim']}: {line['status']} ({'; '.join(about)})"


def read_records(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of a record file by claim, none where there is no file.

    Raises:
        InvalidProblem: a line is damaged.
    """
    if not file.exists():
        return {}
    rows = {}
    for where, row in read_rows(file, DAMAGED):
        name = row.get("claim")
        require(isinstance(name, str), f"{where} is damaged: it names no claim; {DAMAGED}.")
        rows[name] = row
    return rows


def update_records(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the lines of some claims, atomically; the lines of other claims stay as they are."""
    rows = read_records(file) | {line["claim"]: dict(line) for line in lines}
    write_rows([rows[name] for name in sorted(rows)], file)


def forget_records(file: Path, keep: Iterable[str]) -> None:
    """Drop the lines of all claims but some, atomically."""
    rows, kept = read_records(file), set(keep)
    if rows.keys() - kept:
        write_rows([rows[name] for name in sorted(rows) if name in kept], file)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
