"""Any estimator against all built-in ones, where the exact gradient is known.

``socft bench my_module:MyEstimator`` measures bias, variance, cost and the error at equal budget
(`toy.studies.variance`) in a fixed suite of situations. What an estimator does wrong, by raising,
also when it is made, or by returning the wrong shape or numbers that are not finite, costs its own
row in that situation and nothing else.

A process that dies, as one does that runs out of memory, leaves no record. Without an executor it
is this process, and the same command goes on with what has been measured. With an executor,
`socft.study.runner` measures again, one by one in a process of their own, the tasks that were lost
with it; the one that dies again ends the run with `StudyFailed`, after everything else is measured
and kept.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from socft.checks import require_known
from socft.estimators.catalogue import CATALOGUE, COMPARED, find_estimator
from socft.files import write_atomically
from socft.records import Record
from socft.study.runner import run
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.studies.variance import variance_task

METRICS = (Metric.BIAS, Metric.VARIANCE, Metric.ERROR_AT_BUDGET)
PATHS, QUICK_PATHS, SEEDS = 1600, 400, 5


@dataclasses.dataclass(frozen=True)
class BenchmarkCase:
    """A situation of the suite.

    Attributes:
        title: what it tests, in a few words.
        problem: name of the benchmark.
        settings: its settings.
        scale: the policy, from the pre-trained model (0) to the optimum (1).
    """

    title: str
    problem: str
    settings: Mapping[str, Any]
    scale: float


SUITE = (
    BenchmarkCase("Gaussian, start", ProblemName.LQ_FINE_TUNING, {"d": 4}, 0.0),
    BenchmarkCase("Gaussian, near", ProblemName.LQ_FINE_TUNING, {"d": 4}, 0.9),
    BenchmarkCase("Gaussian, optimum", ProblemName.LQ_FINE_TUNING, {"d": 4}, 1.0),
    BenchmarkCase("32 dimensions", ProblemName.LQ_FINE_TUNING, {"d": 32}, 0.9),
    BenchmarkCase("degenerate noise", ProblemName.OSCILLATOR, {"dt": 0.1}, 0.9),
    BenchmarkCase("mixture, start", ProblemName.MIXTURE, {"d": 1, "steps": 50}, 0.0),
    BenchmarkCase("mixture, optimum", ProblemName.MIXTURE, {"d": 1, "steps": 50}, 1.0),
)


def case_task(estimator: str, place: int, paths: int, seeds: int) -> list[Record]:
    """One estimator in one situation; what goes wrong is a record too."""
    where = SUITE[place]
    try:
        found = variance_task(
            estimator, where.problem, where.settings, where.scale, where.title, paths, seeds
        )
        return [record for record in found if record.metric in (*METRICS, Metric.REFUSED)]
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        setting = {
            "problem": where.problem,
            **where.settings,
            "scale": where.scale,
            "axis": where.title,
            "reason": reason[:500],
        }
        return [
            Record(schemas.VARIANCE.name, where.problem, Metric.REFUSED, 1.0, setting, estimator)
        ]


def study(estimator: str, names: Sequence[str]) -> Study:
    """The suite for a user's estimator beside built-in ones."""

    def tasks(quick: bool) -> list[Task]:
        paths = QUICK_PATHS if quick else PATHS
        return [
            Task(
                f"{place.title}: {name}",
                case_task,
                {"estimator": name, "place": index, "paths": paths, "seeds": SEEDS},
            )
            for index, place in enumerate(SUITE)
            for name in (estimator, *names)
        ]

    return Study(schemas.VARIANCE.of_anything(study_name(estimator)), tasks)


def bench(
    estimator: str,
    out: Path,
    quick: bool = False,
    executor: Executor | None = None,
    against: Sequence[str] | None = None,
) -> dict:
    """Measure ``module:name`` against built-in estimators; writes ``bench-<name>.jsonl`` and
    ``.json`` to ``out``, returns the row.

    Args:
        against: names of built-in estimators; all of them by default.

    Raises:
        InvalidProblem: the import path leads to no estimator, or no built-in one has a name.
    """
    find_estimator(estimator)
    names = list(COMPARED) if against is None else list(dict.fromkeys(against))
    for name in names:
        require_known(name, CATALOGUE, "built-in estimator")
    chosen = study(estimator, names)
    records = run(chosen, quick, out, executor)
    row = summary(estimator, records)
    write_atomically(out / f"{chosen.name}.json", (json.dumps(row, indent=2) + "\n").encode())
    return row


def summary(estimator: str, records: Sequence[Record]) -> dict[str, Any]:
    """What a user's estimator achieved in every situation, and its rank by error at equal
    budget.
    """
    mine = [record for record in records if record.estimator == estimator]
    places = {}
    for place in SUITE:
        here = {record.metric: record for record in mine if record.setting["axis"] == place.title}
        if Metric.REFUSED in here:
            places[place.title] = {Metric.REFUSED: here[Metric.REFUSED].setting["reason"]}
            continue
        rivals = sorted(
            r.value
            for r in records
            if r.metric == Metric.ERROR_AT_BUDGET and r.setting["axis"] == place.title
        )
        places[place.title] = {metric: here[metric].value for metric in METRICS} | {
            "rank": 1 + sum(value < here[Metric.ERROR_AT_BUDGET].value for value in rivals),
            "of": len(rivals),
            "seconds": here[Metric.BIAS].seconds,
            "evaluations": here[Metric.BIAS].evaluations,
            "peak_mb": here[Metric.BIAS].peak_mb,
        }
    kinds = sorted({record.kind for record in mine if record.metric == Metric.BIAS})
    return {"estimator": estimator, "estimates": ", ".join(kinds), "situations": places}


def study_name(estimator: str) -> str:
    """The name of a user's comparison and of its files."""
    return "bench-" + re.sub(r"[^\w]+", "-", estimator).strip("-")
