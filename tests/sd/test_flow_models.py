"""Stable Diffusion 3 and FLUX as chains: their own pipelines, step by step, prompts, guidance,
levels, files, fine-tuning and sampling without noise afterwards.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn
from transformers import T5Config

from sd_experiments import config
from sd_experiments.model import keys
from sd_experiments.model.flow_model import FlowModel, Flux, StableDiffusion3
from sd_experiments.model.flow_reference import FlowModelReference, ode_sample, tuned_velocity
from sd_experiments.model.lora_io import load_lora, save_lora
from sd_experiments.model.policy import LoRA, LoRAPolicy
from sd_experiments.model.stable_diffusion import StableDiffusion
from sd_experiments.model.transformer import packed, unpacked
from sd_experiments.reward.rewards import decode
from sd_experiments.training.build import build_reference
from socft import cli
from socft.checks import InvalidProblem
from socft.costates.adjoint import full_adjoint
from socft.flow import flow_ddim, flow_sde, memoryless, precise
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reward import FunctionReward
from tests.support.flows import LATENT, ROWS, DoubleEuler, flux, stable_diffusion_3, step_of
from tests.support.sd import LEARNING, NEGATIVE, PROMPT, away, stable_diffusion
from tests.support.tensors import F64, randn

SINGLE, DOUBLE = 1e-5, 1e-10
"""Relative, of a chain in float32 and in float64."""
STEPS, END = 4, 0.999


@functools.cache
def sd3(double: bool = True) -> Any:
    return stable_diffusion_3(double=double)


@functools.cache
def sd35(double: bool = True) -> Any:
    return stable_diffusion_3(double=double, qk_norm="rms_norm", dual_attention_layers=(0,))


@functools.cache
def dev(double: bool = True) -> Any:
    return flux(double=double)


@functools.cache
def schnell(double: bool = True) -> Any:
    return flux(guided=False, double=double)


PIPELINES: dict[str, tuple[Callable[[bool], Any], type[FlowModel]]] = {
    "SD3": (sd3, StableDiffusion3),
    "SD3.5": (sd35, StableDiffusion3),
    "FLUX dev": (dev, Flux),
    "FLUX schnell": (schnell, Flux),
}


def chain_of(name: str, double: bool = True, **options: Any) -> tuple[Any, FlowModelReference]:
    make, kind = PIPELINES[name]
    pipe = make(double)
    base = kind.from_pipeline(pipe, max_sequence_length=ROWS)
    given = {"steps": STEPS, "last_level": END, "latent": LATENT} | options
    return pipe, FlowModelReference(base, PROMPT, NEGATIVE, **given)


def fresh(name: str, **limits: Any) -> tuple[Any, Any]:
    """A pipeline and a model of its own, which may be changed."""
    kind: Any = PIPELINES[name][1]
    pipe = stable_diffusion_3() if kind is StableDiffusion3 else flux()
    return pipe, kind.from_pipeline(pipe, max_sequence_length=ROWS, **limits)


def drawn(pipe: Any, chain: FlowModelReference, initial: Tensor, **options: Any) -> list[Tensor]:
    """The states of a pipeline's own steps, then its pictures."""
    states: list[Tensor] = [initial]
    is_flux = isinstance(chain.base, Flux)

    def keep(_: Any, k: int, timestep: Any, found: dict[str, Any]) -> dict[str, Any]:
        latents = found["latents"].clone()
        states.append(unpacked(latents, initial) if is_flux else latents)
        return {}

    scale = "true_cfg_scale" if is_flux else "guidance_scale"
    pictures = pipe(
        [chain.prompt] * len(initial),
        negative_prompt=[chain.negative_prompt] * len(initial),
        height=chain.dims[1] * chain.base.scale,
        width=chain.dims[2] * chain.base.scale,
        num_inference_steps=chain.steps,
        latents=packed(initial) if is_flux else initial.clone(),
        output_type="pt",
        callback_on_step_end=keep,
        max_sequence_length=ROWS,
        **{scale: chain.guidance},
        **options,
    ).images
    return [*states, pictures]


# The model's own sampler


