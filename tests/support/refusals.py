"""What is refused, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from socft.checks import InvalidProblem

Refusals = Mapping[str, tuple[Callable[[], object], str]]
"""By what is wrong: a call, and how the sentence reads as a regular expression."""


def refusals(table: Refusals) -> Callable[[str], None]:
    """A test that every call of a table is refused with its sentence."""

    @pytest.mark.refusal
    @pytest.mark.parametrize("name", list(table))
    def test(name: str) -> None:
        make, message = table[name]
        with pytest.raises(InvalidProblem, match=message):
            make()

    return test
