"""A small random Stable Diffusion, chains and configurations that its tests share."""

from __future__ import annotations

import copy
import functools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from sd_experiments import config
from sd_experiments.model.prompts import SinglePromptEncoder
from sd_experiments.model.reference import StableDiffusionReference
from sd_experiments.model.stable_diffusion import StableDiffusion
from sd_experiments.training.loop import StepMetrics, TrainingLoop
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import seeded_generator
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.path import Noise
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion
from socft.reward import FunctionReward
from tests.support.tensors import F64, randn

# relative: a few sampling steps, each a network of some ten thousand float64 operations per entry
ROUNDING = 1e-11
WORDS = ("a", "red", "circle", "blue", "square", "on", "the", "left", "bad")
PROMPT, NEGATIVE = "a red circle", "bad"
STEPS = 4
LEARNING = """
[lora]
rank = 2
[optimiser]
rate = 1e-2
[batch]
trajectories = 4
"""
"""How the tests' runs learn."""
TEMPLATE = f"""
[model]
path = "{{model}}"
dtype = "float64"
[sampler]
steps = 3
[reward]
name = "tests.support.sd:reddish"
[problem]
prompts = ["a red circle", "a blue square"]
beta = 0.1
[estimator]
name = "{{estimator}}"
{LEARNING}
micro_batch = 2
loss_steps = 2
passes = 2
ess = 0.0
[run]
steps = 5
ema = 0.5
out = "{{out}}"
checkpoint_every = 3
[monitor]
checker = "tests.support.sd:dark"
"""
SETTINGS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def scheduler(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler(**{**SETTINGS, **changes})


def tokenizer() -> CLIPTokenizer:
    letters = sorted({letter for word in WORDS for letter in word})
    tokens, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        {token: i for i, token in enumerate(tokens)},
        list(dict.fromkeys(merges)),
        model_max_length=12,
    )


def network(seed: int = 0, width: int = 8, **more: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **(sizes | more),
    )


@functools.cache
def surroundings() -> tuple[AutoencoderKL, CLIPTextModel, CLIPTokenizer]:
    torch.manual_seed(1)
    decoder: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "sample_size": 16,
        "mid_block_add_attention": False,
    }
    vae, words = AutoencoderKL(**decoder), tokenizer()
    text = text_encoder(32, 2, words)
    return vae.double(), text.double(), words


def stable_diffusion(
    unet: Any = None, dtype: torch.dtype = F64, settings: DDIMScheduler | None = None, **limits: Any
) -> StableDiffusion:
    """A random network; every call makes its own, the rest is shared."""
    chosen = network() if unet is None else unet
    if unet is None:
        nn.Module.to(chosen, dtype)
    vae, text, words = surroundings()
    return StableDiffusion(
        chosen,
        vae,
        SinglePromptEncoder(text, words),
        scheduler() if settings is None else settings,
        **limits,
    )


