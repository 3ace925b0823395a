"""What a configuration needs that is missing here, and an estimate of its memory and time.

Everything is loaded. The estimator labels paths of a chain without a network, with as many steps as
the configuration says, so what its mathematics refuses is refused here. Memory and time are
extrapolated from an evaluation of the network, a derivative in the trained layers and a reward, of
a few samples.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from sd_experiments import config
from sd_experiments.model.flow_model import FlowModel
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.loading import load_latent_model
from sd_experiments.model.memory import free_bytes
from sd_experiments.model.weights import folder_of, random_pipeline
from sd_experiments.reward.rewards import CLIPScore, ImageRewardModel
from sd_experiments.run_cost import Probe, probed, run_memory, run_time
from sd_experiments.training.build import (
    Experiment,
    build,
    build_reference,
    find_device,
    instantiate,
    is_black_box,
    load_checker,
    load_model,
    load_reward_model,
    random_model,
    shipped,
)
from sd_experiments.training.callbacks import reporters
from sd_experiments.training.session import load_config, load_judges
from socft.checks import InvalidProblem, require, told
from socft.estimators.catalogue import ANYWHERE
from socft.flow import FlowReference, flow_ddim, uniform_times
from socft.path import Noise, rollout
from socft.policy import FunctionPolicy
from socft.problem import ControlProblem
from socft.reference import Reference, ScoreReference, States
from socft.reward import FunctionReward, PerSample
from socft.schedule import variance_preserving

GB = 1e9
HOURS = 3600.0
MINUTES = 60.0
NUMBERS = 20_000_000
"""Entries of the paths that are labelled at most to see whether the estimator can."""
SMALL = (4, 8, 8)
"""Of states, where there is no model to say."""
FORESEEN = "from the configuration files alone"
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Readiness:
    """One thing that was looked at.

    Attributes:
        what: what it is.
        good: whether the run can go ahead with it.
        detail: what was found, or what to do.
    """

    what: str
    good: bool
    detail: str


def check(file: Path, changes: Sequence[str] = ()) -> list[Readiness]:
    """Load everything, try it, and print what was found; where weights are missing, memory and time
    are those of random ones.

    Args:
        file: the configuration.
        changes: ``KEY=VALUE``, each in place of the file's.

    Raises:
        InvalidProblem: something is missing.
    """
    settings = load_config(file, assignments=changes)
    findings, experiment = check_parts(settings)
    findings += _measured(experiment) if experiment is not None else _foreseen(settings)
    print_findings(findings, str(file))
    return findings


def print_findings(findings: list[Readiness], what: str) -> None:
    """Print findings.

    Raises:
        InvalidProblem: something is missing.
    """
    for each in findings:
        print(f"{'ok     ' if each.good else 'missing'}  {each.what}: {each.detail}")
    bad = [each.what for each in findings if not each.good]
    require(not bad, f"{what} cannot run here yet: {', '.join(bad)}.")


def check_parts(settings: config.ExperimentConfig) -> tuple[list[Readiness], Experiment | None]:
    """What a run is made of, and all of it together if nothing is missing."""
    device, place = _tried("device", lambda: find_device(settings.model.device), _named)
    if place is None:
        return [device], None
    model, base = _tried(
        "model", lambda: load_model(settings.model), lambda _: _described(settings.model)
    )
    prompts, _ = _tried(
        "prompts and sampler", lambda: _references(settings, base), lambda n: f"{n} prompts"
    )
    reward, reward_model = _tried(
        "reward", lambda: load_reward_model(settings.reward, place), lambda _: settings.reward.name
    )
    estimator, _ = _tried(
        "estimator",
        lambda: uses_reward_gradient(settings, place, base),
        lambda _: settings.estimator.name,
    )
    checker, _ = _tried(
        "checker",
        lambda: load_checker(settings.monitor.checker),
        lambda _: settings.monitor.checker or "none",
    )
    monitor, _ = _tried(
        "judges and trackers", lambda: _reported(settings.monitor, place), lambda names: names
    )
    findings = [device, model, prompts, reward, estimator, checker, monitor]
    if base is None or reward_model is None or not all(each.good for each in findings):
        return findings, None
    layers, experiment = _tried(
        "prompts and layers", lambda: build(settings, base, reward_model), _counted
    )
    findings.append(layers)
    return findings, experiment


def _tried(
    what: str, make: Callable[[], _T], detail: Callable[[_T], str]
) -> tuple[Readiness, _T | None]:
    """Whether something can be made, and what it is."""
    try:
        found = make()
        return Readiness(what, True, detail(found)), found
    except Exception as error:  # rewards, checkers and estimators may be anyone's
        said = " ".join(str(error).split()) if isinstance(error, InvalidProblem) else told(error)
        return Readiness(what, False, said), None


def _references(settings: config.ExperimentConfig, base: LatentModel | None) -> int:
    """How many prompts there are; with a model, each has a sampler."""
    if base is not None:
        for prompt in settings.problem.prompts:
            build_reference(base, settings.sampler, prompt)
    return len(settings.problem.prompts)


def _reported(settings: config.MonitorConfig, device: torch.device) -> str:
    """Who measures a run besides its reward, and who is told of it."""
    reporters(settings.report_to)
    judges = load_judges(settings.judges, device)
    if settings.features is not None:
        CLIPScore.load(settings.features)
    return ", ".join([*judges, *settings.report_to]) or "none"


def _named(device: torch.device) -> str:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{torch.cuda.get_device_name(device)}, {free / GB:.0f} of {total / GB:.0f} GB free"
    return f"no GPU, {os.cpu_count()} CPU cores, {free_bytes(device) / GB:.0f} GB of memory free"


def _described(settings: config.ModelConfig) -> str:
    folder = folder_of(shipped(settings.path))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder}, {size / GB:.2f} GB"


def _counted(experiment: Experiment) -> str:
    numbers = sum(p.numel() for p in experiment.lora.parameters())
    return f"{len(experiment.tasks)} prompts, {numbers} trained numbers"


def uses_reward_gradient(
    settings: config.ExperimentConfig, device: torch.device, base: LatentModel | None = None
) -> bool:
    """Whether the estimator asks for the reward's gradient, on paths of as many steps as the
    settings say.

    They are of latents' shape, of a chain that costs nothing, and as many as a round has of a
    prompt, within reason.

    Raises:
        InvalidProblem: the estimator refuses, or asks for the gradient of a black box.
    """
    estimator: Any = instantiate(
        "estimator", ANYWHERE, settings.estimator.name, settings.estimator.options
    )
    dims = SMALL
    if base is not None:
        dims = (base.latent_dims[0], *base.latent_of(settings.sampler.size))
    reference, asked = _free_chain(settings.sampler.steps, dims, isinstance(base, FlowModel)), []

    def reward(x: States) -> PerSample:
        if torch.is_grad_enabled() and x.requires_grad:
            refusal = (
                f"{settings.reward.name} has no gradient, and {settings.estimator.name} asks for"
                " it; give dpok or ddpo."
            )
            require(not is_black_box(settings.reward), refusal)
            asked.append(x.shape)
        return x.sin().flatten(1).sum(1)

    problem = ControlProblem(reference, FunctionReward(reward), settings.problem.beta)
    policy = FunctionPolicy(lambda k, x: 0.1 * x)
    count = min(
        settings.batch.trajectories, max(2, NUMBERS // (settings.sampler.steps * math.prod(dims)))
    )
    noise = Noise.sample(reference, count, torch.Generator().manual_seed(0), torch.float32)
    path = rollout(reference, policy, Noise(noise.initial.to(device), noise.steps.to(device)))
    with torch.no_grad():
        estimator.label(problem, policy, path)
    return bool(asked)


def _free_chain(steps: int, dims: tuple[int, ...], is_flow: bool) -> Reference:
    """A chain of the model's kind that costs nothing."""
    if is_flow:
        times = uniform_times(steps, last=1 / (2 * steps))
        return FlowReference(flow_ddim(times), lambda k, x: x, dims)
    return ScoreReference(variance_preserving(steps), lambda k, x: -x, dims)


