"""What a checkpoint brings is honoured as by diffusers' own pipeline, or refused: chains, pictures
and prompts of small random pipelines, step by step, and every key of their configurations.
"""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig

from sd_experiments.config import SamplerConfig
from sd_experiments.model import keys
from sd_experiments.model.keys import Table, require_keys, signature
from sd_experiments.model.lora_io import load_lora
from sd_experiments.model.policy import LoRA
from sd_experiments.model.prompts import SinglePromptEncoder
from sd_experiments.model.reference import StableDiffusionReference
from sd_experiments.model.schedule import sampling_schedule
from sd_experiments.model.stable_diffusion import StableDiffusion
from sd_experiments.model.weights import load_pipeline
from sd_experiments.model.zero_signal import ZeroSignalReference
from sd_experiments.reward.rewards import decode
from sd_experiments.tensor_file import encode_tensors
from sd_experiments.training.build import build_reference
from socft.checks import InvalidProblem
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from tests.support.sd import (
    NEGATIVE,
    PROMPT,
    SETTINGS,
    away,
    drawn_by_pipeline,
    extra_large,
    network,
    scheduler,
    surroundings,
)
from tests.support.tensors import F64, randn

SINGLE, DOUBLE = 1e-5, 1e-10
"""Relative, of a chain in float32 and in float64."""
STEPS = 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")

# Tables


def class_of(name: str) -> Any:
    return getattr(diffusers, name)


TABLES: list[tuple[Any, Table]] = [
    *((class_of(name), keys.SCHEDULER) for name in keys.SCHEDULERS),
    (UNet2DConditionModel, keys.UNET),
    (AutoencoderKL, keys.VAE),
    (CLIPTextConfig, keys.TEXT_ENCODER),
    (LoraConfig, keys.LORA),
]


def unknown(kind: Any, table: Table) -> set[str]:
    return signature(kind).keys() - table.keys()


@pytest.mark.parametrize(("kind", "table"), TABLES, ids=lambda each: getattr(each, "__name__", ""))
def test_every_key_of_the_installed_classes_was_looked_at(kind: Any, table: Table):
    assert not unknown(kind, table)


def test_a_key_of_a_new_release_is_seen_and_refused_unless_it_has_its_default():
    class New(AutoencoderKL):
        def __init__(self, latent_channels: int = 4, curvature: float = 0.0):
            super().__init__(latent_channels=latent_channels)

    assert unknown(New, keys.VAE) == {"curvature"}
    require_keys({"curvature": 0.0}, New, keys.VAE, "the decoder")
    with pytest.raises(InvalidProblem, match=r"decoder says curvature = 0.5, .* leave it at 0.0"):
        require_keys({"curvature": 0.5}, New, keys.VAE, "the decoder")


def test_the_tables_cover_the_keys_that_there_are():
    """No key is in a table for nothing, but one that text encoders have outside of their class."""
    covered = 0
    for table in {id(table): table for _, table in TABLES}.values():
        known = {name for kind, other in TABLES if other is table for name in signature(kind)}
        assert table.keys() - known <= {"use_attention_mask", "noise_sampler_seed"}
        covered += len(table)
        for key in table.values():
            assert bool(key.harmless and key.remedy) == (key.verdict == "refused")
    assert covered >= 60


# Families


