"""The public interface: every name is there, is shown to editors, and costs nothing until used."""

from __future__ import annotations

import abc
import ast
import importlib
import inspect
import pkgutil
import pydoc
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import socft
import socft.estimators
from socft.estimators.base import Estimator

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", socft.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str):
    found = getattr(socft, name)
    assert found.__name__ == name
    assert found.__module__.startswith("socft.")
    assert inspect.getdoc(found)


def test_type_checkers_see_what_is_there():
    """The imports for type checkers and the table for the interpreter are the same names."""
    tree = ast.parse(Path(socft.__file__).read_text())
    (shown,) = [each for each in tree.body if isinstance(each, ast.If)]
    statements = [each for each in shown.body if isinstance(each, ast.ImportFrom)]
    seen = {alias.name: each.module for each in statements for alias in each.names}
    assert seen == socft._HOMES
    assert all(alias.asname == alias.name for each in statements for alias in each.names)
    assert set(socft.__all__) <= set(dir(socft))


def test_functions_are_not_hidden_by_modules_of_their_name():
    """Importing a module binds its name in the package, over a function of that name."""
    modules = {each.name for each in pkgutil.iter_modules(socft.__path__)}
    assert not modules & set(socft.__all__)


def test_every_estimator_is_exported():
    for each in pkgutil.walk_packages(socft.estimators.__path__, "socft.estimators."):
        module = importlib.import_module(each.name)
        for name, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, Estimator) and found.__module__ == module.__name__:
                assert (abc.ABC in found.__bases__ or inspect.isabstract(found)) or name in dir(
                    socft
                )


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, socft; print([each for each in ('numpy', 'torch') if each in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_distribution():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert socft.__version__ == project["version"]
    with pytest.raises(AttributeError, match="module 'socft' has no attribute 'nothing'"):
        _ = socft.nothing


def test_help_begins_with_nouns_then_verbs_then_where_next():
    page = pydoc.plain(pydoc.render_doc(socft))
    marks = ["Nouns", "`ControlProblem`", "Verbs", "`rollout`", "`fit`", "`observe`", "Where next"]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
