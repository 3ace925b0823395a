"""The tiny flow model: what its text encoders say, and that a training makes what runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sd_experiments import CONFIGS, config, tiny
from sd_experiments.model.flow_model import StableDiffusion3
from sd_experiments.model.loading import load_latent_model
from sd_experiments.tiny.flow_architecture import build_flow
from sd_experiments.tiny.train_flow import FlowTraining, train_flow
from sd_experiments.training.build import build_reference

ROUNDING = 1e-5  # relative: three layers in float32


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
        tmp_path / "flow", tmp_path / "quality.json", tmp_path / "work", examples=64, batch=32
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
