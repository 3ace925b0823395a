"""Runs a study: a list of independent tasks, each a pure function of plain arguments that returns
records.

What a task measured is appended durably to ``<study>.partial.jsonl`` as soon as it is finished, so
a run that was interrupted, or killed, continues where it was. The final ``<study>.jsonl`` holds the
records in the order of the tasks, whichever way they ran. A task is measured again when its
arguments, the code of `socft` or of its own package, or a package version changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from pathlib import Path
from typing import Any

import torch

import socft
from socft.checks import InvalidProblem, require
from socft.records import Record, decode, encode, environment, write, write_atomically
from socft.study.progress import Progress
from socft.study.vocabulary.schemas import StudySchema

REFRESH_SECONDS = 0.5
_NOT_MEASURING = ("cli.py", "study/progress.py", "report/")


@dataclasses.dataclass(frozen=True)
class Task:
    """One unit of work.

    Attributes:
        name: unique within the study.
        function: module-level pure function of ``arguments`` that returns a list of records.
        arguments: numbers, strings, booleans, None, dataclasses, lists and mappings of these; a
            task that repeats its measurement with independent noise has the number of repetitions
            as ``seeds``.
    """

    name: str
    function: Callable[..., list[Record]]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """A named list of tasks.

    Attributes:
        schema: its name, which is that of its module in `toy` and of its files, and the names that
            its records may hold.
        tasks: ``quick -> tasks``, at the quick or at the full scale.
    """

    schema: StudySchema
    tasks: Callable[[bool], list[Task]]

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.schema.name


class StudyFailed(RuntimeError):
    """Some tasks raised; everything else is finished and kept."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a task: the encoded records it returned, or the error it raised."""

    task: Task
    lines: tuple[str, ...] = ()
    seconds: float = 0.0
    error: Exception | None = None


def run(
    study: Study,
    quick: bool,
    out_dir: Path,
    executor: Executor | None = None,
    fresh: bool = False,
    seeds: int | None = None,
) -> list[Record]:
    """Measure a study into ``<out_dir>/<study>.jsonl``, continuing an interrupted run.

    Args:
        executor: where tasks run, any `concurrent.futures.Executor`; one after another in this
            process when left out.
        fresh: forget what an interrupted run has measured.
        seeds: number of repetitions of every task that repeats, in place of the study's own.

    Raises:
        InvalidProblem: the tasks cannot be told apart, nothing in the study repeats, or another run
            is writing to the same folder.
        StudyFailed: tasks raised; the others are kept, and the tracebacks are in
            ``<study>.errors.txt``.
    """
    tasks = study.tasks(quick) if seeds is None else _repeated(study, study.tasks(quick), seeds)
    _require_distinct(study, tasks)
    keys = {task.name: fingerprint(task) for task in tasks}
    errors = out_dir / f"{study.name}.errors.txt"
    with Journal(out_dir / f"{study.name}.partial.jsonl", fresh) as journal:
        finished = {
            name: lines for (name, key), lines in journal.entries.items() if keys.get(name) == key
        }
        left = [task for task in tasks if task.name not in finished]
        failed: list[Outcome] = []
        with Progress(study.name, len(tasks), len(finished)) as progress:
            for outcome in _outcomes(study.schema, left, executor, progress):
                if outcome.error is None:
                    journal.append(outcome.task.name, keys[outcome.task.name], outcome.lines)
                    finished[outcome.task.name] = outcome.lines
                else:
                    failed.append(outcome)
                progress.finished(outcome.task.name, outcome.seconds, _summary(outcome.error))
        if failed:
            raise _failure(study, len(tasks), failed, errors)
        errors.unlink(missing_ok=True)
        records = [decode(line) for task in tasks for line in finished[task.name]]
        write(records, out_dir / f"{study.name}.jsonl")
        journal.discard()
    return records


def _repeated(study: Study, tasks: Sequence[Task], seeds: int) -> list[Task]:
    require(seeds >= 1, f"seeds = {seeds}; give at least 1.")
    require(
        any("seeds" in task.arguments for task in tasks),
        f"study {study.name} has no repetitions; leave out the number of seeds.",
    )
    return [
        (
            dataclasses.replace(task, arguments={**task.arguments, "seeds": seeds})
            if "seeds" in task.arguments
            else task
        )
        for task in tasks
    ]


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor | None]:
    """Where tasks run: that many `workers`, or this process (None) for one."""
    if count == 1:
        yield None
    else:
        with workers(count) as pool:
            yield pool


