"""Every command that the documents show runs: as it stands, or in the stated smaller form where it
takes long.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import DOCUMENTS, commands, files

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 100
"""Seconds for a command; what takes longer needs a smaller form."""

SMALLER = {
    "source .venv/bin/activate": "grep -q '^VENV := .venv$' {root}/Makefile",
    "pytest --shapes": "pytest --shapes {root}/tests/test_shapes.py",
    "pytest -p socft.conform.plugin --conform MODULE:NAME": (
        "pytest -p socft.conform.plugin --conform socft.conform.schedulers:flow_match_euler"
    ),
    "pytest verify/ -n 2": "pytest {root}/verify -n 2 --collect-only",
    "socft bench damped:Damped": (
        "socft bench damped:Damped --quick --against 'adjoint matching' --workers 1"
    ),
    "socft bench damped:Damped --quick": "socft bench damped:Damped --help",
    "socft verify": "socft verify 'lemma_2_*'",
    "python -m verify.support.readme": "python -c 'import verify.support.readme'",
    "socft verify theorem_2_8_i": "socft verify 'lemma_2_*'",
    "socft verify remark_2_4": "socft verify 'lemma_2_*'",
    "socft verify 'lemma_*'": "socft verify 'lemma_2_*'",
    "socft verify --minutes 30": "socft verify lemma_2_5 --minutes 0.02",
    "python -m tests.support.mutation.run theory": (
        "python -m tests.support.mutation.run theory --help"
    ),
    "socft sd train": "socft sd train --steps 1",
    "socft sd evaluate": "socft sd evaluate --number 2",
    "socft sd sample --grid build/samples.png": (
        "socft sd sample --number 1 --grid build/samples.png"
    ),
    "socft sd reproduce --scale tiny": "socft sd reproduce --scale tiny --help",
    "socft sd reproduce --scale tiny --variants": (
        "socft sd reproduce --scale tiny --variants --help"
    ),
    "socft sd costate-size": "socft sd costate-size --help",
    "socft sd gradient-norm": "socft sd gradient-norm --help",
    "socft sd benchmark": "socft sd benchmark --help",
    "socft sd gpu": "socft sd gpu --help",
    "torchrun --standalone --nproc_per_node 2 -m socft.cli sd train --config FILE": (
        "socft sd train --config {root}/sd_experiments/configs/tiny.toml --help"
    ),
}
"""What is run in place of a command. Studies whose smallest form takes minutes answer --help: the
smallest form itself has tests of its own.
"""


def smaller(command: str) -> str:
    """What is run in place of a documented command."""
    if command.startswith("make "):
        return f"make -n -C {ROOT} {command.removeprefix('make ')}"
    return SMALLER.get(command, command).format(root=ROOT)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The result of a command in a folder, with the programs of this environment."""
    here = Path(sys.executable).parent
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{here}:{os.environ['PATH']}"}
    command = re.sub(r"^socft\b", f"{sys.executable} -m socft.cli", command)
    return subprocess.run(
        command, shell=True, cwd=folder, env=env, text=True, capture_output=True, timeout=LIMIT
    )


def shown_first(document: str) -> dict[str, str]:
    """What is run for the commands of a document, with the command; what an earlier document or
    command runs already is left out.
    """
    found: dict[str, tuple[str, str]] = {}
    for each in DOCUMENTS:
        for command in commands(ROOT / each):
            found.setdefault(smaller(command), (each, command))
    return {form: command for form, (each, command) in found.items() if each == document}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that documents show."""
    for name, code in files(ROOT).items():
        (tmp_path / name).write_text(code)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_commands_run(document: str, folder: Path):
    failed = []
    for form, command in shown_first(document).items():
        result = run(form, folder)
        if result.returncode != 0:
            failed.append(f"{command}: {form}\n{result.stdout}{result.stderr}")
    assert not failed, "\n\n".join(failed)


def test_smaller_forms_are_of_documented_commands():
    documented = {each for document in DOCUMENTS for each in commands(ROOT / document)}
    assert set(SMALLER) - documented == set()


def test_smaller_forms_are_of_the_same_command():
    for command, form in SMALLER.items():
        if command.startswith(("socft", "pytest")):
            words = command.replace(" verify/", " {root}/verify").split()
            assert (
                form.split()[: 3 if words[1] == "sd" else 2]
                == (words[: 3 if words[1] == "sd" else 2])
            )


def test_commands_are_found_in_blocks_indented_and_within_sentences(tmp_path: Path):
    document = tmp_path / "document.md"
    document.write_text(
        "Run `make test` or `socft.reward`, `pytest\nverify/`.\n\n"
        "```sh\nsocft verify   # all\n```\n\n```python\n    socft = 1\n```\n\n"
        "    socft toy linear\n"
    )
    assert commands(document) == [
        "make test",
        "pytest verify/",
        "socft verify",
        "socft toy linear",
    ]


def test_a_documented_command_that_does_not_exist_fails(folder: Path):
    assert run("socft sd prepare", folder).returncode != 0
    assert run(smaller("make prepare"), folder).returncode != 0
