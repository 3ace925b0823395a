"""A Stable Diffusion of about two million parameters: the parts of Stable Diffusion 1.5, each as
small as the shape world allows.

Pictures of 32 x 32 pixels become latents of 4 x 8 x 8; the UNet sees the 16 token states of a
causal CLIP text encoder through cross-attention. The noise schedule is that of Stable Diffusion
1.5: 1000 steps, forward variances linear in their square root from 0.00085 to 0.012. Its last
signal level is that of the first training step, abar_0 = 0.99915, not 1 (``set_alpha_to_one`` is
off), so that the last step of DDIM with eta = 1 has a positive sigma and can be steered at a finite
KL.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sd_experiments.tiny.captions import WORDS

TOKENS = 16
TEXT_WIDTH = 64
LATENT_SIDE = 8


def build(seed: int) -> StableDiffusionPipeline:
    """An untrained pipeline with reproducible weights; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = words_tokenizer()
        parts: dict[str, Any] = {
            "vae": _autoencoder(),
            "text_encoder": _text_encoder(tokenizer),
            "tokenizer": tokenizer,
            "unet": _unet(),
            "scheduler": _scheduler(),
            "safety_checker": None,
            "feature_extractor": None,
        }
        return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def words_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer, every word of the captions one token; any other word becomes
    several.
    """
    letters = sorted(ByteLevel.alphabet())
    merges = _merges([(*word[:-1], f"{word[-1]}</w>") for word in WORDS])
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(a + b for a, b in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    learnt: dict[str, Any] = {
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
    }
    return CLIPTokenizer(**learnt, model_max_length=TOKENS)


def _merges(words: list[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Byte-pair encoding: merge the most frequent neighbours everywhere until every word is whole.

    Merges are applied in this order, whatever the word, so they cannot be written down word by
    word: "and" would tear "triangle".
    """
    merges = []
    while pairs := Counter(pair for word in words for pair in itertools.pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = [_merged(word, best) for word in words]
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """A word with every occurrence of a pair joined, from the left."""
    pieces: list[str] = []
    for piece in word:
        joins = pieces and (pieces[-1], piece) == pair
        pieces[-1:] = [pieces[-1] + piece] if joins else [*pieces[-1:], piece]
    return tuple(pieces)


def _autoencoder() -> AutoencoderKL:
    channels = (16, 32, 32)
    blocks: dict[str, Any] = {
        "block_out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
    }
    return AutoencoderKL(**blocks, norm_num_groups=8, sample_size=32, mid_block_add_attention=False)


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    special: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            **special,
        )
    )


def _unet() -> UNet2DConditionModel:
    channels = (32, 64)
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
