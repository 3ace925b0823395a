"""Rounds of paths: sample and label those of the next one, sum them up, and weigh them for a policy
that has changed since.

Noise is drawn from generators seeded by (seed, round, path), so what is sampled does not depend on
the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sd_experiments import config
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import (
    ReplayBuffer,
    RolloutBatch,
    effective_share,
    log_likelihood_ratios,
    seeded_generator,
)
from sd_experiments.training.sharing import frozen_along
from socft.checks import require
from socft.estimators.base import Estimator, Labels
from socft.path import Noise, Path, rollout
from socft.path_measure import normalised
from socft.reference import States
from socft.reward import PerSample

REMEDY = (
    "the layers keep their last finite weights: continue with a lower optimiser.rate or"
    " optimiser.clip, or begin again with a larger problem.beta."
)


UNTRAINED = (
    "the layers are not trained yet, so it is the reward, its decoder or the model itself: check"
    " the reward, and with model.dtype = 'float16' try 'float32'."
)


def remedy(steps: int) -> str:
    """What to do about numbers that are not finite after some gradient steps."""
    return REMEDY if steps else UNTRAINED


@dataclasses.dataclass(frozen=True)
class RoundMetrics:
    """Numbers of a round's paths, over all processes.

    Attributes:
        reward: mean reward, with the policy that made the paths.
        reward_stderr: its standard error.
        kl: mean KL from the pre-trained model.
        target_norm: largest norm of a label's target control.
    """

    reward: float = 0.0
    reward_stderr: float = 0.0
    kl: float = 0.0
    target_norm: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class PromptSamples:
    """The samples of one prompt in a round, of all processes.

    Attributes:
        task: number of the prompt.
        final: the samples in the order of their paths, shape (trajectories, *dims), on the CPU.
    """

    task: int
    final: States


@dataclasses.dataclass(frozen=True, eq=False)
class RolloutCollector:
    """Samples and labels paths.

    Attributes:
        tasks: the prompts, which take turns.
        estimator: makes the labels.
        batch: numbers of paths and prompts.
        seed: of the noise.
        group: the processes, each with its own paths.
        device: where the policies are.
        dtype: of states and noise.
    """

    tasks: tuple[PromptTask, ...]
    estimator: Estimator
    batch: config.BatchConfig
    seed: int
    group: ProcessGroup
    device: torch.device
    dtype: torch.dtype

    def sample(self, number: int) -> tuple[RolloutBatch, ...]:
        """This process' paths of round ``number``, by prompt, kept on the CPU."""
        found = (self._sampled(number, slot) for slot in range(self.batch.prompts))
        return tuple(rollouts for rollouts in found if rollouts.index)

    def _prompt(self, number: int, slot: int) -> int:
        """Prompts take turns."""
        return (number * self.batch.prompts + slot) % len(self.tasks)

    def samples(self, number: int, batches: Sequence[RolloutBatch]) -> tuple[PromptSamples, ...]:
        """The samples of round ``number`` from all processes, by prompt."""
        batch, dims = self.batch, self.tasks[0].problem.reference.dims
        own = [rollouts.path.final for rollouts in batches] or [
            torch.zeros(0, *dims, dtype=self.dtype)
        ]
        places = [i for rollouts in batches for i in rollouts.index]
        whole = self.group.gather(
            torch.cat(own).to(self.device), places, batch.prompts * batch.trajectories
        )
        parts = whole.cpu().split(batch.trajectories)
        return tuple(
            PromptSamples(self._prompt(number, slot), part) for slot, part in enumerate(parts)
        )

    @torch.no_grad()
    def _sampled(self, number: int, slot: int) -> RolloutBatch:
        """Paths, their rewards and labels, and what the frozen network said on the way."""
        prompt, count = self._prompt(number, slot), self.batch.trajectories
        task, own = (
            self.tasks[prompt],
            tuple(i for i in range(slot * count, (slot + 1) * count) if self.group.is_local(i)),
        )
        noise, places = self._noise(task, number, own), [i - slot * count for i in own]
        with task.sharing.merging(), task.sharing.recording() as recorded:
            tuned = task.sharing.sample_tuned(noise) if self._states_first(own) else None
            path = self._rolled(task, noise) if tuned is None else tuned.path
            labels = self._labels(task, path, places)
            if tuned is not None:
                reference: Any = task.problem.reference
                path = tuned.controlled(reference)
        rewards = task.problem.reward(path.final) if own else path.final.new_zeros(0)
        frozen = frozen_along(path, recorded)
        noise = Noise(path.noise.initial.cpu(), path.noise.steps.cpu())
        return RolloutBatch(
            prompt,
            own,
            Path(path.states.cpu(), path.controls.cpu(), noise),
            labels.to(torch.device("cpu")),
            rewards.cpu(),
            None if frozen is None else frozen.cpu(),
        )

    def _states_first(self, own: Sequence[int]) -> bool:
        """Whether labels can be made before the controls are known."""
        return bool(own) and not self.estimator.reads_controls

    def _rolled(self, task: PromptTask, noise: Noise) -> Path:
        """Paths of the task's policy; the network is not asked about none."""
        if len(noise.initial):
            return rollout(task.problem.reference, task.policy, noise)
        return Path(
            noise.initial.new_zeros(len(noise.steps) + 1, *noise.initial.shape),
            torch.zeros_like(noise.steps),
            noise,
        )

    def _labels(self, task: PromptTask, path: Path, places: Sequence[int]) -> Labels:
        """Labels of this process' paths; where they depend on all paths of the prompt, those of the
        others are fetched.
        """
        joint = self.estimator.couples_batch and self.group.size > 1
        if not joint and not places:
            return Labels(path.states[:-1], path.controls)
        with task.sharing.labelling():
            labels = self.estimator.label(
                task.problem, task.policy, self._whole(path, places) if joint else path
            )
        return (
            labels.samples(torch.tensor(places, dtype=torch.long, device=path.states.device))
            if joint
            else labels
        )

    def _whole(self, path: Path, places: Sequence[int]) -> Path:
        """The paths of all processes, in the order of their numbers."""

        def gathered(own: Tensor) -> Tensor:
            return (
                self.group.gather(own.transpose(0, 1), places, self.batch.trajectories)
                .transpose(0, 1)
                .contiguous()
            )

        initial = self.group.gather(path.noise.initial, places, self.batch.trajectories)
        return Path(
            gathered(path.states),
            gathered(path.controls),
            Noise(initial, gathered(path.noise.steps)),
        )

    def _noise(self, task: PromptTask, number: int, own: Sequence[int]) -> Noise:
        reference = task.problem.reference
        drawn = [
            Noise.sample(reference, 1, seeded_generator(self.seed, "path", number, i), self.dtype)
            for i in own
        ]
        initial = [
            torch.zeros(0, *reference.dims, dtype=self.dtype),
            *(each.initial for each in drawn),
        ]
        steps = [
            torch.zeros(reference.steps, 0, *reference.noise_dims, dtype=self.dtype),
            *(each.steps for each in drawn),
        ]
        return Noise(torch.cat(initial).to(self.device), torch.cat(steps, 1).to(self.device))

    def summary(self, number: int, batches: Sequence[RolloutBatch]) -> RoundMetrics:
        """Numbers of round ``number``, over all processes; in round 0 nothing is trained yet.

        Raises:
            InvalidProblem: a reward, a control or a label is not finite.
        """
        zero = torch.zeros(0, dtype=torch.float64)
        rewards = torch.cat([zero, *(each.rewards.double() for each in batches)])
        kl = torch.cat([zero, *(each.path.kl().double().sum(0) for each in batches)])
        norms = torch.cat(
            [
                zero,
                *(each.labels.targets.double().flatten(2).norm(dim=2).amax(0) for each in batches),
            ]
        )
        bad = [float((~each.isfinite()).sum()) for each in (rewards, kl, norms)]
        own = [*bad, len(rewards), float(rewards.nansum()), float(kl.nansum())]
        total = self.group.sum_numbers(own, self.device)
        for what, count in zip(("rewards", "controls", "labels"), total, strict=False):
            require(
                count == 0,
                f"{count:.0f} of {total[3]:.0f} paths of round {number} have {what} that are not"
                f" finite; {remedy(number)}",
            )
        mean = total[4] / total[3]
        spread = self.group.sum_numbers([float((rewards - mean).square().sum())], self.device)[0]
        stderr = (spread / max(1.0, total[3] - 1) / total[3]) ** 0.5
        largest = self.group.max_number(float(norms.max()) if len(norms) else 0.0, self.device)
        return RoundMetrics(mean, stderr, total[5] / total[3], largest)

    def update_importance_weights(self, buffer: ReplayBuffer) -> None:
        """Importance weights of the paths of a round under the current policy, and their effective
        sample size.

        Raises:
            InvalidProblem: a weight is not finite.
        """
        own = [self._log_ratios(rollouts) for rollouts in buffer.batches]
        places = [i for rollouts in buffer.batches for i in rollouts.index]
        rows = torch.cat([torch.zeros(0, dtype=torch.float64, device=self.device), *own])
        logs = self.group.gather(rows, places, buffer.size).cpu()
        require(
            bool(logs.isfinite().all()),
            f"an importance weight of round {buffer.round} is not finite; {REMEDY}",
        )
        slots = logs.reshape(self.batch.prompts, -1)
        buffer.ess = min(effective_share(each) for each in slots)
        if self.batch.weighted:
            buffer.importance_weights = torch.cat([normalised(each) for each in slots])

    def _log_ratios(self, rollouts: RolloutBatch) -> PerSample:
        task = self.tasks[rollouts.task]
        with task.sharing.merging(), task.sharing.recalling(rollouts.known(self.device)):
            return log_likelihood_ratios(task.policy, self._here(rollouts.path))

    def _here(self, path: Path) -> Path:
        noise = Noise(path.noise.initial.to(self.device), path.noise.steps.to(self.device))
        return Path(path.states.to(self.device), path.controls.to(self.device), noise)
