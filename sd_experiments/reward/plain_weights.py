"""Files of weights that others pickled: tensors by name are read, and no code is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from socft.checks import InvalidProblem, require

INSIDE = "state_dict"
"""Under which a training's checkpoint holds the weights."""


def read_plain_weights(file: Path) -> Mapping[str, Tensor]:
    """The weights of a file, or those that a training's checkpoint holds.

    Raises:
        InvalidProblem: it holds anything else.
    """
    again = f"download {file.name} again"
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickles fail in any way
        raise InvalidProblem(f"{file} is not a file of plain weights; {again}.") from error
    if isinstance(found, Mapping) and isinstance(found.get(INSIDE), Mapping):
        found = found[INSIDE]
    plain = isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(each, Tensor) for name, each in found.items()
    )
    require(plain, f"{file} holds no weights by name; {again}.")
    return found


def only_file(folder: Path, pattern: str, what: str) -> Path:
    """The one file of a folder with such a name.

    Raises:
        InvalidProblem: there is none, or more.
    """
    found = sorted(folder.glob(pattern))
    require(
        len(found) == 1,
        f"{folder} holds {len(found)} files {pattern}; copy {what} there, and no other.",
    )
    return found[0]
