"""Any estimator against all built-in ones, where the exact gradient is known.

``socft bench my_module:MyEstimator`` measures bias, variance, cost and the error at equal budget
(`toy.studies.variance`) in the situations of `toy.suite`, and ranks it among the shipped rows of
the built-in estimators (`toy.shipped`, `toy.ranks`). One that cannot be made, or fails in the first
situation, is told at once; in a later one it costs its own row there and nothing else.

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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from socft.checks import require_known
from socft.estimators.catalogue import CATALOGUE, COMPARED, find_estimator
from socft.files import write_atomically
from socft.records import Record, write
from socft.study.digest import code_version
from socft.study.import_path import locate
from socft.study.runner import run
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from toy.ranks import BenchmarkStanding, standings
from toy.repeated import RepeatedGradient, finite
from toy.shipped import changed, measuring_code, shipped
from toy.studies.variance import summary_records
from toy.suite import PATHS, QUICK_PATHS, SEEDS, SUITE, case_task, try_once


def study(estimator: str, names: Sequence[str]) -> Study:
    """The suite for a user's estimator, and for built-in ones whose rows are to be measured."""
    code = _code_of(estimator)

    def tasks(quick: bool) -> list[Task]:
        paths = QUICK_PATHS if quick else PATHS
        return [
            Task(
                f"{place.title}: {name}",
                case_task,
                {
                    "estimator": name,
                    "place": index,
                    "paths": paths,
                    "seeds": SEEDS,
                    "code": code if name == estimator else measuring_code(),
                },
            )
            for index, place in enumerate(SUITE)
            for name in (estimator, *names)
        ]

    return Study(schemas.VARIANCE.of_anything(study_name(estimator)), tasks)


def _code_of(estimator: str) -> str:
    """Digest of the code of a user's estimator."""
    if estimator in CATALOGUE:
        return measuring_code()
    module = estimator.rpartition(":")[0]
    return code_version(locate(module).stem if module.endswith(".py") else module)


def bench(
    estimator: str,
    out: Path,
    quick: bool = False,
    executor: Executor | None = None,
    against: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure ``module:name`` and rank it among built-in estimators; writes ``bench-<name>.jsonl``
    and ``.json`` to ``out``, returns the row.

    Args:
        against: names of built-in estimators; all of them by default.

    Raises:
        InvalidProblem: the import path leads to no estimator, or no built-in one has a name.
        EstimatorFailed: it cannot be made, or fails in the first situation.
    """
    find_estimator(estimator)
    names = list(COMPARED) if against is None else list(dict.fromkeys(against))
    for name in names:
        require_known(name, CATALOGUE, "built-in estimator")
    names = [name for name in names if name != estimator]
    try_once(estimator)
    anew = changed(names)
    chosen = study(estimator, anew)
    records = list(run(chosen, quick, out, executor))
    records += [each for each in shipped() if each.estimator in set(names) - set(anew)]
    found = ranked(records)
    row = summary(estimator, records, found)
    write(shown(records, found), out / f"{chosen.name}.jsonl")
    write_atomically(
        out / f"{chosen.name}.json", (json.dumps(finite(row), indent=1) + "\n").encode()
    )
    return row


def gradients(records: Sequence[Record]) -> dict[str, dict[str, RepeatedGradient]]:
    """What was measured, by situation and estimator."""
    found: dict[str, dict[str, RepeatedGradient]] = {case.title: {} for case in SUITE}
    for record in records:
        if record.metric == Metric.REPETITIONS and record.setting["axis"] in found:
            found[record.setting["axis"]][record.estimator] = RepeatedGradient.read(record.setting)
    return found


def ranked(records: Sequence[Record]) -> dict[str, dict[str, BenchmarkStanding]]:
    """Standings of all estimators, by situation."""
    found = gradients(records)
    return {
        case.title: standings(case, found[case.title], found.get(case.start, {})) for case in SUITE
    }


def summary(
    estimator: str, records: Sequence[Record], found: Mapping[str, Mapping[str, BenchmarkStanding]]
) -> dict[str, Any]:
    """What an estimator achieved in every situation, its ranks, and what they are made of."""
    mine = [record for record in records if record.estimator == estimator]
    places: dict[str, Any] = {}
    for record in mine:
        title, setting = record.setting["axis"], record.setting
        if record.metric == Metric.REFUSED:
            places[title] = {Metric.REFUSED: setting["reason"], "failed": bool(record.value)}
        elif record.metric == Metric.REPETITIONS:
            standing = dataclasses.asdict(found[title][estimator])
            places[title] = {
                **standing,
                "seconds": record.seconds,
                "evaluations": record.evaluations,
                "peak_mb": record.peak_mb,
                "problem": record.problem,
                "repetitions": RepeatedGradient.read(setting).written(),
            }
    kinds = sorted({record.kind for record in mine if record.metric == Metric.REPETITIONS})
    return {
        "estimator": estimator,
        "estimates": ", ".join(kinds),
        "code": next((each.setting["code"] for each in mine if "code" in each.setting), ""),
        "versions": dict(mine[0].versions) if mine else {},
        "situations": {case.title: places[case.title] for case in SUITE if case.title in places},
    }


def shown(
    records: Sequence[Record], found: Mapping[str, Mapping[str, BenchmarkStanding]]
) -> Iterator[Record]:
    """The records of a comparison, a number each, with ranks beside the errors."""
    for record in records:
        if record.metric == Metric.REFUSED:
            yield record
        elif record.metric == Metric.REPETITIONS:
            repeated = RepeatedGradient.read(record.setting)
            fields = {each.name for each in dataclasses.fields(repeated)}
            setting = {k: v for k, v in record.setting.items() if k not in fields}
            standing = found[setting["axis"]][record.estimator]
            common = {
                name: getattr(record, name)
                for name in ("estimator", "kind", "seeds", "seconds", "evaluations", "peak_mb")
            }
            for each in summary_records(repeated, record.problem, setting, common):
                if each.metric == Metric.ERROR_AT_BUDGET:
                    about = {
                        "rank": standing.rank,
                        "rank_interval": standing.rank_interval,
                        "of": standing.of,
                        "error_interval": standing.error_interval,
                        "ordered_by": standing.ordered_by,
                    }
                    yield dataclasses.replace(each, setting={**setting, **about})
                elif each.metric != Metric.REPETITIONS:
                    yield each


def study_name(estimator: str) -> str:
    """The name of a user's comparison and of its files."""
    return "bench-" + re.sub(r"[^\w]+", "-", estimator).strip("-")
