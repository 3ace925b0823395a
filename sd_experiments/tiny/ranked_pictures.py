"""Captions with pictures of four origins, how good each is, and which are compared."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sd_experiments.tiny import pipeline
from sd_experiments.tiny.captions import (
    FACT_OF_SKILL,
    SHAPES,
    Caption,
    CaptionErrors,
    VisibleShape,
    draw_caption,
    facts,
)
from sd_experiments.tiny.checker import find_shapes
from sd_experiments.tiny.quality import reconstruct, sample
from sd_experiments.tiny.reward_settings import RewardTraining
from sd_experiments.tiny.shapes import arrange, draw, draw_between

QUESTIONS = (*FACT_OF_SKILL.values(), "first", "second")
"""Facts of a caption, and whether the picture shows the shapes of the first and of the second thing
it names.
"""
ORIGINS = ("drawn as asked", "drawn with an error", "reconstructed", "sampled")
_ERRORS = CaptionErrors(colour=0.5, composition=0.7, counting=0.7, location=0.7)
_WRONG_SHAPE = 0.25
_SWAPPED = 0.25
_HELD_OUT = 7  # one caption in so many
_VISIBLE = 0.1  # difference in worth


@dataclasses.dataclass(frozen=True)
class PictureContent:
    """What a picture shows that lies a share of the way from one scene to another."""

    first: tuple[VisibleShape, ...]
    second: tuple[VisibleShape, ...] = ()
    share: float = 0.0

    def _mixed(
        self, asked: Callable[[tuple[VisibleShape, ...]], Mapping[str, bool]]
    ) -> dict[str, float]:
        first, second = asked(self.first), asked(self.second)
        return {name: (1 - self.share) * first[name] + self.share * second[name] for name in first}

    def facts(self, caption: Caption) -> dict[str, float]:
        """How far each of the facts a caption states is true of it."""
        return self._mixed(functools.partial(facts, caption))

    def answers(self, caption: Caption) -> dict[str, float]:
        """How far each of `QUESTIONS` that a caption asks is to be answered by yes."""
        names = {"first": caption.first} | ({"second": caption.second} if caption.second else {})

        def shows(seen: tuple[VisibleShape, ...]) -> dict[str, bool]:
            shapes = {thing.shape for thing in seen}
            return {name: named.shape in shapes for name, named in names.items()}

        return self.facts(caption) | self._mixed(shows)

    def worth(self, caption: Caption) -> float:
        """Fraction of a caption's facts that are true of it, each as far as it is."""
        found = self.facts(caption)
        return sum(found.values()) / len(found)


@dataclasses.dataclass(frozen=True)
class RankedPictures:
    """Captions with pictures of the four `ORIGINS` and how good each is.

    Attributes:
        pictures: in [0, 1].
        shown: what is in each picture.
        captions: the captions.
    """

    pictures: Float[Tensor, "n 4 3 side side"]
    shown: list[tuple[PictureContent, ...]]
    captions: list[Caption]

    @functools.cached_property
    def worth(self) -> Float[Tensor, "n 4"]:
        """Fraction of the caption's facts that are true of each picture."""
        return torch.tensor(
            [
                [each.worth(caption) for each in four]
                for caption, four in zip(self.captions, self.shown, strict=True)
            ]
        )

    def rows(self, rows: Sequence[int]) -> RankedPictures:
        """Some of the captions."""
        return RankedPictures(
            self.pictures[torch.tensor(rows)],
            [self.shown[i] for i in rows],
            [self.captions[i] for i in rows],
        )

    def joined(self, other: RankedPictures) -> RankedPictures:
        """These captions, then others."""
        return RankedPictures(
            torch.cat([self.pictures, other.pictures]),
            self.shown + other.shown,
            self.captions + other.captions,
        )


def is_held_out(caption: Caption) -> bool:
    """Whether a caption is kept for measuring, a fixed property of its text."""
    return hashlib.sha256(str(caption).encode()).digest()[0] % _HELD_OUT == 0


def make_ranked_pictures(settings: RewardTraining) -> RankedPictures:
    """Captions and pictures, a function of the seed and the model."""
    rng, generator = random.Random(settings.seed), torch.Generator().manual_seed(settings.seed)
    captions = [draw_caption(rng) for _ in range(settings.captions)]
    pipe = pipeline(settings.model)
    right, wrong = _draw_right(captions, generator), _draw_wrong(captions, rng, generator)
    from_wrong = torch.rand(settings.captions, generator=generator) < 0.5
    original = torch.where(from_wrong[:, None, None, None], wrong.pictures, right.pictures)
    blurred = torch.cat([reconstruct(pipe, part) for part in original.split(256)])
    sampled = sample(
        pipe,
        [str(caption) for caption in captions],
        settings.guidance,
        generator,
        settings.sampling_steps,
    )
    shown = [
        (
            right.shown[i],
            wrong.shown[i],
            (wrong if from_wrong[i] else right).shown[i],
            PictureContent(seen),
        )
        for i, seen in enumerate(find_shapes(sampled))
    ]
    return RankedPictures(
        torch.stack([right.pictures, wrong.pictures, blurred, sampled], 1), shown, captions
    )