@functools.cache
def plain() -> StableDiffusionPipeline:
    vae, text, words = (copy.deepcopy(part) for part in surroundings())
    unet = network()
    nn.Module.double(unet)
    parts: dict[str, Any] = {"vae": vae, "unet": unet, "text_encoder": text, "tokenizer": words}
    parts |= {"scheduler": scheduler(), "safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def large() -> StableDiffusionXLPipeline:
    return extra_large()


def base_of(pipe: Any, **changes: Any) -> StableDiffusion:
    """The model of a pipeline with another scheduler, whose DDIM the pipeline gets too."""
    pipe.scheduler = scheduler(**changes)
    return StableDiffusion.from_pipeline(pipe)


def chain_of(base: StableDiffusion, negative: str, guidance: float, spacing: Any) -> Any:
    """As a configuration makes it."""
    sampler = SamplerConfig(
        steps=STEPS, guidance=guidance, negative_prompt=negative, spacing=spacing
    )
    return build_reference(base, sampler, PROMPT)


def exact(pipe: Any, chain: StableDiffusionReference) -> None:
    theirs: Any = chain.sampling.scheduler
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.double()
    pipe.scheduler = theirs


def states_of(
    pipe: Any, chain: StableDiffusionReference, dtype: torch.dtype, kind: str, **options: Any
) -> tuple[list[Tensor], Tensor, Noise]:
    """The states of a pipeline's steps, what it returns, and the noise that it drew."""
    noise = drawn_by_pipeline(chain, 1, seed=3, dtype=dtype)
    pipe.scheduler = chain.sampling.scheduler
    if dtype == F64:
        exact(pipe, chain)
    states: list[Tensor] = [noise.initial]

    def keep(_: Any, k: int, timestep: Any, found: dict[str, Any]) -> dict[str, Any]:
        states.append(found["latents"].clone())
        return {}

    drawn = pipe(
        chain.prompt,
        num_inference_steps=chain.steps,
        guidance_scale=chain.guidance,
        eta=chain.eta,
        latents=noise.initial.clone(),
        generator=torch.Generator().manual_seed(3),
        output_type=kind,
        callback_on_step_end=keep,
        **options,
    ).images
    return states, drawn, noise


def compared(
    pipe: Any, chain: StableDiffusionReference, dtype: torch.dtype, **options: Any
) -> tuple[float, float]:
    """How far the states of all steps and the pictures are from the pipeline's."""
    states, drawn, noise = states_of(pipe, chain, dtype, "pt", **options)
    with torch.no_grad():
        path = rollout(chain, Uncontrolled(chain), noise)
        pictures = decode(chain.base, path.final)
    return away(torch.stack(states), path.states), away(drawn, pictures)


def astray(pipe: Any, chain: StableDiffusionReference, **options: Any) -> float:
    """How far the states of all steps are from the pipeline's, in float64."""
    states, _, noise = states_of(pipe, chain, F64, "latent", **options)
    with torch.no_grad():
        return away(torch.stack(states), rollout(chain, Uncontrolled(chain), noise).states)


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "1.x": (plain, {}, "leading"),
    "2.x": (plain, {"prediction_type": "v_prediction"}, "trailing"),
    "zero SNR": (
        plain,
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        "leading",
    ),
    "zero SNR, from pure noise": (
        plain,
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        "trailing",
    ),
    "XL": (large, {}, "leading"),
    "XL, v": (large, {"prediction_type": "v_prediction"}, "trailing"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "negative", "guidance"),
    [
        (torch.float32, SINGLE, NEGATIVE, 3.0),
        (F64, DOUBLE, "", 1.0),
        (F64, DOUBLE, NEGATIVE, 3.0),
        (F64, DOUBLE, "", 3.0),
    ],
)
def test_chains_and_pictures_are_those_of_the_pipeline(
    family: str, dtype: torch.dtype, tolerance: float, negative: str, guidance: float
):
    make, changes, spacing = FAMILIES[family]
    pipe: Any = make()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if part is not None:
            nn.Module.to(part, dtype)
    base = base_of(pipe, **changes)
    chain = chain_of(base, negative, guidance, spacing)
    given = {"negative_prompt": negative or None}
    states, pictures = compared(pipe, chain, dtype, **given)
    assert states < tolerance
    assert pictures < tolerance


def test_from_pure_noise_a_control_is_the_difference_of_the_kernels():
    base = base_of(plain(), prediction_type="v_prediction", rescale_betas_zero_snr=True)
    chain = chain_of(base, "", 1.0, "trailing")
    assert float(chain.sampling.abar[0]) == 0
    x, change = randn(1, 2, *chain.dims), randn(2, 2, *chain.dims)
    with torch.no_grad():
        for k in range(STEPS):
            other = chain.output(k, x) + change
            shift = chain.chain_of(lambda k, x, other=other: other).mean(k, x) - chain.mean(k, x)
            whitened = chain.diffusion.whiten(k, x, shift)
            assert away(chain.control_of(k, x, other), whitened) < DOUBLE


def test_noise_says_nothing_where_there_is_no_signal():
    base = base_of(plain(), rescale_betas_zero_snr=True)
    with pytest.raises(InvalidProblem, match=r"abar\[0\] = 0 with 'trailing' spacing"):
        chain_of(base, "", 1.0, "trailing")
    with pytest.raises(InvalidProblem, match="prediction_type = 'epsilon', which says nothing"):
        ZeroSignalReference(base, PROMPT, spacing="trailing", steps=STEPS)


# Schedulers


INSTALLED = [name for name in keys.SCHEDULERS if signature(class_of(name))]
"""Without those that need a package that is not installed."""
LEVELS: dict[str, Any] = {name: SETTINGS[name] for name in ("beta_start", "beta_end")} | {
    "beta_schedule": "scaled_linear"
}


@pytest.mark.parametrize("name", INSTALLED)
def test_levels_are_those_of_the_scheduler_whatever_its_class(name: str):
    """Defaults differ: those of Heun's scheduler are not those of DDIM's."""
    theirs: Any = class_of(name)()
    base = StableDiffusion(*parts_of(plain()), theirs)
    for spacing in ("leading", "trailing", "log_snr"):
        last: dict[str, Any] = {} if spacing == "log_snr" else {"last_level": 0.99999}
        chain = StableDiffusionReference(base, PROMPT, steps=5, spacing=spacing, **last)
        expected = theirs.alphas_cumprod[chain.sampling.timesteps].double()
        assert torch.equal(chain.schedule.abar[:-1], expected)


