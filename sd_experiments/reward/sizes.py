"""Sizes of an ImageReward, and the file that says them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from socft.checks import require
from socft.files import read_json
from socft.schema import structured

SAVE = "save the model again"


@dataclasses.dataclass(frozen=True)
class TransformerSize:
    """Size of a transformer.

    Attributes:
        width: of its states.
        hidden: width inside the feed-forward blocks.
        layers: number of blocks.
        heads: attention heads per block.
    """

    width: int
    hidden: int
    layers: int
    heads: int

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            require(value >= 1, f"{name} = {value}; it must be at least 1.")
        require(
            self.width % self.heads == 0,
            f"width = {self.width} is no multiple of heads = {self.heads}; change one of them.",
        )


@dataclasses.dataclass(frozen=True)
class ImageRewardConfig:
    """Sizes of an ImageReward; the defaults are the published ones.

    Attributes:
        vision: the vision transformer.
        text: the text encoder.
        side: pixels of the square image it sees.
        patch: pixels of a square patch.
        vocabulary: number of tokens.
        positions: longest token sequence its weights allow.
        tokens: length prompts are padded or cut to.
        head: output widths of the linear layers, 1 at the end.
        dropout: of the text encoder and, in training, between the first linear layers.
        mean: mu, subtracted from the number.
        deviation: sigma, by which it is divided.
    """

    vision: TransformerSize = TransformerSize(1024, 4096, 24, 16)
    text: TransformerSize = TransformerSize(768, 3072, 12, 12)
    side: int = 224
    patch: int = 16
    vocabulary: int = 30524
    positions: int = 512
    tokens: int = 35
    head: tuple[int, ...] = (1024, 128, 64, 16, 1)
    dropout: float = 0.1
    mean: float = 0.16717362830052426
    deviation: float = 1.0333394966054072

    def __post_init__(self) -> None:
        for name in ("side", "patch", "vocabulary", "positions", "tokens"):
            value = getattr(self, name)
            require(value >= 1, f"{name} = {value}; it must be at least 1.")
        require(min(self.head, default=1) >= 1, f"head = {self.head}; widths are at least 1.")
        require(
            0 <= self.dropout <= 0.5,
            f"dropout = {self.dropout}; give a probability up to 1/2, of which some layers take"
            " twice.",
        )
        require(math.isfinite(self.mean), f"mean = {self.mean}; it must be a finite number.")
        require(
            self.side % self.patch == 0,
            f"side = {self.side} is no multiple of patch = {self.patch}; change one of them.",
        )
        require(
            self.tokens <= self.positions,
            f"tokens = {self.tokens} exceed the {self.positions} positions; cut prompts earlier.",
        )
        require(
            len(self.head) >= 1 and self.head[-1] == 1,
            f"head = {self.head}; the last layer must give one number.",
        )
        require(
            0 < self.deviation < math.inf,
            f"deviation = {self.deviation}; it divides the reward and must be positive.",
        )

    @classmethod
    def read(cls, file: Path) -> ImageRewardConfig:
        """A configuration from a JSON file.

        Raises:
            InvalidProblem: the file is missing or says something else.
        """
        return structured(cls, read_json(file, SAVE), str(file), SAVE, complete=True)


def present(file: Path) -> Path:
    """A file, which must be there."""
    require(file.is_file(), f"{file} does not exist; give the directory that holds {file.name}.")
    return file
