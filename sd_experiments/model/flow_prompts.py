"""From a prompt to what a transformer of Stable Diffusion 3 or FLUX is told.

Stable Diffusion 3 reads the states of two CLIPs side by side, each from its last layer but one,
padded with zeros to the width of T5's, then T5's; besides it is told both pooled states. FLUX reads
T5's states alone and is told the pooled state of its one CLIP. T5 has no mask: its states of the
very same words change with the number of rows, so train and sample with the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5Config

from sd_experiments.model.keys import T5, require_keys
from sd_experiments.model.prompts import EncodedPrompt, PromptEncoder, SinglePromptEncoder, Size
from socft.checks import require


@dataclasses.dataclass(frozen=True)
class LongText:
    """T5 with its tokenizer.

    Attributes:
        encoder: the network; None for rows of zeros, with which Stable Diffusion 3 does without.
        tokenizer: cuts prompts into its pieces.
        rows: of states.
        width: of a state.

    Raises:
        InvalidProblem: tokenizer and encoder do not fit together.
    """

    encoder: nn.Module | None
    tokenizer: Any
    rows: int
    width: int

    def __post_init__(self) -> None:
        if self.encoder is None:
            return
        config: Any = self.encoder.config
        require_keys(config, T5Config, T5, "the text encoder T5")
        require(
            len(self.tokenizer) <= config.vocab_size,
            f"the tokenizer of T5 knows {len(self.tokenizer)} tokens and the text encoder"
            f" {config.vocab_size}; load both from one directory.",
        )
        require(
            config.d_model == self.width,
            f"the network reads text of width {self.width} and T5 writes {config.d_model}; load"
            " both from one directory.",
        )
        self.encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def states(self, prompt: str, like: Tensor) -> Tensor:
        """States of the tokens, shape (1, rows, width).

        Raises:
            InvalidProblem: the prompt takes more rows.
        """
        if self.encoder is None:
            return like.new_zeros(1, self.rows, self.width)
        count = len(self.tokenizer(prompt).input_ids)
        require(
            count <= self.rows,
            f"the prompt {prompt!r} takes {count} tokens of T5, which writes {self.rows} rows:"
            " shorten it, or give model.max_sequence_length.",
        )
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=self.rows, truncation=True, return_tensors="pt"
        )
        device = next(self.encoder.parameters()).device
        return self.encoder(tokens.input_ids.to(device))[0]

    @property
    def encoders(self) -> tuple[nn.Module, ...]:
        """The network, if there is one."""
        return () if self.encoder is None else (self.encoder,)


class TriplePromptEncoder(PromptEncoder):
    """The text encoders of Stable Diffusion 3.

    Args:
        first: a CLIP with a projection, whose tokenizer says how much both CLIPs read.
        second: another.
        third: T5.
    """

    def __init__(self, first: SinglePromptEncoder, second: SinglePromptEncoder, third: LongText):
        self.first, self.second, self.third = first, second, third
        self.encoders = (*first.encoders, *second.encoders, *third.encoders)

    @property
    def width(self) -> int | None:
        return self.third.width

    @property
    def pooled_width(self) -> int:
        """Width of both pooled states."""
        configs: list[Any] = [each.encoder.config for each in (self.first, self.second)]
        return sum(config.projection_dim for config in configs)

    def encode(self, prompt: str, size: Size, negative: bool = False) -> EncodedPrompt:
        longest = self.first.tokenizer.model_max_length
        parts = [each.penultimate(prompt, longest) for each in (self.first, self.second)]
        words = torch.cat([states for states, _ in parts], 2)
        more = self.third.states(prompt, words)
        words = nn.functional.pad(words, (0, self.third.width - words.shape[2]))
        pooled = torch.cat([pooled for _, pooled in parts], 1)
        return EncodedPrompt(torch.cat([words, more.to(words)], 1), {"pooled_projections": pooled})


class PooledPromptEncoder(PromptEncoder):
    """The text encoders of FLUX.

    Args:
        first: a CLIP.
        second: T5.
    """

    def __init__(self, first: SinglePromptEncoder, second: LongText):
        self.first, self.second = first, second
        self.encoders = (*first.encoders, *second.encoders)

    @property
    def width(self) -> int | None:
        return self.second.width

    @property
    def pooled_width(self) -> int:
        """Width of the pooled state."""
        config: Any = self.first.encoder.config
        return config.hidden_size

    def encode(self, prompt: str, size: Size, negative: bool = False) -> EncodedPrompt:
        pooled = self.first.pooled(prompt, self.first.tokenizer.model_max_length)
        return EncodedPrompt(self.second.states(prompt, pooled), {"pooled_projections": pooled})
