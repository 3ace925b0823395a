"""What a file of this folder claims, and the record of every check it ran.

A file states one result as its module-level `CLAIM` and checks it through the claim's methods. A
method first records the check, also when it then fails, and then asserts it. What one test recorded
is a `Tally`; tallies of the tests, processes and seeds of a claim merge into one line of
``verify.jsonl``:

* *verified*: every check passed, and there was one;
* *refuted*: a check failed; the line shows that check and the instance it failed on;
* *not measured*: no check ran, or a test ended in an error that is no check.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from socft.checks import InvalidProblem, require
from socft.records import environment, write_atomically
from verify.support.topics import Topic
from verify.support.words import words

Kind = Literal["tight", "upper bound", "equality", "limit"]
Status = Literal["verified", "refuted", "not measured"]
How = Literal[
    "inequality", "sharper inequality", "equality", "attained", "negative control", "certificate"
]

KINDS: tuple[Kind, ...] = ("tight", "upper bound", "equality", "limit")
SLACK = 1e-9
"""Relative slack of an inequality: two sides equal in exact arithmetic differ by thousands of
float64 roundings.
"""
FLOOR = 1e-12
"""Absolute slack of an inequality, for bounds that are zero."""
WITHIN = 0.01
"""How close to its bound an extremal instance must come, relatively."""
BINS_PER_DECADE = 100
"""Resolution of the quantiles of the ratio, 2.3%."""
LEAST_RATIO = 1e-12
"""Ratios below this one share a bin."""
QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)
NUMBERED = ("lemma", "remark", "theorem")
"""Files of statements with a number, which come first in their topic."""
_TOOLS = ("hypothesis", "python-flint", "sympy", "mpmath")


@dataclasses.dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        how: the kind of check.
        part: which part of the statement; empty for the whole.
        measured: the measured number; for an equality its distance from the expected one.
        bound: what it is held against; for an equality the tolerance.
        ratio: measured over bound.
        instance: where, in plain JSON, enough to build it again.
    """

    how: How
    part: str
    measured: float
    bound: float
    ratio: float
    instance: Mapping[str, Any]

    @property
    def what(self) -> str:
        """The kind of check and the part of the statement, in words."""
        return f"{self.how} {self.part}".strip()

    def __str__(self) -> str:
        where = json.dumps(_plain(self.instance))
        return (
            f"{self.what}: measured {self.measured:.12g}, bound {self.bound:.12g}, ratio"
            f" {self.ratio:.12g} at {where}"
        )


@dataclasses.dataclass
class Part:
    """The checks of one kind on one part of a statement.

    Attributes:
        checked: their number.
        extreme: the one with the largest ratio; of negative controls that with the smallest, which
            fails least.
    """

    checked: int
    extreme: Check

    def merge(self, other: Part) -> None:
        """Add the checks of another tally."""
        self.checked += other.checked
        key = (
            (lambda check: (-check.ratio, str(check)))
            if self.extreme.how == "negative control"
            else _rank
        )
        self.extreme = max(self.extreme, other.extreme, key=key)


