"""Progress of a list of tasks on standard error: a live bar on a terminal, one plain line per
finished task elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Column


class Progress(contextlib.AbstractContextManager["Progress"]):
    """How far a list of tasks is.

    Args:
        title: shown before the bar.
        total: number of tasks.
        done: number of tasks that were finished before.
        console: where to show it; standard error by default.
    """

    def __init__(self, title: str, total: int, done: int = 0, console: Console | None = None):
        self._console = console or Console(stderr=True)
        self._total, self._done = total, done
        name = TextColumn(
            "[dim]{task.fields[current]}",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        )
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            name,
        )
        self._bar = Bar(
            *columns, console=self._console, expand=True, disable=not self._console.is_terminal
        )
        self._task = self._bar.add_task(
            escape(title), total=total, completed=done, current="", left=""
        )
        self._before, self._start = done, time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        if self._done:
            self.say(f"{self._done} of {self._total} tasks were finished before and are kept")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.update(self._task, current="")
        self._bar.stop()

    def running(self, names: Iterable[str]) -> None:
        """Show the tasks that are being worked on."""
        self._bar.update(self._task, current=escape(", ".join(names)))

    def finished(self, name: str, seconds: float, error: str = "") -> None:
        """Count one task; a failed one is also shown on a terminal."""
        self._done += 1
        left = self._left()
        self._bar.update(self._task, completed=self._done, left=left)
        if error or not self._console.is_terminal:
            width = len(str(self._total))
            self.say(
                f"[{self._done:{width}}/{self._total}] {name}: "
                + (f"failed, {error}" if error else f"{seconds:.1f} s")
                + (f"; {left}" if left else "")
            )

    def _left(self) -> str:
        """The time that is left if the other tasks take as long as those of this run did."""
        measured, ahead = self._done - self._before, self._total - self._done
        seconds = (time.monotonic() - self._start) / measured * ahead
        return f"about {duration(seconds)} left" if ahead else ""

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one says them.

    >>> duration(75), duration(3 * 3600 + 10)
    ('1 min', '3 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 120 * 60 else f"{seconds / 3600:.0f} h"
