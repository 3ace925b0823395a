"""What a finished run says: records of its pictures, its target controls and its rounds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from sd_experiments.studies import gradient_agreement
from sd_experiments.studies.reproduce.scales import SEED, FineTuningMethod
from sd_experiments.training.build import Experiment, find_device, instantiate
from sd_experiments.training.monitor import diversity
from sd_experiments.training.session import ImageSamples, score_images
from socft.estimators.catalogue import ANYWHERE
from socft.records import Record
from socft.study.comparison import GAINS
from socft.study.vocabulary.metrics import Metric

WINDOW = 4
"""Rounds that are averaged where the end of a run is compared with its best."""
CURVES = (
    Metric.REWARD,
    Metric.KL,
    Metric.GRADIENT_NORM,
    Metric.GRADIENT_NOISE,
    Metric.TARGET_NORM,
    Metric.ACCURACY,
    Metric.DIVERSITY,
    Metric.SECONDS,
)


def recorder(study: str, experiment: Experiment, title: str, kind: str) -> Callable[..., Record]:
    """Makes records of one run: ``(metric, value, setting, **more) -> record``."""
    model = experiment.settings.model
    return functools.partial(
        Record,
        study,
        experiment.tasks[0].name,
        estimator=title,
        kind=kind,
        dtype=model.dtype,
        device=find_device(model.device).type,
    )


def final_records(
    record: Callable[..., Record],
    experiment: Experiment,
    found: ImageSamples,
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[Record]:
    """What the pictures of the finished model are worth, and what the run cost."""
    beta = experiment.settings.problem.beta
    setting = {"beta": beta}
    samples = {
        Metric.KL: found.kl,
        Metric.OBJECTIVE: found.rewards - beta * found.kl,
        **score_images(experiment, experiment.tasks[0], found),
    }
    cost = {
        "seconds": sum(row["seconds"] for row in rows),
        "peak_mb": max((row["peak_mb"] for row in rows), default=None),
    }
    for metric, values in samples.items():
        yield mean_record(record, metric, values, setting, **cost)
    spread = diversity(found.images)
    if spread is not None:
        yield record(Metric.DIVERSITY, spread, setting, seeds=len(found.rewards))
    fresh = sampling_rounds(rows)
    if fresh:
        yield drop_record(record, fresh, setting)
        yield growth_record(record, fresh, setting)


def gain_records(
    record: Callable[..., Record],
    experiment: Experiment,
    found: ImageSamples,
    before: Mapping[str, Tensor],
    setting: Mapping[str, Any],
) -> Iterator[Record]:
    """How much more the pictures are worth than those that the pre-trained model draws from the
    same noise.
    """
    for metric, values in score_images(experiment, experiment.tasks[0], found).items():
        yield mean_record(record, GAINS[metric], values - before[metric], setting)


def mean_record(
    record: Callable[..., Record],
    metric: str,
    values: Tensor,
    setting: Mapping[str, Any],
    **cost: Any,
) -> Record:
    """The mean over pictures, with its standard error."""
    number = len(values)
    return record(
        metric,
        float(values.mean()),
        setting,
        stderr=float(values.std() / number**0.5),
        seeds=number,
        **cost,
    )


def target_records(
    record: Callable[..., Record],
    experiment: Experiment,
    spread: Sequence[tuple[Mapping[str, Any], float]],
) -> Iterator[Record]:
    """Quantiles of the norms of target controls."""
    beta = experiment.settings.problem.beta
    for where, value in spread:
        yield record(Metric.TARGET, value, {"beta": beta, **where})


def curve_records(
    record: Callable[..., Record], rows: Sequence[Mapping[str, Any]], beta: float
) -> Iterator[Record]:
    """What every round measured."""
    for row in (row for row in rows if "diversity" in row):
        setting = {"beta": beta, "round": row["round"], "step": row["step"], "paths": row["paths"]}
        for metric in CURVES:
            if row.get(metric) is not None:
                stderr = row["reward_stderr"] if metric == Metric.REWARD else None
                yield record(metric, row[metric], setting, stderr=stderr)


def round_records(
    record: Callable[..., Record], rows: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]
) -> Iterator[Record]:
    """What the paths of every round are worth, and the seconds of its gradient steps."""
    for number in sorted({row["round"] for row in rows}):
        mine = [row for row in rows if row["round"] == number]
        where = {**setting, "round": number}
        yield record(Metric.REWARD, mine[0]["reward"], where, stderr=mine[0]["reward_stderr"])
        yield record(Metric.KL, mine[0]["kl"], where)
        yield record(Metric.SECONDS, math.fsum(row["seconds"] for row in mine), where)


def sampling_rounds(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was measured at the sampling of every round, if there are enough rounds to compare the
    end with what was before.
    """
    fresh = [row for row in rows if "diversity" in row]
    return fresh if len(fresh) >= 2 * WINDOW else []


def drop_record(
    record: Callable[..., Record], rounds: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]
) -> Record:
    """How far the reward at the end lies below its best, both averaged over `WINDOW` rounds."""
    starts = range(len(rounds) - WINDOW + 1)
    means = [sum(row["reward"] for row in rounds[i : i + WINDOW]) / WINDOW for i in starts]
    errors = [
        sum(row["reward_stderr"] ** 2 for row in rounds[i : i + WINDOW]) ** 0.5 / WINDOW
        for i in starts
    ]
    best = max(starts, key=means.__getitem__)
    return record(
        Metric.DROP,
        means[best] - means[-1],
        setting,
        stderr=(errors[best] ** 2 + errors[-1] ** 2) ** 0.5,
    )


def growth_record(
    record: Callable[..., Record], rounds: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]
) -> Record:
    """The largest target control of the last rounds over that of the first."""
    first, last = (
        max(row["target_norm"] for row in part) for part in (rounds[:WINDOW], rounds[-WINDOW:])
    )
    return record(Metric.TARGET_GROWTH, last / first if first > 0 else math.nan, setting)


def agreement_records(
    record: Callable[..., Record],
    experiment: Experiment,
    methods: Sequence[FineTuningMethod],
    batches: int,
    setting: Mapping[str, Any],
) -> Iterator[Record]:
    """How far gradients of two methods agree at the policy of this run, each with itself and the
    second with the first.
    """
    estimators = {
        each.title: instantiate("estimator", ANYWHERE, each.estimator, each.options)
        for each in methods
    }
    for title, metric, value, stderr in gradient_agreement.compare_estimators(
        experiment, estimators, batches, SEED
    ):
        yield record(
            metric,
            value,
            setting,
            estimator=title,
            kind=estimators[title].estimates.kind,
            stderr=stderr,
            seeds=batches,
        )
