"""Settings: what the files say, what is refused and in which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sd_experiments import CONFIGS, config
from socft.checks import InvalidProblem

LEAST = {"problem": {"prompts": ["a red circle"]}}
FILES = sorted(CONFIGS.glob("*.toml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_files_that_come_along_can_be_read(file: Path):
    settings = config.read_config(file)
    assert (
        settings.batch.trajectories
        * settings.batch.prompts
        * settings.batch.passes
        % settings.batch.per_step
        == 0
    )
    assert config.parse_config(settings.plain()) == settings


def test_published_settings_are_the_published_ones():
    pift = config.read_config(CONFIGS / "sd15_pift.toml")
    assert pift.problem.prompts == (
        "A green colored rabbit",
        "A cat and a dog",
        "Four wolves in the park",
        "A dog on the moon",
    )
    assert (pift.problem.beta, pift.optimiser.rate, pift.run.steps, pift.sampler.steps) == (
        0.01,
        3e-4,
        1000,
        50,
    )
    assert (
        pift.batch.trajectories,
        pift.batch.per_step,
        pift.batch.loss_steps,
        pift.batch.passes,
    ) == (10, 10, None, 1)
    matching = config.read_config(CONFIGS / "sd15_adjoint_matching.toml")
    batch = matching.batch
    assert (matching.sampler.steps, matching.sampler.eta, batch.loss_steps) == (50, 1.0, 4)
    assert (batch.early_span, batch.early_share) == (0.6, 0.5)
    assert (
        batch.trajectories,
        batch.passes,
        batch.micro_batch,
        batch.per_step,
        batch.mask_quantile,
    ) == (100, 10, 5, 125, 0.9)
    assert (matching.optimiser.rate, matching.optimiser.betas) == (3e-6, (0.9, 0.95))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"optimiser": {"learning_rate": 1.0}},
            "there is no key 'optimiser.learning_rate'; did you mean optimiser.rate?",
        ),
        (
            {"optimizer": {"rate": 1.0}},
            "there is no key 'optimizer'; did you mean optimiser?",
        ),
        ({"optimiser": {"rate": "fast"}}, "optimiser.rate = 'fast'; it should be a valid number."),
        ({"optimiser": {"rate": True}}, "optimiser.rate = True; it should be a valid number."),
        (
            {"optimiser": {"rate": float("nan")}},
            "optimiser.rate = nan; it should be a finite number.",
        ),
        ({"optimiser": {"rate": -1}}, "optimiser.rate = -1; it should be greater than 0."),
        (
            {"optimiser": {"decay": 1.5}},
            "optimiser.decay = 1.5; it should be less than or equal to 1.",
        ),
        ({"optimiser": {"betas": [0.9]}}, "optimiser.betas[1] is missing; add it."),
        (
            {"optimiser": {"betas": 3 * [0.9]}},
            "optimiser.betas = [0.9, 0.9, 0.9]; it should have at",
        ),
        ({"optimiser": {"betas": [0.9, 1]}}, "optimiser.betas[1] = 1; it should be less than 1."),
        (
            {"optimiser": {"betas": [0.9, "x"]}},
            "optimiser.betas[1] = 'x'; it should be a valid number.",
        ),
        ({"optimiser": 3}, "optimiser = 3; it is a table: write [optimiser] and its keys below."),
        ({"run": {"steps": 1.5}}, "run.steps = 1.5; it should be a valid integer."),
        (
            {"batch": {"micro_batch": "x"}},
            "batch.micro_batch = 'x'; it should be a valid integer.",
        ),
        ({"batch": {"paths": 7}}, "batch.paths = 7 does not divide the 10 uses of a round"),
        ({"batch": {"ess": 1.2}}, "batch.ess = 1.2; it should be less than or equal to 1."),
        ({"batch": {"loss_steps": 60}}, "batch.loss_steps = 60; the sampler has 50 steps."),
        ({"problem": {"prompts": []}}, "problem.prompts = []; it should have at least 1 item."),
        ({"problem": {}}, "problem.prompts is missing; add it."),
        ({"model": {"checkpointing": 1}}, "model.checkpointing = 1; it should be a valid boolean."),
        (
            {"problem": {"prompts": ["x"], "beta": 0}},
            "problem.beta = 0; it should be greater than 0.",
        ),
        (
            {"sampler": {"kernel": "flow-sde"}},
            "sampler.kernel = 'flow-sde'; did you mean flow_sde?",
        ),
        (
            {"model": {"dtype": "int8"}},
            "model.dtype = 'int8'; it should be 'float32', 'bfloat16', 'float16' or",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_named(content: dict, message: str):
    with pytest.raises(InvalidProblem) as refused:
        config.parse_config(LEAST | content)
    assert str(refused.value).startswith(message)


def test_a_table_on_its_own_refuses_in_one_sentence():
    with pytest.raises(InvalidProblem, match=r"^passes = 0; it should be greater than 0\.$"):
        config.BatchConfig(passes=0)
    with pytest.raises(InvalidProblem, match=r"^batch.paths = 7 does not divide the 10 uses"):
        dataclasses.replace(config.BatchConfig(), paths=7)


def test_a_run_can_be_changed_past_its_file(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('[problem]\nprompts = ["x"]\n[run]\nsteps = 3\nseed = 5\n')
    run = config.read_config(file, [config.Change(("run", "steps"), 4)]).run
    assert (run.steps, run.seed) == (4, 5)
    with pytest.raises(InvalidProblem, match=r"^run.steps = 0; it should be greater than"):
        config.read_config(file, [config.Change(("run", "steps"), 0)])
    file.write_text('run = 3\n[problem]\nprompts = ["x"]\n')
    with pytest.raises(InvalidProblem, match=r"run.toml: run = 3; it is a table"):
        config.read_config(file, [config.Change(("run", "steps"), 4)])


def test_whole_numbers_are_numbers_and_lists_are_kept():
    settings = config.parse_config(
        LEAST | {"optimiser": {"rate": 1}, "lora": {"targets": ["to_q"], "alpha": 2}}
    )
    assert (settings.optimiser.rate, settings.lora.targets, settings.lora.alpha) == (
        1.0,
        ("to_q",),
        2.0,
    )
    assert isinstance(settings.optimiser.rate, float)


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path):
    with pytest.raises(InvalidProblem, match="there is no configuration"):
        config.read_config(tmp_path / "absent.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[problem\n")
    with pytest.raises(InvalidProblem, match=r"bad.toml is not a TOML file \(.*line 1"):
        config.read_config(bad)
    bad.write_text('[problem]\nprompts = ["x"]\nbet = 1\n')
    with pytest.raises(
        InvalidProblem,
        match=r"bad.toml: there is no key 'problem.bet'; did you mean problem.beta\?",
    ):
        config.read_config(bad)


def test_changes_are_named_with_both_values():
    old = config.parse_config(LEAST)
    new = dataclasses.replace(
        old,
        run=dataclasses.replace(old.run, seed=3),
        reward=dataclasses.replace(old.reward, options={"a": 1}),
    )
    assert config.config_changes(old.plain(), new.plain()) == {
        "run.seed": (0, 3),
        "reward.options.a": (None, 1),
    }
    assert config.config_changes(old.plain(), old.plain()) == {}


def test_the_rate_rises_to_its_value_and_falls_to_zero():
    steps = 20
    optimiser = config.OptimiserConfig(rate=2.0, warmup=4, decay=0.5)
    found = [optimiser.rate_at(step, steps) / 2.0 for step in range(steps)]
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found[3:11] == pytest.approx([1.0] * 8)
    assert found[10:] == pytest.approx([1.0 - 0.1 * i for i in range(10)])
    plain = config.OptimiserConfig(rate=2.0)
    assert {plain.rate_at(step, steps) for step in range(3 * steps)} == {2.0}
    assert optimiser.rate_at(steps + 5, steps) == 0.0
