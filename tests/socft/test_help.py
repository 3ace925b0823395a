"""What the command line says of itself, of what is installed and of names that are nearly right."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from socft import cli
from socft.checks import nearest
from toy.durations import MINUTES

ROOT = Path(__file__).resolve().parents[2]
SOCFT = [sys.executable, "-m", "socft.cli"]


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"socft {metadata.version('socft')}\n"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["tooy"], "there is no command 'tooy'; did you mean toy?"),
        (["--verson"], "there is no option '--verson'; did you mean --version?"),
        (["sd", "trian"], "there is no command sd 'trian'; did you mean train?"),
        (["toy", "convergance"], "there is no study 'convergance'; did you mean convergence"),
        (["report", "guidence"], "there is no report 'guidence'; did you mean guidance?"),
        (["verify", "lema_2_5"], "or beginning so; did you mean lemma_2_5"),
        (["bench", "full adjiont"], "no estimator 'full adjiont'; did you mean full adjoint?"),
        (["bench", "Full_Adjoint"], "no estimator 'Full_Adjoint'; did you mean full adjoint?"),
        (["bench", "toy.bench:bnech"], "module 'toy.bench' has no 'bnech'; did you mean bench?"),
        (["toy", "conftst.py"], "there is no file conftst.py; did you mean conftest.py?"),
        (
            ["sd", "reproduce", "--scale", "tinny"],
            "there is no --scale named 'tinny'; did you mean",
        ),
        (["completion", "zhs"], "there is no completion for the shell 'zhs'; did you mean zsh?"),
        (["conform", "setpu:x"], "there is no module 'setpu'; "),
    ],
)
def test_a_name_that_is_nearly_right_gets_the_right_one(arguments, meant, capsys, monkeypatch):
    monkeypatch.chdir(ROOT / "tests")
    assert cli.main(arguments) == cli.INVALID
    heard = capsys.readouterr()
    assert heard.out == ""
    assert meant in heard.err
    assert len(heard.err.splitlines()) == 1


def test_an_option_that_is_nearly_right_gets_the_right_one(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["toy", "convergence", "--quik"])
    assert stop.value.code == cli.INVALID
    said = capsys.readouterr().err
    assert "Perhaps you meant" in said
    assert "--quick" in said


def test_the_nearest_names_come_first():
    names = ["adjoint matching", "adjoint matching, published index", "full adjoint", "DPOK"]
    assert nearest("ADJOINT-MATCHING", names) == [names[0]]
    assert nearest("adjoint match", names) == names[:2]
    assert nearest("matching", names) == names[:2]
    assert nearest("dpok", names) == ["DPOK"]
    assert nearest("", names) == nearest("zzzz", names) == []


def test_every_study_says_what_it_asks_and_how_long_it_takes(capsys):
    said = helped(capsys, "toy")
    for name in cli.STUDIES.names:
        (line,) = [each for each in said.splitlines() if each.startswith(f"  {name}: ")]
        assert ("? (two cores: " in line) == (name in MINUTES)
        own = helped(capsys, "toy", name)
        assert f"Study {name}:" in own
        assert ("with --quick" in own) == (name in MINUTES)
    assert len(MINUTES) >= 11


SUBCOMMANDS = ("train", "sample", "evaluate", "check", "reproduce", "costate-size", "benchmark")


@pytest.mark.parametrize(
    "command", [*cli.COMMANDS, *(f"sd {each}" for each in (*SUBCOMMANDS, "gradient-norm"))]
)
def test_every_help_has_examples_of_its_command(command, capsys):
    said = helped(capsys, *command.split())
    assert f"For example:\n  socft {command}" in said


def test_a_reader_that_has_read_enough_is_no_error():
    """``socft --help | head -1``, with the pipe closed before anything is written."""
    for arguments in (["--help"], ["info"]):
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb") as pipe:
            done = subprocess.run(
                [*SOCFT, *arguments], stdout=pipe, stderr=subprocess.PIPE, cwd=ROOT
            )
        assert (done.stderr, done.returncode) == (b"", cli.UNHEARD)


def test_info_names_what_is_missing_and_the_extra_that_brings_it(capsys, monkeypatch):
    from socft.cli import about

    packages = {"": ["torch"], "report": ["matplotlib", "no-such-package"], "image-reward": ["x-y"]}
    monkeypatch.setattr(about, "requirements", lambda: packages)
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"  torch {metadata.version('torch')}" in said
    assert "  no-such-package is missing" in said
    assert any(line.startswith("processors: ") and "threads" in line for line in said)
    assert said[-1] == "next: pip install 'socft[report]'"


def test_extras_are_those_of_the_package():
    from socft.cli.about import extra_with, requirements

    assert {"torch", "tyro"} <= set(requirements()[""])
    assert [extra_with(name) for name in ("typst", "matplotlib", "diffusers", "material")] == [
        "report",
        "plot",
        "sd",
        "docs",
    ]
    assert extra_with("torch") is None


def test_what_is_installed_is_not_called_missing(capsys):
    """With everything that `make install` brings."""
    assert cli.main(["info"]) == 0
    *said, last = capsys.readouterr().out.splitlines()
    apart = next(i for i, line in enumerate(said) if "[image-reward]" in line)
    after = next(i for i, line in enumerate(said) if i > apart and not line.startswith("  "))
    assert not [line for line in said[:apart] + said[after:] if line.endswith("is missing")]
    assert last == "next: socft toy --help"


def test_completion_is_installed_and_knows_the_options(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    assert cli.main(["completion"]) == 0
    file = tmp_path / ".local/share/bash-completion/completions/socft"
    assert capsys.readouterr().out == f"wrote {file}\nnext: exec bash\n"
    script = f"""
source {file}
COMP_WORDS=(socft toy --q); COMP_CWORD=2
_tyro_socft
echo "${{COMPREPLY[@]}}"
COMP_WORDS=(socft ver); COMP_CWORD=1
_tyro_socft
echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["--quick", "verify"]
