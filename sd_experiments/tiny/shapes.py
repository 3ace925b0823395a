r"""Pictures of shapes: scenes as tensors, drawn with smooth edges, many at once.

Every shape is a star polygon with ``k`` tips at radius R and ``k`` notches at radius ``rho R`` (a
regular polygon has :math:`\rho = \cos(\pi/k)`, a circle many tips), sized so that it covers
:math:`\pi s^2` whatever the shape:

.. math:: \pi s^2 = k\,\rho\,R^2 \sin(\pi/k).

Folding the angle into :math:`[0, \pi/k]` leaves one edge, so the signed distance to the outline is
that to a line.

A picture may lie part of the way between two scenes: things turn around the centre, their colours
mix, the signed distances of their outlines mix, and what is in one scene only is translucent. So
pictures of different captions are joined by pictures, as those of the real world are, and the map
from noise to pictures that a model learns has slopes rather than cliffs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sd_experiments.tiny.captions import COLOURS, RELATIONS, SHAPES, Caption, VisibleShape

SIDE = 32
MOST = 4
PALETTE = torch.tensor(
    [(0.90, 0.15, 0.15), (0.15, 0.70, 0.20), (0.15, 0.30, 0.90), (0.95, 0.80, 0.15)]
)

_TIPS = torch.tensor([64.0, 4.0, 3.0, 5.0])
_NOTCH = torch.tensor([math.cos(math.pi / 64), math.cos(math.pi / 4), 0.5, 0.5])
_TURN = torch.tensor([0.0, math.pi / 4, 0.0, 0.0])  # from a tip that points up
_RADIUS = (math.pi / (_TIPS * _NOTCH * (math.pi / _TIPS).sin())).sqrt()
_DIRECTION = (
    torch.tensor([-0.5, 0.5, 1.0, 0.0]) * math.pi
)  # from the second thing to the first; rows count downwards
_SWAY = 0.45  # radians; at pi / 4 another relation begins


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

    def seen(self, index: int) -> tuple[VisibleShape, ...]:
        """The things of one scene, as a checker that makes no mistakes would report them."""
        places = self.present[index].nonzero().flatten().tolist()
        return tuple(
            VisibleShape(
                SHAPES[int(self.shape[index, i])],
                COLOURS[int(self.colour[index, i])],
                float(self.x[index, i]),
                float(self.y[index, i]),
                math.pi * float(self.size[index, i]) ** 2,
            )
            for i in places
        )


def arrange(captions: Sequence[Caption], generator: torch.Generator) -> Scenes:
    """A random scene for every caption: what it leaves open (colours, places, sizes, the ground) is
    drawn at random.
    """
    n = len(captions)
    count = torch.tensor([len(caption.things) for caption in captions])
    shape = torch.tensor(
        [_padded([SHAPES.index(thing.shape) for thing in caption.things]) for caption in captions]
    )
    named = torch.tensor(
        [
            _padded([_index(COLOURS, thing.colour) for thing in caption.things])
            for caption in captions
        ]
    )
    relation = torch.tensor([_index(RELATIONS, caption.relation) for caption in captions])

    def uniform(low: float, high: float, *extra: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *extra, generator=generator)

    any_colour = torch.randint(len(COLOURS), (n, MOST), generator=generator)
    alike = torch.tensor([caption.second is None for caption in captions])
    any_colour = torch.where(alike[:, None], any_colour[:, :1], any_colour)
    pair = _pair_places(relation, uniform)
    group = _group_places(n, uniform, generator)
    alone = uniform(12, 20, MOST, 2)
    place = torch.where(
        (count == 1)[:, None, None], alone, torch.where((count == 2)[:, None, None], pair, group)
    )
    size = torch.where(
        count == 1, uniform(5.2, 7), torch.where(count == 2, uniform(4, 4.8), uniform(3.6, 4.2))
    )
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
    return draw_between(scenes, scenes, torch.zeros(len(scenes)))


def draw_between(
    first: Scenes, second: Scenes, share: Float[Tensor, " n"]
) -> Float[Tensor, "n 3 side side"]:
    """Pictures a share of the way from the scenes in ``first`` to those in ``second``."""
    ground = torch.lerp(first.ground, second.ground, share)
    picture = ground[:, None, None, None].expand(-1, 3, SIDE, SIDE).clone()
    for i in range(MOST):
        rows = (first.present[:, i] | second.present[:, i]).nonzero().flatten()
        if len(rows):
            a, b = _Things.of(first, i, rows), _Things.of(second, i, rows)
            alpha, colour = _meeting(a.where_absent(b), b.where_absent(a), share[rows])
            picture[rows] = picture[rows] * (1 - alpha) + colour * alpha
    return picture


@dataclasses.dataclass(frozen=True)
class _Things:
    """The things in one place of several scenes."""

    present: Bool[Tensor, " n"]
    shape: Int[Tensor, " n"]
    colour: Float[Tensor, "n 3"]
    place: Float[Tensor, "n 2"]
    size: Float[Tensor, " n"]

    @classmethod
    def of(cls, scenes: Scenes, i: int, rows: Tensor) -> _Things:
        """Those in place ``i`` of some scenes."""
        colour = (PALETTE[scenes.colour[rows, i]] + scenes.tint[rows, i]).clamp(0, 1)
        place = torch.stack([scenes.x[rows, i], scenes.y[rows, i]], 1)
        return cls(
            scenes.present[rows, i], scenes.shape[rows, i], colour, place, scenes.size[rows, i]
        )

    def where_absent(self, other: _Things) -> _Things:
        """The same, with what is absent looking like the other's."""

        def known(mine: Tensor, its: Tensor) -> Tensor:
            here = self.present if mine.ndim == 1 else self.present[:, None]
            return torch.where(here, mine, its)

        fields = ("shape", "colour", "place", "size")
        return _Things(
            self.present, *(known(getattr(self, name), getattr(other, name)) for name in fields)
        )


