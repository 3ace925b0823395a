"""Files of a pipeline: whatever is missing, cut off or of another network is refused and named; the
published layout is read.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from sd_experiments import config
from sd_experiments.model.families import STABLE_DIFFUSION
from sd_experiments.model.weights import load_tokenizer, load_whole, unreachable_tokens
from sd_experiments.reward.rewards import CLIPScore
from sd_experiments.training.build import build, load_model
from socft import cli
from socft.checks import InvalidProblem
from tests.support.sd import WORDS, save_clip, text_encoder, tokenizer, written


def weights(folder: Path, part: str) -> Path:
    return folder / part / f"{STABLE_DIFFUSION.networks[part][1]}.safetensors"


def edited(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def remove(folder: Path, part: str) -> str:
    weights(folder, part).unlink()
    return f"{weights(folder, part)} does not exist; copy the weights there, as safetensors."


def cut_off(folder: Path, part: str) -> str:
    file = weights(folder, part)
    file.write_bytes(file.read_bytes()[:-100])
    return f"{file} is damaged (.*); copy it again."


def cut_short(folder: Path, part: str) -> str:
    file = weights(folder, part)
    file.write_bytes(file.read_bytes()[:5])
    return f"{file} is damaged (.*); copy it again."


def drop(folder: Path, part: str) -> str:
    file, name = weights(folder, part), min(load_file(weights(folder, part)))
    edited(file, lambda tensors: tensors.pop(name))
    return (
        f"{file} lacks 1 weights of the network, such as ['{name}']; it is another network's or not"
        " complete: copy it again."
    )


def add(folder: Path, part: str) -> str:
    file = weights(folder, part)
    edited(file, lambda tensors: tensors.update(extra=torch.zeros(2)))
    return (
        f"{file} has 1 weights the network lacks, such as ['extra']; it is another network's or not"
        " complete: copy it again."
    )


def reshape(folder: Path, part: str) -> str:
    file, name = weights(folder, part), min(load_file(weights(folder, part)))
    edited(file, lambda tensors: tensors.update({name: torch.zeros(3, 5, 7)}))
    return f"{file} .*{name}.*copy it again"


def swap(folder: Path, part: str) -> str:
    other = "unet" if part == "vae" else "vae"
    shutil.copy(weights(folder, other), weights(folder, part))
    return f"{weights(folder, part)} lacks .* weights of the network, such as"


def lose_sizes(folder: Path, part: str) -> str:
    (folder / part / "config.json").unlink()
    return f"{folder / part / 'config.json'} does not exist; copy it there, beside the weights."


def damage_sizes(folder: Path, part: str) -> str:
    file = folder / part / "config.json"
    file.write_text(file.read_text()[:-3])
    return f"{file} is damaged: .*; copy it again."


def lose_part(folder: Path, part: str) -> str:
    shutil.rmtree(folder / part)
    return f"{folder / part} not found; copy what is missing of the pipeline there."


DAMAGES = (
    remove,
    cut_off,
    cut_short,
    drop,
    add,
    reshape,
    swap,
    lose_sizes,
    damage_sizes,
    lose_part,
)


def pattern(message: str) -> str:
    """A message in which ``.*`` stands for anything."""
    return ".*".join(re.escape(part) for part in message.split(".*"))


@pytest.mark.parametrize("part", STABLE_DIFFUSION.networks)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_network_that_is_not_whole_is_refused(
    model: Path, tmp_path: Path, part: str, damage: Callable[[Path, str], str]
):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    message = damage(folder, part)
    with pytest.raises(InvalidProblem, match=pattern(message)):
        load_model(config.ModelConfig(str(folder), device="cpu"))


def lose_words(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return (
        f"{folder} holds neither tokenizer.json nor vocab.json with merges.txt; copy the tokenizer"
        " there."
    )


def damage_words(folder: Path) -> str:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text()[:-3])
    return f"{file} is damaged: .*; copy it again."


def lose_merges(folder: Path) -> str:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:3]
    file.write_text(json.dumps(content))
    return (
        f"the tokenizer in {folder} has .* tokens that no merge makes, such as [.*], and would read"
        " words letter by letter"
    )


def lose_vocabulary(folder: Path) -> str:
    """A file of merges without the words they make."""
    content = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in content["merges"]))
    return (
        f"{folder} holds neither tokenizer.json nor vocab.json with merges.txt; copy the tokenizer"
        " there."
    )


def lose_length(folder: Path) -> str:
    (folder / "tokenizer_config.json").unlink()
    return (
        "the tokenizer gives up to .* tokens and the text encoder reads 12; copy the tokenizer's"
        " tokenizer_config.json too."
    )


def change_vocabulary(folder: Path) -> str:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["z"] = len(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return "the tokenizer knows .* tokens and the text encoder .*; load both from one directory."


@pytest.mark.parametrize(
    "damage",
    [lose_words, damage_words, lose_merges, lose_vocabulary, lose_length, change_vocabulary],
    ids=lambda f: f.__name__,
)
def test_a_tokenizer_that_is_not_whole_is_refused(
    model: Path, tmp_path: Path, damage: Callable[[Path], str]
):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    message = damage(folder / "tokenizer")
    with pytest.raises(InvalidProblem, match=pattern(message)):
        load_model(config.ModelConfig(str(folder), device="cpu"))


def test_words_that_no_merge_makes_are_those_that_are_read_in_pieces(tmp_path: Path):
    whole: Any = tokenizer()
    assert unreachable_tokens(whole) == []
    whole.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = [
        pair for pair in content["model"]["merges"] if "".join(pair) != "blue</w>"
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        InvalidProblem, match=r"has 1 tokens that no merge makes, such as \['blue</w>'\]"
    ):
        load_tokenizer(tmp_path)
    broken: Any = type(whole).from_pretrained(tmp_path)
    assert [
        word for word in WORDS if len(broken(word, add_special_tokens=False).input_ids) > 1
    ] == ["blue"]
    assert all(len(whole(word, add_special_tokens=False).input_ids) == 1 for word in WORDS)


def test_parts_of_different_models_are_refused(model: Path, tmp_path: Path):
    words: Any = tokenizer()
    text = text_encoder(64, 1, words)
    decoder = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=8, sample_size=16
    )
    for part, other, message in (
        (
            "text_encoder",
            text,
            (
                "the network reads text of width 32 and the text encoder writes 64; load both from"
                " one directory."
            ),
        ),
        (
            "vae",
            decoder,
            (
                "the network makes latents of 4 channels and the decoder reads 8; load both from"
                " one directory."
            ),
        ),
    ):
        folder = tmp_path / part
        shutil.copytree(model, folder)
        shutil.rmtree(folder / part)
        other.save_pretrained(folder / part)
        with pytest.raises(InvalidProblem, match=pattern(message)):
            load_model(config.ModelConfig(str(folder), device="cpu"))


@pytest.mark.usefixtures("brief_trials")
@pytest.mark.parametrize("part", [*STABLE_DIFFUSION.networks, "tokenizer"])
def test_check_names_what_is_damaged(model: Path, tmp_path: Path, capsys, part: str):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    message = lose_merges(folder / part) if part == "tokenizer" else drop(folder, part)
    file = written(folder, tmp_path / "run")
    assert cli.main(["sd", "check", "--config", str(file)]) == cli.INVALID
    said = capsys.readouterr()
    assert re.search(pattern(f"missing  model: {message}"), said.out)
    assert said.err == f"socft: {file} cannot run here yet: model.\n"
    with pytest.raises(InvalidProblem, match=pattern(message)):
        build(config.read_config(file))


@pytest.mark.usefixtures("brief_trials")
def test_check_loads_the_reward(model: Path, tmp_path: Path, capsys):
    file = written(model, tmp_path / "run")
    file.write_text(file.read_text().replace("tests.support.sd:reddish", "tests.support.sd:absent"))
    assert cli.main(["sd", "check", "--config", str(file)]) == cli.INVALID
    assert "missing  reward: module 'tests.support.sd' has no 'absent'" in capsys.readouterr().out


def test_published_names_of_weights_are_read(tmp_path: Path):
    """Stable Diffusion 1.5 is published with the decoder's attention and the text encoder named as
    in 2022, and with position numbers that are no weights.
    """
    torch.manual_seed(0)
    decoder = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16)
    decoder.save_pretrained(tmp_path / "vae")
    words: Any = tokenizer()
    ends: dict[str, Any] = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=len(words), max_position_embeddings=12, **sizes, **ends)
    )
    text.save_pretrained(tmp_path / "text_encoder")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    changed = []

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            new = name
            for now, before in old.items():
                new = new.replace(f".{now}.", f".{before}.")
            changed.append(new != name)
            tensors[new] = tensors.pop(name)

    def prefix(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"text_model.{name.removeprefix('text_model.')}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(12)[None]

    edited(weights(tmp_path, "vae"), rename)
    edited(weights(tmp_path, "text_encoder"), prefix)
    assert sum(changed) == 16
    for part, expected in (("vae", decoder), ("text_encoder", text)):
        kind, stem = STABLE_DIFFUSION.networks[part]
        found = load_whole(kind, tmp_path / part, stem).state_dict()
        assert found.keys() == expected.state_dict().keys()
        assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_a_clip_that_is_not_whole_is_refused(tmp_path: Path):
    model = save_clip(tmp_path)
    assert torch.equal(
        CLIPScore.load(tmp_path).model.visual_projection.weight, model.visual_projection.weight
    )
    edited(tmp_path / "model.safetensors", lambda tensors: tensors.pop("visual_projection.weight"))
    with pytest.raises(
        InvalidProblem,
        match=r"lacks 1 weights of the network, such as \['visual_projection.weight'\]",
    ):
        CLIPScore.load(tmp_path)
