"""Tries every mutant on the tests that reach it.

The tests of a suite are collected once, in a process that has imported everything. Every mutant is
a fork of that process, in which the code of one function is exchanged; tests that call the function
run there, the quickest first, until one fails. A mistake outside of functions (a constant, a
default, a field of a class) is made while the module is imported by a new process. What takes ten
times as long as it should counts as noticed. Verdicts are kept in a journal, from which a study
that was stopped continues::

    python -m tests.support.mutation.run theory claims
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.runner import runtestprotocol

from tests.support.mutation.mutants import ROOT, Mutant, code_of, compiled, is_local, mutants
from tests.support.mutation.study import SUITES, Suite

FOLDER = ROOT / "build" / "mutants"
PATIENCE, LEAST_WAIT = 5.0, 3.0
"""A mutant on which a test takes five times as long as it should, and 3 seconds, has been noticed;
seconds of the processor.
"""
PACKAGES = ("socft", "sd_experiments")
LONGEST = 20.0
"""Tests that take longer are left out."""


class Journal:
    """Verdicts of a suite, one line each."""

    def __init__(self, suite: str):
        self.file = FOLDER / f"{suite}.jsonl"
        self.rows: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["name"]] = row

    def forget_survivors(self) -> None:
        """Leave them to be tried again."""
        self.rows = {name: row for name, row in self.rows.items() if row["outcome"] == "killed"}

    def add(self, row: dict[str, Any]) -> None:
        """Keep a verdict."""
        self.rows[row["name"]] = row
        with self.file.open("a") as handle:
            handle.write(json.dumps(row) + "\n")


class Study:
    """A plugin of pytest that runs the collected tests on mutants instead of once."""

    def __init__(self, suite: Suite, chosen: Sequence[Mutant], seconds: float, budget: float):
        self.suite, self.chosen, self.seconds, self.budget = suite, chosen, seconds, budget
        self.journal = Journal(suite.name)
        self.kills: dict[tuple[str, str], Counter[str]] = {}

    def pytest_sessionstart(self) -> None:
        """What fails need not be made small."""
        import hypothesis
        from hypothesis import Phase

        phases = (Phase.explicit, Phase.generate, Phase.target)
        base = hypothesis.settings.get_profile(self.suite.profile)
        hypothesis.settings.register_profile("mutants", parent=base, phases=phases)
        hypothesis.settings.load_profile("mutants")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Baseline, then mutants."""
        torch.set_num_threads(1)
        gc.collect()
        gc.freeze()
        items = session.items
        reached = baseline(items)
        functions = functions_of({str(ROOT / m.file) for m in self.chosen})
        start = time.monotonic()
        for mutant in self.chosen:
            if mutant.name in self.journal.rows:
                continue
            if time.monotonic() - start > self.seconds:
                break
            self.journal.add(self._try(mutant, items, reached, functions))
        return True

    def _try(
        self,
        mutant: Mutant,
        items: Sequence[pytest.Item],
        reached: dict[str, dict[str, Any]],
        functions: dict[tuple[str, str], list[types.FunctionType]],
    ) -> dict[str, Any]:
        local = is_local(mutant)
        chosen = [
            item
            for item in items
            if item.nodeid in reached and _reaches(reached[item.nodeid], mutant, local)
        ]
        kills = self.kills.setdefault((mutant.file, mutant.where), Counter())
        chosen.sort(key=lambda item: _price(reached[item.nodeid]["seconds"], kills[item.nodeid]))
        chosen = _affordable(chosen, reached, self.budget)
        start = time.monotonic()
        if not chosen:
            outcome, by = "not reached", ""
        elif local and (swap := functions.get((str(ROOT / mutant.file), mutant.where))):
            outcome, by = forked(mutant, swap, chosen, reached)
        else:
            outcome, by = _imported(mutant, chosen, PATIENCE * (self.budget + LEAST_WAIT))
        kills[by] += 1
        seconds = round(time.monotonic() - start, 2)
        row = {"name": mutant.name, "outcome": outcome, "by": by, "seconds": seconds}
        print(f"{outcome:12s} {seconds:6.1f} s {mutant}"[:200], flush=True)
        return row | {"mutant": str(mutant), "file": mutant.file}


def _price(seconds: float, kills: int) -> float:
    """What is quick, or has noticed mistakes in the same function, comes first."""
    return (0.02 + seconds) / (1 + kills) ** 2


def _affordable(
    items: Sequence[pytest.Item], reached: dict[str, dict[str, Any]], budget: float
) -> list[pytest.Item]:
    spent = itertools.accumulate(reached[item.nodeid]["seconds"] for item in items)
    return [item for item, total in zip(items, spent, strict=True) if total <= budget]


def _reaches(row: dict[str, Any], mutant: Mutant, local: bool) -> bool:
    if row["outcome"] != "passed":
        return False
    if local:
        return f"{mutant.file}:{mutant.where}" in row["functions"]
    return any(each.startswith(f"{mutant.file}:") for each in row["functions"])