def draw_ranked_pictures(count: int, generator: torch.Generator) -> RankedPictures:
    """Captions that are not held out, with pictures drawn for the occasion: two as asked and two
    with something wrong.
    """
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    drawn = (draw_caption(rng) for _ in itertools.count())
    captions = list(
        itertools.islice((caption for caption in drawn if not is_held_out(caption)), count)
    )
    wrong = [_draw_wrong(captions, rng, generator) for _ in range(2)]
    made = [_draw_right(captions, generator), *wrong, _draw_right(captions, generator)]
    shown = list(zip(*(each.shown for each in made), strict=True))
    return RankedPictures(torch.stack([each.pictures for each in made], 1), shown, captions)


@dataclasses.dataclass(frozen=True)
class _Drawings:
    pictures: Float[Tensor, "n 3 side side"]
    shown: list[PictureContent]


def _draw_right(captions: list[Caption], generator: torch.Generator) -> _Drawings:
    scenes = arrange(captions, generator)
    return _Drawings(draw(scenes), [PictureContent(scenes.seen(i)) for i in range(len(captions))])


def _draw_wrong(
    captions: list[Caption], rng: random.Random, generator: torch.Generator
) -> _Drawings:
    """Pictures on the way from what the captions say to something wrong, half of them all of the
    way.
    """
    state = generator.get_state()
    first = arrange(captions, generator)
    generator.set_state(state)  # what the captions leave open is the same at both ends
    second = arrange([_with_error(caption, rng) for caption in captions], generator)
    share = (2 * torch.rand(len(captions), generator=generator)).clamp(max=1)
    shown = [
        PictureContent(first.seen(i), second.seen(i), float(share[i])) for i in range(len(captions))
    ]
    return _Drawings(draw_between(first, second, share), shown)


def _with_error(caption: Caption, rng: random.Random) -> Caption:
    """Something near a caption: colours, shapes, number or place may differ."""
    near = _ERRORS.drawn(caption, rng)
    if rng.random() < _WRONG_SHAPE:
        others = [shape for shape in SHAPES if shape != near.first.shape]
        near = dataclasses.replace(
            near, first=dataclasses.replace(near.first, shape=rng.choice(others))
        )
    if near.second is not None and rng.random() < _SWAPPED:
        near = dataclasses.replace(near, first=near.second, second=near.first)
    return near


def pairs(worth: Float[Tensor, "n 4"]) -> Int[Tensor, "pairs 3"]:
    """Rows (caption, better picture, worse picture) of every pair that differs enough in worth for
    anyone to see.
    """
    found = [
        (i, a, b)
        for i, values in enumerate(worth.tolist())
        for a, b in itertools.permutations(range(len(values)), 2)
        if values[a] - values[b] > _VISIBLE
    ]
    return torch.tensor(found).reshape(-1, 3)


def comparison_index(
    captions: int, others: int, generator: torch.Generator
) -> Int[Tensor, "captions pictures"]:
    """Numbers of the pictures each caption of a batch is compared with: its own four, and some of
    all.
    """
    own = torch.arange(4 * captions).view(captions, 4)
    return torch.cat([own, torch.randint(4 * captions, (captions, others), generator=generator)], 1)


def answers(
    batch: RankedPictures, index: Int[Tensor, "captions pictures"]
) -> Float[Tensor, "captions pictures questions"]:
    """How far each of `QUESTIONS` is to be answered by yes for each caption and picture; NaN where
    the caption does not ask it.
    """
    flat = list(itertools.chain(*batch.shown))
    found = [
        [flat[j].answers(caption) for j in row]
        for caption, row in zip(batch.captions, index.tolist(), strict=True)
    ]
    return torch.tensor(
        [[[each.get(name, math.nan) for name in QUESTIONS] for each in row] for row in found]
    )


def worth_of_pictures(
    batch: RankedPictures, index: Int[Tensor, "captions pictures"]
) -> Float[Tensor, "captions pictures"]:
    """How good each picture of an index is for its caption."""
    flat = list(itertools.chain(*batch.shown))
    return torch.tensor(
        [
            [flat[j].worth(caption) for j in row]
            for caption, row in zip(batch.captions, index.tolist(), strict=True)
        ]
    )