def _meeting(a: _Things, b: _Things, share: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage (n, 1, side, side) and colour (n, 3, 1, 1) of things part of the way from one to the
    other.
    """
    x, y = _turned(a.place, b.place, share).unbind(1)
    size = torch.lerp(a.size, b.size, share)
    outside = torch.lerp(
        _outside(a.shape, x, y, size), _outside(b.shape, x, y, size), share[:, None, None]
    )
    opacity = torch.lerp(a.present.float(), b.present.float(), share)
    alpha = opacity[:, None, None] * (0.5 - outside).clamp(0, 1)
    return alpha[:, None], torch.lerp(a.colour, b.colour, share[:, None])[..., None, None]


def _turned(
    a: Float[Tensor, "n 2"], b: Float[Tensor, "n 2"], share: Float[Tensor, " n"]
) -> Float[Tensor, "n 2"]:
    """Places part of the way from one to the other: angle and distance from the centre of the
    picture change in proportion.
    """
    one, two = (torch.view_as_complex((place - SIDE / 2).contiguous()) for place in (a, b))
    turn = torch.angle(two * one.conj())
    radius = torch.lerp(one.abs(), two.abs(), share)
    return torch.view_as_real(torch.polar(radius, one.angle() + share * turn)) + SIDE / 2


def coverage(
    shape: Int[Tensor, " n"],
    x: Float[Tensor, " n"],
    y: Float[Tensor, " n"],
    size: Float[Tensor, " n"],
) -> Float[Tensor, "n side side"]:
    """How much of each pixel each thing covers."""
    return (0.5 - _outside(shape, x, y, size)).clamp(0, 1)


def _outside(shape: Tensor, x: Tensor, y: Tensor, size: Tensor) -> Float[Tensor, "n side side"]:
    """Signed distance of each pixel's centre from each thing's outline."""
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
    return edge[1] * (distance * folded.cos() - tip) - edge[0] * distance * folded.sin()


def _pair_places(relation: Tensor, uniform) -> Tensor:
    """Places of two things on either side of the centre, the first one in the relation to the
    second; anywhere without one.
    """
    direction = torch.where(
        relation >= 0, _DIRECTION[relation] + uniform(-_SWAY, _SWAY), uniform(0, 2 * math.pi)
    )
    half = uniform(7.35, 7.9)[:, None] * torch.stack([direction.cos(), direction.sin()], 1)
    centre = SIDE / 2 + uniform(-0.7, 0.7, 2)
    place = torch.stack([centre + half, centre - half], 1)
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
