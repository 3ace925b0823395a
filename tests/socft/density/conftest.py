"""What the tests of densities share."""

from __future__ import annotations

import pytest

from tests.support.density_laws import GENERATOR


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever ran before it."""
    GENERATOR.manual_seed(7)
