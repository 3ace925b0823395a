"""Which tests are slow is decided by measurement: a test that runs longer than `LIMIT` on two quiet
cores is marked ``slow`` and left to ``make test-all``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LIMIT = 4.0
"""Seconds, without fixtures, with two workers on two otherwise idle cores."""


@dataclass(frozen=True)
class Timing:
    """How long a test took, over its parameters, and whether it is marked."""

    test: str
    seconds: float
    slow: bool


def misplaced(timings: Iterable[Timing], limit: float = LIMIT) -> list[str]:
    """A line for every test that lacks the mark and for every one that no longer needs it.

    A test is as slow as its slowest parameters. A mark is kept down to half of the limit, so that
    no test goes back and forth.
    """
    longest: dict[str, Timing] = {}
    for timing in timings:
        name = timing.test.partition("[")[0]
        if name not in longest or longest[name].seconds < timing.seconds:
            longest[name] = timing
    lines = []
    for name, timing in sorted(longest.items(), key=lambda item: -item[1].seconds):
        if timing.seconds > limit and not timing.slow:
            lines.append(f"{timing.seconds:6.1f} s  {name}: mark it @pytest.mark.slow")
        elif timing.seconds < limit / 2 and timing.slow:
            lines.append(f"{timing.seconds:6.1f} s  {name}: no longer slow")
    return lines
