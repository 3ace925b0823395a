"""What the tiny reward learns from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sd_experiments.tiny import reward_stages
from sd_experiments.tiny.captions import (
    COLOURS,
    FACT_OF_SKILL,
    SHAPES,
    VisibleShape,
    parse_caption,
)
from sd_experiments.tiny.checker import find_shapes
from sd_experiments.tiny.ranked_pictures import (
    QUESTIONS,
    PictureContent,
    answers,
    comparison_index,
    draw_ranked_pictures,
    is_held_out,
)
from sd_experiments.tiny.reward_stages import patch_classes
from tests.support.tiny_drawings import one

CLEAN = 0.99  # fraction of clean drawings whose caption the checker must confirm
SAME = 1e-5  # relative; float32 sums of a few hundred terms in another order
EXACT = 1e-10  # relative; the same in float64


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
