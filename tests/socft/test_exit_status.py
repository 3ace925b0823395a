"""Every command in every way of failing: one sentence on standard error, a documented status that
is not 0, and no word of success.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from socft import cli, files
from socft.records import Record, write
from tests.support.squares import study

ROOT = Path(__file__).resolve().parents[2]
SD = ("sample", "evaluate", "check", "costate-size", "benchmark")
"""Commands on a configuration that write no folder of a run."""
COMMANDS = {
    "toy": ["toy", "convergence"],
    "bench": ["bench", "socft.estimators.full_adjoint:FullAdjoint"],
    "verify": ["verify", "lemma_2_5"],
    "report": ["report"],
    **{f"sd {name}": ["sd", name] for name in ("train", *SD, "reproduce", "gradient-norm")},
}
SQUARE = Record("convergence", "p", "m", 1.0)
OUT = [name for name in COMMANDS if name not in ("sd check", "sd sample", "sd evaluate")]
"""Commands that write where --out says."""


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error, which is all that was said."""
    heard = capsys.readouterr()
    assert heard.out == ""
    return heard.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a command is refused."""
    assert cli.main(arguments) == cli.INVALID
    lines = said(capsys).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("socft: ")
    return lines[0].removeprefix("socft: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_argument_is_refused(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*COMMANDS[command], "--nonsense"])
    assert stop.value.code == cli.INVALID
    assert "--nonsense" in said(capsys)


@pytest.mark.parametrize("command", ["train", *SD])
def test_a_configuration_that_is_missing_or_damaged_is_named(command, tmp_path, capsys):
    file = tmp_path / "a.toml"
    assert f"there is no configuration {str(file)!r}" in refused(
        capsys, "sd", command, "--config", str(file)
    )
    for content in (b"[problem", b"\xff", b"prompts = " + b"[" * 5000):
        file.write_bytes(content)
        assert str(file) in refused(capsys, "sd", command, "--config", str(file))


def test_records_that_are_missing_or_damaged_are_named(tmp_path, capsys):
    file = tmp_path / "convergence.jsonl"
    folders = ["--records", str(tmp_path), "--out", str(tmp_path / "out")]
    assert f"no records at {file}" in refused(capsys, "report", *folders)
    write([SQUARE], file)
    for damage in (b"\xff", b'{"study"', b"[]", b"{}", file.read_bytes()[:-9]):
        file.write_bytes(damage)
        assert f"line 1 of {file}" in refused(capsys, "report", "convergence", *folders)
    file.unlink()
    file.mkdir()
    assert f"{file} cannot be read (Is a directory)" in refused(
        capsys, "report", "convergence", *folders
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", OUT)
def test_a_folder_that_cannot_be_made_is_named(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    if command == "report":
        write([SQUARE], tmp_path / "convergence.jsonl")
        monkeypatch.setattr(cli.REPORTS.find("convergence").__class__, "write", _write)
    monkeypatch.setattr("toy.bench.changed", lambda names: [])  # which may measure for a minute
    more = {"report": ["--records", str(tmp_path)], "sd benchmark": ["--random", "small"]}
    arguments = [*COMMANDS[command], *more.get(command, []), "--out", str(out)]
    assert cli.main(arguments) == cli.INVALID
    assert "Not a directory" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "file").read_bytes() == b""


def _write(self, records: Path, out: Path) -> list[Path]:
    """A report of nothing."""
    files.write_atomically(out / "report.pdf", b"")
    return [out / "report.pdf"]


def test_a_full_disk_leaves_what_was_there(tmp_path, capsys, monkeypatch):
    """The study is measured, and its records do not fit."""
    file = tmp_path / "squares.jsonl"
    file.write_text("as it was")
    monkeypatch.setattr(cli.Plugins, "find", lambda *_: study())
    monkeypatch.setattr(files.os, "fsync", _full)
    arguments = ["toy", "squares", "--quick", "--out", str(tmp_path)]
    assert cli.main(arguments) == cli.INVALID
    heard = capsys.readouterr()
    assert heard.out == ""
    assert heard.err.splitlines()[-1].startswith("socft: No space left on device")
    assert file.read_text() == "as it was"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, cli.INTERRUPTED), (signal.SIGTERM, cli.TERMINATED)]
)
def test_an_interrupted_command_says_so(command, number, status, capsys, monkeypatch):
    def run(_: object) -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    kind = cli.COMMANDS[command.split()[0]]
    monkeypatch.setattr(kind, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(COMMANDS[command]) == status
    assert said(capsys) == "socft: interrupted; run the same command again to continue\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["report", "--help"]])
def test_output_that_nobody_takes_is_no_success(arguments):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "socft.cli", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == cli.INVALID
    assert done.stderr == "socft: No space left on device\n"


def test_the_statuses_are_documented(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    helped = " ".join(capsys.readouterr().out.split())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for status, meaning in cli.STATUS.items():
        assert f"{status} {meaning}" in helped
        assert f"| {status} | {meaning} |" in readme


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "setting", [ASCII, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "iso-8859-1"}]
)
def test_what_the_locale_has_no_letters_for_is_said_all_the_same(setting):
    code = r"""
import sys
from socft import cli
class Says:
    def run(self):
        print("\u03b1 \u2264 \u03b2 \xb1 1")
        raise OSError("Gr\xf6\xdfe \u2264 0")
cli.parse = lambda _: Says()
sys.exit(cli.main([]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, cwd=ROOT, env=os.environ | setting
    )
    assert done.returncode == cli.INVALID
    assert done.stdout.isascii() == done.stderr.isascii()
    assert done.stdout.startswith(rb"\u03b1 \u2264 \u03b2")
    assert rb"e \u2264 0" in done.stderr
    assert b"Traceback" not in done.stderr


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
