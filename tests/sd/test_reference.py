"""Stable Diffusion as a reference: diffusers' own sampler, exact Gaussian networks, limits on
memory, refusals.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from sd_experiments.model.lora_io import save_lora
from sd_experiments.model.policy import LoRA, LoRAPolicy
from sd_experiments.model.prompts import SinglePromptEncoder
from sd_experiments.model.reference import StableDiffusionReference
from sd_experiments.model.schedule import sampling_schedule
from sd_experiments.model.stable_diffusion import StableDiffusion
from socft.checks import InvalidProblem
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from tests.support.sd import (
    NEGATIVE,
    PROMPT,
    ROUNDING,
    away,
    drawn_by_pipeline,
    exact_tables,
    extra_large,
    pipeline,
    pipeline_latents,
    scheduler,
    stable_diffusion,
    surroundings,
)
from tests.support.tensors import F64, randn
from toy.measure import MemoryMeter

TABLE = (
    1e-5  # relative: diffusers computes its coefficients in float32, from the same float32 levels
)
SINGLE = 1e-4  # relative: the network in float32
HALF = 0.1  # relative: the network in bfloat16, 8 bits


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("spacing", "guidance", "eta", "steps"),
    [("trailing", 1.0, 1.0, 5), ("leading", 3.0, 1.0, 6), ("trailing", 3.0, 0.4, 4)],
)
def test_the_uncontrolled_rollout_is_diffusers_sampler(
    prediction: str, spacing: str, guidance: float, eta: float, steps: int
):
    base = stable_diffusion(settings=scheduler(prediction_type=prediction))
    chain = StableDiffusionReference(base, PROMPT, NEGATIVE, guidance, steps, eta, spacing)
    noise = drawn_by_pipeline(chain, 2, seed=3)
    with torch.no_grad():
        ours = rollout(chain, Uncontrolled(chain), noise).final
        pipe = pipeline(base, chain)
        assert away(pipeline_latents(pipe, chain, noise.initial, 3), ours) < TABLE
        exact_tables(chain)
        assert away(pipeline_latents(pipe, chain, noise.initial, 3), ours) < ROUNDING
        other = StableDiffusionReference(
            base, "a blue square", NEGATIVE, guidance, steps, eta, spacing
        )
        assert away(rollout(other, Uncontrolled(other), noise).final, ours) > TABLE


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 5), (3.0, 10)])
def test_a_rollout_with_even_levels_is_diffusers_first_order_sde_solver(
    prediction: str, guidance: float, steps: int
):
    base = stable_diffusion(settings=scheduler(prediction_type=prediction))
    chain = StableDiffusionReference(base, PROMPT, NEGATIVE, guidance, steps, spacing="log_snr")
    noise = drawn_by_pipeline(chain, 2, seed=3, dtype=torch.float32)
    noise = Noise(noise.initial.double(), noise.steps.double())
    pipe = pipeline(base, chain)
    with torch.no_grad():
        ours = rollout(chain, Uncontrolled(chain), noise).final
        found = pipeline_latents(
            pipe, chain, noise.initial, 3, timesteps=chain.sampling.timesteps.tolist()
        )
        assert away(found, ours) < TABLE
        even = StableDiffusionReference(base, PROMPT, NEGATIVE, guidance, steps, spacing="trailing")
        assert away(rollout(even, Uncontrolled(even), noise).final, ours) > 10 * TABLE


def test_an_adjusted_last_level_reaches_the_pipeline_too():
    base = stable_diffusion(settings=scheduler(set_alpha_to_one=True))
    chain = StableDiffusionReference(base, PROMPT, steps=4, spacing="trailing", last_level=0.97)
    noise = drawn_by_pipeline(chain, 1, seed=4)
    with torch.no_grad():
        ours = rollout(chain, Uncontrolled(chain), noise).final
        assert away(pipeline_latents(pipeline(base, chain), chain, noise.initial, 4), ours) < TABLE
    assert chain.schedule.abar[-1] == 0.97


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, SINGLE), (torch.bfloat16, HALF)])
def test_the_network_keeps_its_dtype_and_the_algebra_the_states(
    dtype: torch.dtype, tolerance: float
):
    exact, coarse = (
        StableDiffusionReference(stable_diffusion(dtype=d), PROMPT, guidance=2.0, steps=5)
        for d in (F64, dtype)
    )
    x = randn(5, 3, *exact.dims)
    with torch.no_grad():
        found, expected = coarse.score(2, x), exact.score(2, x)
        assert found.dtype == F64
        assert 1e-9 < away(found, expected) < tolerance
        assert coarse.mean(2, x.float()).dtype == torch.float32


def test_steps_may_differ_by_sample():
    chain = StableDiffusionReference(stable_diffusion(), PROMPT, guidance=2.0, steps=5)
    x, k = randn(6, 4, *chain.dims), torch.tensor([3, 0, 4, 3])
    with torch.no_grad():
        rows = torch.cat([chain.mean(int(k[i]), x[i : i + 1]) for i in range(4)])
        assert away(chain.mean(k, x), rows) < ROUNDING


def test_prompts_share_one_network():
    base = stable_diffusion()
    first, second = (
        StableDiffusionReference(base, prompt, steps=5) for prompt in (PROMPT, "a blue square")
    )
    assert first.base.unet is second.base.unet
    pipe: Any = pipeline(base, first)
    for chain in (first, second):
        encoded = pipe.encode_prompt(chain.prompt, "cpu", 1, False)[0]
        assert torch.equal(chain.condition.prompt.text, encoded)
    assert not torch.equal(first.condition.prompt.text, second.condition.prompt.text)
    assert all(not p.requires_grad for p in base.unet.parameters())


def test_a_saved_pipeline_loads(tmp_path: Path):
    base = stable_diffusion()
    chain = StableDiffusionReference(base, PROMPT, steps=5)
    pipeline(base, chain).save_pretrained(tmp_path)
    loaded = StableDiffusion.load(tmp_path, dtype=F64, micro_batch=1)
    again, x = StableDiffusionReference(loaded, PROMPT, steps=5), randn(7, 2, *chain.dims)
    with torch.no_grad():
        assert away(again.mean(1, x), chain.mean(1, x)) < ROUNDING
    with pytest.raises(
        InvalidProblem,
        match=r"no model_index\.json; give the directory of a saved diffusers pipeline",
    ):
        StableDiffusion.load(tmp_path / "unet")


# XL


@pytest.mark.parametrize(("negative", "guidance"), [("", 1.0), ("", 3.0), (NEGATIVE, 3.0)])
def test_the_uncontrolled_rollout_of_an_xl_is_diffusers_sampler(negative: str, guidance: float):
    """An empty negative prompt is none, which pipelines tell as zeros."""
    pipe: Any = extra_large()
    chain = StableDiffusionReference(
        StableDiffusion.from_pipeline(pipe), PROMPT, negative, guidance, 4, spacing="trailing"
    )
    noise = drawn_by_pipeline(chain, 2, seed=3)
    pipe.scheduler = exact_tables(chain)
    with torch.no_grad():
        ours = rollout(chain, Uncontrolled(chain), noise).final
        found = pipe(
            [PROMPT] * 2,
            negative_prompt=[negative] * 2 if negative else None,
            num_inference_steps=4,
            guidance_scale=guidance,
            eta=1.0,
            latents=noise.initial.clone(),
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
        ).images
        assert away(found, ours) < ROUNDING
        other = StableDiffusionReference(
            chain.base, "a blue square", negative, guidance, 4, spacing="trailing"
        )
        assert away(rollout(other, Uncontrolled(other), noise).final, ours) > TABLE


def test_a_saved_xl_loads_and_trains_layers_that_its_pipeline_loads(tmp_path: Path):
    pipe: Any = extra_large()
    pipe.save_pretrained(tmp_path / "model")
    base = StableDiffusion.load(tmp_path / "model", dtype=F64)
    chain = StableDiffusionReference(base, PROMPT, steps=4, spacing="trailing")
    lora = LoRA(base, 2)
    lora.reset(torch.Generator().manual_seed(0), scale=0.1)
    save_lora(lora, tmp_path / "lora")
    noise = drawn_by_pipeline(chain, 1, seed=5)
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.scheduler = exact_tables(chain)
    with torch.no_grad():
        tuned = rollout(chain, LoRAPolicy(chain, lora), noise).final
        assert away(rollout(chain, Uncontrolled(chain), noise).final, tuned) > TABLE
        options: dict[str, Any] = {
            "latents": noise.initial.clone(),
            "generator": torch.Generator().manual_seed(5),
        }
        found = pipe(
            PROMPT,
            num_inference_steps=4,
            guidance_scale=1.0,
            eta=1.0,
            output_type="latent",
            **options,
        ).images
        assert away(found, tuned) < ROUNDING
    shutil.rmtree(tmp_path / "model/text_encoder_2")
    with pytest.raises(
        InvalidProblem, match="text_encoder_2 not found; copy what is missing of the pipeline there"
    ):
        StableDiffusion.load(tmp_path / "model")


# Levels


@pytest.mark.parametrize(
    ("spacing", "steps"), [("trailing", 50), ("leading", 50), ("leading", 30), ("trailing", 1)]
)
def test_levels_are_those_of_the_evaluated_timesteps(spacing: str, steps: int):
    found = sampling_schedule(scheduler().config, steps, spacing)
    stride = 1000 // steps
    last = [stride - 1, 1][spacing == "leading"]
    assert found.timesteps.tolist() == [last + stride * i for i in reversed(range(steps))]
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2
    levels = torch.cumprod(1 - betas, 0)
    expected = torch.cat([levels[found.timesteps], levels[:1]])
    assert float((found.abar / expected - 1).abs().max()) < TABLE


@pytest.mark.parametrize("steps", [1, 10, 50, 999])
def test_levels_are_as_even_as_the_trained_ones_allow(steps: int):
    found = sampling_schedule(scheduler().config, steps, "log_snr")
    log_ratio = torch.logit(found.abar)
    gaps = log_ratio.diff()
    finest = float(torch.logit(scheduler().alphas_cumprod.double()).diff().abs().max())
    assert int(found.timesteps[0]) == 999
    assert bool((found.timesteps.diff() < 0).all())
    assert float(gaps.min()) > 0
    assert float((gaps - gaps.mean()).abs().max()) <= finest


def test_a_change_of_the_predicted_noise_diverges_by_the_jump_of_the_signal_to_noise_ratio():
    """What the choice of levels rests on, at the sampler's own kernels."""
    base = stable_diffusion()
    jumps = {}
    for spacing in ("trailing", "log_snr"):
        chain = StableDiffusionReference(base, PROMPT, steps=10, spacing=spacing)
        schedule, change = chain.schedule, randn(2, *chain.dims)
        ratio = schedule.abar / (1 - schedule.abar)
        score = -change / (1 - schedule.abar[:-1]).sqrt()[:, None, None, None]
        moved = (schedule.score_weight / schedule.alpha.sqrt() / schedule.sigma)[
            :, None, None, None
        ] * score
        found = moved.square().flatten(1).sum(1) / 2
        jumps[spacing] = ratio[1:] / ratio[:-1] - 1
        assert torch.allclose(found, jumps[spacing] * change.square().sum() / 2, rtol=ROUNDING)
    assert float(jumps["trailing"][-1]) > 50 * float(jumps["trailing"][:-1].max())
    assert float(jumps["log_snr"].max()) < 2 * float(jumps["log_snr"].min())


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"set_alpha_to_one": True},
        {},
        (
            r"abar = 0.98\d+ to 1, where its sigma is 0 .*; give last_level = 0.99\d+ \(any level"
            r" between"
        ),
    ),
    (
        {"steps_offset": 0},
        {"spacing": "leading"},
        r"the last level is not above abar = 0.99915, .* \(any level between 0.99915 and 1\)\.$",
    ),
    ({}, {"last_level": 0.5}, "last_level = 0.5 is not above abar = 0.98"),
    (
        {"timestep_spacing": "linspace"},
        {"steps": 10, "spacing": None},
        "10 steps with 'linspace' spacing do not chain: .*; give sampler.spacing = 'leading'",
    ),
    (
        {"steps_offset": 1},
        {"steps": 1000, "spacing": "leading"},
        "1000 steps with 'leading' spacing begin at timestep 1000, .* up to 999; give fewer",
    ),
    (
        {},
        {"steps": 30},
        "30 steps with 'trailing' spacing do not chain: diffusers steps 33 of 1000",
    ),
    ({}, {"steps": 0}, "steps = 0; the network was trained with 1000"),
    (
        {"rescale_betas_zero_snr": True},
        {},
        r"abar\[0\] = 0 with 'trailing' spacing: .*give spacing='leading'",
    ),
    (
        {},
        {"steps": 1000, "spacing": "log_snr"},
        "steps = 1000; 'log_snr' .*: give between 1 and 999",
    ),
    ({}, {"steps": -3, "spacing": "log_snr"}, "steps = -3; 'log_snr' .*: give between 1 and 999"),
    (
        {},
        {"eta": 0.5, "spacing": "log_snr"},
        "eta = 0.5 with 'log_snr' spacing: no sampler of diffusers",
    ),
    (
        {},
        {"spacing": "log_snr", "last_level": 0.9},
        "last_level = 0.9; 'log_snr' spacing ends at the first trained level",
    ),
    (
        {"rescale_betas_zero_snr": True},
        {"spacing": "log_snr"},
        r"abar\[0\] = 0 with 'log_snr' spacing",
    ),
    ({}, {"guidance": 0.5}, "guidance = 0.5; give at least 1"),
    ({}, {"eta": 0.0}, r"eta = 0.0: no step has noise .* eta in \(0, 1\]"),
    ({}, {"prompt": "red " * 20}, "takes 22 tokens; the network reads 12: shorten it"),
]


