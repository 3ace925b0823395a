"""Checkpoints: what is written comes back bit for bit, and nothing that goes wrong costs more than
the steps since the last one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sd_experiments.studies.reproduce.scales import diffusion_nft
from sd_experiments.training import session
from sd_experiments.training import storage as module
from sd_experiments.training import trainer as training
from sd_experiments.training.interruptions import Interruptions
from sd_experiments.training.loop import TrainingLoop
from sd_experiments.training.monitor import (
    Display,
    MetricsFile,
    TensorBoardWriter,
    read_metrics,
)
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import encode_batches
from sd_experiments.training.storage import CheckpointFailed, CheckpointStore, StoredCheckpoint
from socft import files
from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.baseline import LeaveOneOut
from socft.estimators.ddpo import DDPO, RatioLabels
from socft.estimators.dpok import DPOK
from socft.estimators.truncated_backprop import TruncatedBackprop
from socft.files import locked
from socft.flow import FlowReference, flow_ddim, uniform_times
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reward import FunctionReward
from tests.support.sd import settings_with, trainer_with
from tests.support.tensors import randn

FULL = OSError(errno.ENOSPC, "No space left on device")
TABLES: dict[str, dict[str, Any]] = {
    "batch": {
        "trajectories": 6,
        "passes": 3,
        "paths": 9,
        "ess": 0.0,
        "loss_steps": 2,
        "mask_quantile": 0.9,
    },
    "run": {"steps": 5, "ema": 0.5},
    "optimiser": {"rate": 0.01},
}


def trainer(estimator: Estimator | None = None, **tables: dict[str, Any]) -> TrainingLoop:
    return trainer_with(estimator, 2, None, **(TABLES | tables))


def advance(trainer: TrainingLoop, steps: int) -> None:
    iterations = trainer.iterations()
    for _ in range(steps):
        next(iterations)


def everything(trainer: TrainingLoop) -> dict[str, torch.Tensor]:
    moments = {
        f"{key}.{name}": value
        for name, p in trainer.parameters.items()
        for key, value in trainer.optimiser.state[p].items()
    }
    return (
        {name: p.detach().clone() for name, p in trainer.parameters.items()}
        | {f"ema.{n}": v for n, v in trainer.ema.items()}
        | moments
    )


@pytest.mark.parametrize(
    "estimator",
    [AdjointMatching(), DDPO(), DPOK(LeaveOneOut()), TruncatedBackprop(2)],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, estimator: Estimator, stop: int):
    """Stopped in the middle of a round, at its end, and in the next one."""
    continues(lambda: trainer(estimator), stop, tmp_path)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_noise_of_labels_is_that_of_the_run_which_was_not_stopped(tmp_path: Path, stop: int):
    """DiffusionNFT draws noise of its own for every round."""

    def make() -> TrainingLoop:
        policy = AffinePolicy(0.2 * randn(20, 4, 2, 2), 0.2 * randn(21, 4, 2))
        chain = FlowReference(flow_ddim(uniform_times(4, last=0.1)), lambda k, x: -x, (2,))
        problem = ControlProblem(chain, FunctionReward(lambda x: (2 * x).sin().sum(1)), 0.7)
        tasks = [PromptTask(f"prompt {i}", problem, policy) for i in range(2)]
        parameters = dict(policy.named_parameters())
        return TrainingLoop(
            tasks, diffusion_nft(), parameters, settings_with(2, **TABLES), dtype=torch.float64
        )

    continues(make, stop, tmp_path)


def continues(make: Callable[[], TrainingLoop], stop: int, folder: Path) -> None:
    """A run that was stopped ends with the very numbers of one that was not."""
    whole, first, second = make(), make(), make()
    advance(whole, 5)
    advance(first, stop)
    store = CheckpointStore(folder)
    store.save(first.step, *first.files())
    torch.randn(3)
    found = store.newest()
    assert found is not None
    second.restore(found)
    advance(second, 5 - stop)
    expected, got = everything(whole), everything(second)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert (whole.quantile, whole.rounds, whole.paths, whole.round) == (
        second.quantile,
        second.rounds,
        second.paths,
        second.round,
    )
    assert not torch.equal(expected["gain"], first.parameters["gain"])


def test_the_global_random_state_comes_back(tmp_path: Path):
    one, store = trainer(), CheckpointStore(tmp_path)
    advance(one, 1)
    store.save(1, *one.files())
    expected = torch.randn(4)
    found = store.newest()
    assert found is not None
    trainer().restore(found)
    assert torch.equal(torch.randn(4), expected)


def test_the_last_few_are_kept(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (5, 10, 15):
        store.save(step, {"own": b"a"}, {"shared": str(step).encode()})
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "step-00000010",
        "step-00000015",
    ]
    found = store.newest()
    assert found is not None
    assert (found.step, (found.folder / "shared").read_text()) == (15, "15")
    assert CheckpointStore(tmp_path / "absent").newest() is None


def damage_truncate(folder: Path) -> None:
    file = folder / "shared"
    file.write_bytes(file.read_bytes()[:-1])


def damage_flip(folder: Path) -> None:
    (folder / "shared").write_bytes(b"X" * 5)


def damage_remove(folder: Path) -> None:
    (folder / "own").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / module.MANIFEST).write_text("{")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_remove, damage_manifest])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage):
    said: list[str] = []
    store = CheckpointStore(tmp_path, say=said.append)
    for step in (1, 2):
        store.save(step, {"own": b"own"}, {"shared": b"12345"})
    assert store.newest() == module.StoredCheckpoint(2, tmp_path / "step-00000002")
    assert said == []
    damage(tmp_path / "step-00000002")
    found = store.newest()
    assert found is not None
    assert found.step == 1
    assert len(said) == 1
    assert said[0].startswith("continuing from step 1, the newest checkpoint that is whole: ")
    assert str(tmp_path / "step-00000002") in said[0]
    damage(tmp_path / "step-00000001")
    with pytest.raises(
        InvalidProblem,
        match=(
            r"every checkpoint in .* is damaged \(.*step-00000002.*; .*step-00000001.*\); remove"
            r" the folder"
        ),
    ):
        store.newest()


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path: Path, monkeypatch, files: int):
    """The disk fills up before the first, second or third file."""
    store, write, count = CheckpointStore(tmp_path), module._write, 0
    store.save(1, {"own": b"own"}, {"shared": b"12345"})

    def full(file: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count > files:
            raise FULL
        write(file, content)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(CheckpointFailed) as refused:
        store.save(2, {"own": b"own"}, {"shared": b"12345"})
    assert (
        str(refused.value)
        == f"the checkpoint of step 2 could not be written to {tmp_path} (No space left on device);"
        " the last checkpoint is of step 1: make room and run the same command with --resume."
    )
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000001"]
    monkeypatch.setattr(module, "_write", write)
    found = store.newest()
    assert found is not None
    assert found.step == 1
    store.save(2, {"own": b"own"}, {"shared": b"12345"})
    assert [folder.name for folder in sorted(tmp_path.iterdir())] == [
        "step-00000001",
        "step-00000002",
    ]


def test_a_run_that_was_killed_while_writing_leaves_nothing_that_counts(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"own": b"own"}, {"shared": b"12345"})
    (tmp_path / ".step-00000002.partial").mkdir()
    (tmp_path / ".step-00000002.partial" / "own").write_bytes(b"o")
    found = store.newest()
    assert found is not None
    assert found.step == 1
    store.save(2, {"own": b"own"}, {"shared": b"12345"})
    assert (tmp_path / "step-00000002" / "own").read_bytes() == b"own"


def stored(folder: Path, steps: int) -> StoredCheckpoint:
    """The checkpoint of a run after some steps."""
    one, store = trainer(), CheckpointStore(folder)
    advance(one, steps)
    store.save(steps, *one.files())
    found = store.newest()
    assert found is not None
    return found


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    found = stored(tmp_path, 2)
    with pytest.raises(
        InvalidProblem,
        match=(
            r"run.seed was 0 when this run began and is 1 now; start another run with --out, or"
            r" set it"
        ),
    ):
        trainer(run=TABLES["run"] | {"seed": 1}).restore(found)
    longer = trainer(run=TABLES["run"] | {"steps": 9}, optimiser={"rate": 0.002})
    longer.restore(found)
    assert longer.step == 2
    text = json.loads((found.folder / "state.json").read_text())
    (found.folder / "state.json").write_text(json.dumps(text | {"processes": 2}))
    with pytest.raises(
        InvalidProblem,
        match="the checkpoint is of 2 processes and there are 1; continue with as many",
    ):
        trainer().restore(found)


def test_layers_of_another_network_are_refused(tmp_path: Path):
    found, other = stored(tmp_path, 1), trainer()
    other.parameters["gain"] = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    with pytest.raises(
        InvalidProblem, match=r"has no layer gain of shape \(1,\); it belongs to another network"
    ):
        other.restore(found)


def test_labels_of_an_unknown_kind_are_refused():
    one = trainer(DDPO())
    advance(one, 1)
    assert one.buffer is not None
    rollouts = one.buffer.batches[0]
    assert b"RatioLabels" in encode_batches([rollouts])
    with pytest.raises(
        InvalidProblem,
        match="labels of the kind 'os:system'; run with the estimator that made them",
    ):
        type(rollouts).of(
            rollouts.about() | {"labels": "os:system"}, rollouts.tensors(), RatioLabels
        )


def test_metrics_after_the_checkpoint_are_dropped_and_a_cut_line_too(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    steps = [step.metrics for step in trainer().iterations()][:3]
    metrics = MetricsFile(file, 0)
    for step in steps:
        metrics.append(step, None)
    metrics.close()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines) + '{"ste')
    metrics = MetricsFile(file, 2)
    metrics.close()
    rows = [dataclasses.asdict(step) for step in steps[:2]]
    assert read_metrics(file) == rows
    for damaged in (
        ['{"ste\n', lines[1]],
        [lines[0].replace('"round": 0', '"round": 1'), lines[1]],
        [lines[0].replace('"step": 1', '"step": "1"'), lines[1]],
        [json.dumps({"step": 1}) + "\n"],
        ["[]\n", lines[1]],
    ):
        file.write_text("".join(damaged))
        with pytest.raises(InvalidProblem, match=r"^line 1 of .*; remove that line\.$"):
            read_metrics(file)
    file.write_text("".join([lines[1], lines[0]]))
    with pytest.raises(InvalidProblem, match=r"^line 2 of .* is of step 1, after 2; remove"):
        read_metrics(file)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(file) == rows, "written before lines had digests"


def test_the_state_before_a_reward_that_is_not_a_number_is_kept(tmp_path: Path):
    calls = []

    def reward(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return (2 * x).sin().sum(1) * (torch.nan if len(calls) > 7 else 1)

    tables: dict[str, dict[str, Any]] = {
        "batch": {"trajectories": 4},
        "run": {"steps": 9, "checkpoint_every": 2},
    }
    one, store = trainer_with(None, 1, [reward], **tables), CheckpointStore(tmp_path)
    with pytest.raises(
        InvalidProblem, match="4 of 4 paths of round 3 have rewards that are not finite"
    ):
        training._run(one, store)
    found = store.newest()
    assert found is not None
    assert found.step == one.step == 3
    again = trainer_with(None, 1, None, **tables)
    again.restore(found)
    advance(again, 1)
    whole = trainer_with(None, 1, None, **tables)
    advance(whole, 4)
    assert all(
        torch.equal(again.parameters[name], whole.parameters[name]) for name in whole.parameters
    )


def test_a_full_disk_stops_a_run_with_what_to_do(tmp_path: Path, monkeypatch):
    one, store = trainer(), CheckpointStore(tmp_path)

    def full(file: Path, content: bytes) -> None:
        raise FULL

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(
        CheckpointFailed,
        match=r"the checkpoint of step 5 .*; there is no checkpoint yet: make room",
    ):
        training._run(one, store)
    assert list(tmp_path.iterdir()) == []


def run_until(error: BaseException, tmp_path: Path, monkeypatch) -> None:
    """A run in which an observer fails after the third step."""
    settings = trainer(run={"steps": 5, "checkpoint_every": 2}).settings
    settings = dataclasses.replace(
        settings, run=dataclasses.replace(settings.run, out=str(tmp_path / "run"))
    )
    monkeypatch.setattr(training, "build", lambda *_: None)
    monkeypatch.setattr(
        training, "make_loop", lambda *_: trainer(run={"steps": 5, "checkpoint_every": 2})
    )

    @contextlib.contextmanager
    def observed(*_: object):
        def fail(step) -> None:
            if step.metrics.step == 3:
                raise error

        yield fail

    monkeypatch.setattr(training.Trainer, "_observed", observed)
    training.Trainer(settings=settings, display=Display(5, silent=True)).train()


@pytest.mark.refusal
def test_a_full_disk_under_the_metrics_does_too(tmp_path: Path, monkeypatch):
    """Whatever is written: the numbers, TensorBoard's files, the layers at the end."""
    said = (
        r"run could not be written \(No space left on device\) after gradient step 3; the last"
        r" checkpoint is of step 2: make"
    )
    with pytest.raises(InvalidProblem, match=said):
        run_until(FULL, tmp_path, monkeypatch)


