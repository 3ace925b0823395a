"""Selecting records: what a table cell or a curve shows is looked up here, never computed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from socft.checks import require
from socft.records import Record
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema
from socft.study.vocabulary.schemas import STUDIES


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve: finite values against a setting, in increasing order."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __bool__(self) -> bool:
        return bool(self.x)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Records, in the order of the study.

    Attributes:
        records: the records.
        pictures: of a whole study, PNG by file name.
        studies: those whose records these may be.
    """

    records: tuple[Record, ...]
    pictures: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    studies: tuple[StudySchema, ...] = STUDIES

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __bool__(self) -> bool:
        return bool(self.records)

    def of(self, study: StudySchema) -> Rows:
        """The records of a study.

        Raises:
            InvalidProblem: these are never records of that study.
        """
        require(
            study in self.studies,
            f"no records of study {study.name} are here; they are of {_listed(self.studies)}.",
        )
        found = self.filter(lambda record: record.study == study.name)
        return dataclasses.replace(found, studies=(study,))

    def where(
        self,
        metric: Metric | None = None,
        problem: str | None = None,
        estimator: str | None = None,
        **setting: Any,
    ) -> Rows:
        """The records with these values; a setting that a record lacks does not match.

        Raises:
            InvalidProblem: none of the studies measures that metric of that estimator on that
                problem.
        """
        require(
            any(study.measures(metric, problem, estimator) for study in self.studies),
            f"metric {metric or 'any'} on problem {problem or 'any'} is measured by none of the"
            f" studies {_listed(self.studies)} with estimator {estimator or 'any'}; their schemas"
            " say what is.",
        )
        named = {"metric": metric, "problem": problem, "estimator": estimator}
        asked = {name: value for name, value in named.items() if value is not None}
        groups = [self._groups[name].get(value, ()) for name, value in asked.items()]
        settings = setting.items()
        kept = tuple(
            record
            for record in min(groups, key=len, default=self.records)
            if (metric is None or record.metric == metric)
            and (problem is None or record.problem == problem)
            and (estimator is None or record.estimator == estimator)
            and settings <= record.setting.items()
        )
        return Rows(kept, studies=self.studies)

    @functools.cached_property
    def _groups(self) -> Mapping[str, Mapping[str, Sequence[Record]]]:
        """The records by metric, by problem and by estimator: a report asks hundreds of times."""
        found: dict[str, dict[str, list[Record]]] = {"metric": {}, "problem": {}, "estimator": {}}
        for record in self.records:
            found["metric"].setdefault(record.metric, []).append(record)
            found["problem"].setdefault(record.problem, []).append(record)
            found["estimator"].setdefault(record.estimator, []).append(record)
        return found

    def filter(self, keep: Callable[[Record], bool]) -> Rows:
        """The records that satisfy a condition."""
        return Rows(tuple(filter(keep, self.records)), studies=self.studies)

    def having(self, *keys: str) -> Rows:
        """The records whose settings are exactly these."""
        return self.filter(lambda record: record.setting.keys() == set(keys))

    def one(self) -> Record | None:
        """The only record, or None where nothing was measured.

        Raises:
            InvalidProblem: several records match, so that a cell would show an arbitrary one.
        """
        if not self.records:
            return None
        first = self.records[0]
        what = f"{first.metric} of {first.problem} with {dict(first.setting)}"
        require(
            len(self.records) == 1,
            f"{len(self.records)} records are {what}; measure the study afresh.",
        )
        return first

    def distinct(self, key: str) -> list[Any]:
        """The values of a setting, sorted."""
        return sorted({record.setting[key] for record in self.records if key in record.setting})

    def fields(self, name: str) -> list[Any]:
        """The values of a field of the records, in order of appearance."""
        return list(dict.fromkeys(getattr(record, name) for record in self.records))

    @property
    def metrics(self) -> list[Metric]:
        """What the records measure, in order of appearance."""
        return [Metric(name) for name in self.fields("metric")]

    def series(
        self, x: str, y: Callable[[Record], float | None] = lambda record: record.value
    ) -> Series:
        """``y`` against the setting or field ``x``, where both are finite numbers."""
        points = [(_coordinate(record, x), y(record)) for record in self.records]
        kept = sorted(
            (a, b)
            for a, b in points
            if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
        )
        return Series(tuple(a for a, _ in kept), tuple(b for _, b in kept))

    def largest(
        self, y: Callable[[Record], float | None] = lambda record: record.value
    ) -> float | None:
        """The largest ``y``, or None where nothing was measured."""
        return max(self._known(y), default=None)

    def smallest(
        self, y: Callable[[Record], float | None] = lambda record: record.value
    ) -> float | None:
        """The smallest ``y``, or None where nothing was measured."""
        return min(self._known(y), default=None)

    def _known(self, y: Callable[[Record], float | None]) -> list[float]:
        """Every ``y`` that is a number."""
        values = map(y, self.records)
        return [value for value in values if value is not None and not math.isnan(value)]


def ratio(record: Record) -> float | None:
    """Measured over bound, None where there is no finite positive bound."""
    if record.bound is None or not math.isfinite(record.bound) or record.bound <= 0:
        return None
    return record.value / record.bound


def _listed(studies: Iterable[StudySchema]) -> str:
    return ", ".join(study.name for study in studies)


def _coordinate(record: Record, x: str) -> float | None:
    return record.setting[x] if x in record.setting else getattr(record, x, None)