def parts_of(pipe: Any) -> tuple[Any, Any, Any]:
    return pipe.unet, pipe.vae, SinglePromptEncoder(pipe.text_encoder, pipe.tokenizer)


HONOURED: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"num_train_timesteps": 500}),
    ("DDIMScheduler", {"beta_start": 0.001}),
    ("DDIMScheduler", {"beta_end": 0.02}),
    ("DDIMScheduler", {"beta_schedule": "linear"}),
    ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    ("DDIMScheduler", {"trained_betas": torch.linspace(1e-3, 2e-2, 1000).tolist()}),
    ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ("DDIMScheduler", {"steps_offset": 7}),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
    ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    ("HeunDiscreteScheduler", {"beta_schedule": "exp"}),
]


@pytest.mark.parametrize(("name", "change"), HONOURED, ids=lambda each: str(each)[:40])
def test_an_honoured_key_of_a_scheduler_changes_the_chain_as_in_the_pipeline(
    name: str, change: dict[str, Any]
):
    pipe: Any = plain()
    kind = class_of(name)
    known = {key: value for key, value in SETTINGS.items() if key in signature(kind)}
    theirs = kind(**{**known, "timestep_spacing": "leading", **change})
    base = StableDiffusion(*parts_of(pipe), theirs)
    last: dict[str, Any] = {} if "set_alpha_to_one" in known else {"last_level": 0.99999}
    chain = StableDiffusionReference(base, PROMPT, NEGATIVE, 2.0, STEPS, **last)
    assert torch.equal(
        chain.schedule.abar[:-1], theirs.alphas_cumprod[chain.sampling.timesteps].double()
    )
    theirs.set_timesteps(STEPS)
    if name != "HeunDiscreteScheduler":  # of second order: twice at most timesteps
        assert theirs.timesteps.tolist() == chain.sampling.timesteps.tolist()
    assert astray(pipe, chain, negative_prompt=NEGATIVE) < DOUBLE
    usual = sampling_schedule(scheduler(timestep_spacing="leading").config, STEPS)
    differs = not torch.equal(usual.abar, chain.schedule.abar)
    assert differs or change == {"prediction_type": "v_prediction"}


def test_the_sigma_that_a_scheduler_ends_with_is_that_of_the_chain():
    for kind, wanted in (("sigma_min", 0.99915), ("zero", 1.0)):
        theirs = class_of("EulerDiscreteScheduler")(**LEVELS, final_sigmas_type=kind)
        base = StableDiffusion(*parts_of(plain()), theirs)
        if wanted == 1:
            with pytest.raises(InvalidProblem, match="to 1, where its sigma is 0"):
                StableDiffusionReference(base, PROMPT, steps=4, spacing="trailing")
            continue
        chain = StableDiffusionReference(base, PROMPT, steps=4, spacing="trailing")
        assert float(chain.schedule.abar[-1]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("use_lu_lambdas", True),
        ("lambda_min_clipped", -5.1),
    ],
)
def test_levels_between_the_trained_ones_need_a_spacing(name: str, value: Any):
    theirs = class_of("DPMSolverMultistepScheduler")(**LEVELS, **{name: value})
    base = StableDiffusion(*parts_of(plain()), theirs)
    with pytest.raises(
        InvalidProblem, match=rf"scheduler says {name} = {value}, .* give sampler.spacing"
    ):
        StableDiffusionReference(base, PROMPT, steps=4)
    chain = StableDiffusionReference(base, PROMPT, steps=4, spacing="log_snr")
    usual = sampling_schedule(scheduler().config, 4, "log_snr")
    assert torch.equal(chain.schedule.abar, usual.abar)
    direct = sampling_schedule(theirs.config, 4, "log_snr")
    assert direct.scheduler.timesteps.tolist() == usual.timesteps.tolist()


