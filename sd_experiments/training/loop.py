"""The training loop at image scale: rounds of paths, several gradient steps on each, and a state
that can be stopped anywhere.

Everything random is drawn from generators seeded by (seed, purpose, number), so the state of a run
is its weights, its optimiser and its current paths, and a run that was stopped continues bit for
bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from sd_experiments import config
from sd_experiments.model.memory import peak_mb
from sd_experiments.training.checkpoint import TrainingState, read_averages
from sd_experiments.training.gradient import Gradient, GradientAccumulator
from sd_experiments.training.interruptions import Interruptions
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import ReplayBuffer, seed_globally
from sd_experiments.training.rounds import PromptSamples, RolloutCollector, RoundMetrics, remedy
from sd_experiments.training.storage import StoredCheckpoint
from socft.checks import require
from socft.estimators.base import Estimator

EMA_RAMP = 10
"""After t gradient steps the averaging factor is at most (1 + t) / (10 + t), so that the average
forgets where it began.
"""


@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What one gradient step measured.

    Attributes:
        step: gradient steps done.
        round: number of the round of its paths.
        reward: mean reward of the round's paths, with the policy that made them.
        reward_stderr: its standard error.
        kl: their mean KL from the pre-trained model.
        loss: of the gradient step.
        gradient_norm: before clipping.
        gradient_noise: standard deviation of the gradient; None with fewer than two backward
            passes.
        clipped: whether the gradient was scaled down.
        masked: part of the pairs whose loss was left out.
        limited: part of the pairs whose target control was scaled down.
        target_norm: largest norm of a label's target control, an early sign of instability.
        ess: effective part of the paths under the current policy, as of the start of the pass; None
            where nothing depends on it.
        paths: paths sampled so far.
        seconds: time of this step, sampling included, observers excluded.
        peak_mb: largest memory in use so far: the GPU's, or that of this process.
    """

    step: int
    round: int
    reward: float
    reward_stderr: float
    kl: float
    loss: float
    gradient_norm: float
    gradient_noise: float | None
    clipped: bool
    masked: float
    limited: float
    target_norm: float
    ess: float | None
    paths: int
    seconds: float
    peak_mb: float


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """A gradient step.

    Attributes:
        metrics: its numbers.
        fresh: the samples this step began with, if it sampled any.
    """

    metrics: StepMetrics
    fresh: tuple[PromptSamples, ...]


