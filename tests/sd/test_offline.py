"""A run on a machine without a network whose model lies where nothing can be written."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sd_experiments.training import session
from sd_experiments.training.trainer import train
from tests.support.sd import written

WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


class Unreachable(Exception):
    """Somebody asked for the network; no library takes it for one of its own errors."""


def unreachable(*_: Any, **__: Any) -> NoReturn:
    raise Unreachable


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Mode, size and time of every file and folder."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        about = path.stat()
        found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns)
    return found


@pytest.fixture
def read_only(model: Path, tmp_path: Path) -> Iterator[Path]:
    """A model that may be read only; whoever may do everything anyway leaves a trace in `tree`."""
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~WRITE)
    yield folder
    for path in paths:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


@pytest.fixture
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, unreachable)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, unreachable)


@pytest.mark.slow
@pytest.mark.usefixtures("without_network")
def test_a_run_needs_no_network_and_leaves_the_model_alone(read_only: Path, tmp_path: Path):
    before = tree(read_only)
    out = tmp_path / "run"
    file = written(read_only, out)
    with pytest.raises(Unreachable):
        socket.create_connection(("localhost", 1))
    assert train(file, out=out, steps=2).loop.step == 2
    assert train(file, True, out, 2).loop.step == 2
    session.evaluate(file, out, 2, 0)
    session.sample_grid(file, out, 1, 0, None)
    assert tree(read_only) == before
    assert (out / "lora").is_dir()
    assert os.access(out / "samples.png", os.R_OK)
