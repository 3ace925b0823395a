"""A Stable Diffusion 1.x or 2.x with frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from sd_experiments.denoiser import Context, Denoiser
from sd_experiments.sampling import ddim_scheduler
from sd_experiments.weights import load_pipeline
from socft.checks import require

NOISE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, output, abar: output,
    "v_prediction": lambda x, output, abar: abar.sqrt() * output + (1 - abar).sqrt() * x,
}
"""(x, output, abar) -> predicted noise."""


class StableDiffusion:
    """The frozen parts of a pipeline, shared by the references of every prompt.

    Args:
        unet: predicts noise or velocity.
        vae: between images and latents.
        text_encoder: encodes the tokens of a prompt.
        tokenizer: makes tokens of a prompt.
        scheduler: any scheduler; its noise levels, prediction type and timestep spacing are read.
        micro_batch: samples per network call; bounds the memory.
        checkpointing: keep only the inputs of the network's blocks for backward passes.
        plain_attention: attention that can be differentiated twice (see `Denoiser`).

    Raises:
        InvalidProblem: a network that needs more than (latent, timestep, text), another prediction type, or parts that do not
            fit together.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: nn.Module,
        tokenizer: Any,
        scheduler: Any,
        micro_batch: int | None = None,
        checkpointing: bool = False,
        plain_attention: bool = False,
    ):
        config = ddim_scheduler(scheduler.config).config
        _require_text_to_image(unet, config["prediction_type"])
        _require_readable(tokenizer, text_encoder.config)
        _require_fitting(unet.config, vae.config, text_encoder.config)
        self.denoiser = Denoiser(unet, micro_batch, checkpointing, plain_attention)
        self.vae = vae.requires_grad_(False).eval()
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.scheduler_config = config

    @classmethod
    def from_pipeline(cls, pipeline: Any, micro_batch: int | None = None, **options: bool) -> Self:
        """The parts of a diffusers pipeline, frozen in place."""
        parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)
        return cls(*parts, micro_batch=micro_batch, **options)

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
        return cls.from_pipeline(load_pipeline(directory, dtype, device), micro_batch, **options)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The network."""
        return self.denoiser.unet

    @torch.no_grad()
    def encode(self, prompt: str) -> Context:
        """The text encoder's last hidden state.

        Raises:
            InvalidProblem: the prompt does not fit into the tokens the network can read.
        """
        longest = self.tokenizer.model_max_length
        count = len(self.tokenizer(prompt).input_ids)
        require(count <= longest, f"the prompt {prompt!r} takes {count} tokens; the network reads {longest}: shorten it.")
        tokens = self.tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")
        device = next(self.text_encoder.parameters()).device
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        return self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]


def _require_text_to_image(unet: Any, prediction: str) -> None:
    config = unet.config
    extra = [
        name
        for name in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim")
        if getattr(config, name, None) is not None
    ]
    require(
        not extra, f"the network needs {' and '.join(extra)}; only networks of (latent, timestep, text) are supported: 1.x and 2.x."
    )
    require(
        config.in_channels == config.out_channels,
        f"the network maps {config.in_channels} channels to {config.out_channels}; give one for text to image, not inpainting.",
    )
    require(
        prediction in NOISE,
        f"the scheduler says prediction_type = {prediction!r}; give a network that predicts {' or '.join(map(repr, NOISE))}.",
    )


def _require_readable(tokenizer: Any, text: Any) -> None:
    vocabulary = getattr(text, "vocab_size", len(tokenizer))
    require(
        len(tokenizer) == vocabulary,
        f"the tokenizer knows {len(tokenizer)} tokens and the text encoder {vocabulary}; load both from one directory.",
    )
    longest = getattr(text, "max_position_embeddings", tokenizer.model_max_length)
    require(
        tokenizer.model_max_length <= longest,
        f"the tokenizer gives up to {tokenizer.model_max_length:g} tokens and the text encoder reads {longest}; copy the "
        "tokenizer's tokenizer_config.json too.",
    )


def _require_fitting(unet: Any, vae: Any, text: Any) -> None:
    channels = vae["latent_channels"]
    require(
        channels == unet.in_channels,
        f"the network makes latents of {unet.in_channels} channels and the decoder reads {channels}; load both from one directory.",
    )
    width, wanted = getattr(text, "hidden_size", None), getattr(unet, "cross_attention_dim", None)
    require(
        not isinstance(wanted, int) or width in (None, wanted),
        f"the network reads text of width {wanted} and the text encoder writes {width}; load both from one directory.",
    )