@pytest.mark.parametrize(
    ("settings", "options", "message"), REFUSED, ids=[case[2][:30] for case in REFUSED]
)
def test_refused_chains(settings: dict[str, Any], options: dict[str, Any], message: str):
    base = stable_diffusion(ExactNoise(0.0, 1.0), settings=scheduler(**settings))
    arguments: dict[str, Any] = {"prompt": PROMPT, "steps": 50, "spacing": "trailing", **options}
    with pytest.raises(InvalidProblem, match=message):
        StableDiffusionReference(base, **arguments)


def test_the_offered_last_level_is_accepted():
    base = stable_diffusion(ExactNoise(0.0, 1.0), settings=scheduler(set_alpha_to_one=True))
    with pytest.raises(InvalidProblem) as refusal:
        StableDiffusionReference(base, PROMPT, spacing="trailing")
    offered = float(str(refusal.value).split("last_level = ")[1].split()[0])
    assert (
        StableDiffusionReference(
            base, PROMPT, spacing="trailing", last_level=offered
        ).schedule.sigma[-1]
        > 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 9}, "maps 9 channels to 4"),
        (
            {"addition_embed_type": "text_time"},
            "needs as addition_embed_type is not what these text encoders say; only those of",
        ),
    ],
)
def test_other_networks_are_refused(change: dict[str, Any], message: str):
    unet = ExactNoise(0.0, 1.0)
    unet.register_to_config(**{**unet.config, **change})
    with pytest.raises(InvalidProblem, match=message):
        stable_diffusion(unet)