REFUSED_SCHEDULERS: list[tuple[str, dict[str, Any], str]] = [
    ("EDMEulerScheduler", {}, "EDMEulerScheduler does not say at which of the trained levels"),
    ("EDMDPMSolverMultistepScheduler", {}, "does not say at which of the trained levels"),
    ("FlowMatchEulerDiscreteScheduler", {}, "does not say at which of the trained levels"),
    ("DDIMInverseScheduler", {}, "DDIMInverseScheduler does not say"),
    ("LCMScheduler", {}, "LCMScheduler samples from a network that was distilled"),
    ("TCDScheduler", {}, "distilled .* give the checkpoint that it was distilled from"),
    ("DDIMScheduler", {"thresholding": True}, "thresholding = True: .* set it to false"),
    ("DDIMScheduler", {"prediction_type": "sample"}, "prediction_type = 'sample'; give a network"),
    ("DDPMScheduler", {"variance_type": "learned_range"}, "'learned_range': give a network that"),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "'continuous': its network is not"),
    (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        "use_flow_sigmas = True: the levels of a flow",
    ),
    ("DEISMultistepScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting = True"),
    (
        "UniPCMultistepScheduler",
        {"shift_terminal": 0.1, "use_flow_sigmas": True},
        "use_flow_sigmas = True: the levels of a flow",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED_SCHEDULERS)
def test_schedulers_that_say_something_else_are_refused(
    name: str, change: dict[str, Any], message: str
):
    with pytest.raises(InvalidProblem, match=message):
        StableDiffusion(*parts_of(plain()), class_of(name)(**change))


def test_an_xl_pipeline_clips_where_the_others_do_not():
    pipe: Any = large()
    with pytest.raises(InvalidProblem, match="clip_sample = True, which this pipeline obeys"):
        base_of(pipe, clip_sample=True)
    base_of(plain(), clip_sample=True)


def test_every_refused_key_of_a_scheduler_was_tried():
    tried = {name for _, change, _ in REFUSED_SCHEDULERS for name in change}
    assert {name for name, key in keys.SCHEDULER.items() if key.verdict == "refused"} <= tried
    honoured = {name for _, change in HONOURED for name in change} | keys.GRID.keys()
    assert {name for name, key in keys.SCHEDULER.items() if key.verdict == "honoured"} <= (
        honoured | {"set_alpha_to_one", "final_sigmas_type", "clip_sample"}
    )


IMMATERIAL: list[tuple[str, dict[str, Any]]] = [
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"lower_order_final": False, "euler_at_final": True}),
    ("UniPCMultistepScheduler", {"predict_x0": False, "solver_type": "bh1"}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
    ("DDIMScheduler", {"clip_sample_range": 3.0, "sample_max_value": 2.0}),
]


@pytest.mark.parametrize(("name", "change"), IMMATERIAL, ids=lambda each: str(each)[:40])
def test_how_another_solver_steps_does_not_matter(name: str, change: dict[str, Any]):
    kind, chains = class_of(name), []
    for more in ({}, change):
        base = StableDiffusion(*parts_of(plain()), kind(**LEVELS, **more))
        chains.append(
            StableDiffusionReference(
                base, PROMPT, steps=4, spacing="trailing", last_level=0.9999
            ).sampling
        )
    assert torch.equal(chains[0].abar, chains[1].abar)
    assert torch.equal(chains[0].timesteps, chains[1].timesteps)


# Networks


SIZES: list[dict[str, Any]] = [
    {"sample_size": 4},
    {"center_input_sample": True},
    {"flip_sin_to_cos": False},
    {"freq_shift": 1},
    {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
    {"mid_block_type": "UNetMidBlock2D"},
    {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
    {"only_cross_attention": True},
    {"block_out_channels": (16, 8)},
    {"layers_per_block": 2},
    {"downsample_padding": 0},
    {"mid_block_scale_factor": 2},
    {"act_fn": "gelu"},
    {"norm_num_groups": 4},
    {"norm_eps": 1e-3},
    {"encoder_hid_dim": 32, "cross_attention_dim": 24},
    {"transformer_layers_per_block": 2},
    {"attention_head_dim": 8},
    {"use_linear_projection": True},
    {"upcast_attention": True},
    {"resnet_time_scale_shift": "scale_shift"},
    {"resnet_out_scale_factor": 2.0},
    {"time_embedding_type": "fourier", "time_embedding_dim": 32},
    {"time_embedding_act_fn": "silu"},
    {"timestep_post_act": "silu"},
    {"conv_in_kernel": 1},
    {"conv_out_kernel": 1},
    {"attention_type": "gated"},
    {"mid_block_only_cross_attention": True},
    {"cross_attention_norm": "layer_norm"},
]


@pytest.mark.parametrize("change", SIZES, ids=lambda each: next(iter(each)))
def test_sizes_of_a_network_are_honoured(change: dict[str, Any]):
    """One step of a random network of every kind."""
    pipe: Any = plain()
    kept = pipe.unet
    torch.manual_seed(4)
    usual: dict[str, Any] = {name: kept.config[name] for name in signature(UNet2DConditionModel)}
    usual["block_out_channels"] = (8, 16)
    pipe.unet = UNet2DConditionModel(**{**usual, **change}).double()
    try:
        base = base_of(pipe)
        chain = StableDiffusionReference(base, PROMPT, "", 1.0, 1, spacing="leading")
        assert astray(pipe, chain) < DOUBLE
    finally:
        pipe.unet = kept


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_embed_type": "timestep"}, "says class_embed_type = 'timestep': the network is"),
        ({"num_class_embeds": 3}, "says num_class_embeds = 3: the network is told"),
        ({"time_cond_proj_dim": 8}, "says time_cond_proj_dim = 8: the network is told"),
        (
            {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 32},
            "says encoder_hid_dim_type = 'image_proj'",
        ),
        ({"addition_embed_type": "text"}, "needs as addition_embed_type"),
        ({"in_channels": 9}, "maps 9 channels to 4"),
        ({"sample_size": None}, "does not say its sample_size"),
    ],
)
def test_networks_that_are_told_more_are_refused(change: dict[str, Any], message: str):
    pipe: Any = plain()
    config: dict[str, Any] = {
        name: pipe.unet.config[name] for name in signature(UNet2DConditionModel)
    }
    with pytest.raises(InvalidProblem, match=message):
        StableDiffusion(
            UNet2DConditionModel(**{**config, **change}), *parts_of(pipe)[1:], scheduler()
        )


