"""Runs the claims of `verify` and shows them as they are checked: a live table on a terminal, one
line per claim elsewhere.

The claims run under pytest in a process of its own, which appends its news to a file; this one
shows them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import fnmatch
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from socft.checks import InvalidProblem, meant, require
from socft.files import locked
from socft.study.import_path import is_foreign, locate

REFRESH_SECONDS = 0.3
PATIENCE_SECONDS = 30.0
PASSED, FAILED_TESTS, INTERRUPTED = 0, 1, 2
NEEDED = {
    "flint": "python-flint",
    "hypothesis": "hypothesis",
    "mpmath": "mpmath",
    "pytest": "pytest",
    "sympy": "sympy",
}
COLOURS = {"verified": "green", "refuted": "red", "not measured": "yellow"}
DONE = frozenset(COLOURS)


class ClaimsFailed(RuntimeError):
    """Some claims were not verified."""


def select(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names that some patterns mean, in the order of ``names``; all of them for no pattern.

    A pattern is a name, or what names begin with (whole words go first: ``theorem_2_8_i`` is not
    ``theorem_2_8_ii_bellman``), or a glob like ``lemma_*``.

    Raises:
        InvalidProblem: a pattern means no name.
    """
    chosen = {name for pattern in patterns for name in _meant(pattern, names)}
    return [name for name in names if name in chosen or not patterns]


def foreign_files(
    given: Sequence[str], folder: Path, names: Sequence[str]
) -> tuple[list[str], list[Path]]:
    """What is given on the command line, parted into patterns and files of claims that lie
    elsewhere: ``FILE.py``, ``package.module``, ``package:module``, or the stem of a file here.

    Raises:
        InvalidProblem: there is no such file or module, it defines no claim, or one of ``names``
            has its name.
    """
    patterns, files = [], []
    for each in given:
        here = Path(f"{each}.py").is_file() and not fnmatch.filter(names, each.replace("-", "_"))
        if not here and not is_foreign(each):
            patterns.append(each)
            continue
        file = locate(f"{each}.py" if here else each).resolve()
        if file.parent == folder.resolve():
            patterns.append(file.stem)
            continue
        require(
            file.stem not in names,
            f"{each} has the name of the built-in claim {file.stem}; rename the file.",
        )
        require(
            _defines_claim(file),
            f"{each} defines no CLAIM; name the claim so, as verify/README.md shows.",
        )
        files.append(file)
    return patterns, list(dict.fromkeys(files))


def _defines_claim(file: Path) -> bool:
    """Whether a file gives something the name CLAIM; one that cannot be read is left to pytest."""
    try:
        nodes = ast.walk(ast.parse(file.read_bytes()))
    except (SyntaxError, ValueError):
        return True
    return any(isinstance(each, ast.Name) and each.id == "CLAIM" for each in nodes)


def _meant(pattern: str, names: Sequence[str]) -> Sequence[str]:
    begin = pattern.replace("-", "_")
    for glob in (begin, f"{begin}_*", f"{begin}*"):
        if begin and (found := fnmatch.filter(names, glob)):
            return found
    remedy = meant(begin, names, f"the claims are: {', '.join(names)}.")
    raise InvalidProblem(f"there is no claim named {pattern!r}, or beginning so; {remedy}")


