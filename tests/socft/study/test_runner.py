"""A study gives the same records however it runs: interrupted or not, in one process or in
several.
"""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from socft.checks import InvalidProblem
from socft.records import Record, read
from socft.study import digest
from socft.study.digest import fingerprint
from socft.study.runner import StudyFailed, run
from socft.study.tasks import Study, Task
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.study.vocabulary.schema import StudySchema
from socft.study.workers import workers
from tests.support.squares import (
    COUNT,
    SQUARES,
    die,
    divide,
    not_records,
    slow_square,
    square,
    study,
)

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_SECONDS = (
    60  # a process that imports torch starts within a few seconds, more on a busy machine
)


def timeless(records: list[Record]) -> list[Record]:
    return [dataclasses.replace(record, seconds=None) for record in records]


def test_records_come_in_the_order_of_the_tasks(tmp_path):
    records = run(study(), False, tmp_path)
    assert [(r.metric, r.value) for r in records] == [
        (m, float(i) ** p) for i in range(COUNT) for m, p in ((Metric.BIAS, 1), (Metric.MSE, 2))
    ]
    assert read(tmp_path / "squares.jsonl") == records
    assert os.listdir(tmp_path) == ["squares.jsonl"]


def spread(x: float, seeds: int) -> list[Record]:
    return [Record("squares", "p", Metric.BIAS, x, {"seed": seed}) for seed in range(seeds)]


def test_seeds_are_passed_to_tasks_that_repeat(tmp_path):
    repeated = Task("repeated", spread, {"x": 1.0, "seeds": 2})
    mixed = Study(SQUARES, lambda quick: [repeated, Task("once", square, {"x": 1.0})])
    assert len(run(mixed, False, tmp_path)) == 2 + 2
    assert len(run(mixed, False, tmp_path, seeds=5)) == 5 + 2
    with pytest.raises(InvalidProblem, match="seeds = 0; give at least 1"):
        run(mixed, False, tmp_path, seeds=0)
    with pytest.raises(InvalidProblem, match="study squares has no repetitions"):
        run(study(), False, tmp_path, seeds=5)


def test_the_quick_scale_is_passed_on(tmp_path):
    assert len(run(study(), True, tmp_path)) == 2 * (COUNT - 2)


class Backwards(ThreadPoolExecutor):
    """Finishes later tasks first."""

    def submit(self, fn, /, *args, **kwargs):
        return super().submit(self._delayed, fn, *args, **kwargs)

    @staticmethod
    def _delayed(fn, task):
        time.sleep(0.05 * (COUNT - task.arguments["x"]))
        return fn(task)


def test_the_order_of_completion_does_not_matter(tmp_path):
    with Backwards(COUNT) as executor:
        records = run(study(), False, tmp_path / "backwards", executor)
    assert timeless(records) == timeless(run(study(), False, tmp_path / "serial"))


def test_processes_give_the_same_records(tmp_path):
    with workers(2) as executor:
        records = run(study(), False, tmp_path / "parallel", executor)
    assert timeless(records) == timeless(run(study(), False, tmp_path / "serial"))


def test_a_failing_task_loses_only_itself(tmp_path):
    log = tmp_path / "log"
    tasks = [Task("bad", divide, {"x": 0.0}), *study(log=str(log)).tasks(False)]
    with pytest.raises(
        StudyFailed,
        match=r"1 of 7 tasks .* failed: 'bad' \(ZeroDivisionError: float division by zero\)",
    ) as failure:
        run(Study(SQUARES, lambda _: tasks), False, tmp_path)
    assert not (tmp_path / "squares.jsonl").exists()
    errors = tmp_path / "squares.errors.txt"
    assert str(errors) in str(failure.value)
    assert "in divide" in errors.read_text()
    mended = [Task("bad", divide, {"x": 4.0}), *tasks[1:]]
    records = run(Study(SQUARES, lambda _: mended), False, tmp_path)
    assert records[0].value == 0.25
    assert len(log.read_text().split()) == COUNT, "the tasks that had not failed ran again"
    assert sorted(os.listdir(tmp_path)) == ["log", "squares.jsonl"]


