"""What a claim records: every check, also a failed one, merged over tests, processes and seeds
without losing or inventing any.
"""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path

import flint
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import verify
from socft.checks import InvalidProblem
from socft.report.claim_records import STATED
from verify.support import topics
from verify.support.claims import FLOOR, KINDS, SLACK, Claim, Kind
from verify.support.readme import FOLDER, claims, headings, text
from verify.support.recording.records import read_records, summary, update_records
from verify.support.recording.tally import BINS_PER_DECADE, Tally

SECTIONS = ("setting", "statement", "kind", "source", "how it is measured", "what would refute it")
FILES = sorted(
    f
    for f in Path(verify.__path__[0]).glob("*.py")
    if re.search(r"^CLAIM\b.*=", f.read_text(), re.MULTILINE)
)
RESOLUTION = 10 ** (1 / BINS_PER_DECADE)


def claim(kind: Kind = "tight") -> Claim:
    return Claim("made", "Made", topics.OTHER, "$a ≤ b$", "derived here", kind)


def line(made: Claim) -> dict:
    return made.record(made.take())


def test_inequality_is_recorded_with_its_worst_entry():
    made = claim()
    made.holds(
        torch.tensor([[1.0, 3.0], [2.0, 0.5]]),
        torch.tensor([[2.0, 4.0], [2.5, 2.0]]),
        {"d": 2},
        sharp=3.2,
    )
    row = line(made)
    assert (row["status"], row["checked"], row["measured"], row["bound"], row["ratio"]) == (
        "verified",
        1,
        2.0,
        2.5,
        0.8,
    )
    assert row["instance"] == {"d": 2, "entry": [1, 0]}
    assert row["ratio_sharp"] == 3.0 / 3.2
    assert (row["attained"], row["control"], row["certified"], row["errors"]) == (
        None,
        False,
        False,
        [],
    )


@pytest.mark.parametrize("measured", [1 + 2 * SLACK, math.nan, math.inf])
def test_failed_inequality_is_recorded_before_it_is_raised(measured):
    made = claim()
    made.holds(0.5, 1.0, {"n": 0})
    with pytest.raises(AssertionError, match=r'made inequality \(14\): measured .* at {"n": 1}'):
        made.holds(measured, 1.0, {"n": 1}, part="(14)")
    made.holds(0.999, 1.0, {"n": 2})
    row = line(made)
    assert (row["status"], row["checked"], row["instance"], row["check"]) == (
        "refuted",
        3,
        {"n": 1},
        "inequality (14)",
    )


def test_slack_and_floor_are_the_callers():
    made = claim()
    made.holds(1 + SLACK / 2, 1.0, {})
    made.holds(FLOOR / 2, 0.0, {})
    made.holds(1.05, 1.0, {}, slack=0.1)
    made.holds(0.05, 0.0, {}, floor=0.1)
    made.holds(5.0, math.inf, {})
    with pytest.raises(AssertionError):
        made.holds(2 * FLOOR, 0.0, {})


def test_sharper_constant_must_hold_too():
    made = claim()
    with pytest.raises(AssertionError, match="sharper inequality"):
        made.holds(1.0, 2.0, {"n": 1}, sharp=0.9)
    row = line(made)
    assert (row["status"], row["ratio"], row["ratio_sharp"]) == ("refuted", 1.0 / 0.9, 1.0 / 0.9)


def test_equality_is_the_sup_of_the_residual():
    made = claim("equality")
    made.equals([1.0, 2.0, 3.0], [1.0, 2.0 + 1e-9, 3.0], {}, 1e-8)
    assert line(made)["measured"] == pytest.approx(1e-9, rel=1e-6)
    for wrong in ([1.0, math.nan], [1.0, 2.0 + 2e-8]):
        with pytest.raises(AssertionError, match="equality"):
            made.equals(wrong, [1.0, 2.0], {"n": 3}, 1e-8)
        assert line(made)["status"] == "refuted"


def test_side_checks_count_but_do_not_rank():
    """An extremal instance, or an equality beside a bound, would hide the worst instance of the
    search.
    """
    made = claim()
    made.holds(0.3, 1.0, {"n": 1})
    made.attained(1.0, 1.0, {"n": 2})
    made.equals(0.9, 0.0, {"n": 3}, tolerance=1.0)
    row = line(made)
    assert (row["checked"], row["ratio"], row["instance"], row["attained"]) == (
        3,
        0.3,
        {"n": 1},
        1.0,
    )


@pytest.mark.parametrize("measured", [0.989, 1.001])
def test_extremal_instance_must_reach_its_bound_and_not_exceed_it(measured):
    made = claim()
    made.attained(0.991, 1.0, {})
    with pytest.raises(AssertionError, match="attained"):
        made.attained(measured, 1.0, {})