def test_other_predictions_vocabularies_and_limits_are_refused():
    with pytest.raises(
        InvalidProblem,
        match=(
            "prediction_type = 'sample'; give a network that predicts 'epsilon' or 'v_prediction'"
        ),
    ):
        stable_diffusion(ExactNoise(0.0, 1.0), settings=scheduler(prediction_type="sample"))
    _, text, _ = surroundings()
    with pytest.raises(
        InvalidProblem, match=r"the tokenizer knows 2 tokens and the text encoder \d+"
    ):
        SinglePromptEncoder(text, ["a", "b"])
    with pytest.raises(
        InvalidProblem, match="micro_batch = 0; give at least 1, or None for no limit"
    ):
        stable_diffusion(ExactNoise(0.0, 1.0), micro_batch=0)


# An exact network: Gaussian data


LEVELS = scheduler().alphas_cumprod.double()


class ExactNoise(UNet2DConditionModel):
    """The noise to expect in a noised N(center, spread^2), as a network without layers."""

    def __init__(self, center: float, spread: float):
        nn.Module.__init__(self)
        self.register_to_config(in_channels=4, out_channels=4, sample_size=1)
        self.unused = nn.Parameter(torch.zeros(1, dtype=F64))
        self.center, self.spread = center, spread

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        abar = LEVELS[timestep].reshape(-1, 1, 1, 1)
        return (
            (1 - abar).sqrt()
            * (sample - abar.sqrt() * self.center)
            / (abar * self.spread**2 + 1 - abar),
        )


