"""Records: one measured number beside its bound, as a line of JSON with everything needed to
measure it again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path as FilePath
from typing import Any

from socft.checks import require
from socft.files import parse_json, read_rows, write_rows
from socft.schema import structured

_PACKAGES = ("socft", "torch", "numpy", "scipy")
_NUMBERS = ("value", "bound", "stderr", "seconds", "peak_mb", "published", "optimum")
INFINITIES = ("inf", "-inf")
AGAIN = "measure the study again"


@dataclasses.dataclass(frozen=True)
class Record:
    """One measured number of a study.

    Attributes:
        study: the study that measured it.
        problem: name of the control problem.
        metric: what ``value`` is.
        value: the measured number.
        setting: everything that distinguishes this row from its neighbours.
        estimator: method or estimator measured.
        kind: what the estimator estimates, or "exact".
        bound: the theoretical bound the value is held against.
        stderr: standard error of ``value`` over ``seeds``.
        seeds: number of independent repetitions.
        seconds: wall-clock time of the measurement.
        evaluations: number of network (mean map or policy) evaluations.
        peak_mb: peak memory beyond the start, in MB.
        published: the number in the literature.
        optimum: the exact optimum of the same quantity.
        dtype: arithmetic used.
        device: where it ran.
        versions: interpreter and package versions.
        commit: version control commit of the code; empty outside a checkout.
        dirty: whether the checkout had uncommitted changes to the code.

    >>> record = Record("study", "problem", "error", 0.5, bound=1.0)
    >>> record.value <= record.bound
    True
    """

    study: str
    problem: str
    metric: str
    value: float
    setting: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    estimator: str = ""
    kind: str = "exact"
    bound: float | None = None
    stderr: float | None = None
    seeds: int = 1
    seconds: float | None = None
    evaluations: int | None = None
    peak_mb: float | None = None
    published: float | None = None
    optimum: float | None = None
    dtype: str = "float64"
    device: str = "cpu"
    versions: Mapping[str, str] = dataclasses.field(default_factory=lambda: environment().versions)
    commit: str = dataclasses.field(default_factory=lambda: environment().commit)
    dirty: bool = dataclasses.field(default_factory=lambda: environment().dirty)


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where a number was measured."""

    versions: Mapping[str, str]
    commit: str
    dirty: bool


@functools.cache
def environment() -> Environment:
    """Interpreter and package versions and the state of the checkout, read once per process."""
    versions = {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _PACKAGES
    }
    root = FilePath(__file__).resolve().parents[1]
    commit = _git(root, "rev-parse", "HEAD")
    dirty = bool(_git(root, "status", "--porcelain", "--", "*.py", "*.toml"))
    return Environment(versions, commit, dirty)


def encode(record: Record) -> str:
    """A record as one line of strict JSON; infinities become the strings "inf" and "-inf", NaN
    becomes null.
    """
    return json.dumps(_strict(dataclasses.asdict(record)), allow_nan=False)


def decode(line: str) -> Record:
    """The record of a line.

    Raises:
        InvalidProblem: the line is not a record.
    """
    where = f"the record {line[:60]!r}"
    return _record(parse_json(line, where, AGAIN), where)


def write(records: Iterable[Record], file: FilePath) -> None:
    """Write records as sealed JSON lines, atomically: the old file, or the complete new one."""
    write_rows([_strict(dataclasses.asdict(record)) for record in records], file)


def read(file: FilePath) -> list[Record]:
    """Read the records of a file.

    Raises:
        InvalidProblem: the file does not exist, or a line is not a record, or not the one that was
            written there.
    """
    require(
        file.exists(),
        f"no records at {file}; measure them with: socft toy {file.stem} --out {file.parent}",
    )
    records = [_record(row, where) for where, row in read_rows(file, AGAIN)]
    require(bool(records), f"{file} holds no records; {AGAIN}.")
    return records


def _record(row: Any, where: str) -> Record:
    """The record of a row, all of whose keys are there."""
    if isinstance(row, dict):
        known = {name: row[name] for name in _NUMBERS if name in row}
        row = row | {name: float(each) for name, each in known.items() if each in INFINITIES}
        row |= {"value": math.nan} if known.get("value", 0.0) is None else {}
    return structured(Record, row, where, AGAIN, complete=True)


def _strict(row: Any) -> Any:
    """What strict JSON can say, recursively."""
    if isinstance(row, float) and not math.isfinite(row):
        return None if math.isnan(row) else str(row)
    if isinstance(row, Mapping):
        return {key: _strict(value) for key, value in row.items()}
    if isinstance(row, list | tuple):
        return [_strict(value) for value in row]
    return row


def _git(root: FilePath, *arguments: str) -> str:
    if not (root / ".git").exists():
        return ""
    try:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=20,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
