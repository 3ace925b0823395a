"""Records of a measurement that was repeated with independent noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from socft.records import Record
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import StudySchema


def standard_error(values: Tensor) -> float | None:
    """Of the mean of independent values; None of one, or where one is not finite."""
    if len(values) < 2 or not bool(values.isfinite().all()):
        return None
    return float(values.std() / len(values) ** 0.5)


def record_repetitions(
    study: StudySchema,
    problem: str,
    rows: Sequence[Mapping[Metric, float]],
    *,
    optimum: Mapping[Metric, float] = {},
    published: Mapping[Metric, float | None] = {},
    seconds: float | None = None,
    **common: Any,
) -> list[Record]:
    """One record per metric: the mean over the repetitions and its standard error.

    Args:
        study: whose records they are.
        problem: name of the control problem.
        rows: what each repetition measured, by metric; what one of them lacks is averaged over the
            others.
        optimum: the exact optimum, by metric.
        published: the number in the literature, by metric.
        seconds: time of one repetition; left out where it is not finite.
        common: everything else that the records share, as `socft.records.Record` names it.
    """
    out = []
    for metric in dict.fromkeys(metric for row in rows for metric in row):
        values = [row[metric] for row in rows if metric in row]
        found = torch.tensor(values, dtype=torch.float64)
        out.append(
            Record(
                study.name,
                problem,
                metric,
                float(found.mean()),
                stderr=standard_error(found),
                seeds=len(rows),
                seconds=seconds if seconds is not None and math.isfinite(seconds) else None,
                optimum=optimum.get(metric),
                published=published.get(metric),
                **common,
            )
        )
    return out
