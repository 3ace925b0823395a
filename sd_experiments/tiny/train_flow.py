"""Train the tiny flow model on the latents and captions of the tiny Stable Diffusion.

The network learns the velocity at noise levels that are uniform and spread evenly over a batch; a
tenth of the captions are dropped, for guidance.

    python -m sd_experiments.tiny.train_flow

takes about 18 minutes on one core, shows its progress, and continues after an interruption. What it
makes is fine-tuned by ``sd_experiments/configs/tiny_flow.toml``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from sd_experiments import tiny
from sd_experiments.manifest import replace_folder
from sd_experiments.model.flow_model import StableDiffusion3
from sd_experiments.tiny import FLOW, QUALITY
from sd_experiments.tiny.captions import CaptionErrors
from sd_experiments.tiny.flow_architecture import build_flow
from sd_experiments.tiny.quality import update
from sd_experiments.tiny.train_model import ERRORS, examples
from sd_experiments.tiny.trainer import TrainingSettings, TrainingSummary, minimise
from socft.checks import require

COMMAND = "python -m sd_experiments.tiny.train_flow"
FLOW_TRAINING = TrainingSettings(steps=9000, warmup=100, average=0.998)


@dataclasses.dataclass(frozen=True)
class FlowTraining:
    """Everything the trained model depends on.

    Attributes:
        out: folder the pipeline is saved to, in half precision.
        quality: JSON file that records what the training cost.
        work: folder of the checkpoint.
        seed: of the weights, the pictures and the training.
        examples: number of pictures with captions.
        noise: how often a picture departs from its caption.
        network: length and speed of the training.
        batch: latents per step.
        unconditional: fraction of the captions that are dropped.
    """

    out: Path = FLOW
    quality: Path = QUALITY
    work: Path = Path("build/tiny")
    seed: int = 0
    examples: int = 30_000
    noise: CaptionErrors = ERRORS
    network: TrainingSettings = FLOW_TRAINING
    batch: int = 32
    unconditional: float = 0.1

    def __post_init__(self) -> None:
        require(
            0 < self.unconditional < 1,
            f"unconditional = {self.unconditional}; guidance needs a fraction in (0, 1).",
        )
        require(
            self.examples >= self.batch,
            f"{self.examples} examples do not fill a batch of {self.batch}; draw more.",
        )


@dataclasses.dataclass(frozen=True)
class _Told:
    """What the network is told, row by row; row 0 is the empty caption."""

    text: Float[Tensor, "captions tokens width"]
    pooled: Float[Tensor, "captions width"]


def train_flow(settings: FlowTraining) -> TrainingSummary:
    """Train and save the pipeline; what it cost."""
    old: Any = tiny.pipeline()
    pipe = build_flow(old, settings.seed)
    data = examples(settings.examples, settings.seed, settings.noise)
    distinct = ["", *sorted(set(data.captions))]
    rows = {caption: row for row, caption in enumerate(distinct)}
    numbers = torch.tensor([rows[caption] for caption in data.captions])
    done = _train(pipe, _latents(old, data.pictures), numbers, _told(pipe, distinct), settings)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        nn.Module.half(part)  # diffusers' own warns of what it does
    replace_folder(settings.out, pipe.save_pretrained)
    told = {"settings": _identity(settings) | {"seed": settings.seed}}
    update(settings.quality, "flow training", dataclasses.asdict(done) | told, COMMAND)
    return done


def _identity(settings: FlowTraining) -> dict[str, Any]:
    """What the weights depend on, plain."""
    fields = dataclasses.asdict(settings)
    return {name: fields[name] for name in ("examples", "noise", "batch", "unconditional")}


@torch.no_grad()
def _latents(old: Any, pictures: Tensor) -> Float[Tensor, "n 4 8 8"]:
    encoded = [old.vae.encode(2 * x - 1).latent_dist.mean for x in pictures.split(256)]
    return torch.cat(encoded) * old.vae.config.scaling_factor


def _told(pipe: Any, captions: Sequence[str]) -> _Told:
    model: Any = StableDiffusion3.from_pipeline(pipe, max_sequence_length=0)
    told = [model.encode(caption, model.latent_dims[1:]) for caption in captions]
    pooled = torch.cat([each.added["pooled_projections"] for each in told])
    return _Told(torch.cat([each.text for each in told]), pooled)


def _train(
    pipe: Any, latents: Tensor, captions: Tensor, told: _Told, settings: FlowTraining
) -> TrainingSummary:
    network, batch = pipe.transformer.requires_grad_(True).train(), settings.batch

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        dropped = torch.rand(batch, generator=generator) < settings.unconditional
        spread = torch.rand(batch, generator=generator)
        level = (torch.arange(batch) + spread) / batch
        noise = torch.randn(latents[rows].shape, generator=generator)
        s = level[:, None, None, None]
        words = torch.where(dropped, 0, captions[rows])
        velocity = network(
            hidden_states=(1 - s) * latents[rows] + s * noise,
            timestep=1000 * level,
            encoder_hidden_states=told.text[words],
            pooled_projections=told.pooled[words],
        ).sample
        return F.mse_loss(velocity, noise - latents[rows])

    file = settings.work / "flow.safetensors"
    learnt = list(network.parameters())
    done = minimise(
        "flow", learnt, loss, settings.network, settings.seed + 3, file, _identity(settings)
    )
    network.eval()
    return done


def main() -> None:
    """Train, save, say what it cost."""
    torch.set_num_threads(1)
    done = train_flow(tyro.cli(FlowTraining, description=__doc__))
    print(
        f"trained in {done.cpu_seconds / 60:.1f} minutes of processor time, loss {done.loss:.3f};"
        " measure it with: python -m sd_experiments.tiny.flow_quality"
    )


if __name__ == "__main__":
    main()
