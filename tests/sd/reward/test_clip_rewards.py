"""Published rewards on a CLIP against their arithmetic, written out in plain torch on small random
weights of the published names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sd_experiments import config
from sd_experiments.reward.clip_rewards import (
    AestheticScore,
    human_preference_score,
    pick_score,
)
from sd_experiments.reward.rewards import CLIP_MEAN, CLIP_STD, CLIPScore, JPEGCompressibility
from sd_experiments.training.build import is_black_box, load_reward_model
from sd_experiments.training.session import feature_diversity, judged, load_judges
from socft.checks import InvalidProblem
from tests.support.sd import PROMPT, away, save_clip, tokenizer

# relative: two layers of matrix products in float64
ROUNDING = 1e-12
WIDE, NARROW, EMBEDDED, PATCH, SIDE, PLACES, LAYERS, HEAD = 128, 64, 16, 4, 12, 12, 2, 64
CPU = torch.device("cpu")
Weights = dict[str, Tensor]
Score = Callable[[Tensor], Tensor]


def transformer_weights(prefix: str, width: int, draw: Callable[..., Tensor]) -> Weights:
    found = {}
    for i in range(LAYERS):
        block = f"{prefix}resblocks.{i}."
        found |= {
            f"{block}attn.in_proj_weight": draw(3 * width, width),
            f"{block}attn.in_proj_bias": draw(3 * width),
            f"{block}attn.out_proj.weight": draw(width, width),
            f"{block}attn.out_proj.bias": draw(width),
            f"{block}mlp.c_fc.weight": draw(2 * width, width),
            f"{block}mlp.c_fc.bias": draw(2 * width),
            f"{block}mlp.c_proj.weight": draw(width, 2 * width),
            f"{block}mlp.c_proj.bias": draw(width),
        }
        for name in ("ln_1", "ln_2"):
            found |= {f"{block}{name}.weight": 1 + draw(width), f"{block}{name}.bias": draw(width)}
    return found


def open_clip_weights() -> Weights:
    """Of a small CLIP, under open_clip's names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    weights = {
        "positional_embedding": draw(PLACES, NARROW),
        "text_projection": draw(NARROW, EMBEDDED),
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": draw(WIDE),
        "visual.positional_embedding": draw((SIDE // PATCH) ** 2 + 1, WIDE),
        "visual.proj": draw(WIDE, EMBEDDED),
        "visual.conv1.weight": draw(WIDE, 3, PATCH, PATCH),
        "token_embedding.weight": 10 * draw(len(tokenizer()), NARROW),
        "attn_mask": torch.zeros(PLACES, PLACES),
    }
    for name, width in (("visual.ln_pre", WIDE), ("visual.ln_post", WIDE), ("ln_final", NARROW)):
        weights |= {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}
    weights |= transformer_weights("visual.transformer.", WIDE, draw)
    return weights | transformer_weights("transformer.", NARROW, draw)


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)


def transformed(x: Tensor, w: Weights, prefix: str, mask: Tensor) -> Tensor:
    heads = x.shape[2] // HEAD
    for i in range(LAYERS):
        block = f"{prefix}resblocks.{i}."
        y = norm(x, w, f"{block}ln_1")
        both = y @ w[f"{block}attn.in_proj_weight"].T + w[f"{block}attn.in_proj_bias"]
        q, k, v = (part.unflatten(2, (heads, HEAD)).transpose(1, 2) for part in both.chunk(3, 2))
        seen = ((q @ k.transpose(2, 3)) / HEAD**0.5 + mask).softmax(3) @ v
        seen = seen.transpose(1, 2).flatten(2)
        x = x + seen @ w[f"{block}attn.out_proj.weight"].T + w[f"{block}attn.out_proj.bias"]
        y = F.gelu(
            norm(x, w, f"{block}ln_2") @ w[f"{block}mlp.c_fc.weight"].T + w[f"{block}mlp.c_fc.bias"]
        )
        x = x + y @ w[f"{block}mlp.c_proj.weight"].T + w[f"{block}mlp.c_proj.bias"]
    return x