@pytest.mark.parametrize(("double", "tolerance"), [(False, SINGLE), (True, DOUBLE)])
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_states_and_pictures_are_those_of_the_pipeline(
    name: str, guidance: float, double: bool, tolerance: float
):
    pipe, chain = chain_of(name, double, guidance=guidance)
    theirs = pipe.scheduler
    if double:
        pipe.scheduler = DoubleEuler.from_config(theirs.config)
    initial = randn(1, 2, *chain.dims).to(F64 if double else torch.float32)
    try:
        with torch.no_grad():
            *states, pictures = drawn(pipe, chain, initial)
            ours = ode_sample(chain, chain.velocity, initial)
            assert away(torch.stack(states), ours) < tolerance
            assert away(pictures, decode(chain.base, ours[-1])) < tolerance
            other = FlowModelReference(
                chain.base, "a blue square", "", guidance, STEPS, last_level=END, latent=LATENT
            )
            assert away(ode_sample(other, other.velocity, initial), ours) > 1e-4
    finally:
        pipe.scheduler = theirs


class Kernels(FlowMatchEulerDiscreteScheduler):
    """A pipeline's scheduler that draws from a chain's kernels, with given noise."""

    def follow(self, chain: FlowModelReference, noise: Tensor) -> None:
        self.chain, self.noise = chain, noise

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any
    ) -> Any:
        k = step_of(self, timestep)
        is_flux = isinstance(self.chain.base, Flux)
        like = self.noise[k]
        x, u = ((unpacked(v, like) if is_flux else v) for v in (sample, model_output))
        moved = self.chain.mean_of(k, x, u) + self.chain.diffusion.apply(k, x, like)
        return (packed(moved) if is_flux else moved,)


KERNELS: dict[str, Any] = {
    "DDIM(1)": flow_ddim,
    "DDIM(.5)": functools.partial(flow_ddim, eta=0.5),
    "Precise(.7)": functools.partial(precise, noise_level=0.7),
    "Flow-SDE(.7)": functools.partial(flow_sde, noise_level=0.7),
    "memoryless": memoryless,
}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_chain_is_the_pipelines_with_these_kernels(name: str, kernel: str):
    pipe, chain = chain_of(name, kernel=KERNELS[kernel], guidance=2.0)
    noise = Noise(randn(2, 2, *chain.dims), randn(3, STEPS, 2, *chain.dims))
    theirs = pipe.scheduler
    mine: Any = Kernels.from_config(theirs.config)
    mine.follow(chain, noise.steps)
    pipe.scheduler = mine
    try:
        with torch.no_grad():
            *states, _ = drawn(pipe, chain, noise.initial)
            path = rollout(chain, Uncontrolled(chain), noise)
    finally:
        pipe.scheduler = theirs
    assert away(torch.stack(states), path.states) < DOUBLE


def test_the_memoryless_kernel_is_diffusers_first_order_solver_of_the_stochastic_equation():
    """On the same levels, with the same velocity and noise; its coefficients are float32."""
    _, chain = chain_of("SD3", steps=8)
    theirs = getattr(diffusers, "DPMSolverMultistepScheduler")(  # noqa: B009
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        algorithm_type="sde-dpmsolver++",
        solver_order=1,
        flow_shift=3.0,
    )
    theirs.set_timesteps(8)
    noise = theirs.sigmas[:-1].double()
    schedule = flow_ddim(noise)
    for k in range(7):
        x, u, xi = (randn(4 + i, 1, *chain.dims) for i in range(3))
        expected = theirs.step(u, theirs.timesteps[k], x, variance_noise=xi).prev_sample
        ours = schedule.state_weight[k] * x + schedule.velocity_weight[k] * u
        assert away(ours + schedule.sigma[k] * xi, expected) < SINGLE


# Levels


@pytest.mark.parametrize(
    "settings",
    [
        {"shift": 1.0},
        {"shift": 3.0},
        {"shift": 3.0, "shift_terminal": 0.1},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "base_shift": 0.2, "max_shift": 2.0},
        {"use_dynamic_shifting": True, "base_image_seq_len": 2, "max_image_seq_len": 8},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"num_train_timesteps": 500},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [stable_diffusion_3, flux])
