"""What the checks of a claim amount to, and how tallies of tests, processes and seeds merge."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

from socft.checks import InvalidProblem

Status = Literal["verified", "refuted", "not measured"]
How = Literal[
    "inequality", "sharper inequality", "equality", "attained", "negative control", "certificate"
]
BINS_PER_DECADE = 100
"""Resolution of the quantiles of the ratio, 2.3%."""
LEAST_RATIO = 1e-12
"""Ratios below this one share a bin."""
QUANTILES = (0.1, 0.5, 0.9, 0.99, 1.0)


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
        where = json.dumps(plain(self.instance))
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


def plain(value: Any) -> Any:
    """What strict JSON can say; infinities become the strings "inf" and "-inf", NaN becomes
    null.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise InvalidProblem(
        f"an instance contains a {type(value).__name__}; give plain numbers, strings, lists and"
        " mappings.",
    )


def _bin(ratio: float) -> int:
    return math.floor(BINS_PER_DECADE * math.log10(min(max(ratio, LEAST_RATIO), 1 / LEAST_RATIO)))


def _larger(first: Check | None, second: Check | None) -> Check | None:
    """The check of the larger ratio."""
    return max((check for check in (first, second) if check is not None), key=_rank, default=None)


def _rank(check: Check) -> tuple[float, str]:
    """By ratio; equal ones are ordered by their text, so that merging is commutative."""
    return check.ratio, str(check)
