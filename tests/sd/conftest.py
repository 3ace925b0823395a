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
