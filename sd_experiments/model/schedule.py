r"""Timesteps and signal levels of diffusers' samplers, refused where they are no chain with noise
in every step.

With eta = 1 a change of the denoised picture by D at level abar costs the divergence

.. math:: (s' - s)\,|D|^2 / 2, \qquad s = \overline{a} / (1 - \overline{a}),

where s' is that of the next level. A change of the predicted noise by d makes D = d / sqrt(s) and
costs (s' / s - 1) |d|^2 / 2. Few steps that are even in time end with a jump: with 10 trailing ones
of Stable Diffusion's schedule s' / s - 1 is 1 to 2, but 136 at the last. Layers that all steps
share then pay nearly all of their divergence there, whatever they change elsewhere. Steps that are
even in log s pay alike; this is the spacing "log_snr".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from jaxtyping import Float, Int
from torch import Tensor

from sd_experiments.model.keys import (
    DISTILLED,
    GRID,
    SCHEDULER,
    SCHEDULERS,
    require_keys,
    signature,
)
from socft.checks import require, tried

EVEN = "log_snr"
"""Spacing with levels as even in the logarithm of their signal-to-noise ratio as the trained ones
allow.
"""
CLIPPING = {"clip_sample": False, "thresholding": False}
"""A clipped mean map is not the kernel of the trained chain; the pipelines of 1.x and 2.x switch
clipping off too.
"""
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Schedules of betas that DDIM's scheduler knows by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class SamplingSchedule:
    """Where a sampler evaluates the network.

    Attributes:
        timesteps: training timesteps in denoising order, shape (T,).
        abar: signal levels, shape (T + 1,), float64.
        scheduler: diffusers' scheduler of the same chain, for its pipelines: DDIM, to be called
            with the same number of steps and ``eta``, or if levels are even, the first-order solver
            of the SDE, which is DDIM(1), to be called with ``timesteps``.
    """

    timesteps: Int[Tensor, " steps"]
    abar: Float[Tensor, " steps_plus_1"]
    scheduler: DDIMScheduler | DPMSolverMultistepScheduler


def sampling_schedule(
    config: Any, steps: int, spacing: str | None = None, last_level: float | None = None
) -> SamplingSchedule:
    """Timesteps and levels of diffusers' DDIM sampler, or of one with even levels.

    Args:
        config: a diffusers scheduler configuration.
        steps: sampling steps T.
        spacing: "leading", "trailing" or "log_snr"; as configured by default.
        last_level: level of the sample, below 1; as configured by default.

    Raises:
        InvalidProblem: a chain whose levels do not join up, or end where the last kernel has no
            noise.
    """
    if spacing == EVEN:
        return _even(config, steps, last_level)
    asked = [
        f"{name} = {config[name]}" for name in GRID if config.get(name) not in (None, GRID[name])
    ]
    require(
        spacing is not None or not asked,
        f"the scheduler says {' and '.join(asked)}, so its levels lie between the trained ones;"
        " give sampler.spacing = 'leading', 'trailing' or 'log_snr'.",
    )
    scheduler = (
        ddim_scheduler(config, **CLIPPING)
        if spacing is None
        else ddim_scheduler(config, **CLIPPING, timestep_spacing=spacing)
    )
    trained = scheduler.config["num_train_timesteps"]
    require(
        1 <= steps <= trained,
        f"steps = {steps}; the network was trained with {trained}, so give between 1 and"
        f" {trained}.",
    )
    tried(scheduler.set_timesteps, (steps,), "setting the levels of its scheduler_config.json")
    timesteps, stride = scheduler.timesteps, trained // steps
    how = scheduler.config["timestep_spacing"]
    require(
        bool((timesteps.diff() == -stride).all()),
        f"{steps} steps with {how!r} spacing do not chain: diffusers steps {stride} of {trained}"
        f" timesteps at a time; {_spacing_remedy(how, steps, trained)}.",
    )
    offset = int(timesteps[0]) - (trained - 1)
    require(
        offset <= 0,
        f"{steps} steps with {how!r} spacing begin at timestep {int(timesteps[0])}, and the network"
        f" was trained up to {trained - 1}; give fewer, or a scheduler with steps_offset = 0.",
    )
    if last_level is not None:
        scheduler.final_alpha_cumprod = torch.tensor(last_level, dtype=torch.float64)
    levels = torch.cat(
        [
            scheduler.alphas_cumprod[timesteps].double(),
            scheduler.final_alpha_cumprod.double().reshape(1),
        ]
    )
    _require_noise(levels, how, last_level, float(scheduler.alphas_cumprod[0]))
    return SamplingSchedule(timesteps, levels, scheduler)


def _spacing_remedy(how: str, steps: int, trained: int) -> str:
    if how == "linspace":
        return "give sampler.spacing = 'leading', whose timesteps are that far apart"
    return (
        f"give a number of steps that divides {trained}, or spacing = 'leading'"
        if trained % steps
        else "give spacing = 'leading'"
    )


def _even(config: Any, steps: int, last_level: float | None) -> SamplingSchedule:
    require(
        last_level is None,
        f"last_level = {last_level}; {EVEN!r} spacing ends at the first trained level: leave it"
        " out.",
    )
    abar = ddim_scheduler(config).alphas_cumprod.double()
    most = len(abar) - 1
    require(
        1 <= steps <= most,
        f"steps = {steps}; {EVEN!r} spacing has a trained level for every step: give between 1 and"
        f" {most}.",
    )
    require_signal(abar[[-1]], EVEN)
    _require_noise(abar[[-1, 1, 0]], EVEN, None, float(abar[0]))
    log_ratio = torch.logit(abar)
    wanted = torch.linspace(float(log_ratio[-1]), float(log_ratio[0]), steps + 1, dtype=abar.dtype)[
        :-1
    ]
    chosen: list[int] = []
    for nearest in reversed((log_ratio - wanted[:, None]).abs().argmin(1).tolist()):
        chosen.append(max(nearest, chosen[-1] + 1 if chosen else 1))
    chosen.reverse()
    require(
        chosen[0] <= most,
        f"steps = {steps}; the trained levels are too uneven for {EVEN!r} spacing: give fewer.",
    )
    how: dict[str, Any] = {
        "algorithm_type": "sde-dpmsolver++",
        "solver_order": 1,
        "final_sigmas_type": "sigma_min",
    }
    known = signature(DPMSolverMultistepScheduler).keys() & signature(DDIMScheduler).keys()
    levels = {name: config[name] for name in known if name in config}
    options: dict[str, Any] = levels | how | {"thresholding": False}
    scheduler = DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(timesteps=chosen)
    return SamplingSchedule(torch.tensor(chosen), abar[[*chosen, 0]], scheduler)


def trained_chain(scheduler: Any, clipped: bool = False) -> dict[str, Any]:
    """What the configuration of a scheduler says of the chain: the keys that DDIM's scheduler has
    too, with the defaults of the scheduler's own class, and those that ask for other levels.

    Args:
        clipped: whether its pipeline clips pictures where the configuration says so.

    Raises:
        InvalidProblem: a scheduler without trained levels, or a key that is not honoured.
    """
    name = type(scheduler).__name__
    require(
        name not in DISTILLED,
        f"{name} samples from a network that was distilled to jump to the end of the chain and has"
        " no score; give the checkpoint that it was distilled from.",
    )
    require(
        name in SCHEDULERS,
        f"{name} does not say at which of the trained levels of Stable Diffusion the network is"
        f" called; give a checkpoint with one of: {', '.join(SCHEDULERS)}.",
    )
    require_keys(scheduler.config, type(scheduler), SCHEDULER, "the scheduler")
    read = {*signature(DDIMScheduler), *GRID, "final_sigmas_type"}
    config = {key: scheduler.config[key] for key in read if key in scheduler.config}
    require(
        not (clipped and config.get("clip_sample")),
        "the scheduler says clip_sample = True, which this pipeline obeys, and a clipped mean is no"
        " kernel of the trained chain: set it to false in scheduler_config.json.",
    )
    if config["beta_schedule"] not in BETAS:
        betas = {"trained_betas": scheduler.betas.tolist(), "rescale_betas_zero_snr": False}
        return config | betas | {"beta_schedule": "linear"}
    return config


def ddim_scheduler(config: Any, **changes: Any) -> DDIMScheduler:
    """A DDIM scheduler with what any scheduler's configuration says of the chain."""
    ends = {"set_alpha_to_one": False} if config.get("final_sigmas_type") == "sigma_min" else {}
    said = {key: config[key] for key in signature(DDIMScheduler) if key in config}
    options: dict[str, Any] = ends | said | changes
    return DDIMScheduler(**options)


