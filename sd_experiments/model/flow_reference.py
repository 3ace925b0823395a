r"""Stable Diffusion 3 and FLUX as pre-trained chains: the kernels of `socft.flow` with the velocity
of a network.

The levels are those of the model's own pipeline, timestep shift included, but for the last: the
pipeline ends at noise 0, where no control has a finite divergence. Training with the memoryless
kernel DDIM(1) makes a model that any sampler of the same velocity may draw from, so that
`ode_sample`, which is the pipeline's own sampler, is allowed afterwards (arXiv 2409.08861).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sd_experiments.model.denoiser import Condition
from sd_experiments.model.flow_model import FlowModel
from sd_experiments.model.latent_reference import FineTunedFlow, LatentReference
from sd_experiments.model.prompts import EncodedPrompt, Size
from sd_experiments.model.transformer import GUIDANCE
from socft.checks import require
from socft.flow import FlowReference, FlowSchedule, VelocityModel, flow_ddim
from socft.policy import Policy
from socft.reference import States, Step

Kernel = Callable[[Tensor], FlowSchedule]
"""Times from noise to data -> the kernels between them."""
DISTILLED_GUIDANCE = 3.5
"""What FLUX's pipeline tells a network that was distilled from guided ones."""
END = 0.2
"""Part of the last noise but one that is suggested as the noise of the sample."""


class FlowModelReference(FlowReference, LatentReference[FlowModel]):
    """One prompt's sampler as a chain of ``steps`` kernels on latents, differentiable in the state.

    Args:
        base: the frozen parts, shared between references.
        prompt: what the image should show.
        negative_prompt: what guidance leads away from.
        guidance: scale of guidance by two evaluations, part of the pre-trained model; 1 for none.
        steps: sampling steps.
        kernel: makes kernels of times, such as `socft.flow.flow_ddim`, which is memoryless.
        spacing: "trailing" for levels that are even before the shift; as the pipeline by default.
        last_level: signal level 1 - s of the sample, below 1.
        latent: height and width of a latent; the network's own by default.
        distilled: guidance scale that a network is told which was distilled from guided ones; as
            its pipeline by default.

    Raises:
        InvalidProblem: the last step has no noise, the latent is not whole patches, or a number is
            out of range.
    """

    def __init__(
        self,
        base: FlowModel,
        prompt: str,
        negative_prompt: str = "",
        guidance: float = 1.0,
        steps: int = 28,
        kernel: Kernel = flow_ddim,
        spacing: str | None = None,
        last_level: float | None = None,
        latent: Size | None = None,
        distilled: float | None = None,
    ):
        require(
            guidance >= 1,
            f"guidance = {guidance}; give at least 1 (none), pipelines ignore smaller values.",
        )
        require(steps >= 1, f"steps = {steps}; give at least 1.")
        self.base = base
        self.prompt, self.negative_prompt = prompt, negative_prompt
        height, width = base.latent_dims[1:] if latent is None else latent
        base.tokens((height, width))
        scale = _distilled(base, distilled)
        told = [
            _with_guidance(base.encode(each, (height, width), negative), scale)
            for each, negative in ((prompt, False), (negative_prompt, True))
        ]
        self.condition = Condition(told[0], told[1], guidance)
        self.sampling = base.levels(steps, (height, width), spacing)
        times = _ending(self.sampling.noise, last_level)
        super().__init__(kernel(times), self.output, (base.latent_dims[0], height, width))

    def predict(self, k: Step, x: States, adapted: bool, condition: Condition) -> States:
        timesteps = self.sampling.timesteps[
            k.to(self.sampling.timesteps.device) if isinstance(k, Tensor) else k
        ].expand(len(x))
        return self.base.denoiser(timesteps, x, condition, adapted)

    def chain_of(self, output: VelocityModel, /) -> FlowReference:
        return FineTunedFlow(self.schedule, output, self.dims)


def ode_sample(
    reference: FlowModelReference, velocity: VelocityModel, initial: States
) -> Float[Tensor, "steps_plus_1 batch *dims"]:
    """States of the model's own sampler, Euler's steps ``x' = x + (s' - s) u`` down to noise 0.

    Args:
        velocity: the reference's own, or that of `tuned_velocity`.
    """
    states = [initial]
    for k, step in enumerate(reference.sampling.noise.diff()):
        states.append(states[-1] + step.to(initial) * velocity(k, states[-1]))
    return torch.stack(states)


def tuned_velocity(reference: FlowModelReference, policy: Policy) -> VelocityModel:
    """The velocity that a policy's control stands for."""
    return lambda k, x: reference.velocity_of(k, x, policy(k, x))


def _distilled(base: FlowModel, scale: float | None) -> float | None:
    require(
        scale is None or base.is_distilled,
        f"distilled guidance = {scale}, but the network is told none; leave it out, and give"
        " guidance.",
    )
    return DISTILLED_GUIDANCE if base.is_distilled and scale is None else scale


def _with_guidance(told: EncodedPrompt, scale: float | None) -> EncodedPrompt:
    if scale is None:
        return told
    number = torch.full((1, 1), scale, device=told.text.device)
    return dataclasses.replace(told, added={**told.added, GUIDANCE: number})


def _ending(noise: Tensor, last_level: float | None) -> Tensor:
    """The levels with another end, where the last kernel has noise."""
    before = float(noise[-2])
    require(
        last_level is not None and 1 - before < last_level < 1,
        f"last_level = {last_level}: the last step goes from signal {1 - before:.6g}, and to 1 it"
        f" has no noise and no control a finite KL; give last_level = {1 - END * before:.6g} (any"
        f" level between {1 - before:.6g} and 1).",
    )
    assert last_level is not None
    return torch.cat([noise[:-1], noise.new_tensor([1 - last_level])])
