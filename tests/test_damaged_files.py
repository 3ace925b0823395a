"""Whatever was damaged on disk is refused in one sentence, or read as what was written: no other
content, no traceback, and no question to the network.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import model_info

from sd_experiments import config, tiny
from sd_experiments.model.lora_io import load_lora, save_lora
from sd_experiments.model.policy import LoRA
from sd_experiments.model.stable_diffusion import StableDiffusion
from sd_experiments.model.weights import load_tokenizer, refusing
from sd_experiments.reward.image_reward import ImageReward
from sd_experiments.reward.rewards import CLIPScore
from sd_experiments.tiny.trainer import TrainingSettings, minimise
from sd_experiments.training.monitor import MetricsFile, read_metrics
from sd_experiments.training.storage import CheckpointStore
from socft.checks import InvalidProblem
from socft.records import Record, encode, read, write
from socft.report.claim_records import read_claims
from socft.study.journal import Journal
from tests.support.damage import Damage, damages, restore
from tests.support.sd import save_clip, save_model, stable_diffusion, trainer_with

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Door:
    """Where files of one kind are read.

    Attributes:
        write: writes such files into a folder.
        read: reads them; what comes back is compared.
        ours: whether the files hold digests, so that other content is refused.
        parts: whether what is undamaged may come back without the rest.
        share: damages per round of the search, fewer where reading takes long.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    ours: bool = True
    parts: bool = False
    share: int = 16


def _records() -> list[Record]:
    return [Record("s", "p", "m", i / 7, {"lam": 0.5, "m": i}, "e", bound=2.0) for i in range(5)]


def _journal(folder: Path) -> None:
    with Journal(folder / "a.partial.jsonl", False) as journal:
        for i, record in enumerate(_records()):
            journal.append(f"task {i}", f"key {i}", [encode(record)])


def _read_journal(folder: Path) -> dict[Any, Any]:
    with Journal(folder / "a.partial.jsonl", False) as journal:
        return dict(journal.entries)


