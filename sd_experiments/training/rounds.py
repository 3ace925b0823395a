"""Rounds of paths: sample and label those of the next one, sum them up, and weigh them for a policy
that has changed since.

Noise is drawn from generators seeded by (seed, round, path), so what is sampled does not depend on
the number of processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from sd_experiments import config
from sd_experiments.training.buffer import Entry, Pool, effective_share, log_ratios, moved, seeded
from sd_experiments.training.task import Task
from sd_experiments.training.workers import Workers
from socft.checks import require
from socft.estimators.base import Estimator, Labels
from socft.path import Noise, Path, rollout
from socft.path_measure import normalised
from socft.reference import States

REMEDY = (
    "the layers keep their last finite weights: continue with a lower optimiser.rate or"
    " optimiser.clip, or begin again with a larger problem.beta."
)


@dataclasses.dataclass(frozen=True)
class Round:
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
class Samples:
    """The samples of one prompt in a round, of all processes.

    Attributes:
        task: number of the prompt.
        final: the samples in the order of their paths, shape (trajectories, *dims), on the CPU.
    """

    task: int
    final: States


@dataclasses.dataclass(frozen=True, eq=False)
class Collector:
    """Samples and labels paths.

    Attributes:
        tasks: the prompts, which take turns.
        estimator: makes the labels.
        batch: numbers of paths and prompts.
        seed: of the noise.
        workers: the processes, each with its own paths.
        device: where the policies are.
        dtype: of states and noise.
    """

    tasks: tuple[Task, ...]
    estimator: Estimator
    batch: config.Batch
    seed: int
    workers: Workers
    device: torch.device
    dtype: torch.dtype

    def sample(self, number: int) -> tuple[Entry, ...]:
        """This process' paths of round ``number``, by prompt, kept on the CPU."""
        found = (self._sampled(number, slot) for slot in range(self.batch.prompts))
        return tuple(entry for entry in found if entry.index)

    def _prompt(self, number: int, slot: int) -> int:
        """Prompts take turns."""
        return (number * self.batch.prompts + slot) % len(self.tasks)

    def samples(self, number: int, entries: Sequence[Entry]) -> tuple[Samples, ...]:
        """The samples of round ``number`` from all processes, by prompt."""
        batch, dims = self.batch, self.tasks[0].problem.reference.dims
        own = [entry.path.final for entry in entries] or [torch.zeros(0, *dims, dtype=self.dtype)]
        places = [i for entry in entries for i in entry.index]
        whole = self.workers.gathered(
            torch.cat(own).to(self.device), places, batch.prompts * batch.trajectories
        )
        parts = whole.cpu().split(batch.trajectories)
        return tuple(Samples(self._prompt(number, slot), part) for slot, part in enumerate(parts))

    @torch.no_grad()
    def _sampled(self, number: int, slot: int) -> Entry:
        """A full rollout: as many network evaluations as sampling first and measuring the controls
        afterwards.
        """
        prompt, count = self._prompt(number, slot), self.batch.trajectories
        task, own = (
            self.tasks[prompt],
            tuple(i for i in range(slot * count, (slot + 1) * count) if self.workers.owns(i)),
        )
        path = self._rolled(task, number, own)
        rewards = task.problem.reward(path.final) if own else path.final.new_zeros(0)
        labels = self._labels(task, path, [i - slot * count for i in own])
        noise = Noise(path.noise.initial.cpu(), path.noise.steps.cpu())
        stored = Path(path.states.cpu(), path.controls.cpu(), noise)
        return Entry(prompt, own, stored, moved(labels, torch.device("cpu")), rewards.cpu())

    def _rolled(self, task: Task, number: int, own: Sequence[int]) -> Path:
        """Paths of the task's policy; the network is not asked about none."""
        noise = self._noise(task, number, own)
        if own:
            return rollout(task.problem.reference, task.policy, noise)
        return Path(
            noise.initial.new_zeros(len(noise.steps) + 1, *noise.initial.shape),
            torch.zeros_like(noise.steps),
            noise,
        )

    def _labels(self, task: Task, path: Path, places: Sequence[int]) -> Labels:
        """Labels of this process' paths; where they depend on all paths of the prompt, those of the
        others are fetched.
        """
        joint = self.estimator.joint and self.workers.count > 1
        if not joint and not places:
            return Labels(path.states[:-1], path.controls)
        with task.labelling():
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
                self.workers.gathered(own.transpose(0, 1), places, self.batch.trajectories)
                .transpose(0, 1)
                .contiguous()
            )

        initial = self.workers.gathered(path.noise.initial, places, self.batch.trajectories)
        return Path(
            gathered(path.states),
            gathered(path.controls),
            Noise(initial, gathered(path.noise.steps)),
        )

    def _noise(self, task: Task, number: int, own: Sequence[int]) -> Noise:
        reference = task.problem.reference
        drawn = [
            Noise.sample(reference, 1, seeded(self.seed, "path", number, i), self.dtype)
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

    def summary(self, number: int, entries: Sequence[Entry]) -> Round:
        """Numbers of round ``number``, over all processes.

        Raises:
            InvalidProblem: a reward, a control or a label is not finite.
        """
        zero = torch.zeros(0, dtype=torch.float64)
        rewards = torch.cat([zero, *(each.rewards.double() for each in entries)])
        kl = torch.cat([zero, *(each.path.kl().double().sum(0) for each in entries)])
        norms = torch.cat(
            [
                zero,
                *(each.labels.targets.double().flatten(2).norm(dim=2).amax(0) for each in entries),
            ]
        )
        bad = [float((~each.isfinite()).sum()) for each in (rewards, kl, norms)]
        own = [*bad, len(rewards), float(rewards.nansum()), float(kl.nansum())]
        total = self.workers.totals(own, self.device)
        for what, count in zip(("rewards", "controls", "labels"), total, strict=False):
            require(
                count == 0,
                f"{count:.0f} of {total[3]:.0f} paths of round {number} have {what} that are not"
                f" finite; {REMEDY}",
            )
        mean = total[4] / total[3]
        spread = self.workers.totals([float((rewards - mean).square().sum())], self.device)[0]
        stderr = (spread / max(1.0, total[3] - 1) / total[3]) ** 0.5
        largest = self.workers.largest(float(norms.max()) if len(norms) else 0.0, self.device)
        return Round(mean, stderr, total[5] / total[3], largest)

    def weigh(self, pool: Pool) -> None:
        """Importance weights of the paths of a round under the current policy, and their effective
        sample size.

        Raises:
            InvalidProblem: a weight is not finite.
        """
        own = [
            log_ratios(self.tasks[entry.task].policy, self._here(entry.path))
            for entry in pool.entries
        ]
        places = [i for entry in pool.entries for i in entry.index]
        rows = torch.cat([torch.zeros(0, dtype=torch.float64, device=self.device), *own])
        logs = self.workers.gathered(rows, places, pool.size).cpu()
        require(
            bool(logs.isfinite().all()),
            f"an importance weight of round {pool.round} is not finite; {REMEDY}",
        )
        slots = logs.reshape(self.batch.prompts, -1)
        pool.ess = min(effective_share(each) for each in slots)
        if self.batch.weighted:
            pool.weights = torch.cat([normalised(each) for each in slots])

    def _here(self, path: Path) -> Path:
        noise = Noise(path.noise.initial.to(self.device), path.noise.steps.to(self.device))
        return Path(path.states.to(self.device), path.controls.to(self.device), noise)
