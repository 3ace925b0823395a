"""What reports ask for is what studies write, as far as names can tell."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from socft.cli import REPORTS, STUDIES
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = {schema.name: schema for schema in schemas.STUDIES}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py")) or [ROOT / folder]


def members(kind: type[Metric] | type[ProblemName], files: Iterator[Path]) -> set[str]:
    """The members of a vocabulary that some sources name."""
    return {
        getattr(kind, node.attr)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == kind.__name__
    }


@pytest.mark.parametrize("name", REPORTS.names)
def test_a_report_asks_for_what_its_studies_write(name):
    report = REPORTS.find(name)
    folder = f"socft/report/{name}"
    written = set().union(*(study.metrics for study in report.studies))
    assert members(Metric, sources(folder)) <= written
    problems = set().union(*(study.problems or () for study in report.studies))
    assert members(ProblemName, sources(folder)) <= problems


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
    """In its module, or in one of `toy` that this imports."""
    module = importlib.import_module(f"toy.studies.{name}")
    files = {Path(str(module.__file__)), *sources("toy/problems")}
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toy"):
            files.add(Path(str(importlib.import_module(str(node.module)).__file__)))
    assert SCHEMAS[name].metrics <= members(Metric, iter(files))
    assert (SCHEMAS[name].problems or set()) <= members(ProblemName, iter(files))
