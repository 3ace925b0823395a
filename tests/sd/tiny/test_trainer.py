"""The loop that trains the tiny models."""

from __future__ import annotations

import math

import pytest
import torch

from sd_experiments.tiny.trainer import TrainingSettings, minimise
from socft.checks import InvalidProblem


def quadratic(seed: int = 0):
    """A parameter and a random loss with minimum at 3."""
    parameter = torch.nn.Parameter(torch.zeros(5))
    return (
        parameter,
        lambda generator: (parameter - 3 + torch.randn(5, generator=generator)).square().mean(),
    )


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path):
    settings = TrainingSettings(steps=60, rate=0.1, warmup=5)
    whole, loss = quadratic()
    done = minimise(
        "whole", [whole], loss, settings, 7, tmp_path / "whole.safetensors", {}, every=25
    )
    assert done.steps == 60

    part, loss = quadratic()
    calls = 0

    def breaks(generator):
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return loss(generator)

    file = tmp_path / "part.safetensors"
    with pytest.raises(KeyboardInterrupt):
        minimise("part", [part], breaks, settings, 7, file, {}, every=25)
    resumed, loss = quadratic()
    again = minimise("part", [resumed], loss, settings, 7, file, {}, every=25)
    assert torch.equal(resumed, whole)
    assert again.loss == done.loss
    assert (resumed.detach() - 3).abs().max() < 1
    finished, _ = quadratic()
    minimise(
        "part",
        [finished],
        lambda generator: pytest.fail("a finished training has no steps left"),
        settings,
        7,
        file,
        {},
    )
    assert torch.equal(finished, whole)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    parameter, loss = quadratic()
    settings = TrainingSettings(steps=2)
    minimise("first", [parameter], loss, settings, 0, tmp_path / "c.safetensors", {"batch": 1})
    for other, seed, identity in [
        (TrainingSettings(steps=3), 0, {"batch": 1}),
        (settings, 1, {"batch": 1}),
        (settings, 0, {"batch": 2}),
    ]:
        with pytest.raises(InvalidProblem, match="another training"):
            minimise("second", [parameter], loss, other, seed, tmp_path / "c.safetensors", identity)


def test_a_loss_that_explodes_is_named(tmp_path):
    parameter, _ = quadratic()
    with pytest.raises(InvalidProblem, match="nan at step 0"):
        minimise(
            "bad",
            [parameter],
            lambda g: (parameter * math.nan).sum(),
            TrainingSettings(steps=2),
            0,
            tmp_path / "c.safetensors",
            {},
        )
