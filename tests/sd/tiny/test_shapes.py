"""Scenes of the shape world and what is drawn of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sd_experiments.tiny import train_model
from sd_experiments.tiny.captions import (
    FACT_OF_SKILL,
    SHAPES,
    CaptionErrors,
    Skill,
    facts,
    parse_caption,
)
from sd_experiments.tiny.checker import check_captions, find_shapes
from sd_experiments.tiny.shapes import PALETTE, arrange, coverage, draw, draw_between
from tests.support.tiny_drawings import drawings, kinds_of, one

SAME = 1e-5  # relative; float32 sums of a few hundred terms in another order
PIXEL = 1 / 255  # PIL rounds to bytes


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_covers_the_same_area(shape):
    for size in (3.6, 5.0, 7.0):
        covered = coverage(
            torch.tensor([SHAPES.index(shape)]), *(torch.tensor([v]) for v in (16.3, 17.1, size))
        )
        outline = (
            2 * math.pi * size * 2
        )  # pixels the outline can touch; the longest one is a star's
        assert abs(float(covered.sum()) - math.pi * size**2) < 0.05 * outline


def test_shapes_look_like_themselves():
    """Quarter turns leave a circle and a square alone, mirrors leave all alone, and only a triangle
    and a star have a top.
    """
    x, y, size = (torch.full((4,), v) for v in (16.0, 16.0, 7.0))
    covered = coverage(torch.arange(4), x, y, size)
    assert torch.allclose(covered, covered.flip(2), atol=1e-4)
    turned = (covered - covered.rot90(1, (1, 2))).abs().sum((1, 2)) / covered.sum((1, 2))
    assert (turned[:2] < 1e-3).all()
    assert (turned[2:] > 0.1).all()
    rows = covered.sum(2)
    widest = rows.argmax(1)
    assert widest[SHAPES.index("triangle")] > 16 > widest[SHAPES.index("star")]


def test_drawings_keep_their_things_apart_and_inside():
    _, scenes = drawings(500)
    for i in range(4):
        for j in range(i):
            both = scenes.present[:, i] & scenes.present[:, j]
            a, b = (
                coverage(
                    scenes.shape[both, k],
                    scenes.x[both, k],
                    scenes.y[both, k],
                    scenes.size[both, k],
                )
                for k in (i, j)
            )
            assert float((a * b).amax()) == 0
        mine = scenes.present[:, i]
        covered = coverage(
            scenes.shape[mine, i], scenes.x[mine, i], scenes.y[mine, i], scenes.size[mine, i]
        )
        assert float((covered.sum((1, 2)) / (math.pi * scenes.size[mine, i] ** 2)).min()) > 0.95


def between(first: str, second: str, share: float, seed: int = 0) -> Tensor:
    """A picture between two captions; what they leave open is the same."""
    a, b = (
        arrange([parse_caption(text)], torch.Generator().manual_seed(seed))
        for text in (first, second)
    )
    return draw_between(a, b, torch.tensor([share]))


@pytest.mark.parametrize(
    ("first", "second"),
    [("a red star above a blue square", "four green circles"), ("a circle", "two stars")],
)
def test_a_picture_between_two_scenes_begins_and_ends_with_them(first, second):
    for share, text in [(0.0, first), (1.0, second)]:
        alone = draw(arrange([parse_caption(text)], torch.Generator().manual_seed(0)))
        assert torch.allclose(between(first, second, share), alone, atol=PIXEL / 10)


def test_colours_mix_and_shapes_mix_on_the_way():
    red, blue = one("square", "red", 16.0, 16.0), one("square", "blue", 16.0, 16.0)
    for share in (0.25, 0.5, 0.9):
        middle = draw_between(red, blue, torch.tensor([share]))[0, :, 16, 16]
        assert torch.allclose(middle, (1 - share) * PALETTE[0] + share * PALETTE[2], atol=SAME)
    star, circle = (one(shape, "red", 16.0, 16.0, 7.0) for shape in ("star", "circle"))
    whole, middle, other = (
        draw_between(star, circle, torch.tensor([share])) for share in (0.0, 0.5, 1.0)
    )
    apart, one_way, other_way = (
        (a - b).abs().sum() for a, b in [(whole, other), (whole, middle), (middle, other)]
    )
    assert max(one_way, other_way) < 0.7 * apart  # half-way outlines lie about half-way between


def test_a_thing_of_one_scene_only_fades_on_the_way():
    dark = torch.tensor(
        [
            float((1 - between("four circles", "three circles", s)).sum())
            for s in (0.0, 0.25, 0.5, 0.75, 1.0)
        ]
    )
    steps = dark.diff()
    assert (steps < 0).all()
    assert torch.allclose(
        steps, steps.mean().expand(4), rtol=1e-3
    )  # in float32, as the difference of sums of thousands


@pytest.mark.parametrize("seed", range(5))
def test_two_things_turn_about_each_other_and_stay_apart(seed):
    """There are two things all along; each end has its relation and not the other one's."""
    first, second = "a red star above a blue square", "a red star right of a blue square"
    for share in (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0):
        (seen,) = find_shapes(between(first, second, share, seed))
        assert kinds_of(seen) == {("star", "red"): 1, ("square", "blue"): 1}
        star, square = sorted(seen, key=lambda thing: str(thing.shape), reverse=True)
        assert math.hypot(star.x - square.x, star.y - square.y) > 13
        if share in (0.0, 1.0):
            stated = [facts(parse_caption(text), seen)["relation"] for text in (first, second)]
            assert stated == [share == 0, share == 1]


def test_noisy_examples_lie_anywhere_on_the_way():
    """Half of the departures from a caption are less than half-way and leave it true, as far as
    facts change half-way.
    """
    noise = CaptionErrors(colour=0.5, composition=0.5, counting=0.5, location=0.6, open=0.5)
    made = train_model.examples(1500, 3, noise)
    captions = [parse_caption(text) for text in made.captions]
    found = check_captions(made.pictures, captions)
    asked: dict[Skill, float] = {"counting": 0.5, "location": 0.6}
    for skill, rate in asked.items():
        true = [
            stated[FACT_OF_SKILL[skill]]
            for caption, stated in zip(captions, found, strict=True)
            if caption.skill == skill and caption.first.colour is None
        ]
        stderr = math.sqrt(rate / 2 * (1 - rate / 2) / len(true))
        assert (
            abs(sum(true) / len(true) - (1 - rate / 2)) < 4 * stderr + 0.1
        )  # the checker's thresholds are not half-way exactly
    assert torch.equal(
        train_model.examples(20, 3, noise).pictures, train_model.examples(20, 3, noise).pictures
    )


def test_drawings_are_a_function_of_the_seed():
    assert torch.equal(draw(drawings(20)[1]), draw(drawings(20)[1]))
    assert not torch.equal(draw(drawings(20)[1]), draw(drawings(20, seed=1)[1]))
