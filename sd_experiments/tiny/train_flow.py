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
from sd_experiments.tiny import FLOW
from sd_experiments.tiny.flow_architecture import build_flow
from sd_experiments.tiny.quality import update
from sd_experiments.tiny.train_model import PictureTraining, examples
from sd_experiments.tiny.trainer import TrainingSettings, TrainingSummary, minimise

COMMAND = "python -m sd_experiments.tiny.train_flow"
FLOW_TRAINING = TrainingSettings(steps=9000, warmup=100, average=0.998)
IDENTITY = ("examples", "noise", "batch", "unconditional")
"""What the weights depend on, besides seed and network."""


@dataclasses.dataclass(frozen=True)
class FlowTraining(PictureTraining):
    """Everything the trained model depends on.

    Attributes:
        out: folder the pipeline is saved to, in half precision.
        network: length and speed of the training.
        batch: latents per step.
    """

    out: Path = FLOW
    network: TrainingSettings = FLOW_TRAINING
    batch: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_examples(self.batch)


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
    told = {"settings": settings.identity(*IDENTITY, "seed")}
    update(settings.quality, "flow training", dataclasses.asdict(done) | told, COMMAND)
    return done


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

    file, identity = settings.work / "flow.safetensors", settings.identity(*IDENTITY)
    learnt = list(network.parameters())
    done = minimise("flow", learnt, loss, settings.network, settings.seed + 3, file, identity)
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
