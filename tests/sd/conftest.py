"""What the tests of Stable Diffusion share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random pipeline, to be read only."""
    from tests.support.sd import save_model

    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


@pytest.fixture
def brief_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and time are estimated from one short trial of each piece, which is all that a test of
    something else needs.
    """
    monkeypatch.setattr("sd_experiments.run_cost.REPEATS", 1)
    monkeypatch.setattr("sd_experiments.run_cost.PATIENCE", 0.1)
