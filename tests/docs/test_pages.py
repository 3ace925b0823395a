"""Pages that are made of the catalogue and of records."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from docs.generator import api, claims, estimators, leaderboard
from docs.generator.html import HEIGHT, MARGIN, WIDTH, Scale, histogram, number, table
from docs.generator.pages import Page, navigation, slug
from socft import (
    AffinePolicy,
    ControlProblem,
    Gaussian,
    Noise,
    Reference,
    affine_reference,
    ddpm,
    flow_reference,
    linear_levels,
    memoryless,
    rollout,
    score_reference,
    subsample,
    uniform_times,
)
from socft.estimators.catalogue import CATALOGUE, COMPARED, flow
from socft.estimators.catalogue.context import EstimatorContext
from socft.report.claim_records import Claims, read_claims
from socft.study.vocabulary.methods import MethodName

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found() -> Claims:
    return read_claims(ROOT / "reports" / "records")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "not measured"),
        (float("nan"), "not measured"),
        (float("inf"), "∞"),
        (0.0, "0"),
        (-0.25, "−0.25"),
        (123456.0, "1.23·10<sup>5</sup>"),
        (-2.2e-16, "−2.2·10<sup>−16</sup>"),
    ],
)
def test_numbers(value: float | None, said: str):
    assert number(value) == said


def test_a_scale_has_its_ends_and_its_middle_where_they_belong():
    scale = Scale(1e-4, 1.0)
    places = [scale.place(each) for each in (1e-9, 1e-4, 1e-2, 1.0, 1e9)]
    assert places == [MARGIN, MARGIN, WIDTH / 2, WIDTH - MARGIN, WIDTH - MARGIN]


def test_the_fullest_bin_is_the_highest_bar():
    drawn = histogram({0.1: 4, 1.0: 2}, {}, "title", Scale(1e-2, 1.0))
    heights = [float(each) for each in re.findall(r'height="([\d.]+)"', drawn)]
    assert heights == [46.0, 23.0]
    assert max(heights) < HEIGHT


def test_what_a_row_has_beyond_the_columns_stands_beneath_it():
    made = table(("a", "b"), [("1", "2", "where"), ("3", "4", "")])
    assert made.count("<tr") == 4
    assert '<td colspan="2">where</td>' in made


def test_navigation_keeps_order_and_leaves_out_what_is_no_page():
    pages = [
        Page("i.md", "All", "", ""),
        Page("a.md", "A", "", "one"),
        Page("b.json", "", ""),
        Page("c.md", "C", "", "one"),
    ]
    assert navigation(pages) == [{"All": "i.md"}, {"one": [{"A": "a.md"}, {"C": "c.md"}]}]


def test_every_claim_has_a_page_with_its_worst_numbers(found: Claims):
    pages = {page.path: str(page.content) for page in claims.pages(ROOT)}
    for line in found:
        page = pages[f"claims/{line.name}.md"]
        assert f"socft verify {line.name}" in page
        for part in line.parts:
            assert f">{number(part.measured)}</td>" in page
        assert ("## Failing twin" in page) == any(p.how == "negative control" for p in line.parts)
        assert ("## Extremal instance" in page) == any(p.how == "attained" for p in line.parts)
        assert ":math:" not in page
        assert "CLAIM = " in pages[f"claims/{line.name}.py.txt"]
        if line.versions:
            row = json.loads(pages[f"claims/{line.name}.json"])
            assert (row["statement"], row["checked"]) == (line.statement, line.checked)


def test_a_claim_that_is_refuted_or_not_measured_says_so(found: Claims):
    first = next(iter(found))
    code = (ROOT / "verify" / f"{first.name}.py").read_text(encoding="utf-8")
    for status in ("refuted", "not measured"):
        line = dataclasses.replace(first, status=status, ratio=None, histogram={}, versions={})
        page = claims.page(line, code, claims.Typeset(Claims({line.name: line})))
        assert f'<span class="{status.replace(" ", "-")}">{status}</span>' in page
        assert "It has no record yet," in page


def test_sections_of_a_docstring_lose_nothing():
    code = '"""About.\n\nSetting: one.\n\nStatement: $a$\n\nMore.\n\nKind: tight.\n\nSource: b"""\n'
    said = claims.sections(code)
    assert said == {
        "about": "About.",
        "Setting": "one.",
        "Statement": "More.",
        "Kind": "tight.",
        "Source": "",
    }


@pytest.mark.parametrize(
    "made", [each for each in estimators.made() if not each.row.oracle], ids=lambda m: m.row.name
)
def test_what_pages_say_of_the_reward_is_what_estimators_do(made: estimators.Made):
    differentiated: list[bool] = []

    def reward(x: Tensor) -> Tensor:
        differentiated.append(x.requires_grad)
        return -x.square().sum(1)

    by_score = made.row.name == MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE
    make = score_reference if by_score else affine_reference
    reference: Reference = make(Gaussian([0.5], [[0.3]]), ddpm(subsample(linear_levels(1000), 3)))
    if made.row in flow.ROWS:
        reference = flow_reference(Gaussian([0.5], [[0.3]]), memoryless(uniform_times(3, last=0.1)))
    problem = ControlProblem(reference, reward, beta=2.0)
    context = EstimatorContext(problem, AffinePolicy([[[-0.1]]] * 3, [[0.0]] * 3))
    noise = Noise.sample(reference, 64, torch.Generator().manual_seed(0))
    with torch.no_grad():
        path = rollout(reference, context.policy, noise)
        differentiated.clear()
        made.row.make(context).label(problem, context.policy, path)
    said = estimators.when(made)
    assert ("The reward must be differentiable." in said) == any(differentiated)
    assert ("The reward may be a black box." in said) <= (not any(differentiated))


def test_every_estimator_has_a_page_of_its_own():
    assert len({slug(name) for name in CATALOGUE}) == len(CATALOGUE)
    paths = [page.path for page in estimators.pages(ROOT)]
    assert paths == ["estimators/index.md", *(f"estimators/{slug(n)}.md" for n in CATALOGUE)]


def test_the_leaderboard_has_a_row_for_every_estimator_that_is_compared():
    page, data = leaderboard.pages()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in str(page.content).splitlines()]
    assert all(rows.count(name) == 1 for name in COMPARED)
    assert {row["estimator"] for row in json.loads(data.content)["rows"]} == set(COMPARED)
    assert f"]({data.path})" in str(page.content)


def test_the_best_of_its_kind_is_named_where_it_is_and_nowhere_else():
    errors = estimators.recorded(ROOT / "reports" / "records" / "variance.jsonl")
    named = {row.name: estimators.best(row, errors) for row in CATALOGUE.values() if row.compared}
    for where, rows in errors.items():
        for record in rows:
            usable = [
                each.value
                for each in rows
                if each.kind == record.kind and not CATALOGUE[each.estimator].oracle
            ]
            if any(where in sentence for sentence in named[record.estimator]):
                assert record.value == min(usable)


def test_every_room_of_the_package_is_in_the_reference():
    there = {
        each.stem
        for each in (ROOT / "socft").iterdir()
        if each.stem not in ("__init__", "__pycache__", "py", "cli")
    }
    internal = {"readable", "schema", "files", "finite", "probing", "report", "published"}
    assert there - internal == set(api.ROOMS)