def marginal_errors(
    steps: int, eta: float, center: float = 0.7, spread: float = 0.8, last: float = 0.9995
) -> tuple[float, float]:
    """Errors of the mean and the variance of the sample, started at the exact marginal of the first
    level.
    """
    base = stable_diffusion(ExactNoise(center, spread))
    chain = StableDiffusionReference(
        base, PROMPT, steps=steps, eta=eta, spacing="trailing", last_level=last
    )
    abar = float(chain.schedule.abar[0])
    mean, variance = abar**0.5 * center, abar * spread**2 + 1 - abar
    points = torch.tensor([0.0, 1.0], dtype=F64).reshape(2, 1, 1, 1).expand(2, 4, 1, 1)
    for k in range(steps):
        zero, one = chain.mean(k, points)[:, 0].flatten().tolist()
        mean, variance = (
            (one - zero) * mean + zero,
            (one - zero) ** 2 * variance + float(chain.schedule.sigma[k]) ** 2,
        )
    return abs(mean - last**0.5 * center), abs(variance - last * spread**2 - 1 + last)


@pytest.mark.parametrize("eta", [0.2, 0.6, 1.0])
def test_every_eta_has_the_same_marginals_to_first_order(eta: float):
    """The mean is exact; the variance's error is 2 to 4% of it at 125 steps and falls with the step
    size, in the limit linearly.
    """
    errors = torch.tensor([marginal_errors(steps, eta) for steps in (125, 250, 500)], dtype=F64)
    orders = (errors[:-1, 1] / errors[1:, 1]).log2().tolist()
    assert float(errors[:, 0].max()) < ROUNDING
    assert 0.01 < float(errors[0, 1]) < 0.04
    assert 0.8 < orders[0] < orders[1] < 1