@pytest.mark.slow
def test_a_dying_process_loses_only_its_own_task(tmp_path):
    with (
        pytest.raises(StudyFailed, match=r"1 of 6 tasks .*'square 2' \(its process died"),
        workers(2) as executor,
    ):
        run(study(die), False, tmp_path, executor)
    records = run(
        Study(SQUARES, lambda _: [t for t in study(die).tasks(False) if t.name != "square 2"]),
        False,
        tmp_path,
    )
    assert len(records) == 2 * (COUNT - 1)


def test_what_a_task_returns_is_checked(tmp_path):
    with pytest.raises(StudyFailed, match="not_records must return a list of records"):
        run(study(not_records), False, tmp_path)


def _script(folder: Path, gate: Path) -> subprocess.Popen:
    code = f"""
from pathlib import Path
from tests.support.squares import slow_square, study
from socft.study.runner import run
run(study(slow_square, gate={str(gate)!r}), False, Path({str(folder)!r}))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def _until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.02)


def test_a_killed_run_continues_where_it_was(tmp_path, capfd):
    gate, folder = tmp_path / "gate", tmp_path / "killed"
    partial = folder / "squares.partial.jsonl"
    first = _script(folder, gate)
    _until(lambda: partial.exists() and partial.read_bytes().count(b"\n") == 3)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    with partial.open("ab") as stream:
        stream.write(partial.read_bytes().splitlines()[-1][:40])
    gate.touch()
    capfd.readouterr()
    run(study(slow_square, gate=str(gate)), False, folder)
    assert "3 of 6 tasks were finished before and are kept" in capfd.readouterr().err
    whole = run(study(slow_square, gate=str(gate)), False, tmp_path / "whole")
    assert timeless(read(folder / "squares.jsonl")) == timeless(whole)
    assert os.listdir(folder) == ["squares.jsonl"]


def _interrupted(folder: Path, log: Path) -> None:
    """A run that was stopped after its first three tasks."""
    tasks = study(log=str(log)).tasks(False)
    with pytest.raises(StudyFailed):
        run(Study(SQUARES, lambda _: [*tasks[:3], Task("bad", divide, {"x": 0.0})]), False, folder)
    log.write_text("")


@pytest.mark.parametrize(
    "damage", [b'{"task": "squa', b"\xff\xfe\n", b"[]\n", b"3\n", b'{"task": 1}\n']
)
def test_damage_costs_only_the_damaged_line(tmp_path, damage):
    log = tmp_path / "log"
    _interrupted(tmp_path, log)
    with (tmp_path / "squares.partial.jsonl").open("ab") as stream:
        stream.write(damage)
    run(study(log=str(log)), False, tmp_path)
    assert log.read_text().split() == ["3", "4", "5"]


def test_a_changed_line_of_the_journal_is_measured_again(tmp_path, capfd):
    """Also where it is still a journal's line of records: a digit, or a line of another task."""
    log, file = tmp_path / "log", tmp_path / "squares.partial.jsonl"
    _interrupted(tmp_path, log)
    lines = file.read_text().splitlines(keepends=True)
    changed = lines[1].replace('"value": 1.0', '"value": 7.0')
    assert changed != lines[1]
    file.write_text("".join([lines[0], changed, lines[2]]))
    capfd.readouterr()
    records = run(study(log=str(log)), False, tmp_path)
    assert log.read_text().split() == ["1", "3", "4", "5"]
    assert records[2].value == 1.0
    said = capfd.readouterr().err.splitlines()
    assert f"line 2 of {file} is not what was written there; it is measured again." in said


def test_fresh_forgets(tmp_path):
    log = tmp_path / "log"
    _interrupted(tmp_path, log)
    run(study(log=str(log)), False, tmp_path, fresh=True)
    assert len(log.read_text().split()) == COUNT


def test_changed_code_is_measured_again(tmp_path, monkeypatch):
    log = tmp_path / "log"
    _interrupted(tmp_path, log)
    monkeypatch.setattr(digest, "code_version", lambda module: "another version")
    run(study(log=str(log)), False, tmp_path)
    assert len(log.read_text().split()) == COUNT


