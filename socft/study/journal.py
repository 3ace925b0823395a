"""What an interrupted run has measured: one line per finished task, appended durably."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

from socft.checks import InvalidProblem


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


def _entry(line: bytes) -> tuple[tuple[str, str], tuple[str, ...]] | None:
    """A line of the journal; None where it is damaged, so that the task is measured again."""
    try:
        row = json.loads(line)
        return (row["task"], row["fingerprint"]), tuple(
            json.dumps(record) for record in row["records"]
        )
    except (ValueError, TypeError, KeyError):
        return None