def test_control_must_fail():
    made = claim()
    made.breaks(1.1, 1.0, {})
    assert made.tally.control
    made = claim()
    made.holds(0.5, 1.0, {})
    with pytest.raises(AssertionError, match=r"negative control condition: measured 0\.9"):
        made.breaks(0.9, 1.0, {"n": 4}, part="condition")
    row = line(made)
    assert (row["status"], row["control"], row["instance"]) == ("refuted", False, {"n": 4})


def test_certificate_is_rigorous():
    """Balls that touch, or that contain the bound, prove nothing, however small."""
    made, one = claim(), flint.arb(1)
    made.certified(flint.arb(0.5, 0.25), one, {})
    made.certified(one, one, {})
    assert made.tally.certified
    for unproven in (flint.arb(1, 1e-30), flint.arb("nan"), flint.arb(1) / 3 * 3):
        with pytest.raises(AssertionError, match="certificate"):
            made.certified(unproven, one, {})
    with pytest.raises(
        InvalidProblem,
        match=re.escape(
            "a certificate compares balls, not float and float; compute one side with flint.arb."
        ),
    ):
        made.certified(0.5, 1.0, {})


def test_only_controls_are_no_measurement():
    made = claim()
    made.breaks(2.0, 1.0, {})
    assert line(made)["status"] == "not measured"
    assert line(claim())["status"] == "not measured"
    made.holds(0.5, 1.0, {})
    made.tally.errors.append("test_holds: ZeroDivisionError")
    assert line(made)["status"] == "not measured"


def test_record_is_strict_json_with_its_origin():
    made = claim()
    made.holds(
        torch.tensor(1.0),
        np.float64(math.inf),
        {"beta": torch.tensor([1.0, math.inf]), "none": math.nan, "t": (1, 2)},
    )
    made.finding("as printed it is false", {"n": 1})
    made.finding("as printed it is false", {"n": 1})
    row = line(made)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["instance"] == {"beta": [1.0, "inf"], "none": None, "t": [1, 2]}
    assert row["finding"] == [{"text": "as printed it is false", "instance": {"n": 1}}]
    assert {"python", "torch", "hypothesis", "python-flint"} <= row["versions"].keys()
    assert len(row["commit"]) in (0, 40)


@pytest.mark.refusal
def test_bad_input_is_refused():
    made = claim()
    with pytest.raises(
        InvalidProblem,
        match=re.escape("kind = 'sharp'; it must be one of tight, upper bound, equality, limit."),
    ):
        Claim("made", "Made", topics.OTHER, "a", "b", "sharp")  # type: ignore[arg-type]
    with pytest.raises(
        InvalidProblem,
        match=re.escape("inequality has the bound -1; a bound must not be negative."),
    ):
        made.holds(0.0, -1.0, {})
    with pytest.raises(
        InvalidProblem, match=re.escape("inequality compares no numbers; give at least one.")
    ):
        made.holds([], [], {})
    with pytest.raises(InvalidProblem, match=re.escape("tolerance = 0")):
        made.equals(0.0, 0.0, {}, 0)
    with pytest.raises(
        InvalidProblem, match=re.escape("an instance contains a object; give plain numbers")
    ):
        made.holds(0.0, 1.0, {"x": object()})
    with pytest.raises(
        InvalidProblem,
        match=re.escape("the instance is a int; give a mapping, or an object that describes"),
    ):
        made.holds(0.0, 1.0, 3)
    assert made.tally == Tally()


CHECKS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["holds", "attained", "breaks", "error", "fails"])),
    max_size=30,
)


def _tally(checks: list[tuple[float, str]]) -> Tally:
    made = claim()
    for ratio, what in checks:
        where = {"ratio": ratio}
        match what:
            case "holds":
                made.holds(ratio, 1.0, where, sharp=1.0)
            case "attained":
                made.attained(1 - ratio / 100, 1.0, where)
            case "breaks":
                made.breaks(1 + ratio + 1e-9, 1.0, where)
                made.finding(f"breaks at {ratio}", where)
            case "error":
                made.tally.errors.append(f"test: {ratio}")
            case _:
                with pytest.raises(AssertionError):
                    made.holds(1 + ratio + 1e-6, 1.0, where)
    return made.take()


@given(CHECKS, st.integers(0, 30), st.booleans())
def test_merging_parts_in_any_order_gives_the_whole(checks, cut, swapped):
    parts = [_tally(checks[:cut]), _tally(checks[cut:])]
    merged = Tally()
    for part in parts[::-1] if swapped else parts:
        merged.merge(Tally.decode(json.loads(json.dumps(part.encode()))))
    whole = Tally()
    whole.merge(_tally(checks))
    assert merged.status == whole.status
    assert (merged.failure is None) == (whole.failure is None)
    assert _apart_from_failure(merged) == _apart_from_failure(whole)


