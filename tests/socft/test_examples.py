"""Every public object has an example that runs, and is printed so that a person can read it."""

from __future__ import annotations

import doctest
import importlib
import inspect
import math
import pkgutil
from typing import Any

import pytest
import torch

import socft
from socft.readable import Readable, summary

LONGEST = 6
"""Lines of code in an example."""
READABLE = 1500
"""Characters that a person reads at a glance: a problem with its reference, nested."""
PUBLIC: dict[str, Any] = {name: getattr(socft, name) for name in socft.__all__}
MODULES = sorted(
    each.name
    for each in pkgutil.walk_packages(socft.__path__, "socft.")
    if not each.name.startswith(("socft.report", "socft.study", "socft.cli"))
)


def examples(found: object, name: str) -> list[doctest.DocTest]:
    """The examples in a docstring, with the public names and torch at hand."""
    scope = {**PUBLIC, "torch": torch}
    return doctest.DocTestFinder(recurse=False).find(found, name, module=False, globs=scope)


def run(test: doctest.DocTest) -> None:
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=said.append, clear_globs=False)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_object_has_an_example_that_runs(name: str):
    (test,) = examples(PUBLIC[name], name)
    lines = [line for each in test.examples for line in each.source.splitlines()]
    assert 1 <= len(lines) <= LONGEST
    run(test)
    shown = [each for each in test.globs.values() if type(each) is PUBLIC[name]]
    assert shown or name in "".join(lines)
    for each in test.globs.values():
        if isinstance(each, Readable):
            text = repr(each)
            assert text.startswith(type(each).__name__)
            assert len(text) < READABLE
            assert " at 0x" not in text
            assert "tensor(" not in text


@pytest.mark.parametrize("name", MODULES)
def test_the_other_examples_run_too(name: str):
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module, globs={**PUBLIC, "torch": torch}):
        if test.examples and test.name.split(".")[-1] not in PUBLIC:
            run(test)


def test_tensors_are_printed_by_shape_and_range():
    assert summary(torch.tensor([0.5, 2.0])) == "[0.5, 2]"
    assert summary(torch.arange(20.0)) == "<20 numbers, from 0 to 19>"
    assert summary(torch.ones(3, 4, 5)) == "<3x4x5 numbers, all 1>"
    assert summary(torch.ones(0, 2)) == "Tensor(0, 2)"


def test_values_of_every_kind_are_printed_in_short():
    assert summary(math.sin) == "<sin>"
    assert summary(lambda: None) == "<lambda>"
    assert summary(torch.nn.Linear(2, 3)) == "<Linear, 9 parameters>"
    assert summary({"a": (1.0,)}) == "{'a': (1,)}"
    assert summary(range(9)) == "(0, ... 9 in all)"
    assert summary(torch.Generator().manual_seed(3)) == "<generator of seed 3>"
    assert summary(object()) == "<object>"


def test_a_long_representation_has_a_line_per_argument():
    reward = socft.Separable(torch.eye(2), [socft.Sine(phase=0.125), socft.Sine(phase=0.25)])
    lines = repr(reward).splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "Separable(",
        "    rotation",
        "    scalars",
        ")",
    ]
    assert inspect.getdoc(Readable)
