"""Which files of a folder hold the weights of its network.

Safetensors come first, then those of a variant, such as half precision (``.fp16.safetensors``), and
what only the older format has (``.bin``), of which tensors are read and nothing else. A network in
several files has an index of them.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from socft.checks import InvalidProblem, require
from socft.files import one_line, read_json

COPY = "copy it again"
PREFERRED = ("fp16", "bf16", "fp32")
"""Variants that are the same weights, rounded; another variant may be other weights."""
OLD = {"model": "pytorch_model"}
"""What transformers called its file before safetensors."""


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The weights of a network.

    Attributes:
        file: the file, or the index of several.
        variant: as which they were saved; None for the plain ones.
        safetensors: whether they are in that format.
    """

    file: Path
    variant: str | None = None
    safetensors: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """What ``from_pretrained`` must be told to read these."""
        return {"variant": self.variant, "use_safetensors": self.safetensors}


def find_weights(folder: Path, stem: str) -> WeightFiles:
    """The weights of a folder, each file of safetensors as long as its header says.

    Args:
        stem: name of the file without its ending.

    Raises:
        InvalidProblem: there are none, it cannot be told which, or one is missing or cut off.
    """
    found = _choice(folder, stem)
    for file in _parts(found.file) if found.file.suffix == ".json" else [found.file]:
        require(file.is_file(), f"{file} does not exist; copy the weights there, as safetensors.")
        if found.safetensors:
            _require_uncut(file)
    return found


def _choice(folder: Path, stem: str) -> WeightFiles:
    for ending, name in (("safetensors", stem), ("bin", OLD.get(stem, stem))):
        variants = {
            variant: file
            for file in sorted(folder.glob(f"{name}.*"), key=lambda each: each.suffix != ".json")
            for variant in [_variant(file.name, name, ending)]
            if variant is not None
        }
        if not variants:
            continue
        usual = [each for each in ("", *PREFERRED) if each in variants]
        require(
            bool(usual) or len(variants) == 1,
            f"{folder} holds the weights as {' and '.join(sorted(variants))}, which may differ;"
            " leave the files of one there.",
        )
        variant = (usual or [*variants])[0]
        return WeightFiles(variants[variant], variant or None, ending == "safetensors")
    return WeightFiles(folder / f"{stem}.safetensors")


def _variant(file: str, stem: str, ending: str) -> str | None:
    """The variant that a file of weights or an index of them is named after, "" for none; None for
    another file. A file comes before an index.
    """
    stem, ending = re.escape(stem), re.escape(ending)
    single = re.fullmatch(rf"{stem}(?:\.([\w-]+))?\.{ending}", file)
    index = re.fullmatch(rf"{stem}\.{ending}\.index(?:\.([\w-]+))?\.json", file)
    found = single or index
    return None if found is None else found[1] or ""


def _require_uncut(file: Path) -> None:
    try:
        with safe_open(file, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InvalidProblem(f"{file} is damaged ({one_line(str(error))}); {COPY}.") from error


def _parts(index: Path) -> list[Path]:
    """The files of weights that an index names."""
    content: Any = read_json(index, COPY, strict=False)
    names: Any = content.get("weight_map") if isinstance(content, dict) else None
    whole = isinstance(names, dict) and all(isinstance(each, str) for each in names.values())
    require(whole, f"{index} is damaged: it maps no weights to files; {COPY}.")
    return sorted({index.parent / name for name in names.values()})