@dataclasses.dataclass(frozen=True)
class Run:
    """What to check, and where to keep what is found.

    Attributes:
        folder: the package of claims.
        names: the claims to check.
        records: file of records to update.
        state: folder for searches and the log.
        minutes: time to search for worse instances; 0 checks each claim once.
        workers: number of processes.
        foreign: files of claims that lie elsewhere.
    """

    folder: Path
    names: Sequence[str]
    records: Path
    state: Path
    minutes: float = 0.0
    workers: int = 1
    foreign: Sequence[Path] = ()

    @property
    def home(self) -> Path:
        """The folder in which the claims are checked: that of the package, or where the user stands
        where some are the user's.
        """
        return Path.cwd() if self.foreign else self.folder.resolve().parent

    @property
    def claims(self) -> list[str]:
        """All names."""
        return [*self.names, *(each.stem for each in self.foreign)]

    @property
    def log(self) -> Path:
        """What pytest printed."""
        return self.state / "pytest.log"

    @property
    def locks(self) -> tuple[Path, Path]:
        """What a second run may not hold meanwhile: for the records, and for searches and log."""
        return tuple(  # type: ignore[return-value]
            each.with_name(f".{each.name}.lock") for each in (self.records, self.state)
        )

    def command(self, events: Path, parent: int) -> list[str]:
        """The process that checks the claims.

        Args:
            events: file to which it appends its news.
            parent: end of a pipe whose other end closes when this process ends.
        """
        package = self.folder if self.foreign else Path(self.folder.name)
        files = [package / f"{name}.py" for name in self.names] + list(self.foreign)
        options = [
            "-q",
            "--no-header",
            "--tb=short",
            f"--rootdir={self.home}",
            "-o",
            f"python_files={self.folder.name}/*.py",
            "-p",
            "no:cacheprovider",
            "--continue-on-collection-errors",
        ]
        if self.foreign:
            options += ["-c", os.devnull]
        if not self.names:
            options += ["-p", f"{self.folder.name}.conftest"]
        parallel = ["-n", str(self.workers)] if self.workers > 1 else []
        kept = [
            f"--records={self.records.resolve()}",
            f"--state={self.state.resolve()}",
            f"--events={events}",
            f"--parent={parent}",
        ]
        return [
            sys.executable,
            "-m",
            "pytest",
            *map(str, files),
            *options,
            *parallel,
            *kept,
            f"--minutes={self.minutes}",
        ]


def verify(run: Run, fresh: bool = False, console: Console | None = None) -> list[dict[str, Any]]:
    """Check claims; returns the lines of their records. Lines of claims whose file is gone are
    dropped.

    Args:
        fresh: forget what earlier searches found.
        console: where to show progress; standard error by default.

    Raises:
        InvalidProblem: an option makes no sense, a package is missing, the records are damaged, or
            another run is writing them.
        ClaimsFailed: a claim is refuted, or was not measured.
        OSError: the records cannot be written.
    """
    missing = [
        package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None
    ]
    require(
        not missing,
        f"checking claims needs {', '.join(missing)}; run: pip install {' '.join(missing)}",
    )
    require(bool(run.claims), f"there are no claims in {run.folder}.")
    require(run.minutes >= 0, f"minutes = {run.minutes:g}; give a number that is not negative.")
    require(run.workers >= 1, f"workers = {run.workers}; give at least 1.")
    records, state = run.locks
    with locked(records), locked(state, "wait for it"):
        if fresh:
            shutil.rmtree(run.state, ignore_errors=True)
        run.state.mkdir(parents=True, exist_ok=True)
        return _checked(run, Board(run.claims, console or Console(stderr=True)))


