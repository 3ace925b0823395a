r"""Stable Diffusion 1.x and 2.x as pre-trained chains.

A latent diffusion network predicts the noise :math:`\varepsilon` in a latent
:math:`x = \sqrt{\bar a_k}\, x_0 + \sqrt{1-\bar a_k}\, \varepsilon`, or the velocity
:math:`\sqrt{\bar a_k}\, \varepsilon - \sqrt{1-\bar a_k}\, x_0`. Either gives the score
:math:`s_k = -\varepsilon_k / \sqrt{1-\bar a_k}`, and `socft.schedule.ddim` makes a chain of it (Song et al. 2021, equation 16; at
eta = 1 equation 1 of arXiv 2412.18164v4 with the posterior variance). With classifier-free guidance of scale w the noise is

.. math:: \varepsilon_k(x) = \varepsilon_k(x, \text{negative})
   + w\, \big(\varepsilon_k(x, \text{prompt}) - \varepsilon_k(x, \text{negative})\big).

Prompt and guidance scale are closed over, so estimators see (k, x) and nothing else; the references of many prompts share one
`StableDiffusion`, hence one network. The network runs in its own dtype on its own device, a few rows at a time; everything else
is in the dtype of the state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from socft.checks import require
from socft.reference import ScoreReference, States, Step
from socft.schedule import ddim, soften_last

Context = Float[Tensor, "1 tokens width"]

CLIPPING = {"clip_sample": False, "thresholding": False}
"""A clipped mean map is not the kernel of the trained chain; Stable Diffusion's pipelines switch clipping off too."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """What the network is told about the image.

    Attributes:
        prompt: the encoded prompt, shape (1, tokens, width).
        negative: the encoded negative prompt, used when ``guidance`` is not 1.
        guidance: the guidance scale w; 1 is the conditional network itself.
    """

    prompt: Context
    negative: Context
    guidance: float = 1.0


def evaluated_again(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function, keeping its inputs in place of its graph; the function itself inside transforms of torch.func."""
    if torch._C._are_functorch_transforms_active():
        return function
    return functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False, **options)


class Denoiser:
    """The network with frozen weights, called in its own dtype on its own device, ``micro_batch`` samples at a time.

    Low-rank layers that a `sd_experiments.policy.LoRA` adds act only in calls that ask for them, so one network is both the
    pre-trained and the fine-tuned one. When a graph is recorded over several micro-batches, only their inputs are kept and each
    is computed again in the backward pass, so memory is that of one micro-batch whatever the batch (except inside transforms of
    torch.func, which rule that out, here and for ``checkpointing``).

    Args:
        unet: the network.
        micro_batch: samples per call; all of them by default. With guidance a sample takes two rows.
        checkpointing: keep only the inputs of the network's blocks for the backward pass.
        plain_attention: compute attention from matrix products, which can be differentiated twice; the fused kernels cannot, and
            have no forward mode either. Calls in forward mode do this by themselves.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        micro_batch: int | None = None,
        checkpointing: bool = False,
        plain_attention: bool = False,
    ):
        require(micro_batch is None or micro_batch >= 1, f"micro_batch = {micro_batch}; give at least 1, or None for no limit.")
        self.unet = unet.requires_grad_(False).eval()
        self.micro_batch = micro_batch
        self.plain_attention = plain_attention
        self.adapters: Sequence[Any] = ()
        self.calls = 0
        self._adapted = False
        if checkpointing:
            unet.enable_gradient_checkpointing(self._checkpoint_block)

    def __call__(self, timesteps: Int[Tensor, " batch"], x: States, condition: Condition, adapted: bool = False) -> States:
        """The network's guided output in the dtype and on the device of ``x``, with the low-rank layers or without."""
        rows = self.micro_batch or max(len(x), 1)
        if len(x) <= rows:
            return self._predict(timesteps, x, condition, adapted)
        predict = evaluated_again(self._predict) if torch.is_grad_enabled() else self._predict
        parts = zip(timesteps.split(rows), x.split(rows), strict=True)
        return torch.cat([predict(t, y, condition, adapted) for t, y in parts])

    def adopt(self, adapters: Sequence[Any]) -> None:
        """Take charge of the network's low-rank layers, which are off from here on."""
        self.adapters = tuple(adapters)
        _switch(self.adapters, False)

    def _predict(self, timesteps: Tensor, x: Tensor, condition: Condition, adapted: bool) -> Tensor:
        weight, negative = condition.guidance, condition.negative
        with self._switched(adapted), self._attention():
            if weight == 1:
                return self._network(timesteps, x, condition.prompt).to(x)
            context = torch.cat([negative.expand(len(x), -1, -1), condition.prompt.expand(len(x), -1, -1)])
            without, given = self._network(timesteps.repeat(2), torch.cat([x, x]), context).to(x).chunk(2)
            return without + weight * (given - without)

    def _network(self, timesteps: Tensor, x: Tensor, context: Tensor) -> Tensor:
        self.calls += 1
        weight = next(self.unet.parameters())
        context = context.to(weight).expand(len(x), -1, -1)
        return self.unet(x.to(weight), timesteps.to(weight.device), encoder_hidden_states=context, return_dict=False)[0]

    @contextlib.contextmanager
    def _switched(self, adapted: bool) -> Iterator[None]:
        """Low-rank layers on or off. peft's own switch also flips ``requires_grad``, and is slow beside a small network."""
        before, self._adapted = self._adapted, adapted
        if adapted != before:
            _switch(self.adapters, adapted)
        try:
            yield
        finally:
            self._adapted = before
            if adapted != before:
                _switch(self.adapters, before)

    def _attention(self) -> contextlib.AbstractContextManager[Any]:
        # The level is looked at rather than the tangent, which a reverse mode inside the forward mode hides.
        forward_mode = forward_ad._current_level >= 0
        return sdpa_kernel(SDPBackend.MATH) if forward_mode or self.plain_attention else contextlib.nullcontext()

    def _checkpoint_block(self, block: Callable[..., Any], *args: Any) -> Any:
        """A block whose second evaluation, in the backward pass, has the low-rank layers as they are now."""
        adapted = self._adapted

        def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
            return contextlib.nullcontext(), self._switched(adapted)

        return evaluated_again(block, context_fn=contexts)(*args)


