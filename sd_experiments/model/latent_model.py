"""What a latent model is to a fine-tuning run, whatever its network: frozen parts of a pipeline."""

from __future__ import annotations

import abc
import math
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sd_experiments.model.denoiser import LatentDenoiser
from sd_experiments.model.keys import VAE, require_keys
from sd_experiments.model.prompts import EncodedPrompt, PromptEncoder, Size
from sd_experiments.model.weights import load_pipeline, refusing
from socft.checks import quoted, require


class LatentModel(abc.ABC):
    """The frozen parts of a pipeline, shared by the references of every prompt.

    Attributes:
        part: what the pipeline calls the network.
        denoiser: the network, as it is called.
        vae: between images and latents.
        prompt_encoder: encodes prompts.

    Raises:
        InvalidProblem: the network carries adapters, or the decoder is not one of pictures.
    """

    part: ClassVar[str]

    def __init__(self, denoiser: LatentDenoiser, vae: AutoencoderKL, prompt_encoder: PromptEncoder):
        require_keys(vae.config, AutoencoderKL, VAE, "the decoder")
        _require_scaling(vae.config)
        require_plain(denoiser.network)
        self.denoiser = denoiser
        self.vae = vae.requires_grad_(False).eval()
        self.prompt_encoder = prompt_encoder

    @classmethod
    @abc.abstractmethod
    def from_pipeline(cls, pipeline: Any, micro_batch: int | None = None, **options: Any) -> Self:
        """The parts of a diffusers pipeline, frozen in place.

        Raises:
            InvalidProblem: it is another kind of pipeline, or its parts do not fit together.
        """

    @classmethod
    def load(
        cls,
        directory: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        micro_batch: int | None = None,
        **options: Any,
    ) -> Self:
        """The model saved in a local directory; nothing is downloaded.

        Raises:
            InvalidProblem: a part of the pipeline is missing, damaged or another network's.
        """
        pipeline = load_pipeline(directory, dtype, device)
        with refusing(f"the model in {str(directory)!r}"):
            return cls.from_pipeline(pipeline, micro_batch, **options)

    @property
    @abc.abstractmethod
    def latent_dims(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's own latents."""

    @abc.abstractmethod
    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the decoder reads them."""

    @property
    def scale(self) -> int:
        """Pixels of a picture, each way, for one of a latent."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def latent_of(self, pixels: Size | None) -> Size:
        """Height and width of the latent of a picture; the network's own by default.

        Raises:
            InvalidProblem: no latent decodes to a picture of this size.
        """
        if pixels is None:
            return self.latent_dims[1:]
        whole = all(side > 0 and side % self.scale == 0 for side in pixels)
        require(
            whole,
            f"size = {list(pixels)}; give a height and a width that {self.scale} divides, which the"
            " decoder makes of one entry of a latent.",
        )
        return pixels[0] // self.scale, pixels[1] // self.scale

    def encode(self, prompt: str, latent: tuple[int, int], negative: bool = False) -> EncodedPrompt:
        """What the network is told for pictures whose latents have this height and width.

        Args:
            negative: whether guidance leads away from it; an empty one is none.

        Raises:
            InvalidProblem: the prompt does not fit into the tokens the network can read.
        """
        size = (latent[0] * self.scale, latent[1] * self.scale)
        return self.prompt_encoder.encode(prompt, size, negative)


def require_plain(network: nn.Module) -> None:
    """Refuse a network whose layers are not those that would be adapted: a pipeline has added
    low-rank or other layers, or fused the projections of its attention.

    Raises:
        InvalidProblem: it is so.
    """
    require(
        not any(map(_is_fused, network.modules())),
        "the network has fused projections, beside which layers on each would do nothing; undo it"
        " before: pipeline.unfuse_qkv_projections().",
    )
    found = sorted(
        {
            str(name)
            for module in network.modules()
            if isinstance(module, BaseTunerLayer)
            for name in module.active_adapters
        }
    )
    require(
        not found,
        f"the network carries the adapters {', '.join(found)}; merge them into its weights before:"
        " pipeline.fuse_lora(), then pipeline.unload_lora_weights().",
    )


def _is_fused(module: nn.Module) -> bool:
    """Whether an attention reads its projections from one layer; an older kind says so by its
    processor only.
    """
    if isinstance(module, AttentionModuleMixin):
        return bool(getattr(module, "fused_projections", False))
    return type(getattr(module, "processor", None)).__name__.startswith("Fused")


def _require_scaling(config: Any) -> None:
    """That what latents are scaled and shifted by are numbers, one for every channel where there
    are statistics.
    """
    scale, shift = config["scaling_factor"], config.get("shift_factor")
    _require_numbers("scaling_factor", [scale], 1, positive=True)
    _require_numbers("shift_factor", [0.0 if shift is None else shift], 1)
    channels = config["latent_channels"]
    for name, positive in (("latents_mean", False), ("latents_std", True)):
        if config.get(name) is not None:
            _require_numbers(name, config[name], channels, positive)


def _require_numbers(name: str, said: Any, count: int, positive: bool = False) -> None:
    listed = isinstance(said, list | tuple) and len(said) == count
    good = listed and all(
        isinstance(each, int | float) and math.isfinite(each) and (each > 0 or not positive)
        for each in said
    )
    what = "a number" if count == 1 else f"{count} numbers, one for every channel"
    require(
        good,
        f"the decoder says {name} = {quoted(said[0] if count == 1 else said)}; write {what}"
        f"{' above 0' if positive else ''} into its config.json, as the model was published with.",
    )
