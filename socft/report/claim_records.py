"""The records of claims: what `verify` found about each statement, a line of ``verify.jsonl``
each.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from socft.checks import require
from socft.files import read_rows
from socft.schema import structured

FILE = "verify.jsonl"
STATED = Path(__file__).with_name("claims.json")
"""What the lines of all claims say whatever was measured, as ``python -m verify.support.readme``
writes it.
"""
BOUNDS = ("tight", "upper bound")
"""Kinds of claims whose ratio says how loose a bound is; others compare with a tolerance."""


@dataclasses.dataclass(frozen=True)
class TopicLine:
    """What some claims are about.

    Attributes:
        place: its place among the topics.
        title: in words.
        measured: what is measured, as markup.
    """

    place: int
    title: str
    measured: str


@dataclasses.dataclass(frozen=True)
class PartLine:
    """The checks of one kind on one part of a statement.

    Attributes:
        how: inequality, sharper inequality, equality, attained, negative control or certificate.
        part: which part of the statement, as markup; empty for the whole.
        checked: their number.
        measured: of the check with the largest ratio; of negative controls that with the smallest.
        bound: what it is held against.
        ratio: measured over bound.
        words: where, as markup.
    """

    how: str
    part: str
    checked: int
    measured: float
    bound: float
    ratio: float
    words: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From the record."""
        numbers = {name: _number(row[name]) for name in ("measured", "bound", "ratio")}
        return cls(row["how"], row["part"], row["checked"], words=row["words"], **numbers)


@dataclasses.dataclass(frozen=True)
class ClaimLine:
    """What the checks of one claim amount to.

    Attributes:
        name: the stem of its file.
        title: what it is called, in plain words.
        topic: what it is about.
        place: where it stands among the claims.
        statement: in one line of markup.
        source: paper and number.
        kind: tight, upper bound, equality or limit.
        status: verified, refuted or not measured.
        checked: number of checks.
        check: what the worst check compared; of a refuted claim, the failed one.
        ratio: its measured over its bound.
        words: where, as markup.
        ratio_sharp: largest ratio to the sharper constant.
        attained: largest ratio of an extremal instance.
        control: whether the conclusion failed without its assumptions, as it must.
        certified: whether there is a certificate in interval arithmetic.
        findings: results worth a line, as markup.
        parts: the checks by kind and part.
        histogram: number of checks by where their bin of the ratio begins.
        errors: tests that ended in an error.
        line: where it stands in the file of records, 0 where it does not.
    """

    name: str
    title: str
    topic: TopicLine
    place: tuple[int, bool, str]
    statement: str
    source: str
    kind: str
    status: str
    checked: int = 0
    check: str = ""
    ratio: float | None = None
    words: str = ""
    ratio_sharp: float | None = None
    attained: float | None = None
    control: bool = False
    certified: bool = False
    findings: tuple[str, ...] = ()
    parts: tuple[PartLine, ...] = ()
    histogram: Mapping[float, int] = dataclasses.field(default_factory=dict)
    errors: tuple[str, ...] = ()
    seconds: float = 0.0
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commit: str = ""
    dirty: bool = False
    line: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """From the record."""
        same = (
            "title",
            "statement",
            "source",
            "kind",
            "status",
            "checked",
            "control",
            "certified",
            "seconds",
            "versions",
            "commit",
            "dirty",
        )
        ratios = {
            name: None if row[name] is None else _number(row[name])
            for name in ("ratio", "ratio_sharp", "attained")
        }
        return cls(
            name=row["claim"],
            check=row["check"] or "",
            topic=TopicLine(**row["topic"]),
            place=tuple(row["place"]),
            words=row["words"] or "",
            findings=tuple(finding["text"] for finding in row["finding"]),
            parts=tuple(PartLine.of(part) for part in row["parts"]),
            histogram=dict(zip(row["histogram"]["ratio"], row["histogram"]["checks"], strict=True)),
            errors=tuple(row["errors"]),
            **ratios,
            **{name: row[name] for name in same},
        )

    @classmethod
    def unmeasured(cls, heading: Mapping[str, Any]) -> Self:
        """Of a claim that was never checked.

        Args:
            heading: what its line says whatever was measured.
        """
        return cls(
            name=heading["claim"],
            title=heading["title"],
            topic=TopicLine(**heading["topic"]),
            place=tuple(heading["place"]),
            statement=heading["statement"],
            source=heading["source"],
            kind=heading["kind"],
            status="not measured",
        )

    @property
    def compares_with_bound(self) -> bool:
        """Whether the worst ratio is one to a bound, not to a tolerance."""
        return not self.check.startswith("equality")

    def of_kind(self, how: str) -> tuple[PartLine, ...]:
        """The parts checked in one way."""
        return tuple(part for part in self.parts if part.how == how)


