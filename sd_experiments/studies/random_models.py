"""Pipelines and rewards with random weights: time and memory do not depend on what the
weights are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from sd_experiments import config
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.loading import latent_model
from sd_experiments.reward.image_reward import ImageReward, tokenizer_of
from sd_experiments.reward.sizes import ImageRewardConfig
from sd_experiments.tiny import architecture
from sd_experiments.tiny.flow_architecture import build_flow
from sd_experiments.training.build import find_device

PROMPT = "a green rabbit"
VOCABULARY, TOKENS = 49408, 77


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """A random pipeline.

    Attributes:
        build: makes the pipeline from torch's global random state, on torch's default device.
        settings: a run on it.
    """

    build: Callable[[], Any]
    settings: config.ExperimentConfig

    def pipeline(self, seed: int, device: torch.device, dtype: torch.dtype) -> Any:
        """The pipeline with reproducible weights; the caller's random state is left alone."""
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), device:
            torch.manual_seed(seed)
            pipeline: Any = self.build()
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                nn.Module.to(
                    part, device=device, dtype=dtype
                )  # diffusers' own warns of what it does
        return pipeline

    def base(self, model: config.ModelConfig) -> LatentModel:
        """Its frozen parts, as a configuration asks for them."""
        pipeline = self.pipeline(0, find_device(model.device), getattr(torch, model.dtype))
        return latent_model(pipeline, model.micro_batch, checkpointing=model.checkpointing)


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


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """All sizes of Stable Diffusion XL, for 1024 x 1024 pixels: 2.6 billion parameters in its
    network.
    """
    tokenizer = _clip_tokenizer()
    sizes: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
    }
    sizes |= {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
    }
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(sample_size=128, **sizes),
        "vae": _decoder(sample_size=1024, scaling_factor=0.13025),
        "text_encoder": _text_encoder(tokenizer),
        "text_encoder_2": _large_text_encoder(tokenizer),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "scheduler": _scheduler(),
    }
    return StableDiffusionXLPipeline(**parts, add_watermarker=False)


def stable_diffusion_35_medium() -> StableDiffusion3Pipeline:
    """All sizes of Stable Diffusion 3.5 medium but for T5, for 1024 x 1024 pixels: 2.2 billion
    parameters in its network.
    """
    tokenizer = _clip_tokenizer()
    sizes: dict[str, Any] = {
        "num_layers": 24,
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "caption_projection_dim": 1536,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    }
    decoder: dict[str, Any] = {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
    }
    parts: dict[str, Any] = {
        "transformer": SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, **sizes
        ),
        "vae": _decoder(sample_size=1024, **decoder),
        "text_encoder": _text_encoder(tokenizer, CLIPTextModelWithProjection),
        "text_encoder_2": _large_text_encoder(tokenizer),
        "text_encoder_3": None,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "tokenizer_3": None,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }
    return StableDiffusion3Pipeline(**parts)


def _large_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    sizes: dict[str, Any] = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    }
    return CLIPTextModelWithProjection(_text_config(tokenizer, sizes))


def _decoder(sample_size: int = 512, **more: Any) -> AutoencoderKL:
    widths = (128, 256, 512, 512)
    sizes: dict[str, Any] = {
        "block_out_channels": widths,
        "layers_per_block": 2,
        "sample_size": sample_size,
        **more,
    }
    sizes |= {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(**sizes)


def _text_encoder(tokenizer: CLIPTokenizer, kind: Any = CLIPTextModel) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    }
    return kind(_text_config(tokenizer, sizes))


def _text_config(tokenizer: CLIPTokenizer, sizes: dict[str, Any]) -> CLIPTextConfig:
    sizes = sizes | {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS}
    special: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    return CLIPTextConfig(**sizes, **special)


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
    reward: str,
    steps: int,
    batch: config.BatchConfig,
    chunk: int,
    model: config.ModelConfig,
    last_level: float | None = None,
) -> config.ExperimentConfig:
    return config.ExperimentConfig(
        problem=config.ProblemConfig((PROMPT,), beta=0.01),
        model=model,
        sampler=config.SamplerConfig(
            steps=steps,
            spacing="leading" if last_level is None else "trailing",
            last_level=last_level,
        ),
        reward=config.RewardConfig(f"sd_experiments.studies.random_models:{reward}", chunk=chunk),
        batch=batch,
    )


LARGE = (
    "brightness",
    28,
    config.BatchConfig(trajectories=4, micro_batch=1),
    1,
    config.ModelConfig("random", "bfloat16", micro_batch=2, checkpointing=True),
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
    "sdxl": RandomModel(stable_diffusion_xl, _settings(*LARGE)),
    "sd35_medium": RandomModel(stable_diffusion_35_medium, _settings(*LARGE, last_level=0.98)),
    "small_flow": RandomModel(
        lambda: build_flow(architecture.build(0), 0),
        _settings(
            "brightness",
            4,
            config.BatchConfig(trajectories=4, micro_batch=2),
            4,
            config.ModelConfig("random", device="cpu"),
            last_level=0.98,
        ),
    ),
}
"""By name: the sizes of Stable Diffusion 1.5 with ImageReward and the paper's batch, and of XL and
3.5 medium, for a GPU; and a small one and a small flow for any machine.
"""
