"""The rows of the built-in estimators, measured at the full scale and shipped with the package.

Every row names the code that measured it by a digest of what the benchmark runs, comments and
docstrings aside. Where that is today's, the row is taken as it is. Where it is not, the first
repetition of every estimator in the first situation, and of one estimator in every situation, is
measured again: those that give the same numbers are taken, the others are measured anew beside the
newcomer. ``python -m toy.shipped`` writes the file of rows anew: those that still hold with the
digest of the present code, the others measured.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from socft.estimators.catalogue import COMPARED
from socft.records import Record, read, write
from socft.study.digest import statements_digest
from socft.study.progress import Progress
from socft.study.vocabulary.metrics import Metric
from toy.repeated import RepeatedGradient
from toy.suite import PATHS, SEEDS, SUITE, case_task

ROWS = Path(__file__).parent / "rows"
"""The folder of rows: of the built-in estimators in `BUILT_IN`, and a JSON file per other one."""
BUILT_IN = "built_in.jsonl"
SAME, ROUNDING = 1e-6, 1e-9


@functools.cache
def measuring_code() -> str:
    """Digest of the code that rows depend on."""
    return statements_digest("toy.suite")


@functools.cache
def shipped(folder: Path = ROWS) -> tuple[Record, ...]:
    """The rows of the built-in estimators."""
    return tuple(read(folder / BUILT_IN))


def changed(names: Sequence[str], console: Console | None = None) -> list[str]:
    """The built-in estimators, of those named, whose rows the present code does not confirm."""
    rows, code = shipped(), measuring_code()
    missing = [name for name in names if not any(each.estimator == name for each in rows)]
    doubtful = [
        name
        for name in names
        if any(each.estimator == name and each.setting["code"] != code for each in rows)
    ]
    if not doubtful:
        return missing
    told = console or Console(stderr=True)
    told.print(
        f"the rows of {len(doubtful)} built-in estimators were measured by other code; seeing"
        " whether the present one gives the same numbers, which takes some seconds",
        soft_wrap=True,
    )
    places = range(1, len(SUITE))
    if not all(_confirmed(doubtful[0], place) for place in places):
        doubted = doubtful
    else:
        doubted = [name for name in doubtful if not _confirmed(name, 0)]
    told.print(
        f"{len(doubtful) - len(doubted)} of {len(doubtful)} rows stand"
        + (f"; measured anew: {'; '.join(doubted)}" if doubted else ""),
        soft_wrap=True,
    )
    return [*missing, *doubted]


def _confirmed(name: str, place: int) -> bool:
    """Whether the first repetition of an estimator in a situation is what it was."""
    known = [
        each
        for each in shipped()
        if each.estimator == name and each.setting["axis"] == SUITE[place].title
    ]
    before, now = _numbers(known), _numbers(case_task(name, place, PATHS, 1))
    return len(before) == len(now) and all(
        math.isclose(a, b, rel_tol=SAME, abs_tol=ROUNDING) for a, b in zip(before, now, strict=True)
    )


def _numbers(records: Sequence[Record]) -> tuple[float, ...]:
    """What the first repetition gave; nothing where the estimator refuses."""
    for each in records:
        if each.metric == Metric.REPETITIONS:
            found = RepeatedGradient.read(each.setting)
            return float(found.products[0, 0]), float(found.along[0]), float(found.variances[0])
    return ()


def refresh(names: Sequence[str] = COMPARED, file: Path = ROWS / BUILT_IN) -> None:
    """Write the rows of built-in estimators as the present code gives them."""
    code = measuring_code()
    anew = changed(names) if file.exists() else list(names)
    kept = [each for each in (shipped() if file.exists() else ()) if each.estimator not in anew]
    rows = [dataclasses.replace(each, setting={**each.setting, "code": code}) for each in kept]
    with Progress("rows", len(SUITE) * len(anew)) as progress:
        for place, name in itertools.product(range(len(SUITE)), anew):
            start = time.perf_counter()
            found = case_task(name, place, PATHS, SEEDS, code)
            rows += [each for each in found if each.metric in (Metric.REPETITIONS, Metric.REFUSED)]
            progress.finished(f"{SUITE[place].title}: {name}", time.perf_counter() - start)
    write(rows, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    refresh()
