"""The tiny flow model: what its text encoders say, and that a training makes what runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sd_experiments import CONFIGS, config, tiny
from sd_experiments.model.flow_model import StableDiffusion3
from sd_experiments.model.loading import load_latent_model
from sd_experiments.tiny import FLOW, PROMPTS, QUALITY, flow_quality
from sd_experiments.tiny.flow_architecture import build_flow
from sd_experiments.tiny.train_flow import FlowTraining, train_flow
from sd_experiments.training.build import build_reference, load_model

ROUNDING = 1e-5  # relative: three layers in float32
REPEATED = 0.03  # mean colour of a quarter of a picture, in float32 on another processor
FOOTHOLD, HEADROOM = 0.02, 0.9  # part of the pictures in which a skill's own fact is true
SIZE = 4e6  # bytes that come with the package


@pytest.fixture(scope="module")
def old() -> Any:
    return tiny.pipeline()


def test_the_first_text_encoder_says_what_the_tiny_one_does(old: Any):
    pipe = build_flow(old, 0)
    words = old.tokenizer("a red circle", padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = old.text_encoder(words)
        ours: Any = pipe.text_encoder(words, output_hidden_states=True)
        states = pipe.text_encoder.text_model.final_layer_norm(ours.hidden_states[-2])
    assert torch.allclose(states, theirs.last_hidden_state, rtol=ROUNDING, atol=ROUNDING)
    assert torch.allclose(ours.text_embeds, theirs.pooler_output, rtol=ROUNDING, atol=ROUNDING)


def test_nothing_acts_before_it_is_learnt(old: Any):
    model: Any = StableDiffusion3.from_pipeline(build_flow(old, 0), max_sequence_length=0)
    told = model.encode("a red circle", (8, 8))
    x = torch.randn(2, *model.latent_dims, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.denoiser.network(
            hidden_states=x,
            timestep=torch.tensor([500.0, 10.0]),
            encoder_hidden_states=told.text.expand(2, -1, -1),
            pooled_projections=told.added["pooled_projections"].expand(2, -1),
        ).sample
    assert float(found.abs().max()) == 0


@pytest.mark.slow
def test_a_training_makes_what_the_configuration_fine_tunes(tmp_path: Path):
    settings = FlowTraining(
        quality=tmp_path / "quality.json",
        work=tmp_path / "work",
        out=tmp_path / "flow",
        examples=64,
        batch=32,
    )
    short = dataclasses.replace(settings.network, steps=4)
    done = train_flow(dataclasses.replace(settings, network=short))
    assert done.steps == 4
    recorded = json.loads(settings.quality.read_text())["flow training"]
    assert recorded["steps"] == 4
    assert recorded["settings"]["examples"] == 64
    asked = config.read_config(CONFIGS / "tiny_flow.toml")
    base = load_latent_model(settings.out, max_sequence_length=asked.model.max_sequence_length)
    chain = build_reference(base, asked.sampler, asked.problem.prompts[0])
    assert chain.steps == asked.sampler.steps
    x = torch.randn(1, *chain.dims, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert not torch.equal(chain.mean(0, x), chain.mean(0, torch.zeros_like(x)))


# The trained model


@pytest.fixture(scope="module")
def base() -> Any:
    return load_model(flow_quality.settings().model)


def test_the_model_draws_what_it_drew_when_it_was_measured(base: Any):
    recorded = json.loads(QUALITY.read_text())[flow_quality.SECTION]["fingerprint"]
    found = flow_quality.fingerprint(base)
    assert found["prompt"] == recorded["prompt"]
    key = "mean colour of each quarter"
    assert torch.allclose(torch.tensor(found[key]), torch.tensor(recorded[key]), atol=REPEATED)


def test_what_comes_with_the_package_is_small_and_whole():
    files = [file for file in FLOW.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < SIZE
    for file in FLOW.rglob("*.safetensors"):
        for name, value in load_file(file).items():
            assert value.dtype == torch.float16 or not value.is_floating_point(), (file, name)
            assert bool(value.isfinite().all()), (file, name)


def test_the_decoder_and_the_first_text_encoder_are_those_of_the_tiny_one(base: Any, old: Any):
    """Rounded to half precision."""
    theirs = old.vae.state_dict()
    for name, value in base.vae.state_dict().items():
        assert torch.equal(value, theirs[name].half().float()), name
    words = old.text_encoder.get_input_embeddings().weight
    ours = base.prompt_encoder.encoders[0].get_input_embeddings().weight
    assert torch.equal(ours, words.half().float())


def test_every_skill_is_drawn_now_and_then():
    """So there is something to reward and something to gain."""
    rows = json.loads(QUALITY.read_text())[flow_quality.SECTION]["accuracy"]
    for skill, prompt in PROMPTS.items():
        (row,) = [row for row in rows if row["caption"] == prompt and row["guidance"] == 1]
        assert row["skill"] == skill
        assert FOOTHOLD <= row["fact"] <= HEADROOM


def test_the_training_that_is_recorded_is_the_one_that_is_set():
    recorded, asked = json.loads(QUALITY.read_text())["flow training"], FlowTraining()
    assert recorded["steps"] == asked.network.steps
    for name, value in recorded["settings"].items():
        assert value == dataclasses.asdict(asked)[name], name
    assert math.isfinite(recorded["loss"])
