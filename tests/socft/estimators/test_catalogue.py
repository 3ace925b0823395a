"""The catalogue has a row for every estimator, and every row says what its estimator is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import socft.estimators
from socft.checks import InvalidProblem
from socft.estimators.base import Estimator
from socft.estimators.catalogue import ANYWHERE, CATALOGUE, find_estimator
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.estimand import Kind
from socft.policy import Uncontrolled
from toy.problems import benchmark


def classes() -> set[type[Estimator]]:
    """Every concrete estimator of the folder."""
    found = set()
    for module in pkgutil.walk_packages(socft.estimators.__path__, "socft.estimators."):
        for _, each in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(each, Estimator) and not inspect.isabstract(each):
                found.add(each)
    return found


LONGEST = 120
"""Lines of an estimator."""


def test_no_estimator_is_long():
    """No class of an estimator, and no module that states a method for flow models."""
    for each in classes():
        assert len(inspect.getsourcelines(each)[0]) <= LONGEST, each
        module = inspect.getmodule(each)
        assert module is not None
        if module.__name__.startswith("socft.estimators.flow."):
            assert inspect.getsource(module).count("\n") <= LONGEST, module


def test_every_estimator_has_a_row():
    assert classes() == {row.estimator for row in CATALOGUE.values()}


def test_a_row_says_what_it_estimates_and_where_it_is_from():
    for row in CATALOGUE.values():
        assert row.kind in Kind
        assert row.source
        assert row.target


@pytest.mark.parametrize("name", ANYWHERE)
def test_a_row_that_needs_nothing_but_options_makes_its_own_class(name: str):
    assert type(ANYWHERE[name]()) is CATALOGUE[name].estimator


def test_an_oracle_refuses_where_nothing_exact_is_known():
    problem = benchmark("lq-sde", d=1, steps=4).problem
    context = EstimatorContext(problem, Uncontrolled(problem.reference))
    oracles = [row for row in CATALOGUE.values() if row.oracle and "score" not in row.name]
    assert len(oracles) == 5
    for row in oracles:
        with pytest.raises(InvalidProblem, match="no exact value is known"):
            row.make(context)


def test_names_that_are_not_in_the_catalogue_are_import_paths():
    own = find_estimator("socft.estimators.full_adjoint:FullAdjoint")
    assert own.name not in CATALOGUE
    with pytest.raises(InvalidProblem, match="there is no estimator 'SOCK'"):
        find_estimator("SOCK")
