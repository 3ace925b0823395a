"""What a configuration needs that is missing here, and an estimate of its memory and time."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sd_experiments import config
from sd_experiments.build import BLACK_BOXES, ESTIMATORS, REWARDS, device_of, load_model, load_score, made
from sd_experiments.session import settings_of
from sd_experiments.stable_diffusion import StableDiffusion
from sd_experiments.weights import parts_of
from socft.checks import InvalidProblem, require
from socft.estimators.base import Cost

GB = 1e9
HOURS = 3600.0
MINUTES = 60.0
REPEATS = 5
DERIVATIVE = 3.0
"""Time of an evaluation and its vector-Jacobian product, in evaluations."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: what it is.
        good: whether the run can go ahead with it.
        detail: what was found, or what to do.
    """

    what: str
    good: bool
    detail: str


def check(file: Path) -> list[Finding]:
    """Load everything and print what was found.

    Raises:
        InvalidProblem: something is missing.
    """
    settings = settings_of(file)
    model, base = _model(settings.model)
    findings = [model, _reward(settings.reward, base), _estimator(settings.estimator), _device(settings.model)]
    if base is not None and all(each.good for each in findings):
        findings += [Finding("memory", True, _memory(settings, base)), Finding("time", True, _time(settings, base))]
    for each in findings:
        print(f"{'ok     ' if each.good else 'missing'}  {each.what}: {each.detail}")
    bad = [each.what for each in findings if not each.good]
    require(not bad, f"{file} cannot run here yet: {', '.join(bad)}.")
    return findings


def _model(settings: config.Model) -> tuple[Finding, StableDiffusion | None]:
    """The model, loaded; None where it cannot be."""
    folder = Path(settings.path)
    if settings.path == "tiny":
        from sd_experiments import tiny

        folder = tiny.MODEL
    else:
        absent = [str(folder / part) for part in parts_of(folder) if not (folder / part).is_dir()]
        if not (folder / "model_index.json").is_file() or absent:
            lost = ", ".join(absent) or str(folder / "model_index.json")
            remedy = "put a diffusers pipeline there (weights as safetensors, tokenizer, scheduler)"
            return Finding("model", False, f"{lost} not found; {remedy}"), None
    try:
        return Finding("model", True, f"{folder}, {_size(folder)}"), load_model(settings)
    except (InvalidProblem, OSError) as error:
        return Finding("model", False, str(error)), None


def _reward(settings: config.Reward, base: StableDiffusion | None) -> Finding:
    """The reward, loaded if there is a model whose pictures it can score."""
    needed: dict[str, tuple[str, ...]] = {
        "image_reward": ("ImageReward.pt", "med_config.json", "bert-base-uncased"),
        "clip": ("config.json", "model.safetensors"),
    }
    if settings.name in needed and settings.path is None:
        return Finding("reward", False, f"reward.path is not given; it must hold {', '.join(needed[settings.name])}")
    absent = [
        str(Path(settings.path or "") / name)
        for name in needed.get(settings.name, ())
        if not (Path(settings.path or "") / name).exists()
    ]
    if absent:
        return Finding("reward", False, f"{', '.join(absent)} not found")
    known = settings.name in REWARDS or ":" in settings.name
    if base is None:
        return Finding(
            "reward", known, settings.name if known else f"there is no {settings.name!r}; known are {', '.join(REWARDS)}"
        )
    return _tried("reward", lambda: settings.name, lambda: load_score(settings, base))


def _estimator(settings: config.Estimator) -> Finding:
    return _tried("estimator", lambda: settings.name, lambda: made("estimator", ESTIMATORS, settings.name, settings.options))


def _device(settings: config.Model) -> Finding:
    def named() -> str:
        device = device_of(settings.device)
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            return f"{torch.cuda.get_device_name(device)}, {free / GB:.0f} of {total / GB:.0f} GB free"
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"{os.cpu_count()} CPU cores, {free / GB:.0f} GB of memory free"

    return _tried("device", named, lambda: device_of(settings.device))


def _tried(what: str, detail: Callable[[], str], needed: Callable[[], Any]) -> Finding:
    try:
        needed()
    except (InvalidProblem, OSError) as error:
        return Finding(what, False, str(error))
    return Finding(what, True, detail())


def _memory(settings: config.Settings, base: StableDiffusion) -> str:
    """What the weights and the buffer take; activations depend on the kernels and are left to the first step."""
    parts = (base.unet, base.vae, *base.reader.encoders)
    weights = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    side: Any = base.unet.config["sample_size"]
    entries = base.unet.config["in_channels"] * (side * side if isinstance(side, int) else side[0] * side[1])
    paths = settings.batch.trajectories * settings.batch.prompts
    buffer = 4 * (settings.sampler.steps + 1) * entries * paths * 4
    return (
        f"{weights / GB:.2f} GB of weights, {buffer / GB:.2f} GB for the {paths} paths of a round, and the activations of "
        f"{settings.model.micro_batch or 'all'} samples at a time"
    )


@torch.no_grad()
def _time(settings: config.Settings, base: StableDiffusion) -> str:
    """From the time of one network evaluation and the evaluations that the estimator says it makes."""
    batch, steps = settings.batch, settings.sampler.steps
    rounds = settings.run.steps * batch.per_step / (batch.trajectories * batch.prompts * batch.passes)
    paths = rounds * batch.trajectories * batch.prompts
    cost: Cost = made("estimator", ESTIMATORS, settings.estimator.name, settings.estimator.options).cost
    label = cost.reference + cost.policy + DERIVATIVE * (cost.reference_derivatives + cost.policy_derivatives)
    pairs = settings.run.steps * batch.per_step * (batch.loss_steps or steps)
    weighed = paths * (batch.passes - 1) * steps * 2 * batch.weighs
    evaluations = paths * steps * (2 + label) + pairs * (1 + DERIVATIVE) + weighed
    seconds = evaluations * _seconds_per_sample(base, settings)
    how = "black-box reward" if settings.reward.name in BLACK_BOXES else "the reward's own time comes on top"
    length = f"{seconds / HOURS:.2g} hours" if seconds > HOURS else f"{max(1, seconds / MINUTES):.2g} minutes"
    return f"about {length} for {settings.run.steps} gradient steps ({evaluations:.2g} network evaluations; {how})"


def _seconds_per_sample(base: StableDiffusion, settings: config.Settings) -> float:
    """The shortest of a few, since the first one warms up and others may be disturbed."""
    from sd_experiments.build import chain

    reference = chain(base, settings.sampler, settings.problem.prompts[0])
    rows = settings.model.micro_batch or min(8, settings.batch.trajectories)
    device = next(base.unet.parameters()).device
    x, seconds = torch.randn(rows, *reference.dims, device=device), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        float(reference.score(0, x.clone()).sum())
        seconds.append(time.perf_counter() - start)
    return min(seconds) / rows


def _size(folder: Path) -> str:
    return f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()) / GB:.2f} GB"
