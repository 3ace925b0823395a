"""What ``sd check`` says before a weight is there."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from pathlib import Path

import pytest

from sd_experiments import CONFIGS, config
from sd_experiments.check import uses_reward_gradient
from sd_experiments.model.memory import MB, peak_mb, reset_peak
from sd_experiments.run_cost import probed, run_memory, run_time
from sd_experiments.training.build import build, load_model, random_model
from sd_experiments.training.session import make_loop
from socft import cli
from socft.study.workers import workers
from tests.support.sd import written


def estimates(said: str) -> list[str]:
    """Weights, paths and network evaluations."""
    return re.findall(r"[\d.e+]+ (?:GB of weights|GB for the \d+ paths|network evaluations)", said)


@pytest.mark.slow
def test_memory_and_time_are_said_from_configuration_files_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """They are those of the whole model, down to the shape of every weight."""
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    whole, alone = (written(each, tmp_path / each.name) for each in (model, bare))
    assert cli.main(["sd", "check", "--config", str(whole)]) == 0
    expected = estimates(capsys.readouterr().out)
    assert cli.main(["sd", "check", "--config", str(alone)]) == cli.INVALID
    heard = capsys.readouterr()
    assert "missing  model: " in heard.out
    assert heard.out.count("; from the configuration files alone\n") == 2
    assert estimates(heard.out) == expected
    assert len(expected) == 3
    assert "cannot run here yet: model" in heard.err
    absent = alone.read_text().replace("tests.support.sd:reddish", "image_reward")
    alone.write_text(absent.replace("[problem]", f'path = "{tmp_path}"\n[problem]'))
    assert cli.main(["sd", "check", "--config", str(alone)]) == cli.INVALID
    assert capsys.readouterr().out.count("files alone, without the reward\n") == 2
    real, random = (
        make(config.ModelConfig(str(folder), "float64"))
        for make, folder in ((load_model, model), (random_model, bare))
    )
    for found, there in (
        (random.denoiser.network, real.denoiser.network),
        (random.vae, real.vae),
        (random.prompt_encoder.encoders[0], real.prompt_encoder.encoders[0]),
    ):
        shapes = {name: (p.shape, p.dtype) for name, p in there.named_parameters()}
        assert {name: (p.shape, p.dtype) for name, p in found.named_parameters()} == shapes


def test_weights_that_do_not_fit_are_told_before_they_are_made(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr("sd_experiments.check.free_bytes", lambda device: 1e3)
    assert cli.main(["sd", "check", "--config", str(written(bare, tmp_path / "run"))]) == 2
    said = capsys.readouterr().out
    assert re.search(r"missing  memory: 0.00 GB of weights, of 0.00 GB free; from the config", said)
    assert "time:" not in said


def considered() -> config.ExperimentConfig:
    """Settings on which nothing of the estimate was tuned, large enough for its memory to be
    seen.
    """
    s, replace = config.read_config(CONFIGS / "tiny.toml"), dataclasses.replace
    batch = replace(
        s.batch, trajectories=48, prompts=1, paths=48, passes=1, loss_steps=None, micro_batch=24
    )
    return replace(
        s,
        problem=replace(s.problem, prompts=s.problem.prompts[:1]),
        estimator=config.EstimatorConfig("full adjoint"),
        batch=batch,
        sampler=replace(s.sampler, steps=4),
        run=replace(s.run, steps=2),
    )


def foreseen() -> tuple[float, float]:
    """Seconds and bytes that are said, by the clock of this process alone."""
    time.perf_counter = time.process_time
    settings = considered()
    experiment = build(settings)
    device = next(experiment.lora.parameters()).device
    probe = probed(experiment, uses_reward_gradient(settings, device, experiment.base))
    memory = run_memory(experiment, probe)
    return run_time(settings, probe)[0], memory.paths + memory.work


def taken() -> tuple[float, float]:
    """Seconds and bytes of the run itself."""
    experiment = build(considered())
    device = next(experiment.lora.parameters()).device
    reset_peak(device)
    start, begun = peak_mb(device), time.process_time()
    for _ in make_loop(experiment).iterations():
        pass
    return time.process_time() - begun, (peak_mb(device) - start) * MB


@pytest.mark.slow
def test_time_and_memory_are_within_a_quarter_of_what_a_run_takes():
    found = []
    for work in (foreseen, taken):
        with workers(1) as fresh:
            found.append(fresh.submit(work).result())
    said, took = found
    assert said == pytest.approx(took, rel=0.25)