def _switch(adapters: Sequence[Any], adapted: bool) -> None:
    for layer in adapters:
        object.__setattr__(layer, "_disable_adapters", not adapted)  # a plain flag: past the slow attributes of modules


class StableDiffusion:
    """The frozen parts of a pipeline, shared by the references of every prompt.

    Args:
        unet: predicts noise or velocity.
        vae: between images and latents.
        text_encoder: encodes the tokens of a prompt.
        tokenizer: makes tokens of a prompt.
        scheduler: any scheduler; its noise levels, prediction type and timestep spacing are read.
        micro_batch: samples per network call; bounds the memory.
        checkpointing: keep only the inputs of the network's blocks for backward passes.
        plain_attention: attention that can be differentiated twice (see `Denoiser`).

    Raises:
        InvalidProblem: a network that needs more than (latent, timestep, text), another prediction type, or a vocabulary that
            is not the text encoder's.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: nn.Module,
        tokenizer: Any,
        scheduler: Any,
        micro_batch: int | None = None,
        checkpointing: bool = False,
        plain_attention: bool = False,
    ):
        config = _scheduler(scheduler.config).config
        _require_text_to_image(unet, config["prediction_type"])
        vocabulary = getattr(text_encoder.config, "vocab_size", len(tokenizer))
        require(
            len(tokenizer) == vocabulary,
            f"the tokenizer knows {len(tokenizer)} tokens and the text encoder {vocabulary}; load both from one directory.",
        )
        self.denoiser = Denoiser(unet, micro_batch, checkpointing, plain_attention)
        self.vae = vae.requires_grad_(False).eval()
        self.text_encoder = text_encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.scheduler_config = config

    @classmethod
    def from_pipeline(cls, pipeline: Any, micro_batch: int | None = None, **options: bool) -> Self:
        """The parts of a diffusers pipeline, frozen in place."""
        parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)
        return cls(*parts, micro_batch=micro_batch, **options)

    @classmethod
    def load(
        cls,
        directory: str | FilePath,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        micro_batch: int | None = None,
        **options: bool,
    ) -> Self:
        """The Stable Diffusion saved in a local directory; nothing is downloaded.

        Raises:
            InvalidProblem: there is no pipeline in the directory.
        """
        found = (FilePath(directory) / "model_index.json").is_file()
        require(found, f"{str(directory)!r} holds no model_index.json; give the directory of a saved diffusers pipeline.")
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(directory), dtype=dtype, local_files_only=True, safety_checker=None, requires_safety_checker=False
        )
        return cls.from_pipeline(pipeline.to(device), micro_batch, **options)

    @property
    def unet(self) -> UNet2DConditionModel:
        """The network."""
        return self.denoiser.unet

    @torch.no_grad()
    def encode(self, prompt: str) -> Context:
        """The text encoder's last hidden state.

        Raises:
            InvalidProblem: the prompt does not fit into the tokens the network can read.
        """
        longest = self.tokenizer.model_max_length
        count = len(self.tokenizer(prompt).input_ids)
        require(count <= longest, f"the prompt {prompt!r} takes {count} tokens; the network reads {longest}: shorten it.")
        tokens = self.tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")
        device = next(self.text_encoder.parameters()).device
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        return self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]


def _require_text_to_image(unet: Any, prediction: str) -> None:
    config = unet.config
    extra = [
        name
        for name in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim")
        if getattr(config, name, None) is not None
    ]
    require(
        not extra, f"the network needs {' and '.join(extra)}; only networks of (latent, timestep, text) are supported: 1.x and 2.x."
    )
    require(
        config.in_channels == config.out_channels,
        f"the network maps {config.in_channels} channels to {config.out_channels}; give one for text to image, not inpainting.",
    )
    require(
        prediction in _NOISE,
        f"the scheduler says prediction_type = {prediction!r}; give a network that predicts {' or '.join(map(repr, _NOISE))}.",
    )


_NOISE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, output, abar: output,
    "v_prediction": lambda x, output, abar: abar.sqrt() * output + (1 - abar).sqrt() * x,
}
"""(x, output, abar) -> predicted noise."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """Where a sampler evaluates the network.

    Attributes:
        timesteps: training timesteps in denoising order, shape (T,).
        abar: signal levels, shape (T + 1,), float64.
        scheduler: diffusers' scheduler of the same chain, for its pipelines; call them with the same ``eta``.
    """

    timesteps: Int[Tensor, " steps"]
    abar: Float[Tensor, " steps_plus_1"]
    scheduler: DDIMScheduler


def sampling(config: Any, steps: int, spacing: str | None = None, last_level: float | None = None) -> Sampling:
    """Timesteps and levels of diffusers' DDIM sampler.

    Args:
        config: a diffusers scheduler configuration.
        steps: sampling steps T.
        spacing: "leading" or "trailing"; as configured by default.
        last_level: level of the sample, below 1; as configured by default.

    Raises:
        InvalidProblem: a chain whose levels do not join up, reach 0, or end where the last kernel has no noise.
    """
    scheduler = _scheduler(config, **CLIPPING) if spacing is None else _scheduler(config, **CLIPPING, timestep_spacing=spacing)
    trained = scheduler.config["num_train_timesteps"]
    require(1 <= steps <= trained, f"steps = {steps}; the network was trained with {trained}, so give between 1 and {trained}.")
    scheduler.set_timesteps(steps)
    timesteps, stride = scheduler.timesteps, trained // steps
    how = scheduler.config["timestep_spacing"]
    require(
        int(timesteps[0]) < trained and bool((timesteps.diff() == -stride).all()),
        f"{steps} steps with {how!r} spacing do not chain: diffusers steps {stride} of {trained} timesteps at a time; give a "
        f"number of steps that divides {trained}, or spacing='leading'.",
    )
    if last_level is not None:
        scheduler.final_alpha_cumprod = torch.tensor(last_level, dtype=torch.float64)
    levels = torch.cat([scheduler.alphas_cumprod[timesteps].double(), scheduler.final_alpha_cumprod.double().reshape(1)])
    _require_noise(levels, how)
    return Sampling(timesteps, levels, scheduler)


def _scheduler(config: Any, **changes: Any) -> DDIMScheduler:
    scheduler = DDIMScheduler.from_config(config, **changes)
    assert isinstance(scheduler, DDIMScheduler)
    return scheduler


def _require_noise(levels: Tensor, how: str) -> None:
    require(
        float(levels[0]) > 0,
        f"abar[0] = 0 with {how!r} spacing: the first step has no signal and no score; give spacing='leading', which starts later.",
    )
    last, before = float(levels[-1]), float(levels[-2])
    softened = float(soften_last(torch.cat([levels[:-1], levels.new_ones(1)]))[-1])
    require(
        before < last < 1,
        f"the last step goes from abar = {before:.6g} to {last:.6g}, where its sigma is 0 and no control has a finite KL; give "
        f"last_level = {softened:.6g} (any level between {before:.6g} and 1), or a scheduler with set_alpha_to_one = False.",
    )


class StableDiffusionReference(ScoreReference):
    """One prompt's sampler as a chain of ``steps`` kernels on latents, differentiable in the state.

    Args:
        base: the frozen parts, shared between references.
        prompt: what the image should show.
        negative_prompt: what guidance leads away from.
        guidance: guidance scale, part of the pre-trained model; 1 for none.
        steps: sampling steps.
        eta: noise of DDIM(eta), in (0, 1]; 1 is memoryless in the limit of many steps.
        spacing: "leading" or "trailing" timesteps; as the scheduler is configured by default.
        last_level: signal level of the sample, below 1; as the scheduler is configured by default.
        latent: height and width of a latent; the network's own by default.

    Raises:
        InvalidProblem: the last sigma is zero, the levels do not chain, or a number is out of range.
    """

    def __init__(
        self,
        base: StableDiffusion,
        prompt: str,
        negative_prompt: str = "",
        guidance: float = 1.0,
        steps: int = 50,
        eta: float = 1.0,
        spacing: str | None = None,
        last_level: float | None = None,
        latent: tuple[int, int] | None = None,
    ):
        require(guidance >= 1, f"guidance = {guidance}; give at least 1 (none), pipelines ignore smaller values.")
        require(eta > 0, f"eta = {eta}: no step has noise and no control a finite KL; give eta in (0, 1].")
        size: Any = base.unet.config["sample_size"] if latent is None else latent
        height, width = (size, size) if isinstance(size, int) else size
        self.base = base
        self.prompt = prompt
        self.negative_prompt = negative_prompt
        self.eta = eta
        self.condition = Condition(base.encode(prompt), base.encode(negative_prompt), guidance)
        self.sampling = sampling(base.scheduler_config, steps, spacing, last_level)
        self._noise = _NOISE[base.scheduler_config["prediction_type"]]
        self._kept: _Kept | None = None
        self._sharing = False
        super().__init__(ddim(self.sampling.abar, eta), self._frozen_score, (base.unet.config["in_channels"], height, width))

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return self.condition.guidance

    def tuned_score(self, k: Step, x: States, guided: bool = True) -> States:
        """The score with the low-rank layers, with this reference's guidance or with none."""
        return self._predicted_score(k, x, True, self.condition if guided else dataclasses.replace(self.condition, guidance=1.0))

    @contextlib.contextmanager
    def sharing_graphs(self) -> Iterator[None]:
        """Let evaluations at the very same state tensor share one graph, as they share values without a graph anyway.

        For code that goes backward once after all its evaluations, such as the adjoint recursions: a full adjoint then evaluates
        the frozen network once per step in place of twice.
        """
        before, self._sharing = self._sharing, True
        try:
            yield
        finally:
            self._sharing, self._kept = before, None

    def _frozen_score(self, k: Step, x: States) -> States:
        if not self._may_keep(k, x):
            return self._predicted_score(k, x, False, self.condition)
        if self._kept is None or not self._kept.matches(k, x):
            self._kept = None
            self._kept = _Kept.of(k, x, self._predicted_score(k, x, False, self.condition))
        return self._kept.score

    def _may_keep(self, k: Step, x: Tensor) -> bool:
        recorded = torch.is_grad_enabled() and x.requires_grad
        transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or x.is_inference()
        return isinstance(k, int) and not transformed and (self._sharing or not recorded)

    def _predicted_score(self, k: Step, x: Tensor, adapted: bool, condition: Condition) -> Tensor:
        timesteps = self.sampling.timesteps[k.to(self.sampling.timesteps.device) if isinstance(k, Tensor) else k].expand(len(x))
        abar = self.sampling.abar[k.to(self.sampling.abar.device) if isinstance(k, Tensor) else k].to(x)
        abar = abar.reshape(-1, *[1] * (x.ndim - 1))
        output = self.base.denoiser(timesteps, x, condition, adapted)
        return -self._noise(x, output, abar) / (1 - abar).sqrt()


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """The last evaluation of the frozen network: a step of a rollout asks for it twice, in the policy and in the kernel."""

    k: int
    x: Tensor
    version: int
    recorded: bool
    score: Tensor

    @classmethod
    def of(cls, k: Step, x: Tensor, score: Tensor) -> _Kept:
        assert isinstance(k, int)
        return cls(k, x, x._version, score.requires_grad, score)

    def matches(self, k: Step, x: Tensor) -> bool:
        """Whether this is the value at ``(k, x)``: the same tensor, not changed since, with a graph if one is being recorded."""
        recorded = torch.is_grad_enabled() and x.requires_grad
        return self.k == k and self.x is x and self.version == x._version and self.recorded == recorded
