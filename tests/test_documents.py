"""Every command that the documents show runs: as it stands, or in the stated smaller form where it
takes long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest

from socft.cli import main
from tests.support.documents import DOCUMENTS, commands, files

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 100
"""Seconds for a command; what takes longer needs a smaller form."""

SMALLER = {
    "source .venv/bin/activate": "grep -q '^VENV := .venv$' {root}/Makefile",
    "pytest --shapes": "pytest --shapes {root}/tests/test_durations.py",
    "pytest -p socft.conform.plugin --conform MODULE:NAME": (
        "pytest -p socft.conform.plugin --conform socft.conform.schedulers:flow_match_euler"
    ),
    "pytest -p socft.conform.plugin --conform my_sampler:sampler": (
        "pytest -p socft.conform.plugin --conform socft.conform.schedulers:flow_match_euler"
    ),
    "pytest verify/ -n 2": (
        "pytest {root}/verify -n 2 --collect-only --ignore-glob '*/verify/[!l]*.py'"
    ),
    "socft bench damped:Damped": "socft bench damped:Damped --help",
    "socft bench damped:Damped --quick": "socft bench damped:Damped --help",
    "socft verify": "socft verify 'jarz*'",
    "python -m verify.support.readme": "python -c 'import verify.support.readme'",
    "socft verify theorem_2_8_i": "socft verify 'jarz*'",
    "socft verify remark_2_4": "socft verify 'jarz*'",
    "socft verify 'lemma_*'": "socft verify 'jarz*'",
    "socft verify --minutes 30": "socft verify jarzynski --minutes 0.01",
    "python -m tests.support.mutation.run theory": (
        "python -m tests.support.mutation.run theory --help"
    ),
    "socft conform": "socft conform --help",
    "socft conform my_sampler:sampler": "socft conform socft.conform.schedulers:flow_match_euler",
    "socft report flow --published": "socft report flow --published --help",
    "socft report stable_diffusion": "socft report stable_diffusion --help",
    'socft toy variance --executor "dask:tcp://$head:8786" --out records': (
        "socft toy variance --executor dask:tcp://localhost:8786 --out records --help"
    ),
    "socft sd check": "socft sd check --help",
    "socft sd check --config FILE": (
        "socft sd check --config {root}/sd_experiments/configs/tiny.toml --help"
    ),
    "socft sd train": "socft sd train --steps 1",
    "socft sd train --config FILE": (
        "socft sd train --config {root}/sd_experiments/configs/tiny.toml --help"
    ),
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
    "socft sd benchmark --config sd_experiments/configs/tiny.toml": (
        "socft sd benchmark --config sd_experiments/configs/tiny.toml --help"
    ),
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


@dataclasses.dataclass(frozen=True)
class Result:
    """Exit status and what was said."""

    status: int
    said: str


def run(command: str, folder: Path) -> Result:
    """The result of a command in a folder: of socft in this process, which has imported most of
    what it needs, of other programs by a shell.
    """
    program, *arguments = shlex.split(command)
    return called(arguments, folder) if program == "socft" else in_shell(command, folder)


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """As the working directory, whose modules are forgotten behind it."""
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "path", [str(folder), *sys.path]),
        mock.patch.dict(os.environ, HOME=str(folder), SHELL="/bin/bash"),
    ):
        yield
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


def called(arguments: Sequence[str], folder: Path) -> Result:
    """Of socft with some arguments."""
    said = io.StringIO()
    with (
        working_in(folder),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Result(status, said.getvalue())


def in_shell(command: str, folder: Path) -> Result:
    """With the programs of this environment."""
    here = Path(sys.executable).parent
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{here}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=env, text=True, capture_output=True, timeout=LIMIT
    )
    return Result(done.returncode, done.stdout + done.stderr)


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
        if result.status != 0:
            failed.append(f"{command}: {form}\n{result.said}")
    assert not failed, "\n\n".join(failed)


def test_no_document_is_forgotten():
    files = [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *(ROOT / "docs").rglob("*.md")]
    showing = {file.relative_to(ROOT).as_posix() for file in files if commands(file)}
    assert {each for each in showing if not each.startswith("docs/tutorials/")} == {
        *DOCUMENTS,
        "CHANGELOG.md",
    }


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
    assert run("socft sd prepare", folder).status != 0
    assert run(smaller("make prepare"), folder).status != 0
