"""Scenes of the shape world."""

from __future__ import annotations

import collections
import random

import torch

from sd_experiments.tiny.captions import (
    COLOURS,
    SHAPES,
    draw_caption,
)
from sd_experiments.tiny.shapes import Scenes, arrange


def drawings(n: int, seed: int = 0):
    rng = random.Random(seed)
    captions = [draw_caption(rng) for _ in range(n)]
    return captions, arrange(captions, torch.Generator().manual_seed(seed))


def one(shape: str, colour: str, x: float, y: float, size: float = 5.0) -> Scenes:
    """A scene of one thing."""
    return Scenes(
        shape=torch.tensor([[SHAPES.index(shape)] * 4]),
        colour=torch.tensor([[COLOURS.index(colour)] * 4]),
        x=torch.full((1, 4), float(x)),
        y=torch.full((1, 4), float(y)),
        size=torch.full((1, 4), size),
        present=torch.tensor([[True, False, False, False]]),
        tint=torch.zeros(1, 4, 3),
        ground=torch.ones(1),
    )


def kinds_of(things):
    return collections.Counter((thing.shape, thing.colour) for thing in things)
