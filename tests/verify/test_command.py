"""`socft verify` on a small folder of claims: what it records, shows and refuses, from one process
or many, and how it resumes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import verify as package
from socft import files
from socft.checks import InvalidProblem
from socft.cli import CLAIMS, main
from socft.files import locked
from verify.support.command import Board, ClaimsFailed, Run, select, verify
from verify.support.recording.records import read_records

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = (
    60  # processes that import torch start within a few seconds, more on a busy machine
)
HEAD = """
import time
from hypothesis import given, strategies as st
from verify.support.claims import Claim
from verify.support.topics import OTHER
CLAIM = Claim(__name__.split(".")[-1], "Made", OTHER, "$x ≤ 1$", "derived here", "tight")
"""
GOOD = """
@given(st.sampled_from([0, 500, 1000]))
def test_holds(n):
    CLAIM.holds(n / 1001, 1.0, {"n": n})
def test_is_attained():
    CLAIM.attained(1.0, 1.0, {"n": 1001})
def test_needs_it():
    CLAIM.breaks(2.0, 1.0, {"n": 2002})
"""
FALSE = """
@given(st.integers(0, 1000))
def test_holds(n):
    CLAIM.holds(n / 700, 1.0, {"n": n})
"""
ERROR = """
def test_holds():
    CLAIM.holds(0.5, 1.0, {})
def test_is_attained():
    raise ZeroDivisionError("no such instance")
"""
EMPTY = """
def test_holds():
    pass
"""
BROKEN = """
import no_such_module
"""
SLOW = """
def test_holds():
    CLAIM.holds(0.5, 1.0, {})
    time.sleep(120)
"""
MANY = """
import pytest
@pytest.mark.parametrize("n", range(4))
def test_holds(n):
    CLAIM.holds(n / 4, 1.0, {"n": n})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package of claims with the machinery of the real one."""
    made = tmp_path / "verify"
    made.mkdir()
    for name in ("__init__.py", "conftest.py"):
        shutil.copy(Path(package.__path__[0]) / name, made)
    shutil.copytree(Path(package.__path__[0]) / "support", made / "support")
    return made


def write(folder: Path, **bodies: str) -> None:
    for name, body in bodies.items():
        (folder / f"{name}.py").write_text(HEAD + body)


def check(folder: Path, *names: str, **options) -> str:
    """Check some claims; returns what was shown."""
    shown = StringIO()
    run = Run(folder, names, folder.parent / "verify.jsonl", folder.parent / "state", **options)
    try:
        verify(run, console=Console(file=shown, width=200))
    except ClaimsFailed as failed:
        return shown.getvalue() + str(failed)
    return shown.getvalue()


def rows(folder: Path) -> dict[str, dict]:
    return read_records(folder.parent / "verify.jsonl")


@pytest.mark.slow
def test_every_outcome_is_recorded_and_parallel_runs_merge(folder):
    """A claim is shown once when all its tests ran, those with parameters too. Checked again it
    says the same, one whose file is gone is forgotten, the others stay, and one without tests is no
    success.
    """
    bodies = {"good": GOOD, "false": FALSE, "error": ERROR, "empty": EMPTY, "broken": BROKEN}
    write(folder, **bodies, many=MANY, gone=GOOD)
    shown = check(folder, "many", *bodies, "gone", workers=2)
    found = rows(folder)
    statuses = {name: row["status"] for name, row in found.items()}
    unmeasured = "not measured"
    assert statuses == {
        "good": "verified",
        "many": "verified",
        "gone": "verified",
        "false": "refuted",
        "error": unmeasured,
        "empty": unmeasured,
        "broken": unmeasured,
    }
    good = found["good"]
    assert (good["attained"], good["control"], good["instance"], good["ratio"]) == (
        1.0,
        True,
        {"n": 1000},
        1000 / 1001,
    )
    parts = {
        (part["how"], part["part"]): (part["checked"], part["measured"], part["instance"])
        for part in good["parts"]
    }
    assert parts.keys() == {("inequality", ""), ("attained", ""), ("negative control", "")}
    assert parts["inequality", ""] == (good["checked"] - 1, 1000 / 1001, {"n": 1000})
    assert parts["negative control", ""] == (1, 2.0, {"n": 2002})
    assert sum(good["histogram"]["checks"]) == good["checked"] - 1, (
        "extremal instances are not ranked"
    )
    assert found["false"]["instance"] == {"n": 701}, "the smallest instance that refutes it"
    assert found["error"]["errors"] == ["test_is_attained: ZeroDivisionError: no such instance"]
    assert "no_such_module" in found["broken"]["errors"][0]
    assert "4 of 7 claims are not verified" in shown
    assert 'false is refuted: inequality, measured 1.001, bound 1, at {"n": 701}' in shown
    assert "good: verified (worst ratio 0.999, attained 1;" in shown
    assert shown.count("many: verified") == 1
    assert "worst ratio 0.75; 4 checks" in shown
    (folder / "gone.py").unlink()
    write(folder, silent="")
    again = check(folder, "good", "silent")
    assert "good: verified" in again
    assert "nothing was heard of silent to the end" in again
    del found["gone"]
    assert _without_time(rows(folder)) == _without_time(found)


def _without_time(found: dict[str, dict]) -> dict[str, dict]:
    return {name: {k: v for k, v in row.items() if k != "seconds"} for name, row in found.items()}


@pytest.mark.slow
def test_partial_run_changes_no_record(folder):
    """Only some tests of a claim ran: its line, and every other, stays."""
    write(folder, good=GOOD)
    file = folder.parent / "verify.jsonl"
    old = '{"claim": "good", "status": "old"}\n{"claim": "other", "status": "old"}\n'
    file.write_text(old)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "verify/good.py",
        "-k",
        "attained",
        f"--records={file}",
        "-o",
        "python_files=verify/*.py",
    ]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True)
    assert file.read_text() == old
    assert (
        f"good: its line in {file} is unchanged, because only some of its tests ran" in done.stdout
    )


@pytest.mark.slow
def test_search_continues_where_it_was(folder):
    """New seeds until the time is spent, in this run or an earlier one of the same code."""
    write(folder, good=GOOD)
    seeds, checks = [], []
    for minutes in (0.01, 0.02):
        check(folder, "good", minutes=minutes)
        seeds.append(rows(folder)["good"]["seed"])
        checks.append(rows(folder)["good"]["checked"])
    assert 0 < seeds[0] < seeds[1]
    assert 100 < checks[0] < checks[1]
    write(folder, good=GOOD + "\n# changed\n")
    check(folder, "good", minutes=0.001)
    assert rows(folder)["good"]["seed"] < seeds[0], (
        "what another version of the claim found does not count"
    )


@pytest.mark.slow
def test_interruption_keeps_what_is_finished(folder):
    write(folder, a=GOOD, b=SLOW)
    code = f"""