def test_levels_are_those_of_the_pipeline(
    make: Callable[..., Any], settings: dict[str, Any], cached: dict[Any, Any]
):
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**settings)
    pipe = cached.setdefault(make, make())
    pipe.scheduler = scheduler
    kind = StableDiffusion3 if make is stable_diffusion_3 else Flux
    base: Any = kind.from_pipeline(pipe, max_sequence_length=ROWS)
    chain = FlowModelReference(base, PROMPT, steps=3, last_level=0.999999, latent=LATENT)
    drawn(pipe, chain, randn(5, 1, *chain.dims))
    assert torch.equal(chain.sampling.noise, scheduler.sigmas.double())
    assert torch.equal(chain.sampling.timesteps, scheduler.timesteps)


@pytest.fixture(scope="module")
def cached() -> dict[Any, Any]:
    return {}


def test_trailing_levels_are_even_before_the_shift():
    _, chain = chain_of("SD3", steps=4, spacing="trailing")
    even = torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=F64)
    assert away(chain.sampling.noise, 3 * even / (1 + 2 * even)) < 1e-6


# Prompts


def test_prompts_are_told_as_by_the_pipelines():
    for prompt in (PROMPT, "", "a blue square on left"):
        pipe, chain = chain_of("SD3")
        ours = chain.base.encode(prompt, LATENT)
        told = pipe.encode_prompt(
            prompt, None, None, max_sequence_length=ROWS, do_classifier_free_guidance=False
        )
        assert torch.equal(ours.text, told[0])
        assert torch.equal(ours.added["pooled_projections"], told[2])
        pipe, chain = chain_of("FLUX dev")
        ours = chain.base.encode(prompt, LATENT)
        told = pipe.encode_prompt(prompt, max_sequence_length=ROWS)
        assert torch.equal(ours.text, told[0])
        assert torch.equal(ours.added["pooled_projections"], told[1])


def test_prompts_that_are_too_long_for_clip_alone_are_cut_as_by_the_pipeline():
    pipe, _ = chain_of("SD3")
    base: Any = StableDiffusion3.from_pipeline(pipe, max_sequence_length=30)
    prompt = " ".join(["a red circle on the left"] * 3)
    told = pipe.encode_prompt(
        prompt, None, None, max_sequence_length=30, do_classifier_free_guidance=False
    )
    assert torch.equal(base.encode(prompt, LATENT).text, told[0])
    with pytest.raises(InvalidProblem, match="takes 19 tokens of T5, which writes 6 rows: shorten"):
        chain_of("SD3")[1].base.encode(prompt, LATENT)


def test_stable_diffusion_3_does_without_its_third_encoder(tmp_path: Path):
    pipe: Any = stable_diffusion_3(third=False, double=False)
    pipe.save_pretrained(tmp_path)
    base = StableDiffusion3.load(tmp_path, F64, max_sequence_length=ROWS)
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        nn.Module.double(part)
    chain = FlowModelReference(base, PROMPT, steps=STEPS, last_level=END)
    pipe.scheduler = DoubleEuler.from_config(pipe.scheduler.config)
    initial = randn(6, 1, *chain.dims)
    with torch.no_grad():
        *states, _ = drawn(pipe, chain, initial)
        assert away(torch.stack(states), ode_sample(chain, chain.velocity, initial)) < DOUBLE


def test_the_distilled_guidance_is_told_to_the_network_that_knows_it():
    usual = chain_of("FLUX dev")[1]
    pipe, chain = chain_of("FLUX dev", distilled=2.3)
    theirs = pipe.scheduler
    pipe.scheduler = DoubleEuler.from_config(theirs.config)
    initial = randn(7, 1, *chain.dims)
    with torch.no_grad():
        *states, _ = drawn(pipe, chain, initial, guidance_scale=2.3)
        ours = ode_sample(chain, chain.velocity, initial)
        assert away(torch.stack(states), ours) < DOUBLE
        assert away(ode_sample(usual, usual.velocity, initial), ours) > 1e-6
    pipe.scheduler = theirs
    for name in ("SD3", "FLUX schnell"):
        with pytest.raises(InvalidProblem, match=r"distilled guidance = 2\.3, but the network is"):
            chain_of(name, distilled=2.3)


