"""The published ImageReward: names and sizes of its weights."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sd_experiments.reward.sizes import ImageRewardConfig, TransformerSize, present
from socft.checks import require
from socft.files import read_json
from socft.schema import structured

_HEAD_WIDTH = 64  # of the published vision transformers: width / 64 attention heads
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|\.position_ids$")
_RENAMED = (
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)


def rename_published_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names used here, without those the reward does not use."""
    weights = {}
    for key, value in published.items():
        if _UNUSED.search(key):
            continue
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        weights[key] = value
    return weights


@dataclasses.dataclass(frozen=True)
class PublishedText:
    """What is read of the published configuration of the text encoder, under its names there."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int
    hidden_dropout_prob: float


def published_text(file: Path) -> PublishedText:
    """What the published configuration of the text encoder says."""
    again = "download it again"
    found = read_json(present(file), again, strict=False)
    require(isinstance(found, dict), f"{file} is damaged: it is no JSON object; {again}.")
    names = [field.name for field in dataclasses.fields(PublishedText)]
    known = {name: found[name] for name in names if name in found}
    return structured(PublishedText, known, str(file), again)


def published_config(
    weights: Mapping[str, Tensor], text: PublishedText, file: Path
) -> ImageRewardConfig:
    """Sizes of a published model: the text encoder's from its configuration, the others from the
    weights' shapes.
    """
    names = (
        "vision.embeddings.patch_embedding.weight",
        "vision.embeddings.position_embedding",
        "vision.encoder.layers.0.mlp.fc1.weight",
    )
    lost = [
        name
        for name, dims in zip(names, (4, 3, 2), strict=True)
        if name not in weights or weights[name].ndim != dims
    ]
    require(not lost, f"{file} lacks {listed(lost)}; it is not an ImageReward.")
    (width, _, patch, _), places, hidden = (
        weights[names[0]].shape,
        weights[names[1]].shape[1],
        len(weights[names[2]]),
    )
    head = sorted(
        (int(name.split(".")[1]), len(value))
        for name, value in weights.items()
        if re.match(r"head\.\d+\.weight", name)
    )
    return ImageRewardConfig(
        vision=TransformerSize(width, hidden, _layers(weights), max(1, width // _HEAD_WIDTH)),
        text=TransformerSize(
            text.hidden_size,
            text.intermediate_size,
            text.num_hidden_layers,
            text.num_attention_heads,
        ),
        side=patch * math.isqrt(places - 1),
        patch=patch,
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
        head=tuple(size for _, size in head),
        dropout=text.hidden_dropout_prob,
    )


def _layers(weights: Iterable[str]) -> int:
    return len(
        {name.split(".")[3] for name in weights if name.startswith("vision.encoder.layers.")}
    )


def listed(keys: Sequence[str]) -> str:
    """The first keys of a list and how many more there are."""
    more = f" and {len(keys) - 3} more keys" if len(keys) > 3 else ""
    return ("keys " if len(keys) > 1 else "key ") + ", ".join(keys[:3]) + more
