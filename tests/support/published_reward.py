"""ImageReward from its published names: the shapes of its weights, and what they compute."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from sd_experiments.reward import image_reward

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


PARTS = ("query", "key", "value")


class ByHand:
    """ImageReward of `SMALL` sizes by some weights: pre-norm vision transformer, post-norm BERT
    with cross-attention, linear head.
    """

    eye, reader = "blip.visual_encoder", "blip.text_encoder"

    def __init__(self, weights: Mapping[str, Tensor]):
        self.weights = weights

    def __call__(self, images: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        y = self.read(ids, mask, self.see(images))[:, 0]
        for place in PLACES:
            y = self.dense(f"mlp.layers.{place}", y)
        return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072

    def dense(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def see(self, images: Tensor) -> Tensor:
        """The states of the class and of the patches."""
        x = torch.cat([self.expanded("cls_token", len(images)), self.patches(images)], 1)
        x = x + self.weights[f"{self.eye}.pos_embed"]
        for i in range(SMALL.blocks):
            block = f"{self.eye}.blocks.{i}"
            inner = self.norm(f"{block}.norm1", x, 1e-6)
            q, k, v = self.dense(f"{block}.attn.qkv", inner).chunk(3, -1)
            x = x + self.dense(f"{block}.attn.proj", attend(q, k, v, SMALL.width // 64))
            inner = self.dense(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6))
            x = x + self.dense(f"{block}.mlp.fc2", F.gelu(inner))
        return self.norm(f"{self.eye}.norm", x, 1e-6)

    def expanded(self, name: str, batch: int) -> Tensor:
        return self.weights[f"{self.eye}.{name}"].expand(batch, -1, -1)

    def patches(self, images: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(c, dtype=images.dtype)[:, None, None]
            for c in (image_reward.MEAN, image_reward.DEVIATION)
        )
        name = f"{self.eye}.patch_embed.proj"
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        seen = F.conv2d((images - mean) / deviation, weight, bias, stride=4)
        return seen.flatten(2).transpose(1, 2)

    def read(self, ids: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
        """The states of the words, which look at the picture."""
        names = f"{self.reader}.embeddings"
        places = self.weights[f"{names}.position_embeddings.weight"][: ids.shape[1]]
        words = self.weights[f"{names}.word_embeddings.weight"][ids]
        h = self.norm(f"{names}.LayerNorm", words + places, 1e-12)
        for i in range(SMALL.layers):
            layer = f"{self.reader}.encoder.layer.{i}"
            h = self.mixed(f"{layer}.attention", h, h, mask.bool())
            h = self.mixed(f"{layer}.crossattention", h, seen)
            out = F.gelu(self.dense(f"{layer}.intermediate.dense", h))
            out = self.dense(f"{layer}.output.dense", out)
            h = self.norm(f"{layer}.output.LayerNorm", out + h, 1e-12)
        return h

    def mixed(self, block: str, h: Tensor, other: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attention of words to what they look at."""
        q, k, v = (
            self.dense(f"{block}.self.{part}", h if part == "query" else other) for part in PARTS
        )
        out = self.dense(f"{block}.output.dense", attend(q, k, v, SMALL.heads, allowed))
        return self.norm(f"{block}.output.LayerNorm", out + h, 1e-12)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None, None, :], -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