def _claims(folder: Path) -> None:
    lines = (ROOT / "reports" / "records" / "verify.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "verify.jsonl").write_bytes(b"".join(lines[:2]))


def _trainer() -> Any:
    return trainer_with(None, 1, None, batch={"trajectories": 4, "passes": 2}, run={"steps": 3})


def _metrics(folder: Path) -> None:
    file = MetricsFile(folder / "metrics.jsonl", 0)
    for step in _trainer().iterations():
        file.append(step.metrics, None)
    file.close()


def _checkpoint(folder: Path) -> None:
    trainer = _trainer()
    next(trainer.iterations())
    CheckpointStore(folder).save(trainer.step, *trainer.files())


def _restored(folder: Path) -> Any:
    found, trainer = CheckpointStore(folder, say=lambda _: None).newest(), _trainer()
    if found is None:
        raise InvalidProblem("there is no checkpoint.")
    trainer.restore(found)
    tensors = {name: p.detach().tolist() for name, p in trainer.parameters.items()}
    return trainer.step, trainer.rounds, tensors, trainer.round


def _layers(folder: Path) -> None:
    lora = LoRA(stable_diffusion(), 2, generator=torch.Generator().manual_seed(0))
    save_lora(lora, folder)


def _loaded_layers(folder: Path) -> Any:
    lora = load_lora(stable_diffusion(), folder)
    return lora.config.lora_alpha, {name: p.detach().tolist() for name, p in lora.weights.items()}


def _minimised(folder: Path) -> Any:
    x = torch.nn.Parameter(torch.ones(3))
    settings = TrainingSettings(2, warmup=1)
    with contextlib.redirect_stderr(io.StringIO()):
        done = minimise(
            "a", [x], lambda _: x.square().sum(), settings, 0, folder / "a.safetensors", {}
        )
    return done.steps, done.loss, x.tolist()


def _loaded_model(folder: Path) -> Any:
    return type(StableDiffusion.load(folder)).__name__


def _reward(folder: Path) -> None:
    shutil.copytree(tiny.REWARD, folder, dirs_exist_ok=True)


def _loaded_reward(folder: Path) -> Any:
    return {name: each.sum().item() for name, each in tiny.reward(folder).state_dict().items()}


def _bare_reward(folder: Path) -> None:
    _reward(folder)
    (folder / "sha256.json").unlink()


def _config(folder: Path) -> None:
    shutil.copy(ROOT / "sd_experiments" / "configs" / "tiny.toml", folder / "a.toml")


DOORS = {
    "journal": Door(_journal, _read_journal, parts=True),
    "records": Door(
        lambda folder: write(_records(), folder / "a.jsonl"),
        lambda folder: read(folder / "a.jsonl"),
    ),
    "records without digests": Door(
        lambda folder: (folder / "a.jsonl").write_text(
            "".join(encode(record) + "\n" for record in _records())
        ),
        lambda folder: read(folder / "a.jsonl"),
        ours=False,
    ),
    "claims": Door(_claims, read_claims, ours=False),
    "metrics": Door(_metrics, lambda folder: read_metrics(folder / "metrics.jsonl"), parts=True),
    "checkpoint": Door(_checkpoint, _restored),
    "layers": Door(_layers, _loaded_layers),
    "training state": Door(_minimised, _minimised),
    "tiny reward": Door(_reward, _loaded_reward),
    "reward": Door(_bare_reward, ImageReward.restore, ours=False),
    "tokenizer": Door(
        lambda folder: shutil.copytree(tiny.MODEL / "tokenizer", folder, dirs_exist_ok=True),
        load_tokenizer,
        ours=False,
    ),
    "model": Door(save_model, _loaded_model, ours=False),
    "CLIP": Door(save_clip, CLIPScore.load, ours=False),
    "configuration": Door(
        _config, lambda folder: config.read_config(folder / "a.toml"), ours=False
    ),
}


def outcome(door: Door, folder: Path, expected: Any) -> str:
    """What came of reading: read, refused, changed content that was accepted, or a traceback."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = door.read(folder)
    except InvalidProblem as error:
        sentence = str(error)
        good = "\n" not in sentence and len(sentence) < 1000
        return "refused" if good else f"no sentence: {sentence!r:.300}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error!s:.200}"
    if door.ours and not (found == expected or (door.parts and _is_part(found, expected))):
        return f"altered content accepted: {found!r:.200}"
    return "read"


def _is_part(found: Any, expected: Any) -> bool:
    if isinstance(found, dict):
        return found.items() <= expected.items()
    return [row for row in expected if row in found] == found


def searched(name: str, folder: Path, count: int, seed: int = 0) -> list[tuple[Damage, str]]:
    """What came of damages to the files of a door."""
    door, kept = DOORS[name], folder.with_name("kept")
    if not kept.exists():
        kept.mkdir(parents=True)
        door.write(kept)
    restore(folder, kept)
    expected = door.read(folder) if door.ours else None
    files = sorted(each.relative_to(kept) for each in kept.rglob("*") if each.is_file())
    found = []
    for damage in damages(files, count, seed):
        restore(folder, kept)
        damage.apply(folder)
        found.append((damage, outcome(door, folder, expected)))
    return found


@pytest.fixture(autouse=True)
def asked(monkeypatch) -> list[Any]:
    """What the network was asked; there is none."""
    questions: list[Any] = []

    def refuse(*where: Any) -> None:
        questions.append(where)
        raise OSError("there is no network here")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return questions


def bad(found: list[tuple[Damage, str]]) -> list[str]:
    return [f"{damage}: {what}" for damage, what in found if what not in ("read", "refused")]


SECONDS = 3.0
QUICK = ("journal", "records", "records without digests", "claims", "metrics", "configuration")
"""Doors that take about a millisecond."""


@pytest.mark.parametrize("name", QUICK)
def test_what_was_damaged_is_refused_in_one_sentence(name: str, tmp_path: Path):
    found = searched(name, tmp_path / "files", 48)
    assert bad(found) == []
    assert {"read", "refused"} & {what for _, what in found}


@pytest.mark.slow
def test_nothing_that_was_damaged_is_a_traceback(tmp_path: Path, asked: list[Any]):
    """Thousands of damages: at every door as many as three seconds allow."""
    for name, door in DOORS.items():
        start, found = time.monotonic(), []
        for seed in range(1, 40):
            if time.monotonic() - start < SECONDS:
                found += searched(name, tmp_path / name / "files", door.share, seed)
        print(name, len(found), Counter(what.partition(":")[0] for _, what in found))
        assert bad(found) == []
        assert asked == []


def test_no_file_asks_the_network(asked: list[Any]):
    """Whatever a library tries while files are read is refused before it is sent."""
    said = r"the model cannot be loaded .*offline"
    with pytest.raises(InvalidProblem, match=said), refusing("the model"):
        model_info("owner/name")
    assert asked == []


@pytest.mark.parametrize("what", ["scheduler", "_class_name"])
def test_a_component_that_is_another_is_refused_offline(
    what: str, tmp_path: Path, asked: list[Any]
):
    save_model(tmp_path / "model")
    file = tmp_path / "model" / "model_index.json"
    index = json.loads(file.read_text())
    for other in (["owner/name", "Other"], ["diffusers", "Other"], "Other", [1, 2], None):
        file.write_text(json.dumps(index | {what: other}))
        with contextlib.suppress(InvalidProblem):
            StableDiffusion.load(tmp_path / "model")
    config_file = tmp_path / "model" / ("scheduler" if what == "scheduler" else "unet")
    for each in config_file.glob("*config.json"):
        each.write_text("{}")
    file.write_text(json.dumps(index))
    with pytest.raises(InvalidProblem):
        StableDiffusion.load(tmp_path / "model")
    assert asked == []