def test_the_refiner_of_an_xl_is_refused():
    pipe: Any = copy.copy(large())
    config = {name: pipe.unet.config[name] for name in signature(UNet2DConditionModel)}
    five: dict[str, Any] = config | {"projection_class_embeddings_input_dim": 5 * 8 + 20}
    pipe.unet = UNet2DConditionModel(**five).double()
    with pytest.raises(InvalidProblem, match=r"told 60 numbers besides the text .* say 68, 20 of"):
        base_of(pipe)


def test_a_network_with_adapters_is_refused_until_they_are_merged():
    pipe: Any = copy.copy(plain())
    pipe.unet = copy.deepcopy(pipe.unet)
    before = {name: p.clone() for name, p in pipe.unet.state_dict().items()}
    pipe.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style"
    )
    with pytest.raises(
        InvalidProblem, match=r"carries the adapters style; merge .*fuse_lora.*unload_lora_weights"
    ):
        base_of(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    base = base_of(pipe)
    moved = [name for name, p in base.unet.state_dict().items() if not torch.equal(p, before[name])]
    assert moved
    assert all("to_q" in name for name in moved)
    assert LoRA(base, 2).weights


# Decoders


@pytest.mark.parametrize("make", [plain, large])
@pytest.mark.parametrize(
    "change",
    [
        {"scaling_factor": 0.5},
        {"shift_factor": 0.3},
        {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [2.0, 0.5, 1.5, 1.0]},
        {"latents_mean": [0.1, -0.2, 0.3, 0.4]},
    ],
    ids=["scale", "shift", "statistics", "mean"],
)
def test_pictures_are_decoded_as_by_the_pipeline(make: Callable[[], Any], change: dict[str, Any]):
    pipe: Any = make()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if part is not None:
            nn.Module.to(part, F64)
    kept = pipe.vae
    pipe.vae = copy.deepcopy(kept)
    try:
        pipe.vae.register_to_config(**change)
        chain = StableDiffusionReference(base_of(pipe), PROMPT, "", 1.0, 1, spacing="leading")
        assert compared(pipe, chain, F64)[1] < DOUBLE
    finally:
        pipe.vae = kept


def test_a_decoder_that_overflows_in_half_precision_is_upcast_as_by_the_pipeline():
    pipe: Any = copy.copy(large())
    pipe.vae = copy.deepcopy(pipe.vae).half()
    weights = [p.clone() for p in pipe.vae.parameters()]
    base = base_of(pipe)
    assert {p.dtype for p in base.vae.parameters()} == {torch.float32}
    assert all(torch.equal(p, q) for p, q in zip(base.vae.parameters(), weights, strict=True))
    pipe.vae = copy.deepcopy(pipe.vae).half()
    pipe.vae.register_to_config(force_upcast=False)
    assert {p.dtype for p in base_of(pipe).vae.parameters()} == {torch.float16}


def test_a_decoder_of_other_pictures_is_refused():
    _, text, words = surroundings()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, out_channels=6)
    with pytest.raises(InvalidProblem, match="decoder says out_channels = 6: give a decoder of"):
        StableDiffusion(network(), vae, SinglePromptEncoder(text, words), scheduler())


# Prompts