class TrainingLoop:
    """Fine-tunes the parameters that the policies of several tasks share, in place, with any
    estimator.

    Args:
        tasks: the prompts.
        estimator: supplies labels and loss.
        parameters: what is trained, by name.
        settings: the run's settings; of these, ``batch``, ``optimiser`` and ``run``.
        group: the processes of the run.
        dtype: of states and noise.

    Attributes:
        interruptions: heeded while paths are sampled and gradients are taken.
    """

    def __init__(
        self,
        tasks: Sequence[PromptTask],
        estimator: Estimator,
        parameters: Mapping[str, nn.Parameter],
        settings: config.ExperimentConfig,
        group: ProcessGroup | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.tasks = tuple(tasks)
        self.estimator = estimator
        self.parameters = dict(parameters)
        self.settings = settings
        self.group = group or ProcessGroup()
        self.dtype = dtype
        self.interruptions = Interruptions(self.group)
        s = settings.optimiser
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(),
            s.rate,
            (s.betas[0], s.betas[1]),
            weight_decay=s.weight_decay,
            foreach=False,
        )
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step, self.rounds, self.paths = 0, 0, 0
        self.quantile: float | None = None
        self.buffer: ReplayBuffer | None = None
        self.round = RoundMetrics()
        self._collector = RolloutCollector(
            self.tasks,
            estimator,
            settings.batch,
            settings.run.seed,
            self.group,
            self.device,
            self.dtype,
        )
        self._accumulator = GradientAccumulator(
            self.tasks,
            estimator,
            tuple(self.parameters.values()),
            settings.batch,
            settings.run.seed,
            self.group,
            self.device,
        )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def iterations(self) -> Iterator[TrainingStep]:
        """Gradient steps up to the number in the settings. Between two of them the loop can be
        saved.

        Raises:
            InvalidProblem: a reward, a label or a gradient is not finite; the parameters keep their
                last finite values, and the loop can be saved.
            KeyboardInterrupt: the state is that after the last step, and the loop can be saved.
        """
        while self.step < self.settings.run.steps:
            start = time.perf_counter()
            seed_globally(self.settings.run.seed, "step", self.step, self.group.rank)
            with self._returning(), self.interruptions.heeded():
                fresh = self._prepare()
                assert self.buffer is not None
                index = self.buffer.take(self.settings.batch.per_step, self.settings.run.seed)
                gradient = self._accumulator.gradient(self.buffer, index, self.step, self.quantile)
            clipped = self._update(gradient)
            self.buffer.uses += len(index)
            metrics = self._metrics(self.buffer, gradient, clipped, time.perf_counter() - start)
            yield TrainingStep(
                metrics,
                self._collector.samples(self.buffer.round, self.buffer.batches) if fresh else (),
            )

    @contextlib.contextmanager
    def using_averages(self) -> Iterator[None]:
        """The averaged parameters in the place of the current ones."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._set(self.ema)
        try:
            yield
        finally:
            self._set(kept)

    @contextlib.contextmanager
    def _returning(self) -> Iterator[None]:
        """Where a step is interrupted, the paths are again those of the last one."""
        before = self.buffer, self.round, self.rounds, self.paths
        try:
            yield
        except KeyboardInterrupt:
            self.buffer, self.round, self.rounds, self.paths = before
            raise

    def _prepare(self) -> bool:
        """Make sure that there are paths to use, weighed at the start of a pass if that decides
        anything; whether they are new.
        """
        batch, buffer = self.settings.batch, self.buffer
        spent = buffer is None or buffer.uses >= batch.passes * buffer.size
        if (
            buffer is not None
            and not spent
            and batch.needs_importance_weights
            and buffer.starts_pass(batch.per_step)
        ):
            self._collector.update_importance_weights(buffer)
            spent = buffer.ess < batch.ess
        if spent:
            self.buffer = self._collect()
        return spent

    def _collect(self) -> ReplayBuffer:
        """The paths of the next round."""
        seed_globally(self.settings.run.seed, "round", self.rounds, self.group.rank)
        entries = self._collector.sample(self.rounds)
        self.round = self._collector.summary(self.rounds, entries)
        size = self.settings.batch.prompts * self.settings.batch.trajectories
        self.rounds, self.paths = self.rounds + 1, self.paths + size
        return ReplayBuffer(self.rounds - 1, size, entries)

    def _update(self, gradient: Gradient) -> bool:
        """One step of the optimiser; whether the gradient was clipped."""
        s, finite = self.settings.optimiser, gradient.norm < float("inf")
        require(
            finite,
            f"the gradient norm is {gradient.norm} at gradient step {self.step + 1};"
            f" {remedy(self.step)}",
        )
        factor = 1.0 if s.clip is None else min(1.0, s.clip / max(gradient.norm, 1e-300))
        for p, part in zip(self.parameters.values(), gradient.parts, strict=True):
            p.grad = part.to(p) * factor
        for group in self.optimiser.param_groups:
            group["lr"] = s.rate_at(self.step, self.settings.run.steps)
        self.optimiser.step()
        self.step += 1
        keep = (
            min(self.settings.run.ema, (1 + self.step) / (EMA_RAMP + self.step))
            if self.settings.run.ema
            else 0.0
        )
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.grad = None
                self.ema[name].mul_(keep).add_(p, alpha=1 - keep)
        memory = self.settings.batch.mask_memory
        self.quantile = (
            gradient.quantile
            if self.quantile is None
            else memory * self.quantile + (1 - memory) * gradient.quantile
        )
        return factor < 1

    def files(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Everything a checkpoint needs: this process' own files, and those that all share."""
        left = (
            self.buffer is not None
            and self.buffer.uses < self.settings.batch.passes * self.buffer.size
        )
        state = TrainingState(
            layers=self.parameters,
            averages=self.ema,
            moments={name: self.optimiser.state.get(p, {}) for name, p in self.parameters.items()},
            random=torch.get_rng_state(),
            step=self.step,
            rounds=self.rounds,
            paths=self.paths,
            quantile=self.quantile,
            round=self.round,
            buffer=self.buffer if left else None,
        )
        return state.files(self.settings, self.group)

    def restore(self, stored: StoredCheckpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            InvalidProblem: it belongs to a run with other settings, layers or processes.
        """
        state = TrainingState.read(
            stored, self.parameters, self.settings, self.group, self.estimator.label_type
        )
        self._set(state.layers)
        for name, p in self.parameters.items():
            self.ema[name] = state.averages[name].to(p)
            if state.moments[name]:
                moved = {
                    key: value if key == "step" else value.to(p)
                    for key, value in state.moments[name].items()
                }
                self.optimiser.state[p] = moved
        torch.set_rng_state(state.random)
        self.step, self.rounds, self.paths = state.step, state.rounds, state.paths
        self.quantile, self.round, self.buffer = state.quantile, state.round, state.buffer

    def load_averages(self, stored: StoredCheckpoint) -> None:
        """Take over the averaged layers of a checkpoint, to sample with."""
        self._set(read_averages(stored, self.parameters))
        self.step = stored.step

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])

    def _metrics(
        self, buffer: ReplayBuffer, gradient: Gradient, clipped: bool, seconds: float
    ) -> StepMetrics:
        r = self.round
        return StepMetrics(
            step=self.step,
            round=buffer.round,
            reward=r.reward,
            reward_stderr=r.reward_stderr,
            kl=r.kl,
            loss=gradient.loss,
            gradient_norm=gradient.norm,
            gradient_noise=gradient.noise,
            clipped=clipped,
            masked=gradient.masked,
            limited=gradient.limited,
            target_norm=r.target_norm,
            ess=buffer.ess if self.settings.batch.needs_importance_weights else None,
            paths=self.paths,
            seconds=seconds,
            peak_mb=peak_mb(self.device),
        )