# Fine-tuning


@pytest.mark.parametrize("name", ["SD3", "FLUX dev"])
def test_a_fine_tuned_velocity_is_a_whitened_control(name: str):
    base: Any = fresh(name)[1]
    chain = FlowModelReference(base, PROMPT, steps=STEPS, last_level=END, latent=LATENT)
    lora = LoRA(base, 2)
    lora.reset(torch.Generator().manual_seed(0), 0.2)
    policy, own = LoRAPolicy(chain, lora), LoRAPolicy(chain, lora).sampler
    x = randn(8, 2, *chain.dims)
    with torch.no_grad():
        for k in range(STEPS):
            v = policy(k, x)
            moved = own.mean(k, x) - chain.mean(k, x)
            assert away(chain.diffusion.apply(k, x, v), moved) < DOUBLE
            assert away(chain.velocity_of(k, x, v), chain.tuned_output(k, x)) < DOUBLE
        lora.reset(torch.Generator().manual_seed(0))
        assert float(policy(1, x).abs().max()) == 0


@pytest.mark.parametrize("name", ["SD3", "FLUX dev"])
def test_a_pipeline_loads_the_layers_and_samples_from_them_without_noise(tmp_path: Path, name: str):
    """What a memoryless training made is drawn from by the pipeline's own sampler."""
    base, pipe = fresh(name)[1], fresh(name)[0]
    chain = FlowModelReference(base, PROMPT, "", 1.0, STEPS, last_level=END, latent=LATENT)
    lora = LoRA(base, 2, alpha=3.0)
    lora.reset(torch.Generator().manual_seed(1), 0.2)
    save_lora(lora, tmp_path)
    pipe.scheduler = DoubleEuler.from_config(pipe.scheduler.config)
    initial = randn(9, 1, *chain.dims)
    with torch.no_grad():
        tuned = tuned_velocity(chain, LoRAPolicy(chain, lora))
        ours = ode_sample(chain, tuned, initial)
        before = torch.stack(drawn(pipe, chain, initial)[:-1])
        pipe.load_lora_weights(tmp_path)
        after = torch.stack(drawn(pipe, chain, initial)[:-1])
        assert away(after, ours) < DOUBLE
        assert away(before, ours) > 1e-4
    again = load_lora(fresh(name)[1], tmp_path)
    assert all(torch.equal(again.weights[each], p) for each, p in lora.weights.items())


def test_the_full_adjoint_is_the_derivative_of_the_simulator():
    _, chain = chain_of("SD3", guidance=2.0)
    problem = ControlProblem(chain, FunctionReward(lambda x: x.sin().flatten(1).sum(1)), 0.5)
    noise = Noise(randn(10, 1, *chain.dims), randn(11, STEPS, 1, *chain.dims))
    initial = noise.initial.requires_grad_(True)
    final = rollout(chain, Uncontrolled(chain), Noise(initial, noise.steps)).final
    (expected,) = torch.autograd.grad(problem.reward(final).sum(), initial)
    with torch.no_grad():
        path = rollout(chain, Uncontrolled(chain), Noise(initial.detach(), noise.steps))
        found = full_adjoint(problem, Uncontrolled(chain), path)[0]
    assert away(found, expected) < DOUBLE


@pytest.mark.parametrize("name", ["SD3", "FLUX dev"])
def test_limits_on_memory_change_neither_values_nor_gradients(name: str):
    x, direction = randn(12, 3, 4, *LATENT).requires_grad_(True), randn(13, 3, 4, *LATENT)
    found = []
    for limits in ({}, {"micro_batch": 2, "checkpointing": True}):
        base: Any = fresh(name, **limits)[1]
        chain = FlowModelReference(base, PROMPT, steps=STEPS, last_level=END, latent=LATENT)
        mean = chain.mean(1, x)
        found.append((mean.detach(), torch.autograd.grad((mean * direction).sum(), x)[0]))
    assert away(found[1][0], found[0][0]) < DOUBLE
    rotary = 1e-6  # FLUX turns queries and keys in float32, whatever the rows beside them
    assert away(found[1][1], found[0][1]) < (DOUBLE if name == "SD3" else rotary)


