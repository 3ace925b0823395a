"""What the checker sees in a picture."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch

from sd_experiments.tiny.captions import (
    COLOURS,
    FACT_OF_SKILL,
    CaptionErrors,
    every_caption,
    facts,
    parse_caption,
)
from sd_experiments.tiny.checker import check_captions, find_shapes
from sd_experiments.tiny.shapes import PALETTE, SIDE, arrange, draw
from socft.checks import InvalidProblem
from tests.support.tiny_drawings import drawings, kinds_of, one

CLEAN = 0.99  # fraction of clean drawings whose caption the checker must confirm


def test_the_checker_confirms_clean_drawings():
    captions, scenes = drawings(600)
    seen = find_shapes(draw(scenes))
    right = sum(
        all(facts(caption, things).values()) for caption, things in zip(captions, seen, strict=True)
    )
    exact = sum(kinds_of(things) == kinds_of(scenes.seen(i)) for i, things in enumerate(seen))
    assert min(right, exact) >= CLEAN * len(captions)
    for i in range(20):
        found = sorted((thing.x, thing.y) for thing in seen[i])
        drawn = sorted((thing.x, thing.y) for thing in scenes.seen(i))
        assert np.allclose(found, drawn, atol=0.5)


def test_the_checker_sees_what_is_wrong():
    """Drawings with one kind of error each lose exactly that fact."""
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    for skill, fact in FACT_OF_SKILL.items():
        noise = CaptionErrors(**{skill: 1.0})
        captions = [c for c in every_caption(skill) if c.skill != "colour" or c.first.colour]
        captions = rng.choices(
            [c for c in captions if skill == "colour" or c.first.colour is None], k=40
        )
        found = check_captions(
            draw(arrange([noise.drawn(caption, rng) for caption in captions], generator)), captions
        )
        wrong = [stated[fact] for stated in found]
        assert not any(wrong), skill
        others = [all(value for name, value in stated.items() if name != fact) for stated in found]
        assert sum(others) >= CLEAN * len(others), skill


def test_the_checker_follows_pictures_around():
    base = draw(one("star", "blue", 14.3, 15.2))
    (still,) = find_shapes(base)[0]
    for down, right in [(4, 0), (0, -3), (-5, 6)]:
        (moved,) = find_shapes(base.roll((down, right), (2, 3)))[0]
        assert (moved.shape, moved.colour) == ("star", "blue")
        assert math.isclose(moved.x - still.x, right, abs_tol=1e-4)
        assert math.isclose(moved.y - still.y, down, abs_tol=1e-4)
    (mirrored,) = find_shapes(base.flip(3))[0]
    assert (mirrored.shape, mirrored.area) == (still.shape, pytest.approx(still.area, rel=1e-4))
    assert math.isclose(mirrored.x, SIDE - still.x, abs_tol=1e-4)


def test_mirrored_pictures_swap_left_and_right():
    captions = [
        c for c in every_caption("location") if c.relation == "left of" and c.first.colour is None
    ]
    mirrored = draw(arrange(captions, torch.Generator().manual_seed(3))).flip(3)
    swapped = [dataclasses.replace(caption, relation="right of") for caption in captions]
    assert all(stated["relation"] for stated in check_captions(mirrored, swapped))
    assert not any(stated["relation"] for stated in check_captions(mirrored, captions))


def test_the_checker_takes_pictures_one_by_one_or_together():
    pictures = draw(drawings(30)[1])
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    together = find_shapes(pictures)
    assert find_shapes(pictures[order]) == [together[i] for i in order]
    assert [find_shapes(picture[None])[0] for picture in pictures] == together


def test_the_checker_ignores_the_ground_and_a_little_noise():
    captions, scenes = drawings(100)
    darker = dataclasses.replace(scenes, ground=scenes.ground - 0.1)
    grainy = draw(scenes) + 0.03 * torch.randn(
        100, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)
    )
    for pictures in (draw(darker), grainy.clamp(0, 1)):
        right = sum(all(stated.values()) for stated in check_captions(pictures, captions))
        assert right >= 0.97 * len(captions)


def test_recoloured_pictures_differ_in_colour_only():
    kinds = [find_shapes(draw(one("triangle", colour, 16, 16)))[0][0] for colour in COLOURS]
    assert [thing.colour for thing in kinds] == list(COLOURS)
    assert {thing.shape for thing in kinds} == {"triangle"}


def test_an_empty_picture_and_a_blot_have_no_shape():
    assert find_shapes(torch.ones(1, 3, SIDE, SIDE)) == [()]
    line = torch.ones(1, 3, SIDE, SIDE)
    line[0, :, 14:18, 3:29] = PALETTE[0][:, None, None]
    assert [thing.shape for thing in find_shapes(line)[0]] == [None]


def test_the_checker_refuses_other_sizes():
    with pytest.raises(InvalidProblem, match=r"\(3, 64, 64\)"):
        find_shapes(torch.ones(1, 3, 64, 64))
    with pytest.raises(InvalidProblem, match="1 pictures and 2 captions"):
        check_captions(torch.ones(1, 3, SIDE, SIDE), [parse_caption("a star")] * 2)
