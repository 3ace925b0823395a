r"""Pictures of shapes: scenes as tensors, drawn with smooth edges, many at once.

Every shape is a star polygon with ``k`` tips at radius R and ``k`` notches at radius ``rho R`` (a regular polygon has
:math:`\rho = \cos(\pi/k)`, a circle many tips), sized so that it covers :math:`\pi s^2` whatever the shape:

.. math:: \pi s^2 = k\,\rho\,R^2 \sin(\pi/k).

Folding the angle into :math:`[0, \pi/k]` leaves one edge, so the signed distance to the outline is that to a line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sd_experiments.tiny.captions import COLOURS, RELATIONS, SHAPES, Caption, Seen

SIDE = 32
MOST = 4
PALETTE = torch.tensor([(0.90, 0.15, 0.15), (0.15, 0.70, 0.20), (0.15, 0.30, 0.90), (0.95, 0.80, 0.15)])

_TIPS = torch.tensor([64.0, 4.0, 3.0, 5.0])
_NOTCH = torch.tensor([math.cos(math.pi / 64), math.cos(math.pi / 4), 0.5, 0.5])
_TURN = torch.tensor([0.0, math.pi / 4, 0.0, 0.0])  # from a tip that points up
_RADIUS = (math.pi / (_TIPS * _NOTCH * (math.pi / _TIPS).sin())).sqrt()


@dataclasses.dataclass(frozen=True)
class Scenes:
    """``n`` scenes of up to four things on a grey ground.

    Attributes:
        shape: index into `SHAPES`.
        colour: index into `COLOURS`.
        x: centres, pixels from the left.
        y: centres, pixels from the top.
        size: radius of the circle of the same area.
        present: which of the four places hold a thing.
        tint: how far each thing's colour is from the palette.
        ground: brightness of the background.
    """

    shape: Int[Tensor, "n 4"]
    colour: Int[Tensor, "n 4"]
    x: Float[Tensor, "n 4"]
    y: Float[Tensor, "n 4"]
    size: Float[Tensor, "n 4"]
    present: Bool[Tensor, "n 4"]
    tint: Float[Tensor, "n 4 3"]
    ground: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.ground)

    def seen(self, index: int) -> tuple[Seen, ...]:
        """The things of one scene, as a checker that makes no mistakes would report them."""
        places = self.present[index].nonzero().flatten().tolist()
        return tuple(
            Seen(
                SHAPES[int(self.shape[index, i])],
                COLOURS[int(self.colour[index, i])],
                float(self.x[index, i]),
                float(self.y[index, i]),
                math.pi * float(self.size[index, i]) ** 2,
            )
            for i in places
        )


def arrange(captions: Sequence[Caption], generator: torch.Generator) -> Scenes:
    """A random scene for every caption: what it leaves open (colours, places, sizes, the ground) is drawn at random."""
    n = len(captions)
    count = torch.tensor([len(caption.things) for caption in captions])
    shape = torch.tensor([_padded([SHAPES.index(thing.shape) for thing in caption.things]) for caption in captions])
    named = torch.tensor([_padded([_index(COLOURS, thing.colour) for thing in caption.things]) for caption in captions])
    relation = torch.tensor([_index(RELATIONS, caption.relation) for caption in captions])

    def uniform(low: float, high: float, *extra: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *extra, generator=generator)

    any_colour = torch.randint(len(COLOURS), (n, MOST), generator=generator)
    alike = torch.tensor([caption.second is None for caption in captions])
    any_colour = torch.where(alike[:, None], any_colour[:, :1], any_colour)
    any_relation = torch.randint(len(RELATIONS), (n,), generator=generator)
    pair = _pair_places(torch.where(relation >= 0, relation, any_relation), uniform)
    group = _group_places(n, uniform, generator)
    alone = uniform(12, 20, MOST, 2)
    place = torch.where((count == 1)[:, None, None], alone, torch.where((count == 2)[:, None, None], pair, group))
    size = torch.where(count == 1, uniform(5.2, 7), torch.where(count == 2, uniform(4, 4.8), uniform(3.6, 4.2)))
    return Scenes(
        shape=shape,
        colour=torch.where(named >= 0, named, any_colour),
        x=place[..., 0],
        y=place[..., 1],
        size=size[:, None].expand(n, MOST),
        present=torch.arange(MOST) < count[:, None],
        tint=uniform(-0.04, 0.04, MOST, 3),
        ground=uniform(0.9, 1),
    )


def draw(scenes: Scenes) -> Float[Tensor, "n 3 side side"]:
    """Pictures with values in [0, 1]; edges cover pixels in proportion."""
    picture = scenes.ground[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone()
    for i in range(MOST):
        rows = scenes.present[:, i].nonzero().flatten()
        if len(rows):
            alpha = coverage(scenes.shape[rows, i], scenes.x[rows, i], scenes.y[rows, i], scenes.size[rows, i])[:, None]
            colour = (PALETTE[scenes.colour[rows, i]] + scenes.tint[rows, i]).clamp(0, 1)[..., None, None]
            picture[rows] = picture[rows] * (1 - alpha) + colour * alpha
    return picture


def coverage(
    shape: Int[Tensor, " n"], x: Float[Tensor, " n"], y: Float[Tensor, " n"], size: Float[Tensor, " n"]
) -> Float[Tensor, "n side side"]:
    """How much of each pixel each thing covers."""
    centres = torch.arange(SIDE) + 0.5
    right = centres[None, None, :] - x[:, None, None]
    up = y[:, None, None] - centres[None, :, None]
    wedge = (math.pi / _TIPS[shape])[:, None, None]
    angle = torch.atan2(right, up) - _TURN[shape][:, None, None]
    folded = (torch.remainder(angle + wedge, 2 * wedge) - wedge).abs()
    distance = (right.square() + up.square()).sqrt()
    tip = (_RADIUS[shape] * size)[:, None, None]
    notch = tip * _NOTCH[shape][:, None, None]
    edge = torch.stack([notch * wedge.cos() - tip, notch * wedge.sin()])
    edge = edge / edge.square().sum(0).sqrt()
    outside = edge[1] * (distance * folded.cos() - tip) - edge[0] * distance * folded.sin()
    return (0.5 - outside).clamp(0, 1)


def _pair_places(relation: Tensor, uniform) -> Tensor:
    """Places of two things, the first one in the relation to the second."""
    near, far, across = uniform(7.8, 9.2), uniform(22.8, 24.2), uniform(12, 20, 2)
    swapped = (relation % 2 == 1)[:, None]
    along = torch.stack([near, far], 1)
    along = torch.where(swapped, along.flip(1), along)
    vertical = (relation < 2)[:, None, None]
    place = torch.where(vertical, torch.stack([across, along], -1), torch.stack([along, across], -1))
    return torch.cat([place, place], 1)


def _group_places(n: int, uniform, generator: torch.Generator) -> Tensor:
    """Places of up to four things, one per quarter of the picture."""
    quarter = torch.rand(n, MOST, generator=generator).argsort(1)
    corner = torch.stack([quarter % 2, quarter // 2], -1)
    return 8 + 16 * corner + uniform(-1.3, 1.3, MOST, 2)


def _index(words: Sequence[str], word: str | None) -> int:
    return -1 if word is None else words.index(word)


def _padded(values: list[int]) -> list[int]:
    return values + [0] * (MOST - len(values))