@dataclasses.dataclass
class Tally:
    """What some checks of one claim amount to; `merge` adds another tally of the same claim.

    Attributes:
        checked: number of inequalities, equalities and extremal instances checked; controls and
            certificates do not count.
        worst: the ranked check with the largest ratio.
        failure: the last check that failed.
        parts: what was checked, by kind and part; of controls and certificates, what came out as it
            must.
        findings: results worth a line, by text, with their instance.
        bins: number of ranked checks by logarithm of the ratio.
        errors: tests that ended in an error that is no failed check.
        seconds: time spent in the tests.
        seeds: number of random seeds tried after the fixed one.
    """

    checked: int = 0
    worst: Check | None = None
    failure: Check | None = None
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    findings: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    bins: dict[int, int] = dataclasses.field(default_factory=dict)
    errors: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    seeds: int = 0

    def count(self, check: Check, ranked: bool = True) -> None:
        """Add a check, passed or failed; only ranked ones enter the largest ratio and its
        quantiles.
        """
        self.checked += 1
        self.note(check)
        if not ranked:
            return
        self.worst = _larger(self.worst, check)
        index = _bin(check.ratio)
        self.bins[index] = self.bins.get(index, 0) + 1

    def note(self, check: Check) -> None:
        """Add a check to its part only."""
        part = Part(1, check)
        if check.what in self.parts:
            part.merge(self.parts[check.what])
        self.parts[check.what] = part

    def merge(self, other: Tally) -> None:
        """Add what another tally of the same claim has; the order does not matter."""
        self.checked += other.checked
        self.worst = _larger(self.worst, other.worst)
        self.failure = _larger(self.failure, other.failure)
        for name, part in other.parts.items():
            mine = dataclasses.replace(part)
            if name in self.parts:
                mine.merge(self.parts[name])
            self.parts[name] = mine
        self.parts = dict(sorted(self.parts.items()))
        self.findings = dict(sorted((other.findings | self.findings).items()))
        self.bins = {
            i: self.bins.get(i, 0) + other.bins.get(i, 0)
            for i in sorted(self.bins.keys() | other.bins.keys())
        }
        self.errors = sorted({*self.errors, *other.errors})
        self.seconds += other.seconds
        self.seeds += other.seeds

    @property
    def status(self) -> Status:
        """What the checks say of the claim."""
        if self.failure is not None:
            return "refuted"
        return "verified" if self.checked and not self.errors else "not measured"

    @property
    def sharp(self) -> float | None:
        """Largest ratio to the sharper constant."""
        return max((part.extreme.ratio for part in self._of("sharper inequality")), default=None)

    @property
    def attained(self) -> float | None:
        """Largest ratio of an extremal instance."""
        return max((part.extreme.ratio for part in self._of("attained")), default=None)

    @property
    def control(self) -> bool:
        """Whether a negative control ran, and failed to hold as it must."""
        return bool(self._of("negative control"))

    @property
    def certified(self) -> bool:
        """Whether a certificate in interval arithmetic was checked."""
        return bool(self._of("certificate"))

    def _of(self, how: How) -> list[Part]:
        return [part for part in self.parts.values() if part.extreme.how == how]

    @property
    def histogram(self) -> dict[str, list[float]]:
        """Numbers of ranked checks in logarithmic bins of the ratio, and where the bins begin."""
        ordered = sorted(self.bins.items())
        return {
            "ratio": [float(f"{10 ** (i / BINS_PER_DECADE):.4g}") for i, _ in ordered],
            "checks": [n for _, n in ordered],
        }

    @property
    def quantiles(self) -> dict[str, float]:
        """Quantiles of the ratio, to the resolution of the bins and never above the largest."""
        if self.worst is None:
            return {}
        ordered, total = sorted(self.bins.items()), sum(self.bins.values())
        counts = np.cumsum([n for _, n in ordered])
        found = {}
        for level in QUANTILES[:-1]:
            index = ordered[int(np.searchsorted(counts, level * total))][0]
            found[str(level)] = min(10 ** (index / BINS_PER_DECADE), self.worst.ratio)
        return found | {str(QUANTILES[-1]): self.worst.ratio}

    def encode(self) -> dict[str, Any]:
        """As plain JSON."""
        return dataclasses.asdict(self) | {"bins": {str(i): n for i, n in self.bins.items()}}

    @classmethod
    def decode(cls, row: Mapping[str, Any]) -> Self:
        """The inverse of `encode`."""
        checks = {name: Check(**row[name]) if row[name] else None for name in ("worst", "failure")}
        parts = {
            name: Part(part["checked"], Check(**part["extreme"]))
            for name, part in row["parts"].items()
        }
        return cls(
            **{**row, **checks, "parts": parts, "bins": {int(i): n for i, n in row["bins"].items()}}
        )


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


