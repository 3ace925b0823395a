r"""From a prompt to what the network is told: the text encoders of Stable Diffusion 1.x and 2.x,
and the pair of XL.

A network of XL reads the states of two encoders side by side, each from its last layer but one, and
is told besides the pooled state of the second one and the size of the picture, uncropped. No
negative prompt is told as zeros where the pipeline says so (``force_zeros_for_empty_prompt``).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig

from sd_experiments.model.keys import TEXT_ENCODER, require_keys
from socft.checks import require

Size = tuple[int, int]
"""Height and width of a picture in pixels."""


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the network reads it, or those of several samples.

    Attributes:
        text: states of the tokens, shape (rows, tokens, width); a prompt has one row.
        added: what else the network is told, by the names it knows, in as many rows; nothing but
            for XL.
    """

    text: Float[Tensor, "rows tokens width"]
    added: Mapping[str, Float[Tensor, "rows _"]] = dataclasses.field(default_factory=dict)

    def rows(self, count: int) -> EncodedPrompt:
        """The same for several samples."""
        return EncodedPrompt(
            self.text.expand(count, -1, -1),
            {name: each.expand(count, -1) for name, each in self.added.items()},
        )

    def joined(self, other: EncodedPrompt) -> EncodedPrompt:
        """These samples, then others."""
        return EncodedPrompt(
            torch.cat([self.text, other.text]),
            {name: torch.cat([each, other.added[name]]) for name, each in self.added.items()},
        )

    def to(self, like: Tensor) -> EncodedPrompt:
        """On the device and in the dtype of a tensor."""
        return EncodedPrompt(
            self.text.to(like), {name: each.to(like) for name, each in self.added.items()}
        )


class PromptEncoder(abc.ABC):
    """Frozen text encoders with their tokenizers.

    Attributes:
        encoders: the networks.
    """

    encoders: tuple[nn.Module, ...]

    @property
    @abc.abstractmethod
    def width(self) -> int | None:
        """Width of the states of a token, where it is known."""

    @abc.abstractmethod
    def encode(self, prompt: str, size: Size, negative: bool = False) -> EncodedPrompt:
        """What the network is told of a picture of this size.

        Args:
            negative: whether guidance leads away from it; an empty one is none.

        Raises:
            InvalidProblem: the prompt does not fit into the tokens an encoder reads.
        """


class SinglePromptEncoder(PromptEncoder):
    """The text encoder of 1.x and 2.x: the last hidden state.

    Raises:
        InvalidProblem: tokenizer and encoder do not fit together.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any):
        require_keys(encoder.config, CLIPTextConfig, TEXT_ENCODER, "the text encoder")
        _require_readable(tokenizer, encoder.config)
        self.encoder = encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.encoders = (self.encoder,)

    @property
    def width(self) -> int | None:
        return getattr(self.encoder.config, "hidden_size", None)

    @torch.no_grad()
    def encode(self, prompt: str, size: Size, negative: bool = False) -> EncodedPrompt:
        tokens = self.tokens(prompt)
        masked = getattr(self.encoder.config, "use_attention_mask", False)
        device = next(self.encoder.parameters()).device
        mask = tokens.attention_mask.to(device) if masked else None
        return EncodedPrompt(self.encoder(tokens.input_ids.to(device), attention_mask=mask)[0])

    @torch.no_grad()
    def penultimate(self, prompt: str, longest: int | None = None) -> tuple[Tensor, Tensor]:
        """States of the last layer but one, and the encoder's first output, a pooled state if it
        has a projection.

        Args:
            longest: tokens of longer prompts are left out from here on, where another encoder reads
                them; by default these are refused.
        """
        device = next(self.encoder.parameters()).device
        found = self.encoder(
            self.tokens(prompt, longest).input_ids.to(device), output_hidden_states=True
        )
        return found.hidden_states[-2], found[0]

    @torch.no_grad()
    def pooled(self, prompt: str, longest: int) -> Tensor:
        """The pooled state of an encoder without a projection; ``longest`` as for `penultimate`."""
        device = next(self.encoder.parameters()).device
        return self.encoder(self.tokens(prompt, longest).input_ids.to(device)).pooler_output

    def tokens(self, prompt: str, cut: int | None = None) -> Any:
        """The tokens of a prompt, padded to all that the encoder reads. A word that was learnt by
        textual inversion stands for all of its tokens.

        Args:
            cut: leave out the tokens from here on; by default longer prompts are refused.
        """
        longest = self.tokenizer.model_max_length if cut is None else cut
        words: Any = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, self.tokenizer)
        count = len(self.tokenizer(words).input_ids)
        require(
            count <= longest or cut is not None,
            f"the prompt {prompt!r} takes {count} tokens; the network reads {longest}: shorten it.",
        )
        return self.tokenizer(
            words, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        )


class DualPromptEncoder(PromptEncoder):
    """The text encoders of XL.

    Args:
        first: of 1.x's kind.
        second: one with a projection.
        zeros: whether an empty negative prompt is told as zeros.
    """

    def __init__(self, first: SinglePromptEncoder, second: SinglePromptEncoder, zeros: bool = True):
        self.first, self.second, self.zeros = first, second, zeros
        self.encoders = (*first.encoders, *second.encoders)

    @property
    def width(self) -> int | None:
        widths = (self.first.width, self.second.width)
        return None if None in widths else sum(width for width in widths if width is not None)

    @property
    def pooled_width(self) -> int:
        """Width of the pooled state."""
        config: Any = self.second.encoder.config
        return config.projection_dim

    def encode(self, prompt: str, size: Size, negative: bool = False) -> EncodedPrompt:
        parts = [each.penultimate(prompt) for each in (self.first, self.second)]
        text, pooled = torch.cat([states for states, _ in parts], 2), parts[1][1]
        if self.zeros and negative and not prompt:
            text, pooled = torch.zeros_like(text), torch.zeros_like(pooled)
        height, width = size
        return EncodedPrompt(
            text,
            {
                "text_embeds": pooled,
                "time_ids": pooled.new_tensor([[height, width, 0, 0, height, width]]),
            },
        )


def prompt_encoder(pipeline: Any) -> PromptEncoder:
    """The text encoders of a diffusers pipeline, frozen in place.

    Raises:
        InvalidProblem: it lacks one, or it does not fit its tokenizer.
    """
    require(
        getattr(pipeline, "text_encoder", None) is not None,
        "the pipeline has no text_encoder; give one from text to image, not a refiner of pictures.",
    )
    first = SinglePromptEncoder(pipeline.text_encoder, pipeline.tokenizer)
    if getattr(pipeline, "text_encoder_2", None) is None:
        return first
    return DualPromptEncoder(
        first,
        SinglePromptEncoder(pipeline.text_encoder_2, pipeline.tokenizer_2),
        pipeline.config["force_zeros_for_empty_prompt"],
    )


def _require_readable(tokenizer: Any, text: Any) -> None:
    vocabulary = getattr(text, "vocab_size", len(tokenizer))
    require(
        len(tokenizer) == vocabulary,
        f"the tokenizer knows {len(tokenizer)} tokens and the text encoder {vocabulary}; load both"
        " from one directory.",
    )
    longest = getattr(text, "max_position_embeddings", tokenizer.model_max_length)
    require(
        tokenizer.model_max_length <= longest,
        f"the tokenizer gives up to {tokenizer.model_max_length:g} tokens and the text encoder"
        f" reads {longest}; copy the tokenizer's tokenizer_config.json too.",
    )