def normalised(images: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(v).to(images)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / deviation


def preference(images: Tensor, w: Weights) -> Tensor:
    """HPSv2's number for `PROMPT`, of images that have the size of the CLIP."""
    x = (
        F.conv2d(normalised(images), w["visual.conv1.weight"], stride=PATCH)
        .flatten(2)
        .transpose(1, 2)
    )
    first = w["visual.class_embedding"].expand(len(x), 1, -1)
    x = norm(torch.cat([first, x], 1) + w["visual.positional_embedding"], w, "visual.ln_pre")
    x = transformed(x, w, "visual.transformer.", x.new_zeros(()))
    image = norm(x[:, 0], w, "visual.ln_post") @ w["visual.proj"]
    words = torch.tensor(tokenizer()([PROMPT])["input_ids"])
    ids = F.pad(words, (0, PLACES - words.shape[1]))
    y = w["token_embedding.weight"][ids] + w["positional_embedding"]
    mask = y.new_full((PLACES, PLACES), -math.inf).triu(1)
    y = norm(transformed(y, w, "transformer.", mask), w, "ln_final")
    text = y[0, ids[0].argmax()] @ w["text_projection"]
    return F.normalize(image) @ F.normalize(text, dim=0)


def pictures(*size: int) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3)).double()


def same(
    found: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    """Numbers and gradients."""
    x.requires_grad_(True)
    a, b = found(x), expected(x)
    assert a.shape == (2,)
    assert away(a.detach(), b.detach()) < ROUNDING
    mine, theirs = (torch.autograd.grad(each.sum(), x)[0] for each in (a, b))
    assert away(mine, theirs) < ROUNDING
    assert float(mine.abs().max()) > 0


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    torch.save({"state_dict": open_clip_weights(), "epoch": 3}, tmp_path / "HPS.pt")
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_hpsv2_is_the_cosine_of_open_clip(preferences: Path):
    weights = {name: value.double() for name, value in open_clip_weights().items()}
    score = human_preference_score(preferences).double()

    def padded(images: Tensor) -> Tensor:
        half = F.interpolate(images, (6, 12), mode="bicubic", antialias=True, align_corners=False)
        return preference(F.pad(half, (0, 0, 3, 3)), weights)

    same(lambda x: score(x, PROMPT), lambda x: preference(x, weights), pictures(12, 12))
    same(lambda x: score(x, PROMPT), padded, pictures(12, 24))


def test_weights_that_are_not_those_are_named(preferences: Path):
    weights = open_clip_weights()
    weights["more"] = weights.pop("ln_final.bias")
    torch.save(weights, preferences / "HPS.pt")
    with pytest.raises(InvalidProblem, match=r"HPS.pt lacks or has no use for keys more, text_mod"):
        human_preference_score(preferences)
    (preferences / "other.pt").write_bytes(b"x")
    with pytest.raises(InvalidProblem, match=r"holds 2 files \*.pt; copy HPS_v2.1_compressed.pt"):
        human_preference_score(preferences)
    (preferences / "HPS.pt").unlink()
    with pytest.raises(InvalidProblem, match=r"other.pt is not a file of plain weights; download"):
        human_preference_score(preferences)


def test_pick_score_is_the_logit_of_its_clip(tmp_path: Path):
    torch.manual_seed(1)
    model = save_clip(tmp_path).double()
    score = pick_score(tmp_path).double()
    tokens = tokenizer()([PROMPT], return_tensors="pt")
    same(
        lambda x: score(x, PROMPT),
        lambda x: model(pixel_values=normalised(x), **tokens).logits_per_image[:, 0],
        pictures(12, 12),
    )


def save_aesthetic(folder: Path) -> Mapping[str, Tensor]:
    """A CLIP and linear layers under their published names."""
    torch.manual_seed(2)
    save_clip(folder)
    sizes = (8, 7, 6, 5, 4, 1)
    layers: Weights = {}
    for number, before, after in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        layers[f"layers.{number}.weight"] = torch.randn(after, before)
        layers[f"layers.{number}.bias"] = torch.randn(after)
    torch.save(layers, folder / "sac+logos+ava1-l14-linearMSE.pth")
    return layers


def test_the_aesthetic_score_is_five_linear_layers(tmp_path: Path):
    layers = save_aesthetic(tmp_path)
    score = AestheticScore.load(tmp_path).double()

    def expected(images: Tensor) -> Tensor:
        pooled: Any = score.clip.model.get_image_features(pixel_values=normalised(images))
        x = pooled.pooler_output
        x = x / x.square().sum(1, keepdim=True).sqrt()
        for number in (0, 2, 4, 6, 7):
            weight, bias = (
                layers[f"layers.{number}.{each}"].double() for each in ("weight", "bias")
            )
            x = x @ weight.T + bias
        return x[:, 0]

    same(lambda x: score(x, "anything"), expected, pictures(12, 12))
    torch.save(
        {"layers.0.weight": torch.ones(1, 3), "layers.0.bias": torch.ones(1)},
        next(tmp_path.glob("*.pth")),
    )
    with pytest.raises(InvalidProblem, match=r"map 3 numbers to 1, and the CLIP gives 8; give"):
        AestheticScore.load(tmp_path)


def test_a_sum_is_of_its_terms_and_as_smooth_as_they_are(tmp_path: Path):
    save_aesthetic(tmp_path)
    terms: list[dict[str, Any]] = [
        {"name": "clip", "path": str(tmp_path), "weight": 2.0, "options": {"scale": 3.0}},
        {"name": "aesthetic", "path": str(tmp_path), "weight": -0.5},
    ]
    smooth = config.RewardConfig("sum", options={"terms": terms})
    whole = load_reward_model(smooth, CPU)
    clip, aesthetic = CLIPScore.load(tmp_path, 3.0), AestheticScore.load(tmp_path)
    images = pictures(12, 12).float()
    expected = 2 * clip(images, PROMPT) - 0.5 * aesthetic(images, PROMPT)
    assert torch.allclose(whole(images, PROMPT), expected, rtol=1e-5)
    rough = config.RewardConfig("sum", options={"terms": [*terms, {"name": "jpeg", "weight": 0.1}]})
    assert not is_black_box(smooth)
    assert is_black_box(rough)
    size = JPEGCompressibility()(images)
    found = load_reward_model(rough, CPU)(images, PROMPT)
    assert torch.allclose(found, expected + 0.1 * size.float(), rtol=1e-5)
    for options in ({}, {"terms": []}, {"terms": "jpeg"}):
        with pytest.raises(InvalidProblem, match=r"^the reward 'sum' has no terms; give rew"):
            is_black_box(config.RewardConfig("sum", options=options))
    with pytest.raises(InvalidProblem, match=r"^there is no key 'wheight'; did you mean weight\?"):
        is_black_box(
            config.RewardConfig("sum", options={"terms": [{"name": "jpeg", "wheight": 1}]})
        )


def test_judges_judge_and_features_tell_pictures_apart(tmp_path: Path):
    save_aesthetic(tmp_path)
    terms = (config.RewardTerm("jpeg"), config.RewardTerm("clip", str(tmp_path)))
    images = torch.cat([pictures(12, 12), 1 - pictures(12, 12)]).float()
    found = judged(load_judges(terms, CPU), images, PROMPT)
    assert torch.equal(found["judge jpeg"], JPEGCompressibility()(images))
    clip = CLIPScore.load(tmp_path)
    assert torch.allclose(found["judge clip"], clip(images, PROMPT).double(), rtol=1e-5)
    seen = F.normalize(clip.embedding(images).double())
    cosines = seen @ seen.T
    pairs = [1 - float(cosines[i, j]) for i in range(4) for j in range(i)]
    assert feature_diversity(clip, images) == pytest.approx(sum(pairs) / 6, abs=1e-6)
    assert feature_diversity(clip, images[:1].expand(3, -1, -1, -1)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(InvalidProblem, match=r"^monitor.judges has \['jpeg '\] twice; name each"):
        load_judges((*terms, terms[0]), CPU)
