"""Looks at a picture and says what is in it, from its pixels alone.

A pixel of a thing with colour c that covers it to the fraction a is ``ground + a (c - ground)``:
the direction of its difference from the ground is the colour, the length is the coverage. Connected
pixels of one colour are one thing. Its shape is the one whose drawing at the same place and of the
same area differs least; a blot that differs much from all of them has none.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor

from sd_experiments.tiny.captions import COLOURS, SHAPES, Caption, VisibleShape, facts
from sd_experiments.tiny.shapes import PALETTE, SIDE, coverage
from socft.checks import require

_COVERED = 0.5  # a pixel belongs to a thing that covers at least half of it
_SMALLEST = 14  # pixels; the smallest thing drawn covers 40
_LARGEST_MISMATCH = (
    0.4  # fraction of the area; another shape of the same area differs by about 0.25 to 0.5
)


@dataclasses.dataclass(frozen=True)
class _Blot:
    picture: int
    colour: int
    x: float
    y: float
    alpha: np.ndarray

    @property
    def area(self) -> float:
        return float(self.alpha.sum())


def find_shapes(pictures: Float[Tensor, "n 3 side side"]) -> list[tuple[VisibleShape, ...]]:
    """What is in each picture (values in [0, 1]), in no particular order.

    Raises:
        InvalidProblem: the pictures do not have the size of the shape world.
    """
    size = tuple(pictures.shape[1:])
    require(
        size == (3, SIDE, SIDE),
        f"pictures of size {size}; the checker knows pictures of size (3, {SIDE}, {SIDE}).",
    )
    blots = _blots(pictures.detach().float().cpu())
    found: list[list[VisibleShape]] = [[] for _ in pictures]
    for blot, shape in zip(blots, _shapes(blots), strict=True):
        found[blot.picture].append(
            VisibleShape(shape, COLOURS[blot.colour], blot.x, blot.y, blot.area)
        )
    return [tuple(things) for things in found]


def check_captions(
    pictures: Float[Tensor, "n 3 side side"], captions: list[Caption]
) -> list[dict[str, bool]]:
    """Which facts of its caption are true of each picture; see
    `sd_experiments.tiny.captions.facts`.
    """
    require(
        len(pictures) == len(captions),
        f"{len(pictures)} pictures and {len(captions)} captions; give one caption per picture.",
    )
    return [
        facts(caption, seen) for caption, seen in zip(captions, find_shapes(pictures), strict=True)
    ]


def _blots(pictures: Tensor) -> list[_Blot]:
    """Connected regions of one colour."""
    border = torch.cat(
        [pictures[:, :, 0], pictures[:, :, -1], pictures[..., 0], pictures[..., -1]], 2
    )
    ground = border.median(2).values
    direction = PALETTE - ground[:, None]
    length = direction.norm(dim=2)
    difference = pictures - ground[..., None, None]
    along = torch.einsum("nkc,nchw->nkhw", direction / length[..., None], difference)
    colours = along.argmax(1)
    alphas = (along / length[..., None, None]).gather(1, colours[:, None])[:, 0].clamp(0, 1)
    return [
        blot
        for i in range(len(pictures))
        for blot in _regions(i, colours[i].numpy(), alphas[i].numpy())
    ]


def _regions(index: int, colours: np.ndarray, alpha: np.ndarray) -> list[_Blot]:
    """Those of one picture: pixels half covered, and their neighbours of the same colour."""
    blots = []
    for colour in np.unique(colours[alpha >= _COVERED]):
        mine = np.where(colours == colour, alpha, 0)
        parts = _connected(mine >= _COVERED)
        for part in range(1, parts.max() + 1):
            core = parts == part
            if core.sum() >= _SMALLEST:
                near = ndimage.binary_dilation(core) & (core | (parts == 0))
                blots.append(_blot(index, int(colour), np.where(near, mine, 0)))
    return blots


def _connected(mask: np.ndarray) -> np.ndarray:
    """Number of the region each pixel belongs to; 0 outside the mask."""
    parts = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=parts)
    return parts


def _blot(index: int, colour: int, alpha: np.ndarray) -> _Blot:
    centres, area = np.arange(SIDE) + 0.5, alpha.sum()
    return _Blot(
        index,
        colour,
        float(alpha.sum(0) @ centres / area),
        float(alpha.sum(1) @ centres / area),
        alpha,
    )


def _shapes(blots: list[_Blot]) -> list[str | None]:
    """The shape each blot resembles most, or None."""
    if not blots:
        return []
    kinds, n = len(SHAPES), len(blots)
    x, y, area = (
        torch.tensor([getattr(blot, name) for blot in blots]).float() for name in ("x", "y", "area")
    )
    size = (area / math.pi).sqrt()
    drawn = coverage(
        torch.arange(kinds).repeat(n), *(values.repeat_interleave(kinds) for values in (x, y, size))
    )
    real = torch.from_numpy(np.stack([blot.alpha for blot in blots])).float()
    mismatch = (drawn.view(n, kinds, SIDE, SIDE) - real[:, None]).abs().sum((2, 3)) / area[:, None]
    best = mismatch.min(1)
    return [
        SHAPES[int(k)] if float(m) < _LARGEST_MISMATCH else None
        for m, k in zip(best.values, best.indices, strict=True)
    ]