# MemoryMeter and calls


@pytest.mark.parametrize(
    "limits",
    [{"micro_batch": 2}, {"checkpointing": True}, {"micro_batch": 1, "checkpointing": True}],
)
def test_limits_on_memory_change_neither_values_nor_gradients(limits: dict[str, Any]):
    plain, limited = (
        StableDiffusionReference(stable_diffusion(**each), PROMPT, guidance=2.0, steps=5)
        for each in ({}, limits)
    )
    x, direction = randn(8, 3, *plain.dims).requires_grad_(True), randn(9, 3, *plain.dims)
    values, gradients = [], []
    for chain in (plain, limited):
        mean = chain.mean(2, x)
        values.append(mean.detach())
        gradients += torch.autograd.grad((mean * direction).sum(), x)
    assert away(values[1], values[0]) < ROUNDING
    assert away(gradients[1], gradients[0]) < ROUNDING


def peak_of_gradient(batch: int, **limits: Any) -> int:
    chain = StableDiffusionReference(stable_diffusion(**limits), PROMPT, steps=5)
    x = randn(10, batch, *chain.dims).requires_grad_(True)
    with MemoryMeter() as memory:
        torch.autograd.grad(chain.mean(2, x).sum(), x)
    return memory.peak


def test_memory_of_a_gradient_is_that_of_one_micro_batch():
    states = 4 * 8 * 8 * 8
    small, large, unlimited = (
        peak_of_gradient(1, micro_batch=1),
        peak_of_gradient(4, micro_batch=1),
        peak_of_gradient(4),
    )
    assert (
        large - small < 12 * 3 * states
    )  # a dozen tensors like the state, for the three more samples
    assert unlimited > 2 * large
    assert peak_of_gradient(4, checkpointing=True) < 0.7 * unlimited