@pytest.mark.refusal
def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, monkeypatch):
    """While the first one writes there, and not when it is over."""
    lock = tmp_path / "run" / training.LOCK
    with locked(lock), pytest.raises(InvalidProblem, match=f"another run is writing to {lock}"):
        run_until(KeyError(), tmp_path, monkeypatch)
    with pytest.raises(KeyError):
        run_until(KeyError(), tmp_path, monkeypatch)
    assert not lock.exists()


def test_tensorboard_that_cannot_write_says_so_and_prints_nothing(tmp_path: Path, capfd):
    board = TensorBoardWriter(tmp_path / "board", 0)
    board.scalars({"step": 1, "reward": 1.0})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*tfevents") as refused:
            board.pictures("p", torch.rand(4, 3, 64, 64), 2)
        assert refused.value.errno in files.FULL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with contextlib.suppress(OSError):
        board.close()
    with pytest.raises(InvalidProblem, match=r"tfevents.* was closed; make another writer"):
        board.scalars({"step": 3, "reward": 1.0})
    assert capfd.readouterr() == ("", "")


@pytest.mark.refusal
def test_what_a_reward_could_not_reach_is_no_full_disk(tmp_path: Path, monkeypatch):
    with pytest.raises(ConnectionRefusedError):
        run_until(
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), tmp_path, monkeypatch
        )


