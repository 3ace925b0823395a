"""Files of a saved pipeline, refused unless every weight and every word is there.

diffusers and transformers fill in missing weights with random numbers and a mere warning, and a
tokenizer without its merges still reads every prompt, letter by letter; a run with either would go
on for days. Only safetensors are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from socft.checks import InvalidProblem, require

MODELS: dict[str, tuple[Any, str]] = {
    "unet": (UNet2DConditionModel, "diffusion_pytorch_model"),
    "vae": (AutoencoderKL, "diffusion_pytorch_model"),
    "text_encoder": (CLIPTextModel, "model"),
}
"""Class and name of the file of every network of a pipeline."""
SECOND: dict[str, tuple[Any, str]] = {"text_encoder_2": (CLIPTextModelWithProjection, "model")}
"""The same for what XL has besides."""
XL = "StableDiffusionXLPipeline"
HUB = re.compile(r"[\w.-]+/[\w.-]+")
"""What a repository of the Hugging Face hub is called."""
DOWNLOAD = (
    "hf download --include '*/*.safetensors' --include '*.json' --include '*.txt' --exclude"
    " '*.fp16.*'"
)
END = "</w>"
"""Ends the last piece of a word in CLIP's vocabulary."""


def load_pipeline(
    directory: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The Stable Diffusion saved in a local directory (see `folder_of`); nothing is downloaded.

    Raises:
        InvalidProblem: a part is missing, damaged or another network's.
    """
    folder = folder_of(directory)
    index = (folder / "model_index.json").is_file()
    require(
        index,
        f"{str(folder)!r} holds no model_index.json; give the directory of a saved diffusers"
        " pipeline.",
    )
    extra_large = is_extra_large(folder)
    models, tokenizers = (
        (MODELS | SECOND, ("tokenizer", "tokenizer_2")) if extra_large else (MODELS, ("tokenizer",))
    )
    absent = [str(folder / part) for part in parts_of(folder) if not (folder / part).is_dir()]
    require(
        not absent, f"{', '.join(absent)} not found; copy what is missing of the pipeline there."
    )
    for part in parts_of(folder):
        require_json(folder / part)
    parts: dict[str, Any] = {
        name: load_whole(kind, folder / name, stem, dtype) for name, (kind, stem) in models.items()
    }
    parts |= {name: load_tokenizer(folder / name) for name in tokenizers}
    kind: Any = StableDiffusionXLPipeline if extra_large else StableDiffusionPipeline
    unused = (
        {"image_encoder", "feature_extractor"}
        if extra_large
        else {"safety_checker", "feature_extractor"}
    )
    options: dict[str, Any] = {} if extra_large else {"requires_safety_checker": False}
    parts |= dict.fromkeys(unused)
    return kind.from_pretrained(
        str(folder), dtype=dtype, local_files_only=True, **options, **parts
    ).to(device)


def folder_of(name: str | Path) -> Path:
    """A folder, or that of a repository ``owner/name`` of the Hugging Face hub in the cache of what
    was downloaded before.

    Raises:
        InvalidProblem: there is neither.
    """
    folder = Path(name)
    if folder.exists() or not HUB.fullmatch(str(name)):
        return folder
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except HFValidationError:
        return folder
    except LocalEntryNotFoundError as error:
        part: str | None = getattr(
            error, "snapshot_path", None
        )  # a repository has more files than a pipeline needs
        if part is not None:
            return Path(part)
        raise InvalidProblem(
            f"{str(name)!r} is no folder, and was not downloaded from the Hugging Face hub either;"
            f" give the folder of a saved diffusers pipeline, or run: {DOWNLOAD} {name}"
        ) from error


def parts_of(folder: Path) -> tuple[str, ...]:
    """The folders that a saved pipeline needs."""
    second = (*SECOND, "tokenizer_2") if is_extra_large(folder) else ()
    return (*MODELS, "tokenizer", *second, "scheduler")


def is_extra_large(folder: Path) -> bool:
    """Whether a saved pipeline says that it is an XL."""
    require_json(folder)
    index = folder / "model_index.json"
    return index.is_file() and json.loads(index.read_text()).get("_class_name") == XL


def load_whole(kind: Any, folder: Path, stem: str, dtype: torch.dtype = torch.float32) -> Any:
    """The network of a folder, each of its weights from the file.

    Args:
        kind: its class, of diffusers or transformers.
        stem: name of the file of weights without its ending.

    Raises:
        InvalidProblem: a file is missing or cut off, or it does not have exactly the weights the
            configuration asks for.
    """
    require(
        (folder / "config.json").is_file(),
        f"{folder / 'config.json'} does not exist; copy it there, beside the weights.",
    )
    file = _require_uncut(folder, stem)
    options: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    options["ignore_mismatched_sizes"] = True  # refused below, with their names
    try:
        model, found = kind.from_pretrained(str(folder), **options)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise InvalidProblem(
            f"{file} cannot be loaded: {one_line(error)}; copy it again with its config.json."
        ) from error
    _require_none(found["missing_keys"], f"{file} lacks", "weights of the network")
    _require_none(found["unexpected_keys"], f"{file} has", "weights the network lacks")
    _require_none(
        [key for key, *_ in found["mismatched_keys"]], f"{file} has", "weights of another shape"
    )
    return model


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer of a folder.

    Raises:
        InvalidProblem: a file is missing, or some words of the vocabulary cannot be put together.
    """
    learnt = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    present = learnt or (folder / "tokenizer.json").is_file()
    require(
        present,
        f"{folder} holds neither tokenizer.json nor vocab.json with merges.txt; copy the tokenizer"
        " there.",
    )
    tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    lost = unreachable_tokens(tokenizer)
    require(
        not lost,
        f"the tokenizer in {folder} has {len(lost)} tokens that no merge makes, such as {lost[:1]},"
        " and would read words letter by letter; its merges are not complete: copy it again.",
    )
    return tokenizer


def unreachable_tokens(tokenizer: Any) -> list[str]:
    """Tokens of a byte-pair vocabulary that are neither letters nor special nor the result of a
    merge.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    made = (
        {first + second for first, second in pairs}
        | set(tokenizer.get_added_vocab())
        | set(tokenizer.all_special_tokens)
    )
    return sorted(
        token for token in model["vocab"] if token not in made and len(token.removesuffix(END)) > 1
    )


def require_json(folder: Path) -> None:
    """That the JSON files of a folder are whole.

    Raises:
        InvalidProblem: one is not JSON.
    """
    for file in sorted(folder.glob("*.json")):
        try:
            json.loads(file.read_text())
        except ValueError as error:
            raise InvalidProblem(f"{file} is not JSON ({error}); copy it again.") from error


def one_line(error: Exception) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())[:300]


def _require_uncut(folder: Path, stem: str) -> Path:
    """The file of weights, or the index of its parts; each is as long as its header says."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    several = index.is_file() and not single.is_file()
    files = (
        sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
        if several
        else [single]
    )
    for file in files:
        require(file.is_file(), f"{file} does not exist; copy the weights there, as safetensors.")
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InvalidProblem(
                f"{file} is damaged ({one_line(error)}); copy it again."
            ) from error
    return index if several else single


def _require_none(keys: Iterable[str], what: str, which: str) -> None:
    names = sorted(keys)
    require(
        not names,
        f"{what} {len(names)} {which}, such as {names[:1]}; it is another network's or not"
        " complete: copy it again.",
    )
