r"""Stable Diffusion 3 and FLUX with frozen weights.

The network predicts the velocity :math:`u = E[\epsilon - x_0 | x]` of a latent
:math:`x = (1-s)\,x_0 + s\,\epsilon` at a noise level s that falls from 1 to 0; it is told 1000 s.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
from typing import Any, ClassVar, Self

import numpy as np
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from jaxtyping import Float
from torch import Tensor

from sd_experiments.model.denoiser import LatentDenoiser
from sd_experiments.model.flow_prompts import LongText, PooledPromptEncoder, TriplePromptEncoder
from sd_experiments.model.keys import (
    FLOW_SCHEDULER,
    FLOW_SCHEDULERS,
    FLUX_TRANSFORMER,
    SD3_TRANSFORMER,
    Table,
    require_keys,
)
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.prompts import PromptEncoder, SinglePromptEncoder, Size
from sd_experiments.model.transformer import PATCH, FluxDenoiser, SD3Denoiser
from socft.checks import require, tried

TRAILING = "trailing"
"""Spacing of levels that are even before they are shifted, from 1 to 1 / steps."""


@dataclasses.dataclass(frozen=True, eq=False)
class FlowLevels:
    """Where a sampler evaluates the network.

    Attributes:
        timesteps: what the network is told, shape (T,), float32.
        noise: levels s from 1 to 0, shape (T + 1,), float64.
    """

    timesteps: Float[Tensor, " steps"]
    noise: Float[Tensor, " steps_plus_1"]


class FlowModel(LatentModel):
    """The frozen parts of a pipeline with a transformer.

    Args:
        denoiser: calls the transformer.
        vae: between images and latents.
        prompt_encoder: encodes prompts.
        scheduler: its levels are those of the chain.

    Raises:
        InvalidProblem: a scheduler of another kind, or parts that do not fit together.
    """

    part = "transformer"
    even: ClassVar[bool]
    """Whether the pipeline asks its scheduler for levels that are even before the shift."""
    rows: ClassVar[int]
    """Rows of T5's states in the pipeline."""
    network_class: ClassVar[type]
    """diffusers' class of the network."""
    known: ClassVar[Table]
    """What its configuration may say."""
    denoiser_class: ClassVar[type[LatentDenoiser]]
    """Calls it."""

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        micro_batch: int | None = None,
        *,
        max_sequence_length: int | None = None,
        **options: Any,
    ) -> Self:
        config = _network_config(pipeline, cls.network_class)
        require_keys(config, cls.network_class, cls.known, "the network")
        rows = cls.rows if max_sequence_length is None else max_sequence_length
        encoder = cls.encoder(pipeline, rows, config["joint_attention_dim"])
        _require_fitting(config, cls.channels(config), pipeline.vae, encoder.pooled_width)
        denoiser = cls.denoiser_class(pipeline.transformer, micro_batch, **options)
        return cls(denoiser, pipeline.vae, encoder, pipeline.scheduler)

    @classmethod
    @abc.abstractmethod
    def encoder(
        cls, pipeline: Any, rows: int, width: int
    ) -> TriplePromptEncoder | PooledPromptEncoder:
        """Encodes prompts with the text encoders of a pipeline, T5's states in ``rows`` of a
        width.
        """

    @classmethod
    @abc.abstractmethod
    def channels(cls, config: Any) -> int:
        """Of a latent."""

    def __init__(
        self, denoiser: LatentDenoiser, vae: Any, prompt_encoder: PromptEncoder, scheduler: Any
    ):
        name = type(scheduler).__name__
        require(
            name in FLOW_SCHEDULERS,
            f"the scheduler is a {name}; a flow needs a {FLOW_SCHEDULERS[0]}, which says its"
            " levels: give the model's own.",
        )
        require_keys(
            scheduler.config, FlowMatchEulerDiscreteScheduler, FLOW_SCHEDULER, "the scheduler"
        )
        self._scheduler = scheduler
        super().__init__(denoiser, vae, prompt_encoder)

    def unscaled(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        return latents / config["scaling_factor"] + (config["shift_factor"] or 0.0)

    @abc.abstractmethod
    def tokens(self, latent: Size) -> int:
        """Patches of a latent.

        Raises:
            InvalidProblem: it is not whole patches, or has more than the network knows places for.
        """

    @property
    @abc.abstractmethod
    def is_distilled(self) -> bool:
        """Whether the network is told a guidance scale."""

    def levels(self, steps: int, latent: Size, spacing: str | None = None) -> FlowLevels:
        """The levels of the model's own pipeline, or those that are even before the shift.

        Raises:
            InvalidProblem: an unknown spacing, or levels that do not fall from 1.
        """
        require(
            spacing in (None, TRAILING),
            f"spacing = {spacing!r}; a flow begins at pure noise: give {TRAILING!r}, or leave it"
            " out.",
        )
        what = "setting the levels of its scheduler_config.json"
        scheduler = tried(self._with_levels, (steps, latent, spacing), what)
        noise = scheduler.sigmas.double()
        require(
            float(noise[0]) == 1 and bool((noise.diff() < 0).all()),
            f"{steps} levels run from {float(noise[0]):g} to {float(noise[-2]):g} and do not fall"
            " from 1; give fewer steps, or another scheduler.",
        )
        return FlowLevels(scheduler.timesteps, noise)

    def _with_levels(self, steps: int, latent: Size, spacing: str | None) -> Any:
        """The scheduler as its pipeline sets it, with a shift that was set, which no key says."""
        config, options = self._scheduler.config, {}
        if config["use_dynamic_shifting"]:
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            options["mu"] = calculate_shift(self.tokens(latent), *(config[each] for each in names))
        if self.even or spacing == TRAILING:
            options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        scheduler = copy.deepcopy(self._scheduler)
        scheduler.set_timesteps(steps, **options)
        return scheduler


class StableDiffusion3(FlowModel):
    """Stable Diffusion 3 and 3.5; arguments as `FlowModel`'s."""

    even, rows = False, 256

    network_class, known, denoiser_class = SD3Transformer2DModel, SD3_TRANSFORMER, SD3Denoiser

    @classmethod
    def encoder(cls, pipeline: Any, rows: int, width: int) -> TriplePromptEncoder:
        return TriplePromptEncoder(
            SinglePromptEncoder(pipeline.text_encoder, pipeline.tokenizer),
            SinglePromptEncoder(pipeline.text_encoder_2, pipeline.tokenizer_2),
            LongText(pipeline.text_encoder_3, pipeline.tokenizer_3, rows, width),
        )

    @classmethod
    def channels(cls, config: Any) -> int:
        return config["in_channels"]

    @property
    def latent_dims(self) -> tuple[int, int, int]:
        config: Any = self.denoiser.network.config
        return self.channels(config), config["sample_size"], config["sample_size"]

    @property
    def is_distilled(self) -> bool:
        return False

    def tokens(self, latent: Size) -> int:
        config: Any = self.denoiser.network.config
        patch, most = config["patch_size"], config["pos_embed_max_size"]
        _require_patches(latent, patch, self.scale)
        height, width = (side // patch for side in latent)
        require(
            max(height, width) <= most,
            f"a latent of {height} x {width} patches; the network knows the places of"
            f" {most} x {most}: give a smaller size.",
        )
        return height * width


class Flux(FlowModel):
    """FLUX, of which one kind is told a guidance scale; arguments as `FlowModel`'s."""

    even, rows = True, 512
    side = 128
    """Of the latents that the pipeline draws if not told otherwise."""

    network_class, known, denoiser_class = FluxTransformer2DModel, FLUX_TRANSFORMER, FluxDenoiser

    @classmethod
    def encoder(cls, pipeline: Any, rows: int, width: int) -> PooledPromptEncoder:
        return PooledPromptEncoder(
            SinglePromptEncoder(pipeline.text_encoder, pipeline.tokenizer),
            LongText(pipeline.text_encoder_2, pipeline.tokenizer_2, rows, width),
        )

    @classmethod
    def channels(cls, config: Any) -> int:
        return config["in_channels"] // PATCH**2

    @property
    def latent_dims(self) -> tuple[int, int, int]:
        return self.channels(self.denoiser.network.config), self.side, self.side

    @property
    def is_distilled(self) -> bool:
        config: Any = self.denoiser.network.config
        return config["guidance_embeds"]

    def tokens(self, latent: Size) -> int:
        _require_patches(latent, PATCH, self.scale)
        return latent[0] * latent[1] // PATCH**2


def _network_config(pipeline: Any, kind: type) -> Any:
    """The configuration of the network of a pipeline, which is of this kind."""
    network = getattr(pipeline, "transformer", None)
    require(
        isinstance(network, kind),
        f"a {type(pipeline).__name__} has no {kind.__name__}; give the pipeline of such a model.",
    )
    return pipeline.transformer.config


def _require_patches(latent: Size, patch: int, scale: int) -> None:
    require(
        all(side % patch == 0 for side in latent),
        f"a latent of {latent[0]} x {latent[1]} is not whole patches of {patch} x {patch}; give a"
        f" height and a width in pixels that {scale * patch} divides.",
    )


def _require_fitting(config: Any, channels: int, vae: Any, pooled: int) -> None:
    made = config.get("out_channels") or config["in_channels"]
    require(
        made == config["in_channels"],
        f"the network maps {config['in_channels']} channels to {made}; give one for text to image,"
        " not one that is shown a picture.",
    )
    require(
        vae.config["latent_channels"] == channels,
        f"the network makes latents of {channels} channels and the decoder reads"
        f" {vae.config['latent_channels']}; load both from one directory.",
    )
    require(
        config["pooled_projection_dim"] == pooled,
        f"the network is told a pooled state of width {config['pooled_projection_dim']} and the"
        f" text encoders write {pooled}; load both from one directory.",
    )
