"""Processes of a run meet by the device of the configuration, whatever else the machine has."""

from __future__ import annotations

import pytest
import torch

from sd_experiments.training.build import find_device
from sd_experiments.training.process_group import ProcessGroup, backend_of
from socft.checks import InvalidProblem


@pytest.mark.parametrize(
    ("name", "usable", "backend"),
    [
        ("cpu", True, "gloo"),
        ("cpu", False, "gloo"),
        ("auto", False, "gloo"),
        ("auto", True, "nccl"),
        ("cuda", True, "nccl"),
    ],
)
def test_the_backend_is_that_of_the_configured_device(
    name: str, usable: bool, backend: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert backend_of(find_device(name)) == backend


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert ProcessGroup.join(torch.device("cuda:1")) == ProcessGroup(0, 1)
    assert not torch.distributed.is_initialized()


def test_several_processes_do_not_share_a_numbered_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidProblem, match=r"'cuda:1' is one GPU for 2 processes; give cuda"):
        ProcessGroup.join(torch.device("cuda:1"))
    assert not torch.distributed.is_initialized()
