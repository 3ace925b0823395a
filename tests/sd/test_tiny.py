"""The shape world, its checker, the trained tiny models, and ImageReward against an implementation
from its published names.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertTokenizer

from sd_experiments.manifest import MANIFEST, replace_folder, verify
from sd_experiments.reward import image_reward
from sd_experiments.reward.image_reward import ImageReward
from sd_experiments.reward.published import rename_published_weights
from sd_experiments.reward.sizes import ImageRewardConfig, TransformerSize
from sd_experiments.tiny import (
    MODEL,
    PROMPTS,
    QUALITY,
    REWARD,
    pipeline,
    reward,
    reward_stages,
    train_model,
)
from sd_experiments.tiny.captions import (
    COLOURS,
    FACT_OF_SKILL,
    SHAPES,
    SKILLS,
    CaptionErrors,
    Skill,
    VisibleShape,
    draw_caption,
    every_caption,
    facts,
    parse_caption,
)
from sd_experiments.tiny.checker import check_captions, find_shapes
from sd_experiments.tiny.quality import fingerprint, reconstruct
from sd_experiments.tiny.ranked_pictures import (
    QUESTIONS,
    PictureContent,
    answers,
    comparison_index,
    draw_ranked_pictures,
    is_held_out,
)
from sd_experiments.tiny.reward_stages import add_noise, patch_classes
from sd_experiments.tiny.shapes import PALETTE, SIDE, Scenes, arrange, coverage, draw, draw_between
from sd_experiments.tiny.trainer import TrainingSettings, minimise
from socft.checks import InvalidProblem

CLEAN = 0.99  # fraction of clean drawings whose caption the checker must confirm
SAME = 1e-5  # relative; float32 sums of a few hundred terms in another order
EXACT = 1e-10  # relative; the same in float64
PIXEL = 1 / 255  # PIL rounds to bytes
RANKED = 0.85  # fraction of pairs in which the better picture gets the higher reward
TOLD_APART = 0.7  # the same among pictures of the tiny model for a prompt that is fine-tuned for
FOOTHOLD, HEADROOM = (
    0.05,
    0.85,
)  # fraction of pictures in which a skill's own fact is true before fine-tuning
REPEATED = (
    0.03  # mean colour of a quarter of a picture after 10 steps in float32 on another processor
)
DIFFERENCE = 1e-5  # relative error of a central difference in float64


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


# --- drawings


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
        assert _kinds(seen) == {("star", "red"): 1, ("square", "blue"): 1}
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


# --- captions


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
        ("a gren circle", "'gren' is not one of its words, did you mean green; .*'a green circle'"),
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


# --- checker


def test_the_checker_confirms_clean_drawings():
    captions, scenes = drawings(600)
    seen = find_shapes(draw(scenes))
    right = sum(
        all(facts(caption, things).values()) for caption, things in zip(captions, seen, strict=True)
    )
    exact = sum(_kinds(things) == _kinds(scenes.seen(i)) for i, things in enumerate(seen))
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


def _kinds(things):
    return collections.Counter((thing.shape, thing.colour) for thing in things)


# --- training


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


# --- the training of the reward


def test_every_patch_is_called_by_what_covers_it():
    """A square that fills 4 x 4 patches exactly."""
    kinds = patch_classes(one("square", "blue", 16, 16, 16 / math.pi**0.5), 4).view(8, 8, 2)
    expected = torch.zeros(8, 8, 2, dtype=torch.long)
    expected[2:6, 2:6] = 1 + torch.tensor([SHAPES.index("square"), COLOURS.index("blue")])
    assert torch.equal(kinds, expected)


def test_freshly_drawn_pictures_are_of_captions_that_are_not_held_out():
    """What the checker sees in them is what they are said to show, and the first and last of each
    are right.
    """
    made = draw_ranked_pictures(40, torch.Generator().manual_seed(3))
    assert len(made.captions) == 40
    assert not any(is_held_out(caption) for caption in made.captions)
    assert (made.worth[:, [0, 3]] == 1).all()
    assert 0.1 < float((made.worth[:, 1:3] < 1).double().mean()) < 0.95
    told = [each for four in made.shown for each in four]
    found = find_shapes(made.pictures.flatten(0, 1))
    ends = [
        (a, b.second if b.share == 1 else b.first)
        for a, b in zip(found, told, strict=True)
        if b.share in (0, 1)
    ]
    assert 80 < len(ends) < 160  # half of those with something wrong are all of the way there
    same = [
        sorted((t.shape, t.colour) for t in a) == sorted((t.shape, t.colour) for t in b)
        for a, b in ends
    ]
    assert sum(same) >= CLEAN * len(same)


def test_a_picture_on_the_way_is_worth_its_share_of_both_ends():
    right, wrong = (VisibleShape("circle", colour, 16, 16, 50) for colour in ("red", "blue"))
    for share in (0.0, 0.3, 1.0):
        assert math.isclose(
            PictureContent((right,), (wrong,), share).worth(parse_caption("a red circle")),
            1 - share / 3,
        )


def test_a_caption_states_the_facts_it_is_asked_about():
    """What is not stated is left out, the worth of a picture is the mean of the facts, and a thing
    that is there is seen.
    """
    made = draw_ranked_pictures(30, torch.Generator().manual_seed(5))
    found = answers(made, torch.arange(120).view(30, 4))
    for caption, worth, told in zip(made.captions, made.worth, found, strict=True):
        stated = {
            "count": True,
            "shapes": True,
            "colours": caption.first.colour is not None,
            "first": True,
        }
        stated |= {"relation": caption.skill == "location", "second": caption.second is not None}
        assert all(
            bool(told[:, QUESTIONS.index(name)].isfinite().all()) == asked
            for name, asked in stated.items()
        )
        assert torch.allclose(told[:, : len(FACT_OF_SKILL)].nanmean(1), worth)
        shapes, there = told[:, QUESTIONS.index("shapes")], told[:, len(FACT_OF_SKILL) :]
        assert bool((there.nan_to_num(1.0).amin(1) >= shapes - SAME).all())
        assert told[0].nan_to_num(1.0).amin() == 1  # drawn as asked


def test_annotators_fix_the_reward_up_to_a_constant():
    """The cross-entropy is least, and the entropy of the preferences, where both rewards differ by
    a constant for each caption.
    """
    known = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = (known + torch.tensor([[0.3], [-2.0], [1.0]], dtype=torch.float64)).requires_grad_(
        True
    )
    least = reward_stages.disagreement(shifted, known)
    (slope,) = torch.autograd.grad(least, shifted)
    assert slope.abs().max() < EXACT
    p = [
        1 / (1 + math.exp(float(b - a)))
        for row in known
        for i, a in enumerate(row)
        for b in row[i + 1 :]
    ]
    assert math.isclose(
        least.item(),
        sum(-q * math.log(q) - (1 - q) * math.log(1 - q) for q in p) / len(p),
        rel_tol=EXACT,
    )
    assert reward_stages.disagreement(2 * known, known) > least


def test_a_caption_is_compared_with_its_own_pictures_and_others():
    index = comparison_index(3, 5, torch.Generator().manual_seed(0))
    assert index[:, :4].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert index.shape == (3, 9)
    assert 0 <= int(index.min()) <= int(index.max()) < 12


@pytest.mark.refusal
@pytest.mark.parametrize(("power", "bent"), [(1, False), (2, True)])
def test_blends_bend_a_reward_that_is_not_linear(monkeypatch, power: int, bent: bool):
    """The penalty vanishes for rewards that are linear in the picture; for a square it is E (s (1 -
    s) (a - b)^2)^2.
    """
    pictures = torch.zeros(400, 4, 3, 2, 2, dtype=torch.float64)
    pictures[:, :2] = 1.0
    monkeypatch.setattr(
        reward_stages,
        "rewards_of",
        lambda model, prepared, asked: prepared.mean((2, 3, 4)) ** power,
    )
    rewards = pictures.mean((2, 3, 4)) ** power
    nobody: Any = None
    found = float(
        reward_stages.bend(nobody, pictures, nobody, rewards, torch.Generator().manual_seed(0))
    )
    expected = (
        0.5 * 1 / 30 if bent else 0.0
    )  # half of the pairs differ, by one; E s^2 (1 - s)^2 = 1/30
    stderr = (0.5 * 1 / 630 / 800) ** 0.5  # E s^4 (1 - s)^4 = 1/630
    assert abs(found - expected) < (4 * stderr if bent else EXACT)


# --- the trained models


TRAINED = pytest.mark.skipif(
    not QUALITY.is_file(),
    reason="the trained weights are not here; python -m sd_experiments.tiny.train_model makes them",
)


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(scope="module")
def scorer():
    return reward()


@TRAINED
def test_the_pipeline_draws_what_it_drew_when_it_was_measured(pipe):
    recorded = json.loads(QUALITY.read_text())["model"]["fingerprint"]
    found = fingerprint(pipe)
    assert found["prompt"] == recorded["prompt"]
    assert np.allclose(
        found["mean colour of each quarter"], recorded["mean colour of each quarter"], atol=REPEATED
    )


@TRAINED
def test_the_last_step_of_the_pipeline_can_be_steered(pipe):
    """The posterior variance of the last step, from its definition, is positive, as eta = 1 and a
    finite KL need.
    """
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(50)
    steps = scheduler.timesteps.tolist()
    assert steps == list(range(999, 0, -20))
    variance = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    abar = (1 - variance).cumprod(0)
    before, last = float(abar[19]), float(scheduler.final_alpha_cumprod)
    assert math.isclose(last, float(abar[0]), rel_tol=1e-6)
    sigma = math.sqrt((1 - last) / (1 - before) * (1 - before / last))
    recorded = json.loads(QUALITY.read_text())["model"]["schedule"]
    assert sigma > 0
    assert math.isclose(recorded["last sigma"], sigma, rel_tol=1e-3)


@TRAINED
def test_the_autoencoder_keeps_what_is_in_a_picture(pipe):
    captions, scenes = drawings(100, seed=5)
    found = check_captions(reconstruct(pipe, draw(scenes)), captions)
    assert sum(all(stated.values()) for stated in found) >= 0.9 * len(found)


@TRAINED
def test_the_tokenizer_knows_every_word_as_one_token(pipe):
    for skill in SKILLS:
        caption = str(every_caption(skill)[-1])
        assert len(pipe.tokenizer(caption).input_ids) == 2 + len(caption.split())


@TRAINED
def test_every_skill_has_headroom():
    rows = json.loads(QUALITY.read_text())["model"]["accuracy"]
    for skill, prompt in PROMPTS.items():
        (row,) = [row for row in rows if row["caption"] == prompt and row["guidance"] == 1]
        assert row["skill"] == skill
        assert FOOTHOLD <= row["fact"] <= HEADROOM


def test_pictures_are_as_noisy_as_they_are_asked_to_be():
    pictures = torch.full((400, 4, 3, 8, 8), 0.5)
    noise = add_noise(pictures, 0.3, torch.Generator().manual_seed(0)) - pictures
    deviation = noise.flatten(2).std(2).flatten()
    assert torch.equal(add_noise(pictures, 0.0, torch.Generator().manual_seed(0)), pictures)
    assert float(deviation.max()) < 0.3 * 1.25
    n = len(deviation)
    assert math.isclose(
        float(noise.double().mean()), 0, abs_tol=4 * 0.3 / 3**0.5 / noise.numel() ** 0.5
    )
    assert math.isclose(
        float(deviation.mean()), 0.15, abs_tol=4 * 0.3 / 12**0.5 / n**0.5 + 0.15 / 400
    )


@TRAINED
def test_the_reward_ranks_held_out_pairs():
    recorded = json.loads(QUALITY.read_text())["reward"]
    assert recorded["ranked right"] >= RANKED
    assert recorded["ranked right by origin"]["drawn as asked / sampled"] >= RANKED
    assert recorded["held-out captions"] >= 50
    assert set(recorded["ranked right for prompts"]) == set(PROMPTS.values())
    assert min(recorded["ranked right for prompts"].values()) >= TOLD_APART


@TRAINED
def test_the_reward_prefers_right_drawings_of_held_out_captions(scorer):
    rng, generator = random.Random(11), torch.Generator().manual_seed(11)
    captions = [caption for caption in drawings(700, seed=11)[0] if is_held_out(caption)]
    wrong = [CaptionErrors(1.0, 1.0, 1.0, 1.0).drawn(caption, rng) for caption in captions]
    texts = [str(caption) for caption in captions]
    with torch.no_grad():
        better = scorer(draw(arrange(captions, generator)), texts)
        worse = scorer(draw(arrange(wrong, generator)), texts)
    differ = torch.tensor([a != b for a, b in zip(captions, wrong, strict=True)])
    assert differ.sum() > 50
    right, n = float((better > worse)[differ].double().mean()), float(differ.sum())
    assert right >= RANKED - 4 * (RANKED * (1 - RANKED) / n) ** 0.5


@TRAINED
def test_the_reward_is_the_same_one_by_one(scorer):
    captions, scenes = drawings(6)
    pictures, texts = draw(scenes), [str(caption) for caption in captions]
    with torch.no_grad():
        together = scorer(pictures, texts)
        single = torch.cat(
            [scorer(picture[None], text) for picture, text in zip(pictures, texts, strict=True)]
        )
        repeated = scorer(pictures, texts[0])
        assert torch.allclose(repeated, scorer(pictures, [texts[0]] * 6), rtol=SAME)
    assert together.shape == (6,)
    assert torch.allclose(together, single, rtol=0, atol=SAME * float(together.abs().max()))


@TRAINED
def test_the_reward_is_differentiable_in_the_picture():
    scorer = reward().double()
    picture = draw(one("circle", "red", 15, 17)).double().requires_grad_(True)
    direction = torch.randn(
        picture.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    (gradient,) = torch.autograd.grad(scorer(picture, "a red circle").sum(), picture)
    h = 1e-5
    with torch.no_grad():
        up, down = (
            float(scorer(picture + sign * h * direction, "a red circle")) for sign in (1, -1)
        )
    assert math.isclose(
        float((gradient * direction).sum()), (up - down) / (2 * h), rel_tol=DIFFERENCE
    )


@TRAINED
@pytest.mark.refusal
def test_the_reward_refuses_what_it_cannot_score(scorer):
    with pytest.raises(InvalidProblem, match="2 images and 3 prompts"):
        scorer(torch.rand(2, 3, 32, 32), ["a star"] * 3)
    with pytest.raises(InvalidProblem, match=r"\(1, 1, 32, 32\)"):
        scorer(torch.rand(1, 1, 32, 32), "a star")


# --- folders


@TRAINED
def test_damaged_folders_are_named(tmp_path):
    def fill(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        (folder / "b.txt").write_text("b")

    folder = tmp_path / "saved"
    replace_folder(folder, fill)
    replace_folder(folder, fill)
    verify(folder, "try again")
    (folder / "b.txt").write_text("c")
    with pytest.raises(InvalidProblem, match=r"b\.txt is not the file that was saved; try again"):
        verify(folder, "try again")
    (folder / "b.txt").write_text("b")
    (folder / "sub" / "a.txt").unlink()
    with pytest.raises(InvalidProblem, match=r"a\.txt is missing; try again"):
        verify(folder, "try again")
    (folder / "sub" / "a.txt").write_text("a")
    (folder / "c.txt").write_text("c")
    with pytest.raises(InvalidProblem, match=r"c\.txt is not among the files of .*; try again"):
        verify(folder, "try again")
    (folder / "c.txt").unlink()
    verify(folder, "try again")
    for content in ("{}", "[]", "{", '{"b.txt": 1}', "\ufeff{}"):
        (folder / MANIFEST).write_text(content)
        with pytest.raises(InvalidProblem, match="; try again"):
            verify(folder, "try again")
    (folder / MANIFEST).unlink()
    with pytest.raises(InvalidProblem, match="holds nothing that was saved; try again"):
        verify(folder, "try again")


@TRAINED
def test_the_committed_models_are_safetensors_only():
    for folder in (MODEL, REWARD):
        verify(folder, "train again")
        assert {file.suffix for file in folder.rglob("*") if file.is_file()} <= {
            ".json",
            ".safetensors",
        }
    total = sum(
        file.stat().st_size
        for folder in (MODEL, REWARD)
        for file in folder.rglob("*")
        if file.is_file()
    )
    assert total < 12e6


def test_a_pipeline_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        InvalidProblem, match=r"train it again: python -m sd_experiments\.tiny\.train_model"
    ):
        pipeline(tmp_path)
    with pytest.raises(
        InvalidProblem, match=r"train it again: python -m sd_experiments\.tiny\.train_reward"
    ):
        reward(tmp_path)


# --- ImageReward under its published names

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "moon", "on", "the"]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a published checkpoint; the defaults are the real ones."""

    width: int = 1024
    patch: int = 16
    side: int = 224
    blocks: int = 24
    text: int = 768
    layers: int = 12
    heads: int = 12
    positions: int = 512
    head: tuple[int, ...] = (1024, 128, 64, 16, 1)
    vocabulary: int = 30524


