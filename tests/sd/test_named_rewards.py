"""Rewards that come along, by their names in a configuration."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sd_experiments import config
from sd_experiments.reward.rewards import CLIPScore, JPEGCompressibility, decode
from sd_experiments.training.build import build, load_model
from sd_experiments.training.monitor import read_metrics
from sd_experiments.training.session import make_loop
from socft import cli
from socft.path import rollout
from tests.support.sd import noise_of, save_clip, written


@pytest.mark.parametrize("name", ["jpeg", "clip"])
def test_the_rewards_that_come_along_train_by_name(name: str, model: Path, tmp_path: Path):
    """What is reported is the score of the pictures that were drawn."""
    file = written(
        model, tmp_path / "run", "DPOK, leave-one-out" if name == "jpeg" else "full adjoint"
    )
    save_clip(tmp_path / "clip")
    table = {
        "jpeg": 'name = "jpeg"\noptions = { quality = 50 }',
        "clip": f'name = "clip"\npath = "{tmp_path / "clip"}"',
    }[name]
    file.write_text(file.read_text().replace('name = "tests.support.sd:reddish"', table))
    assert cli.main(["sd", "train", "--config", str(file), "--steps", "2"]) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    trainer = make_loop(build(config.read_config(file)))
    score = JPEGCompressibility(50) if name == "jpeg" else CLIPScore.load(tmp_path / "clip")
    task = trainer.tasks[0]
    with torch.no_grad():
        final = rollout(task.problem.reference, task.policy, noise_of(trainer, 0, 4)).final
        expected = score(
            decode(load_model(config.ModelConfig(str(model), "float64")), final), task.name
        )
    assert rows[0]["reward"] == pytest.approx(float(expected.mean()), rel=1e-6)
    assert 0 < rows[0]["gradient_norm"] < math.inf
