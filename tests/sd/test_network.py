"""Low-rank fine-tuning of a random Stable Diffusion in float64: identities of estimators, sampler,
files and memory.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.checkpoint import CheckpointError
from transformers import CLIPModel

from sd_experiments.model.lora_io import load_lora, save_lora
from sd_experiments.model.policy import LoRA, LoRAPolicy, adjoint_norms, sample_tuned
from sd_experiments.model.reference import StableDiffusionReference
from sd_experiments.model.schedule import sampling_schedule
from sd_experiments.model.stable_diffusion import StableDiffusion
from sd_experiments.reward.rewards import (
    BlackBoxImageReward,
    CLIPScore,
    DifferentiableImageReward,
    JPEGCompressibility,
    decode,
)
from sd_experiments.tensor_file import encode_tensors, read_sealed_tensors, read_tensors
from socft.checks import InvalidProblem
from socft.costates.adjoint import lean_adjoint
from socft.costates.fields import PolicyCostate
from socft.costates.martingale import AntitheticCorrection, FirstOrderCorrection
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.path import Noise, returns, rollout
from socft.path import Path as States
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reward import FunctionReward
from socft.train import fit
from tests.support.sd import (
    NEGATIVE,
    PROMPT,
    ROUNDING,
    away,
    clip_config,
    drawn_by_pipeline,
    exact_tables,
    network,
    pipeline,
    pipeline_latents,
    stable_diffusion,
    tokenizer,
)
from tests.support.tensors import F64, randn
from toy.measure import MemoryMeter, peak_memory

# torch compiles its forward-mode formulas with a function it has deprecated itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)

IDENTITY = 1e-12  # relative to the largest entry: a few network evaluations in float64
DIFFERENCE = 1e-7  # relative: central differences of step 1e-5 in float64
FLOAT32 = 1e-3  # relative: five evaluations of a trained network in float32
STEP = 1e-5
STEPS, BATCH = 3, 2


def tuned(
    scale: float = 0.3, guidance: float = 2.0, steps: int = STEPS, alpha: float = 3.0, **limits: Any
) -> LoRAPolicy:
    """A policy away from its reference."""
    base = stable_diffusion(network().double(), **limits)
    chain = StableDiffusionReference(base, PROMPT, NEGATIVE, guidance, steps, spacing="leading")
    lora = LoRA(base, rank=3, alpha=alpha, generator=torch.Generator().manual_seed(1))
    lora.reset(torch.Generator().manual_seed(2), scale)
    return LoRAPolicy(chain, lora)


@functools.cache
def shared() -> LoRAPolicy:
    """One policy for the tests that do not change it."""
    return tuned()


def smooth(policy: LoRAPolicy, beta: float = 0.3) -> ControlProblem:
    return ControlProblem(
        policy.reference, FunctionReward(lambda x: x.sin().flatten(1).sum(1)), beta
    )


def noise_of(policy: LoRAPolicy, seed: int = 3, batch: int = BATCH) -> Noise:
    return Noise.sample(policy.reference, batch, torch.Generator().manual_seed(seed))


def path_of(policy: LoRAPolicy, seed: int = 3) -> States:
    with torch.no_grad():
        return rollout(policy.reference, policy, noise_of(policy, seed))


def gradient(loss: Tensor, policy: Policy) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


def matching(
    estimator: Estimator, problem: ControlProblem, policy: LoRAPolicy, path: States
) -> Tensor:
    with torch.no_grad():
        labels = estimator.label(problem, policy, path)
    losses = [
        estimator.loss(problem, policy, k, labels.step(k)).mean() for k in range(problem.steps)
    ]
    return gradient(torch.stack(losses).sum(), policy)


def by_diffusers(policy: LoRAPolicy, k: int, x: Tensor, adapted: bool) -> tuple[Tensor, float]:
    """Mean and scale of a sampler's kernel, from the network and diffusers' scheduler, with peft's
    own switch.
    """
    chain, unet = policy.reference, policy.reference.base.denoiser.network
    theirs: Any = exact_tables(chain)
    t = chain.sampling.timesteps[k]
    unet.enable_adapters() if adapted else unet.disable_adapters()
    without, given = (
        unet(x, t, encoder_hidden_states=each.expand(len(x), -1, -1)).sample
        for each in contexts(chain)
    )
    unet.enable_adapters()
    unet.disable_adapters()
    policy.lora.requires_grad_(True)
    predicted = without + chain.guidance * (given - without)
    mean = theirs.step(predicted, t, x, eta=1.0, variance_noise=torch.zeros_like(x)).prev_sample
    before, after = theirs.alphas_cumprod[t], chain.schedule.abar[k + 1]
    return mean, float(((1 - after) / (1 - before) * (1 - before / after)).sqrt())


def contexts(chain: StableDiffusionReference) -> tuple[Tensor, Tensor]:
    return chain.condition.negative.text, chain.condition.prompt.text


# Policy


def test_fresh_low_rank_layers_leave_the_model_as_it_is():
    policy = tuned(scale=0.0)
    x = randn(4, BATCH, *policy.reference.dims)
    with torch.no_grad():
        assert not policy(1, x).any()
        unguided = LoRAPolicy(policy.reference, policy.lora, guided=False)
        assert unguided(1, x).abs().max() > 1e-3


def test_kl_of_the_control_is_that_of_the_samplers_kernels():
    policy = shared()
    path = path_of(policy)
    with torch.no_grad():
        for k in range(STEPS):
            (frozen, scale), (fine, same) = (
                by_diffusers(policy, k, path.states[k], adapted) for adapted in (False, True)
            )
            assert scale == same
            expected = (fine - frozen).flatten(1).square().sum(1) / (2 * scale**2)
            assert away(path.kl()[k], expected) < IDENTITY
            assert float(expected.min()) > 1e-4


def test_log_probability_ratios_are_one_before_an_update_and_not_after():
    policy = tuned()
    path = path_of(policy)
    with torch.no_grad():
        sampled = [log_probability(policy, path.states, k) for k in range(STEPS)]
    recorded = [log_probability(policy, path.states, k) for k in range(STEPS)]
    stored = [-path.noise.steps[k].flatten(1).square().sum(1) / 2 for k in range(STEPS)]
    for a, b, c in zip(sampled, recorded, stored, strict=True):
        assert torch.equal((a - b.detach()).exp(), torch.ones(BATCH, dtype=F64))
        assert away(a, c) < IDENTITY
    with torch.no_grad():
        row = log_probability(policy, path.states[:, :1], 1)
        assert away(row, sampled[1][:1]) < IDENTITY
        next(iter(policy.parameters())).add_(0.1)
        assert not torch.equal(
            (log_probability(policy, path.states, 1) - sampled[1]).exp(),
            torch.ones(BATCH, dtype=F64),
        )


def log_probability(policy: LoRAPolicy, states: Tensor, k: int) -> Tensor:
    """Of the step from ``states[k]`` to the next, up to the constant of the Gaussian."""
    x, chain = states[k], policy.reference
    kick = chain.diffusion.whiten(k, x, states[k + 1] - chain.mean(k, x).detach())
    return -(kick - policy(k, x)).flatten(1).square().sum(1) / 2


def test_training_and_inference_samplers_agree():
    policy = shared()
    noise = drawn_by_pipeline(policy.reference, BATCH, seed=5)
    base = policy.reference.base
    with torch.no_grad():
        path = rollout(policy.reference, policy, noise)
        before = base.denoiser.calls
        fast = sample_tuned(policy, noise)
        assert base.denoiser.calls == before + STEPS
        assert away(fast.path.states, path.states) < IDENTITY
        assert away(fast.controlled(policy.reference).controls, path.controls) < IDENTITY
        base.unet.enable_adapters()
        exact_tables(policy.reference)
        pipe = pipeline(base, policy.reference)
        theirs = pipeline_latents(pipe, policy.reference, noise.initial, 5)
        base.unet.disable_adapters()
        policy.lora.requires_grad_(True)
        assert away(theirs, path.final) < ROUNDING
        assert (
            away(pipeline_latents(pipe, policy.reference, noise.initial, 5), path.final) > ROUNDING
        )


def test_a_rollout_evaluates_both_networks_once_per_step():
    policy = shared()
    before = policy.reference.base.denoiser.calls
    path_of(policy)
    assert policy.reference.base.denoiser.calls == before + 2 * STEPS


def test_policies_of_two_prompts_train_the_same_layers():
    first = shared()
    other = StableDiffusionReference(
        first.reference.base, "a blue square", NEGATIVE, 2.0, STEPS, spacing="leading"
    )
    second = LoRAPolicy(other, first.lora)
    assert [id(p) for p in first.parameters()] == [id(p) for p in second.parameters()]
    x = randn(6, 1, *other.dims)
    with torch.no_grad():
        assert away(second(0, x), first(0, x)) > 1e-3


# Estimators


def test_full_adjoint_matching_is_the_derivative_of_the_simulator():
    policy = shared()
    problem = smooth(policy)
    expected = gradient(
        -returns(problem, rollout(policy.reference, policy, noise_of(policy))).mean(), policy
    )
    assert away(matching(FullAdjoint(), problem, policy, path_of(policy)), expected) < IDENTITY
    with policy.reference.output.sharing_graphs():
        assert away(matching(FullAdjoint(), problem, policy, path_of(policy)), expected) < IDENTITY
    assert away(matching(AdjointMatching(), problem, policy, path_of(policy)), expected) > 1e-3


def test_the_lean_costate_is_the_references_own_derivative():
    policy = shared()
    problem, path = smooth(policy), path_of(policy)
    costates = lean_adjoint(problem, path)
    for k in range(STEPS):
        x = path.states[k].clone().requires_grad_(True)
        y = x
        for j in range(k, STEPS):
            mean = by_diffusers(policy, j, y, adapted=False)[0]
            y = mean + (path.states[j + 1] - mean).detach()
        (expected,) = torch.autograd.grad(problem.reward(y).sum(), x)
        assert away(costates[k], expected) < IDENTITY


@pytest.mark.parametrize("limits", [{"micro_batch": 1}, {"checkpointing": True}])
def test_gradients_are_right_when_the_network_is_evaluated_again(limits: dict[str, Any]):
    """The second evaluation, in the backward pass, must have the low-rank layers of the first."""
    plain, limited = tuned(), tuned(**limits)
    found = []
    for policy in (plain, limited):
        x = randn(7, BATCH, *policy.reference.dims).requires_grad_(True)
        control = policy(1, x)
        wanted = [x, *policy.parameters()]
        found.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(control.sin().sum(), wanted)])
        )
    assert away(found[1], found[0]) < IDENTITY


def test_diffusers_own_checkpointing_would_go_wrong():
    policy = tuned()
    policy.reference.base.denoiser.network.enable_gradient_checkpointing()
    x = randn(7, BATCH, *policy.reference.dims).requires_grad_(True)
    with pytest.raises(CheckpointError):
        torch.autograd.grad(policy(1, x).sum(), x)


def test_an_optimiser_step_leaves_the_frozen_network_untouched():
    policy = tuned(scale=0.0)
    base = policy.reference.base
    trained = {id(p) for p in policy.parameters()}
    before = {name: p.clone() for name, p in base.unet.named_parameters() if id(p) not in trained}
    x = randn(8, BATCH, *policy.reference.dims)
    with torch.no_grad():
        mean = policy.reference.mean(1, x)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(9)
    for _ in fit(
        smooth(policy), policy, AdjointMatching(), optimiser, generator, batch=BATCH, steps=1
    ):
        pass
    after = dict(base.unet.named_parameters())
    assert all(
        torch.equal(after[name], p) and after[name].grad is None for name, p in before.items()
    )
    with torch.no_grad():
        assert torch.equal(policy.reference.mean(1, x.clone()), mean)
        assert policy(1, x).any()


def test_forward_mode_passes_through_attention():
    policy = shared()
    x, direction = (
        randn(10, BATCH, *policy.reference.dims),
        randn(11, BATCH, *policy.reference.dims),
    )
    with torch.no_grad():
        control, slope = torch.func.jvp(functools.partial(policy, 1), (x,), (direction,))[:2]
        forward, backward = policy(1, x + STEP * direction), policy(1, x - STEP * direction)
        assert away(control, policy(1, x)) < IDENTITY
    assert away(slope, (forward - backward) / (2 * STEP)) < DIFFERENCE


def test_forward_mode_passes_through_the_derivative_of_the_mean():
    policy = shared()
    x, direction, costate = (randn(seed, 1, *policy.reference.dims) for seed in (12, 13, 14))

    def pulled_back(y: Tensor) -> Tensor:
        return torch.func.vjp(functools.partial(policy.reference.mean, 1), y)[1](costate)[0]

    slope = torch.func.jvp(pulled_back, (x,), (direction,))[1]
    difference = (pulled_back(x + STEP * direction) - pulled_back(x - STEP * direction)) / (
        2 * STEP
    )
    assert away(slope, difference) < DIFFERENCE


def field_of(problem: ControlProblem, policy: LoRAPolicy, x: Tensor) -> Tensor:
    """The costate the policy implies at step 1, by plain reverse mode through diffusers' own
    step.
    """
    y = x.detach().requires_grad_(True)
    mean = by_diffusers(policy, 1, y, adapted=False)[0]
    costate = problem.beta[1] / policy.reference.schedule.sigma[1] * policy(1, x).detach()
    return torch.autograd.grad((mean * costate).sum(), y)[0]


def test_first_order_increments_are_differences_of_the_field():
    policy = shared()
    problem, path = smooth(policy), path_of(policy)
    kick = policy.reference.schedule.sigma[0] * path.noise.steps[0]
    ahead, behind = (
        field_of(problem, policy, path.states[1] + (sign * STEP - 1) * kick) for sign in (1, -1)
    )
    found = FirstOrderCorrection(PolicyCostate()).increment(problem, policy, path, 0)
    assert away(found, (ahead - behind) / (2 * STEP)) < DIFFERENCE


@pytest.mark.parametrize("limits", [{}, {"micro_batch": 1, "checkpointing": True}])
def test_martingale_adjoints_run_unchanged(limits: dict[str, Any]):
    policy = tuned(**limits)
    problem, path = smooth(policy), path_of(policy)
    kick = policy.reference.schedule.sigma[0] * path.noise.steps[0]
    odd = (
        field_of(problem, policy, path.states[1])
        - field_of(problem, policy, path.states[1] - 2 * kick)
    ) / 2
    assert (
        away(AntitheticCorrection(PolicyCostate()).increment(problem, policy, path, 0), odd)
        < IDENTITY
    )
    with torch.no_grad():
        costates = (
            MartingaleAdjoint(AntitheticCorrection(PolicyCostate(exact=False)))
            .costates(problem, policy, path)
            .values
        )
    lean = lean_adjoint(problem, path)
    assert torch.equal(costates[-1], lean[-1])
    assert away(costates[0], lean[0]) > 1e-3


def test_plain_attention_can_be_differentiated_twice_and_fused_cannot():
    fused, plain = tuned(), tuned(plain_attention=True)
    x, direction = (
        randn(15, 1, *plain.reference.dims).requires_grad_(True),
        randn(16, 1, *plain.reference.dims),
    )

    def product(policy: LoRAPolicy) -> Tensor:
        (slope,) = torch.autograd.grad(policy(1, x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad((slope * direction).sum(), x)[0]

    def slope(y: Tensor) -> Tensor:
        z = y.detach().requires_grad_(True)
        return torch.autograd.grad(plain(1, z).sin().sum(), z)[0]

    difference = (slope(x + STEP * direction) - slope(x - STEP * direction)) / (2 * STEP)
    assert away(product(plain), difference) < DIFFERENCE
    with pytest.raises(RuntimeError, match="not implemented"):
        product(fused)


def test_label_memory_does_not_grow_with_the_steps():
    peaks, paths = [], []
    for steps in (2, 6):
        policy = tuned(steps=steps)
        path = path_of(policy)
        peaks.append(peak_memory(AdjointMatching(), smooth(policy), policy, path))
        paths.append(path.states.untyped_storage().nbytes() / 1e6)
    assert peaks[1] - peaks[0] < 4 * (
        paths[1] - paths[0]
    )  # costates, as a list and stacked, and targets
    with MemoryMeter() as memory:
        policy = tuned(steps=2)
        before = memory.alive
        _ = returns(smooth(policy), rollout(policy.reference, policy, noise_of(policy)))
        through = (memory.peak - before) / 1e6
    assert through > 2 * peaks[1]


def test_guidance_multiplies_the_costates():
    base, norms = stable_diffusion(network().double()), []
    for guidance in (1.0, 7.5):
        chain = StableDiffusionReference(base, PROMPT, NEGATIVE, guidance, STEPS, spacing="leading")
        problem = ControlProblem(chain, FunctionReward(lambda x: x.sin().flatten(1).sum(1)), 1.0)
        noise = Noise.sample(chain, BATCH, torch.Generator().manual_seed(17))
        found = adjoint_norms(problem, noise)
        assert found.shape == (STEPS + 1, BATCH)
        with torch.no_grad():
            final = rollout(chain, Uncontrolled(chain), noise).final
        assert away(found[-1], final.cos().flatten(1).norm(dim=1)) < IDENTITY
        norms.append(found[0].mean())
    assert norms[1] > norms[0]


# Files


@pytest.mark.parametrize("alpha", [3.0, 5.0])
def test_a_pipeline_loads_the_saved_layers(tmp_path: Path, alpha: float):
    """The rank is 3: an alpha that is not the rank survives too."""
    policy = tuned(alpha=alpha)
    chain, noise = policy.reference, drawn_by_pipeline(policy.reference, 1, seed=18)
    assert save_lora(policy.lora, tmp_path).is_file()
    exact_tables(chain)
    pipe: Any = pipeline(stable_diffusion(network().double()), chain)
    with torch.no_grad():
        assert (
            away(
                pipeline_latents(pipe, chain, noise.initial, 18),
                rollout(chain, Uncontrolled(chain), noise).final,
            )
            < ROUNDING
        )
        pipe.load_lora_weights(str(tmp_path))
        assert (
            away(
                pipeline_latents(pipe, chain, noise.initial, 18),
                rollout(chain, policy, noise).final,
            )
            < ROUNDING
        )


def test_the_readme_samples_from_the_trained_chain(tmp_path: Path):
    """Its lines, on the model that comes with the package: float32, levels even in log-SNR."""
    model = Path(__file__).parents[2] / "sd_experiments/tiny/model"
    chain = StableDiffusionReference(
        StableDiffusion.load(model), "four circles", steps=5, spacing="log_snr"
    )
    lora = LoRA(chain.base, rank=3)
    lora.reset(torch.Generator().manual_seed(2), 0.1)
    save_lora(lora, tmp_path)
    pipe: Any = StableDiffusionPipeline.from_pretrained(model)
    pipe.load_lora_weights(tmp_path)
    given = sampling_schedule(pipe.scheduler.config, 5, "log_snr")
    pipe.scheduler = given.scheduler
    noise = drawn_by_pipeline(chain, 2, seed=18, dtype=torch.float32)
    options: dict[str, Any] = {
        "generator": torch.Generator().manual_seed(18),
        "latents": noise.initial.clone(),
        "output_type": "latent",
    }
    with torch.no_grad():
        found = pipe(
            ["four circles"] * 2, timesteps=given.timesteps.tolist(), guidance_scale=1, **options
        ).images
        ours = rollout(chain, LoRAPolicy(chain, lora), noise).final
        assert away(found, ours) < FLOAT32
        assert away(found, rollout(chain, Uncontrolled(chain), noise).final) > 0.01


def test_saved_layers_are_read_back_to_the_bit(tmp_path: Path):
    policy = tuned(alpha=5.0)
    save_lora(policy.lora, tmp_path)
    base = stable_diffusion(network().double())
    again = load_lora(base, tmp_path)
    assert again.weights.keys() == policy.lora.weights.keys()
    assert all(torch.equal(again.weights[name], p) for name, p in policy.lora.weights.items())
    x = randn(19, 1, *policy.reference.dims)
    chain = StableDiffusionReference(base, PROMPT, NEGATIVE, 2.0, STEPS, spacing="leading")
    with torch.no_grad():
        assert torch.equal(LoRAPolicy(chain, again)(1, x), policy(1, x))


def test_incomplete_and_foreign_files_are_refused(tmp_path: Path):
    file = save_lora(shared().lora, tmp_path)
    with pytest.raises(
        InvalidProblem, match="does not exist; give a directory that save_lora wrote"
    ):
        load_lora(stable_diffusion(network().double()), tmp_path / "nowhere")
    tensors, header = read_sealed_tensors(file, "")
    name = next(iter(tensors))
    for change, message in (
        ({name: None}, "lacks 1 layers of the network"),
        (
            {"unet.other.lora_A.weight": torch.zeros(3, 7, dtype=F64)},
            "has 1 layers that the network lacks",
        ),
        ({name: torch.zeros(3, 7, dtype=F64)}, r"has shape \(3, 7\)"),
    ):
        kept = {n: t for n, t in {**tensors, **change}.items() if t is not None}
        file.write_bytes(encode_tensors(kept, header))
        with pytest.raises(InvalidProblem, match=message):
            load_lora(stable_diffusion(network().double()), tmp_path)


def test_layers_with_other_values_are_refused(tmp_path: Path):
    """Of the right names and shapes, or with another rank in the header: the digest tells."""
    file = save_lora(shared().lora, tmp_path)
    tensors, header = read_tensors(file, "")
    name = next(iter(tensors))
    settings = header[LORA_ADAPTER_METADATA_KEY]
    changed = settings.replace('"unet.lora_alpha": ', '"unet.lora_alpha": 9')
    assert changed != settings
    for values, said in (
        ({name: 2 * tensors[name]}, header),
        ({}, header | {LORA_ADAPTER_METADATA_KEY: changed}),
        ({}, {"format": "pt"}),
    ):
        save_file({**tensors, **values}, file, said)
        with pytest.raises(InvalidProblem, match=r"is not what was written|lacks its digest"):
            load_lora(stable_diffusion(network().double()), tmp_path)


def test_layers_of_another_network_and_second_layers_are_refused():
    policy, other = shared(), tuned()
    with pytest.raises(InvalidProblem, match="belong to another network"):
        LoRAPolicy(policy.reference, other.lora)
    with pytest.raises(InvalidProblem, match="carries low-rank layers already"):
        LoRA(policy.reference.base)
    with pytest.raises(InvalidProblem, match="match no layer"):
        LoRA(stable_diffusion(), targets=["nothing"])
    with pytest.raises(InvalidProblem, match="rank = 0; give at least 1"):
        LoRA(stable_diffusion(), rank=0)


def test_layers_on_a_network_in_half_precision_are_trained_in_single():
    base = stable_diffusion(dtype=torch.bfloat16)
    policy = LoRAPolicy(
        StableDiffusionReference(base, PROMPT, steps=STEPS, spacing="leading"), LoRA(base)
    )
    x = randn(21, 1, *policy.reference.dims)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert policy(1, x).dtype == F64
    assert not policy(1, x).any()


# Rewards


def brightness(images: Tensor, prompt: str) -> Tensor:
    return (images * torch.linspace(0, 1, images.shape[-1], dtype=images.dtype)).flatten(1).mean(
        1
    ) + len(prompt)


def test_a_differentiable_score_has_the_derivative_of_decoder_and_score():
    base = stable_diffusion()
    x = randn(22, 3, 4, 8, 8)
    rewards = [DifferentiableImageReward(base, brightness, PROMPT, chunk) for chunk in (1, 4)]
    direction = randn(23, 3, 4, 8, 8)
    with torch.no_grad():
        values = [reward(x) for reward in rewards]
        difference = (rewards[0](x + STEP * direction) - rewards[0](x - STEP * direction)) / (
            2 * STEP
        )
        decoder: Any = base.vae
        pixels = decoder.decode(x / decoder.config.scaling_factor).sample / 2 + 0.5
        assert away(values[0], brightness(pixels.clamp(0, 1), PROMPT)) < IDENTITY
    assert away(values[1], values[0]) < IDENTITY
    for reward in rewards:
        assert away((reward.gradient(x) * direction).flatten(1).sum(1), difference) < DIFFERENCE
    y = x.clone().requires_grad_(True)
    assert away(torch.autograd.grad(rewards[0](y).sum(), y)[0], rewards[1].gradient(x)) < IDENTITY


def test_memory_of_decoding_is_that_of_a_chunk():
    base = stable_diffusion()
    peaks = []
    for count, chunk in ((1, 1), (4, 1), (4, 4)):
        with MemoryMeter() as memory:
            DifferentiableImageReward(base, brightness, PROMPT, chunk).gradient(
                randn(24, count, 4, 8, 8)
            )
        peaks.append(memory.peak)
    state = 4 * 8 * 8 * 8
    assert peaks[1] - peaks[0] < 12 * 3 * state
    assert peaks[2] > 2 * peaks[1]


def test_black_boxes_have_no_gradient_and_say_so():
    policy = shared()
    problem = ControlProblem(
        policy.reference,
        BlackBoxImageReward(policy.reference.base, JPEGCompressibility(), PROMPT),
        1.0,
    )
    path = path_of(policy)
    sentence = (
        "JPEGCompressibility is a black box without a gradient, and this estimator asks for one;"
        " use an estimator of reward values"
    )
    with pytest.raises(InvalidProblem, match=sentence):
        AdjointMatching().label(problem, policy, path)
    with pytest.raises(InvalidProblem, match=sentence):
        returns(problem, rollout(policy.reference, policy, noise_of(policy)))
    with torch.no_grad():
        assert returns(problem, path).shape == (BATCH,)
    cut = DifferentiableImageReward(
        policy.reference.base, lambda images, prompt: brightness(images.detach(), prompt), PROMPT
    )
    with pytest.raises(
        InvalidProblem,
        match="cuts the graph between image and reward; wrap it in BlackBoxImageReward",
    ):
        cut.gradient(path.final)


def test_scores_of_the_wrong_shape_are_refused():
    base = stable_diffusion()
    with pytest.raises(
        InvalidProblem, match=r"returned a tensor of float64, shape \(2, 1\) for 2 images"
    ):
        DifferentiableImageReward(
            base, lambda images, prompt: brightness(images, prompt)[:, None], PROMPT
        )(randn(25, 2, 4, 8, 8))


def test_jpeg_compressibility_is_the_size_of_the_file(tmp_path: Path):
    with torch.no_grad():
        images = decode(stable_diffusion(), 3 * randn(26, 2, 4, 8, 8))
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    found = JPEGCompressibility(quality=80)(images, PROMPT)
    for i, each in enumerate(images):
        array = (each * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(tmp_path / "image.jpg", quality=80)
        assert float(found[i]) == -(tmp_path / "image.jpg").stat().st_size / 1000
    flat = JPEGCompressibility()(torch.full((1, 3, 16, 16), 0.5))
    assert float(flat) > float(
        JPEGCompressibility()(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    )
    with pytest.raises(InvalidProblem, match="quality = 0; JPEG takes 1 to 95"):
        JPEGCompressibility(0)


def test_clip_score_is_the_cosine_of_the_two_embeddings():
    words = tokenizer()
    torch.manual_seed(2)
    model = CLIPModel(clip_config()).double()
    score = CLIPScore(model, words, scale=100.0)
    images = torch.rand(
        2, 3, 12, 12, generator=torch.Generator().manual_seed(3), dtype=F64
    ).requires_grad_(True)
    found = score(images, PROMPT)
    mean, deviation = score.get_buffer("mean").double(), score.get_buffer("deviation").double()
    tokens = words([PROMPT] * 2, return_tensors="pt")
    expected = model(pixel_values=(images - mean) / deviation, **tokens)
    assert (
        away(found.detach(), 100 * (expected.image_embeds * expected.text_embeds).sum(1).detach())
        < IDENTITY
    )
    assert torch.autograd.grad(found.sum(), images)[0].abs().min() > 0
    assert score(torch.rand(1, 3, 20, 30, dtype=F64), PROMPT).shape == (1,)
    with pytest.raises(InvalidProblem, match="the tokenizer knows 1 tokens and CLIP"):
        CLIPScore(model, ["a"])
