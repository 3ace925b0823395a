"""Checkpoints that survive whatever ends a run: folders of safetensors and JSON, complete or not
there, with digests of the files.

A checkpoint is written into a hidden folder, flushed to disk and renamed, so the visible ones are
always complete; the digest of every file is compared when it is read, and a damaged one is passed
over for the one before. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sd_experiments.manifest import MANIFEST, manifest, verify
from sd_experiments.tensor_file import Header, read_tensors
from sd_experiments.training.process_group import ProcessGroup
from socft.checks import InvalidProblem, require
from socft.files import read_json, write_durably

PREFIX = "step-"
REMEDY = "continue from an earlier one"


class CheckpointFailed(InvalidProblem):
    """A checkpoint could not be written; earlier ones are untouched."""


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose digests are right.

    Attributes:
        step: gradient steps done.
        folder: where it is.
    """

    step: int
    folder: Path

    def json(self, name: str) -> Any:
        """A JSON file of the checkpoint."""
        return read_json(self.folder / name, REMEDY, strict=False)

    def tensors(self, name: str) -> tuple[dict[str, Tensor], Header]:
        """Tensors and header of a safetensors file of the checkpoint."""
        return read_tensors(self.folder / name, REMEDY)


class CheckpointStore:
    """The last checkpoints of a run.

    Args:
        folder: holds one folder per checkpoint.
        keep: how many.
        group: the processes that write together, each its own files.
        say: shows a message.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 3,
        group: ProcessGroup | None = None,
        say: Callable[[str], None] = print,
    ):
        self.folder = folder
        self.keep = keep
        self._group = group or ProcessGroup()
        self._say = say

    def save(self, step: int, own: Mapping[str, bytes], shared: Mapping[str, bytes]) -> Path:
        """Write a checkpoint of ``step``, then forget the oldest; every process calls this.

        Args:
            own: files of this process; their names differ between processes.
            shared: files that are the same on every process.

        Raises:
            CheckpointFailed: the disk is full or the folder cannot be written; the earlier
                checkpoints are untouched.
        """
        final, partial = (
            self.folder / f"{PREFIX}{step:08d}",
            self.folder / f".{PREFIX}{step:08d}.partial",
        )
        with self._explained(step, partial):
            if self._group.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._group.barrier()
            for name, content in {**own, **(shared if self._group.is_main_process else {})}.items():
                _write(partial / name, content)
            self._group.barrier()
            if self._group.is_main_process:
                _write(partial / MANIFEST, manifest(partial))
                _flush(partial)
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                _flush(self.folder)
                for old in self._steps()[: -self.keep]:
                    shutil.rmtree(self._path(old), ignore_errors=True)
            self._group.barrier()
        return final

    @property
    def remedy(self) -> str:
        """What to do where something cannot be written."""
        kept = self._steps()
        last = (
            f"the last checkpoint is of step {kept[-1]}" if kept else "there is no checkpoint yet"
        )
        return f"{last}: make room and run the same command with --resume."

    def newest(self) -> StoredCheckpoint | None:
        """The newest checkpoint that is whole, with a message about any that is not; None where
        there is none at all.

        Raises:
            InvalidProblem: there are checkpoints and all are damaged.
        """
        damaged = []
        for step in reversed(self._steps()):
            problem = _damage(self._path(step))
            if problem is None:
                if damaged and self._group.is_main_process:
                    self._say(
                        f"continuing from step {step}, the newest checkpoint that is whole:"
                        f" {'; '.join(damaged)}"
                    )
                return StoredCheckpoint(step, self._path(step))
            damaged.append(problem)
        all_damaged = f"every checkpoint in {self.folder} is damaged ({'; '.join(damaged)})"
        require(
            not damaged,
            f"{all_damaged}; remove the folder and begin again, or choose another one with --out.",
        )
        return None

    def at(self, step: int) -> StoredCheckpoint:
        """The checkpoint of a step.

        Raises:
            InvalidProblem: it is not kept, or damaged.
        """
        kept = self._steps()
        there = ", ".join(map(str, kept)) or "none"
        require(
            step in kept,
            f"{self.folder} has no checkpoint of step {step}; those that are kept: {there}.",
        )
        problem = _damage(self._path(step))
        others = ", ".join(str(each) for each in kept if each != step) or "none"
        require(
            problem is None,
            f"the checkpoint of step {step} is damaged ({problem}); the others that are kept:"
            f" {others}.",
        )
        return StoredCheckpoint(step, self._path(step))

    def _steps(self) -> list[int]:
        names = [
            each.name.removeprefix(PREFIX)
            for each in self.folder.glob(f"{PREFIX}*")
            if each.is_dir()
        ]
        return sorted(int(name) for name in names if name.isdigit())

    def _path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:08d}"

    @contextlib.contextmanager
    def _explained(self, step: int, partial: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = error.strerror or str(error)
            raise CheckpointFailed(
                f"the checkpoint of step {step} could not be written to {self.folder} ({reason});"
                f" {self.remedy}"
            ) from error


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        write_durably(stream, content)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None where nothing is."""
    try:
        verify(folder, "")
    except InvalidProblem as error:
        return str(error).removesuffix("; .")
    return None
