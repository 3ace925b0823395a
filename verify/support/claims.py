"""What a file of this folder claims, and the record of every check it ran.

A file states one result in its docstring, from which its module-level `CLAIM` is read, and checks
it through the claim's methods. A method first records the check, also when it then fails, and then
asserts it. What one test recorded is a `Tally`; tallies of the tests, processes and seeds of a
claim merge into one line of ``verify.jsonl``:

* *verified*: every check passed, and there was one;
* *refuted*: a check failed; the line shows that check and the instance it failed on;
* *not measured*: no check ran, or a test ended in an error that is no check.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from socft.checks import InvalidProblem, require
from verify.support.recording.records import record_of
from verify.support.recording.tally import Check, How, Tally, plain
from verify.support.topics import Topic

Kind = Literal["tight", "upper bound", "equality", "limit"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SLACK = 1e-9
"""Relative slack of an inequality: two sides equal in exact arithmetic differ by thousands of
float64 roundings.
"""
FLOOR = 1e-12
"""Absolute slack of an inequality, for bounds that are zero."""
WITHIN = 0.01
"""How close to its bound an extremal instance must come, relatively."""
NUMBERED = ("lemma", "remark", "theorem")
"""Files of statements with a number, which come first in their topic."""


class Claim:
    """One statement and the tally of its checks.

    Args:
        name: the stem of the file that states it.
        title: what reports call it, in plain words.
        topic: what it is about, which places it in reports.
        statement: the statement in one line of Typst markup, whose symbols may be unicode; names of
            parts and findings are markup too.
        source: paper with version and number, or "derived here".
        kind: ``tight`` (an instance attains it), ``upper bound`` (none does), ``equality`` or
            ``limit``.

    An ``instance`` is a mapping of plain numbers, strings and lists, or has a method ``describe``
    that returns one.
    """

    def __init__(
        self, name: str, title: str, topic: Topic, statement: str, source: str, kind: Kind
    ):
        require(kind in KINDS, f"kind = {kind!r}; it must be one of {', '.join(KINDS)}.")
        require("\n" not in statement, f"the statement of {name} has several lines; say it in one.")
        self.name, self.title, self.topic = name, title, topic
        self.statement, self.source, self.kind = statement, source, kind
        self.tally = Tally()

    @classmethod
    def of_module(cls, module: str, docstring: str | None, title: str, topic: Topic) -> Self:
        """The claim that a file states in its docstring.

        Its statement and its source are the first paragraphs of the sections of that name, its kind
        is how that section begins; what follows in a section explains.

        Args:
            module: ``__name__`` of the file.
            docstring: ``__doc__`` of the file.

        Raises:
            InvalidProblem: a section is missing, or its kind is none.
        """
        name, text = module.rpartition(".")[2], docstring or ""
        kind = _section(name, text, "Kind")
        return cls(
            name,
            title,
            topic,
            _section(name, text, "Statement"),
            _section(name, text, "Source").removesuffix("."),
            next((each for each in KINDS if kind.startswith(each)), kind),  # type: ignore[arg-type]
        )

    @property
    def file(self) -> str:
        """The file that states it."""
        return f"verify/{self.name}.py"

    @property
    def place(self) -> tuple[int, bool, str]:
        """Where it stands among the claims."""
        return self.topic.place, self.name.partition("_")[0] not in NUMBERED, self.title

    @property
    def heading(self) -> dict[str, Any]:
        """What a line of the record says whatever was measured."""
        return {
            "claim": self.name,
            "title": self.title,
            "topic": dataclasses.asdict(self.topic),
            "place": self.place,
            "file": self.file,
            "source": self.source,
            "kind": self.kind,
            "statement": self.statement,
        }

    def holds(
        self,
        measured: ArrayLike,
        bound: ArrayLike,
        instance: Any,
        sharp: ArrayLike | None = None,
        slack: float = SLACK,
        floor: float = FLOOR,
        part: str = "",
    ) -> None:
        """Check ``measured <= bound (1 + slack) + floor``, and the same for ``sharp`` where given.

        Arrays are compared entry by entry, and the entry of the largest ratio is recorded. Inside a
        property-based test the search is steered towards large ratios, once per example and part.

        Args:
            measured: the measured number(s), non-negative.
            bound: the bound(s), non-negative, possibly infinite.
            instance: where.
            sharp: sharper bound(s), reported beside the paper's.
            slack: relative error of the measurement.
            floor: absolute error of the measurement.
            part: which part of the statement.
        """
        check = _inequality("inequality", part, measured, bound, instance, floor)
        self.tally.count(check, ranked=self.kind != "equality")
        steer(check.ratio, f"{self.name} {part}".strip())
        if sharp is not None:
            sharper = _inequality("sharper inequality", part, measured, sharp, instance, floor)
            self.tally.note(sharper)
            self._assert(_below(measured, sharp, slack, floor), sharper)
        self._assert(_below(measured, bound, slack, floor), check)

    def equals(
        self,
        measured: ArrayLike,
        expected: ArrayLike,
        instance: Any,
        tolerance: float,
        part: str = "",
    ) -> None:
        """Check ``sup |measured - expected| <= tolerance``; beside an inequality a side check,
        which its ratio does not show.

        Args:
            tolerance: absolute; derive it from the errors of both sides.
        """
        require(
            tolerance > 0,
            f"tolerance = {tolerance}; give the absolute error that both sides may have.",
        )
        residual = float(np.max(np.abs(_array(measured) - _array(expected))))
        check = Check(
            "equality",
            part,
            residual,
            tolerance,
            _ratio(residual, tolerance, 0.0),
            _mapping(instance),
        )
        self.tally.count(check, ranked=self.kind in ("equality", "limit"))
        steer(check.ratio, f"{self.name} {part}".strip())
        self._assert(residual <= tolerance, check)

    def attained(
        self,
        measured: float,
        bound: float,
        instance: Any,
        within: float = WITHIN,
        slack: float = SLACK,
        part: str = "",
    ) -> None:
        """Check that an extremal instance reaches its bound,
        ``(1 - within) bound <= measured <= (1 + slack) bound``.
        """
        check = _inequality("attained", part, measured, bound, instance, FLOOR)
        self.tally.count(check, ranked=False)
        self._assert(
            _below(measured, bound, slack, FLOOR)
            and float(measured) >= (1 - within) * float(bound),
            check,
        )

    def breaks(self, measured: float, bound: float, instance: Any, part: str = "") -> None:
        """Negative control: without the assumption the conclusion must fail, ``measured >
        bound``.
        """
        check = _inequality("negative control", part, measured, bound, instance, 0.0)
        violated = float(measured) > float(bound)
        if violated:
            self.tally.note(check)
        self._assert(violated, check)

    def finding(self, text: str, instance: Any) -> None:
        """Add a line to the record: a statement false as printed, or any other result."""
        self.tally.findings[text] = _mapping(instance)

    def certified(
        self, measured_upper: Any, bound_lower: Any, instance: Any, part: str = ""
    ) -> None:
        """Check a certificate in interval arithmetic: every point of ``measured_upper`` lies below
        every point of ``bound_lower``.

        Args:
            measured_upper: `flint.arb`, or a number.
            bound_lower: `flint.arb`, or a number; one of the two must be an `arb`.
        """
        both = (type(measured_upper).__name__, type(bound_lower).__name__)
        require(
            "arb" in both,
            f"a certificate compares balls, not {both[0]} and {both[1]}; compute one side with"
            " flint.arb.",
        )
        upper, lower = _end(measured_upper, +1), _end(bound_lower, -1)
        check = Check(
            "certificate", part, upper, lower, _ratio(upper, lower, 0.0), _mapping(instance)
        )
        passed = bool(measured_upper <= bound_lower)
        if passed:
            self.tally.note(check)
        self._assert(passed, check)

    def take(self) -> Tally:
        """What was recorded since the last call."""
        tally, self.tally = self.tally, Tally()
        return tally

    def record(self, tally: Tally) -> dict[str, Any]:
        """The line of the record."""
        return record_of(self.heading, tally)

    def _assert(self, passed: bool, check: Check) -> None:
        if not passed:
            self.tally.failure = check
        assert passed, f"{self.name} {check}"


def _section(name: str, docstring: str, section: str) -> str:
    """The first paragraph of a section of a docstring, in one line."""
    found = re.search(rf"^{section}: (.+?)(?:\n\n|\Z)", docstring, re.DOTALL | re.MULTILINE)
    if found is None:
        raise InvalidProblem(
            f"the docstring of verify/{name}.py has no section {section!r}; begin a paragraph with"
            f" '{section}: '."
        )
    return " ".join(found[1].split())


def steer(ratio: float, label: str) -> None:
    """Inside a property-based test, tell the search that larger ratios are more interesting; once
    per example and label.
    """
    hypothesis = sys.modules.get("hypothesis")
    if hypothesis is None or not hypothesis.currently_in_test_context():
        return
    try:
        hypothesis.target(min(ratio, 1e9) if ratio == ratio else 1e9, label=label)
    except hypothesis.errors.InvalidArgument:
        return  # the label was used in this example before


def _inequality(
    how: How, part: str, measured: ArrayLike, bound: ArrayLike, instance: Any, floor: float
) -> Check:
    """The entry of the largest ratio."""
    left, right = np.broadcast_arrays(_array(measured), _array(bound))
    what = f"{how} {part}".strip()
    require(left.size > 0, f"{what} compares no numbers; give at least one.")
    require(
        bool((right >= 0).all()),
        f"{what} has the bound {right.min():g}; a bound must not be negative.",
    )
    ratios = [_ratio(float(a), float(b), floor) for a, b in zip(left.flat, right.flat, strict=True)]
    worst = int(np.argmax(ratios))
    where = _mapping(instance)
    if left.size > 1:
        where = {**where, "entry": [int(i) for i in np.unravel_index(worst, left.shape)]}
    return Check(how, part, float(left.flat[worst]), float(right.flat[worst]), ratios[worst], where)


def _below(measured: ArrayLike, bound: ArrayLike, slack: float, floor: float) -> bool:
    return bool((_array(measured) <= _array(bound) * (1 + slack) + floor).all())


def _ratio(measured: float, bound: float, floor: float) -> float:
    if math.isnan(measured) or math.isnan(bound):
        return math.inf
    if bound > 0:
        return measured / bound if math.isfinite(bound) else 0.0
    return 0.0 if measured <= floor else math.inf


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach()
    return np.asarray(values, dtype=np.float64)


def _end(value: Any, side: int) -> float:
    """An end of a ball, rounded to nearest for display, or the number."""
    if type(value).__name__ != "arb":
        return float(value)
    return float(value.upper() if side > 0 else value.lower())


def _mapping(instance: Any) -> dict[str, Any]:
    described = instance.describe() if hasattr(instance, "describe") else instance
    require(
        isinstance(described, Mapping),
        f"the instance is a {type(instance).__name__}; give a mapping, or an object that describes"
        " itself.",
    )
    return plain(described)
