"""A study is a list of independent tasks, each a pure function of plain arguments that returns
records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from socft.records import Record
from socft.study.vocabulary.schema import StudySchema


@dataclasses.dataclass(frozen=True)
class Task:
    """One unit of work.

    Attributes:
        name: unique within the study.
        function: module-level pure function of ``arguments`` that returns a list of records.
        arguments: numbers, strings, booleans, None, dataclasses, lists and mappings of these; a
            task that repeats its measurement with independent noise has the number of repetitions
            as ``seeds``.
    """

    name: str
    function: Callable[..., list[Record]]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """A named list of tasks.

    Attributes:
        schema: its name, which is that of its module in `toy` and of its files, and the names that
            its records may hold.
        tasks: ``quick -> tasks``, at the quick or at the full scale.
    """

    schema: StudySchema
    tasks: Callable[[bool], list[Task]]

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.schema.name