def functions_of(files: set[str]) -> dict[tuple[str, str], list[types.FunctionType]]:
    """All functions of some files, however they are wrapped."""
    gc.unfreeze()
    found: dict[tuple[str, str], list[types.FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is types.FunctionType and each.__code__.co_filename in files:
            key = each.__code__.co_filename, each.__code__.co_qualname
            found.setdefault(key, []).append(each)
    gc.freeze()
    return found


def baseline(items: Sequence[pytest.Item]) -> dict[str, dict[str, Any]]:
    """How long every test takes, and which functions of the packages it calls; kept beside the
    journals, and measured for tests that are not known yet.
    """
    file = FOLDER / "reached.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    known = {row["test"]: row for row in map(json.loads, lines)}
    missing = [item for item in items if item.nodeid not in known]
    _import_all(each for row in known.values() for each in row["imported"])
    for k, item in enumerate(missing):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, 2 * LONGEST)
            _measure(item, writer)
        os.close(writer)
        text = _read(reader, child)
        row = json.loads(text) if text else {"outcome": "too long", "seconds": 2 * LONGEST}
        known[item.nodeid] = {"test": item.nodeid, "functions": [], "imported": []} | row
        with file.open("a") as handle:
            handle.write(json.dumps(known[item.nodeid]) + "\n")
        _import_all(known[item.nodeid]["imported"])
        print(f"{k + 1}/{len(missing)} {row['outcome']} {row['seconds']:.1f} s {item.nodeid}")
    return {key: row for key, row in known.items() if row["seconds"] <= LONGEST}


def _import_all(modules: Iterable[str]) -> None:
    """What tests import while they run, so that forks need not."""
    for each in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(each)


def _measure(item: pytest.Item, writer: int) -> None:
    """In a fork: run one test, and say which functions it called."""
    called: set[str] = set()
    packages = tuple(str(ROOT / name) for name in PACKAGES)

    def note(frame: types.FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(packages):
            where = frame.f_code.co_qualname.split(".<locals>")[0]
            called.add(f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{where}")

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    start, already = time.process_time(), set(sys.modules)
    sys.setprofile(note)
    outcome = "passed" if _passes([item]) is None else "failed"
    sys.setprofile(None)
    row = {
        "outcome": outcome,
        "seconds": round(time.process_time() - start, 3),
        "functions": sorted(called),
        "imported": sorted(sys.modules.keys() - already),
    }
    os.write(writer, json.dumps(row).encode())
    os._exit(0)


def _passes(
    items: Sequence[pytest.Item], before: Callable[[pytest.Item], None] = lambda _: None
) -> str | None:
    """The first test that fails."""
    for k, item in enumerate(items):
        before(item)
        following = items[k + 1] if k + 1 < len(items) else None
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            return item.nodeid
    return None


def forked(
    mutant: Mutant,
    functions: Sequence[types.FunctionType],
    items: Sequence[pytest.Item],
    reached: dict[str, dict[str, Any]],
) -> tuple[str, str]:
    codes = code_of(compiled(mutant), mutant.where)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        by: str | None = "exchange failed"
        with contextlib.suppress(ValueError):
            for function in functions:
                for code in codes:
                    if code.co_firstlineno == function.__code__.co_firstlineno:
                        function.__code__ = code
            by = _passes(items, lambda item: _alarm(reached[item.nodeid]["seconds"]))
        os.write(writer, (by or "survived").encode())
        os._exit(0)
    os.close(writer)
    text = _read(reader, child)
    if text == "exchange failed":
        return _imported(mutant, items, PATIENCE * (60 + LEAST_WAIT))
    return ("survived", "") if text == "survived" else ("killed", text or "time or crash")


def _alarm(seconds: float) -> None:
    """End this process if the test that begins takes too long."""
    signal.setitimer(signal.ITIMER_PROF, PATIENCE * seconds + LEAST_WAIT)


def _read(reader: int, child: int) -> str:
    """What a fork says before it ends."""
    with open(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text.decode()


def _imported(mutant: Mutant, items: Sequence[pytest.Item], seconds: float) -> tuple[str, str]:
    """The tests in a new process, which imports the mutant."""
    command = [sys.executable, "-m", __spec__.name, "--one", mutant.name, mutant.file]
    try:
        done = subprocess.run(
            [*command, *(item.nodeid for item in items)],
            timeout=seconds,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return "killed", "time or crash"
    if done.returncode == 0:
        return "survived", ""
    names = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return "killed", names[0].split(" - ")[0].split(" ", 1)[1] if names else "import"


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a mutant in place of its module."""

    def __init__(self, mutant: Mutant):
        self.mutant = mutant

    def find_spec(self, fullname: str, path: object, target: object = None):
        if fullname != self.mutant.module:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)  # type: ignore[arg-type]
        assert found is not None
        found.loader = self
        return found

    def exec_module(self, module: types.ModuleType) -> None:
        exec(compiled(self.mutant), module.__dict__)


def _one(name: str, file: str, tests: Sequence[str]) -> int:
    (mutant,) = (each for each in mutants(file) if each.name == name)
    sys.meta_path.insert(0, _Importer(mutant))
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("suite", nargs="?", choices=SUITES, help="which tests, and which modules")
    parser.add_argument("patterns", nargs="*", help="modules, instead of all of the suite's")
    parser.add_argument("--minutes", type=float, default=1e6, help="when to stop")
    parser.add_argument(
        "--budget", type=float, default=10.0, help="seconds of tests for every mutant"
    )
    parser.add_argument("--every", type=int, default=1, help="one mutant in so many")
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--one", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return _one(options.one[0], options.one[1], options.one[2:])
    suite = SUITES[options.suite]
    FOLDER.mkdir(parents=True, exist_ok=True)
    chosen = list(mutants(*(options.patterns or suite.modules)))[:: options.every]
    study = Study(suite, chosen, 60 * options.minutes, options.budget)
    if options.again:
        study.journal.forget_survivors()
    arguments = ["-q", "-p", "no:cacheprovider", *suite.tests]
    return int(pytest.main(arguments, plugins=[study]))


if __name__ == "__main__":
    raise SystemExit(main())
