"""Findings are what the records say: each is made again from the lines that it names, and is
withdrawn when those no longer carry it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from pathlib import Path

import pytest

from socft import cli
from socft.checks import InvalidProblem
from socft.records import Record, read
from socft.report import findings, references
from socft.report.base import Report
from socft.report.claim_records import Claims, read_claims
from socft.report.document import AUTHORS, byline, contributions
from socft.report.findings import Finding, NotMeasured, Number, Question
from socft.report.gradient_variance.studies import edges
from socft.report.rows import Rows
from socft.study.comparison import holm

ROOT = Path(__file__).resolve().parents[3]
RECORDS = ROOT / "reports" / "records"
SPREAD = (0.0, -1.0, 1e-3, 1e3, 1e9)
"""What records are multiplied by to see a finding fall."""


@functools.cache
def rows(name: str) -> Rows:
    return cli.REPORTS.find(name).rows(RECORDS)


@functools.cache
def file(study: str) -> list[Record]:
    return read(RECORDS / f"{study}.jsonl")


@functools.cache
def claims() -> Claims:
    return read_claims(RECORDS)


def asked(name: str, where: Rows | None = None) -> list[Finding]:
    report: Report = cli.REPORTS.find(name)
    return [each.ask(where or rows(name), claims()) for each in report.questions]


@pytest.mark.parametrize("name", cli.REPORTS.names)
def test_a_report_has_three_to_six_findings_and_the_committed_records_carry_them(name):
    found = asked(name)
    assert 3 <= len(found) <= 6
    assert [each.about for each in found if not each.carried] == []
    for each in found:
        assert each.numbers
        assert all(number.evidence for number in each.numbers.values())
        assert set(findings.PLACE.findall(each.sentence)) <= set(each.numbers)
        assert not re.search(r"\d", findings.PLACE.sub("", NAMES.sub("", each.sentence)))


NAMES = re.compile(
    r"arXiv [\d.v]+|(Theorem|Lemma|Algorithm|equation) [\d.]+|at T = 1|DRaFT-1|f1|one of three"
)
"""Digits that a sentence may have itself; all others are numbers of records."""


@pytest.mark.parametrize("name", cli.REPORTS.names)
def test_a_finding_is_made_again_from_the_lines_that_it_names(name):
    """From these lines and nothing else."""
    where = findings.places(rows(name), claims())
    for index, each in enumerate(asked(name)):
        lines = {
            (place, line)
            for number in each.written(where)["numbers"].values()
            for place, numbers in number["records"].items()
            for line in numbers
        }
        kept = tuple(
            each
            for study in dict.fromkeys(record.study for record in rows(name))
            for i, each in enumerate(file(study))
            if (f"{study}.jsonl", i + 1) in lines
        )
        again = asked(name, dataclasses.replace(rows(name), records=kept))[index]
        assert again.carried
        assert again.plain == each.plain


@pytest.mark.parametrize("name", cli.REPORTS.names)
def test_a_finding_falls_when_the_records_behind_it_change(name):
    """For every finding some change of the records behind one number withdraws its sentence."""
    for index, each in enumerate(asked(name)):
        assert any(
            not _changed(name, index, number, factor).carried
            for number in each.numbers.values()
            for factor in SPREAD
        ), each.about


def _changed(name: str, index: int, number: Number, factor: float) -> Finding:
    """The finding when every second record behind a number is another."""
    behind = [id(each) for each in number.evidence if isinstance(each, Record)]
    chosen = set(behind[:: 2 if len(behind) > 1 else 1])
    records = tuple(
        dataclasses.replace(each, value=each.value * factor) if id(each) in chosen else each
        for each in rows(name)
    )
    changed = dataclasses.replace(rows(name), records=records)
    return cli.REPORTS.find(name).questions[index].ask(changed, claims())


def test_the_committed_findings_are_those_of_the_committed_records():
    written = json.loads((ROOT / "reports" / findings.FILE).read_text(encoding="utf-8"))
    assert sorted(written) == sorted(cli.REPORTS.names)
    for name in cli.REPORTS.names:
        where = findings.places(rows(name), claims())
        assert written[name] == [each.written(where) for each in asked(name)], (
            f"typeset again: socft report {name} --records reports/records --out reports"
        )


def record(value: float, **setting) -> Record:
    return Record("study", "problem", "error", value, setting)


def question(limit: float) -> Question:
    def answer(rows: Rows, _):
        worst = findings.largest(rows)
        return {"worst": worst}, worst.value < limit

    return Question("the worst", "The worst error is {worst}, which is small.", answer)


def test_a_sentence_is_said_only_where_its_number_carries_it():
    few = Rows((record(0.1, n=1), record(0.25, n=2)))
    assert question(1.0).ask(few, Claims()).plain == "The worst error is 0.25, which is small."
    withdrawn = question(0.2).ask(few, Claims())
    assert withdrawn.carried is False
    assert "small" not in withdrawn.markup
    assert "0.25" in withdrawn.markup
    with pytest.raises(InvalidProblem, match="do not carry the finding 'the worst'"):
        _ = withdrawn.plain
    assert question(1.0).ask(Rows(()), Claims()).carried is None
    assert not question(1.0).ask(Rows((record(float("nan")),)), Claims()).carried


def test_numbers_know_the_records_they_are_made_of():
    first, second = record(6.0, n=1), record(2.0, n=2)
    number = Number(6.0, (first,)).over(Number(2.0, (second,)))
    assert number.value == 3.0
    assert number.evidence == (first, second)
    with pytest.raises(NotMeasured):
        Number(1.0, ()).over(Number(0.0, ()))


@pytest.mark.parametrize(
    ("value", "digits", "plain", "markup"),
    [
        (2.7e13, 2, "2.7 × 10^13", "$2.7 times 10^(13)$"),
        (9633.4, 2, "9600", "$9600$"),
        (6.4e-5, 1, "0.00006", "$6 times 10^(-5)$"),
        (12.0, 3, "12", "$12$"),
        (0.98912, 3, "0.989", "$0.989$"),
    ],
)
def test_numbers_are_shown_with_their_digits(value, digits, plain, markup):
    number = Number(value, (), digits)
    assert (number.plain, number.markup) == (plain, markup)


@pytest.mark.parametrize(
    ("sentence", "values", "plain"),
    [
        ("It is at most {a}.", (4.444, 1.0), "It is at most 4.5."),
        ("It is at least {a}.", (4.279, 1.0), "It is at least 4.2."),
        ("It stays within a factor of {a}.", (9.509, 1.0), "It stays within a factor of 9.6."),
        ("It is up to {a}, not {b}.", (0.0961, 0.0961), "It is up to 0.097, not 0.096."),
        ("It is {a} to {b} times that.", (0.934, 1.01), "It is 0.93 to 1.1 times that."),
        ("It is {a} to {b} times that.", (193.0, 3.56), "It is 200 to 3.5 times that."),
        ("It goes from {a} to {b}.", (0.934, 1.01), "It goes from 0.93 to 1."),
        ("It is at most {a}.", (0.1 + 0.2, 1.0), "It is at most 0.3."),
        ("It is at most {a}, {b} there.", (-4.44, 9.99), "It is at most -4.4, 10 there."),
        ("It is at most {a}.", (0.0, 1.0), "It is at most 0."),
    ],
)
def test_a_number_after_words_of_a_bound_is_rounded_to_be_one(sentence, values, plain):
    numbers = {name: Number(value, (), 2) for name, value in zip("ab", values, strict=True)}
    assert Finding("it", sentence, numbers, carried=True).plain == plain


def test_findings_of_a_report_take_the_place_of_its_old_ones(tmp_path):
    file = tmp_path / findings.FILE
    findings.write("b", [{"about": "old"}], file)
    findings.write("a", [{"about": "x"}], file)
    findings.write("b", [{"about": "new"}], file)
    assert json.loads(file.read_text()) == {"a": [{"about": "x"}], "b": [{"about": "new"}]}
    file.write_text("{")
    with pytest.raises(InvalidProblem, match="remove it and typeset all reports again"):
        findings.write("a", [], file)


@pytest.mark.parametrize(
    ("levels", "rejected"),
    [
        ([0.5, 0.02, 0.001, 0.03], 1),
        ([0.001, 0.002, 0.003, 0.004], 4),
        ([0.0124, 0.0166, 0.0249, 0.0499], 4),
        ([0.0126, 0.0001], 2),
        ([0.04], 1),
        ([0.03, 0.04], 0),
    ],
)
def test_a_family_of_tests_is_corrected_by_holm(levels, rejected):
    """Step down: the k-th smallest of n is held against 0.05 / (n - k + 1)."""
    assert sum(holm(levels)) == rejected


def test_numbers_on_arxiv_of_both_lengths_and_books_are_listed():
    source = "https://arxiv.org/abs/1305.1233, https://arxiv.org/abs/2409.08861, Bobkov (1997)"
    said = references.section(source)
    for author in ("Eberle", "Domingo-Enrich", "Bobkov"):
        assert author in said
    with pytest.raises(InvalidProblem, match=r"1301\.0001 is cited"):
        references.section("https://arxiv.org/abs/1301.0001")


def test_a_rate_on_the_edge_of_its_grid_is_named():
    def pilot(name: str, rate: float, gap: float) -> Record:
        return Record("training", "mixture", "pilot_gap", gap, {"rate": rate}, name)

    found = Rows(
        (
            *(pilot("full adjoint", rate, (rate - 0.01) ** 2) for rate in (0.003, 0.01, 0.03)),
            *(pilot("adjoint matching", rate, rate) for rate in (0.003, 0.01, 0.03)),
        )
    )
    said = edges(found)
    assert "adjoint matching" in said
    assert "$0.003$" in said
    assert "full adjoint" not in said


def test_authors_are_those_of_the_citation():
    cited = re.findall(r"^  - name: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert ", ".join(cited) == AUTHORS
    assert AUTHORS in byline(Rows((record(1.0),)))


def test_everything_cited_has_an_entry_and_nothing_else_is_listed():
    source = '#link("https://arxiv.org/abs/2409.08861v2")[x] and Newton (1994), not Nobody (1994)'
    said = references.section(source)
    assert said.count("\n- ") == 2
    assert "Domingo-Enrich" in said
    assert "N. J. Newton" in said
    assert references.section("nothing") == ""
    with pytest.raises(InvalidProblem, match=r"arXiv 9999\.12345 is cited and has no entry"):
        references.section("arxiv.org/abs/9999.12345")


def test_what_is_known_names_its_source():
    from socft.report.document import Contribution

    said = contributions([Contribution("old", "arXiv 2409.08861"), Contribution("new")])
    assert said.index("old") < said.index("new")
    assert "arxiv.org/abs/2409.08861" in said
