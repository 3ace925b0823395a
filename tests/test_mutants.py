"""Mistakes are made where formulas can have them, and the tests notice a sample of fifty."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.support.mutation.mutants import ROOT, code_of, compiled, is_local, mutants
from tests.support.mutation.operators import changed, changes
from tests.support.mutation.sample import FIELDS, SIZE, entries


def made(text: str) -> list[str]:
    """What becomes of a statement."""
    tree = ast.parse(text)
    return [ast.unparse(changed(tree, each)) for each in changes(tree)]


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("y = a - b", {"y = a", "y = -b", "y = a + b", "y = -a - b", "y = 2 * a - b"}),
        ("y = a * b / c", {"y = b / c", "y = a / b / c", "y = a * b", "y = a * b * c"}),
        ("y = a * b", {"y = 2 * (a * b)", "y = a * b / 2"}),
        ("y = 1 - lam", {"y = lam", "y = 1 - (1 - lam)", "y = 1 + lam"}),
        ("y = x.sqrt()", {"y = x"}),
        ("y = math.sqrt(x)", {"y = x"}),
        ("y = A.mT @ x", {"y = A @ x"}),
        ("y = alpha", {"y = alpha ** 0.5"}),
        ("y = min(a, b)", {"y = max(a, b)", "y = a", "y = b"}),
        ("y = a < b", {"y = a <= b"}),
        ("y = x[t]", {"y = x[t + 1]", "y = x[t - 1]"}),
        ("y = x[1:]", {"y = x[2:]", "y = x[0:]"}),
        ("y = range(n)", {"y = range(n - 1)", "y = range(1, n)"}),
        ("y = x ** 2", {"y = x", "y = x ** 3"}),
        ("y = -x", {"y = x"}),
        ("y = a if c else b", {"y = b if c else a"}),
        ("y = a and b", {"y = a or b"}),
        ("y += x", {"y -= x"}),
        ("def f(x, k=2):\n    pass", {"def f(x, k=3):\n    pass"}),
        ("require(x > 0, f'{x + 1} is low')", {"pass", "require(x >= 0, f'{x + 1} is low')"}),
    ],
)
def test_mistakes_of_a_formula(text: str, mistakes: set[str]):
    assert mistakes <= set(made(text))


@pytest.mark.parametrize(
    "text",
    [
        '"""Half of a + b, 2 times."""',
        "raise InvalidProblem(f'{a + b} is 1 too many')",
        "from torch import Tensor",
        "x: Float[Tensor, 'steps + 1']",
        "y = 'a' + b",
    ],
)
def test_words_are_left_alone(text: str):
    assert made(text) == []


def test_code_is_exchanged_function_by_function():
    """A mutant's module compiles, and has the function under its name, at the same line."""
    every = list(mutants("socft/theory/one_step.py"))
    assert len({each.name for each in every}) == len(every)
    for mutant in every[::7]:
        if is_local(mutant):
            (code,) = code_of(compiled(mutant), mutant.where)
            lines = (ROOT / mutant.file).read_text().splitlines()[code.co_firstlineno - 1 :]
            first = next(line for line in lines if not line.startswith("@"))
            assert f"def {mutant.where}(" in first


def test_the_sample_is_of_different_mutants():
    rows = entries()
    assert len(rows) == len({tuple(row[name] for name in FIELDS) for row in rows}) == SIZE


@pytest.mark.slow
def test_the_sample_is_noticed():
    command = [sys.executable, "-m", "tests.support.mutation.sample"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"of {SIZE} mutants are in the code" in done.stdout
    assert "survived" not in done.stdout
