"""Files of a saved pipeline, refused unless every weight and every word is there.

diffusers and transformers fill in missing weights with random numbers and a mere warning, and a
tokenizer without its merges still reads every prompt, letter by letter; a run with either would go
on for days. Only safetensors are read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sd_experiments.manifest import MANIFEST, verify
from socft.checks import InvalidProblem, require
from socft.files import one_line, read_json

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
COPY = "copy it again"
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
    if (folder / MANIFEST).is_file():
        verify(folder, COPY)
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
    with refusing(f"the pipeline in {folder}"):
        loaded = kind.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, **options, **parts
        )
        return loaded.to(device)


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Files of others are read inside: whatever that raises is a sentence about ``what``, and the
    network is not asked, whatever a configuration says.
    """
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    except InvalidProblem:
        raise
    except Exception as error:
        said = one_line(f"{type(error).__name__}: {error}")
        raise InvalidProblem(f"{what} cannot be loaded ({said}); {COPY}.") from error
    finally:
        constants.HF_HUB_OFFLINE = before


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
    return index.is_file() and _object(index).get("_class_name") == XL


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
    with refusing(f"{file} with its config.json"):
        model, found = kind.from_pretrained(str(folder), **options)
    _require_none(found["missing_keys"], f"{file} lacks", "weights of the network")
    _require_none(found["unexpected_keys"], f"{file} has", "weights the network lacks")
    _require_none(
        [key for key, *_ in found["mismatched_keys"]], f"{file} has", "weights of another shape"
    )
    _require_none(_not_finite(model), f"{file} has", "weights that are not finite")
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
    require_json(folder)
    with refusing(f"the tokenizer in {folder}"):
        tokenizer: Any = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
        lost = unreachable_tokens(tokenizer)
        tokenizer(["a"], padding=True, truncation=True)
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
        read_json(file, COPY, strict=False)


def _object(file: Path) -> Mapping[str, Any]:
    """What a JSON file says by name."""
    found = read_json(file, COPY, strict=False)
    require(isinstance(found, dict), f"{file} is damaged: it is no JSON object; {COPY}.")
    return found


def _not_finite(model: nn.Module) -> list[str]:
    """Names of the weights with an entry that is no finite number."""
    return [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]


def _require_uncut(folder: Path, stem: str) -> Path:
    """The file of weights, or the index of its parts; each is as long as its header says."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    several = index.is_file() and not single.is_file()
    for file in _parts(index) if several else [single]:
        require(file.is_file(), f"{file} does not exist; copy the weights there, as safetensors.")
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise InvalidProblem(f"{file} is damaged ({one_line(str(error))}); {COPY}.") from error
    return index if several else single


def _parts(index: Path) -> list[Path]:
    """The files of weights that an index names."""
    names: Any = _object(index).get("weight_map")
    whole = isinstance(names, dict) and all(isinstance(each, str) for each in names.values())
    require(whole, f"{index} is damaged: it maps no weights to files; {COPY}.")
    return sorted({index.parent / name for name in names.values()})


def _require_none(keys: Iterable[str], what: str, which: str) -> None:
    names = sorted(keys)
    require(
        not names,
        f"{what} {len(names)} {which}, such as {names[:1]}; it is another network's or not"
        " complete: copy it again.",
    )
