"""The command line: what it says, what it returns, and that it starts fast and stops cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toy.studies
from socft import cli
from socft.records import encode, read

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = (
    60  # processes that import torch start within a few seconds, more on a busy machine
)
STUDY = """
import os
from socft.checks import InvalidProblem
from tests.support.squares import SQUARES, divide, slow_square, square
from socft.study.tasks import Study, Task

def refuse(x):
    raise KeyboardInterrupt

def tasks(quick):
    return {tasks}

STUDY = Study(SQUARES.named("made"), tasks)
"""
SQUARES = """[Task(f"square {i}", square, {"x": float(i)}) for i in range(2 if quick else 3)]"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a study named ``made`` from the source of its list of tasks."""
    folder = tmp_path / "studies"
    folder.mkdir()
    monkeypatch.setattr(toy.studies, "__path__", [*toy.studies.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "toy.studies.made", raising=False)

    def make(tasks: str) -> None:
        (folder / "made.py").write_text(STUDY.replace("{tasks}", tasks))

    yield make
    sys.modules.pop("toy.studies.made", None)


def test_help_needs_no_heavy_import():
    code = """
import sys
from socft.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "numpy", "scipy", "matplotlib", "typst"}
    print(*sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    for arguments in (["--help"], ["toy", "--help"], ["report", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.strip()) == (0, "")
        assert "usage: socft" in done.stdout


def test_help_lists_commands_and_studies(capsys):
    for arguments, words in (
        (["--help"], ["toy", "report"]),
        (["toy", "--help"], ["convergence", "--quick", "--fresh"]),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        said = capsys.readouterr().out
        assert stop.value.code == 0
        assert [word for word in words if word not in said] == []


def test_toy_writes_records(made, tmp_path, capsys):
    made(SQUARES)
    out, array = tmp_path / "out", tmp_path / "made.json"
    assert cli.main(["toy", "made", "--quick", "--out", str(out), "--json", str(array)]) == 0
    records = read(out / "made.jsonl")
    assert [r.value for r in records] == [0.0, 0.0, 1.0, 1.0]
    assert json.loads(array.read_text()) == [json.loads(encode(r)) for r in records]
    assert f"4 records in {out / 'made.jsonl'}" in capsys.readouterr().out
    assert cli.main(["toy", "made", "--out", str(out)]) == 0
    assert len(read(out / "made.jsonl")) == 6


def test_unknown_names_list_the_known_ones(capsys):
    assert cli.main(["toy", "nonsense"]) == cli.INVALID
    assert (
        capsys.readouterr().err == "socft: there is no study 'nonsense'; give FILE.py,"
        " or one of:"
        f" {', '.join(cli.STUDIES.names)}.\n"
    )
    assert cli.main(["report", "nonsense"]) == cli.INVALID
    assert "there is no report 'nonsense'; give one of: convergence" in capsys.readouterr().err


def test_hyphens_and_underscores_are_one(made):
    made(SQUARES)
    assert cli.CLAIMS.find("lemma-2-5") is cli.CLAIMS.find("lemma_2_5")


EXECUTOR = """
from concurrent.futures import ThreadPoolExecutor

made = []

def threads():
    made.append(ThreadPoolExecutor(1))
    return made[-1]
"""


def test_a_study_runs_on_a_users_executor(made, tmp_path, monkeypatch, capsys):
    made(SQUARES)
    (tmp_path / "cluster.py").write_text(EXECUTOR)
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        cli.main(
            [
                "toy",
                "made",
                "--quick",
                "--out",
                str(tmp_path / "out"),
                "--executor",
                "cluster:threads",
            ]
        )
        == 0
    )
    assert len(sys.modules["cluster"].made) == 1
    assert len(read(tmp_path / "out" / "made.jsonl")) == 4
    for path, message in (
        ("cluster", "'cluster' is no import path; give MODULE:NAME."),
        ("absent:threads", "there is no module 'absent'"),
        (
            "cluster:absent",
            "module 'cluster' has no 'absent'; it has ThreadPoolExecutor, made, threads",
        ),
    ):
        capsys.readouterr()
        assert (
            cli.main(["toy", "made", "--out", str(tmp_path / "out"), "--executor", path])
            == cli.INVALID
        )
        assert message in capsys.readouterr().err


def test_modules_that_are_no_studies_are_not_offered():
    assert {"runner", "problems"} & set(cli.STUDIES.names) == set()
    assert "base" not in cli.REPORTS.names


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        (
            """[Task("a", square, {"x": object()})]""",
            cli.INVALID,
            "argument 'x' of task 'a' is a object",
        ),
        (
            """[Task("a", divide, {"x": 0.0})]""",
            cli.FAILED,
            "1 of 1 tasks of study made failed: 'a' (ZeroDivisionError",
        ),
        (
            """[Task("a", refuse, {"x": 0.0})]""",
            cli.INTERRUPTED,
            "interrupted; run the same command again to continue",
        ),
    ],
    ids=["bad input", "failed task", "interrupted"],
)
def test_what_goes_wrong_is_one_sentence_and_a_code(made, tmp_path, capsys, tasks, code, message):
    made(tasks)
    assert cli.main(["toy", "made", "--out", str(tmp_path / "out")]) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"socft: {message}")


def test_a_mistake_of_ours_keeps_its_traceback(made, tmp_path):
    made("""[][0]""")
    with pytest.raises(IndexError):
        cli.main(["toy", "made", "--out", str(tmp_path / "out")])


def test_a_folder_that_cannot_be_written_is_named(made, tmp_path, capsys):
    made(SQUARES)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert cli.main(["toy", "made", "--out", str(out)]) == cli.INVALID
    said = capsys.readouterr().err
    assert said.startswith(f"socft: {out}")
    assert said.endswith(
        " cannot be written (Not a directory); choose another folder with --out.\n"
    )


def test_a_missing_extra_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("socft.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typst", None)
    assert cli.main(["report"]) == cli.INVALID
    assert (
        capsys.readouterr().err
        == "socft: this command needs typst; run: pip install 'socft[report]'\n"
    )


def test_a_report_without_records_says_how_to_measure(tmp_path, capsys):
    assert cli.main(["report", "--records", str(tmp_path), "--out", str(tmp_path)]) == cli.INVALID
    file = tmp_path / "convergence.jsonl"
    assert (
        capsys.readouterr().err
        == f"socft: no records at {file}; measure them with: socft toy convergence --out"
        f" {tmp_path}\n"
    )
    assert os.listdir(tmp_path) == []


def _parallel(tmp_path: Path) -> subprocess.Popen:
    """Two processes at work on a study whose tasks from the third on wait for a gate."""
    folder, gate = tmp_path / "studies", tmp_path / "gate"
    folder.mkdir(exist_ok=True)
    task = f"""Task(f"square {{i}}", slow_square, {{"x": float(i), "gate": {str(gate)!r}}})"""
    tasks = f"[{task} for i in range(6)]"
    (folder / "made.py").write_text(STUDY.replace("{tasks}", tasks))
    code = f"""
import sys
import toy.studies
if __name__ == "__main__":
    toy.studies.__path__.append({str(folder)!r})
    from socft.cli import main
    sys.exit(main(["toy", "made", "--workers", "2", "--out", {str(tmp_path / "out")!r}]))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_and_keeps_what_is_finished(tmp_path):
    partial = tmp_path / "out" / "made.partial.jsonl"
    first = _parallel(tmp_path)
    _until(lambda: partial.exists() and partial.read_bytes().count(b"\n") == 3)
    os.killpg(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == cli.INTERRUPTED
    assert said.endswith("socft: interrupted; run the same command again to continue\n")
    assert "Traceback" not in said
    _until(lambda: _group_is_gone(first.pid))

    second = _parallel(tmp_path)
    assert second.stderr is not None
    assert second.stderr.readline() == "3 of 6 tasks were finished before and are kept\n"
    second.kill()
    second.communicate()
    _until(lambda: _group_is_gone(second.pid))
