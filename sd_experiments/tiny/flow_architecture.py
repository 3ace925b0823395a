"""A Stable Diffusion 3 of 1.3 million parameters, as small as the shape world allows.

Its decoder is that of the tiny Stable Diffusion, and its first text encoder does what that one's
does: the pipeline reads the last layer but one, so a layer that changes nothing follows. The second
text encoder, which the pipeline cannot do without, is left as it was drawn, and there is no T5:
with ``max_sequence_length = 0`` nothing stands for it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from sd_experiments.tiny.architecture import LATENT_SIDE, TEXT_WIDTH

SECOND_WIDTH = 8
"""Of the text encoder that says nothing more."""
HEADS, HEAD_WIDTH, LAYERS = 4, 24, 4


def build_flow(tiny: Any, seed: int) -> StableDiffusion3Pipeline:
    """An untrained pipeline around the decoder and the text encoder of the tiny Stable Diffusion;
    the caller's random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = copy.deepcopy(tiny.vae)
        vae.register_to_config(shift_factor=0.0)
        parts: dict[str, Any] = {
            "transformer": _transformer(),
            "scheduler": FlowMatchEulerDiscreteScheduler(),
            "vae": vae,
            "text_encoder": _first_encoder(tiny.text_encoder),
            "tokenizer": tiny.tokenizer,
            "text_encoder_2": _second_encoder(tiny.text_encoder.config),
            "tokenizer_2": tiny.tokenizer,
            "text_encoder_3": None,
            "tokenizer_3": None,
        }
        return StableDiffusion3Pipeline(**parts)


def _transformer() -> SD3Transformer2DModel:
    """With nothing in its blocks that acts before it is learnt, which diffusers leaves to chance
    (arXiv 2212.09748, section 3.2).
    """
    network = SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        joint_attention_dim=TEXT_WIDTH + SECOND_WIDTH,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        pooled_projection_dim=TEXT_WIDTH + SECOND_WIDTH,
        pos_embed_max_size=LATENT_SIDE,
        qk_norm="rms_norm",
    )
    for name, module in network.named_modules():
        is_modulation = name.endswith(".linear") and "norm" in name
        if isinstance(module, nn.Linear) and (is_modulation or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def _first_encoder(trained: Any) -> CLIPTextModelWithProjection:
    config: Any = trained.config
    options = {**config.to_dict(), "num_hidden_layers": config.num_hidden_layers + 1}
    encoder: Any = CLIPTextModelWithProjection(CLIPTextConfig(**options))
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": p
        for name, p in trained.state_dict().items()
    }
    encoder.load_state_dict(weights, strict=False)
    last = encoder.text_model.encoder.layers[-1]
    with torch.no_grad():
        for linear in (last.self_attn.out_proj, last.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        encoder.text_projection.weight.copy_(torch.eye(config.hidden_size))
    return encoder.eval()


def _second_encoder(config: Any) -> CLIPTextModelWithProjection:
    sizes = {
        "hidden_size": SECOND_WIDTH,
        "intermediate_size": SECOND_WIDTH,
        "projection_dim": SECOND_WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    encoder: Any = CLIPTextModelWithProjection(CLIPTextConfig(**{**config.to_dict(), **sizes}))
    return encoder.eval()