@dataclasses.dataclass(frozen=True)
class Claims:
    """The lines of a record file by claim, in the order of their places."""

    lines: Mapping[str, ClaimLine] = dataclasses.field(default_factory=dict)

    def __iter__(self) -> Iterator[ClaimLine]:
        return iter(self.lines.values())

    def __len__(self) -> int:
        return len(self.lines)

    def get(self, name: str) -> ClaimLine | None:
        """The line of a claim, None where it was not measured."""
        return self.lines.get(name)

    def topics(self) -> Mapping[TopicLine, Sequence[ClaimLine]]:
        """The claims by topic, in the words of its first claim."""
        groups = itertools.groupby(self, key=lambda line: line.topic.place)
        found = [list(group) for _, group in groups]
        return {group[0].topic: group for group in found}

    @property
    def checked(self) -> Sequence[ClaimLine]:
        """The claims that have a line."""
        return [line for line in self if line.versions]

    def count(self, status: str) -> int:
        """The number of claims of a status."""
        return sum(line.status == status for line in self)


def read_claims(records: Path) -> Claims:
    """The claims of a folder of records, those without a line as not measured; none where there is
    no file.

    Raises:
        InvalidProblem: a line is not a record of a claim, or not the one that was written there.
    """
    file = records / FILE
    if not file.exists():
        return Claims()
    again = f"check the claims again: socft verify --out {records}"
    lines = [
        dataclasses.replace(_line(row, where, again), line=i + 1)
        for i, (where, row) in enumerate(read_rows(file, again))
    ]
    stated = [
        ClaimLine.unmeasured(heading) for heading in json.loads(STATED.read_text(encoding="utf-8"))
    ]
    found = {line.name: line for line in (*stated, *lines)}
    return Claims({line.name: line for line in sorted(found.values(), key=lambda line: line.place)})


def _line(row: Mapping[str, Any], where: str, again: str) -> ClaimLine:
    structured(_Row, row, where, again)
    return ClaimLine.of(row)


_Number: TypeAlias = float | Literal["inf", "-inf"] | None
_Instance: TypeAlias = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a part of a line holds."""

    checked: int
    how: str
    part: str
    measured: _Number
    bound: _Number
    ratio: _Number
    instance: _Instance
    words: str


@dataclasses.dataclass(frozen=True)
class _Finding:
    """What a finding of a line holds."""

    text: str
    instance: _Instance


@dataclasses.dataclass(frozen=True)
class _Histogram:
    """What the histogram of a line holds."""

    ratio: tuple[float, ...]
    checks: tuple[int, ...]

    def __post_init__(self) -> None:
        require(
            len(self.ratio) == len(self.checks),
            f"histogram has {len(self.ratio)} bins and {len(self.checks)} counts",
        )


@dataclasses.dataclass(frozen=True)
class _Row:
    """What a line of the file holds."""

    claim: str
    title: str
    topic: TopicLine
    place: tuple[int, bool, str]
    file: str
    source: str
    kind: str
    statement: str
    status: str
    checked: int
    check: str | None
    measured: _Number
    bound: _Number
    ratio: _Number
    ratio_sharp: _Number
    instance: _Instance | None
    words: str | None
    attained: _Number
    control: bool
    certified: bool
    parts: tuple[_Part, ...]
    finding: tuple[_Finding, ...]
    quantiles: Mapping[str, _Number]
    histogram: _Histogram
    errors: tuple[str, ...]
    seconds: float
    seed: int
    versions: Mapping[str, str]
    commit: str
    dirty: bool


def _number(value: float | str | None) -> float:
    """Records write NaN as null and infinities as strings."""
    return float("nan") if value is None else float(value)
