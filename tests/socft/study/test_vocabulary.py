"""What reports ask for is what studies write, as far as names can tell."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from socft.checks import InvalidProblem
from socft.cli import REPORTS, STUDIES
from socft.estimators.catalogue import CATALOGUE, COMPARED
from socft.report.rows import Rows
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = {schema.name: schema for schema in schemas.STUDIES}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py")) or [ROOT / folder]


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    """What a source consists of."""
    return list(ast.walk(ast.parse(file.read_text())))


@functools.cache
def named(kind: type[Metric] | type[ProblemName] | type[MethodName], file: Path) -> frozenset[str]:
    """The members of a vocabulary that a source names."""
    return frozenset(
        getattr(kind, node.attr)
        for node in nodes(file)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == kind.__name__
    )


def members(
    kind: type[Metric] | type[ProblemName] | type[MethodName], files: Iterator[Path]
) -> set[str]:
    """The members of a vocabulary that some sources name."""
    return set().union(*(named(kind, file) for file in files))


@pytest.mark.parametrize("name", REPORTS.names)
def test_a_report_asks_for_what_its_studies_write(name):
    report = REPORTS.find(name)
    folder = f"socft/report/{name}"
    written = set().union(*(study.metrics for study in report.studies))
    assert members(Metric, sources(folder)) <= written
    problems = set().union(*(study.problems or () for study in report.studies))
    assert members(ProblemName, sources(folder)) <= problems
    estimators = set().union(*(study.estimators or () for study in report.studies))
    assert members(MethodName, sources(folder)) <= estimators


def test_estimators_of_the_catalogue_are_named_once():
    assert set(CATALOGUE) <= set(MethodName)
    assert schemas.VARIANCE.estimators == set(COMPARED)


def test_every_method_is_written_by_a_study_or_in_the_catalogue():
    declared = {name for schema in schemas.STUDIES for name in schema.estimators or ()}
    assert set(MethodName) == declared | set(CATALOGUE)


@pytest.mark.parametrize(
    "folder", ["socft/report", "toy", "sd_experiments/studies", "socft/estimators/catalogue"]
)
def test_names_of_the_catalogue_are_never_spelt_out(folder):
    """But for those that are words of other things as well."""
    words = {MethodName.VARIANCE, MethodName.MOMENT, MethodName.TRUNCATED}
    spelt = {
        f"{file}: {node.value}"
        for file in sources(folder)
        for node in nodes(file)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value in CATALOGUE.keys() - words
    }
    assert spelt == set()


def test_a_report_cannot_ask_for_an_estimator_that_its_studies_do_not_write():
    rows = Rows((), studies=(schemas.SOCM, schemas.TRAINING))
    assert not rows.where(estimator=MethodName.SOCM_ADJOINT)
    with pytest.raises(InvalidProblem, match="studies socm, training with estimator SOCM;"):
        rows.where(estimator="SOCM")
    with pytest.raises(InvalidProblem, match="studies training with estimator SOCM-adjoint;"):
        rows.of(schemas.TRAINING).where(estimator=MethodName.SOCM_ADJOINT)
    anything = Rows((), studies=(schemas.VARIANCE.of_anything("bench"),))
    assert not anything.where(estimator="module:Mine")


@pytest.mark.parametrize("kind", [Metric, ProblemName])
def test_every_name_is_written_and_some_study_declares_it(kind):
    declared = {
        name
        for schema in schemas.STUDIES
        for name in (schema.metrics if kind is Metric else schema.problems or ())
    }
    assert declared == set(kind)
    assert members(kind, sources("toy", "sd_experiments", "socft/study/comparison.py")) == set(kind)


def test_every_study_has_a_schema_of_its_name():
    assert len(SCHEMAS) == len(schemas.STUDIES)
    for name in STUDIES.names:
        assert STUDIES.find(name).schema is SCHEMAS[name]


@pytest.mark.parametrize("name", STUDIES.names)
def test_a_study_names_what_it_declares(name):
    """In its module, or in one of `toy` that this imports, itself or through others."""
    left, seen = {f"toy.studies.{name}"}, dict[str, Path]()
    while left:
        module = left.pop()
        seen[module] = Path(str(importlib.import_module(module).__file__))
        for node in nodes(seen[module]):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toy."):
                left |= {str(node.module)} - set(seen)
    files = {*seen.values(), *sources("toy/problems")}
    assert SCHEMAS[name].metrics <= members(Metric, iter(files))
    assert (SCHEMAS[name].problems or set()) <= members(ProblemName, iter(files))
    if name != "variance":  # those of the catalogue that are compared
        assert (SCHEMAS[name].estimators or set()) <= members(MethodName, iter(files))