def _checked(run: Run, board: Board) -> list[dict[str, Any]]:
    """Run the process, and see to it that what it found is written."""
    from verify.support.recording.records import forget_records, read_records, update_records

    read_records(run.records)  # refused now rather than at the end
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        events.touch()
        with board, _process(run, events) as process:
            code = _follow(process, events, board)
    written = read_records(run.records)
    lost = [line for line in board.complete if written.get(line["claim"]) != line]
    if lost:  # the process could not write them; nor could this one, or it does
        update_records(run.records, lost)
    if code not in (PASSED, FAILED_TESTS) or not board.lines:
        tail = "\n".join(run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise ClaimsFailed(f"pytest ended with code {code}; its output is in {run.log}:\n{tail}")
    elsewhere = [name for name, line in written.items() if _is_elsewhere(line)]
    forget_records(run.records, [*elsewhere, *(file.stem for file in run.folder.glob("*.py"))])
    _require_verified(board, run.log)
    return list(board.lines.values())


def _is_elsewhere(line: Mapping[str, Any]) -> bool:
    """Whether the claim of a line is a user's."""
    return Path(line.get("file", "")).is_absolute()


class Board(contextlib.AbstractContextManager["Board"]):
    """What is known of each claim, shown as it comes in."""

    def __init__(self, names: Sequence[str], console: Console):
        self.lines: dict[str, dict[str, Any]] = {}
        self._names, self._console = tuple(names), console
        self._states = dict.fromkeys(names, "")
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.update(self.table(), refresh=True)
            self._live.stop()

    @property
    def complete(self) -> list[dict[str, Any]]:
        """The lines of the claims all of whose tests ran."""
        return [line for name, line in self.lines.items() if self._states[name] in DONE]

    @property
    def silent(self) -> list[str]:
        """The claims of which nothing was heard, or not the end."""
        return [name for name in self._names if self._states[name] not in DONE]

    def add(self, news: Sequence[Mapping[str, Any]]) -> None:
        """Take news of claims into account."""
        for event in news:
            self._take(event)
        if self._console.is_terminal:
            self._live.update(self.table(), refresh=True)

    def _take(self, event: Mapping[str, Any]) -> None:
        name = event["claim"]
        if "damage" in event:
            self._console.print(event["damage"], markup=False, highlight=False, soft_wrap=True)
            return
        if "status" not in event:
            self._states[name] = (
                f"searching, seed {event['searched']}" if "searched" in event else "running"
            )
            return
        self.lines[name] = {key: value for key, value in event.items() if key != "pending"}
        self._states[name] = "running" if event["pending"] else event["status"]
        if not event["pending"] and not self._console.is_terminal:
            from verify.support.recording.records import summary

            self._console.print(summary(event), markup=False, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """One row per claim."""
        table = Table(box=None, header_style="dim")
        for name in ("claim", "status"):
            table.add_column(name, no_wrap=True)
        for name in ("worst ratio", "sharp", "attained", "checks", "seconds"):
            table.add_column(name, justify="right")
        for name in self._names:
            line, state = self.lines.get(name, {}), self._states[name]
            ratios = [_number(line.get(key)) for key in ("ratio", "ratio_sharp", "attained")]
            shown = f"[{COLOURS.get(state, 'dim')}]{escape(state)}"
            table.add_row(
                escape(name),
                shown,
                *ratios,
                str(line.get("checked", "")),
                _seconds(line.get("seconds")),
            )
        return table


@contextlib.contextmanager
def _process(run: Run, events: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that checks, in a session of its own: an interruption reaches it through this
    one, once. It ends with this one, however this one ends.
    """
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUTF8": "1"}
    theirs, ours = os.pipe()
    with run.log.open("wb") as log, open(ours, "wb"):
        process = subprocess.Popen(
            run.command(events, theirs),
            cwd=run.home,
            env=os.environ | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[theirs],
        )
        os.close(theirs)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # finished claims are recorded before it ends
                try:
                    process.wait(PATIENCE_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def _follow(process: subprocess.Popen[bytes], events: Path, board: Board) -> int:
    with events.open(encoding="utf-8", errors="replace") as stream:
        rest = ""
        while True:
            code = process.poll()
            *complete, rest = (rest + stream.read()).split("\n")
            board.add([news for line in complete if (news := _news(line)) is not None])
            if code is not None:
                return code
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REFRESH_SECONDS)


def _news(line: str) -> dict[str, Any] | None:
    """What a line says, None where a full disk cut it off: then the claim has no end."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _require_verified(board: Board, log: Path) -> None:
    failed = [line for line in board.lines.values() if line["status"] != "verified"]
    if board.silent and not failed:
        raise ClaimsFailed(
            f"nothing was heard of {', '.join(board.silent)} to the end: their files have no tests,"
            f" or {tempfile.gettempdir()} is full; the output is in {log}"
        )
    if failed:
        reasons = "\n".join(
            f"  {line['claim']} is {line['status']}: {_reason(line)}" for line in failed
        )
        raise ClaimsFailed(
            f"{len(failed)} of {len(board.lines)} claims are not verified; the output is in"
            f" {log}\n{reasons}"
        )


def _reason(line: Mapping[str, Any]) -> str:
    if line["status"] == "refuted":
        where = json.dumps(line["instance"], ensure_ascii=False)
        return (
            f"{line['check']}, measured {_number(line['measured'])}, bound"
            f" {_number(line['bound'])}, at {where}"
        )
    return "; ".join(line["errors"]) or "its file ran no check"


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.4g}"


def _seconds(value: Any) -> str:
    return "" if value is None else f"{value:.1f}"
