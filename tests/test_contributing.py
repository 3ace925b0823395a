"""The files and the names in the recipes of CONTRIBUTING.md exist, and its reward is one."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import torch

from socft.reward import scalar
from tests.support.tensors import F64

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("socft", "toy", "verify", "sd_experiments", "tests")
DOCUMENT = (ROOT / "CONTRIBUTING.md").read_text()


def code(text: str) -> set[str]:
    """Paths and names within sentences, calls without their arguments."""
    sentences = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    found = (re.sub(r"\(.*\)$", "", each) for each in re.findall(r"`([^`]+)`", sentences))
    return {each for each in found if re.fullmatch(r"[@\w./]+", each)}


def undefined(wanted: set[str]) -> set[str]:
    """Those that are no names of classes, functions, arguments and what is assigned, of modules
    and of packages; files without any of the words are not looked through.
    """
    left = wanted - {"pytest", "mark"}
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        left -= {file.stem, *file.relative_to(ROOT).parts[:-1]}
        text = file.read_text(encoding="utf-8")
        if left.intersection(re.findall(r"\w+", text)):
            left -= defined(ast.parse(text))
    return left


def defined(tree: ast.Module) -> set[str]:
    """Names of classes, functions, arguments and what is assigned in a module."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.arg():
                names.add(node.arg)
    return names


def missing(text: str) -> set[str]:
    """Paths in a text without a file or folder, and names that nothing has."""
    files = {file.name for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    files |= {file.name for file in ROOT.iterdir()}
    variables = set(re.findall(r"^([A-Z]+) :=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    parts = {each: set(each.lstrip("@").split(".")) for each in code(text)}
    unknown = undefined(set().union(*parts.values()) - variables)
    found = set()
    for each in parts:
        path = each.removesuffix("NAME.py")
        if each.startswith("build/"):
            there = True
        elif "/" in each:
            there = (ROOT / path).exists()
        else:
            there = each in files or not parts[each] & unknown
        if not there and not each.endswith("..."):
            found.add(each)
    return found


def test_recipes_name_what_is_there():
    assert missing(DOCUMENT) == set()


def test_a_name_that_is_not_there_is_found():
    text = "`socft/gone.py`, `gone.py`, `Trainer.gone`, `test_gone`; `socft/problem.py`, `Reward`"
    assert missing(text) == {"socft/gone.py", "gone.py", "Trainer.gone", "test_gone"}


def test_the_example_of_a_reward_has_its_constants():
    """``L0`` at 0, and ``L1`` at ``1/sqrt(3)``, where the second derivative is largest."""
    namespace: dict[str, Any] = {"math": math} | vars(scalar)
    block = re.search(r"```python\n(@dataclasses.*?)```", DOCUMENT, re.DOTALL)
    assert block is not None
    exec(compile(block[1], "CONTRIBUTING.md", "exec"), namespace)
    arctangent = namespace["Arctangent"](2.0)
    x = torch.linspace(-5, 5, 100_001, dtype=F64)[:, None]
    slope = arctangent.gradient(x)
    assert abs(float(slope.max()) / arctangent.L0 - 1) < 1e-6
    assert abs(float((slope.diff(dim=0) / x.diff(dim=0)).abs().max()) / arctangent.L1 - 1) < 1e-6