@pytest.mark.parametrize("prompt", [PROMPT, "", "a blue square on the left"])
def test_prompts_are_told_as_by_the_pipelines(prompt: str):
    simple: Any = plain()
    theirs = simple.encode_prompt(prompt, "cpu", 1, True, NEGATIVE)
    base = base_of(simple)
    assert torch.equal(base.encode(prompt, (8, 8)).text, theirs[0])
    assert torch.equal(base.encode(NEGATIVE, (8, 8), negative=True).text, theirs[1])
    both: Any = large()
    base = base_of(both)
    for negative in (None, NEGATIVE):
        found = both.encode_prompt(prompt, negative_prompt=negative, device="cpu")
        ours = [base.encode(prompt, (8, 8)), base.encode(negative or "", (8, 8), negative=True)]
        told = [each.text for each in ours] + [each.added["text_embeds"] for each in ours]
        assert all(torch.equal(a, b) for a, b in zip(told, found, strict=True))


def test_no_negative_prompt_is_told_as_the_pipeline_is_configured():
    pipe: Any = copy.copy(large())
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    told = base_of(pipe).encode("", (8, 8), negative=True)
    found = pipe.encode_prompt(PROMPT, device="cpu")
    assert torch.equal(told.text, found[1])
    assert torch.equal(told.added["text_embeds"], found[3])
    assert float(told.text.abs().max()) > 0


def test_a_learnt_word_stands_for_all_of_its_tokens():
    pipe: Any = copy.copy(plain())
    pipe.text_encoder, pipe.tokenizer = copy.deepcopy((pipe.text_encoder, pipe.tokenizer))
    pipe.load_textual_inversion({"<style>": randn(7, 2, 32)}, token="<style>")
    found = pipe.encode_prompt("a red <style>", "cpu", 1, False)[0]
    base = base_of(pipe)
    assert torch.equal(base.encode("a red <style>", (8, 8)).text, found)
    assert not torch.equal(base.encode("a red", (8, 8)).text, found)


# Files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An XL, saved once."""
    folder = tmp_path_factory.mktemp("saved") / "xl"
    extra_large().to(torch.float32).save_pretrained(folder)
    return folder


def weights_of(pipe: Any) -> dict[str, Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {
        f"{name}.{key}": p for name, part in parts.items() for key, p in part.state_dict().items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "fp16"},
        {"safe_serialization": False},
        {"safe_serialization": False, "variant": "fp16"},
        {"max_shard_size": "100KB"},
        {"max_shard_size": "100KB", "variant": "fp16"},
        {"variant": "ema"},
    ],
    ids=str,
)
def test_whatever_variant_there_is_is_read(tmp_path: Path, options: dict[str, Any]):
    pipe = plain()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        nn.Module.float(part)
    pipe.save_pretrained(tmp_path, **options)
    found, expected = weights_of(load_pipeline(tmp_path)), weights_of(pipe)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], p) for name, p in expected.items())


def test_the_plain_weights_come_before_variants_and_variants_must_be_told_apart(
    model: Path, tmp_path: Path
):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"damaged")
    load_pipeline(folder)
    file.rename(folder / "unet/diffusion_pytorch_model.ema.safetensors")
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").rename(
        folder / "unet/diffusion_pytorch_model.raw.safetensors"
    )
    with pytest.raises(InvalidProblem, match="as ema and raw, which may differ; leave the files"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLControlNetPipeline", "Other"]
)
def test_a_whole_xl_is_read_whatever_it_was_saved_as(saved: Path, tmp_path: Path, name: str):
    folder = index_with(saved, tmp_path / "model", {"_class_name": name})
    found, expected = weights_of(load_pipeline(folder)), weights_of(extra_large().to(torch.float32))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], p) for key, p in expected.items())


def index_with(saved: Path, folder: Path, changes: Mapping[str, Any]) -> Path:
    """A copy of a saved pipeline with other words in its index."""
    shutil.copytree(saved, folder)
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(changes)))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "has a AutoencoderTiny as its vae; only"),
        ({"text_encoder": [None, None]}, "has no text_encoder; give a whole pipeline"),
        ({"unet": ["diffusers", "UNetMotionModel"]}, "has a UNetMotionModel as its unet"),
        ({"tokenizer": ["transformers", "BertTokenizer"]}, "has a BertTokenizer as its tokenizer"),
        (
            {"scheduler": ["diffusers", "DDIMSchedular"]},
            "there is no scheduler 'DDIMSchedular'; .* DDIMScheduler",
        ),
        (
            {"scheduler": ["diffusers", "ConsistencyDecoderScheduler"]},
            "there is no scheduler 'ConsistencyDecoderScheduler'",
        ),
        (
            {"scheduler": ["its_module", "DDIMScheduler"]},
            "takes its scheduler from its_module, whose code is not run; give a pipeline of parts",
        ),
        (
            {"unet": ["its_module", "UNet2DConditionModel"]},
            "takes its unet from its_module, whose code is not run",
        ),
    ],
)
def test_parts_of_other_classes_are_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], message: str
):
    with pytest.raises(InvalidProblem, match=message):
        load_pipeline(index_with(saved, tmp_path / "model", change))


