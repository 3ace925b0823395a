r"""ImageReward (Xu et al. 2023, arXiv 2304.05977): how well people find that an image shows its
prompt; differentiable.

A vision transformer turns the image into states; a BERT-like text encoder reads the prompt and
attends to those states in every layer; five linear layers without activations map the state of its
first token to a number s, and the reward is

.. math:: r = (s - \mu) / \sigma, \qquad \mu = 0.16717, \quad \sigma = 1.03334,

standardised on the prompts of its paper. The two encoders are the BLIP ones of transformers, so the
published weights need their keys renamed and nothing else:

==========================================  ==================================
published                                   here
==========================================  ==================================
``blip.visual_encoder.cls_token``           ``vision.embeddings.class_embedding``
``blip.visual_encoder.pos_embed``           ``vision.embeddings.position_embedding``
``blip.visual_encoder.patch_embed.proj``    ``vision.embeddings.patch_embedding``
``blip.visual_encoder.blocks.i.norm1``      ``vision.encoder.layers.i.layer_norm1``
``blip.visual_encoder.blocks.i.attn.qkv``   ``vision.encoder.layers.i.self_attn.qkv``
``blip.visual_encoder.blocks.i.attn.proj``  ``vision.encoder.layers.i.self_attn.projection``
``blip.visual_encoder.norm``                ``vision.post_layernorm``
``blip.text_encoder``                       ``text``
``mlp.layers``                              ``head``
``blip.vision_proj``, ``blip.text_proj``    not used by the reward
==========================================  ==================================
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from sd_experiments.model.weight_files import COPY
from sd_experiments.model.weights import refusing, require_json
from sd_experiments.reward.plain_weights import read_plain_weights
from sd_experiments.reward.published import (
    listed,
    published_config,
    published_text,
    rename_published_weights,
)
from sd_experiments.reward.sizes import SAVE, ImageRewardConfig, present
from sd_experiments.tensor_file import encode_tensors, read_tensors
from socft.checks import require
from socft.files import write_atomically

BERT = "bert-base-uncased"
REMEDY = (
    "reward.path is to hold ImageReward.pt and med_config.json of THUDM/ImageReward on the Hugging"
    f" Face hub, and a folder {BERT} with the tokenizer of that name."
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class PromptTokens:
    """Token numbers of prompts and which of them are not padding."""

    ids: Int[Tensor, "batch tokens"]
    mask: Int[Tensor, "batch tokens"]

    def expand(self, batch: int) -> PromptTokens:
        """One prompt repeated for a batch."""
        return PromptTokens(self.ids.expand(batch, -1), self.mask.expand(batch, -1))

    def repeated(self, times: int) -> PromptTokens:
        """Every prompt several times in a row."""
        return PromptTokens(
            self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0)
        )


class ImageReward(nn.Module):
    """The reward of images for prompts.

    Args:
        config: its sizes.
        tokenizer: of a vocabulary of exactly ``config.vocabulary`` tokens.
    """

    def __init__(self, config: ImageRewardConfig, tokenizer: BertTokenizer):
        super().__init__()
        _require_vocabulary(tokenizer, config.vocabulary, "the tokenizer")
        self.config = config
        self.tokenizer = tokenizer
        self.vision = BlipVisionModel(_vision_config(config))
        self.text = BlipTextModel(_text_config(config, tokenizer), add_pooling_layer=False)
        self.head = _head(config)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], prompts: str | Sequence[str]
    ) -> Float[Tensor, " batch"]:
        """Rewards of images with values in [0, 1], for one prompt or one prompt each;
        differentiable in the images.

        Raises:
            InvalidProblem: the numbers of images and prompts differ, or an image has no three
                colours.
        """
        tokens = self.tokens([prompts] if isinstance(prompts, str) else prompts)
        if isinstance(prompts, str):
            tokens = tokens.expand(len(images))
        require(
            len(images) == len(tokens.ids),
            f"{len(images)} images and {len(tokens.ids)} prompts; give one prompt per image.",
        )
        return self.score(self.prepare(images), tokens)

    def tokens(self, prompts: Sequence[str]) -> PromptTokens:
        """Prompts as the text encoder reads them."""
        options: dict[str, Any] = {
            "padding": "max_length",
            "truncation": True,
            "max_length": self.config.tokens,
        }
        found = self.tokenizer(list(prompts), return_tensors="pt", **options)
        return PromptTokens(
            found["input_ids"].to(self._weight.device),
            found["attention_mask"].to(self._weight.device),
        )

    def prepare(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 3 side side"]:
        """What the vision transformer sees: short side resized, middle cropped, colours normalised;
        differentiable.
        """
        require(
            images.ndim == 4 and images.shape[1] == 3,
            f"images of shape {tuple(images.shape)}; give (batch, 3, height, width).",
        )
        side, shape = self.config.side, images.shape[2:]
        height, width = (int(side * length / min(shape)) for length in shape)
        resized = F.interpolate(
            images, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        top, left = round((height - side) / 2), round((width - side) / 2)
        crop = resized[..., top : top + side, left : left + side].to(self._weight)
        return (crop - crop.new_tensor(MEAN)[:, None, None]) / crop.new_tensor(DEVIATION)[
            :, None, None
        ]

    def score(
        self, prepared: Float[Tensor, "batch 3 side side"], tokens: PromptTokens
    ) -> Float[Tensor, " batch"]:
        """Rewards of prepared images for tokenised prompts."""
        return self.read(self.see(prepared), tokens)

    def see(
        self, prepared: Float[Tensor, "batch 3 side side"]
    ) -> Float[Tensor, "batch patches_plus_1 width"]:
        """What the vision transformer makes of prepared images: a state of the whole, then one per
        patch, row by row.
        """
        return self.vision(pixel_values=prepared).last_hidden_state

    def read(
        self, seen: Float[Tensor, "batch patches_plus_1 width"], tokens: PromptTokens
    ) -> Float[Tensor, " batch"]:
        """Rewards of images that were seen for tokenised prompts."""
        return (
            self.head(self.compare(seen, tokens))[:, 0] - self.config.mean
        ) / self.config.deviation

    def compare(
        self, seen: Float[Tensor, "batch patches_plus_1 width"], tokens: PromptTokens
    ) -> Float[Tensor, "batch text_width"]:
        """State of the text encoder's first token, which has read the prompt and looked at the
        image.
        """
        everything = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        return self.text(
            input_ids=tokens.ids,
            attention_mask=tokens.mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=everything,
            is_decoder=False,
        ).last_hidden_state[:, 0]

    @property
    def _weight(self) -> Tensor:
        """A weight, for its dtype and device."""
        return next(self.head.parameters())

    def save(self, directory: Path) -> None:
        """Write weights, sizes and tokenizer; read them back with `restore`."""
        directory.mkdir(parents=True, exist_ok=True)
        weights = encode_tensors(self.state_dict(), {"format": "pt"})
        config = json.dumps(dataclasses.asdict(self.config), indent=2) + "\n"
        write_atomically(directory / "model.safetensors", weights)
        write_atomically(directory / "config.json", config.encode())
        self.tokenizer.save_pretrained(directory / "tokenizer")

    @classmethod
    def restore(cls, directory: Path | str) -> ImageReward:
        """A saved ImageReward, frozen and in evaluation mode; nothing is downloaded.

        Raises:
            InvalidProblem: a file is missing, or the weights do not fit the sizes.
        """
        directory = Path(directory)
        config = ImageRewardConfig.read(directory / "config.json")
        file = present(directory / "model.safetensors")
        weights, _ = read_tensors(file, COPY)
        return _filled(config, _tokenizer(directory / "tokenizer"), weights, file)

    @classmethod
    def load(cls, directory: Path | str) -> ImageReward:
        """The published ImageReward from a local directory, frozen and in evaluation mode; nothing
        is downloaded.

        Args:
            directory: holds ``ImageReward.pt`` and ``med_config.json`` as published, and a folder
                ``bert-base-uncased`` with that tokenizer's files (``vocab.txt`` or
                ``tokenizer.json``).

        Raises:
            InvalidProblem: a file is missing, a key is missing or unexpected, or the vocabulary has
                another size.
        """
        directory = Path(directory)
        absent = [
            str(directory / name)
            for name in ("ImageReward.pt", "med_config.json", BERT)
            if not (directory / name).exists()
        ]
        require(not absent, f"{', '.join(absent)} not found; {REMEDY}")
        file = present(directory / "ImageReward.pt")
        text = published_text(directory / "med_config.json")
        tokenizer = _tokenizer(directory / BERT)
        tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
        weights = rename_published_weights(read_plain_weights(file))
        return _filled(published_config(weights, text, file), tokenizer, weights, file)


def _vision_config(config: ImageRewardConfig) -> BlipVisionConfig:
    return BlipVisionConfig(
        hidden_size=config.vision.width,
        intermediate_size=config.vision.hidden,
        num_hidden_layers=config.vision.layers,
        num_attention_heads=config.vision.heads,
        image_size=config.side,
        patch_size=config.patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )


def _text_config(config: ImageRewardConfig, tokenizer: BertTokenizer) -> BlipTextConfig:
    special: dict[str, Any] = {
        name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "sep_token_id")
    }
    return BlipTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.text.width,
        encoder_hidden_size=config.vision.width,
        intermediate_size=config.text.hidden,
        num_hidden_layers=config.text.layers,
        num_attention_heads=config.text.heads,
        max_position_embeddings=config.positions,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        is_decoder=True,  # builds the cross-attention; the reward calls it as an encoder
        **special,
    )


def _head(config: ImageRewardConfig) -> nn.Sequential:
    """Linear layers, the first three followed by dropout as in the published model, whose keys
    count the dropouts.
    """
    drop = (2 * config.dropout, 2 * config.dropout, config.dropout)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(
        zip((config.text.width, *config.head[:-1]), config.head, strict=True)
    ):
        layers.append(nn.Linear(before, after))
        if i < min(len(drop), len(config.head) - 1):
            layers.append(nn.Dropout(drop[i]))
    return nn.Sequential(*layers)


def _filled(
    config: ImageRewardConfig, tokenizer: BertTokenizer, weights: Mapping[str, Tensor], file: Path
) -> ImageReward:
    """The model of a configuration with the weights of a file, every key accounted for."""
    _require_vocabulary(tokenizer, config.vocabulary, f"the tokenizer beside {file}")
    sizes = f"the sizes that go with {file}"
    deepest = max(config.vision.layers, config.text.layers)
    require(deepest <= len(weights), f"{sizes} say {deepest} layers; {SAVE}.")
    with refusing(sizes), torch.device("meta"):  # no memory for what does not fit
        expected = ImageReward(config, tokenizer).state_dict()
    missing, unexpected = (
        sorted(expected.keys() - weights.keys()),
        sorted(weights.keys() - expected.keys()),
    )
    require(
        not missing,
        f"{file} lacks {listed(missing)}; it is not the ImageReward its configuration describes.",
    )
    require(
        not unexpected,
        f"{file} has the unknown {listed(unexpected)}; it is not the ImageReward its configuration"
        " describes.",
    )
    for name, value in expected.items():
        found, wanted = tuple(weights[name].shape), tuple(value.shape)
        require(
            found == wanted,
            f"{name} in {file} has shape {found}, not {wanted}; it is not what its configuration"
            " describes.",
        )
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    require(not bad, f"{file} has numbers that are not finite under {listed(bad)}; {COPY}.")
    model = ImageReward(config, tokenizer)
    model.load_state_dict(dict(weights))
    return model.eval().requires_grad_(False)


def _tokenizer(directory: Path) -> BertTokenizer:
    """A tokenizer from a directory; a missing one would silently become a tokenizer of five
    tokens.
    """
    files = [directory / "vocab.txt", directory / "tokenizer.json"]
    require(
        any(file.is_file() for file in files),
        f"{directory} holds neither vocab.txt nor tokenizer.json; copy the tokenizer there.",
    )
    require_json(directory)
    with refusing(f"the tokenizer in {directory}"):
        tokenizer = BertTokenizer.from_pretrained(str(directory), local_files_only=True)
        tokenizer(["a"], padding=True, truncation=True)
        return tokenizer


def _require_vocabulary(tokenizer: BertTokenizer, size: int, what: str) -> None:
    require(
        len(tokenizer) == size,
        f"{what} knows {len(tokenizer)} tokens and the model {size}; use the model's own"
        " tokenizer.",
    )


def tokenizer_of(words: Sequence[str]) -> BertTokenizer:
    """BERT's tokenizer of a vocabulary, with the two tokens BLIP adds."""
    with tempfile.TemporaryDirectory() as folder:
        content = "\n".join(words) + "\n"
        (Path(folder) / "vocab.txt").write_text(content, encoding="utf-8")
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer
