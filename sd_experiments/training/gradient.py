r"""The gradient of a step, accumulated over backward passes and processes, and how noisy it is.

A gradient step takes n paths and, of each, some steps k, drawn without replacement in strata S of
the steps. Its loss

.. math:: \frac1n \sum_{i \le n} w_i \sum_S \frac{|S|}{|K_{i,S}|} \sum_{k \in K_{i,S}} \ell_k(x^i_k)

has the same mean as that over all steps, whose gradient the estimator defines; w is 1, or the
importance weight of a path that an earlier policy made. With the gradients :math:`g_j` of the
backward passes j, of :math:`n_j` paths each, the variance of the sum G is estimated by
:math:`\big( n \sum_j |g_j|^2/n_j - |G|^2 \big) / (J - 1)`, which is unbiased for independent paths
of one prompt (with several, differences between prompts count as noise). Its square root is the
reported gradient noise.

Two settings limit outliers, at the price of a bias: pairs (k, i) with the largest losses can be
left out, and target controls u with :math:`\beta_k |u| > c` can be replaced by
:math:`c\, u / (\beta_k |u|)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sd_experiments import config
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import (
    ReplayBuffer,
    RolloutBatch,
    seeded_generator,
)
from sd_experiments.training.rounds import remedy
from socft.checks import require
from socft.estimators.base import Estimator, LabelRows, MatchingEstimator


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A gradient, over all processes.

    Attributes:
        parts: one tensor per parameter.
        norm: of all together.
        noise: its standard deviation, if known.
        loss: its loss.
        masked: part of the pairs that were left out.
        limited: part of the pairs whose target control was scaled down.
        quantile: the quantile ``mask_quantile`` of the losses.
    """

    parts: tuple[Tensor, ...]
    norm: float
    noise: float | None
    loss: float
    masked: float
    limited: float
    quantile: float


@dataclasses.dataclass
class _Sums:
    """What this process has added up over its backward passes."""

    parts: list[Tensor]
    squares: float = 0.0
    passes: int = 0
    loss: float = 0.0
    masked: int = 0
    limited: int = 0
    rows: list[Tensor] = dataclasses.field(default_factory=list)
    losses: list[Tensor] = dataclasses.field(default_factory=list)

    def add(
        self,
        parts: tuple[Tensor | None, ...],
        rows: Tensor,
        loss: float,
        each: Tensor,
        keep: Tensor,
    ) -> None:
        for total, part in zip(self.parts, parts, strict=True):
            if part is not None:
                total += part
        self.squares += sum(
            float(part.double().square().sum()) for part in parts if part is not None
        ) / len(rows)
        self.passes, self.loss, self.masked = (
            self.passes + 1,
            self.loss + loss,
            self.masked + int((~keep).sum()),
        )
        self.rows.append(rows)
        self.losses.append(each)


@dataclasses.dataclass(frozen=True, eq=False)
class GradientAccumulator:
    """Adds up the gradient of a step.

    Attributes:
        tasks: the prompts.
        estimator: makes the losses.
        parameters: what is trained.
        batch: which steps of a path are drawn, and how many paths a backward pass takes.
        seed: of the drawn steps.
        group: the processes, each with its own paths.
        device: where the parameters are.
    """

    tasks: tuple[PromptTask, ...]
    estimator: Estimator
    parameters: tuple[nn.Parameter, ...]
    batch: config.BatchConfig
    seed: int
    group: ProcessGroup
    device: torch.device

    def gradient(
        self, buffer: ReplayBuffer, index: Int[Tensor, " n"], step: int, limit: float | None
    ) -> Gradient:
        """The gradient of the loss on the paths ``index`` of a round, over all processes.

        Args:
            step: number of the gradient step, which decides the steps that are drawn.
            limit: pairs with a larger loss are left out; None where no quantile is known yet.

        Raises:
            InvalidProblem: a loss is not finite; none is larger than that, and none would be kept
                from then on.
        """
        steps = self.tasks[0].problem.steps
        chosen, weights = draw_steps(
            self.batch, steps, len(index), seeded_generator(self.seed, "steps", step)
        )
        sums = _Sums([torch.zeros_like(p) for p in self.parameters])
        for rollouts, local, rows in self._micro_batches(buffer, index):
            value, each, limited = self._losses(rollouts, local, chosen[rows])
            keep = self._kept(each, limit)
            factor = (
                weights[None, :]
                * buffer.importance_weights[index[rows]][:, None]
                * keep
                / len(index)
            )
            scalar = (value * factor.flatten().to(value)).sum()
            parts = torch.autograd.grad(scalar, self.parameters, allow_unused=True)
            sums.add(parts, rows, float(scalar.detach()), each, keep)
            sums.limited += limited
        return self._combined(sums, step, *chosen.shape)

    def _micro_batches(
        self, buffer: ReplayBuffer, index: Tensor
    ) -> Iterator[tuple[RolloutBatch, Tensor, Tensor]]:
        """This process' paths of one prompt at a time: rollouts, places in it, rows of
        ``index``.
        """
        for rollouts in buffer.batches:
            place = {number: i for i, number in enumerate(rollouts.index)}
            rows = torch.tensor(
                [row for row, number in enumerate(index.tolist()) if number in place],
                dtype=torch.long,
            )
            for part in rows.split(self.batch.micro_batch or max(1, len(rows))):
                if len(part):
                    yield rollouts, torch.tensor([place[int(i)] for i in index[part]]), part

    def _losses(
        self, rollouts: RolloutBatch, local: Tensor, k: Int[Tensor, "n draws"]
    ) -> tuple[Tensor, Tensor, int]:
        """Losses of (k, path) pairs with their graph, shape (n * draws,), and without, shape (n,
        draws); how many were limited.
        """
        task = self.tasks[rollouts.task]
        flat, sample = k.flatten(), local.repeat_interleave(k.shape[1])
        rows = rollouts.labels.rows(flat, sample).to(self.device)
        limited = 0
        if self.batch.target_clip is not None and isinstance(self.estimator, MatchingEstimator):
            rows, limited = clip_targets(rows, self.batch.target_clip / task.problem.beta[flat])
        known = rollouts.known_rows(flat, sample, self.device)
        with torch.enable_grad(), task.sharing.recalling(known):
            value = self.estimator.loss(task.problem, task.policy, flat, rows)
        return value, value.detach().double().cpu().reshape(k.shape), limited

    def _kept(self, losses: Tensor, limit: float | None) -> Tensor:
        if self.batch.mask_quantile == 1 or limit is None:
            return torch.ones_like(losses, dtype=torch.bool)
        return losses <= limit

    def _combined(self, sums: _Sums, step: int, n: int, draws: int) -> Gradient:
        """The sum over the processes."""
        flat = self.group.sum(torch.cat([part.flatten() for part in sums.parts]))
        numbers = [sums.squares, sums.passes, sums.loss, sums.masked, sums.limited]
        squares, passes, loss, masked, limited = self.group.sum_numbers(numbers, self.device)
        own = torch.cat([torch.zeros(0, draws, dtype=torch.float64), *sums.losses]).to(self.device)
        losses = self.group.gather(own, [int(i) for rows in sums.rows for i in rows], n).cpu()
        bad = int((~losses.isfinite()).sum())
        require(bad == 0, f"{bad} of {losses.numel()} losses are not finite; {remedy(step)}")
        norm = float(flat.double().norm())
        noise = (max(n * squares - norm**2, 0.0) / (passes - 1)) ** 0.5 if passes > 1 else None
        sizes = [part.numel() for part in sums.parts]
        parts = tuple(
            part.reshape(like.shape)
            for part, like in zip(flat.split(sizes), sums.parts, strict=True)
        )
        quantile = float(losses.flatten().quantile(self.batch.mask_quantile))
        return Gradient(
            parts, norm, noise, loss, masked / (n * draws), limited / (n * draws), quantile
        )


def clip_targets(rows: LabelRows, limit: Float[Tensor, " rows"]) -> tuple[LabelRows, int]:
    """Labels whose target controls are scaled down to the limit of their norms where they exceed
    it, and how many did.
    """
    norms = rows.targets.double().flatten(1).norm(dim=1)
    factor = (limit.to(norms) / norms).clamp(max=1)
    shape = (-1, *[1] * (rows.targets.dim() - 1))
    return dataclasses.replace(
        rows, targets=rows.targets * factor.to(rows.targets).reshape(shape)
    ), int((factor < 1).sum())


def draw_steps(
    batch: config.BatchConfig, steps: int, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "count draws"], Float[Tensor, " draws"]]:
    """Steps of ``count`` paths, drawn without replacement early and late, and one over the
    probability that each is drawn.

    No step is left out: both parts get at least one draw, or they are one where there is only one
    draw.
    """
    draws, early = batch.loss_steps or steps, round(batch.early_span * steps)
    split = draws > 1 and 0 < early < steps
    wanted = round(batch.early_share * draws)
    first = min(early, draws - 1, max(wanted, draws - (steps - early), 1)) if split else 0
    early = early if split else 0
    keys = torch.rand(count, steps, generator=generator)
    chosen = [
        keys[:, :early].argsort(1)[:, :first],
        early + keys[:, early:].argsort(1)[:, : draws - first],
    ]
    weights = [early / max(1, first)] * first + [(steps - early) / (draws - first)] * (
        draws - first
    )
    return torch.cat(chosen, 1), torch.tensor(weights, dtype=torch.float64)
