"""Records: one measured number beside its bound, as a line of JSON with everything needed to
measure it again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path as FilePath
from typing import Any

from socft.checks import InvalidProblem, require

_PACKAGES = ("socft", "torch", "numpy", "scipy")
_NUMBERS = ("value", "bound", "stderr", "seconds", "peak_mb", "published", "optimum")


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
        ValueError, TypeError, KeyError: the line is not a record.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise TypeError(f"a record is a JSON object, not {line!r}")
    fields: dict[str, Any] = row | {"value": math.nan if row["value"] is None else row["value"]}
    for name in _NUMBERS:
        if fields.get(name) is not None:
            fields[name] = float(fields[name])
    return Record(**fields)


def write(records: Iterable[Record], file: FilePath) -> None:
    """Write records as JSON lines, atomically: the file is either the old one or complete."""
    write_atomically(file, "".join(encode(record) + "\n" for record in records).encode())


def read(file: FilePath) -> list[Record]:
    """Read the records of a file.

    Raises:
        InvalidProblem: the file does not exist, or a line is not a record.
    """
    require(
        file.is_file(),
        f"no records at {file}; measure them with: socft toy {file.stem} --out {file.parent}",
    )
    return [
        _parse(line, number, file) for number, line in enumerate(file.read_text().splitlines(), 1)
    ]


def _parse(line: str, number: int, file: FilePath) -> Record:
    try:
        return decode(line)
    except (ValueError, TypeError, KeyError) as error:
        message = (
            f"line {number} of {file} is not a record: {line[:60]!r}; measure the study again."
        )
        raise InvalidProblem(message) from error


def write_atomically(file: FilePath, content: bytes) -> None:
    """Write through a temporary file in the same folder and rename it into place."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        FilePath(temporary).chmod(0o644)
        os.replace(temporary, file)
    except BaseException:
        FilePath(temporary).unlink(missing_ok=True)
        raise


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
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
