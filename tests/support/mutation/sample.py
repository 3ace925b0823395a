"""Fifty mutants and the test that notices each, kept in ``tests/mutants.toml`` beside the verdicts
on those that none does.

``python -m tests.support.mutation.sample`` tries them again and fails if one survives; with
``--choose`` it writes fifty anew from the journals of a study.
"""

from __future__ import annotations

import argparse
import json
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.mutation.mutants import ROOT, Mutant, is_local, mutants
from tests.support.mutation.run import FOLDER, forked, functions_of
from tests.support.mutation.study import SUITES

FILE = ROOT / "tests" / "mutants.toml"
SIZE = 50
FIELDS = ("file", "where", "operator", "before", "after")
"""What a mutant is known by, whatever else changes in its function."""
PATIENCE = 10.0
"""Seconds of the processor after which a test on a mutant has noticed it."""
QUICK = 1.5
"""Seconds in which a test of the sample noticed its mutant."""


def entries(file: Path = FILE) -> list[dict[str, str]]:
    """Mutants of the sample, each with its test."""
    return tomllib.loads(file.read_text())["sample"]


def found(rows: Sequence[Mapping[str, str]]) -> Iterator[tuple[Mutant, str]]:
    """Those that the code still has, each with its test."""
    known = {
        tuple(getattr(mutant, name) for name in FIELDS): mutant
        for mutant in mutants(*sorted({row["file"] for row in rows}))
    }
    for row in rows:
        mutant = known.get(tuple(row[name] for name in FIELDS))
        if mutant is not None:
            yield mutant, row["test"]


class Sample:
    """A plugin of pytest that runs every test on its mutant."""

    def __init__(self, pairs: Sequence[tuple[Mutant, str]]):
        self.pairs = pairs
        self.survivors: list[Mutant] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All of them."""
        torch.set_num_threads(1)
        functions = functions_of({str(ROOT / mutant.file) for mutant, _ in self.pairs})
        items = {item.nodeid: item for item in session.items}
        for mutant, test in self.pairs:
            swap = functions[str(ROOT / mutant.file), mutant.where]
            outcome, _ = forked(mutant, swap, [items[test]], {test: {"seconds": PATIENCE}})
            if outcome != "killed":
                self.survivors.append(mutant)
            print(f"{outcome:9s} {mutant}", flush=True)
        return True


def choose(size: int = SIZE) -> list[dict[str, str]]:
    """Quickly noticed mutants, spread over the modules; always the same."""
    rows = [row for suite in SUITES.values() for row in _journal(suite.name) if _is_quick(row)]
    known = {mutant.name: mutant for mutant in mutants(*sorted({row["file"] for row in rows}))}
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["name"] in known and is_local(known[row["name"]]):
            by_file.setdefault(row["file"], []).append(row)
    draw = random.Random(0)
    for each in by_file.values():
        draw.shuffle(each)
    chosen: list[dict[str, Any]] = []
    while len(chosen) < size and any(by_file.values()):
        chosen += [each.pop() for _, each in sorted(by_file.items()) if each]
    return [
        {name: getattr(known[row["name"]], name) for name in FIELDS} | {"test": row["by"]}
        for row in sorted(chosen[:size], key=lambda row: row["file"])
    ]


def _journal(suite: str) -> list[dict[str, Any]]:
    file = FOLDER / f"{suite}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _is_quick(row: Mapping[str, Any]) -> bool:
    return row["outcome"] == "killed" and row["seconds"] <= QUICK and row["by"].startswith("tests/")


def written(rows: Sequence[Mapping[str, str]]) -> str:
    """As TOML; its strings are those of JSON."""
    tables = (
        "\n".join(
            f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in row.items()
        )
        for row in rows
    )
    return "".join(f"\n[[sample]]\n{table}\n" for table in tables)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--choose", action="store_true", help="write a new sample")
    if parser.parse_args().choose:
        print(written(choose()))
        return 0
    rows = entries()
    pairs = list(found(rows))
    print(f"{len(pairs)} of {len(rows)} mutants are in the code")
    sample = Sample(pairs)
    pytest.main(["-q", "-p", "no:cacheprovider", *sorted({test for _, test in pairs})], [sample])
    return 1 if sample.survivors or len(pairs) < 0.8 * len(rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
