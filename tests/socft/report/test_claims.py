"""The chapter on the claims shows what their records say: numbers, instances, failures, and what
was not measured.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from socft.checks import InvalidProblem
from socft.files import read_rows, write_rows
from socft.report.base import claims_provenance
from socft.report.claim_records import FILE, Claims, read_claims
from socft.report.convergence import claims_chapter as chapter
from socft.report.convergence import claims_figures
from socft.report.guidance import tables as guidance_tables
from socft.report.typeset import NOT_MEASURED, PREAMBLE, compile_pdf
from tests.support.claim_lines import NAMES, STATED, everything, line, record, synthetic_claims
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.recording.records import update_records
from verify.support.recording.tally import BINS_PER_DECADE
from verify.support.recording.words import words
from verify.support.rewards import Parabola, Slope, SmoothMaximum, build_reward
from verify.support.scores import MixtureScore, TanhScore
from verify.support.strategies import PseudoHuber, Sine, Softplus

RECORDS = Path(__file__).parents[3] / "reports" / "records"
BETWEEN = 10 ** (1 / BINS_PER_DECADE)
"""A bin of a record."""


def rows(markup: str) -> list[list[str]]:
    """Cells of a table, cut into rows at its group titles and at cells of words."""
    cells = re.findall(r"^  \[(.*?)\],?$|^  (table\.cell).*$", markup, re.MULTILINE)
    found: list[list[str]] = []
    for cell, title in cells:
        if title or cell.startswith('#"'):
            found.append([])
        if not title:
            found[-1].append(cell)
    return [row for row in found if row]


def test_the_table_has_the_records_numbers():
    found = rows(chapter.overview(synthetic_claims()))
    assert len(found) == len(NAMES)
    for row in found:
        assert row[1:] == [
            "verified",
            "tight",
            "$3$",
            r"$0.0500$ \ (loose)",
            "$0.320$",
            "$0.995$",
            "$checkmark$",
            "–",
        ]
    assert found[0][0] == '#"Lemma 2.5";'


def test_refuted_claims_are_shown_as_such():
    def fails(made: Claim) -> None:
        made.holds(0.5, 1.0, {"n": 1})
        made.holds(1.25, 1.0, {"n": 2}, part="(14)")

    claims = Claims({"lemma_2_5": line("lemma_2_5", fails)})
    row = rows(chapter.overview(claims))[0]
    assert row[1:5] == ["*refuted*", "tight", "$2$", r"$1.25$ \ (*exceeded*)"]
    assert "*$1$ refuted*" in chapter.headline(claims)
    made = synthetic_claims()
    shown = section(Claims({**made.lines, "contraction": line("contraction", fails)}))
    assert "*Refuted*, inequality (14), at $n = 2$." in shown


def test_an_equality_is_never_loose():
    found = line("x", lambda made: made.equals(1.0, 1.0 + 1e-12, {}, 1e-9), "equality")
    assert chapter.worst(found) == "$0.0010$"
    assert "loose" in chapter.worst(line("x", lambda made: made.holds(0.05, 1.0, {}), "limit"))


def test_what_is_missing_is_not_measured():
    assert chapter.headline(Claims()) == NOT_MEASURED
    error = line(
        "lemma_2_5", lambda made: made.tally.errors.append("test_holds: ZeroDivisionError")
    )
    left = Claims({**synthetic_claims().lines, "lemma_2_5": error})
    assert rows(chapter.overview(left))[0][1:5] == [NOT_MEASURED, "tight", "$0$", NOT_MEASURED]
    assert chapter.headline(left) == f"${len(NAMES) - 1}$ verified, $1$ not measured"


def test_a_new_claim_is_shown_under_its_title():
    claims = Claims({"brand_new": line("brand_new", everything)})
    assert rows(chapter.overview(claims))[-1][0] == '#"Brand new";'


def section(claims: Claims, name: str = "contraction") -> str:
    """The section of the topic of a claim."""
    topic = claims.lines[name].topic
    return chapter.section(topic, claims.topics()[topic])


def test_a_section_has_every_part_control_and_finding():
    shown = section(synthetic_claims())
    table = re.findall(r"^  \[(.*?)\],?$", shown, re.MULTILINE)
    for part in (
        ["holds", "$1$", "$0.0500$", "$1.00$", "$0.0500$ (loose)"],
        ["holds: P1 (15)", "$1$", "$0.0400$", "$1.00$", "$0.0400$ (loose)"],
        ["holds, sharper", "$1$", "$0.0500$", "$0.250$", "$0.200$"],
        ["attained", "$1$", "$0.995$", "$1.00$", "$0.995$"],
        ["fails without: condition on $beta$", "$1$", "$3.00$", "$2.00$", "$1.50$"],
    ):
        at = table.index(part[0])
        assert table[at : at + 5] == part
    for sentence in (
        "_Worst:_ $n = 1$.",
        "_Worst for the sharper constant:_ $n = 2$.",
        "_Attained_: $n = 3$.",
        "_Fails without_ (condition on $beta$): $n = 4$.",
        "_Found:_ $K = sqrt(2/π)$ is not enough.",
    ):
        assert sentence in shown


def test_of_negative_controls_the_weakest_is_shown():
    """A control that just fails says more than one that fails by far; of other checks it is the
    largest ratio.
    """
    for order in ((2.0, 9.0), (9.0, 2.0)):
        found = line("x", lambda made, order=order: [made.breaks(m, 1.0, {"m": m}) for m in order])
        assert [(p.checked, p.measured) for p in found.of_kind("negative control")] == [(2, 2.0)]
        found = line("x", lambda made, order=order: [made.holds(m, 10.0, {"m": m}) for m in order])
        assert [(p.checked, p.measured) for p in found.of_kind("inequality")] == [(2, 9.0)]


def test_the_histogram_counts_every_check():
    ratios = [1e-9, 1e-3, 2e-3, 0.5, 0.5, 1.0]
    found = line("x", lambda made: [made.holds(r, 1.0, {}) for r in ratios])
    assert sum(found.histogram.values()) == len(ratios)
    for ratio in ratios:
        assert any(
            edge * (1 - 1e-3) <= ratio < edge * BETWEEN * (1 + 1e-3) for edge in found.histogram
        )
    edges, share = claims_figures.bars(found.histogram)
    assert len(edges) == len(share) + 1
    drawn = {round(math.log10(edges[i]), 1): share[i] for i in share.nonzero()[0]}
    assert drawn == {
        -6.0: 0.5,
        -3.1: 0.5,
        -2.8: 0.5,
        -0.4: 1.0,
        -0.1: 0.5,
    }, "by where bars begin; 1 is left of the bound"


def test_the_picture_marks_every_claim(monkeypatch):
    drawn = []
    monkeypatch.setattr(claims_figures, "svg", lambda figure: drawn.append(figure) or b"")
    made = synthetic_claims()
    empty = line(NAMES[0], lambda made: None)
    left = Claims({**made.lines, NAMES[0]: empty})
    claims_figures.ratios(left)
    assert drawn[0].get_figheight() <= claims_figures.TALLEST, "leaves room for its caption"
    (ax,) = drawn[0].axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        chapter.numbered(claim.title) for claim in STATED.values()
    ]
    assert [t.get_text() for t in ax.texts] == ["not measured"]
    marks = sorted(
        (float(m.get_ydata()[0]), float(m.get_xdata()[0]))
        for m in ax.lines
        if len(m.get_xdata()) == 1
    )
    assert marks == [(height, x) for height in range(1, len(NAMES)) for x in (0.05, 0.32, 0.995)]


def test_records_are_read_or_missing_or_refused(tmp_path):
    assert len(read_claims(tmp_path)) == 0
    update_records(tmp_path / FILE, [record("lemma_2_5", everything)])
    found = read_claims(tmp_path)
    assert (len(found.checked), found.lines["lemma_2_5"].findings) == (
        1,
        ("$K = sqrt(2/π)$ is not enough",),
    )
    file = tmp_path / FILE
    write_rows(
        [*(row for _, row in read_rows(file, "")), {"claim": "a", "status": "verified"}], file
    )
    message = (
        r"line 2 of .*verify\.jsonl is damaged: .*; check the claims"
        r" again: socft verify --out"
    )
    with pytest.raises(InvalidProblem, match=message):
        read_claims(tmp_path)


def test_a_claim_without_a_line_is_not_measured(tmp_path):
    """It has its row in the table, its statement in its section and its place in the picture."""
    names = [name for name in NAMES if name != "contraction"]
    update_records(tmp_path / FILE, [record(name, everything) for name in names])
    found = read_claims(tmp_path)
    assert list(found.lines) == NAMES
    assert chapter.headline(found) == f"${len(names)}$ verified, $1$ not measured"
    row = rows(chapter.overview(found))[NAMES.index("contraction")]
    assert row == ['#"Contraction P1 (67)";', NOT_MEASURED, "tight", "$0$", NOT_MEASURED, *"––––"]
    shown = section(found)
    assert STATED["contraction"].statement in shown
    assert f'*#"Contraction P1 (67)";* ({NOT_MEASURED}, tight):' in shown
    assert claims_provenance(found).startswith(f"The {len(names)} claims were checked at commit ")


def test_every_statement_stands_in_its_section_alone():
    """The table refers to the sections."""
    made = synthetic_claims()
    table, text = chapter.overview(made), chapter.chapter(made)
    for claim in made:
        assert claim.statement not in table
        assert text.count(claim.statement) == 1
    for topic in made.topics():
        assert f"(@claims-{topic.place})" in table
        assert text.count(f"<claims-{topic.place}>") == 1


def test_the_report_on_guidance_lists_its_claims():
    cells = re.findall(r"^  \[(.*?)\],?$", guidance_tables.claims(synthetic_claims()), re.MULTILINE)
    mine = [claim for name, claim in STATED.items() if name.startswith("guidance_")]
    assert cells[::5] == [f'#"{claim.title}";' for claim in mine]
    assert cells[1::5] == [claim.statement for claim in mine]
    assert NOT_MEASURED in guidance_tables.claims(Claims())


def test_infinite_and_missing_numbers_survive():
    found = line(
        "x", lambda made: made.holds(math.nan, 1.0, {"beta": torch.tensor([1.0, math.inf])})
    )
    (part,) = found.parts
    assert math.isnan(part.measured)
    assert found.ratio == math.inf
    assert found.words == "$beta = (1, infinity)$"


def test_provenance_names_commit_and_versions():
    said = claims_provenance(synthetic_claims())
    assert said.startswith(f"The {len(NAMES)} claims were checked at commit ")
    assert '#"hypothesis";' in said
    assert NOT_MEASURED in claims_provenance(Claims())


def test_a_bound_of_zero_is_not_loose():
    found = line("contraction", lambda made: made.holds(0.0, 0.0, {}))
    shown = section(Claims({"contraction": found}))
    assert re.findall(r"^  \[(.*?)\],?$", shown, re.MULTILINE)[:5] == [
        "holds",
        "$1$",
        "$0$",
        "$0$",
        "–",
    ]


@pytest.mark.parametrize("measured", [False, True], ids=["synthetic", "as measured"])
def test_every_statement_and_section_compiles(measured: bool):
    """With made-up records, and with the instances and findings of those that come along."""
    made = read_claims(RECORDS) if measured else synthetic_claims()
    assert len(made.checked) > 50
    sections = [chapter.section(topic, lines) for topic, lines in made.topics().items()]
    source = "\n\n".join([PREAMBLE, chapter.overview(made), *sections])
    assert compile_pdf(source, {}).startswith(b"%PDF")


@pytest.mark.parametrize(
    "plain",
    [
        Sine(-1.5, 2.0, 0.25),
        Sine(1.0, 1.0, 0.0),
        Softplus(3.0, 1.5, -0.5),
        PseudoHuber(2.0, -0.5, -1.25),
        PseudoHuber(1.0, 0.0, 1.0),
        SmoothMaximum((-1.0, 0.5), (0.25, 0.0), 0.5),
        Slope(-1.2),
        Parabola(1.5, -0.3),
    ],
)
def test_rewards_are_told_by_their_formula(plain):
    """The formula shown, evaluated, is the reward up to a constant-free rounding to three
    digits.
    """
    instance = ProductInstance(
        levels=(0.3, 0.9), lam=(0.5,), factors=(Factor(TanhScore(0.5), plain),)
    )
    formula = re.search(r"\$r\(x\) = (.*)\$", words(instance.describe()))
    assert formula is not None
    for x in (-1.25, 0.5, 2.0):
        expected = float(build_reward(plain)(torch.tensor([[x]], dtype=torch.float64)))
        assert evaluated(formula[1], x=x) == pytest.approx(expected, rel=1e-9)


def test_scores_and_chains_are_told():
    score = TanhScore(c=-0.4, b=0.5, w=2.0, e=-1.0)
    mixture = MixtureScore((0.25, 0.75), (-1.0, 2.0), (0.5, 1.5))
    instance = ProductInstance(
        levels=(0.3, 0.6, 0.95),
        lam=(0.5, 0.7),
        factors=(Factor(score, Slope(1.0)), Factor(mixture, Slope(2.0))),
        size=8,
        rotation=3,
    )
    told = words({"instance": instance.describe(), "updates": 4, "entry": [1]})
    for phrase in (
        "$d = 8$, rotated, $T = 2$, signal level $0.3$ to $0.95$",
        "$lambda = (0.5, 0.7)$",
        "$s(y) = 0.4 y + 0.5 tanh(2 y) - 1$, $r(x) = x$",
        "score of $0.25 N(-1, 0.5) + 0.75 N(2, 1.5)$",
        "$m = 4$",
    ):
        assert phrase in told
    assert "entry" not in told
    zero = (0.0, 0.0)
    quadratic = QuadraticInstance(
        levels=(0.3, 0.9),
        lam=(0.5,),
        score=(0.4, -1.0),
        shift=zero,
        curvature=(1.5, 2.0),
        slope=zero,
    )
    assert "$s(y) = S y + e$ with eigenvalues $(0.4, -1)$" in words(quadratic.describe())


def evaluated(formula: str, **values: float) -> float:
    """A Typst formula as a number."""
    python = formula.replace(r"\/", "/").replace("e^(", "exp(").replace("^", "**")
    python = re.sub(r"(?<=[\d)x]) (?=[a-z(])", " * ", python)
    python = re.sub(r"(?<=\d)(?=\()", "*", python)
    return eval(
        python,
        {name: getattr(math, name) for name in ("sin", "log", "exp", "sqrt", "tanh")},
        values,
    )