@contextlib.contextmanager
def workers(count: int) -> Iterator[Executor]:
    """A pool of freshly spawned processes with one thread each, which end with this process,
    however it ends.
    """
    require(count >= 1, f"workers = {count}; give at least 1.")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )
    try:
        with _interrupts_ignored():
            for _ in range(count):
                pool.submit(os.getpid)
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The finished tasks of a run, one line each, appended durably and locked against a second run.

    Attributes:
        entries: encoded records by (task name, fingerprint), as found in the file.
    """

    def __init__(self, file: Path, fresh: bool):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._stream = file.open("a+b")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise InvalidProblem(
                f"another run is writing to {file}; wait for it or choose another folder with"
                " --out."
            ) from None
        if fresh:
            self._stream.truncate(0)
        self._stream.seek(0)
        whole, newline, _ = self._stream.read().rpartition(b"\n")
        self._stream.truncate(len(whole) + len(newline))
        self.entries = dict(entry for line in whole.splitlines() if (entry := _entry(line)))

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, name: str, key: str, lines: Sequence[str]) -> None:
        """Add a finished task; it is on disk when this returns."""
        row = json.dumps(
            {"task": name, "fingerprint": key, "records": [json.loads(line) for line in lines]}
        )
        self._stream.write(row.encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def discard(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)


def fingerprint(task: Task) -> str:
    """Digest of everything a task's records depend on: function, arguments, code and versions.

    Raises:
        InvalidProblem: an argument is not plain data.
    """
    arguments = {
        name: _plain(value, f"argument {name!r} of task {task.name!r}")
        for name, value in task.arguments.items()
    }
    where = f"{task.function.__module__}.{task.function.__qualname__}"
    content = json.dumps(
        [
            task.name,
            where,
            arguments,
            _code_version(task.function.__module__.partition(".")[0]),
            dict(environment().versions),
        ],
        sort_keys=True,
    )
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _measure(task: Task) -> tuple[tuple[str, ...], float]:
    start = time.perf_counter()
    records = task.function(**task.arguments)
    if not isinstance(records, list) or not all(isinstance(record, Record) for record in records):
        raise TypeError(f"{task.function.__qualname__} must return a list of records")
    return tuple(encode(record) for record in records), time.perf_counter() - start


def _outcome(task: Task, result: Callable[[], tuple[tuple[str, ...], float]]) -> Outcome:
    try:
        lines, seconds = result()
    except Exception as error:
        return Outcome(task, error=error)
    return Outcome(task, lines, seconds)


def _outcomes(
    schema: StudySchema, tasks: Sequence[Task], executor: Executor | None, progress: Progress
) -> Iterator[Outcome]:
    """Outcomes as they come; records with names that the schema does not hold are an error."""
    for outcome in (
        _serially(tasks, progress) if executor is None else _concurrently(tasks, executor, progress)
    ):
        try:
            schema.check(decode(line) for line in outcome.lines)
        except InvalidProblem as error:
            yield dataclasses.replace(outcome, lines=(), error=error)
        else:
            yield outcome


def _serially(tasks: Sequence[Task], progress: Progress) -> Iterator[Outcome]:
    for task in tasks:
        progress.running([task.name])
        yield _outcome(task, functools.partial(_measure, task))


def _concurrently(
    tasks: Sequence[Task], executor: Executor, progress: Progress
) -> Iterator[Outcome]:
    """Outcomes as they come; what was lost with another task's process is tried again, one task at
    a time in one process.
    """
    futures = {_submit(executor, task): task for task in tasks}
    pending, lost = set(futures), []
    try:
        while pending:
            done, pending = wait(pending, timeout=REFRESH_SECONDS, return_when=FIRST_COMPLETED)
            for outcome in [_outcome(futures[future], future.result) for future in done]:
                if isinstance(outcome.error, BrokenExecutor):
                    lost.append(outcome.task)
                else:
                    yield outcome
            progress.running(futures[future].name for future in pending if future.running())
    finally:
        for future in pending:
            future.cancel()
    while lost:
        with workers(1) as alone:
            while lost:
                task = lost.pop(0)
                progress.running([task.name])
                outcome = _outcome(task, alone.submit(_measure, task).result)
                yield outcome
                if isinstance(outcome.error, BrokenExecutor):
                    break


def _submit(executor: Executor, task: Task) -> Future:
    try:
        return executor.submit(_measure, task)
    except BrokenExecutor as error:
        future: Future = Future()
        future.set_exception(error)
        return future


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C, which a terminal sends to them too: the one that
    started them ends them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _failure(study: Study, total: int, failed: Sequence[Outcome], errors: Path) -> StudyFailed:
    report = "\n".join(
        f"{o.task.name}\n{''.join(traceback.format_exception(o.error))}" for o in failed
    )
    write_atomically(errors, report.encode())
    names = "; ".join(f"{o.task.name!r} ({_summary(o.error)})" for o in failed)
    return StudyFailed(
        f"{len(failed)} of {total} tasks of study {study.name} failed: {names}. The others are"
        f" kept; tracebacks are in {errors}, and the same command runs only the failed ones again."
    )


def _summary(error: Exception | None) -> str:
    if error is None:
        return ""
    if isinstance(error, BrokenExecutor):
        return "its process died, perhaps for lack of memory"
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _require_distinct(study: Study, tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(bool(names), f"study {study.name} has no tasks.")
    require(
        not twice,
        f"study {study.name} has several tasks named {', '.join(map(repr, twice))}; give each its"
        " own name.",
    )


def _entry(line: bytes) -> tuple[tuple[str, str], tuple[str, ...]] | None:
    """A line of the journal; None where it is damaged, so that the task is measured again."""
    try:
        row = json.loads(line)
        return (row["task"], row["fingerprint"]), tuple(
            json.dumps(record) for record in row["records"]
        )
    except (ValueError, TypeError, KeyError):
        return None


def _plain(value: Any, what: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _plain(getattr(value, field.name), what)
            for field in dataclasses.fields(value)
        }
        return {"type": type(value).__qualname__} | fields
    raise InvalidProblem(
        f"{what} is a {type(value).__name__}; give plain numbers, strings or dataclasses of these."
    )


@functools.cache
def _code_version(package: str) -> str:
    """Digest of the code that measures: `socft` and the package of a task's function."""
    digest, roots = hashlib.sha256(), {Path(socft.__file__).parent}
    with contextlib.suppress(ImportError):
        roots |= {
            Path(folder) for folder in getattr(importlib.import_module(package), "__path__", ())
        }
    for root in sorted(roots):
        for file in sorted(root.rglob("*.py")):
            relative = file.relative_to(root).as_posix()
            if root.name == "socft" and relative.startswith(_NOT_MEASURING):
                continue
            digest.update(f"{root.name}/{relative}\0".encode() + file.read_bytes())
    return digest.hexdigest()
