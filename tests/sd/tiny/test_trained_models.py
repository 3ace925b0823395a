"""The trained tiny models, and the folders that hold them."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from sd_experiments.manifest import MANIFEST, replace_folder, verify
from sd_experiments.tiny import (
    MODEL,
    PROMPTS,
    QUALITY,
    REWARD,
    pipeline,
    reward,
)
from sd_experiments.tiny.captions import (
    SKILLS,
    CaptionErrors,
    every_caption,
)
from sd_experiments.tiny.checker import check_captions
from sd_experiments.tiny.quality import fingerprint, reconstruct
from sd_experiments.tiny.ranked_pictures import is_held_out
from sd_experiments.tiny.reward_stages import add_noise
from sd_experiments.tiny.shapes import arrange, draw
from socft.checks import InvalidProblem
from tests.support.tiny_drawings import drawings, one

SAME = 1e-5  # relative; float32 sums of a few hundred terms in another order
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
