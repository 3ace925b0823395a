"""Files of tensors, safetensors, whose header holds a digest of all they say.

A flipped bit of a weight is a weight like any other: only the digest tells.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from socft.checks import InvalidProblem, require
from socft.files import DIGEST, one_line

Header = dict[str, str]


def encode_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Tensors and texts as a file with their digest."""
    copied = {name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}
    return save(copied, {**header, DIGEST: _digest(copied, header)})


def read_tensors(file: Path, remedy: str) -> tuple[dict[str, Tensor], Header]:
    """Tensors and header of any file of safetensors, as copies: a file that is written again must
    not reach into them.

    Args:
        remedy: what to do about damage, for the message.

    Raises:
        InvalidProblem: it does not exist, or is cut off or otherwise no such file.
    """
    require(file.is_file(), f"{file} does not exist; {remedy}.")
    try:
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
            return tensors, stored.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InvalidProblem(f"{file} is damaged ({one_line(str(error))}); {remedy}.") from error


def read_sealed_tensors(file: Path, remedy: str) -> tuple[dict[str, Tensor], Header]:
    """Tensors and header of a file of `encode_tensors`.

    Raises:
        InvalidProblem: see `read_tensors`; or it is not what was written.
    """
    tensors, header = read_tensors(file, remedy)
    expected = header.pop(DIGEST, None)
    require(expected is not None, f"{file} lacks its {DIGEST}; {remedy}.")
    require(_digest(tensors, header) == expected, f"{file} is not what was written; {remedy}.")
    return tensors, header


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, each in sorted(tensors.items()):
        found.update(f"{name}\0{each.dtype}\0{tuple(each.shape)}\0".encode())
        found.update(each.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