def test_a_scheduler_whose_package_is_missing_says_to_install_it(saved: Path, tmp_path: Path):
    index = {"scheduler": ["diffusers", "DPMSolverSDEScheduler"]}
    if signature(class_of("DPMSolverSDEScheduler")):
        pytest.skip("torchsde is here")
    with pytest.raises(InvalidProblem, match=r"requires the torchsde .*; install what it asks for"):
        load_pipeline(index_with(saved, tmp_path / "model", index))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "steep"},
            "steep is not implemented .*; correct its configuration files, or copy it again",
        ),
        (
            "vae/config.json",
            {"scaling_factor": None},
            "scaling_factor = None; write a number above",
        ),
        (
            "vae/config.json",
            {"scaling_factor": 0.0},
            "scaling_factor = 0.0; write a number above 0",
        ),
        ("vae/config.json", {"scaling_factor": "big"}, "scaling_factor = 'big'; write a number"),
        ("vae/config.json", {"shift_factor": "far"}, "shift_factor = 'far'; write a number into"),
        ("vae/config.json", {"latents_mean": [0.0]}, "latents_mean = .*; write 4 numbers, one for"),
        (
            "vae/config.json",
            {"latents_std": [1.0, 1.0, 0.0, 1.0]},
            "latents_std = .*; write 4 numbers, one for every channel above 0",
        ),
    ],
    ids=lambda each: str(each)[:30],
)
def test_values_that_no_pipeline_can_use_are_refused_before_a_picture_is_drawn(
    saved: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    said = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(said | changes))
    with pytest.raises(InvalidProblem, match=message):
        StableDiffusion.load(folder)


def test_a_spacing_that_no_scheduler_knows_is_told():
    base = base_of(plain(), timestep_spacing="wide")
    message = r"setting the levels of its scheduler_config.json fails: .*wide"
    with pytest.raises(InvalidProblem, match=message):
        StableDiffusionReference(base, PROMPT, steps=4)


def test_a_checkpoint_in_one_file_is_told_how_to_become_a_folder(tmp_path: Path):
    file = tmp_path / "v1-5-pruned.safetensors"
    file.write_bytes(b"weights")
    with pytest.raises(InvalidProblem, match=r"is a file; .*from_single_file\(FILE\)"):
        load_pipeline(file)


# Low-rank layers of others


OTHERS: dict[str, str] = {
    "diffusers, without its settings": "unet.down.to_q.lora_A.weight",
    "diffusers, as it was": "unet.down.processor.to_q_lora.down.weight",
    "kohya": "lora_unet_down_blocks_0_to_q.lora_down.weight",
    "peft": "base_model.model.down.to_q.lora_A.weight",
    "DoRA": "unet.down.to_q.lora_magnitude_vector",
    "LoHa": "lora_unet_down.hada_w1_a",
    "LoKr": "lycoris_down.lokr_w1",
    "text encoder": "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
    "convolution": "unet.down.conv1.lora_A.weight",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_others_are_told_how_their_layers_get_into_a_pipeline(tmp_path: Path, kind: str):
    save_file({OTHERS[kind]: torch.ones(2, 2)}, tmp_path / LORA_WEIGHT_NAME_SAFE)
    with pytest.raises(
        InvalidProblem, match=r"merged into a pipeline .*: load_lora_weights, fuse_"
    ):
        load_lora(base_of(plain()), tmp_path)


def test_layers_of_a_text_encoder_act_as_in_the_pipeline():
    pipe: Any = copy.copy(plain())
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    usual = base_of(pipe).encode(PROMPT, (8, 8)).text.clone()
    layers = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    pipe.text_encoder.add_adapter(layers)
    told = base_of(pipe).encode(PROMPT, (8, 8)).text
    assert torch.equal(told, pipe.encode_prompt(PROMPT, "cpu", 1, False)[0])
    assert not torch.equal(told, usual)


def layers_as_saved(folder: Path, network: nn.Module, config: LoraConfig) -> None:
    """What `save_lora` would write of layers that were made with any configuration of peft."""
    settings = {
        f"unet.{name}": sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
    }
    tensors = {
        f"unet.{name}": p
        for name, p in get_peft_model_state_dict(network, adapter_name="theirs").items()
    }
    header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings)}
    (folder / LORA_WEIGHT_NAME_SAFE).write_bytes(encode_tensors(tensors, header))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"to_q": 3}},
        {"alpha_pattern": {"to_q": 9.0}},
        {"target_modules": r".*attn1\.to_[qv]"},
        {"exclude_modules": r".*attn2\..*"},
        {"lora_alpha": 5},
    ],
    ids=lambda each: next(iter(each), "plain"),
)
def test_low_rank_layers_act_at_the_scale_they_were_saved_with(
    tmp_path: Path, options: dict[str, Any]
):
    given: dict[str, Any] = {"r": 4, "lora_alpha": 2, "target_modules": ["to_q", "to_k"]}
    config = LoraConfig(**{**given, "init_lora_weights": False, **options})
    theirs = copy.deepcopy(plain().unet).double()
    ours = copy.deepcopy(theirs)
    theirs.add_adapter(config, "theirs")
    layers_as_saved(tmp_path, theirs, config)
    pipe: Any = copy.copy(plain())
    pipe.unet = ours
    base = base_of(pipe)
    lora = load_lora(base, tmp_path)
    chain = StableDiffusionReference(base, PROMPT, steps=4, spacing="leading")
    x = randn(9, 1, *chain.dims)
    timestep = chain.sampling.timesteps[1].expand(1)
    with torch.no_grad():
        found = base.denoiser(timestep, x, chain.condition, adapted=True)
        expected = theirs(x, timestep, chain.condition.prompt.text.double()).sample
        assert away(found, expected) < DOUBLE
        assert away(base.denoiser(timestep, x, chain.condition), expected) > 1e-3
    assert all(float(p.detach().abs().max()) > 0 for p in lora.weights.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["conv_in"]),
        ("layer_replication", [[0, 2]]),
        ("layers_to_transform", [0]),
        ("fan_in_fan_out", True),
        ("target_parameters", ["weight"]),
    ],
)
def test_adapters_that_are_more_than_low_rank_layers_are_refused(
    tmp_path: Path, name: str, value: Any
):
    config = LoraConfig(r=2, target_modules=["to_q"])
    theirs = copy.deepcopy(plain().unet)
    theirs.add_adapter(config, "theirs")
    setattr(config, name, value)
    layers_as_saved(tmp_path, theirs, config)
    with pytest.raises(InvalidProblem, match=rf"header of .* says {name} = .*: .*train plain|save"):
        load_lora(base_of(plain()), tmp_path)


