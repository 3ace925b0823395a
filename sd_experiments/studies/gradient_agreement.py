r"""How far gradients of different paths agree, within an estimator and between two, and what
limiting target controls does to it.

The gradients g of several batches of paths are taken at one policy. The mean cosine between those
of two batches,

.. math:: a(g, g') = \frac{1}{n (n - 1)} \sum_{i \ne j} \frac{g_i \cdot g'_j}{|g_i| |g'_j|}, \qquad
    g' = g,

is what an optimiser that forgets the length of a gradient can rely on: 1 if every batch says the
same, 0 if it is all noise. With `sd_experiments.config.BatchConfig.target_clip` it is measured for
several limits.

Two estimators are compared on different paths, so their noise has nothing in common, and
:math:`a(g, g') / \sqrt{a(g, g)\, a(g', g')}` is the cosine between what they estimate, whatever the
noise: 1 if both are unbiased.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sd_experiments.training.build import Experiment
from sd_experiments.training.gradient import GradientAccumulator
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.replay_buffer import ReplayBuffer
from sd_experiments.training.rounds import RolloutCollector
from socft.estimators.base import Estimator
from socft.study.vocabulary.metrics import Metric

Gradients = Float[Tensor, "batches parameters"]
LIMITS = (None, 10.0, 3.0, 1.0, 0.3, 0.1)
"""None, the first, is no limit."""


def gradients(
    experiment: Experiment,
    estimator: Estimator,
    batches: int,
    seed: int,
    limits: Sequence[float | None] = (None,),
) -> Iterator[tuple[Gradients, float]]:
    """The gradients of batches at the current policy for each limit, on all steps of their paths,
    and the part that was limited.

    A batch has the paths of a gradient step of the configuration, of the first prompt.
    """
    settings, group = experiment.settings, ProcessGroup()
    parameters = tuple(experiment.lora.parameters())
    device = parameters[0].device
    paths = settings.batch.per_step
    batch = dataclasses.replace(
        settings.batch, trajectories=paths, prompts=1, paths=paths, passes=1, loss_steps=None
    )
    collector = RolloutCollector(
        experiment.tasks[:1], estimator, batch, seed, group, device, experiment.dtype
    )
    buffers = [ReplayBuffer(number, paths, collector.sample(number)) for number in range(batches)]
    for limit in limits:
        clipped = dataclasses.replace(batch, target_clip=limit)
        accumulator = GradientAccumulator(
            experiment.tasks[:1], estimator, parameters, clipped, seed, group, device
        )
        found = [accumulator.gradient(buffer, torch.arange(paths), 0, None) for buffer in buffers]
        flat = torch.stack([torch.cat([part.flatten() for part in each.parts]) for each in found])
        yield flat.double().cpu(), sum(each.limited for each in found) / batches


def compare_estimators(
    experiment: Experiment, estimators: Mapping[str, Estimator], batches: int, seed: int
) -> Iterator[tuple[str, str, float, float | None]]:
    """How far the gradients of each estimator agree, and where they point compared with the first
    one's.

    All are at the current policy, with the configuration's limit of target controls.

    Yields:
        The name, "agreement" or "alignment", its value and its standard error; no alignment where a
        gradient is only noise.
    """
    limits = (experiment.settings.batch.target_clip,)
    found = {
        name: next(gradients(experiment, each, batches, seed, limits))[0]
        for name, each in estimators.items()
    }
    first = next(iter(found.values()))
    for name, mine in found.items():
        measured = {
            Metric.AGREEMENT: jackknife(agreement, mine),
            Metric.ALIGNMENT: jackknife(alignment, mine, first),
        }
        for metric, (value, error) in measured.items():
            if math.isfinite(value):
                yield name, metric, value, error if math.isfinite(error) else None


def agreement(mine: Gradients, others: Gradients | None = None) -> float:
    """Mean cosine between gradients of different batches, of one estimator or of two."""
    a, b = (
        torch.nn.functional.normalize(each.double(), dim=1)
        for each in (mine, mine if others is None else others)
    )
    cosines, n = a @ b.T, len(a)
    return float((cosines.sum() - cosines.trace()) / (n * (n - 1)))


def squared_mean(mine: Gradients) -> float:
    """The squared norm of the mean gradient, without bias; negative where noise happens to make it
    so.
    """
    products, n = mine @ mine.T, len(mine)
    return float((products.sum() - products.trace()) / (n * (n - 1)))


def alignment(mine: Gradients, others: Gradients) -> float:
    """The cosine between what two estimators estimate; NaN where either is nothing but noise."""
    own, theirs = agreement(mine), agreement(others)
    return (
        agreement(mine, others) / (own * theirs) ** 0.5 if own > 0 and theirs > 0 else float("nan")
    )


def jackknife(measure: Callable[..., float], *gradients: Gradients) -> tuple[float, float]:
    """A measure of at least three batches, and its standard error by leaving out each batch
    once.
    """
    n = len(gradients[0])
    kept = [[j for j in range(n) if j != i] for i in range(n)]
    without = torch.tensor(
        [measure(*(each[rows] for each in gradients)) for rows in kept], dtype=torch.float64
    )
    return measure(*gradients), float(
        ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    )
