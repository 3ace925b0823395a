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
from typing import TYPE_CHECKING, Any

from socft import plot
from socft.checks import require, require_known
from socft.files import parse_json, read_rows, write_rows
from socft.schema import structured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PACKAGES = ("socft", "torch", "numpy", "scipy")
_NUMBERS = ("value", "bound", "stderr", "seconds", "peak_mb", "published", "optimum")
INFINITIES = ("inf", "-inf")
AGAIN = "measure the study again"
_PACKAGE = FilePath(__file__).resolve().parent
_ROOT = _PACKAGE.parent


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


class Records(list[Record]):
    """The records of a study.

    >>> rows = [Record("study", "problem", "error", 2.0**-n, {"n": n}) for n in (1, 2, 3)]
    >>> records = Records(rows)
    >>> records.keys()
    ['n']
    """

    def keys(self) -> list[str]:
        """The settings whose numbers differ, those with the most of them first."""
        numbers: dict[str, set[float]] = {}
        for record in self:
            for key, value in record.setting.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    numbers.setdefault(key, set()).add(value)
        varying = [key for key, values in numbers.items() if len(values) > 1]
        return sorted(varying, key=lambda key: -len(numbers[key]))

    def of(self, **fields: Any) -> Records:
        """The records with these fields and settings, such as ``metric="bias", d=4``."""
        return Records(
            record
            for record in self
            if all(
                (vars(record) | dict(record.setting)).get(key) == value
                for key, value in fields.items()
            )
        )

    def plot(self, x: str | None = None, axes: Axes | None = None) -> Axes:
        """Draw the value against a setting, a curve per problem, method and metric, with standard
        errors, and dashed the bounds.

        Args:
            x: the setting; by default the one with the most numbers.

        Raises:
            InvalidProblem: no record has that setting, or several records of a curve have one
                value of it; or matplotlib is not installed.
        """
        keys = self.keys()
        require(bool(keys), "no setting of these records varies; there is nothing to draw against.")
        x = keys[0] if x is None else x
        require_known(x, keys, "setting")
        curves: dict[str, dict[float, Record]] = {}
        for record in self:
            if x in record.setting and math.isfinite(record.value):
                name = ", ".join(filter(None, (record.problem, record.estimator, record.metric)))
                points = curves.setdefault(name, {})
                require(
                    record.setting[x] not in points,
                    f"several records of {name} have {x} = {record.setting[x]}; choose some with"
                    f" of(), by {', '.join(key for key in keys if key != x) or 'metric'}.",
                )
                points[record.setting[x]] = record
        axes = plot.axes_or_new(axes)
        for name, points in curves.items():
            _draw(axes, name, points)
        plot.logarithmic(axes, {k: [r.value for r in p.values()] for k, p in curves.items()})
        axes.set(xlabel=x, ylabel="value")
        axes.legend()
        return axes


def _draw(axes: Axes, name: str, points: Mapping[float, Record]) -> None:
    rows = [points[key] for key in sorted(points)]
    errors = [record.stderr or 0.0 for record in rows]
    bounds = [record.bound for record in rows if record.bound is not None]
    plot.measured(
        axes,
        sorted(points),
        [record.value for record in rows],
        name,
        errors if any(errors) else None,
        bounds if len(bounds) == len(rows) else None,
    )


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
    commit = _git(_ROOT, "rev-parse", "HEAD")
    dirty = bool(_git(_ROOT, "status", "--porcelain", "--", "*.py", "*.toml"))
    return Environment(versions, commit, dirty)


@functools.cache
def commit_date(commit: str) -> str:
    """The day of a commit of the code, as year, month and day; empty where it is not known."""
    return _git(_ROOT, "show", "--no-patch", "--format=%cs", commit)


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


def read(file: FilePath) -> Records:
    """Read the records of a file.

    Raises:
        InvalidProblem: the file does not exist, or a line is not a record, or not the one that was
            written there.
    """
    require(
        file.exists(),
        f"no records at {file}; measure them with: socft toy {file.stem} --out {file.parent}",
    )
    records = Records(_record(row, where) for where, row in read_rows(file, AGAIN))
    require(bool(records), f"{file} holds no records; {AGAIN}.")
    return records


def published() -> FilePath:
    """The folder of the records that the reports of this version are made of: a file STUDY.jsonl
    per study, and ``verify.jsonl`` of the claims. A wheel brings it along; in a checkout it is
    ``reports/records``.

    >>> from socft.records import published
    >>> (published() / "variance.jsonl").is_file()
    True
    """
    packed = _PACKAGE / "published"
    return packed if packed.is_dir() else _ROOT / "reports" / "records"


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
