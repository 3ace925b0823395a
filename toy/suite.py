"""The situations of the benchmark, and one estimator in one of them."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Mapping
from typing import Any

from socft.checks import InvalidProblem, told
from socft.estimators.catalogue import find_estimator
from socft.records import Record
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.measure import estimate
from toy.studies.variance import gradient_records, path_noise, repeated_situation

PATHS, QUICK_PATHS, SEEDS = 1000, 250, 8
FEW = 8
"""Paths with which an estimator is tried before anything is measured."""


@dataclasses.dataclass(frozen=True)
class BenchmarkCase:
    """A situation of the suite.

    Attributes:
        title: what it tests, in a few words.
        problem: name of the benchmark.
        settings: its settings.
        scale: the policy, from the pre-trained model (0) to the optimum (1).
        start: at the optimum, where the gradient is zero, the title of the situation at the
            pre-trained model of the same problem.
    """

    title: str
    problem: str
    settings: Mapping[str, Any]
    scale: float
    start: str = ""


SUITE = (
    BenchmarkCase("Gaussian, start", ProblemName.LQ_FINE_TUNING, {"d": 4}, 0.0),
    BenchmarkCase("Gaussian, near", ProblemName.LQ_FINE_TUNING, {"d": 4}, 0.9),
    BenchmarkCase(
        "Gaussian, optimum", ProblemName.LQ_FINE_TUNING, {"d": 4}, 1.0, "Gaussian, start"
    ),
    BenchmarkCase("32 dimensions", ProblemName.LQ_FINE_TUNING, {"d": 32}, 0.9),
    BenchmarkCase("degenerate noise", ProblemName.OSCILLATOR, {"dt": 0.1}, 0.9),
    BenchmarkCase("mixture, start", ProblemName.MIXTURE, {"d": 1, "steps": 50}, 0.0),
    BenchmarkCase(
        "mixture, optimum", ProblemName.MIXTURE, {"d": 1, "steps": 50}, 1.0, "mixture, start"
    ),
)


class EstimatorFailed(RuntimeError):
    """A user's estimator cannot be made, or fails."""


def case_task(estimator: str, place: int, paths: int, seeds: int, code: str = "") -> list[Record]:
    """One estimator in one situation; what goes wrong is a record too.

    Args:
        code: digest of what it depends on, which is kept.
    """
    where, chosen = SUITE[place], find_estimator(estimator)
    places = [
        repeated_situation(where.problem, where.scale, repetition, **where.settings)
        for repetition in range(seeds)
    ]
    try:
        made = [(each, chosen.make(each.context)) for each in places]
        found = list(gradient_records(chosen, made, where.title, paths))
    except Exception as error:
        expected = isinstance(error, InvalidProblem)
        reason = str(error) if expected else told(error)
        setting = {**places[0].setting, "axis": where.title, "reason": reason, "code": code}
        value = 0.0 if expected else 1.0
        return [
            Record(schemas.VARIANCE.name, where.problem, Metric.REFUSED, value, setting, estimator)
        ]
    return [dataclasses.replace(each, setting={**each.setting, "code": code}) for each in found]


def try_once(estimator: str) -> None:
    """Let an estimator make labels of a few paths in the first situation.

    Raises:
        EstimatorFailed: it cannot be made, or fails; with its traceback.
    """
    where = SUITE[0]
    here = repeated_situation(where.problem, where.scale, 0, **where.settings)
    named = find_estimator(estimator)
    try:
        estimate(named.make(here.context), here.problem, here.policy, path_noise(here, FEW))
    except Exception as error:
        said = "".join(traceback.format_exception(error)).rstrip()
        raise EstimatorFailed(
            f"{estimator} fails at once, in the situation {where.title!r}:\n{said}"
        ) from error