def test_a_length_on_which_the_learning_rate_depends_stays(tmp_path: Path):
    """Otherwise a run can be continued further."""
    for decay in (0.0, 0.5):
        store = CheckpointStore(tmp_path / str(decay))
        tables = {"batch": {"trajectories": 4}, "optimiser": {"decay": decay}}
        training._run(
            trainer_with(None, 1, None, **tables, run={"steps": 4, "checkpoint_every": 2}), store
        )
        longer, found = (
            trainer_with(None, 1, None, **tables, run={"steps": 6, "checkpoint_every": 2}),
            store.newest(),
        )
        assert found is not None
        if decay:
            said = (
                r"run\.steps was 4 when this run began and is 6 now, and the learning rate falls"
                r" over the last 50% of them"
            )
            with pytest.raises(InvalidProblem, match=said):
                longer.restore(found)
        else:
            longer.restore(found)
            assert len(list(longer.iterations())) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("where", "kept"), [("sampling", 2), ("writing", 3)])
def test_a_signal_keeps_the_last_finished_step(where: str, kept: int, number: int, tmp_path: Path):
    """While the third step samples it is given up at once, and while its numbers are written it is
    finished first; either way a run that continues ends where an uninterrupted one does.
    """
    calls = []
    tables: dict[str, dict[str, Any]] = {
        "batch": {"trajectories": 4},
        "run": {"steps": 6, "checkpoint_every": 50},
    }

    def reward(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        if where == "sampling" and len(calls) == 6:
            os.kill(os.getpid(), number)
            pytest.fail("nothing is computed after the signal")
        return (2 * x).sin().sum(1)

    def observe(step) -> None:
        if where == "writing" and step.metrics.step == 3:
            os.kill(os.getpid(), number)
            written.append(step.metrics.step)

    written: list[int] = []
    one, store = trainer_with(None, 1, [reward], **tables), CheckpointStore(tmp_path)
    said = f"^stopped after gradient step {kept}; --resume continues after step {kept}$"
    with pytest.raises(KeyboardInterrupt, match=said):
        training._run(one, store, observe)
    found = store.newest()
    assert found is not None
    assert (found.step, one.step, one.rounds, one.paths) == (kept, kept, kept, 4 * kept)
    assert written == ([3] if where == "writing" else [])
    again, whole = (trainer_with(None, 1, None, **tables) for _ in range(2))
    again.restore(found)
    advance(again, 6 - kept)
    advance(whole, 6)
    assert all(
        torch.equal(again.parameters[name], whole.parameters[name]) for name in whole.parameters
    )


def test_processes_stop_after_the_same_step(tmp_path: Path):
    """A signal to one of two is heeded by both once the step of both is over."""
    heard = []

    class Pair(ProcessGroup):
        def max_number(self, value: float, device: torch.device) -> float:
            heard.append(value)
            return max(heard)

    first, second = Interruptions(Pair(0, 2)), Interruptions(Pair(1, 2))
    with first.watching():
        with first.heeded():
            os.kill(os.getpid(), signal.SIGTERM)
        for each in (first, second):
            assert not each.together
            with pytest.raises(KeyboardInterrupt):
                each.stop_together(torch.device("cpu"))
            assert each.together
    assert heard == [1.0, 0.0]


@pytest.mark.refusal
def test_pictures_and_numbers_of_a_run_are_made_by_one_command_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both would be written to the same file, and the first ones lost."""
    run = dataclasses.replace(settings_with().run, out=str(tmp_path))
    experiment = SimpleNamespace(tasks=[], settings=dataclasses.replace(settings_with(), run=run))
    monkeypatch.setattr(
        session, "load_trained", lambda *given: (experiment, SimpleNamespace(step=3))
    )
    commands: dict[str, Callable[[], object]] = {
        "evaluation-3.json": lambda: session.evaluate(tmp_path, None, 2, 0),
        "samples.png": lambda: session.sample_grid(tmp_path, None, 1, 0, None),
    }
    for name, command in commands.items():
        lock = tmp_path / f".{name}.lock"
        with locked(lock), pytest.raises(InvalidProblem, match=f"another run is writing to {lock}"):
            command()
        assert not lock.exists()
    assert session.evaluate(tmp_path, None, 2, 0) == []
    assert [each.name for each in tmp_path.iterdir()] == ["evaluation-3.json"]