from pathlib import Path
from verify.support.command import Run, verify
folder = Path({str(folder)!r})
verify(Run(folder, ["a", "b"], folder.parent / "verify.jsonl", folder.parent / "state"))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("a: verified")
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_SECONDS)
    assert process.returncode != 0
    assert {name: row["status"] for name, row in rows(folder).items()} == {"a": "verified"}


CHECK = """
import sys
from pathlib import Path
from verify.support.command import Run, verify
if __name__ == "__main__":
    folder, workers, *names = sys.argv[1:]
    folder = Path(folder)
    run = Run(folder, names, folder.parent / "verify.jsonl", folder.parent / "state",
              workers=int(workers))
    verify(run)
"""


def checking(folder: Path, workers: int, *names: str) -> subprocess.Popen[str]:
    """A process that checks claims."""
    return subprocess.Popen(
        [sys.executable, "-c", CHECK, str(folder), str(workers), *names],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def mentioning(word: str) -> set[int]:
    """Processes whose command line has a word."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in file.read_bytes():
                found.add(int(file.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_one_that_started_them(folder, how):
    """What was finished is on disk, and no process runs on, whichever way the command is ended."""
    write(folder, a=GOOD, b=SLOW)
    with checking(folder, 2, "a", "b") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("a: verified")
        process.send_signal(how)
        process.wait(PATIENCE_SECONDS)
    assert process.returncode == -how
    deadline = time.monotonic() + PATIENCE_SECONDS
    while mentioning(str(folder)):
        assert time.monotonic() < deadline, "processes run on"
        time.sleep(0.1)
    assert {name: row["status"] for name, row in rows(folder).items()} == {"a": "verified"}


@pytest.mark.slow
def test_records_that_cannot_be_written_are_no_success(folder, monkeypatch):
    """The process that checks cannot write: neither can this one, and it says so."""
    write(folder, good=GOOD)
    (folder / "conftest.py").write_text(
        (folder / "conftest.py").read_text()
        + "\n\ndef update_records(*_):\n    raise OSError(28)\n"
    )
    monkeypatch.setattr(files.os, "fsync", _full)
    with pytest.raises(OSError, match=r"No space left on device: .*verify\.jsonl"):
        check(folder, "good")
    assert not (folder.parent / "verify.jsonl").exists()


def _full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_second_run_beside_this_one_is_refused(folder):
    write(folder, good=GOOD)
    locks = Run(folder, ["good"], folder.parent / "verify.jsonl", folder.parent / "state").locks
    for each in locks:
        with locked(each), pytest.raises(InvalidProblem, match=f"another run is writing to {each}"):
            check(folder, "good")
        assert not each.exists()


def test_damaged_records_are_refused_before_anything_runs(folder):
    file = folder.parent / "verify.jsonl"
    for text, said in (('{"claim": "go', "Unterminated string"), ("[]", "no JSON object")):
        file.write_text(text + "\n")
        with pytest.raises(InvalidProblem, match=rf"^line 1 of {file} is damaged: .*{said}"):
            check(folder, "good")
        assert file.read_text() == text + "\n"


def test_bad_input_is_refused(folder, capsys):
    for options, message in (
        ({"minutes": -1.0}, "minutes = -1; give a number that is not negative."),
        ({"workers": 0}, "workers = 0; give at least 1."),
    ):
        with pytest.raises(InvalidProblem, match=message):
            check(folder, "good", **options)
    with pytest.raises(InvalidProblem, match="there are no claims in"):
        check(folder)
    assert main(["verify", "lema_3_3"]) == 2
    assert (
        "socft: there is no claim named 'lema_3_3', or beginning so; did you mean lemma_3_3"
        in capsys.readouterr().err
    )


NAMES = ("contraction", "lemma_3_3", "lemma_3_4", "theorem_2_8_i_a", "theorem_2_8_ii_b")


@pytest.mark.parametrize(
    ("patterns", "meant"),
    [
        ((), NAMES),
        (("lemma_3_3",), ("lemma_3_3",)),
        (("theorem_2_8_i",), ("theorem_2_8_i_a",)),
        (("theorem_2_8_i*",), ("theorem_2_8_i_a", "theorem_2_8_ii_b")),
        (("theorem", "lemma-3"), ("lemma_3_3", "lemma_3_4", "theorem_2_8_i_a", "theorem_2_8_ii_b")),
        (("lem",), ("lemma_3_3", "lemma_3_4")),
        (("*_3_4", "con"), ("contraction", "lemma_3_4")),
    ],
)
def test_claims_are_named_by_their_beginning_or_a_glob(patterns, meant):
    assert select(patterns, NAMES) == list(meant)


@pytest.mark.parametrize("pattern", ["", "zzz", "corollary_*"])
def test_pattern_that_means_no_claim_is_refused(pattern):
    with pytest.raises(InvalidProblem, match=f"the claims are: {', '.join(NAMES)}"):
        select([pattern], NAMES)


def test_documented_selection_means_claims():
    assert select(["theorem_2_8_i"], CLAIMS.names) == [
        "theorem_2_8_i_value_lipschitz",
        "theorem_2_8_i_value_smoothness",
    ]


def test_crash_of_the_checking_process_is_reported(folder):
    (folder / "conftest.py").write_text("raise RuntimeError('out of order')")
    write(folder, good=GOOD)
    shown = check(folder, "good")
    assert "pytest ended with code" in shown
    assert "out of order" in shown


def test_table_shows_progress_on_a_terminal():
    shown = StringIO()
    board = Board(
        ["good", "false"], Console(file=shown, force_terminal=True, width=120, color_system=None)
    )
    line = {
        "claim": "good",
        "ratio": 0.25,
        "ratio_sharp": None,
        "attained": 1.0,
        "checked": 7,
        "seconds": 1.3,
        "status": "verified",
    }
    with board:
        board.add([{"claim": "false", "running": "test_holds"}, line | {"pending": []}])
        board.add([{"claim": "false", "searched": 3, "ratio": 0.5}])
    text = shown.getvalue()
    last = [row.split() for row in text[text.rindex("claim") :].splitlines()[1:3]]
    assert last[0] == ["good", "verified", "0.25", "1", "7", "1.3"]
    assert last[1] == ["false", "searching,", "seed", "3"]
    assert board.lines == {"good": line}