# Refusals and keys


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("SD3", {"last_level": None}, r"last_level = None: the last step goes from signal .* give"),
    ("SD3", {"last_level": 0.5}, r"last_level = 0\.5: .* \(any level between"),
    ("SD3", {"last_level": 1.0}, r"last_level = 1\.0: "),
    ("SD3", {"spacing": "leading"}, "spacing = 'leading'; a flow begins at pure noise"),
    ("SD3", {"guidance": 0.5}, r"guidance = 0\.5; give at least 1"),
    ("SD3", {"steps": 0}, "steps = 0; give at least 1"),
    ("SD3", {"latent": (3, 4)}, "a latent of 3 x 4 is not whole patches of 2 x 2; .* 4 divides"),
    ("SD3", {"latent": (16, 4)}, "8 x 2 patches; the network knows the places of 4 x 4"),
    ("FLUX dev", {"latent": (3, 4)}, "a latent of 3 x 4 is not whole patches"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_no_chain_comes_of_is_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(InvalidProblem, match=message):
        chain_of(name, **options)


def test_a_suggested_last_level_makes_a_chain():
    with pytest.raises(InvalidProblem) as refused:
        chain_of("SD3", last_level=None)
    said = float(str(refused.value).split("give last_level = ")[1].split()[0])
    assert float(chain_of("SD3", last_level=said)[1].schedule.sigma[-1]) > 0


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("EulerDiscreteScheduler", "the scheduler is a EulerDiscreteScheduler; a flow needs a"),
        ("FlowMatchHeunDiscreteScheduler", "a flow needs a FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_other_schedulers_are_refused(scheduler: str, message: str):
    pipe = stable_diffusion_3(settings=getattr(diffusers, scheduler)())
    with pytest.raises(InvalidProblem, match=message):
        StableDiffusion3.from_pipeline(pipe)


def test_a_shift_that_the_scheduler_does_not_say_is_told():
    pipe = stable_diffusion_3(double=False)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=None,  # pyright: ignore[reportArgumentType]
    )
    base = StableDiffusion3.from_pipeline(pipe)
    with pytest.raises(
        InvalidProblem, match=r"setting the levels of its scheduler_config\.json fail"
    ):
        base.levels(4, (8, 8))


@pytest.mark.parametrize("name", ["invert_sigmas", "stochastic_sampling"])
def test_samplers_of_another_law_are_refused(name: str):
    options: dict[str, Any] = {name: True}
    pipe = stable_diffusion_3(settings=FlowMatchEulerDiscreteScheduler(**options))
    with pytest.raises(InvalidProblem, match=f"scheduler says {name} = True: "):
        StableDiffusion3.from_pipeline(pipe)


def test_parts_that_do_not_fit_are_refused():
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"in_channels": 5}, "maps 5 channels to 4; give one for text to image"),
        ({"in_channels": 5, "out_channels": 5}, "latents of 5 channels and the decoder reads 4"),
        ({"pooled_projection_dim": 40}, "pooled state of width 40 and the text encoders write 32"),
        ({"joint_attention_dim": 64}, "reads text of width 64 and T5 writes 48"),
    )
    for sizes, message in cases:
        with pytest.raises(InvalidProblem, match=message):
            StableDiffusion3.from_pipeline(stable_diffusion_3(**sizes))


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        (FlowMatchEulerDiscreteScheduler, keys.FLOW_SCHEDULER),
        (SD3Transformer2DModel, keys.SD3_TRANSFORMER),
        (FluxTransformer2DModel, keys.FLUX_TRANSFORMER),
        (T5Config, keys.T5),
    ],
)
def test_every_key_of_the_installed_classes_was_looked_at(kind: Any, table: keys.Table):
    assert keys.signature(kind).keys() == table.keys()


