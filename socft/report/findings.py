"""What a report finds: sentences in plain words, whose numbers and verdicts are computed from
records.

A finding is asked of the records, it is not typed: its sentence has places for numbers, every
number knows the records that it was made of, and the verdict that the words pass is a condition on
the numbers. Where the condition fails, the sentence is not printed; the finding then says that
these records do not carry it, and what they have instead.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from socft.checks import InvalidProblem, require
from socft.files import read_json, write_atomically
from socft.records import Record
from socft.report import claim_records
from socft.report.claim_records import ClaimLine, Claims
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, cited, number

FILE = "findings.json"
SMALL, WHOLE = 1e-6, 1e5
"""Between these a number is shown without a power of ten; whole ones below the second as such."""
PLACE = re.compile(r"\{(\w+)\}")
FROM_ABOVE = re.compile(r"(?:at most|up to|within an? [a-z ]+ of) $")
FROM_BELOW = re.compile(r"at least $")
ROUNDING = 1e-9
"""Relative distance to a shown number that is an error of floating point."""
Evidence: TypeAlias = Record | ClaimLine


class NotMeasured(Exception):
    """The records lack what a finding is made of."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of a finding.

    Attributes:
        value: the number.
        evidence: the records that it was made of.
        digits: how many are shown.
    """

    value: float
    evidence: tuple[Evidence, ...]
    digits: int = 3

    @property
    def markup(self) -> str:
        """For a page."""
        shown = float(f"{self.value:.{self.digits}g}")
        whole = shown.is_integer() and abs(shown) < WHOLE
        return f"${shown:.0f}$" if whole else number(shown, self.digits)

    @property
    def plain(self) -> str:
        """For everything else."""
        shown = float(f"{self.value:.{self.digits}g}")
        if shown == 0 or not math.isfinite(shown) or SMALL <= abs(shown) < WHOLE:
            return np.format_float_positional(shown, trim="-")
        mantissa, _, exponent = f"{shown:.{self.digits}g}".partition("e")
        return f"{mantissa} × 10^{int(exponent)}" if exponent else mantissa

    def bound(self, above: bool) -> Number:
        """Its digits rounded up, or down, so that it bounds what it was."""
        near = float(f"{self.value:.{self.digits}g}")
        exact = not math.isfinite(near) or math.isclose(near, self.value, rel_tol=ROUNDING)
        if not exact and (near > self.value) != above:
            unit = 10.0 ** (math.floor(math.log10(abs(near))) - self.digits + 1)
            near += unit if above else -unit
        return dataclasses.replace(self, value=near)

    def over(self, other: Number, digits: int = 3) -> Number:
        """The ratio to another number.

        Raises:
            NotMeasured: that is zero.
        """
        if other.value == 0:
            raise NotMeasured
        return Number(self.value / other.value, _joined(self, other), digits)

    def less(self, other: Number, digits: int = 3) -> Number:
        """The difference from another number."""
        return Number(self.value - other.value, _joined(self, other), digits)


@dataclasses.dataclass(frozen=True)
class Finding:
    """An answer of the records.

    Attributes:
        about: what it is about, in a few words.
        sentence: plain text, with the name of a number in braces where it stands.
        numbers: by name.
        carried: whether the numbers carry the words; None where something was not measured.
    """

    about: str
    sentence: str
    numbers: Mapping[str, Number] = dataclasses.field(default_factory=dict)
    carried: bool | None = None

    @property
    def markup(self) -> str:
        """The sentence with its numbers, for a page."""
        if self.carried is None:
            return f"{cited(self.about)}: {NOT_MEASURED}."
        if not self.carried:
            return f"{cited(self.about)}: _not carried by these records_ ({self._listed()})."
        shown = self.shown()
        return "".join(
            shown[part].markup if i % 2 else cited(part) if part else ""
            for i, part in enumerate(PLACE.split(self.sentence))
        )

    @property
    def plain(self) -> str:
        """The sentence with its numbers, as plain text.

        Raises:
            InvalidProblem: the records do not carry it.
        """
        require(
            bool(self.carried),
            f"the records do not carry the finding {self.about!r} ({self._listed()}); measure"
            " again, or say what they do carry.",
        )
        shown = self.shown()
        return PLACE.sub(lambda place: shown[place[1]].plain, self.sentence)

    def shown(self) -> dict[str, Number]:
        """The numbers as the words ask for them: what stands after "at least" is rounded down,
        after "at most", "up to" or "within a factor of" up, and the ends of "a to b" outward.
        """
        shown = dict(self.numbers)
        parts = PLACE.split(self.sentence)
        for i in range(1, len(parts), 2):
            name = parts[i]
            before, number = parts[i - 1], self.numbers[name]
            if FROM_ABOVE.search(before) or FROM_BELOW.search(before):
                shown[name] = number.bound(above=FROM_BELOW.search(before) is None)
            if parts[i + 1] == " to " and not before.endswith("from "):
                first, last = sorted((name, parts[i + 2]), key=lambda end: self.numbers[end].value)
                shown[first] = self.numbers[first].bound(above=False)
                shown[last] = self.numbers[last].bound(above=True)
        return shown

    def written(self, places: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
        """For JSON.

        Args:
            places: file and line of every record, by identity.
        """
        return {
            "about": self.about,
            "carried": self.carried,
            "sentence": self.plain if self.carried else None,
            "numbers": {
                name: {
                    "value": each.value if math.isfinite(each.value) else str(each.value),
                    "records": _lines(each.evidence, places),
                }
                for name, each in self.numbers.items()
            },
        }

    def _listed(self) -> str:
        return ", ".join(f"{name} {each.plain}" for name, each in self.numbers.items())


Answer: TypeAlias = tuple[Mapping[str, Number], bool]


@dataclasses.dataclass(frozen=True)
class Question:
    """What a finding is made of.

    Attributes:
        about: in a few words.
        sentence: what is said if the records carry it: plain text with names in braces.
        answer: numbers of the records by name, and whether they carry the sentence.
    """

    about: str
    sentence: str
    answer: Callable[[Rows, Claims], Answer]

    def ask(self, rows: Rows, claims: Claims) -> Finding:
        """The finding of these records."""
        try:
            numbers, carried = self.answer(rows, claims)
        except NotMeasured:
            return Finding(self.about, self.sentence)
        known = all(not math.isnan(each.value) for each in numbers.values())
        return Finding(self.about, self.sentence, numbers, carried and known)


def one(rows: Rows, digits: int = 3) -> Number:
    """The number of the only record.

    Raises:
        NotMeasured: there is none.
    """
    record = rows.one()
    if record is None:
        raise NotMeasured
    return Number(record.value, (record,), digits)


def error(rows: Rows) -> Number:
    """The standard error of the only record.

    Raises:
        NotMeasured: there is none.
    """
    record = rows.one()
    if record is None or record.stderr is None:
        raise NotMeasured
    return Number(record.stderr, (record,))


Reading = Callable[[Record], float | None]


def its_value(record: Record) -> float:
    """The number that a record has."""
    return record.value


def largest(rows: Rows, of: Reading = its_value, digits: int = 3) -> Number:
    """The largest of some records.

    Raises:
        NotMeasured: there are none.
    """
    return _extreme(rows.largest(of), rows, digits)


def smallest(rows: Rows, of: Reading = its_value, digits: int = 3) -> Number:
    """The smallest of some records.

    Raises:
        NotMeasured: there are none.
    """
    return _extreme(rows.smallest(of), rows, digits)


def count(found: Iterable[Evidence], of: Iterable[Evidence] | None = None) -> Number:
    """How many there are, among others that were looked at.

    Raises:
        NotMeasured: nothing was looked at.
    """
    counted = tuple(found)
    looked = counted if of is None else tuple(of)
    if not looked:
        raise NotMeasured
    return Number(len(counted), looked)


def made(value: float, *parts: Number, digits: int = 3) -> Number:
    """A number made of others."""
    return Number(value, _joined(*parts), digits)


def _extreme(value: float | None, rows: Rows, digits: int) -> Number:
    if value is None:
        raise NotMeasured
    return Number(value, rows.records, digits)


def _joined(*parts: Number) -> tuple[Evidence, ...]:
    return tuple({id(each): each for part in parts for each in part.evidence}.values())


def block(findings: Sequence[Finding]) -> str:
    """The numbered findings of a page."""
    items = "\n".join(f"+ {each.markup}" for each in findings)
    return f"""#pad(x: 9mm)[
  #set text(size: 9.5pt)
  #set par(first-line-indent: 0pt)
  #align(center)[*Findings*]
  #v(0.2em)