def _measured(experiment: Experiment) -> list[Readiness]:
    """Memory and time, from small trials."""
    trial, probe = _tried(
        "trial", lambda: _probed(experiment), lambda _: "network, reward and checker work"
    )
    return (
        [trial]
        if probe is None
        else [trial, _memory(experiment, probe), _time(experiment.settings, probe)]
    )


def _probed(experiment: Experiment) -> Probe:
    device = next(experiment.lora.parameters()).device
    return probed(experiment, uses_reward_gradient(experiment.settings, device, experiment.base))


def _foreseen(settings: config.ExperimentConfig) -> list[Readiness]:
    """Memory and time of a run whose weights are not here yet, with random ones in their place and
    without a reward that is missing; nothing where settings or files are refused, which is among
    the findings already.
    """
    try:
        device = find_device(settings.model.device)
        path, dtype = settings.model.path, getattr(torch, settings.model.dtype)
        empty = load_latent_model(path, dtype, "meta", load=random_pipeline)
        needed, free = _weights(empty), free_bytes(device)
        if needed > free:
            said = f"{needed / GB:.2f} GB of weights, of {free / GB:.2f} GB free; {FORESEEN}"
            return [Readiness("memory", False, said)]
        base, (reward, note) = (
            random_model(settings.model),
            _reward_or_none(settings.reward, device),
        )
        experiment = build(settings, base, reward)
        probe = _probed(experiment)
        found = [_memory(experiment, probe), _time(settings, probe)]
    except InvalidProblem:
        return []
    except Exception as error:  # rewards, checkers and estimators may be anyone's
        return [Readiness("memory and time", False, told(error))]
    return [dataclasses.replace(each, detail=f"{each.detail}; {FORESEEN}{note}") for each in found]


