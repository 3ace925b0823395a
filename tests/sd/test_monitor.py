"""Pictures that a run writes: their pixels, and that a file is whole or the one before."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from sd_experiments.training.monitor import plot_frontier, save_image_grid
from sd_experiments.training.session import told_apart
from tests.support.tensors import generator

ROWS = [
    {"round": i // 2, "step": i + 1, "reward": 0.1 * i, "kl": 0.2 * i, "accuracy": 0.5}
    for i in range(8)
]


def test_a_grid_of_pictures_has_their_pixels(tmp_path: Path):
    images = torch.randint(0, 256, (3, 3, 4, 5), generator=generator(0))
    save_image_grid(images / 255, 2, tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        found = np.asarray(picture)
    assert found.shape == (2 * 4 + 1, 2 * 5 + 1, 3)
    places = ((slice(0, 4), slice(0, 5)), (slice(0, 4), slice(6, 11)), (slice(5, 9), slice(0, 5)))
    for image, (rows, columns) in zip(images, places, strict=True):
        assert np.array_equal(found[rows, columns], image.permute(1, 2, 0).numpy())
    assert (found[4] == 255).all()
    assert (found[5:, 5:] == 255).all()


@pytest.mark.parametrize("broken", [False, True])
def test_a_picture_that_fails_leaves_the_one_before(
    broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "picture.png"
    file.write_bytes(b"before")

    def half(self, target, *_: object, **__: object) -> None:
        if isinstance(target, io.IOBase):
            target.write(b"half")
        else:
            Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    if broken:
        monkeypatch.setattr(matplotlib.figure.Figure, "savefig", half)
        monkeypatch.setattr(Image.Image, "save", half)
        for write in (
            lambda: plot_frontier(ROWS, file, 2),
            lambda: save_image_grid(torch.rand(1, 3, 4, 4), 1, file),
        ):
            with pytest.raises(OSError, match="no space left"):
                write()
            assert file.read_bytes() == b"before"
    else:
        plot_frontier(ROWS, file, 2)
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            assert picture.width > 2 * picture.height
    assert [each.name for each in tmp_path.iterdir()] == ["picture.png"]


def test_how_well_a_reward_tells_right_from_wrong_is_the_rank_statistic():
    rewards = torch.tensor([0.3, 0.1, 0.4, 0.3, 0.9, -0.2, 0.5], dtype=torch.float64)
    right = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.2], dtype=torch.float64)
    good, bad = rewards[right > 0.5], rewards[right < 0.5]
    expected = stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    assert told_apart(rewards, right)["told_apart"] == pytest.approx(expected)
    assert told_apart(rewards, torch.ones(7)) == {}


def test_the_error_of_that_statistic_is_its_spread_over_pictures():
    found = []
    for number in range(300):
        drawn = generator(number)
        right = (torch.rand(80, generator=drawn) < 0.4).double()
        rewards = right + torch.randn(80, generator=drawn, dtype=torch.float64)
        found.append([*told_apart(rewards, right).values()])
    values, errors = torch.tensor(found, dtype=torch.float64).T
    # the relative standard error of a standard deviation of 300 numbers is 4 %
    assert float(errors.square().mean().sqrt() / values.std()) == pytest.approx(1, rel=0.16)
