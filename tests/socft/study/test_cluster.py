"""A study on a Dask cluster gives the records of one process, also when a worker is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from socft.checks import InvalidProblem
from socft.records import Record
from socft.study.cluster import cluster
from socft.study.runner import run
from tests.support.squares import COUNT, square, study


def killing_square(x: float, gate: str) -> list[Record]:
    """As `square`; the first to come to 2 is killed, as by the system, before it has an answer."""
    if x == 2:
        with contextlib.suppress(FileExistsError):
            Path(gate).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return square(x)


def timeless(records: list[Record]) -> list[Record]:
    return [dataclasses.replace(record, seconds=None) for record in records]


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_doubles_nothing(tmp_path):
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    gate = tmp_path / "killed"
    with cluster("dask", 1) as executor:
        found = run(study(killing_square, gate=str(gate)), False, tmp_path / "out", executor)
    assert gate.exists()
    assert timeless(found) == timeless(run(study(), False, tmp_path / "alone"))
    assert len(found) == 2 * COUNT


@pytest.mark.parametrize("executor", ["dask:", "dask:tcp://127.0.0.1:1"])
def test_a_scheduler_that_is_not_there_is_told(executor, monkeypatch):
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    monkeypatch.setattr("socft.study.cluster.PATIENCE", 0.2)
    with pytest.raises(InvalidProblem, match="scheduler"), cluster(executor, 1):
        pass
