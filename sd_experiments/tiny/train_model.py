"""Train the tiny Stable Diffusion: first the autoencoder, then the UNet and the text encoder
together on its latents.

The captions are wrong now and then (`sd_experiments.tiny.captions.CaptionErrors`), as those of a
real training set are: a picture then lies anywhere between what its caption says and something
else. So the model draws what it is asked for only part of the time, and fine-tuning has something
to improve.

    python -m sd_experiments.tiny.train_model

takes about 30 minutes on one core, shows its progress, and continues after an interruption.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from sd_experiments.manifest import replace_folder
from sd_experiments.tiny import MODEL, QUALITY
from sd_experiments.tiny.architecture import build
from sd_experiments.tiny.captions import CaptionErrors, draw_caption
from sd_experiments.tiny.quality import update
from sd_experiments.tiny.shapes import arrange, draw_between
from sd_experiments.tiny.trainer import TrainingSettings, TrainingSummary, minimise
from socft.checks import require

ERRORS = CaptionErrors(colour=0.5, composition=0.5, counting=0.5, location=0.6, open=0.5)
AUTOENCODER = TrainingSettings(steps=1200, momentum=(0.9, 0.95), weight_decay=0.0)
DENOISER = TrainingSettings(steps=6000, average=0.995)


@dataclasses.dataclass(frozen=True)
class PictureTraining:
    """What a model that is told captions is trained on.

    Attributes:
        quality: JSON file that records what the training cost.
        work: folder of the checkpoints.
        seed: of the weights, the pictures and the training.
        examples: number of pictures with captions.
        noise: how often a picture departs from its caption.
        unconditional: fraction of the captions that are dropped, for classifier-free guidance.
    """

    quality: Path = QUALITY
    work: Path = Path("build/tiny")
    seed: int = 0
    examples: int = 30_000
    noise: CaptionErrors = ERRORS
    unconditional: float = 0.1

    def __post_init__(self) -> None:
        require(
            0 < self.unconditional < 1,
            f"unconditional = {self.unconditional}; guidance needs a fraction in (0, 1).",
        )

    def require_examples(self, batch: int) -> None:
        """Refuse a batch that they do not fill."""
        require(
            self.examples >= batch,
            f"{self.examples} examples do not fill a batch of {batch}; draw more.",
        )

    def identity(self, *names: str) -> dict[str, object]:
        """The named settings, plain: what a stage's result depends on."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in names}


@dataclasses.dataclass(frozen=True)
class ModelTraining(PictureTraining):
    """Everything the trained model depends on.

    Attributes:
        out: folder the pipeline is saved to.
        autoencoder: length and speed of the autoencoder's training.
        autoencoder_batch: pictures per step.
        divergence: weight of the autoencoder's KL divergence from N(0, I), per pixel.
        denoiser: length and speed of the UNet's and the text encoder's training.
        denoiser_batch: latents per step.
    """

    out: Path = MODEL
    autoencoder: TrainingSettings = AUTOENCODER
    autoencoder_batch: int = 16
    divergence: float = 1e-6
    denoiser: TrainingSettings = DENOISER
    denoiser_batch: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_examples(max(self.autoencoder_batch, self.denoiser_batch))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Pictures in [0, 1] with captions."""

    pictures: Float[Tensor, "n 3 side side"]
    captions: list[str]


def examples(count: int, seed: int, noise: CaptionErrors) -> Examples:
    """Random captions, and pictures that lie anywhere between these and what the noise makes of
    them.
    """
    rng = random.Random(seed)
    captions = [draw_caption(rng) for _ in range(count)]
    wrong = [noise.drawn(caption, rng) for caption in captions]
    asked, other = (
        arrange(each, torch.Generator().manual_seed(seed)) for each in (captions, wrong)
    )
    share = torch.rand(count, generator=torch.Generator().manual_seed(seed + 1))
    return Examples(draw_between(asked, other, share), [str(caption) for caption in captions])


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The pipeline and what each stage cost."""

    pipeline: StableDiffusionPipeline
    autoencoder: TrainingSummary
    denoiser: TrainingSummary