SMALL = Sizes(128, 4, 16, 2, 24, 2, 3, 40, (20, 12, 8, 6, 1), len(WORDS) + 2)
PLACES = (0, 2, 4, 6, 7)  # of the linear layers in the head; dropouts take the others


def published_shapes(s):
    """Names and shapes of the published checkpoint, from the layout of its own modules."""
    eye = {"cls_token": (1, 1, s.width), "pos_embed": (1, (s.side // s.patch) ** 2 + 1, s.width)}
    eye |= linear("patch_embed.proj", s.width, (3, s.patch, s.patch)) | linear("norm", s.width, ())
    for i in range(s.blocks):
        for name, out, into in [
            ("attn.qkv", 3, 1),
            ("attn.proj", 1, 1),
            ("mlp.fc1", 4, 1),
            ("mlp.fc2", 1, 4),
        ]:
            eye |= linear(f"blocks.{i}.{name}", out * s.width, (into * s.width,))
        eye |= linear(f"blocks.{i}.norm1", s.width, ()) | linear(f"blocks.{i}.norm2", s.width, ())
    t = s.text
    text = {
        "embeddings.word_embeddings.weight": (s.vocabulary, t),
        "embeddings.position_embeddings.weight": (s.positions, t),
    }
    text |= linear("embeddings.LayerNorm", t, ()) | {"embeddings.position_ids": (1, s.positions)}
    for layer in (f"encoder.layer.{i}" for i in range(s.layers)):
        for block, into in [("attention", t), ("crossattention", s.width)]:
            text |= linear(f"{layer}.{block}.self.query", t, (t,))
            text |= linear(f"{layer}.{block}.self.key", t, (into,)) | linear(
                f"{layer}.{block}.self.value", t, (into,)
            )
            text |= linear(f"{layer}.{block}.output.dense", t, (t,)) | linear(
                f"{layer}.{block}.output.LayerNorm", t, ()
            )
        text |= linear(f"{layer}.intermediate.dense", 4 * t, (t,)) | linear(
            f"{layer}.output.dense", t, (4 * t,)
        )
        text |= linear(f"{layer}.output.LayerNorm", t, ())
    shapes = {f"blip.visual_encoder.{name}": shape for name, shape in eye.items()}
    shapes |= {f"blip.text_encoder.{name}": shape for name, shape in text.items()}
    shapes |= linear("blip.vision_proj", 256, (s.width,)) | linear("blip.text_proj", 256, (t,))
    for place, out, into in zip(PLACES, s.head, (t, *s.head[:-1]), strict=True):
        shapes |= linear(f"mlp.layers.{place}", out, (into,))
    return shapes


def linear(name, out, into):
    return {f"{name}.weight": (out, *into), f"{name}.bias": (out,)}


def random_checkpoint():
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in published_shapes(SMALL).items():
        fan = math.prod(shape[1:]) or 1
        value = torch.randn(shape, generator=generator)
        norm = "norm" in name.lower() and name.endswith("weight")
        weights[name] = 1 + 0.1 * value if norm else value / math.sqrt(fan)
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(SMALL.positions)[None]
    return weights


def by_hand(weights, images, ids, mask):
    """ImageReward from its published names: pre-norm vision transformer, post-norm BERT with
    cross-attention, linear head.
    """

    def dense(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name, x, eps):
        return F.layer_norm(
            x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps
        )

    def attend(q, k, v, heads, allowed=None):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None, None, :], -math.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    eye, reader = "blip.visual_encoder", "blip.text_encoder"
    mean, deviation = (
        torch.tensor(c, dtype=images.dtype)[:, None, None]
        for c in (image_reward.MEAN, image_reward.DEVIATION)
    )
    x = F.conv2d(
        (images - mean) / deviation,
        weights[f"{eye}.patch_embed.proj.weight"],
        weights[f"{eye}.patch_embed.proj.bias"],
        stride=4,
    )
    x = (
        torch.cat(
            [weights[f"{eye}.cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1
        )
        + weights[f"{eye}.pos_embed"]
    )
    for i in range(SMALL.blocks):
        block = f"{eye}.blocks.{i}"
        q, k, v = dense(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + dense(f"{block}.attn.proj", attend(q, k, v, SMALL.width // 64))
        x = x + dense(
            f"{block}.mlp.fc2", F.gelu(dense(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6)))
        )
    seen = norm(f"{eye}.norm", x, 1e-6)
    places = weights[f"{reader}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    h = norm(
        f"{reader}.embeddings.LayerNorm",
        weights[f"{reader}.embeddings.word_embeddings.weight"][ids] + places,
        1e-12,
    )
    for i in range(SMALL.layers):
        layer = f"{reader}.encoder.layer.{i}"
        for block, other, allowed in [
            ("attention", None, mask.bool()),
            ("crossattention", seen, None),
        ]:
            q, k, v = (
                dense(
                    f"{layer}.{block}.self.{part}", h if other is None or part == "query" else other
                )
                for part in PARTS
            )
            out = dense(f"{layer}.{block}.output.dense", attend(q, k, v, SMALL.heads, allowed))
            h = norm(f"{layer}.{block}.output.LayerNorm", out + h, 1e-12)
        out = dense(f"{layer}.output.dense", F.gelu(dense(f"{layer}.intermediate.dense", h)))
        h = norm(f"{layer}.output.LayerNorm", out + h, 1e-12)
    y = h[:, 0]
    for place in PLACES:
        y = dense(f"mlp.layers.{place}", y)
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


PARTS = ("query", "key", "value")


@pytest.fixture
def published(tmp_path):
    """A directory as published, with small random weights."""
    torch.save(random_checkpoint(), tmp_path / "ImageReward.pt")
    config = {
        "hidden_size": SMALL.text,
        "intermediate_size": 4 * SMALL.text,
        "num_hidden_layers": SMALL.layers,
    }
    config |= {
        "num_attention_heads": SMALL.heads,
        "vocab_size": SMALL.vocabulary,
        "max_position_embeddings": SMALL.positions,
    }
    (tmp_path / "med_config.json").write_text(
        json.dumps(config | {"hidden_dropout_prob": 0.1, "encoder_width": 768})
    )
    (tmp_path / "bert-base-uncased").mkdir()
    (tmp_path / "bert-base-uncased" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def test_a_published_checkpoint_gives_the_rewards_of_its_own_definition(published):
    model = ImageReward.load(published).double()
    prompts = ["a cat and a dog", "A dog on the moon", "dog"]
    images = torch.rand(
        3, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    ids = torch.tensor(
        [[WORDS.index(w) for w in ["[CLS]", "a", "cat", "[UNK]", "a", "dog", "[SEP]"]] + [0] * 28]
    )
    tokens = model.tokens(prompts)
    assert torch.equal(tokens.ids[:1], ids[:, :35])
    weights = {
        name: value.double()
        for name, value in random_checkpoint().items()
        if "position_ids" not in name
    }
    expected = by_hand(weights, images, tokens.ids, tokens.mask)
    assert torch.allclose(model(images, prompts), expected, rtol=EXACT)
    assert float(expected.std()) > 0.01


def test_the_full_size_model_has_exactly_the_published_weights():
    vocabulary = ImageRewardConfig().vocabulary
    tokenizer = _tokenizer_of_size(vocabulary)
    with torch.device("meta"):
        model = ImageReward(ImageRewardConfig(), tokenizer)
        checkpoint = {name: torch.empty(shape) for name, shape in published_shapes(Sizes()).items()}
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {
        name: tuple(value.shape) for name, value in rename_published_weights(checkpoint).items()
    } == ours
    assert 445e6 < sum(map(math.prod, ours.values())) < 450e6


def _tokenizer_of_size(size):
    words = {
        word: i
        for i, word in enumerate(
            [*WORDS[:5], *(f"w{i}" for i in range(size - 7)), "[DEC]", "[ENC]"]
        )
    }
    return BertTokenizer(vocab=words)


def test_images_are_resized_as_the_published_model_resizes_them():
    """Against PIL, which rounds to bytes: short side to 16, the middle of the long side."""
    pixels = (
        Image.effect_noise((48, 40), 60).convert("RGB").resize((75, 50), Image.Resampling.BILINEAR)
    )
    model = ImageReward(
        ImageRewardConfig(
            TransformerSize(64, 64, 1, 1),
            TransformerSize(24, 24, 1, 1),
            side=16,
            patch=4,
            vocabulary=len(WORDS),
        ),
        BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}),
    )
    images = torch.from_numpy(np.asarray(pixels) / np.float32(255)).permute(2, 0, 1)[None]
    mean, deviation = (
        torch.tensor(c)[:, None, None] for c in (image_reward.MEAN, image_reward.DEVIATION)
    )
    ours = (model.prepare(images)[0] * deviation + mean).permute(1, 2, 0)
    theirs = pixels.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    assert np.abs(ours.detach().numpy() - np.asarray(theirs) / 255).max() < PIXEL


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda d: (d / "ImageReward.pt").unlink(),
            r"ImageReward\.pt not found; reward\.path is to hold",
        ),
        (lambda d: (d / "ImageReward.pt").write_bytes(b"no"), "not a file of plain weights"),
        (lambda d: (d / "med_config.json").write_text("{"), r"med_config\.json is damaged"),
        (lambda d: (d / "med_config.json").write_text("{}"), "without hidden_size"),
        (
            lambda d: shutil.rmtree(d / "bert-base-uncased"),
            r"bert-base-uncased not found; reward\.path is to hold",
        ),
        (
            lambda d: [file.unlink() for file in (d / "bert-base-uncased").iterdir()],
            r"neither vocab\.txt nor tokenizer\.json",
        ),
        (
            lambda d: (d / "bert-base-uncased" / "vocab.txt").write_text("\n".join(WORDS[:-1])),
            "knows 12 tokens and the model 13",
        ),
        (lambda d: _edit(d, lambda w: w.pop("mlp.layers.2.bias")), r"lacks key head\.2\.bias;"),
        (lambda d: _edit(d, lambda w: w.update(extra=torch.zeros(1))), "unknown key extra;"),
        (
            lambda d: _edit(d, lambda w: w.update({"mlp.layers.7.bias": torch.zeros(2)})),
            r"head\.7\.bias .* shape \(2,\), not \(1,\)",
        ),
        (
            lambda d: _edit(d, lambda w: w.pop("blip.visual_encoder.pos_embed")),
            "it is not an ImageReward",
        ),
    ],
)
def test_bad_published_files_are_named(published, damage, says):
    damage(published)
    with pytest.raises(InvalidProblem, match=says):
        ImageReward.load(published)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(published, tmp_path):
    made = tmp_path / "made"

    class Runs:
        def __reduce__(self):
            return Path.touch, (made,)

    torch.save({"weight": torch.zeros(1), "runs": Runs()}, published / "ImageReward.pt")
    with pytest.raises(InvalidProblem, match="not a file of plain weights"):
        ImageReward.load(published)
    assert not made.exists()
    torch.load(published / "ImageReward.pt", weights_only=False)
    assert made.exists(), "the file is one that runs code where it can"


def _edit(directory, change):
    weights = random_checkpoint()
    change(weights)
    torch.save(weights, directory / "ImageReward.pt")


def test_a_saved_reward_comes_back_and_bad_files_are_named(published, tmp_path):
    model = ImageReward.load(published)
    saved = tmp_path / "saved"
    model.save(saved)
    images = torch.rand(2, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ImageReward.restore(saved)(images, "a dog"), model(images, "a dog"))

    weights = load_file(saved / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("head.0")},
        saved / "model.safetensors",
    )
    with pytest.raises(InvalidProblem, match=r"lacks keys head\.0\.bias, head\.0\.weight;"):
        ImageReward.restore(saved)
    (saved / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InvalidProblem, match=r"model\.safetensors is damaged"):
        ImageReward.restore(saved)
    (saved / "config.json").write_text('{"vision": {}}')
    with pytest.raises(InvalidProblem, match="is without text, side,"):
        ImageReward.restore(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"side": 30}, "side = 30"),
        ({"tokens": 600}, "tokens = 600"),
        ({"head": (4, 2)}, r"head = \(4, 2\)"),
        ({"deviation": 0.0}, r"deviation = 0\.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, says):
    with pytest.raises(InvalidProblem, match=says):
        ImageRewardConfig(**change)


def test_relations_are_antisymmetric():
    """A picture of one relation confirms its opposite with the names exchanged, and nothing
    else.
    """
    captions = [c for c in every_caption("location") if c.first.colour is None]
    pictures = find_shapes(draw(arrange(captions, torch.Generator().manual_seed(4))))
    opposite: dict[str | None, str] = {
        "above": "below",
        "below": "above",
        "left of": "right of",
        "right of": "left of",
    }
    for caption, seen in zip(captions, pictures, strict=True):
        assert caption.second is not None
        confirmed = {
            str(other)
            for other in every_caption("location")
            if other.first.colour is None
            and {other.first, other.second} == {caption.first, caption.second}
            if facts(other, seen)["relation"]
        }
        turned = dataclasses.replace(
            caption, first=caption.second, second=caption.first, relation=opposite[caption.relation]
        )
        assert confirmed == {str(caption), str(turned)}
