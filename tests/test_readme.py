"""The code of the README runs and prints what it promises."""

import itertools
import re
from pathlib import Path

import pytest
import torch

from docs.generator import advice
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.catalogue import CATALOGUE
from socft.path import Noise
from socft.records import read
from tests.support.documents import files
from toy.measure import estimate
from toy.problems import benchmark
from toy.situations import situation

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks() -> list[str]:
    """The Python code of the README."""
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_estimator_vanishes_at_the_optimum_and_halves_the_step():
    namespace: dict = {}
    exec(compile(files(README.parent)["damped.py"], "damped.py", "exec"), namespace)
    here = situation(benchmark("lq-sde", d=2, steps=5), 0.5)
    noise = Noise.sample(here.problem.reference, 50, torch.Generator().manual_seed(0))
    found = [
        estimate(each, here.problem, here.policy, noise).mean
        for each in (namespace["Damped"](), AdjointMatching())
    ]
    assert (2 * found[0] - found[1]).abs().max() < 1e-12 * found[1].abs().max()


@pytest.mark.slow
def test_the_twenty_lines_run(capsys):
    code = blocks()[0]
    exec(compile(code, str(README), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    errors = [float(found) for found in re.findall(r"control error (\S+),", "\n".join(lines))]
    assert len(errors) == 7
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert "contracts by 0.50" in lines[-1]


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("file", ["README.md", "docs/guides/which-estimator.md"])
def test_the_recommendations_are_those_of_the_records(file):
    page = (README.parent / file).read_text(encoding="utf-8")
    made = advice.written(page, advice.tables()[README.parent / file])
    assert made == page, "write it again: python -m docs.generator.advice"
    assert page.count(advice.HEADER[3]) >= 1


def test_estimators_are_counted_by_the_records():
    measured = [
        {record.estimator for record in read(README.parent / "reports/records" / f"{study}.jsonl")}
        for study in ("variance", "training")
    ]
    counts = [len(CATALOGUE), *(len(each & CATALOGUE.keys()) for each in measured)]
    pattern = r"Of (\d+) estimators (\d+) stand .*?, and (\d+) in training"
    said = re.search(pattern, README.read_text())
    assert said is not None
    assert [int(each) for each in said.groups()] == counts


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(((?!https?:)[^)#]+)\)", README.read_text())
    assert targets
    assert [t for t in targets if not (README.parent / t).exists()] == []
