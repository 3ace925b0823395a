"""What a run takes, from small trials of the pieces of its work.

An evaluation of either network, its derivative, a gradient in the trained layers and a reward are
timed as a run does them, of a few samples, and counted as its estimator says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sd_experiments import config
from sd_experiments.model.denoiser import HALVES
from sd_experiments.model.frozen_output import FrozenEvaluation
from sd_experiments.model.memory import MB, peak_mb, reset_peak
from sd_experiments.reward.rewards import decode
from sd_experiments.training.build import Experiment, instantiate
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.session import check_images
from socft.estimators.base import Estimator
from socft.estimators.catalogue import ANYWHERE
from socft.reference import States

REPEATS, PATIENCE = 5, 2.0
"""Measurements of a time, of which the shortest counts since others may be disturbed; no more once
they took so many seconds.
"""
DERIVATIVE = 3.0
"""Time of an evaluation and its vector-Jacobian product, in evaluations."""


FLOAT = 4
STORED = 4
"""Numbers that are kept for every entry of a path: state, control, noise and target control; frozen
outputs come on top where they are kept.
"""


@dataclasses.dataclass(frozen=True)
class Probe:
    """What one sample takes, as it is done in a run: with layers merged and frozen outputs kept
    where the settings say so.

    Attributes:
        frozen: seconds of an evaluation of the frozen network.
        tuned: of the fine-tuned one while paths are drawn.
        frozen_derivative: of a vector-Jacobian product of the former, its evaluation included.
        tuned_derivative: of the latter.
        update: of a gradient in the layers.
        label_reward: of what labels ask of the reward.
        reward: of its value.
        update_bytes: memory of a gradient in the layers.
        reward_bytes: of what labels ask of the reward.
    """

    frozen: float
    tuned: float
    frozen_derivative: float
    tuned_derivative: float
    update: float
    label_reward: float
    reward: float
    update_bytes: float
    reward_bytes: float


@dataclasses.dataclass(frozen=True, eq=False)
class _Trials:
    """Small pieces of the work of a run, on given states."""

    experiment: Experiment
    wanted: bool

    @property
    def task(self) -> PromptTask:
        return self.experiment.tasks[0]

    def evaluation(self, x: States, tuned: bool) -> None:
        with torch.no_grad(), self.task.sharing.merging():
            float(self._network(tuned)(0, x.clone()).sum())

    def derivative(self, x: States, tuned: bool) -> None:
        with torch.enable_grad(), self.task.sharing.merging():
            at = x.clone().requires_grad_()
            torch.autograd.grad(self._network(tuned)(0, at).sum(), at)

    def _network(self, tuned: bool) -> Callable[[int, States], States]:
        policy: Any = self.task.policy
        return policy.tuned_output if tuned else policy.reference.output

    def update(self, x: States, known: Sequence[FrozenEvaluation]) -> None:
        with torch.enable_grad(), self.task.sharing.recalling(known):
            torch.autograd.grad(
                self.task.policy(0, x).square().sum(),
                tuple(self.experiment.lora.parameters()),
                allow_unused=True,
            )

    def known(self, x: States) -> list[FrozenEvaluation]:
        """What a round keeps of the frozen network at these states."""
        with torch.no_grad(), self.task.sharing.recording() as recorded:
            self.task.policy(0, x)
            return [*recorded.values()]

    def reward(self, x: States, labels: bool) -> None:
        reward = self.task.problem.reward
        with torch.no_grad():
            asked = labels and self.wanted
            float((reward.gradient(x.clone()) if asked else reward(x.clone())).sum())


def probed(experiment: Experiment, wanted: bool) -> Probe:
    """Trials of as many samples at a time as the run has, of those that do not take long.

    Args:
        wanted: whether labels ask for the gradient of the reward.
    """
    settings, task = experiment.settings, experiment.tasks[0]
    device = next(experiment.lora.parameters()).device
    trials = _Trials(experiment, wanted)
    shape = task.problem.reference.dims
    x = torch.randn(1, *shape, dtype=experiment.dtype, device=device)
    with torch.no_grad():
        check_images(experiment.checker, decode(experiment.base, x).float().cpu(), task.name)
    one, _ = _spent(lambda: trials.evaluation(x, True), device)
    sampled, learnt = (_at_once(each, settings.model, one) for each in _sizes(settings))
    x = torch.randn(sampled, *shape, dtype=x.dtype, device=device)
    times = [
        _spent(functools.partial(work, x, which), device)
        for work in (trials.evaluation, trials.derivative, trials.reward)
        for which in (False, True)
    ]
    frozen, tuned, derived, tuned_derived, valued, scored = (each for each, _ in times)
    x = torch.randn(learnt, *shape, dtype=x.dtype, device=device)
    known = trials.known(x)
    updated, used = _spent(lambda: trials.update(x, known), device)
    return Probe(
        frozen=frozen / sampled,
        tuned=tuned / sampled,
        frozen_derivative=derived / sampled,
        tuned_derivative=tuned_derived / sampled,
        update=updated / learnt,
        label_reward=scored / sampled,
        reward=valued / sampled,
        update_bytes=used / learnt,
        reward_bytes=times[-1][1] / min(sampled, settings.reward.chunk),
    )


def _at_once(wanted: int, model: config.ModelConfig, one: float) -> int:
    """How many samples are tried at once, of those that a run has."""
    return max(1, min(wanted, model.micro_batch or wanted, int(PATIENCE / max(one, 1e-6))))


def _spent(action: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Seconds and bytes."""
    seconds: list[float] = []
    reset_peak(device)
    before = peak_mb(device)
    while len(seconds) < REPEATS and sum(seconds) < PATIENCE:
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds), (peak_mb(device) - before) * MB


