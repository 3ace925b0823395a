"""Stable Diffusions and rewards with random weights: time and memory do not depend on what the
weights are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sd_experiments import config
from sd_experiments.reward.image_reward import ImageReward, tokenizer_of
from sd_experiments.reward.sizes import ImageRewardConfig
from sd_experiments.tiny import architecture

PROMPT = "a green rabbit"
VOCABULARY, TOKENS = 49408, 77


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """A random Stable Diffusion.

    Attributes:
        build: makes the pipeline from torch's global random state, on torch's default device.
        settings: a run on it.
    """

    build: Callable[[], StableDiffusionPipeline]
    settings: config.ExperimentConfig

    def pipeline(
        self, seed: int, device: torch.device, dtype: torch.dtype
    ) -> StableDiffusionPipeline:
        """The pipeline with reproducible weights; the caller's random state is left alone."""
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), device:
            torch.manual_seed(seed)
            pipeline: Any = self.build()
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            nn.Module.to(part, device=device, dtype=dtype)  # diffusers' own warns of what it does
        return pipeline


def brightness() -> Callable[[Tensor, str], Tensor]:
    """The mean of an image, as a reward that costs nothing."""
    return lambda images, prompt: images.flatten(1).mean(1)


def image_reward() -> ImageReward:
    """An ImageReward of the published sizes, 446 million parameters, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (
            ImageReward(ImageRewardConfig(), _bert_tokenizer(ImageRewardConfig().vocabulary))
            .eval()
            .requires_grad_(False)
        )


def stable_diffusion_15() -> StableDiffusionPipeline:
    """All sizes of Stable Diffusion 1.5, for 512 x 512 pixels: 860, 84 and 123 million
    parameters.
    """
    tokenizer = _clip_tokenizer()
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": _decoder(),
        "text_encoder": _text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": _scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def _decoder() -> AutoencoderKL:
    widths = (128, 256, 512, 512)
    sizes: dict[str, Any] = {
        "block_out_channels": widths,
        "layers_per_block": 2,
        "sample_size": 512,
    }
    sizes |= {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(**sizes)


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    sizes: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    sizes |= {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, "projection_dim": 768}
    special: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    return CLIPTextModel(CLIPTextConfig(**sizes, **special))


def _scheduler() -> DDIMScheduler:
    levels: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
    }
    return DDIMScheduler(**levels, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _clip_tokenizer() -> CLIPTokenizer:
    """CLIP's letters, and words that never occur up to the size of its vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"unused{i}</w>" for i in range(VOCABULARY - 2 - len(tokens))]
    learnt: dict[str, Any] = {
        "vocab": {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    }
    return CLIPTokenizer(**learnt, merges=[], model_max_length=TOKENS)


def _bert_tokenizer(vocabulary: int) -> BertTokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    words = [*special, *(f"unused{i}" for i in range(vocabulary - len(special)))]
    return tokenizer_of(words)


def _settings(
    reward: str, steps: int, batch: config.BatchConfig, chunk: int, model: config.ModelConfig
) -> config.ExperimentConfig:
    return config.ExperimentConfig(
        problem=config.ProblemConfig((PROMPT,), beta=0.01),
        model=model,
        sampler=config.SamplerConfig(steps=steps, spacing="leading"),
        reward=config.RewardConfig(f"sd_experiments.studies.random_models:{reward}", chunk=chunk),
        batch=batch,
    )


RANDOM = {
    "sd15": RandomModel(
        stable_diffusion_15,
        _settings(
            "image_reward",
            50,
            config.BatchConfig(trajectories=10, micro_batch=1),
            2,
            config.ModelConfig("random", "bfloat16", micro_batch=5, checkpointing=True),
        ),
    ),
    "small": RandomModel(
        lambda: architecture.build(0),
        _settings(
            "brightness",
            4,
            config.BatchConfig(trajectories=4, micro_batch=2),
            4,
            config.ModelConfig("random", device="cpu"),
        ),
    ),
}
"""By name: the sizes of Stable Diffusion 1.5 with ImageReward and the paper's batch, for a GPU; and
a small one for any machine.
"""
