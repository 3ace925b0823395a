"""Runs a study: a list of independent tasks, each a pure function of plain arguments that returns
records.

What a task measured is appended durably to ``<study>.partial.jsonl`` as soon as it is finished, so
a run that was interrupted, or killed, continues where it was. The final ``<study>.jsonl`` holds the
records in the order of the tasks, whichever way they ran. A task is measured again when its
arguments, the code of the packages that it imports, or a package version changed.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    wait,
)
from pathlib import Path

from socft.checks import InvalidProblem, require
from socft.files import write_atomically
from socft.records import Record, decode, encode, write
from socft.study.digest import fingerprint
from socft.study.journal import Journal
from socft.study.progress import Progress
from socft.study.tasks import Study, Task
from socft.study.vocabulary.schema import StudySchema
from socft.study.workers import workers

REFRESH_SECONDS = 0.5


class StudyFailed(RuntimeError):
    """Some tasks raised; everything else is finished and kept."""


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
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
    keep: bool = False,
) -> list[Record]:
    """Measure a study into ``<out_dir>/<study>.jsonl``, continuing an interrupted run.

    Args:
        executor: where tasks run, any `concurrent.futures.Executor`; one after another in this
            process when left out.
        fresh: forget what an interrupted run has measured.
        seeds: number of repetitions of every task that repeats, in place of the study's own.
        keep: whether the same call again measures nothing, until `forget` is called.

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
    with Journal(_journal(study, out_dir), fresh) as journal:
        finished = {
            name: lines for (name, key), lines in journal.entries.items() if keys.get(name) == key
        }
        left = [task for task in tasks if task.name not in finished]
        failed: list[TaskOutcome] = []
        with Progress(study.name, len(tasks), len(finished)) as progress:
            for line in journal.damaged:
                progress.say(line)
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
        if not keep:
            journal.discard()
    return records


def forget(study: Study, out_dir: Path) -> None:
    """Measure a study that was kept anew the next time."""
    _journal(study, out_dir).unlink(missing_ok=True)


def _journal(study: Study, out_dir: Path) -> Path:
    return out_dir / f"{study.name}.partial.jsonl"


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


def _measure(task: Task) -> tuple[tuple[str, ...], float]:
    start = time.perf_counter()
    records = task.function(**task.arguments)
    if not isinstance(records, list) or not all(isinstance(record, Record) for record in records):
        raise TypeError(f"{task.function.__qualname__} must return a list of records")
    return tuple(encode(record) for record in records), time.perf_counter() - start


def _outcome(task: Task, result: Callable[[], tuple[tuple[str, ...], float]]) -> TaskOutcome:
    try:
        lines, seconds = result()
    except Exception as error:
        return TaskOutcome(task, error=error)
    return TaskOutcome(task, lines, seconds)


def _outcomes(
    schema: StudySchema, tasks: Sequence[Task], executor: Executor | None, progress: Progress
) -> Iterator[TaskOutcome]:
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


def _serially(tasks: Sequence[Task], progress: Progress) -> Iterator[TaskOutcome]:
    for task in tasks:
        progress.running([task.name])
        yield _outcome(task, functools.partial(_measure, task))


def _concurrently(
    tasks: Sequence[Task], executor: Executor, progress: Progress
) -> Iterator[TaskOutcome]:
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


def _failure(study: Study, total: int, failed: Sequence[TaskOutcome], errors: Path) -> StudyFailed:
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
