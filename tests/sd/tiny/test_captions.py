"""Captions, the facts they state, and how they are mistaken."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from sd_experiments.tiny import PROMPTS
from sd_experiments.tiny.captions import (
    COLOURS,
    FACT_OF_SKILL,
    SKILLS,
    CaptionErrors,
    VisibleShape,
    every_caption,
    facts,
    parse_caption,
)
from sd_experiments.tiny.checker import find_shapes
from sd_experiments.tiny.shapes import arrange, draw
from socft.checks import InvalidProblem
from tests.support.tiny_drawings import drawings


def test_every_caption_parses_back():
    for skill in SKILLS:
        captions = every_caption(skill)
        assert len(set(map(str, captions))) == len(captions)
        assert all(
            parse_caption(str(caption)) == caption and caption.skill == skill
            for caption in captions
        )


def test_the_four_prompts_state_the_four_skills():
    for skill, prompt in PROMPTS.items():
        caption = parse_caption(prompt)
        assert caption.skill == skill
        seen = find_shapes(draw(arrange([caption], torch.Generator().manual_seed(0))))[0]
        assert FACT_OF_SKILL[skill] in facts(caption, seen)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a purple circle", "'purple'"),
        ("a gren circle", r"'gren' is not one of its words; did you mean green\?"),
        ("circle a red", "no known order"),
        ("", "no known order"),
    ],
)
def test_a_text_that_is_no_caption_is_named(text, says):
    with pytest.raises(InvalidProblem, match=says):
        parse_caption(text)


def test_facts_fail_one_at_a_time():
    circle, square = (
        VisibleShape("circle", "red", 16, 8, 50),
        VisibleShape("square", "blue", 16, 24, 50),
    )
    caption = parse_caption("a red circle above a blue square")
    right = dict.fromkeys(("count", "shapes", "colours", "relation"), True)
    assert facts(caption, (circle, square)) == right
    assert facts(caption, (square, circle)) == right
    third = dataclasses.replace(square, x=4, area=40)
    assert facts(caption, (circle, square, third)) == right | {"count": False}
    assert facts(caption, (circle, dataclasses.replace(square, colour="red"))) == right | {
        "colours": False
    }
    assert facts(caption, (dataclasses.replace(circle, y=30), square)) == right | {
        "relation": False
    }
    assert facts(caption, (dataclasses.replace(circle, x=1, y=16), square)) == right | {
        "relation": False
    }
    star = facts(caption, (circle, dataclasses.replace(square, shape="star")))
    assert star == {"count": True, "shapes": False, "colours": False, "relation": False}
    assert facts(parse_caption("three red circles"), (circle,) * 3) == {
        "count": True,
        "shapes": True,
        "colours": True,
    }
    assert facts(parse_caption("three circles"), (circle,) * 4) == {"count": False, "shapes": True}
    assert not any(facts(parse_caption("a red circle"), ()).values())


def test_noise_departs_as_often_as_it_says():
    noise, rng = (
        CaptionErrors(colour=0.4, composition=0.3, counting=0.35, location=0.1),
        random.Random(0),
    )
    n = 4000
    for text, rate in [
        ("a green triangle", 0.4),
        ("a circle and a square", 0.3),
        ("four circles", 0.35),
        ("a star above a square", 0.1),
        ("a circle", 0.0),
        ("a red star above a red square", 1 - 0.9 * 0.6**2),
    ]:
        caption = parse_caption(text)
        departed = sum(noise.drawn(caption, rng) != caption for _ in range(n)) / n
        assert abs(departed - rate) <= 4 * math.sqrt(rate * (1 - rate) / n)
    assert all(CaptionErrors().drawn(caption, rng) == caption for caption in drawings(200)[0])
    opened = [
        CaptionErrors(open=1.0).drawn(parse_caption("a circle"), rng).first.colour
        for _ in range(200)
    ]
    assert set(opened) == set(COLOURS)
    turned = {
        CaptionErrors(location=1.0).drawn(parse_caption("a star above a square"), rng).relation
        for _ in range(50)
    }
    assert turned == {"left of", "right of"}
    with pytest.raises(InvalidProblem, match=r"counting = 1\.2"):
        CaptionErrors(counting=1.2)