def test_the_fingerprint_follows_the_packages_that_a_module_imports(tmp_path, monkeypatch):
    for name, text in {
        "house/__init__": "",
        "house/door": "from house.hinge import turn\nimport torch\n",
        "house/hinge": "def turn():\n    from garden.gate import open\n",
        "house/roof": "",
        "garden/__init__": "",
        "garden/gate": "open = 1\n",
    }.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    (tmp_path / "socft").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(digest.socft, "__file__", str(tmp_path / "socft" / "__init__.py"))
    assert set(digest._packages("house.door")) == {"socft", "house", "garden"}
    assert set(digest._packages("house.roof")) == {"socft", "house"}
    versions = []
    for text in ("open = 1\n", "open = 2\n"):
        (tmp_path / "garden" / "gate.py").write_text(text)
        digest.code_version.cache_clear()
        versions.append([digest.code_version(f"house.{name}") for name in ("door", "roof")])
    (door, roof), (other_door, other_roof) = versions
    assert door != other_door
    assert roof == other_roof


def test_a_study_depends_on_the_claims_where_it_measures_them():
    assert set(digest._packages("toy.studies.tightness")) == {"socft", "toy", "verify"}
    assert set(digest._packages("toy.studies.linear")) == {"socft", "toy"}


def test_statements_have_one_structure_whatever_else_a_version_of_python_says():
    code = "def g(x):\n    return [x, None, 0, '']\n"
    plain, newer = ast.parse(code), ast.parse(code)
    newer.body[0]._fields += ("type_params",)  # type: ignore[misc]
    newer.body[0].type_params = []  # type: ignore[attr-defined]
    assert ast.dump(newer) != ast.dump(plain)
    assert digest.structure(newer) == digest.structure(plain)
    others = [code.replace("None, 0", each) for each in ("0, None", "None, 0.0", "None, []")]
    structures = [digest.structure(ast.parse(each)) for each in (code, *others)]
    assert all(a != b for a, b in itertools.combinations(structures, 2))


def test_the_fingerprint_tells_arguments_apart():
    base = Task("t", square, {"x": 1.0, "options": {"a": [1, 2]}})
    others = [
        Task("u", square, base.arguments),
        Task("t", divide, base.arguments),
        Task("t", square, {"x": 1.0, "options": {"a": [1, 3]}}),
        Task("t", square, {"x": 2.0, "options": {"a": [1, 2]}}),
        Task("t", square, {"x": "1.0", "options": {"a": [1, 2]}}),
    ]
    assert len({fingerprint(task) for task in [base, *others]}) == 1 + len(others)
    assert fingerprint(base) == fingerprint(Task("t", square, {"options": {"a": (1, 2)}, "x": 1.0}))


def test_arguments_must_be_plain(tmp_path):
    with pytest.raises(
        InvalidProblem, match="argument 'x' of task 'square 0' is a object; give plain numbers"
    ):
        run(study(x=object()), False, tmp_path)


def test_tasks_must_have_different_names(tmp_path):
    with pytest.raises(
        InvalidProblem, match="study squares has several tasks named 'a'; give each its own name"
    ):
        run(Study(SQUARES, lambda _: [Task("a", square, {"x": 1.0})] * 2), False, tmp_path)
    with pytest.raises(InvalidProblem, match="study squares has no tasks"):
        run(Study(SQUARES, lambda _: []), False, tmp_path)


def test_names_outside_the_schema_are_refused_and_measured_again_when_they_are_in_it(tmp_path):
    narrow = StudySchema("squares", frozenset({Metric.BIAS}))
    tasks = study().tasks(False)
    with pytest.raises(StudyFailed, match=r"6 of 6 .* does not measure 'mse' on 'p'"):
        run(Study(narrow, lambda _: tasks), False, tmp_path)
    assert not (tmp_path / "squares.jsonl").exists()
    elsewhere = dataclasses.replace(SQUARES, problems=frozenset({ProblemName.MIXTURE}))
    with pytest.raises(StudyFailed, match=r"6 of 6 .* does not measure 'bias' on 'p'"):
        run(Study(elsewhere, lambda _: tasks), False, tmp_path)
    assert len(run(study(), False, tmp_path)) == 2 * COUNT


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    with (tmp_path / "squares.partial.jsonl").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(
            InvalidProblem, match=r"another run is writing to .*squares\.partial\.jsonl; .*--out"
        ):
            run(study(), False, tmp_path)


def test_workers_must_be_some():
    with pytest.raises(InvalidProblem, match="workers = 0; give a whole number"), workers(0):
        pass


def test_progress_is_one_line_per_task_away_from_a_terminal(tmp_path, capfd):
    run(study(), True, tmp_path)
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition(":")[0] for line in lines] == [
        f"[{i + 1}/4] square {i}" for i in range(4)
    ]
