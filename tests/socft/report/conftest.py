"""What tests of reports share."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures drawn during a test, instead of their SVG."""
    from socft.report.convergence import figures, tightness_figures

    found: list[Figure] = []
    for module in (figures, tightness_figures):
        monkeypatch.setattr(module, "svg", lambda figure: found.append(figure) or b"")
    return found
