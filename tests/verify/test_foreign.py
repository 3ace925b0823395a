"""Claims and studies of a user's, in a folder that is not the checkout's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from socft import cli
from socft.checks import InvalidProblem
from socft.records import read
from socft.study import digest
from tests.support.documents import files
from verify.support.command import _is_elsewhere, foreign_files
from verify.support.recording.records import read_records

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "verify"
NAMES = cli.CLAIMS.names


def documented(name: str) -> str:
    """The code of a file that the documentation shows."""
    return files(ROOT)[name]


def socft(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "socft.cli", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_claims_from_anywhere_get_a_verdict_where_the_user_stands(tmp_path):
    """One of a file, one of a package with its own helper, and the refutation of a false one."""
    (tmp_path / "halving.py").write_text(documented("halving.py"))
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("from halving import *\nfrom halving import gain\n")
    claim = (
        documented("halving.py").partition("\n\n\ndef gain")[0] + "\nfrom mine.helper import gain\n"
    )
    (package / "doubling.py").write_text(
        claim.replace('"halving"', '"doubling"')
        + "def test_holds():\n    CLAIM.holds(gain(-1.0, 2.0), gain(-1.0, 4.0), {'P': -1.0})\n"
    )
    done = socft(tmp_path, "verify", "halving.py", "mine:doubling")
    assert done.returncode == cli.FAILED
    assert "1 of 2 claims are not verified" in done.stderr
    assert "doubling is refuted: inequality" in done.stderr
    found = read_records(tmp_path / "build" / "records" / "verify.jsonl")
    assert {name: line["status"] for name, line in found.items()} == {
        "halving": "verified",
        "doubling": "refuted",
    }
    assert found["halving"]["control"]
    assert abs(found["halving"]["attained"] - 1) < 1e-6
    assert found["halving"]["file"] == str(tmp_path / "halving.py")
    assert _is_elsewhere(found["halving"])


def test_what_is_given_is_parted_into_patterns_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("CLAIM = 1\n")
    (tmp_path / "lemma_2_5.py").write_text("CLAIM = 1\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    inside = str(FOLDER / "lemma_2_5.py")
    for given in (["mine.py"], ["mine"], [str(tmp_path / "mine.py"), "mine"]):
        assert foreign_files(given, FOLDER, NAMES) == ([], [tmp_path / "mine.py"])
    assert foreign_files(["lemma_2_5", inside, "lemma_*"], FOLDER, NAMES) == (
        ["lemma_2_5", "lemma_2_5", "lemma_*"],
        [],
    )
    for given, said in (
        ("lemma_2_5.py", "has the name of the built-in claim lemma_2_5; rename the file."),
        ("empty.py", "empty.py defines no CLAIM; name the claim so"),
        ("mien.py", "there is no file mien.py; did you mean mine.py?"),
        ("mine:x:y", "there is no module 'mine:x:y'"),
        ("no.such.module", "there is no module 'no.such.module'"),
    ):
        with pytest.raises(InvalidProblem, match=re.escape(said)):
            foreign_files([given], FOLDER, NAMES)


def test_a_study_of_a_file_is_measured_where_the_user_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "squares.py").write_text(documented("squares.py"))
    (tmp_path / "nothing.py").write_text("x = 1\n")
    assert cli.main(["toy", "squares.py", "--quick"]) == 0
    assert [each.value for each in read(Path("build/records/squares.jsonl"))] == [0.0, 1.0]
    assert "next: python -c" in capsys.readouterr().out
    assert cli.main(["toy", "nothing.py"]) == cli.INVALID
    assert capsys.readouterr().err == "socft: nothing.py defines no STUDY; name the study so.\n"
    with pytest.raises(SystemExit):
        cli.main(["toy", "squares.py", "--help"])
    sys.modules.pop("squares")


def test_a_change_of_a_users_file_is_a_change_of_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_user.py").write_text("import beside_user\n")
    (tmp_path / "beside_user.py").write_text("x = 1\n")
    versions = []
    for name in ("of_user", "beside_user", "unrelated"):
        versions.append(digest.code_version("of_user"))
        digest.code_version.cache_clear()
        (tmp_path / f"{name}.py").write_text("import beside_user\ny = 2\n")
    versions.append(digest.code_version("of_user"))
    digest.code_version.cache_clear()
    assert len(set(versions)) == 3
    assert versions[2] == versions[3]
    sys.modules.pop("of_user")


def test_the_records_are_plain_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "squares.py").write_text(documented("squares.py"))
    assert cli.main(["toy", "squares.py", "--json", "all.json"]) == 0
    assert [each["value"] for each in json.loads(Path("all.json").read_text())] == [
        float(x * x) for x in range(9)
    ]
    sys.modules.pop("squares")