#set enum(numbering: "1.", spacing: 0.7em)
{items}
]"""


def places(rows: Rows, claims: Claims) -> Mapping[int, tuple[str, int]]:
    """File and line of every record, by identity: those of a study stand in the order of its
    file.
    """
    found, lines = {}, collections.Counter[str]()
    for record in rows:
        lines[record.study] += 1
        found[id(record)] = f"{record.study}.jsonl", lines[record.study]
    for line in claims.checked:
        found[id(line)] = claim_records.FILE, line.line
    return found


def write(report: str, findings: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Put the findings of a report into a file of those of all reports, in place of its old ones.

    Raises:
        InvalidProblem: the file is damaged.
    """
    remedy = "remove it and typeset all reports again"
    known = read_json(file, remedy) if file.exists() else {}
    if not isinstance(known, dict):
        raise InvalidProblem(f"{file} is damaged: it is no JSON object; {remedy}.")
    known[report] = list(findings)
    text = json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False)
    write_atomically(file, f"{text}\n".encode())


def _lines(
    evidence: Iterable[Evidence], places: Mapping[int, tuple[str, int]]
) -> dict[str, list[int]]:
    """Lines of the records by file."""
    found: dict[str, set[int]] = {}
    for each in evidence:
        file, line = places[id(each)]
        found.setdefault(file, set()).add(line)
    return {file: sorted(lines) for file, lines in sorted(found.items())}