def extra_large() -> StableDiffusionXLPipeline:
    """A random XL, its two text encoders of different widths."""
    vae, first, words = copy.deepcopy(surroundings())
    torch.manual_seed(2)
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    ends: dict[str, Any] = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "projection_dim": 20,
    }
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=len(words), max_position_embeddings=12, **sizes, **ends)
    )
    told: dict[str, Any] = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "cross_attention_dim": 32 + 24,
    }
    unet = network(projection_class_embeddings_input_dim=6 * 8 + 20, **told)
    encoders: dict[str, Any] = {"text_encoder": first, "text_encoder_2": second.double()}
    parts: dict[str, Any] = {
        "unet": unet.double(),
        "vae": vae,
        "tokenizer": words,
        "tokenizer_2": words,
        "scheduler": scheduler(),
    }
    pipe = StableDiffusionXLPipeline(**parts, **encoders, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline(base: StableDiffusion, chain: StableDiffusionReference) -> StableDiffusionPipeline:
    assert isinstance(base.prompt_encoder, SinglePromptEncoder)
    parts: dict[str, Any] = {
        "text_encoder": base.prompt_encoder.encoder,
        "tokenizer": base.prompt_encoder.tokenizer,
    }
    parts |= {"vae": base.vae, "unet": base.unet}
    parts |= {
        "scheduler": chain.sampling.scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def exact_tables(chain: StableDiffusionReference) -> DDIMScheduler:
    """The chain's scheduler, computing its coefficients in float64 from the same levels."""
    theirs = chain.sampling.scheduler
    assert isinstance(theirs, DDIMScheduler)
    theirs.alphas_cumprod, theirs.final_alpha_cumprod = (
        theirs.alphas_cumprod.double(),
        theirs.final_alpha_cumprod.double(),
    )
    return theirs


def pipeline_latents(
    pipe: Any, chain: StableDiffusionReference, initial: Tensor, seed: int, **options: Any
) -> Tensor:
    found = pipe(
        [chain.prompt] * len(initial),
        negative_prompt=[chain.negative_prompt] * len(initial),
        num_inference_steps=chain.steps,
        guidance_scale=chain.guidance,
        eta=chain.eta,
        latents=initial.clone(),
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        **options,
    )
    return found.images


def drawn_by_pipeline(
    chain: StableDiffusionReference, batch: int, seed: int, dtype: torch.dtype = F64
) -> Noise:
    """The noise a pipeline draws step by step from a generator of this seed, with initial noise of
    its own.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = [
        torch.randn(batch, *chain.dims, generator=generator, dtype=dtype)
        for _ in range(chain.steps)
    ]
    return Noise(randn(seed + 1, batch, *chain.dims).to(dtype), torch.stack(steps))


def away(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def chain_problem(number: int, reward: Any = None) -> ControlProblem:
    reference = AffineReference(
        0.8 * torch.eye(2, dtype=F64) + 0.2 * randn(number, STEPS, 2, 2),
        ScalarDiffusion(torch.linspace(0.5, 0.8, STEPS)),
        0.3 * randn(10 + number, STEPS, 2),
    )
    return ControlProblem(
        reference, FunctionReward(reward or (lambda x: (2 * x).sin().sum(1))), 0.7
    )


def settings_with(prompts: int = 1, **tables: dict[str, Any]) -> config.ExperimentConfig:
    return config.parse_config(
        {
            "problem": {"prompts": [f"prompt {i}" for i in range(prompts)]},
            "sampler": {"steps": STEPS},
        }
        | {"run": {"steps": 4}}
        | tables
    )


def trainer_with(
    estimator: Estimator | None = None,
    prompts: int = 1,
    rewards: Sequence[Any] | None = None,
    **tables: dict[str, Any],
) -> TrainingLoop:
    """A trainer of one affine policy on the chains of some prompts."""
    policy = AffinePolicy(0.2 * randn(20, STEPS, 2, 2), 0.2 * randn(21, STEPS, 2))
    tasks = [
        PromptTask(str(i), chain_problem(i, rewards[i] if rewards else None), policy)
        for i in range(prompts)
    ]
    settings = settings_with(prompts, **tables)
    return TrainingLoop(
        tasks, estimator or AdjointMatching(), dict(policy.named_parameters()), settings, dtype=F64
    )


class Recorder(torch.optim.SGD):
    """Keeps the gradients it is given and moves nothing."""

    def __init__(self, parameters: Any):
        super().__init__(parameters, lr=1.0)
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> None:
        self.gradients.append(
            torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        )


def gradients_of(trainer: TrainingLoop) -> tuple[list[Tensor], list[StepMetrics]]:
    """The gradients at the policy the trainer starts with."""
    recorder = Recorder(trainer.parameters.values())
    trainer.optimiser = recorder  # type: ignore[assignment]
    measured = [step.metrics for step in trainer.iterations()]
    return recorder.gradients, measured


def noise_of(trainer: TrainingLoop, round_number: int, count: int) -> Noise:
    """The noise that the paths of a round must have."""
    reference = trainer.tasks[0].problem.reference
    parts = [
        Noise.sample(
            reference, 1, seeded_generator(trainer.settings.run.seed, "path", round_number, i), F64
        )
        for i in range(count)
    ]
    return Noise(torch.cat([p.initial for p in parts]), torch.cat([p.steps for p in parts], 1))


def reddish() -> Any:
    """A smooth score of images, for the tests' configurations; kills its process at the call the
    environment names.
    """
    calls = []

    def score(images: Tensor, prompt: str) -> Tensor:
        calls.append(prompt)
        if len(calls) == int(os.environ.get("SOCFT_TEST_KILL_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        return (images[:, 0] - images[:, 1].square()).mean((1, 2)) * 20

    return score


def dark(images: Tensor, prompt: str) -> Tensor:
    """A checker for the tests' configurations."""
    return (images.mean((1, 2, 3)) < 0.5).float()


def save_model(folder: Path) -> None:
    """Save a random pipeline."""
    base = stable_diffusion(dtype=torch.float32)
    parts = (base.vae, *base.prompt_encoder.encoders)
    for part in parts:
        part.float()
    pipeline(base, StableDiffusionReference(base, PROMPT, NEGATIVE, steps=STEPS)).save_pretrained(
        folder
    )
    for part in parts:
        part.double()


def written(model: Path, out: Path, estimator: str = "adjoint matching") -> Path:
    file = out.with_suffix(".toml")
    file.write_text(TEMPLATE.format(model=model, out=out, estimator=estimator))
    return file


def clip_config() -> CLIPConfig:
    """Of a CLIP that reads the tests' words, and pictures of 12 pixels."""
    words: Any = tokenizer()
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": len(words), "max_position_embeddings": 12}
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    vision = {"image_size": 12, "patch_size": 4}
    return CLIPConfig(
        text_config=sizes | text | ends, vision_config=sizes | vision, projection_dim=8
    )


def text_encoder(
    width: int, layers: int, words: Any, kind: Any = CLIPTextModel, **more: Any
) -> Any:
    """A random encoder of the tests' words."""
    sizes: dict[str, Any] = {
        "vocab_size": len(words),
        "max_position_embeddings": 12,
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    return kind(CLIPTextConfig(**(sizes | ends | more)))


def save_clip(folder: Path) -> CLIPModel:
    """Save a random CLIP."""
    words: Any = tokenizer()
    model = CLIPModel(clip_config())
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model
