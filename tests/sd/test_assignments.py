"""``--set KEY=VALUE``: every setting, the words of refusals, and what a run stores."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sd_experiments import config
from sd_experiments.assignments import known_keys, read_assignments
from sd_experiments.studies.benchmark import benchmark_config
from sd_experiments.studies.random_models import RANDOM
from socft import cli
from socft.checks import InvalidProblem
from tests.support.sd import save_model, written

PLAIN = config.parse_config({"problem": {"prompts": ["a red circle"]}}).plain()
KEYS = [f"{table}.{key}" for table, content in PLAIN.items() for key in content]
OTHER = {
    "model.path": "some folder",
    "model.dtype": "bfloat16",
    "model.device": "cpu",
    "model.micro_batch": "3",
    "model.checkpointing": "true",
    "model.max_sequence_length": "77",
    "model.keep_frozen": "false",
    "model.merge_layers": "false",
    "model.channels_last": "true",
    "sampler.steps": "12",
    "sampler.kernel": "precise",
    "sampler.eta": "0.5",
    "sampler.guidance": "7.5",
    "sampler.negative_prompt": "3",
    "sampler.spacing": "trailing",
    "sampler.last_level": "0.99",
    "sampler.distilled_guidance": "3",
    "sampler.size": "[64, 32]",
    "reward.name": "jpeg",
    "reward.path": "'quoted'",
    "reward.chunk": "2",
    "reward.black_box": "true",
    "reward.options": "{ quality = 50 }",
    "problem.prompts": '["x", "y = z"]',
    "problem.beta": "2e-2",
    "estimator.name": "DDPO",
    "estimator.options": "{ a = { b = 1 } }",
    "lora.rank": "8",
    "lora.alpha": "16",
    "lora.targets": '["to_q"]',
    "optimiser.rate": "1",
    "optimiser.betas": "[0.5, 0.6]",
    "optimiser.weight_decay": "0.1",
    "optimiser.clip": "1",
    "optimiser.warmup": "5",
    "optimiser.decay": "0.5",
    "batch.trajectories": "20",
    "batch.prompts": "3",
    "batch.paths": "5",
    "batch.passes": "2",
    "batch.loss_steps": "4",
    "batch.early_span": "0.5",
    "batch.early_share": "0.5",
    "batch.micro_batch": "2",
    "batch.ess": "0",
    "batch.weighted": "true",
    "batch.mask_quantile": "0.9",
    "batch.mask_memory": "0.5",
    "batch.target_clip": "2",
    "run.steps": "7",
    "run.seed": "-3",
    "run.ema": "0.5",
    "run.out": "2026",
    "run.checkpoint_every": "2",
    "run.keep": "1",
    "monitor.checker": "tiny",
    "monitor.images_every": "2",
    "monitor.window": "3",
    "monitor.report_to": "[]",
    "monitor.judges": "[{ name = 'jpeg' }]",
    "monitor.features": "a folder",
}
"""A value of every setting, as somebody types it, other than the default."""


def test_every_setting_is_known():
    assert set(known_keys()) == set(KEYS) == set(OTHER)


def toml(key: str, text: str) -> Any:
    """What a file would say: text that is typed without quotes stands for itself."""
    default = known_keys()[key]
    quoted = default in (str, str | None) or (
        "Literal" in str(default) and "tuple" not in str(default)
    )
    return text.strip("'") if quoted else tomllib.loads(f"value = {text}")["value"]


@pytest.mark.parametrize("key", KEYS)
def test_what_is_set_is_what_a_file_would_say(key: str, tmp_path: Path):
    """Of the settings nothing else changes, and a further change takes it back."""
    file = tmp_path / "run.toml"
    file.write_text('[problem]\nprompts = ["a red circle"]\n')
    table, name = key.split(".")
    found = config.read_config(file, read_assignments([f"{key}={OTHER[key]}"]))
    content = {"problem": {"prompts": ["a red circle"]}}
    content[table] = {**content.get(table, {}), name: toml(key, OTHER[key])}
    assert found == config.parse_config(content)
    assert config.config_changes(PLAIN, found.plain())
    if PLAIN[table][name] is None:
        back = read_assignments([f"{key}={OTHER[key]}", f"{key}=none"])
        assert config.read_config(file, back).plain() == PLAIN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run.steps", "--set 'run.steps' has no value; give KEY=VALUE, such as run.steps=20."),
        ("=3", "--set '=3' has no key; give KEY=VALUE"),
        ("run..steps=3", "--set 'run..steps=3' has no key"),
        ("x\n[run]\nsteps=3", "--set 'x\\n[run]\\nsteps=3' has no key"),
        ("run.stepz=3", "there is no key 'run.stepz'; did you mean run.steps"),
        ("rate=3", "there is no key 'rate'; did you mean optimiser.rate?"),
        ("optimizer.rate=3", "there is no key 'optimizer.rate'; did you mean optimiser.rate?"),
        ("run.steps.x=3", "there is no key 'run.steps.x'; run.steps is no table."),
        ("run={steps = 3}", "run is a table; set one of its keys, such as ['run.steps']."),
        ("run.steps=3\nseed=4", "--set 'run.steps=3\\nseed=4' sets more than one value"),
        ("run.steps=abc", "run.steps = 'abc'; it should be a valid integer."),
        ("run.steps=none", "run.steps = 'none'; it should be a valid integer."),
        ("run.steps=", "run.steps = ''; it should be a valid integer."),
        ("model.checkpointing=True", "model.checkpointing = 'True'; it should be a valid boolean."),
        ("model.dtype=int8", "model.dtype = 'int8'; it should be 'float32'"),
        ("run.steps=0", "run.steps = 0; it should be greater than 0."),
        ("batch.paths=7", "batch.paths = 7 does not divide the 10 uses of a round"),
        ("sampler.size=[64]", "sampler.size[1] is missing; add it."),
        ("lora.targets=to_q", "lora.targets = 'to_q'; it should be a valid tuple."),
    ],
)
def test_what_is_wrong_is_named_and_the_file_is_not_blamed(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "run.toml"
    file.write_text('[problem]\nprompts = ["a red circle"]\n')
    assert cli.main(["sd", "check", "--config", str(file), "--set", text]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"socft: {message}")
    assert said.count("\n") == 1


def test_a_file_that_is_wrong_without_the_changes_is_named(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('[problem]\nprompts = ["x"]\nbet = 1\n')
    with pytest.raises(InvalidProblem, match=r"run.toml: there is no key 'problem.bet'"):
        config.read_config(file, read_assignments(["run.steps=3"]))
    file.write_text("[run]\nsteps = 3\n")
    found = config.read_config(file, read_assignments(['problem.prompts=["x"]', "run.seed=1"]))
    assert (found.problem.prompts, found.run.steps, found.run.seed) == (("x",), 3, 1)


def test_options_are_changed_one_by_one(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('[problem]\nprompts = ["x"]\n[reward]\noptions = { quality = 50, a = 1 }\n')
    changes = ["reward.options.quality=60", 'reward.options."b.c"=text']
    options = config.read_config(file, read_assignments(changes)).reward.options
    assert options == {"quality": 60, "a": 1, "b.c": "text"}


@pytest.mark.slow
def test_a_run_stores_what_was_set_and_is_told_to_be_measured_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save_model(tmp_path / "model")
    file = written(tmp_path / "model", tmp_path / "run", "full adjoint")
    changes = ["--set", "lora.rank=3", "--set", "run.steps=1"]
    assert cli.main(["sd", "train", "--config", str(file), *changes]) == 0
    heard = capsys.readouterr()
    assert heard.out.rstrip().endswith("--set lora.rank=3 --set run.steps=1")
    assert "in place of the file's: lora.rank = 3" in heard.err
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (stored["lora"]["rank"], stored["run"]["steps"]) == (3, 1)
    grid = ["sd", "sample", "--config", str(file), "--number", "1"]
    assert cli.main([*grid, *changes]) == 0
    assert cli.main(grid) == 2  # the layers are of another rank
    assert "lora.rank" in capsys.readouterr().err


def test_a_random_model_is_measured_with_what_was_set():
    changes = ["lora.rank=3", "sampler.guidance=2", "problem.beta=0.5"]
    found = benchmark_config(None, "small", changes)
    assert config.config_changes(RANDOM["small"].settings.plain(), found.plain()) == {
        "lora.rank": (4, 3),
        "problem.beta": (0.01, 0.5),
        "sampler.guidance": (1.0, 2.0),
    }
    file = benchmark_config(config.CONFIGS / "tiny.toml", "small", changes)
    assert (file.lora.rank, file.model.path, file.problem.beta) == (3, "random", 0.5)
