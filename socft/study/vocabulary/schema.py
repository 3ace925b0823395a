"""What a study writes: the metrics, the problems and the estimators of its records.

A study that writes another name is refused by its runner, a report that asks for a name that none
of its studies writes is refused by its rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Set

from socft.checks import require
from socft.records import Record


@dataclasses.dataclass(frozen=True)
class StudySchema:
    """The names in the records of a study.

    Attributes:
        name: of the study and of its files.
        metrics: what it measures.
        problems: what it measures on; None where its settings say that, as prompts do.
        estimators: what it measures there, besides what belongs to no method; None is anything, as
            a user's own.
    """

    name: str
    metrics: Set[str]
    problems: Set[str] | None = None
    estimators: Set[str] | None = None

    def __post_init__(self) -> None:
        for field in ("metrics", "problems", "estimators"):
            if (names := getattr(self, field)) is not None:
                object.__setattr__(self, field, frozenset(names))

    def named(self, name: str) -> StudySchema:
        """The same of a study with another name."""
        return dataclasses.replace(self, name=name)

    def of_anything(self, name: str) -> StudySchema:
        """The same of a study with another name and any estimators."""
        return dataclasses.replace(self, name=name, estimators=None)

    def measures(
        self, metric: str | None, problem: str | None = None, estimator: str | None = None
    ) -> bool:
        """Whether its records may have these; None is any, and no estimator is the empty name."""
        return (
            (metric is None or metric in self.metrics)
            and (problem is None or self.problems is None or problem in self.problems)
            and (not estimator or self.estimators is None or estimator in self.estimators)
        )

    def check(self, records: Iterable[Record]) -> None:
        """Refuse records with other names.

        Raises:
            InvalidProblem: a metric, a problem or an estimator is not one of the study's.
        """
        for record in records:
            require(
                self.measures(record.metric, record.problem, record.estimator),
                f"study {self.name} does not measure {record.metric!r} on {record.problem!r} with"
                f" estimator {record.estimator!r} according to its schema in"
                " socft/study/vocabulary/schemas; name these there, or measure the study again.",
            )
