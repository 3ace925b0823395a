"""Low-rank layers as files that diffusers' pipelines load,
``pipeline.load_lora_weights(directory)``.

The tensors are safetensors under the network's names; rank, alpha and targets are in the file's
header, without which a pipeline would take alpha to be the rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig
from peft.utils.save_and_load import get_peft_model_state_dict

from sd_experiments.model.keys import LORA, require_keys
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.policy import ADAPTER, LoRA
from sd_experiments.tensor_file import encode_tensors, read_sealed_tensors
from socft.checks import require
from socft.files import write_atomically

REMEDY = (
    "give a directory that save_lora wrote; layers of others are merged into a pipeline before it"
    " is saved: load_lora_weights, fuse_lora, unload_lora_weights and save_pretrained"
)


def save_lora(lora: LoRA, directory: str | Path) -> Path:
    """Write the low-rank layers; returns the file."""
    part = f"{lora.base.part}."
    settings = {
        part + name: sorted(value) if isinstance(value, set) else value
        for name, value in lora.config.to_dict().items()
    }
    header = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True)}
    layers = get_peft_model_state_dict(lora.base.denoiser.network, adapter_name=ADAPTER)
    file = Path(directory) / LORA_WEIGHT_NAME_SAFE
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {part + name: value for name, value in layers.items()}
    write_atomically(file, encode_tensors(tensors, header))
    return file


def load_lora(base: LatentModel, directory: str | Path) -> LoRA:
    """Add low-rank layers from a file of `save_lora` to a network that has none.

    Raises:
        InvalidProblem: no such file, a file that does not hold what was written, layers that are
            not exactly the network's, or a kind of adapter that is more than these.
    """
    file = Path(directory) / LORA_WEIGHT_NAME_SAFE
    tensors, header = read_sealed_tensors(file, REMEDY)
    part = f"{base.part}."
    tensors = {name.removeprefix(part): value for name, value in tensors.items()}
    config = _config(header, part, file)
    lora = LoRA.of_config(base, config)
    _copy(lora, tensors, file)
    return lora


def _config(header: dict[str, str], part: str, file: Path) -> LoraConfig:
    """What the header says of ranks, strengths and targets."""
    require(
        LORA_ADAPTER_METADATA_KEY in header,
        f"{file} does not say its alpha; save it again with the adapter's metadata.",
    )
    stored: dict[str, Any] = json.loads(header[LORA_ADAPTER_METADATA_KEY])
    settings = {name.removeprefix(part): value for name, value in stored.items()}
    require_keys(settings, LoraConfig, LORA, f"the header of {file}")
    honoured = {name for name, key in LORA.items() if key.verdict == "honoured"}
    return LoraConfig(**{name: settings[name] for name in honoured if name in settings})


@torch.no_grad()
def _copy(lora: LoRA, tensors: dict[str, torch.Tensor], file: Path) -> None:
    own = {
        name.replace("/", ".").replace(f".{ADAPTER}.", "."): p for name, p in lora.weights.items()
    }
    strange, missing = sorted(tensors.keys() - own.keys()), sorted(own.keys() - tensors.keys())
    require(
        not strange,
        f"{str(file)!r} has {len(strange)} layers that the network lacks, such as {strange[:1]};"
        " load the right network.",
    )
    require(
        not missing,
        f"{str(file)!r} lacks {len(missing)} layers of the network, such as {missing[:1]}; it is"
        " not complete.",
    )
    for name, p in own.items():
        found = tensors[name]
        require(
            found.shape == p.shape,
            f"{name} has shape {tuple(found.shape)} in {str(file)!r} and {tuple(p.shape)} in the"
            " network; load the right network.",
        )
        p.copy_(found)
