"""What a release says of itself agrees, and its workflows run what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import socft

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (cited,) = re.findall(
        r"version = \{([\d.]+)\}", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    assert {socft.__version__, citation["version"], cited} == {PROJECT["version"]}


def test_addresses_are_those_of_the_papers_that_are_cited():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert set(PROJECT["urls"].values()) <= {each["url"] for each in citation["references"]}


def test_the_readme_is_short_and_begins_with_how_to_install_it():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    assert re.search(r"```sh\n(.*)", text)[1].startswith("pip install socft")  # type: ignore[index]


def test_extras_that_pages_name_are_there():
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").rglob("*.md"))
    named = {e for found in re.findall(r"socft\[([\w,]+)\]", pages) for e in found.split(",")}
    assert {"plot", "sd", "report", "dev"} <= named <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_workflows_run_targets_that_there_are(workflow: Path):
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for run in runs for word in re.findall(r"^make ([\w-]+)", run, re.M)]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    assert targets or workflow.stem == "release"
    assert all(
        each in jobs for job in jobs.values() for each in [job.get("needs")] if each is not None
    )


def test_there_are_workflows_for_tests_documentation_and_release():
    assert [file.stem for file in WORKFLOWS] == ["docs", "release", "tests"]
