"""ImageReward against an implementation from its published names."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from sd_experiments.reward import image_reward
from sd_experiments.reward.image_reward import ImageReward
from sd_experiments.reward.published import rename_published_weights
from sd_experiments.reward.sizes import ImageRewardConfig, TransformerSize
from sd_experiments.tiny.captions import (
    every_caption,
    facts,
)
from sd_experiments.tiny.checker import find_shapes
from sd_experiments.tiny.shapes import arrange, draw
from socft.checks import InvalidProblem
from tests.support.published_reward import (
    SMALL,
    WORDS,
    ByHand,
    Sizes,
    published_shapes,
    random_checkpoint,
)

EXACT = 1e-10  # relative; the same in float64
PIXEL = 1 / 255  # PIL rounds to bytes


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
    expected = ByHand(weights)(images, tokens.ids, tokens.mask)
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
