"""Small random pipelines of Stable Diffusion 3 and FLUX that their tests share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.support.sd import WORDS, text_encoder, tokenizer

ROWS = 6
"""Of T5's states: its default number takes longer than the network."""
WIDTH = 48
"""Of a state of T5."""
LATENT = (4, 4)


def step_of(scheduler: Any, timestep: Tensor) -> int:
    """Number of a step by its timestep."""
    return int((scheduler.timesteps == timestep).nonzero()[0])


class DoubleEuler(FlowMatchEulerDiscreteScheduler):
    """Euler's steps without the rounding to float32 of diffusers' own."""

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any
    ) -> Any:
        sigmas: Any = self.sigmas
        k, noise = step_of(self, timestep), sigmas.double()
        return (sample + (noise[k + 1] - noise[k]).to(sample) * model_output,)


def stable_diffusion_3(
    third: bool = True, double: bool = True, settings: Any = None, **sizes: Any
) -> StableDiffusion3Pipeline:
    torch.manual_seed(3)
    words: Any = tokenizer()
    options: dict[str, Any] = {
        "sample_size": LATENT[0],
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 20 + 12,
        "pos_embed_max_size": 4,
    }
    parts: dict[str, Any] = {
        "transformer": SD3Transformer2DModel(**options | sizes),
        "vae": decoder(),
        "text_encoder": clip(words, CLIPTextModelWithProjection, 16, 20),
        "text_encoder_2": clip(words, CLIPTextModelWithProjection, 24, 12),
        "text_encoder_3": long_encoder() if third else None,
        "tokenizer": words,
        "tokenizer_2": copy.deepcopy(words),
        "tokenizer_3": long_tokenizer() if third else None,
        "scheduler": settings or FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return finished(StableDiffusion3Pipeline(**parts), double)


def flux(guided: bool = True, double: bool = True, settings: Any = None) -> FluxPipeline:
    torch.manual_seed(4)
    words: Any = tokenizer()
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=24,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    parts: dict[str, Any] = {
        "transformer": network,
        "vae": decoder(),
        "text_encoder": clip(words, CLIPTextModel, 24, 12),
        "text_encoder_2": long_encoder(),
        "tokenizer": words,
        "tokenizer_2": long_tokenizer(),
        "scheduler": settings or FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }
    return finished(FluxPipeline(**parts), double)


def finished(pipe: Any, double: bool) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval()
            if double:
                nn.Module.double(part)
    return pipe


def decoder() -> AutoencoderKL:
    options: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(
        **options,
        norm_num_groups=4,
        sample_size=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    )


def clip(words: Any, kind: Any, width: int, projection: int) -> Any:
    return text_encoder(width, 2, words, kind, intermediate_size=32, projection_dim=projection)


def long_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=WIDTH, d_kv=12, d_ff=32, num_layers=1, num_heads=2)
    )


def long_tokenizer() -> T5Tokenizer:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces: Any = [*special, *((f"▁{word}", -1.0) for word in WORDS)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=ROWS)
