"""Files of a saved pipeline, refused unless every weight and every word is there.

diffusers and transformers fill in missing weights with random numbers and a mere warning, and a
tokenizer without its merges still reads every prompt, letter by letter; a run with either would go
on for days. Of files in the older format only tensors are read, and no code is run.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import schedulers
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn
from transformers import CLIPTokenizer, T5Tokenizer

from sd_experiments.manifest import MANIFEST, verify
from sd_experiments.model.families import T5, PipelineFamily, family_of
from sd_experiments.model.weight_files import COPY, find_weights
from socft.checks import InvalidProblem, require
from socft.files import one_line, read_json

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
) -> Any:
    """The pipeline saved in a local directory (see `folder_of`); nothing is downloaded.

    Raises:
        InvalidProblem: a part is missing, damaged or another network's.
    """
    folder = folder_of(directory)
    require(
        not folder.is_file(),
        f"{str(folder)!r} is a file; give the directory of a saved diffusers pipeline, which a"
        " checkpoint in one file becomes by"
        " StableDiffusionPipeline.from_single_file(FILE).save_pretrained(DIRECTORY), or the like of"
        " its family.",
    )
    if (folder / MANIFEST).is_file():
        verify(folder, COPY)
    index = (folder / "model_index.json").is_file()
    require(
        index,
        f"{str(folder)!r} holds no model_index.json; give the directory of a saved diffusers"
        " pipeline.",
    )
    family = _family(folder)
    absent = [str(folder / part) for part in family.parts if not (folder / part).is_dir()]
    require(
        not absent, f"{', '.join(absent)} not found; copy what is missing of the pipeline there."
    )
    for part in family.parts:
        require_json(folder / part)
    parts: dict[str, Any] = {
        name: load_whole(kind, folder / name, stem, dtype)
        for name, (kind, stem) in family.networks.items()
    }
    parts |= {
        name: load_long_tokenizer(folder / name) if kinds == T5 else load_tokenizer(folder / name)
        for name, kinds in family.tokenizers.items()
    }
    parts |= dict.fromkeys(family.unused)
    with refusing(f"the pipeline in {folder}"):
        loaded = family.pipeline.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, **family.options, **parts
        )
        return loaded.to(device)


def random_pipeline(
    directory: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Any:
    """The pipeline that the configuration files of a folder describe, with random weights, of which
    memory and time do not depend; "meta" as the device takes no memory.

    Raises:
        InvalidProblem: a configuration or a tokenizer is missing, or another network's.
    """
    folder = folder_of(directory)
    index = _object(folder / "model_index.json")
    family = _family(folder)
    parts: dict[str, Any] = {
        name: load_long_tokenizer(folder / name) if kinds == T5 else load_tokenizer(folder / name)
        for name, kinds in family.tokenizers.items()
    }
    with torch.random.fork_rng(), torch.device(device):
        for name, (kind, _) in family.networks.items():
            parts[name] = _random(kind, folder / name).to(dtype)
    scheduler = getattr(schedulers, index["scheduler"][1])
    parts["scheduler"] = scheduler.from_pretrained(str(folder / "scheduler"))
    parts |= dict.fromkeys(family.unused)
    return family.pipeline(**parts, **family.options)


def _random(kind: Any, folder: Path) -> Any:
    """A network of diffusers or transformers with the sizes of its configuration."""
    require((folder / "config.json").is_file(), f"{folder / 'config.json'} does not exist.")
    if hasattr(kind, "load_config"):
        return kind.from_config(kind.load_config(str(folder))).eval()
    return kind(kind.config_class.from_pretrained(str(folder), local_files_only=True)).eval()


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
        raise InvalidProblem(f"{what} cannot be loaded ({said}); {_remedy(error)}.") from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _remedy(error: Exception) -> str:
    """What to do about files that cannot be loaded."""
    if isinstance(error, ImportError):
        return "install what it asks for"
    return COPY if isinstance(error, OSError) else f"correct its configuration files, or {COPY}"


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
            " (without the first --include, what memory and time are estimated from)"
        ) from error


def _family(folder: Path) -> PipelineFamily:
    require_json(folder)
    return family_of(_object(folder / "model_index.json"), str(folder))


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
    require(
        "quantization_config" not in _object(folder / "config.json"),
        f"the weights in {folder} are quantised, and other numbers than those that were trained;"
        " give the checkpoint they were made of.",
    )
    weights = find_weights(folder, stem)
    file = weights.file
    options: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "output_loading_info": True,
        **weights.options,
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


def load_long_tokenizer(folder: Path) -> Any:
    """The tokenizer of T5 of a folder.

    Raises:
        InvalidProblem: a file is missing or damaged.
    """
    present = (folder / "tokenizer.json").is_file() or (folder / "spiece.model").is_file()
    require(
        present,
        f"{folder} holds neither tokenizer.json nor spiece.model; copy the tokenizer there.",
    )
    require_json(folder)
    with refusing(f"the tokenizer in {folder}"):
        tokenizer: Any = T5Tokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer(["a"], padding=True, truncation=True)
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


def _require_none(keys: Iterable[str], what: str, which: str) -> None:
    names = sorted(keys)
    require(
        not names,
        f"{what} {len(names)} {which}, such as {names[:1]}; it is another network's or not"
        " complete: copy it again.",
    )
