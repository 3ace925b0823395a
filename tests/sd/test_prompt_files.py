"""Prompts from files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from sd_experiments import config
from sd_experiments.assignments import read_assignments
from sd_experiments.prompt_files import read_prompts
from socft.checks import InvalidProblem

PROMPTS = ["a green rabbit", "two cats, é", "x = 1"]
FILES = {
    "lines.txt": "a green rabbit\n\n  two cats, é \nx = 1",
    "list.json": json.dumps(PROMPTS),
    "rows.json": json.dumps([{"id": 1, "caption": each} for each in PROMPTS]),
    "rows.jsonl": "\n".join(json.dumps({"prompt": each, "text": "other"}) for each in PROMPTS),
    "mixed.jsonl": "\n".join(json.dumps(each) for each in PROMPTS) + "\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_gives_the_same_prompts(name: str, tmp_path: Path):
    file = tmp_path / name
    file.write_text(FILES[name], encoding="utf-8")
    assert read_prompts(str(file)) == PROMPTS
    settings = tmp_path / "run.toml"
    settings.write_text(f'[problem]\nprompts = "{file}"\n')
    found = config.read_config(settings)
    assert found.problem.prompts == tuple(PROMPTS)
    assert found.plain()["problem"]["prompts"] == PROMPTS, "the run stores what it was trained on"
    settings.write_text('[problem]\nprompts = ["other"]\n')
    assert config.read_config(settings, read_assignments([f"problem.prompts={file}"])) == found


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "absent.txt",
            None,
            "problem.prompts = '{0}' is no file; give a list of prompts, or a file",
        ),
        ("empty.txt", "\n \n", "{0} holds no prompts; give"),
        ("a.csv", "x", "problem.prompts = '{0}'; give a list"),
        ("a.json", '{"a": 1}', "{0} is no list; write a list of prompts."),
        ("a.json", '["a", 3]', "entry [1] of {0} is no prompt; write texts, or leave it out."),
        (
            "a.json",
            '[{"words": "a"}]',
            "{0} has the columns words; name that of the prompts prompt",
        ),
        ("a.jsonl", '"a"\n{', "{0} has a line that is no JSON; write it again."),
    ],
)
def test_what_is_wrong_is_named(name: str, content: str | None, message: str, tmp_path: Path):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidProblem) as refused:
        config.parse_config({"problem": {"prompts": str(file)}})
    said = str(refused.value)
    assert said.startswith(message.format(file))


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is here")
def test_data_sets_without_pyarrow_are_refused_with_what_to_install(tmp_path: Path):
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"")
    with pytest.raises(InvalidProblem, match=r"not installed; run: pip install pyarrow, or give"):
        read_prompts(str(tmp_path))


def test_data_sets_on_disk_are_read(tmp_path: Path):
    """As ``save_to_disk`` writes them, in several files, and as the hub has them."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for i, part in enumerate((PROMPTS[:2], PROMPTS[2:])):
        table = pyarrow.table({"prompt": part, "label": [0] * len(part)})
        (tmp_path / "saved").mkdir(exist_ok=True)
        saved = str(tmp_path / "saved" / f"data-{i}.arrow")
        with pyarrow.OSFile(saved, "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
        (tmp_path / "hub" / "data").mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, tmp_path / "hub" / "data" / f"train-{i}.parquet")
    assert read_prompts(str(tmp_path / "saved")) == PROMPTS
    assert read_prompts(str(tmp_path / "hub")) == PROMPTS
    with pytest.raises(InvalidProblem, match="holds several splits, data, saved; give the folder"):
        read_prompts(str(tmp_path))
