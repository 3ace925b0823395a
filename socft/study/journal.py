"""What an interrupted run has measured: one sealed line per finished task, appended durably."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from socft.checks import InvalidProblem
from socft.files import encoded, naming, open_locked, parse_json, seal, unseal, write_durably

REMEDY = "it is measured again"


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The finished tasks of a run, one line each, appended durably and locked against a second run.

    Attributes:
        entries: encoded records by (task name, fingerprint), as found in the file.
        damaged: what is wrong with lines that do not hold what was written.
    """

    def __init__(self, file: Path, fresh: bool):
        self._file, self._stream = file, open_locked(file)
        if fresh:
            self._stream.truncate(0)
        self._stream.seek(0)
        whole, newline, _ = self._stream.read().rpartition(b"\n")
        self._stream.truncate(len(whole) + len(newline))
        self.entries: dict[tuple[str, str], tuple[str, ...]] = {}
        self.damaged: list[str] = []
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            self._take(line, f"line {number} of {file}")

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def append(self, name: str, key: str, lines: Sequence[str]) -> None:
        """Add a finished task; it is on disk when this returns."""
        records = [parse_json(line, f"a record of {name}", REMEDY) for line in lines]
        row = seal({"task": name, "fingerprint": key, "records": records})
        with naming(self._file):
            write_durably(self._stream, encoded(f"{row}\n"))

    def discard(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)

    def _take(self, line: bytes, where: str) -> None:
        """Take in a line; of one that is damaged, the task is measured again."""
        try:
            row = unseal(line, where, REMEDY)
        except InvalidProblem as error:
            self.damaged.append(str(error))
            return
        records = tuple(json.dumps(record) for record in row["records"])
        self.entries[row["task"], row["fingerprint"]] = records
