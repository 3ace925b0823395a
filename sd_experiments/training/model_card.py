"""The README.md of trained layers, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd_experiments import config
from sd_experiments.model.weights import HUB

README = "README.md"
PICTURES = "pictures.png"
TAGS = ("text-to-image", "lora", "diffusers", "diffusers-training", "socft")


def model_card(
    settings: config.ExperimentConfig, step: int, rows: Sequence[Mapping[str, Any]]
) -> str:
    """What was trained, how, and how to use it.

    Args:
        step: gradient steps done.
        rows: of the metrics; the first and the last are quoted.
    """
    return "\n".join(
        [*_header(settings), *_about(settings, step, rows), *_usage(settings), *_settings(settings)]
    )


def _header(settings: config.ExperimentConfig) -> list[str]:
    """The metadata, whose texts are quoted as JSON, which YAML reads."""
    hub = HUB.fullmatch(settings.model.path) is not None
    return [
        "---",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        *([f"base_model: {settings.model.path}"] if hub else []),
        f"tags: {json.dumps(TAGS)}",
        "widget:",
        *(
            f"- text: {json.dumps(prompt)}\n  output: {{url: {PICTURES}}}"
            for prompt in settings.problem.prompts
        ),
        "---",
        "",
    ]


def _about(
    settings: config.ExperimentConfig, step: int, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    reached = [
        f"Over them the mean reward of a round went from {rows[0]['reward']:.3f} to"
        f" {rows[-1]['reward']:.3f} (± {rows[-1]['reward_stderr']:.3f}), at a divergence of"
        f" {rows[-1]['kl']:.2f} from the pre-trained model."
        for _ in rows[:1]
        if settings.batch.prompts >= len(settings.problem.prompts)  # else of different prompts
    ]
    return [
        f"# Low-rank layers for {_name(settings)}",
        "",
        f"Fine-tuned by {settings.estimator.name} to maximise the reward"
        f" {settings.reward.name} minus {settings.problem.beta:g} times the Kullback-Leibler"
        f" divergence from the pre-trained model, in {step} gradient steps. {' '.join(reached)}",
        "",
        "In the picture, the pre-trained model and this one from the same noise:",
        "",
        f"![before and after]({PICTURES})",
        "",
    ]


def _usage(settings: config.ExperimentConfig) -> list[str]:
    return [
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(_name(settings))})",
        'pipeline.load_lora_weights("FOLDER OR REPOSITORY OF THIS FILE")',
        f"pipeline({json.dumps(settings.problem.prompts[0])}).images[0]",
        "```",
        "",
    ]


def _settings(settings: config.ExperimentConfig) -> list[str]:
    """As stored, without folders of the machine it was trained on."""
    plain = settings.plain()
    plain["model"]["path"] = _name(settings)
    plain["reward"]["path"] = plain["reward"]["path"] and Path(plain["reward"]["path"]).name
    plain["run"]["out"] = Path(plain["run"]["out"]).name
    return ["Settings:", "", "```json", json.dumps(plain, indent=2), "```", ""]


def _name(settings: config.ExperimentConfig) -> str:
    path = settings.model.path
    return path if HUB.fullmatch(path) else Path(path).name