def test_an_evaluation_at_the_same_tensor_is_not_repeated():
    base = stable_diffusion()
    chain = StableDiffusionReference(base, PROMPT, steps=5)
    x = randn(11, 2, *chain.dims)
    with torch.no_grad():
        before = base.denoiser.calls
        first = chain.score(1, x)
        assert chain.score(1, x) is first
        assert base.denoiser.calls == before + 1
        x[0] += 1
        changed = chain.score(1, x)
        assert not torch.equal(changed[0], first[0])
        assert not torch.equal(chain.score(2, x), changed)
        assert base.denoiser.calls == before + 3


def test_what_is_evaluated_in_inference_mode_is_not_kept():
    chain = StableDiffusionReference(stable_diffusion(), PROMPT, steps=5)
    x = randn(13, 2, *chain.dims)
    with torch.inference_mode():
        inside = chain.score(1, x)
    with torch.no_grad():
        outside = chain.score(1, x)
    assert torch.equal(inside, outside)
    assert inside.is_inference()
    assert not outside.is_inference()


def test_graphs_are_shared_only_on_request():
    base = stable_diffusion()
    chain, before = StableDiffusionReference(base, PROMPT, steps=5), base.denoiser.calls
    x = randn(12, 2, *chain.dims).requires_grad_(True)
    twice = [torch.autograd.grad(chain.score(1, x).sum(), x)[0] for _ in range(2)]
    assert torch.equal(*twice)
    with chain.output.sharing_graphs():
        assert chain.score(1, x) is chain.score(1, x)
        assert not chain.score(1, x.detach()).requires_grad
    assert base.denoiser.calls == before + 4
    assert torch.equal(torch.autograd.grad(chain.score(1, x).sum(), x)[0], twice[0])


def test_the_model_index_names_the_parts(tmp_path: Path):
    """The directory format is diffusers' own."""
    base = stable_diffusion()
    pipeline(base, StableDiffusionReference(base, PROMPT, steps=5)).save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "model_index.json").read_text())["_class_name"]
        == "StableDiffusionPipeline"
    )


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 30, 50, 1000])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_refusal_of_timesteps_names_what_helps(spacing: str, steps: int, offset: int):
    """Whoever does what is said gets a chain."""
    trained = scheduler(timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=False)
    arguments: dict[str, Any] = {"steps": steps}
    for _ in range(4):
        try:
            found = sampling_schedule(trained.config, **arguments)
        except InvalidProblem as error:
            arguments |= advice(str(error), steps)
        else:
            assert bool((found.abar.diff() > 0).all())
            return
    pytest.fail(f"{arguments} is refused still")


def advice(said: str, steps: int) -> dict[str, Any]:
    assert f"divides {1000}" not in said or 1000 % steps
    if "give fewer" in said:
        return {"steps": steps // 2}
    if "spacing = 'leading'" in said:
        return {"spacing": "leading"}
    return {"last_level": float(said.split("give last_level = ")[1].split()[0])}
