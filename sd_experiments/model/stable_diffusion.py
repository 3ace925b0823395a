"""A Stable Diffusion 1.x, 2.x or XL with frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from sd_experiments.model.denoiser import UNetDenoiser
from sd_experiments.model.prompts import (
    DualPromptEncoder,
    EncodedPrompt,
    PromptEncoder,
    prompt_encoder,
)
from sd_experiments.model.sampling import ddim_scheduler
from sd_experiments.model.weights import load_pipeline, refusing
from socft.checks import require

NOISE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, output, level, noise: output,
    "v_prediction": lambda x, output, level, noise: level.sqrt() * output + noise.sqrt() * x,
}
"""(x, output, signal level, noise level) -> predicted noise."""


class StableDiffusion:
    """The frozen parts of a pipeline, shared by the references of every prompt.

    Args:
        unet: predicts noise or velocity.
        vae: between images and latents.
        prompt_encoder: encodes prompts.
        scheduler: any scheduler; its noise levels, prediction type and timestep spacing are read.
        micro_batch: samples per network call; bounds the memory.
        checkpointing: keep only the inputs of the network's blocks for backward passes.
        plain_attention: attention that can be differentiated twice (see `UNetDenoiser`).

    Raises:
        InvalidProblem: a network that needs more than (latent, timestep, text), another prediction
            type, or parts that do not fit together.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        prompt_encoder: PromptEncoder,
        scheduler: Any,
        micro_batch: int | None = None,
        checkpointing: bool = False,
        plain_attention: bool = False,
    ):
        config = ddim_scheduler(scheduler.config).config
        _require_text_to_image(
            unet, config["prediction_type"], isinstance(prompt_encoder, DualPromptEncoder)
        )
        _require_fitting(unet.config, vae.config, prompt_encoder)
        self.denoiser = UNetDenoiser(unet, micro_batch, checkpointing, plain_attention)
        self.vae = vae.requires_grad_(False).eval()
        self.prompt_encoder = prompt_encoder
        self.scheduler_config = config

    @property
    def latent_dims(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's own latents."""
        config: Any = self.unet.config
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return config["in_channels"], height, width

    @classmethod
    def from_pipeline(cls, pipeline: Any, micro_batch: int | None = None, **options: bool) -> Self:
        """The parts of a diffusers pipeline, frozen in place."""
        return cls(
            pipeline.unet,
            pipeline.vae,
            prompt_encoder(pipeline),
            pipeline.scheduler,
            micro_batch=micro_batch,
            **options,
        )

    @classmethod
    def load(
        cls,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        micro_batch: int | None = None,
        **options: bool,
    ) -> Self:
        """The Stable Diffusion saved in a local directory; nothing is downloaded.

        Raises:
            InvalidProblem: a part of the pipeline is missing, damaged or another network's.
        """
        pipeline = load_pipeline(directory, dtype, device)
        with refusing(f"the model in {str(directory)!r}"):
            return cls.from_pipeline(pipeline, micro_batch, **options)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The network."""
        return self.denoiser.unet

    def encode(self, prompt: str, latent: tuple[int, int]) -> EncodedPrompt:
        """What the network is told for pictures whose latents have this height and width.

        Raises:
            InvalidProblem: the prompt does not fit into the tokens the network can read.
        """
        scale = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self.prompt_encoder.encode(prompt, (latent[0] * scale, latent[1] * scale))


def _require_text_to_image(unet: Any, prediction: str, pooled: bool) -> None:
    config = unet.config
    told = {"addition_embed_type": "text_time"} if pooled else {}
    extra = [
        name
        for name in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim")
        if getattr(config, name, None) != told.get(name)
    ]
    require(
        not extra,
        f"what the network needs as {' and '.join(extra)} is not what these text encoders say; only"
        " those of 1.x, 2.x and XL are supported, whole.",
    )
    require(
        config.in_channels == config.out_channels,
        f"the network maps {config.in_channels} channels to {config.out_channels}; give one for"
        " text to image, not inpainting.",
    )
    require(
        prediction in NOISE,
        f"the scheduler says prediction_type = {prediction!r}; give a network that predicts"
        f" {' or '.join(map(repr, NOISE))}.",
    )


def _require_fitting(unet: Any, vae: Any, prompt_encoder: PromptEncoder) -> None:
    channels = vae["latent_channels"]
    require(
        channels == unet.in_channels,
        f"the network makes latents of {unet.in_channels} channels and the decoder reads"
        f" {channels}; load both from one directory.",
    )
    width, wanted = prompt_encoder.width, getattr(unet, "cross_attention_dim", None)
    require(
        not isinstance(wanted, int) or width in (None, wanted),
        f"the network reads text of width {wanted} and the text encoder writes {width}; load both"
        " from one directory.",
    )