def require_signal(levels: Tensor, spacing: str) -> None:
    """Refuse a chain that starts without signal, where the noise says nothing about the picture.

    Raises:
        InvalidProblem: it does.
    """
    require(
        float(levels[0]) > 0,
        f"abar[0] = 0 with {spacing!r} spacing: the first step has no signal and no score; give"
        " spacing='leading', which starts later.",
    )


def _require_noise(levels: Tensor, how: str, given: float | None, first: float) -> None:
    """Refuse a chain without noise at its end.

    Args:
        given: the last level that was asked for, if one was.
        first: the first trained level, at which diffusers ends with ``set_alpha_to_one = False``.
    """
    last, before = float(levels[-1]), float(levels[-2])
    softened = (1 + before) / 2  # as `socft.schedule.soften_last` does
    named = "the last level" if given is None else f"last_level = {given:g}"
    would_do = last == 1 and before < first and given is None
    other = ", or a scheduler with set_alpha_to_one = False" if would_do else ""
    reason = (
        f"{named} is not above abar = {before:.6g}, that of the last step"
        if last <= before
        else f"the last step goes from abar = {before:.6g} to {last:.6g}, where its sigma is 0 and"
        " no control has a finite KL"
    )
    require(
        before < last < 1,
        f"{reason}; give last_level = {softened:.6g} (any level between {before:.6g} and 1)"
        f"{other}.",
    )