def _apart_from_failure(tally: Tally) -> dict:
    """Which of several failed checks is shown depends on which was last."""
    return {key: value for key, value in tally.encode().items() if key != "failure"}


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=200))
def test_quantiles_agree_with_sorting(ratios):
    made = claim()
    for ratio in ratios:
        made.holds(ratio, 1.0, {})
    found = made.tally.quantiles
    for level, value in found.items():
        exact = float(np.quantile(ratios, float(level), method="inverted_cdf"))
        assert exact / RESOLUTION * (1 - 1e-9) <= value <= exact * (1 + 1e-9)
    assert found["1.0"] == max(ratios)


def test_search_is_steered_to_the_worst_case():
    """Hypothesis finds a narrow peak that random examples would miss, because each check tells it
    the ratio.
    """
    made = claim()

    @hypothesis.settings(max_examples=300, derandomize=True, database=None)
    @given(st.integers(0, 10**6))
    def search(n):
        made.holds(1 / (1 + abs(n - 654321)), 1.0, {"n": n})
        made.holds(
            0.0, 1.0, {"n": n}
        )  # a second check of the same part is recorded, not steered by

    search()
    assert made.tally.worst is not None
    assert made.tally.worst.ratio == 1.0


def test_updating_records_leaves_other_claims_alone(tmp_path):
    file = tmp_path / "records" / "verify.jsonl"
    update_records(file, [{"claim": "b", "ratio": 1}, {"claim": "a", "ratio": 2}])
    update_records(file, [{"claim": "b", "ratio": 3}])
    assert list(read_records(file).items()) == [
        ("a", {"claim": "a", "ratio": 2}),
        ("b", {"claim": "b", "ratio": 3}),
    ]
    assert [f.name for f in file.parent.iterdir()] == ["verify.jsonl"]


def test_summary_is_one_line():
    made = claim()
    made.holds(0.25, 1.0, {}, sharp=0.5)
    made.breaks(2.0, 1.0, {})
    assert (
        summary(line(made))
        == "made: verified (worst ratio 0.25, sharp 0.5; 1 checks; control; 0.0 s)"
    )


MODULE = """A result.

Statement: $a
≤ b$

This follows from $b ≥ a$.

Kind: upper bound, of everything.

Source: derived
here.
"""


def test_a_claim_is_what_its_file_says():
    made = Claim.of_module("verify.made", MODULE, "Made", topics.OTHER)
    assert (
        made.heading
        == Claim("made", "Made", topics.OTHER, "$a ≤ b$", "derived here", "upper bound").heading
    )


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "the docstring of verify/made.py has no section 'Kind'; begin a paragraph with"),
        (MODULE.replace("Statement", "Theorem"), "verify/made.py has no section 'Statement';"),
        (MODULE.replace("upper bound", "sharp"), "kind = 'sharp, of everything.'; it must be one"),
    ],
)
def test_a_file_that_does_not_say_its_claim_is_refused(module: str | None, message: str):
    with pytest.raises(InvalidProblem, match=re.escape(message)):
        Claim.of_module("verify.made", module, "Made", topics.OTHER)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_claims_have_the_agreed_form(file):
    """Named as their file, documented in order, with a positive check, a failing twin, and an
    extremal instance if tight.
    """
    source = file.read_text()
    tree = ast.parse(source)
    docstring = (ast.get_docstring(tree) or "").lower()
    positions = [docstring.find(f"\n{section}") for section in SECTIONS]
    assert -1 not in positions, (
        f"missing: {[s for s, p in zip(SECTIONS, positions, strict=True) if p < 0]}"
    )
    assert positions == sorted(positions)
    calls = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    tests |= {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert any(name.startswith("test_holds") for name in tests)
    assert any(name.startswith("test_needs") for name in tests)
    assert "breaks" in calls
    stated = {c.name: c for c in claims()}[file.stem]
    assert stated.kind in KINDS
    assert ":math:" not in stated.statement + stated.source
    assert stated.kind != "tight" or (
        "attained" in calls and any("attained" in name for name in tests)
    )


def test_reports_know_every_claim():
    assert STATED.read_text() == headings(claims()), (
        "socft/report/claims.json is stale; run: python -m verify.support.readme"
    )


def test_readme_lists_every_claim():
    assert (FOLDER / "README.md").read_text() == text(claims()), (
        "verify/README.md is stale; run: python -m verify.support.readme"
    )