def test_every_target_must_match_and_the_nearest_are_named():
    pipe: Any = copy.copy(plain())
    pipe.unet = copy.deepcopy(pipe.unet)
    base = base_of(pipe)
    with pytest.raises(
        InvalidProblem,
        match=r"targets = \['k', 'v'\] match no layer of the network; did you mean to_k\?",
    ):
        LoRA(base, 2, targets=["to_q", "k", "v"])
    assert LoRA(base, 2, targets=["to_q"]).weights


class _Runs:
    """Unpickled, it runs something."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("ran",))


def test_of_the_older_format_only_tensors_are_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": _Runs()}, folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(InvalidProblem, match=r"diffusion_pytorch_model\.bin with its config"):
        load_pipeline(folder)
    assert "ran" not in capsys.readouterr().out


def test_quantised_weights_are_refused(model: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    file = folder / "unet/config.json"
    said = json.loads(file.read_text()) | {"quantization_config": {"quant_method": "bitsandbytes"}}
    file.write_text(json.dumps(said))
    with pytest.raises(InvalidProblem, match=r"weights in .*unet are quantised, .* give the"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"unet": [None, None], "transformer": ["diffusers", "AuraFlowTransformer2DModel"]},
            "with the network AuraFlowTransformer2DModel; give a Stable Diffusion 1.x, 2.x, XL, 3",
        ),
        ({"unet": [None, None]}, "with the network None; give a Stable Diffusion"),
    ],
)
def test_other_families_are_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], message: str
):
    with pytest.raises(InvalidProblem, match=message):
        load_pipeline(index_with(saved, tmp_path / "model", change))


def test_pipelines_that_lack_a_part_are_refused():
    pipe: Any = copy.copy(large())
    pipe.text_encoder = None
    with pytest.raises(InvalidProblem, match="has no text_encoder; give one from text to image"):
        StableDiffusion.from_pipeline(pipe)
    pipe = copy.copy(plain())
    pipe.unet = None
    with pytest.raises(InvalidProblem, match="a StableDiffusionPipeline has no unet; give a"):
        StableDiffusion.from_pipeline(pipe)


def test_what_a_pipeline_has_done_to_its_network_is_seen():
    """An image adapter writes beside the configuration's mapping; fused projections leave layers on
    each of them without effect.
    """
    pipe: Any = copy.copy(plain())
    pipe.unet = copy.deepcopy(pipe.unet)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(InvalidProblem, match=r"fused projections, .*unfuse_qkv_projections\(\)"):
        base_of(pipe)
    pipe.unet.unfuse_qkv_projections()
    pipe.unet.config.encoder_hid_dim_type = "ip_image_proj"
    with pytest.raises(InvalidProblem, match="encoder_hid_dim_type = 'ip_image_proj': the net"):
        base_of(pipe)
