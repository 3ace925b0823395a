r"""Rewards on top of a CLIP, as published, from local directories and differentiable.

With unit embeddings :math:`e(x)` of an image and :math:`e(p)` of a prompt:

==========  ======================================================================  ===============
PickScore   :math:`e^{\tau} e(x)\cdot e(p)` with the CLIP's own :math:`\tau`       arXiv 2305.01569
HPSv2.1     :math:`e(x)\cdot e(p)`; the image is padded to a square, not cropped   arXiv 2306.09341
aesthetic   five linear layers of :math:`e(x)`, without nonlinearities             LAION, 2022
==========  ======================================================================  ===============

The weights of HPSv2.1 are those of open_clip's ViT-H-14, and are renamed:

=====================================  =========================================
open_clip                              transformers
=====================================  =========================================
``visual.conv1``                       ``vision_model.embeddings.patch_embedding``
``visual.ln_pre``, ``visual.ln_post``  ``vision_model.pre_layrnorm``, ``post_layernorm``
``resblocks.i.attn.in_proj_*``         ``layers.i.self_attn.{q,k,v}_proj``, one below the other
``resblocks.i.mlp.c_fc``, ``c_proj``   ``layers.i.mlp.fc1``, ``fc2``
``visual.proj``, ``text_projection``   ``visual_projection``, ``text_projection``, transposed
``ln_final``                           ``text_model.final_layer_norm``
=====================================  =========================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from sd_experiments.model.weights import load_tokenizer, refusing
from sd_experiments.reward.plain_weights import only_file, read_plain_weights
from sd_experiments.reward.published import listed
from sd_experiments.reward.rewards import CLIPScore, ImageRewardModel, Images
from socft.checks import require
from socft.reward import PerSample

_WIDE_HEADS = 80  # of the vision transformer of ViT-H; all others have 64
_RENAMED = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
_JOINED = re.compile(r"\.attn\.in_proj_(weight|bias)$")


def pick_score(path: str | Path) -> CLIPScore:
    """PickScore from a local directory of its CLIP with tokenizer.

    Raises:
        InvalidProblem: as for `CLIPScore.load`.
    """
    score = CLIPScore.load(path)
    score.scale = float(score.model.logit_scale.detach().double().exp())
    return score


def human_preference_score(path: str | Path) -> CLIPScore:
    """HPSv2.1 from a local directory with its one ``*.pt`` and the tokenizer of a CLIP.

    Raises:
        InvalidProblem: a file is missing, damaged or another network's.
    """
    folder = Path(path)
    file = only_file(folder, "*.pt", "HPS_v2.1_compressed.pt of xswu/HPSv2 on the Hugging Face hub")
    weights, tokenizer = rename_open_clip(read_plain_weights(file)), load_tokenizer(folder)
    with refusing(f"the CLIP in {file}"):
        model = CLIPModel(_config(weights, tokenizer))
        expected = model.state_dict().keys()
        wrong = sorted(expected ^ weights.keys())
        require(not wrong, f"{file} lacks or has no use for {listed(wrong)}; it is no HPSv2.")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        return CLIPScore(model, tokenizer, padded=True)


class AestheticScore(nn.Module):
    """How much people like a picture, of 10, whatever the prompt; differentiable in the images.

    Args:
        clip: sees the pictures.
        head: linear layers of its embedding, one number at the end.
    """

    def __init__(self, clip: CLIPScore, head: nn.Module):
        super().__init__()
        self.clip = clip
        self.head = head.requires_grad_(False).eval()

    @classmethod
    def load(cls, path: str | Path) -> AestheticScore:
        """From a local directory of a CLIP ViT-L/14 and the one ``*.pth`` of the linear layers.

        Raises:
            InvalidProblem: a file is missing, damaged or another network's.
        """
        folder = Path(path)
        file = only_file(folder, "*.pth", "sac+logos+ava1-l14-linearMSE.pth, the linear layers,")
        clip, weights = CLIPScore.load(folder), read_plain_weights(file)
        with refusing(f"the linear layers in {file}"):
            head = _linear_layers(weights)
        ends = _ends(head)
        wide = clip.model.visual_projection.out_features
        require(
            ends == (wide, 1),
            f"the linear layers in {file} map {ends[0]} numbers to {ends[1]}, and the CLIP gives"
            f" {wide}; give those of this CLIP.",
        )
        return cls(clip, head)

    def forward(self, images: Images, prompt: str) -> PerSample:
        weight = next(self.head.parameters())
        return self.head(self.clip.embedding(images).to(weight))[:, 0].to(images)


class WeightedSum(nn.Module):
    """A weighted sum of rewards.

    Args:
        terms: weights and rewards.
    """

    def __init__(self, terms: Sequence[tuple[float, ImageRewardModel]]):
        super().__init__()
        require(len(terms) > 0, "a sum of no rewards; give it terms.")
        self.terms = tuple(terms)
        self.models = nn.ModuleList(model for _, model in terms if isinstance(model, nn.Module))

    def forward(self, images: Images, prompt: str) -> PerSample:
        parts = [weight * model(images, prompt).to(images) for weight, model in self.terms]
        return torch.stack(parts).sum(0)


def rename_open_clip(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of open_clip under the names of transformers."""
    weights: dict[str, Tensor] = {}
    for key, value in published.items():
        if key == "attn_mask":
            continue
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        joined = _JOINED.search(key)
        if joined:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                weights[f"{key[: joined.start()]}.self_attn.{name}_proj.{joined[1]}"] = part
        else:
            weights[key] = value.T.contiguous() if key in _TRANSPOSED else value
    return weights


def _config(weights: Mapping[str, Tensor], tokenizer: Any) -> CLIPConfig:
    """Sizes, from the weights' shapes."""
    patches = weights["vision_model.embeddings.patch_embedding.weight"]
    places = len(weights["vision_model.embeddings.position_embedding.weight"])
    words = weights["text_model.embeddings.token_embedding.weight"]
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {
        "vocab_size": len(words),
        "max_position_embeddings": len(weights["text_model.embeddings.position_embedding.weight"]),
    }
    vision = {
        "image_size": patches.shape[-1] * math.isqrt(places - 1),
        "patch_size": patches.shape[-1],
    }
    return CLIPConfig(
        text_config=_transformer(weights, "text_model", words.shape[1]) | text | ends,
        vision_config=_transformer(weights, "vision_model", len(patches)) | vision,
        projection_dim=len(weights["visual_projection.weight"]),
    )


def _transformer(weights: Mapping[str, Tensor], part: str, width: int) -> dict[str, Any]:
    layers = {name.split(".")[3] for name in weights if name.startswith(f"{part}.encoder.layers.")}
    head = _WIDE_HEADS if width % _WIDE_HEADS == 0 else 64
    return {
        "hidden_size": width,
        "intermediate_size": len(weights[f"{part}.encoder.layers.0.mlp.fc1.weight"]),
        "num_hidden_layers": len(layers),
        "num_attention_heads": max(1, width // head),
        "hidden_act": "gelu",
    }


def _ends(head: nn.Sequential) -> tuple[int, int]:
    """Numbers that go in and come out."""
    first, last = (next(iter(layer.parameters())) for layer in (head[0], head[-1]))
    return first.shape[1], last.shape[0]


def _linear_layers(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Linear layers in the order of their numbers; the dropout between them is of training."""
    numbers = sorted({int(name.split(".")[1]) for name in weights})
    layers = []
    for number in numbers:
        weight, bias = (weights[f"layers.{number}.{kind}"] for kind in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return nn.Sequential(*layers)