def _sizes(settings: config.ExperimentConfig) -> tuple[int, int]:
    """Samples that a run hands to the network at once: those of a rollout and of a loss."""
    batch = settings.batch
    loss = (batch.micro_batch or batch.per_step) * (batch.loss_steps or settings.sampler.steps)
    return batch.trajectories, loss


def largest(settings: config.ExperimentConfig) -> int:
    """Samples that the network is handed at once at most."""
    return max(_sizes(settings))


def run_time(settings: config.ExperimentConfig, probe: Probe) -> tuple[float, float]:
    """Seconds of a run and its network evaluations, from those that the estimator says it makes.

    The frozen network's outputs that are kept are evaluated once; where labels take its derivative
    before anyone asked for the controls, not even that.
    """
    batch, steps = settings.batch, settings.sampler.steps
    size = batch.trajectories * batch.prompts
    paths = math.ceil(settings.run.steps * batch.per_step / (size * batch.passes)) * size
    estimator: Estimator = instantiate(
        "estimator", ANYWHERE, settings.estimator.name, settings.estimator.options
    )
    cost, keeps = estimator.cost, settings.model.keep_frozen
    within = keeps and not estimator.reads_controls and cost.reference_derivatives > 0
    again = (batch.passes - 1) * batch.needs_importance_weights
    tuned = 1 + cost.policy + again
    frozen = 1 - within if keeps else 1 + cost.reference + cost.policy + again
    pairs = settings.run.steps * batch.per_step * (batch.loss_steps or steps)
    seconds = (
        paths
        * steps
        * (
            frozen * probe.frozen
            + tuned * probe.tuned
            + cost.reference_derivatives * probe.frozen_derivative
            + cost.policy_derivatives * probe.tuned_derivative
        )
    )
    seconds += pairs * probe.update + paths * (probe.label_reward + probe.reward)
    derivatives = cost.reference_derivatives + cost.policy_derivatives
    evaluations = paths * steps * (frozen + tuned + DERIVATIVE * derivatives)
    return seconds, evaluations + pairs * (DERIVATIVE + (0 if keeps else 1))


@dataclasses.dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a run takes beside its weights.

    Attributes:
        paths: for the paths of a round, in main memory, half of which are on the device at a time.
        work: for the samples that are worked on at a time, on the device.
        samples: how many these are.
    """

    paths: float
    work: float
    samples: int


def run_memory(experiment: Experiment, probe: Probe) -> MemoryNeed:
    """What a run takes beside its weights: the most that any of its pieces takes."""
    settings = experiment.settings
    batch, most = settings.batch, largest(settings)
    dims = math.prod(experiment.tasks[0].problem.reference.dims)
    entries = (settings.sampler.steps + 1) * dims * batch.trajectories * batch.prompts
    samples = min(most, settings.model.micro_batch or most)
    rewarded = settings.reward.chunk * probe.reward_bytes
    work = max(samples * probe.update_bytes, rewarded, _merged_bytes(experiment))
    return MemoryNeed((STORED + settings.model.keep_frozen) * entries * FLOAT, work, samples)


def _merged_bytes(experiment: Experiment) -> int:
    """What the weights with the layers merged into them take, while paths are drawn."""
    weights = [layer.base_layer.weight for layer in experiment.base.denoiser.adapters]
    if not experiment.settings.model.merge_layers or any(w.dtype in HALVES for w in weights):
        return 0
    return sum(w.numel() * w.element_size() for w in weights)
