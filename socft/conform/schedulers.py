"""Samplers of diffusers' schedulers, to be checked: ``socft conform
socft.conform.schedulers:flow_match_euler``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from socft.conform.sampler import Sampler, of_step

STEPS = 10


def ddim(steps: int = STEPS) -> Sampler:
    """DDIMScheduler at eta = 1 with the levels of Stable Diffusion, ending at the first training
    level.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    return _of_levels(scheduler, steps, eta=1.0)


def ddpm(steps: int = STEPS) -> Sampler:
    """DDPMScheduler with the posterior variance."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler(clip_sample=False, timestep_spacing="trailing")
    return _of_levels(scheduler, steps)


def dpm_sde(steps: int = STEPS) -> Sampler:
    """DPMSolverMultistepScheduler of first order, ``sde-dpmsolver++``."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import (
        DPMSolverMultistepScheduler,
    )

    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++",
        solver_order=1,
        timestep_spacing="trailing",
        final_sigmas_type="sigma_min",
    )
    scheduler.set_timesteps(steps)
    sigma = torch.as_tensor(scheduler.sigmas).double()
    signal = 1 / (1 + sigma.square()).sqrt()
    return of_step(
        _step(scheduler, steps), sigma * signal, signal, "epsilon", precision=torch.float32
    )


def flow_match_euler(steps: int = STEPS) -> Sampler:
    """FlowMatchEulerDiscreteScheduler, the deterministic equation."""
    return _flow(steps, stochastic=False)


def flow_match_stochastic(steps: int = STEPS) -> Sampler:
    """FlowMatchEulerDiscreteScheduler with ``stochastic_sampling``, which draws all noise anew at
    every step.
    """
    return _flow(steps, stochastic=True)


def _flow(steps: int, stochastic: bool) -> Sampler:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
        FlowMatchEulerDiscreteScheduler,
    )

    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
    scheduler.set_timesteps(steps)
    return of_step(
        _step(scheduler, steps),
        torch.as_tensor(scheduler.sigmas).double(),
        precision=torch.float32,
        refined=lambda more: _flow(more, stochastic),
    )


def _of_levels(scheduler: Any, steps: int, **options: Any) -> Sampler:
    """The sampler of a scheduler with ``alphas_cumprod``."""
    scheduler.set_timesteps(steps)
    levels = scheduler.alphas_cumprod.double()
    last = float(scheduler.final_alpha_cumprod) if hasattr(scheduler, "final_alpha_cumprod") else 1
    abar = torch.cat([levels[scheduler.timesteps], torch.tensor([last], dtype=torch.float64)])
    return of_step(
        _step(scheduler, steps, **options),
        (1 - abar).sqrt(),
        abar.sqrt(),
        "epsilon",
        precision=torch.float32,
    )


def _step(scheduler: Any, steps: int, **options: Any) -> Any:
    def step(k: int, x: Tensor, output: Tensor, generator: torch.Generator) -> Tensor:
        scheduler.set_timesteps(steps)  # forgets where it was
        found = scheduler.step(
            output.detach(), scheduler.timesteps[k], x, generator=generator, **options
        )
        return found.prev_sample

    return step
