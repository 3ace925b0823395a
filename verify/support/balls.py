"""Intervals in ball arithmetic, for certificates over whole ranges of parameters."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import flint

from socft.checks import require

SMALLEST = Fraction(1, 2**30)
"""Width at which a certificate gives up."""


def ball(low: Fraction, high: Fraction) -> flint.arb:
    """A ball that contains an interval."""
    ends = [flint.arb(flint.fmpq(x.numerator, x.denominator)) for x in (low, high)]
    return ends[0].union(ends[1])


def cells(low: Fraction, high: Fraction, count: int) -> list[tuple[Fraction, Fraction]]:
    """An interval cut into equal ones."""
    width = (high - low) / count
    return [(low + i * width, low + (i + 1) * width) for i in range(count)]


def below_one(
    function: Callable[[flint.arb], flint.arb], low: Fraction, high: Fraction
) -> flint.arb:
    """An upper bound on a function over an interval, below 1, by bisection.

    Raises:
        InvalidProblem: the function is not below 1, or too close to it for a proof.
    """
    found, left = flint.arb(0), [(low, high)]
    while left:
        start, end = left.pop()
        value = function(ball(start, end))
        if value < 1:
            found = found.max(value.upper())
            continue
        require(
            end - start > SMALLEST,
            f"no proof at {float(start)}; the inequality is false or tight there.",
        )
        left += cells(start, end, 2)
    return found
