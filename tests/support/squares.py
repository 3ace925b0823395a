"""A study of squares, and tasks that wait, fail or die."""

from __future__ import annotations

import os
import time
from pathlib import Path

from socft.records import Record
from socft.study.tasks import Study, Task
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema

COUNT = 6
SQUARES = StudySchema("squares", frozenset({Metric.BIAS, Metric.MSE, Metric.RATIO}))


def square(x: float, log: str = "") -> list[Record]:
    """Two records; the call is noted in a file, so that a test can count how often a task ran."""
    if log:
        with open(log, "a") as stream:
            stream.write(f"{x:g}\n")
    return [
        Record("squares", "p", name, x**power, {"x": x}, seconds=time.perf_counter())
        for name, power in ((Metric.BIAS, 1), (Metric.MSE, 2))
    ]


def slow_square(x: float, gate: str) -> list[Record]:
    """As `square`; from 3 on it waits for a file that only the test creates."""
    while x >= 3 and not Path(gate).exists():
        time.sleep(0.02)
    return square(x)


def divide(x: float) -> list[Record]:
    return [Record("squares", "p", Metric.RATIO, 1 / x, {"x": x})]


def die(x: float) -> list[Record]:
    if x == 2:
        os._exit(3)
    return square(x)


def not_records(x: float) -> list[Record]:
    return [x]  # type: ignore[list-item]


def study(function=square, **arguments) -> Study:
    def tasks(quick: bool) -> list[Task]:
        return [
            Task(f"square {i}", function, {"x": float(i)} | arguments)
            for i in range(COUNT - 2 * quick)
        ]

    return Study(SQUARES, tasks)