def train_model(settings: ModelTraining) -> TrainedModel:
    """Train both stages and save the pipeline."""
    pipeline = build(settings.seed)
    autoencoder = _train_autoencoder(pipeline, settings)
    data = examples(settings.examples, settings.seed, settings.noise)
    latents = _standard_latents(pipeline, data.pictures)
    denoiser = _train_denoiser(pipeline, latents, data.captions, settings)
    replace_folder(settings.out, pipeline.save_pretrained)
    cost = {
        "autoencoder": dataclasses.asdict(autoencoder),
        "denoiser": dataclasses.asdict(denoiser),
    }
    told = settings.identity("seed", "examples", "noise", "unconditional")
    update(
        settings.quality,
        "training",
        cost | {"settings": told},
        "python -m sd_experiments.tiny.train_model",
    )
    return TrainedModel(pipeline, autoencoder, denoiser)


def tokens(pipeline: StableDiffusionPipeline, captions: list[str]) -> Int[Tensor, "n tokens"]:
    """Token numbers of captions, padded as the pipeline pads them."""
    length = pipeline.tokenizer.model_max_length
    return pipeline.tokenizer(
        captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


def _train_autoencoder(
    pipeline: StableDiffusionPipeline, settings: ModelTraining
) -> TrainingSummary:
    pictures = examples(settings.examples, settings.seed + 1, settings.noise).pictures
    vae = pipeline.vae.to(memory_format=torch.channels_last).train()

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (settings.autoencoder_batch,), generator=generator)
        x = (2 * pictures[rows] - 1).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - x
        return (
            error.abs().mean() + error.square().mean() + settings.divergence * posterior.kl().mean()
        )

    file = settings.work / "autoencoder.safetensors"
    identity = settings.identity("examples", "noise", "autoencoder_batch", "divergence")
    done = minimise(
        "autoencoder",
        list(vae.parameters()),
        loss,
        settings.autoencoder,
        settings.seed + 1,
        file,
        identity,
    )
    vae.eval()
    return done


@torch.no_grad()
def _standard_latents(
    pipeline: StableDiffusionPipeline, pictures: Tensor
) -> Float[Tensor, "n 4 8 8"]:
    """Latents of the pictures, scaled to unit standard deviation; the pipeline remembers the
    factor.
    """
    latents = torch.cat(
        [pipeline.vae.encode(2 * x - 1).latent_dist.mean for x in pictures.split(256)]
    )
    factor = 1 / float(latents.std())
    pipeline.vae.register_to_config(scaling_factor=factor)
    return latents * factor


def _train_denoiser(
    pipeline: StableDiffusionPipeline, latents: Tensor, captions: list[str], settings: ModelTraining
) -> TrainingSummary:
    unet = pipeline.unet.to(memory_format=torch.channels_last).train()
    text = pipeline.text_encoder.train()
    abar = pipeline.scheduler.alphas_cumprod
    words, nothing = tokens(pipeline, captions), tokens(pipeline, [""])
    batch = settings.denoiser_batch

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(latents), (batch,), generator=generator)
        dropped = torch.rand(batch, 1, generator=generator) < settings.unconditional
        time = torch.randint(len(abar), (batch,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        level = abar[time][:, None, None, None]
        noisy = (level.sqrt() * latents[rows] + (1 - level).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        states = text(torch.where(dropped, nothing, words[rows])).last_hidden_state
        return F.mse_loss(unet(noisy, time, states).sample, noise)

    learnt = [*unet.parameters(), *text.parameters()]
    identity = settings.identity("examples", "autoencoder", "autoencoder_batch", "divergence")
    identity |= settings.identity("noise", "denoiser_batch", "unconditional")
    file = settings.work / "denoiser.safetensors"
    done = minimise("denoiser", learnt, loss, settings.denoiser, settings.seed + 2, file, identity)
    unet.eval()
    text.eval()
    return done


def main() -> None:
    """Train, save, say what it cost."""
    torch.set_num_threads(1)
    trained = train_model(tyro.cli(ModelTraining, description=__doc__))
    minutes = (trained.autoencoder.cpu_seconds + trained.denoiser.cpu_seconds) / 60
    print(
        f"trained in {minutes:.1f} minutes of processor time; measure it with: python -m"
        " sd_experiments.tiny.quality"
    )


if __name__ == "__main__":
    main()
