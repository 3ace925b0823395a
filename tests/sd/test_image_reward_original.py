"""The native ImageReward against the original package, to the bit, on one random checkpoint of the
published size.

The original needs old versions of what extra ``sd`` brings, hence an environment of its own:

    python3 -m venv build/image-reward
    build/image-reward/bin/pip install torch==2.13.0 -e '.[image-reward]' pytest hypothesis beartype
    build/image-reward/bin/python -m pytest tests/sd/test_image_reward_original.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

PROMPTS = (
    "A green colored rabbit",
    "A cat and a dog",
    "four wolves in the park, one of them unheard-of " * 3,
)
WORDS = (
    "a",
    "green",
    "colored",
    "rabbit",
    "cat",
    "and",
    "dog",
    "four",
    "wolves",
    "in",
    "the",
    "park",
    "one",
    "of",
    "them",
    ",",
    "-",
)
MED = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "vocab_size": 30524,
    "encoder_width": 1024,
    "add_cross_attention": True,
}

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ImageReward") is None,
        reason=(
            "the original package image-reward is not installed; it needs its own environment,"
            " extra image-reward"
        ),
    ),
    pytest.mark.filterwarnings("ignore"),  # the original's own
]


@functools.cache
def torchvision_schemas() -> torch.library.Library | None:
    """Operators that torchvision's Python part names at import, which its compiled part does not
    bring beside another torch.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same weights in the original and in ours."""

    original: Any
    ours: Any


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("published")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [f"unused{i}" for i in range(MED["vocab_size"] - 2 - len(tokens))]
    (folder / "bert-base-uncased").mkdir()
    (folder / "bert-base-uncased" / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (folder / "med_config.json").write_text(json.dumps(MED))
    torchvision_schemas()
    with contextlib.chdir(folder):  # the original looks for the tokenizer by name, here first
        module = importlib.import_module("ImageReward.ImageReward")
        torch.manual_seed(0)
        original = (
            module.ImageReward(med_config=str(folder / "med_config.json"), device="cpu")
            .eval()
            .requires_grad_(False)
        )
    for name, value in original.named_parameters():
        if name.startswith("mlp") or "norm" in name.lower():
            value.add_(
                0.05 * torch.randn(value.shape)
            )  # the original starts with a head that is almost zero
    torch.save(original.state_dict(), folder / "ImageReward.pt")
    from sd_experiments.reward.image_reward import ImageReward

    yield Pair(original, ImageReward.load(folder))
    for file in folder.glob("*.pt"):
        file.unlink()


def pixels(count: int = 3) -> Tensor:
    """Pictures of whole bytes, of the size the model sees."""
    drawn = torch.randint(0, 256, (count, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.avg_pool2d(drawn.float(), 15, 1, 7).round()
    return smooth / 255


def pictures(images: Tensor) -> list[Image.Image]:
    return [
        Image.fromarray(np.asarray((each * 255).round().byte().permute(1, 2, 0))) for each in images
    ]


def test_prompts_are_read_alike(pair: Pair):
    options: dict[str, Any] = {
        "padding": "max_length",
        "truncation": True,
        "max_length": 35,
        "return_tensors": "pt",
    }
    expected, found = (
        pair.original.blip.tokenizer(list(PROMPTS), **options),
        pair.ours.tokens(PROMPTS),
    )
    assert torch.equal(found.ids, expected.input_ids)
    assert torch.equal(found.mask, expected.attention_mask)
    assert found.mask.sum(1).tolist()[-1] == 35
    assert int((found.ids > 4).sum()) > 30


def test_rewards_of_pictures_are_the_originals(pair: Pair):
    images = pixels()
    expected = [
        pair.original.score(prompt, picture)
        for prompt, picture in zip(PROMPTS, pictures(images), strict=True)
    ]
    found = [float(pair.ours(images[i : i + 1], prompt)) for i, prompt in enumerate(PROMPTS)]
    assert found == expected
    assert len(set(found)) == len(PROMPTS)


def test_gradients_in_the_image_are_the_originals(pair: Pair):
    tokens = pair.ours.tokens(PROMPTS)
    seen = [pair.ours.prepare(pixels()).requires_grad_(True) for _ in range(2)]
    rewards = (
        pair.original.score_gard(tokens.ids, tokens.mask, seen[0])[:, 0],
        pair.ours.score(seen[1], tokens),
    )
    assert torch.equal(*rewards)
    gradients = [
        torch.autograd.grad(each.sum(), x)[0] for each, x in zip(rewards, seen, strict=True)
    ]
    assert torch.equal(*gradients)
    assert float(gradients[0].abs().max()) > 0


def test_a_changed_weight_is_seen(pair: Pair):
    """The comparison can fail."""
    images, weight = pixels(1), pair.ours.state_dict()["text.encoder.layer.11.output.dense.weight"]
    before = float(pair.ours(images, PROMPTS[0]))
    weight[0] += 0.1
    try:
        assert float(pair.ours(images, PROMPTS[0])) != before
    finally:
        weight[0] -= 0.1
