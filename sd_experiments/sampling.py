"""Timesteps and signal levels of diffusers' DDIM sampler, refused where they are no chain with noise in every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float, Int
from torch import Tensor

from socft.checks import require
from socft.schedule import soften_last

CLIPPING = {"clip_sample": False, "thresholding": False}
"""A clipped mean map is not the kernel of the trained chain; Stable Diffusion's pipelines switch clipping off too."""


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
    scheduler = (
        ddim_scheduler(config, **CLIPPING) if spacing is None else ddim_scheduler(config, **CLIPPING, timestep_spacing=spacing)
    )
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


def ddim_scheduler(config: Any, **changes: Any) -> DDIMScheduler:
    """A DDIM scheduler with the configuration of any scheduler."""
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
