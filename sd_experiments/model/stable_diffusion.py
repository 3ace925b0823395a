"""A Stable Diffusion 1.x, 2.x or XL with frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from sd_experiments.model.denoiser import UNetDenoiser
from sd_experiments.model.keys import UNET, require_keys
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.prompts import (
    DualPromptEncoder,
    PromptEncoder,
    prompt_encoder,
)
from sd_experiments.model.schedule import trained_chain
from socft.checks import require

NOISE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, output, level, noise: output,
    "v_prediction": lambda x, output, level, noise: level.sqrt() * output + noise.sqrt() * x,
}
"""(x, output, signal level, noise level) -> predicted noise."""


class StableDiffusion(LatentModel):
    """The frozen parts of a pipeline with a UNet.

    Args:
        unet: predicts noise or velocity.
        vae: between images and latents.
        prompt_encoder: encodes prompts.
        scheduler: any scheduler; its noise levels, prediction type and timestep spacing are read.
        micro_batch: samples per network call; bounds the memory.
        checkpointing: keep only the inputs of the network's blocks for backward passes.
        plain_attention: attention that can be differentiated twice (see `LatentDenoiser`).

    Raises:
        InvalidProblem: a network that needs more than (latent, timestep, text), another prediction
            type, or parts that do not fit together.
    """

    part = "unet"

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
        extra_large = isinstance(prompt_encoder, DualPromptEncoder)
        config = trained_chain(scheduler, clipped=extra_large)
        _require_text_to_image(unet, config["prediction_type"], extra_large)
        _require_fitting(unet, vae.config, prompt_encoder)
        upcast = extra_large and vae.config["force_upcast"] and vae.dtype == torch.float16
        super().__init__(
            UNetDenoiser(unet, micro_batch, checkpointing, plain_attention),
            vae.float() if upcast else vae,
            prompt_encoder,
        )
        self.scheduler_config = config

    @property
    def latent_dims(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's own latents."""
        config: Any = self.unet.config
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return config["in_channels"], height, width

    @classmethod
    def from_pipeline(cls, pipeline: Any, micro_batch: int | None = None, **options: Any) -> Self:
        require(
            getattr(pipeline, "unet", None) is not None,
            f"a {type(pipeline).__name__} has no unet; give a Stable Diffusion 1.x, 2.x or XL.",
        )
        return cls(
            pipeline.unet,
            pipeline.vae,
            prompt_encoder(pipeline),
            pipeline.scheduler,
            micro_batch=micro_batch,
            **options,
        )

    @property
    def unet(self) -> UNet2DConditionModel:
        """The network."""
        return self.denoiser.network

    def unscaled(self, latents: Tensor) -> Tensor:
        """Over the scaling factor; with XL, whose pipeline reads them, by the statistics of each
        channel where the decoder has both.
        """
        config, channels = self.vae.config, (1, -1, 1, 1)
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        plain = not isinstance(self.prompt_encoder, DualPromptEncoder)
        if plain or mean is None or deviation is None:
            return latents / config["scaling_factor"]
        scale, shift = (torch.tensor(each).view(channels).to(latents) for each in (deviation, mean))
        return latents * scale / config["scaling_factor"] + shift


def _require_text_to_image(unet: Any, prediction: str, pooled: bool) -> None:
    config = unet.config
    told = "text_time" if pooled else None
    require(
        config.get("addition_embed_type") == told,
        "what the network needs as addition_embed_type is not what these text encoders say; only"
        " those of 1.x, 2.x and XL are supported, whole.",
    )
    require_keys(config, UNet2DConditionModel, UNET, "the network")
    require(
        config.in_channels == config.out_channels,
        f"the network maps {config.in_channels} channels to {config.out_channels}; give one for"
        " text to image, not inpainting.",
    )
    require(
        config.get("sample_size") is not None,
        "the network does not say its sample_size; write the height of a latent into its"
        " config.json.",
    )
    require(
        prediction in NOISE,
        f"the scheduler says prediction_type = {prediction!r}; give a network that predicts"
        f" {' or '.join(map(repr, NOISE))}.",
    )


def _require_fitting(unet: Any, vae: Any, prompt_encoder: PromptEncoder) -> None:
    channels, config = vae["latent_channels"], unet.config
    require(
        channels == config.in_channels,
        f"the network makes latents of {config.in_channels} channels and the decoder reads"
        f" {channels}; load both from one directory.",
    )
    projected = config.get("encoder_hid_dim_type") == "text_proj"
    width = prompt_encoder.width
    wanted = config.get("encoder_hid_dim" if projected else "cross_attention_dim")
    require(
        not isinstance(wanted, int) or width in (None, wanted),
        f"the network reads text of width {wanted} and the text encoder writes {width}; load both"
        " from one directory.",
    )
    if isinstance(prompt_encoder, DualPromptEncoder):
        _require_told(unet, prompt_encoder)


def _require_told(unet: Any, prompt_encoder: DualPromptEncoder) -> None:
    pooled, numbers = prompt_encoder.pooled_width, unet.config["addition_time_embed_dim"]
    told, read = pooled + 6 * numbers, unet.add_embedding.linear_1.in_features
    require(
        told == read,
        f"the network is told {read} numbers besides the text and these text encoders say {told},"
        f" {pooled} of the prompt and {numbers} for each of six of the size; give an XL from text"
        " to image, not its refiner.",
    )