def test_data_that_is_a_point_is_reached_by_every_kernel():
    """With the velocity of a point mass the mean of every DDIM-form kernel is exact, on the levels
    of the pipeline.
    """
    _, chain = chain_of("SD3")
    x, point = randn(14, 1, *chain.dims), randn(15, 1, *chain.dims)
    for k in range(STEPS):
        s, following = (float(chain.schedule.times[k + i]) for i in (0, 1))
        mean = chain.mean_of(k, x, (x - point) / s)
        left = math.sqrt(following**2 - float(chain.schedule.sigma[k]) ** 2)
        expected = (1 - following) * point + left / s * (x - (1 - s) * point)
        assert away(mean, expected) < DOUBLE


# The commands


SETTINGS = f"""
[model]
path = "{{model}}"
dtype = "float64"
max_sequence_length = 6
[sampler]
steps = 3
kernel = "{{kernel}}"
last_level = 0.999
size = [8, 8]
[reward]
name = "tests.support.sd:reddish"
[problem]
prompts = ["a red circle"]
beta = 0.1
{LEARNING}
[run]
steps = 2
out = "{{out}}"
checkpoint_every = 1
"""


@pytest.mark.usefixtures("brief_trials")
@pytest.mark.parametrize(
    ("make", "kernel"), [(stable_diffusion_3, "memoryless"), (flux, "ddim")], ids=["SD3", "FLUX"]
)
def test_every_command_works_on_a_flow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[..., Any], kernel: str
):
    make(double=False).save_pretrained(tmp_path / "model")
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS.format(model=tmp_path / "model", out=tmp_path / "run", kernel=kernel))
    for command in ("check", "train", "sample", "evaluate"):
        options = ["--number", "2"] if command in ("sample", "evaluate") else []
        assert cli.main(["sd", command, "--config", str(file), *options]) == 0, command
    rows = json.loads((tmp_path / "run/evaluation-2.json").read_text())
    assert [row["sampler"] for row in rows] == ["chain", "chain"]
    assert rows[0]["kl"] == 0 < rows[1]["kl"]
    assert cli.main(["sd", "evaluate", "--config", str(file), "--number", "2", "--ode"]) == 0
    without = json.loads((tmp_path / "run/evaluation-2.json").read_text())
    assert [row["sampler"] for row in without] == ["ODE", "ODE"]
    assert without[1]["reward"] != rows[1]["reward"]
    said = capsys.readouterr().out
    assert "ok       model: " in said
    assert "ok       memory: " in said
    pipe = make(double=False)
    pipe.load_lora_weights(tmp_path / "run/lora")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "precise"}, "sampler.kernel = 'precise' is for flows, and this model is none"),
        ({"distilled_guidance": 3.5}, "sampler.distilled_guidance = 3.5 is for flows"),
        ({"size": [9, 16]}, r"size = \[9, 16\]; give a height and a width that 2 divides"),
    ],
)
def test_settings_of_flows_are_refused_of_other_models(change: dict[str, Any], message: str):
    with pytest.raises(InvalidProblem, match=message):
        build_reference(stable_diffusion(), config.SamplerConfig(**change), PROMPT)


def test_a_pipeline_of_another_kind_is_refused():
    pipe = stable_diffusion_3()
    with pytest.raises(InvalidProblem, match="a StableDiffusion3Pipeline has no FluxTransformer2D"):
        Flux.from_pipeline(pipe)
    with pytest.raises(InvalidProblem, match="a StableDiffusion3Pipeline has no unet; give a"):
        StableDiffusion.from_pipeline(pipe)
    with pytest.raises(InvalidProblem, match="a FluxPipeline has no SD3Transformer2DModel"):
        StableDiffusion3.from_pipeline(flux())


def test_a_shift_that_was_set_is_that_of_the_chain():
    pipe = stable_diffusion_3(settings=FlowMatchEulerDiscreteScheduler())
    pipe.scheduler.set_shift(3.0)
    base = StableDiffusion3.from_pipeline(pipe, max_sequence_length=ROWS)
    chain = FlowModelReference(base, PROMPT, steps=3, last_level=0.99999)
    drawn(pipe, chain, randn(5, 1, *chain.dims))
    assert torch.equal(chain.sampling.noise, pipe.scheduler.sigmas.double())
    pipe.scheduler.set_shift(1.0)
    usual = base.levels(3, LATENT)
    assert not torch.equal(usual.noise, chain.sampling.noise)
