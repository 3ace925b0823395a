"""Records of a measurement that was repeated with independent noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from socft.records import Record
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema


def standard_error(values: Tensor) -> float | None:
    """Of the mean of independent values; None of one, or where one is not finite."""
    if len(values) < 2 or not bool(values.isfinite().all()):
        return None
    return float(values.std() / len(values) ** 0.5)


@dataclasses.dataclass(frozen=True)
class MeanOverRepetitions:
    """The mean of a metric over independent repetitions, and its standard error."""

    metric: Metric
    value: float
    stderr: float | None = None


def means(rows: Sequence[Mapping[Metric, float]]) -> list[MeanOverRepetitions]:
    """The mean of every metric; what a repetition lacks is averaged over the others."""
    out = []
    for metric in dict.fromkeys(metric for row in rows for metric in row):
        values = [row[metric] for row in rows if metric in row]
        found = torch.tensor(values, dtype=torch.float64)
        out.append(MeanOverRepetitions(metric, float(found.mean()), standard_error(found)))
    return out


def record_means(
    study: StudySchema,
    problem: str,
    found: Iterable[MeanOverRepetitions],
    *,
    optimum: Mapping[Metric, float] = {},
    published: Mapping[Metric, float | None] = {},
    seconds: float | None = None,
    **common: Any,
) -> list[Record]:
    """One record per mean.

    Args:
        study: whose records they are.
        problem: name of the control problem.
        found: the means.
        optimum: the exact optimum, by metric.
        published: the number in the literature, by metric.
        seconds: time of one repetition; left out where it is not finite.
        common: everything else that the records share, as `socft.records.Record` names it.
    """
    return [
        Record(
            study.name,
            problem,
            each.metric,
            each.value,
            stderr=each.stderr,
            seconds=seconds if seconds is not None and math.isfinite(seconds) else None,
            optimum=optimum.get(each.metric),
            published=published.get(each.metric),
            **common,
        )
        for each in found
    ]


def record_repetitions(
    study: StudySchema, problem: str, rows: Sequence[Mapping[Metric, float]], **common: Any
) -> list[Record]:
    """`record_means` of what each repetition measured, by metric."""
    return record_means(study, problem, means(rows), seeds=len(rows), **common)