def _reward_or_none(
    settings: config.RewardConfig, device: torch.device
) -> tuple[ImageRewardModel, str]:
    """The reward, or one that costs nothing where its weights are missing."""
    try:
        return load_reward_model(settings, device), ""
    except InvalidProblem:
        return lambda images, prompt: images.flatten(1).mean(1), ", without the reward"


def _memory(experiment: Experiment, probe: Probe) -> Readiness:
    """What the weights, the paths of a round and the samples that are worked on at a time take."""
    settings, base = experiment.settings, experiment.base
    device = next(experiment.lora.parameters()).device
    free, needed = free_bytes(device), run_memory(experiment, probe)
    paths = settings.batch.trajectories * settings.batch.prompts
    detail = (
        f"{_weights(base) / GB:.2f} GB of weights are in place; {needed.paths / GB:.2f} GB for the"
        f" {paths} paths of a round and about {needed.work / GB:.2f} GB for"
        f" {needed.samples} samples at a time"
    )
    if needed.work + needed.paths / (1 if device.type == "cpu" else 2) > free:
        return Readiness(
            "memory",
            False,
            f"{detail}, of {free / GB:.2f} GB free; lower model.micro_batch or batch.trajectories",
        )
    return Readiness("memory", True, detail)


def _weights(base: LatentModel) -> int:
    parts = (base.denoiser.network, base.vae, *base.prompt_encoder.encoders)
    return sum(p.numel() * p.element_size() for part in parts for p in part.parameters())


def _time(settings: config.ExperimentConfig, probe: Probe) -> Readiness:
    seconds, count = run_time(settings, probe)
    length = (
        f"{seconds / HOURS:.2g} hours"
        if seconds > HOURS
        else f"{max(1, seconds / MINUTES):.2g} minutes"
    )
    return Readiness(
        "time",
        True,
        f"about {length} for {settings.run.steps} gradient steps ({count:.2g} network evaluations)",
    )