def record_of(heading: Mapping[str, Any], tally: Tally) -> dict[str, Any]:
    """A line of the record; ``heading`` is what it says whatever was measured."""
    here, shown = environment(), tally.failure or tally.worst
    tools = {name: version for name in _TOOLS if (version := _version(name))}
    line = {
        **heading,
        "status": tally.status,
        "checked": tally.checked,
        "check": shown.what if shown else None,
        "measured": shown.measured if shown else None,
        "bound": shown.bound if shown else None,
        "ratio": shown.ratio if shown else None,
        "ratio_sharp": tally.sharp,
        "instance": shown.instance if shown else None,
        "words": words(shown.instance) if shown else None,
        "attained": tally.attained,
        "control": tally.control,
        "certified": tally.certified,
        "parts": [
            {
                "checked": part.checked,
                **dataclasses.asdict(part.extreme),
                "words": words(part.extreme.instance),
            }
            for part in tally.parts.values()
        ],
        "finding": [
            {"text": text, "instance": instance} for text, instance in tally.findings.items()
        ],
        "quantiles": tally.quantiles,
        "histogram": tally.histogram,
        "errors": tally.errors,
        "seconds": round(tally.seconds, 2),
        "seed": tally.seeds,
        "versions": {**here.versions, **tools},
        "commit": here.commit,
        "dirty": here.dirty,
    }
    return _plain(line)


def summary(line: Mapping[str, Any]) -> str:
    """A line of the record in one line of text."""
    shown = (("worst ratio", "ratio"), ("sharp", "ratio_sharp"), ("attained", "attained"))
    ratios = ", ".join(
        f"{name} {float(line[key]):.4g}" for name, key in shown if line[key] is not None
    )
    flags = [name for name in ("control", "certified") if line[name]]
    about = [
        text
        for text in (
            ratios,
            f"{line['checked']} checks",
            *flags,
            *line["errors"],
            f"{line['seconds']:.1f} s",
        )
        if text
    ]
    return f"{line['claim']}: {line['status']} ({'; '.join(about)})"


def read_records(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of a record file by claim, none where there is no file."""
    if not file.is_file():
        return {}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["claim"]: row for row in rows}


def update_records(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the lines of some claims, atomically; the lines of other claims stay as they are."""
    rows = read_records(file) | {line["claim"]: dict(line) for line in lines}
    write_atomically(file, "".join(_encoded(rows[name]) for name in sorted(rows)).encode())


def forget_records(file: Path, keep: Iterable[str]) -> None:
    """Drop the lines of all claims but some, atomically."""
    rows, kept = read_records(file), set(keep)
    if rows.keys() - kept:
        text = "".join(_encoded(rows[name]) for name in sorted(rows) if name in kept)
        write_atomically(file, text.encode())


def _encoded(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n"


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


def _bin(ratio: float) -> int:
    return math.floor(BINS_PER_DECADE * math.log10(min(max(ratio, LEAST_RATIO), 1 / LEAST_RATIO)))


def _larger(first: Check | None, second: Check | None) -> Check | None:
    """The check of the larger ratio."""
    return max((check for check in (first, second) if check is not None), key=_rank, default=None)


def _rank(check: Check) -> tuple[float, str]:
    """By ratio; equal ones are ordered by their text, so that merging is commutative."""
    return check.ratio, str(check)


def _mapping(instance: Any) -> dict[str, Any]:
    described = instance.describe() if hasattr(instance, "describe") else instance
    require(
        isinstance(described, Mapping),
        f"the instance is a {type(instance).__name__}; give a mapping, or an object that describes"
        " itself.",
    )
    return _plain(described)


def _plain(value: Any) -> Any:
    """What strict JSON can say; infinities become the strings "inf" and "-inf", NaN becomes
    null.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise InvalidProblem(
        f"an instance contains a {type(value).__name__}; give plain numbers, strings, lists and"
        " mappings.",
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
