"""The report shows what the records say, says what is missing, and is the same file for the same
records.

The records here are synthetic: simple formulas with the settings and metrics of the study
``convergence``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator

import pytest
import typst
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from socft.checks import InvalidProblem
from socft.records import Record, write
from socft.report.base import Document, Report, provenance
from socft.report.claim_records import Claims
from socft.report.convergence import figures as convergence_figures
from socft.report.convergence import tables as convergence_tables
from socft.report.convergence.report import REPORT, compose
from socft.report.document import FrontPage, document
from socft.report.figures import LOOKS
from socft.report.rows import Rows, ratio
from socft.report.typeset import (
    NOT_MEASURED,
    PREAMBLE,
    Table,
    compile_pdf,
    figure,
    fraction_of_bound,
    integer,
    number,
    text,
)
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from tests.support.claim_lines import NAMES, synthetic_claims
from tests.support.drawings import curves
from tests.support.tightness_rows import synthetic_lengths, synthetic_tightness
from toy.problems import fine_tuning

LEAST_PAGES, PAGES_BESIDES, PAGES_PER_CLAIM = 15, 14, 0.28
"""The claims take 0.27 pages each, and all the rest 11."""
PROBLEMS = ("gaussian-quadratic", "mixture-huber", "gaussian-sine")
FACTORS = {
    "paper": 50.0,
    "sharp": 3.0,
    "paper iterates": 5000.0,
    "sharp iterates": 40.0,
    "one-sided": 2.0,
    "one-sided iterates": 20.0,
    "measured": 1.0,
}
LAMS = (0.3, 0.5, 0.7, 0.9)
STEPS = 50
ONE = Record(
    "s",
    ProblemName.MIXTURE_HUBER,
    Metric.RATE,
    1.0,
    {"k": 1},
    versions={"python": "3"},
    commit="",
    dirty=False,
)


def record(problem: str, metric: str, value: float, setting: dict, **fields) -> Record:
    return dataclasses.replace(
        ONE,
        study="convergence",
        problem=problem,
        metric=metric,
        value=value,
        setting=setting,
        **fields,
    )


def constants(problem: str, size: float) -> Iterator[Record]:
    for rule, factor in FACTORS.items():
        worst = math.inf if problem == PROBLEMS[0] and "iterates" in rule else factor * size
        for k in range(STEPS):
            setting = {"rule": rule, "lam": 0.5, "k": k}
            yield record(
                problem, "beta_required", worst * math.exp(-(((k - 40) / 12) ** 2)), setting
            )
            yield record(problem, "L0_value", 2 * factor, setting)
            yield record(problem, "L1_value", 3 * factor, setting)


def errors(problem: str) -> Iterator[Record]:
    for lam in LAMS:
        for m in range(21):
            yield record(
                problem,
                "control_error",
                0.8 * (1 - lam) ** m,
                {"rule": "measured", "lam": lam, "m": m},
            )
        yield record(
            problem,
            "rate",
            0.99 * (1 - lam),
            {"rule": "measured", "lam": lam},
            bound=1 - lam,
            optimum=0.996 * (1 - lam),
        )
    if problem == PROBLEMS[0]:
        return
    for rule, loose in (
        ("paper iterates", 400.0),
        ("sharp iterates", 2.0),
        ("one-sided iterates", 1.5),
    ):
        for m in range(9):
            for metric in ("control_error", "value_gradient_error"):
                setting = {"rule": rule, "lam": 0.5, "m": m}
                yield record(problem, metric, 0.1 * 0.4**m, setting, bound=0.1 * loose * 0.5**m)
        yield record(problem, "rate", 0.4, {"rule": rule, "lam": 0.5}, bound=0.5, optimum=0.45)


def comparisons(problem: str, size: float) -> Iterator[Record]:
    for beta in (0.25, 0.5, 1.0, 2.0, 4.0):
        for metric, value in {
            "contraction": size / beta,
            "kl": size / (1 + beta) ** 2,
            "reward": size - beta / 10,
        }.items():
            yield record(problem, metric, value, {"beta": beta})
    for schedule, memory in (("memoryless", 1e-4), ("constant rate 1", 0.08)):
        for steps in (10, 20, 40):
            yield record(
                problem, "kernel_gap", size / steps, {"schedule": schedule, "steps": steps}
            )
            yield record(
                problem, "memory_gap", memory * size, {"schedule": schedule, "steps": steps}
            )
    yield record(
        problem, "truth_error", 3e-11 * size, {"dim": 1, "steps": STEPS, "nodes": 801}, seconds=2.5
    )


def rest() -> Iterator[Record]:
    for method in convergence_figures.METHODS:
        for index in range(0, 13 if "PI-FT" in method else 401, 1 if "PI-FT" in method else 25):
            for metric, value in {
                "objective_gap": 0.2 * math.exp(-index),
                "control_error": 0.7 * math.exp(-index / 2),
            }.items():
                yield record(
                    PROBLEMS[2],
                    metric,
                    value,
                    {"index": index},
                    estimator=method,
                    kind="exact",
                    seconds=0.1 * index,
                )
    for metric, error in (("closed_form_error", 3e-13), ("inner_error", 4e-12)):
        yield record(
            "linear-quadratic", metric, error, {"dim": 1, "steps": STEPS}, bound=1e-9, seconds=1.5
        )
    yield record("linear-quadratic", "riccati_seconds", 3.25, {"dim": 256, "steps": 1000})
    for steps, inner in ((25, 20), (50, 20), (50, 40)):
        yield record(
            "linear-quadratic",
            "sweep_seconds",
            steps * inner / 900,
            {"steps": steps, "inner": inner},
        )


def synthetic() -> Rows:
    rows = [*rest()]
    for problem, size in zip(PROBLEMS, (1.0, 2.0, 4.0), strict=True):
        rows += [*constants(problem, size), *errors(problem), *comparisons(problem, size)]
    return Rows((*rows, *synthetic_tightness(), *synthetic_lengths()))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return synthetic()


@pytest.fixture(scope="module")
def composed(rows) -> Document:
    return compose(rows, synthetic_claims())


def pages(source: str, pictures, folder) -> int:
    """Number of pages, counted by another exporter than the one under test."""
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    (folder / "main.typ").write_text(source)
    out = typst.Compiler(folder / "main.typ", ignore_system_fonts=True).compile(format="svg")
    return len(out) if isinstance(out, list) else 1


@pytest.mark.slow
def test_the_full_report_misses_nothing_and_does_not_sprawl(composed, tmp_path):
    """After its first page, whose findings need more than made-up numbers."""
    _, chapters = composed.source.split("#outline(")
    assert "not measured" not in chapters
    found = pages(composed.source, composed.pictures, tmp_path)
    assert LEAST_PAGES <= found <= PAGES_BESIDES + PAGES_PER_CLAIM * len(NAMES)


def test_an_empty_report_says_so_everywhere(tmp_path):
    empty = compose(Rows(()), Claims())
    assert empty.source.count("not measured") > len(convergence_tables.CASES) * len(
        convergence_tables.RULES
    )
    assert pages(empty.source, empty.pictures, tmp_path) >= 1


def test_the_same_records_give_the_same_bytes(composed):
    assert (
        convergence_figures.error_against_rate(synthetic(), PROBLEMS)
        == composed.pictures["rate.svg"]
    )
    assert compile_pdf(composed.source, composed.pictures) == compile_pdf(
        composed.source, composed.pictures
    )


def test_writing_leaves_the_pdf_and_the_shown_pictures(rows, composed, tmp_path):
    report = Report("convergence", lambda *_: composed, REPORT.studies, REPORT.shown)
    write(rows.of(schemas.CONVERGENCE), tmp_path / "convergence.jsonl")
    files = report.write(tmp_path, tmp_path / "out")
    assert [str(f.relative_to(tmp_path / "out")) for f in files] == [
        "figures/convergence-rate.svg",
        "figures/convergence-one-sided.svg",
        "convergence.pdf",
    ]
    assert files[0].read_bytes() == composed.pictures["rate.svg"]
    assert files[2].read_bytes().startswith(b"%PDF")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["convergence.pdf", "figures"]


def test_a_report_that_cannot_be_typeset_leaves_the_old_one(tmp_path):
    report = Report("s", lambda *_: Document("#nonsense()", {}), (schemas.CONVERGENCE.named("s"),))
    write([ONE], tmp_path / "s.jsonl")
    (tmp_path / "s.pdf").write_bytes(b"old")
    with pytest.raises(typst.TypstError, match="unknown variable: nonsense"):
        report.write(tmp_path, tmp_path)
    assert (tmp_path / "s.pdf").read_bytes() == b"old"


def test_records_that_make_no_report_are_refused_where_they_may_be_damaged(tmp_path):
    """Records with digests are what was measured: then the mistake is ours, and is not hidden."""

    def fail(rows, claims):
        return {}["missing"]

    report = Report("convergence", fail, REPORT.studies)
    record = Record("convergence", "p", Metric.REWARD, 1.0)
    file = tmp_path / "convergence.jsonl"
    write([dataclasses.replace(record, problem=PROBLEMS[0])], file)
    with pytest.raises(KeyError):
        report.write(tmp_path, tmp_path)
    file.write_text(re.sub(r', "digest": "\w+"', "", file.read_text()))
    said = r"do not make the report convergence \(KeyError: 'missing'\), and have no digests"
    with pytest.raises(InvalidProblem, match=said):
        report.write(tmp_path, tmp_path)


def test_a_damaged_picture_is_named(tmp_path):
    record = Record("convergence", PROBLEMS[0], Metric.REWARD, 1.0)
    write([record], tmp_path / "convergence.jsonl")
    folder = tmp_path / "convergence"
    folder.mkdir()
    good = io.BytesIO()
    Image.new("RGB", (8, 8)).save(good, "PNG")
    file = folder / "a.png"
    file.write_bytes(good.getvalue())
    assert REPORT.rows(tmp_path).pictures == {"a.png": good.getvalue()}
    for content in (b"", b"\x89PNG", good.getvalue()[:40], good.getvalue()[:-20]):
        file.write_bytes(content)
        with pytest.raises(InvalidProblem, match=rf"{file} is damaged .*; measure the study again"):
            REPORT.rows(tmp_path)


def test_a_report_without_records_names_the_file_and_the_command(tmp_path):
    assert not REPORT.measured(tmp_path)
    with pytest.raises(
        InvalidProblem,
        match=r"no records at .*convergence\.jsonl; measure them with: socft toy convergence --out",
    ):
        REPORT.write(tmp_path, tmp_path)


def test_the_cases_are_the_problems_of_the_study():
    found = {
        name: (fine_tuning(name).reward.L0, fine_tuning(name).reward.L1)
        for name in convergence_tables.CASES
    }
    assert found == {name: (case.L0, case.L1) for name, case in convergence_tables.CASES.items()}


def cells(markup: str, first: str) -> list[str]:
    """The cells of the first table row that starts with ``first``."""
    found = [cell.strip() for cell in re.findall(r"^  \[(.*?)\],?$", markup, re.MULTILINE)]
    start = found.index(first)
    return found[start:]


def test_the_abstract_says_how_exact_the_solutions_are(composed):
    abstract = composed.source.partition("*Abstract*")[2].partition("= The problem")[0]
    words = " ".join(abstract.split())
    assert r"known to an error of $1.20 times 10^(-10)$ in the control" in words


def test_the_constants_are_those_of_the_records(rows):
    table = convergence_tables.constants(rows, 0.5)
    assert cells(table, "P1 (14)–(15)")[:5] == [
        "P1 (14)–(15)",
        "$100$",
        "$150$",
        "$50.0$",
        "$0.0200$ (loose)",
    ]
    assert cells(table, "P1 (38)–(39)")[:5] == [
        "P1 (38)–(39)",
        "",
        "",
        "",
        "no finite constant",
    ]
    assert cells(table, "sharp, optimum")[3:5] == ["$3.00$", "$0.333$"]


def test_rates_and_bounds_are_those_of_the_records(rows):
    rates = cells(convergence_tables.rates(rows), "measured")
    assert rates[:7] == ["measured", "$0.30$", "$0.70$", *["$0.693$ ($0.697$)"] * 3, "$0.990$"]
    assert cells(convergence_tables.rates(rows), "P1 (38)–(39)")[3:5] == [
        "no finite constant",
        "$0.400$ ($0.450$)",
    ]
    bounds = convergence_tables.bounds(rows)
    assert bounds.count("$0.00250$ (loose)") == 4
    assert bounds.count("[$0.500$]") == 4
    assert bounds.count("[$0.667$]") == 4
    assert bounds.count("no finite constant") == 6


def test_gaps_methods_and_costs_are_those_of_the_records(rows):
    assert cells(convergence_tables.tilt(rows), '#"mixture-huber";')[1:6] == [
        "$0.200$",
        "$0.0500$",
        r"$2.00 times 10^(-4)$",
        "$0.160$",
        "$0.160$",
    ]
    methods = convergence_tables.methods(rows, PROBLEMS[2], convergence_figures.METHODS)
    assert cells(methods, '#"exact PI-FT";')[2:6] == [
        "$12$",
        r"$1.23 times 10^(-6)$",
        "$0.00174$",
        "$1.20$",
    ]
    accuracy = convergence_tables.accuracy(rows)
    assert r"[$3.0 times 10^(-13)$],\n  [$<=$ $1 times 10^(-9)$]".replace(r"\n", "\n") in accuracy
    assert cells(convergence_tables.sweeps(rows), "$T = 50$")[1:3] == ["$1.1$", "$2.2$"]


@pytest.mark.parametrize(
    "metric",
    ["beta_required", "rate", "kernel_gap", "objective_gap", "truth_error", "sweep_seconds"],
)
def test_a_missing_metric_is_not_measured(rows, metric):
    left = Rows(tuple(r for r in rows if r.metric != metric))
    tables = "".join(
        [
            convergence_tables.constants(left, 0.5),
            convergence_tables.rates(left),
            convergence_tables.tilt(left),
            convergence_tables.methods(left, PROBLEMS[2], convergence_figures.METHODS),
            convergence_tables.accuracy(left),
            convergence_tables.sweeps(left),
        ]
    )
    assert NOT_MEASURED in tables


def test_curves_are_the_records(rows, drawn):
    convergence_figures.error_against_rate(rows, PROBLEMS)
    axes = drawn[0].axes
    assert [ax.get_title() for ax in axes] == list(PROBLEMS)
    assert all(ax.get_yscale() == "log" for ax in axes)
    assert curves(axes[1]) == {
        rf"$\lambda = {lam:g}$": (list(range(21)), [0.8 * (1 - lam) ** m for m in range(21)])
        for lam in LAMS
    }
    unlabelled = [list(line.get_ydata()) for line in axes[1].lines if line.get_label()[0] == "_"]
    assert unlabelled == [pytest.approx([0.8 * (1 - lam) ** m for m in range(21)]) for lam in LAMS]


def test_bounds_are_drawn_beside_the_errors(rows, drawn):
    convergence_figures.error_against_bound(rows, PROBLEMS)
    impossible, found, _ = drawn[0].axes
    assert [t.get_text() for t in impossible.texts] == ["no finite constant"]
    assert curves(found)["paper: bound"][1] == [40 * 0.5**m for m in range(9)]
    assert curves(found)["sharp: measured"][1] == [0.1 * 0.4**m for m in range(9)]


def test_the_kernel_gap_has_a_reference_of_slope_minus_one(rows, drawn):
    convergence_figures.tilt_gaps(rows, PROBLEMS)
    unlabelled = [line for line in drawn[0].axes[0].lines if line.get_label()[0] == "_"]
    for line in unlabelled:
        x, y = list(line.get_xdata()), list(line.get_ydata())
        assert math.log(y[-1] / y[0]) == pytest.approx(-math.log(x[-1] / x[0]))
    assert len(unlabelled) == len(PROBLEMS)


def test_an_empty_panel_says_so(drawn):
    convergence_figures.beta_required(Rows(()), PROBLEMS, None)
    assert [t.get_text() for ax in drawn[0].axes for t in ax.texts] == ["not measured"] * 3


def test_curves_can_be_told_apart_without_colour():
    assert len({(look.linestyle, look.marker) for look in LOOKS}) == len(LOOKS)
    assert (
        len({look.color for look in LOOKS})
        == len(LOOKS)
        >= max(len(convergence_tables.RULES), len(convergence_figures.METHODS))
    )


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_text_shows_exactly_the_text(value):
    assert shown(text(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        '#x *a* _b_ $c$ @d <e> [f] `g` ~ -- \\ " // /* {h}',
        "= head",
        "- item",
        "1. item",
        "a\nb\tc",
        "",
        "x[0](1).y;",
    ],
)
def test_markup_in_text_is_text(value):
    assert shown(text(value)) == value
    assert shown(f"{text(value)}[y].z") == value


def shown(markup: str) -> str:
    """The text that the typesetter sees first in markup."""
    found = json.loads(typst.query(f"#metadata[{markup}] <x>".encode(), "<x>"))[0]["value"]
    return found["children"][0]["text"] if "children" in found else found.get("text", "")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, NOT_MEASURED),
        (math.nan, NOT_MEASURED),
        (math.inf, "$infinity$"),
        (-math.inf, "$-infinity$"),
        (0.0, "$0$"),
        (1.0, "$1.00$"),
        (-0.5, "$-0.500$"),
        (9.996, "$10.0$"),
        (0.00099951, "$0.00100$"),
        (0.000999, "$9.99 times 10^(-4)$"),
        (12345.0, "$12345$"),
        (99999.7, "$1.00 times 10^(5)$"),
        (6.02e23, "$6.02 times 10^(23)$"),
    ],
)
def test_numbers_have_three_digits(value, expected):
    assert number(value) == expected


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_numbers_are_right_to_half_a_digit(value):
    plain = re.sub(r" times 10\^\((-?\d+)\)", r"e\1", number(value)).strip("$")
    assert float(plain) == pytest.approx(value, rel=0.51e-2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0999, "$0.0999$ (loose)"),
        (0.1, "$0.100$"),
        (1.004, "$1.00$"),
        (1.006, "$1.01$ (*exceeded*)"),
        (math.nan, NOT_MEASURED),
        (None, NOT_MEASURED),
    ],
)
def test_ratios_are_marked(value, expected):
    assert fraction_of_bound(value) == expected


def test_integers():
    assert (integer(3.0), integer(None)) == ("$3$", NOT_MEASURED)


def test_rows_are_selected_by_fields_and_settings():
    made = Rows(
        (
            ONE,
            dataclasses.replace(ONE, setting={"k": 2}, value=5.0),
            dataclasses.replace(ONE, problem=ProblemName.OSCILLATOR, setting={}),
        )
    )
    assert [r.value for r in made.where(Metric.RATE, ONE.problem, k=2)] == [5.0]
    assert not made.where(Metric.RATE, ONE.problem, k=3)
    assert [r.problem for r in made.having()] == [ProblemName.OSCILLATOR]
    assert made.distinct("k") == [1, 2]
    assert made.fields("problem") == [ONE.problem, ProblemName.OSCILLATOR]
    assert (made.largest(), made.smallest(), Rows(()).largest()) == (5.0, 1.0, None)
    assert made.where(k=1).one() is ONE
    assert Rows(()).one() is None


def test_what_no_study_measures_cannot_be_asked_for():
    rows = Rows((), studies=(schemas.CONVERGENCE, schemas.TIGHTNESS))
    assert not rows.where(Metric.RATE, ProblemName.GAUSSIAN_SINE)
    assert not rows.where(Metric.RATIO, "theorem_3_1")
    with pytest.raises(
        InvalidProblem, match="metric cost on problem any is measured by none of the studies conv"
    ):
        rows.where(Metric.COST)
    with pytest.raises(InvalidProblem, match="metric rate on problem oscillator is measured by"):
        rows.where(Metric.RATE, ProblemName.OSCILLATOR)
    with pytest.raises(InvalidProblem, match="metric any on problem sphere is measured by none"):
        rows.of(schemas.CONVERGENCE).where(problem=ProblemName.SPHERE)
    with pytest.raises(InvalidProblem, match="metric ratio on problem any is measured by none"):
        rows.of(schemas.CONVERGENCE).having("k").where(Metric.RATIO)
    with pytest.raises(
        InvalidProblem, match="no records of study linear are here; they are of convergence, tight"
    ):
        rows.of(schemas.LINEAR)


def test_records_with_names_that_their_study_does_not_write_are_refused(tmp_path):
    stale = dataclasses.replace(ONE, study="convergence", metric="rates")
    write([stale], tmp_path / "convergence.jsonl")
    with pytest.raises(
        InvalidProblem,
        match=r"study convergence does not measure 'rates' on 'mixture-huber' .* measure the study",
    ):
        REPORT.rows(tmp_path)


def test_a_cell_that_could_show_either_of_two_records_is_refused():
    with pytest.raises(
        InvalidProblem,
        match=r"2 records are rate of mixture-huber with \{'k': 1\}; measure the study afresh",
    ):
        Rows((ONE, ONE)).one()


def test_series_are_sorted_and_finite():
    values = {3: 1.0, 1: 2.0, 2: math.nan, 4: math.inf}
    series = Rows(
        tuple(dataclasses.replace(ONE, setting={"k": k}, value=v) for k, v in values.items())
    ).series("k")
    assert (series.x, series.y) == ((1, 3), (2.0, 1.0))
    assert not Rows(()).series("k")


def test_ratio_needs_a_finite_positive_bound():
    bounds = (2.0, None, math.inf, 0.0)
    assert [ratio(dataclasses.replace(ONE, bound=bound)) for bound in bounds] == [
        0.5,
        None,
        None,
        None,
    ]


def test_provenance_names_every_version_and_commit():
    other = dataclasses.replace(
        ONE, versions={"python": "4", "torch": "2"}, commit="a" * 40, dirty=True
    )
    said = provenance(Rows((ONE, other)))
    for words in (
        '#"no version control";',
        f'#"{"a" * 12} with uncommitted changes";',
        '#"3 and 4";',
        '#"torch"; #"2";',
        "2 records",
    ):
        assert words in said


def test_a_small_document_compiles():
    table = Table(("a", "b"), [("group",), ("$1$", text("x"))], "caption", "t", "lr").markup
    picture = figure("p.svg", "caption", "p", "a line")
    line = (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0L9 9"'
        b' stroke="black"/></svg>'
    )
    source = document(
        'A "title"',
        "sub",
        FrontPage("someone", []),
        "abstract",
        "= One\n\n$ x = y $ <e>\n\n@e @t @p",
        table,
        picture,
    )
    assert PREAMBLE in source
    assert compile_pdf(source, {"p.svg": line}).startswith(b"%PDF")


def test_text_runs_on_before_a_tall_picture(tmp_path):
    """A fifth of a page of text, a picture of most of a page, and a third of a page of text."""
    pictures = {"p.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="300" height="800"/>'}
    shown = figure("p.svg", "A caption.", "p", "A picture.")
    for picture, expected in ((shown, 2), (shown.replace("placement: auto, ", ""), 3)):
        source = f"{PREAMBLE}\nBefore.#v(5cm)\n\n{picture}\n\nBetween.#v(9cm)After."
        assert pages(source, pictures, tmp_path) == expected
