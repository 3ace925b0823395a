"""The trainer from Python: the command line's run, what it tells, and what it leaves behind."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from sd_experiments import config
from sd_experiments.manifest import verify
from sd_experiments.model.weights import load_pipeline
from sd_experiments.training.callbacks import TrainerCallback, TrainingRun, reporters
from sd_experiments.training.loop import TrainingStep
from sd_experiments.training.monitor import Display, read_metrics
from sd_experiments.training.picture_grid import GAP, LEAST, PictureRow, captioned_grid
from sd_experiments.training.trainer import Trainer
from socft import cli
from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from tests.support.sd import dark, reddish, save_clip, written

PROMPTS = ["a red circle", "a blue square"]


class Heard(TrainerCallback):
    """Writes down what it is told."""

    def __init__(self):
        self.said: list[Any] = []

    def on_start(self, trainer: TrainingRun) -> None:
        self.said.append(("start", trainer.loop.step))

    def on_pictures(self, trainer: TrainingRun, prompt: str, images: torch.Tensor) -> None:
        self.said.append(("pictures", prompt, len(images)))

    def on_step(self, trainer: TrainingRun, step: TrainingStep, row: Mapping[str, Any]) -> None:
        self.said.append(("step", row["step"], row["reward"] == step.metrics.reward))

    def on_checkpoint(self, trainer: TrainingRun, folder: Path) -> None:
        self.said.append(("checkpoint", folder.name))

    def on_end(self, trainer: TrainingRun) -> None:
        self.said.append(("end", trainer.loop.step))


def numbers(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in ("seconds", "peak_mb")} for r in rows]


@pytest.mark.slow
def test_objects_train_as_their_names_do(model: Path, tmp_path: Path):
    """The layers and the numbers are those of the command line, bit for bit, and every event is
    told once, in order.
    """
    file = written(model, tmp_path / "named")
    assert cli.main(["sd", "train", "--config", str(file)]) == 0
    content = tomllib.loads(file.read_text())
    content["run"]["out"] = str(tmp_path / "given")
    for name in ("model", "reward", "estimator", "monitor"):
        content.pop(name)
    del content["problem"]["prompts"]
    heard = Heard()
    trainer = Trainer(
        load_pipeline(model, torch.float64),
        reddish(),
        PROMPTS,
        content,
        estimator=AdjointMatching(),
        checker=dark,
        callbacks=[heard],
        display=Display(5, silent=True),
    )
    trainer.train()
    assert numbers(tmp_path / "given") == numbers(tmp_path / "named")
    layers = [
        load_file(tmp_path / each / "lora" / "pytorch_lora_weights.safetensors")
        for each in ("given", "named")
    ]
    assert layers[0].keys() == layers[1].keys()
    assert all(torch.equal(layers[0][name], layers[1][name]) for name in layers[0])
    steps = [("step", i, True) for i in range(1, 6)]
    assert heard.said == [
        ("start", 0),
        ("pictures", PROMPTS[0], 4),
        *steps[:3],
        ("checkpoint", "step-00000003"),
        *steps[3:],
        ("checkpoint", "step-00000005"),
        ("end", 5),
    ]
    stored = trainer.settings
    assert stored.reward.name == "tests.support.sd:reddish.<locals>.score"
    assert stored.estimator.name == "socft.estimators.adjoint_matching:AdjointMatching"
    assert (stored.model.path, stored.model.dtype) == (str(model), "float64")
    check_repository(tmp_path / "given" / "lora", str(tmp_path))
    measure_elsewhere(file, tmp_path)


def measure_elsewhere(file: Path, folder: Path) -> None:
    """By a judge, among features, on another prompt and other noise."""
    save_clip(folder / "clip")
    changes = [
        "monitor.judges=[{name='jpeg'}]",
        f"monitor.features={folder / 'clip'}",
        'problem.prompts=["a blue circle"]',
    ]
    given = [word for change in changes for word in ("--set", change)]
    asked = ["sd", "evaluate", "--config", str(file), "--number", "3", "--seed", "7", *given]
    assert cli.main(asked) == 0
    before, after = json.loads((folder / "named" / "evaluation-5.json").read_text())
    assert before["prompt"] == after["prompt"] == "a blue circle"
    assert before["judge jpeg"] < 0
    gain = after["judge jpeg"] - before["judge jpeg"]
    assert after["judge jpeg_gain"] == pytest.approx(gain, abs=1e-9)
    assert 0 < before["feature_diversity"] < 2


def check_repository(folder: Path, place: str) -> None:
    """What the hub would show: metadata, and a text without folders of this machine."""
    verify(folder, "")
    text = (folder / "README.md").read_text()
    card = ModelCard(text)
    card.validate = None  # type: ignore[method-assign]
    about = card.data.to_dict()
    assert (about["library_name"], about["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert [each["text"] for each in about["widget"]] == PROMPTS
    assert {each["output"]["url"] for each in about["widget"]} == {"pictures.png"}
    assert "base_model" not in about
    assert place not in text
    assert "in 5 gradient steps" in text


def test_an_event_that_fails_ends_the_run_and_keeps_its_step(model: Path, tmp_path: Path):
    class Stop(TrainerCallback):
        def on_step(self, trainer: TrainingRun, step: TrainingStep, row: Mapping[str, Any]) -> None:
            if row["step"] == 1:
                raise ValueError("enough")

    file = written(model, tmp_path / "run")
    settings = config.read_config(file)
    trainer = Trainer(settings=settings, callbacks=[Stop()], display=Display(5, silent=True))
    with pytest.raises(ValueError, match="enough"):
        trainer.train()
    assert [each.name for each in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000001"]


def test_a_tracker_that_is_not_installed_is_named():
    with pytest.raises(
        InvalidProblem,
        match=r"^monitor.report_to = 'mlflow', and mlflow is not installed; run: pip install mlflo",
    ):
        reporters(("mlflow",))


@pytest.mark.refusal
def test_weights_and_biases_hears_settings_and_numbers_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A stand-in for its package keeps what accelerate's tracker hands on."""
    heard: dict[str, Any] = {"rows": []}
    module: Any = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    run = types.SimpleNamespace(
        log=lambda row, step: heard["rows"].append((step, row)),
        finish=lambda: heard.update(finished=True),
    )
    module.init = lambda **options: heard.update(options=options) or run
    module.config = types.SimpleNamespace(
        update=lambda values, allow_val_change: heard.update(settings=values)
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    settings = config.parse_config(
        {"problem": {"prompts": ["x"]}, "run": {"out": str(tmp_path / "a")}}
    )
    loop = types.SimpleNamespace(device=torch.device("cpu"), step=0)
    told: Any = types.SimpleNamespace(folder=tmp_path / "a", loop=loop, settings=settings)
    (tracker,) = reporters(("wandb",))
    tracker.on_start(told)
    step: Any = None
    tracker.on_step(told, step, {"step": 3, "reward": 0.5, "ess": None})
    tracker.on_end(told)
    assert heard["rows"] == [(3, {"reward": 0.5})]
    assert heard["finished"]
    assert heard["options"]["mode"] == "offline"
    assert (heard["options"]["project"], heard["options"]["name"]) == ("socft", "a")
    assert heard["settings"]["optimiser.rate"] == 3e-4
    assert heard["settings"]["problem.prompts"] == "['x']"


def test_a_grid_has_every_picture_and_words_under_each():
    """Enlarged pixels are the pictures' own, and only what has a caption has ink below it."""
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = [
        PictureRow("before", images[:2], ["a red circle\nreward 0.250", " "]),
        PictureRow("after", images[2:], ["a very long prompt " * 20 + "\nreward 1.5"]),
    ]
    picture = captioned_grid(rows)
    size, canvas = picture.size, torch.from_numpy(numpy.array(picture))
    scale = LEAST // 8
    wide = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    expected = (wide.permute(0, 2, 3, 1) * 255).round().byte()
    tops = []
    for number, left in ((0, GAP), (1, 2 * GAP + LEAST), (2, GAP)):
        found = [
            top
            for top in range(size[1] - LEAST)
            if torch.equal(canvas[top : top + LEAST, left : left + LEAST], expected[number])
        ]
        assert len(found) == 1
        tops += found
    assert tops[0] == tops[1] < tops[2]
    below = [canvas[top + LEAST : top + LEAST + 2 * 15] for top in tops]
    ink = [
        bool((part[:, left : left + LEAST] < 128).any())
        for part, left in zip(below, (GAP, 2 * GAP + LEAST, GAP), strict=True)
    ]
    assert ink == [True, False, True]
    with pytest.raises(InvalidProblem, match=r"^1 captions for 2 pictures; give one for each"):
        captioned_grid([PictureRow("", images[:2], ["x"])])
