"""The chapter on tightness shows the largest ratios and the weights that its records hold, and says
what is missing.

The records here are synthetic: a simple formula with the settings and metrics of the study
``tightness``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

import pytest

from socft.records import Record, write
from socft.report.base import Document, Report
from socft.report.convergence import along_paths, tightness, tightness_figures
from socft.report.convergence.report import REPORT
from socft.report.convergence.tightness_figures import PANELS, along, base
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, text
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from tests.support.drawings import curves
from tests.support.tightness_rows import (
    ATTAINED,
    LENGTHS,
    NAMES,
    NO_SINGLE_STEP,
    ratio,
    synthetic_tightness,
    value,
)
from toy.studies.tightness import AXES
from toy.tightness.verdicts import INEQUALITIES
from verify.beta_tightness import FAMILIES
from verify.support.claims import WITHIN


@pytest.fixture(scope="module")
def found() -> Rows:
    return synthetic_tightness()


def table_rows(markup: str) -> dict[tuple[str, str], list[str]]:
    """Cells of the table of ratios by inequality and number of steps; a title stands for the rows
    below it that have none.
    """
    cells = [cell.strip() for cell in re.findall(r"^  \[(.*?)\],?$", markup, re.MULTILINE)]
    found, title = {}, ""
    for i in range(0, len(cells), 8):
        title = cells[i] or title
        found[title, cells[i + 1]] = cells[i + 2 : i + 8]
    return found


def flat(markup: str) -> str:
    return re.sub(r"\s+", " ", markup)


def test_titles_are_those_of_the_study():
    assert set(NAMES) == set(INEQUALITIES)
    assert len(NAMES) == len(set(NAMES))
    titles = {name: title for group in tightness.GROUPS.values() for name, title in group.items()}
    for name, called in INEQUALITIES.items():
        if called[0] == "(":
            assert titles[name].startswith(f"P1 {called}, ")
    drawn = [name for names in PANELS.values() for name in names]
    assert set(drawn) == set(NAMES) - {"smoothed_curvature"}
    assert len(drawn) == len(set(drawn))
    assert f"within {WITHIN:.0%} of 1" in tightness.chapter(synthetic_tightness())


def test_the_base_setting_is_where_nothing_varies(found):
    assert base(found) == tightness_figures.Base(2, 2, 0.5)
    assert base(Rows(())) is None


def test_the_table_has_the_largest_ratio_with_one_step_and_with_those_of_the_base(found):
    """Those of more steps, and of other d and lambda, do not count."""
    rows = table_rows(tightness.ratios(found))
    assert len(rows) == 2 * len(NAMES) - len(NO_SINGLE_STEP)
    titles = {name: title for group in tightness.GROUPS.values() for name, title in group.items()}
    for name, steps in itertools.product(NAMES, (1, 2)):
        if name in NO_SINGLE_STEP and steps == 1:
            continue
        shown = rows[titles[name], "–" if name in tightness.STEPLESS else f"${steps}$"]
        for cells, constants in ((shown[:3], "paper"), (shown[3:], "sharp")):
            assert float(cells[0].strip("$")) == pytest.approx(
                value(name, constants, 2, steps, 0.5), rel=5e-3
            )
            assert cells[1] == ("$checkmark$" if name in ATTAINED else "")
            assert cells[2] == text(f"family of {steps} steps")


def test_the_largest_of_several_families_counts():
    rows = Rows(
        tuple(ratio("lemma_3_3", value=x, updates=m) for m, x in enumerate((0.2, 0.7, 0.5)))
    )
    shown = table_rows(tightness.ratios(rows))
    assert shown["Lemma 3.3, error of the control", "$2$"][:3] == [
        "$0.700$",
        "",
        f"{text('family of 2 steps')}, $m = 1$",
    ]
    assert shown["Lemma 3.3, error of the control", "$2$"][3] == NOT_MEASURED
    assert shown["P1 (14), gradient of the value", ""] == [
        NOT_MEASURED,
        "",
        "",
        NOT_MEASURED,
        "",
        "",
    ]


def test_a_violation_is_shown_in_bold():
    rows = Rows((ratio("lemma_3_3", value=1.2), ratio("contraction", value=0.995)))
    assert table_rows(tightness.ratios(rows))["Lemma 3.3, error of the control", "$2$"][:2] == [
        "$1.20$",
        "*violated*",
    ]
    assert "*Violated: Lemma 3.3, error of the control.*" in flat(tightness.chapter(rows))
    elsewhere = Rows((ratio("contraction"), ratio("lemma_3_3", d=8, value=1.2)))
    assert "*Violated: Lemma 3.3, error of the control.*" in flat(tightness.chapter(elsewhere))
    assert "iolated" not in tightness.chapter(synthetic_tightness())


def test_the_words_count_what_the_records_hold(found):
    """Of the chains; the first and the last in the table that are not attained have the largest and
    the smallest ratio.
    """
    said, chains = (
        flat(tightness.chapter(found)),
        [name for name in NAMES if name not in tightness.STEPLESS],
    )
    single = len(set(chains) - set(NO_SINGLE_STEP))
    counted = f"$2$ of ${single}$ inequalities at $T = 1$ and $2$ of ${len(chains)}$ at $T = 2$."
    assert f"With the paper's constants the search attains {counted}" in said
    low, high = (
        value(name, "paper", 2, 2, 0.5)
        for name in ("theorem_3_1", "theorem_2_8_i_value_smoothness")
    )
    assert (
        f"The others reach there between ${low:.4f}$, for Theorem 3.1, and ${high:.3f}$, for P1"
        " (15), Hessian of the value." in said
    )
    assert (
        flat(tightness.headline(found))
        == f"With the published constants a search attains, to 1%, {counted}"
    )
    assert tightness.headline(Rows(())) == ""


def test_the_known_supremum_is_told_beside_what_was_found():
    name = "theorem_2_8_iii_control_smoothness"
    rows = Rows((ratio(name, T=1, value=0.55, optimum=0.56), ratio(name, value=0.58)))
    assert (
        "P1 (17) at one step with an affine score the supremum is known in closed form, $0.560$;"
        " the search found $0.550$." in flat(tightness.chapter(rows))
    )


@pytest.mark.parametrize("constants", ["paper", "sharp"])
def test_curves_have_the_largest_ratio_at_each_point(found, constants):
    """With all else as at the base point."""
    doubled = Rows((*found, *(dataclasses.replace(r, value=r.value / 2) for r in found)))
    for rows in (found, doubled):
        lines = {axis: along(rows, "theorem_3_1", constants, axis) for axis in ("d", "T", "lam")}
        assert {axis: line.x for axis, line in lines.items()} == AXES
        for axis, line in lines.items():
            place = {"d": 2, "T": 2, "lam": 0.5}
            assert line.y == pytest.approx(
                [value("theorem_3_1", constants, **place | {axis: x}) for x in line.x]
            )


def test_figures_show_the_curves_and_name_them(found, drawn):
    tightness_figures.ratios(found, "paper")
    tightness_figures.ratios(found, "sharp")
    for figure, axes_shown in zip(drawn, (("d", "T", "lam"), ("T", "lam")), strict=True):
        constants = "paper" if len(axes_shown) == 3 else "sharp"
        assert len(figure.axes) == len(PANELS) * len(axes_shown)
        for (names, axis), ax in zip(
            itertools.product(PANELS.values(), axes_shown), figure.axes, strict=True
        ):
            lines = {label: along(found, name, constants, axis) for name, label in names.items()}
            assert curves(ax) == {
                label: (list(line.x), list(line.y)) for label, line in lines.items()
            }
            assert ax.get_yscale() == "log"
            assert all(
                ax.get_ylim()[0] <= y <= ax.get_ylim()[1] for line in lines.values() for y in line.y
            )
        last_of_row = figure.axes[len(axes_shown) - 1 :: len(axes_shown)]
        legends = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in last_of_row]
        assert legends == [list(names.values()) for names in PANELS.values()]


def test_weights_are_drawn_over_the_number_of_steps(found, drawn):
    tightness_figures.weights(found)
    assert [ax.get_title() for ax in drawn[0].axes] == list(FAMILIES)
    for size, ax in enumerate(drawn[0].axes, 1):
        lines = curves(ax)
        needed = [1 + 1 / steps for steps in LENGTHS]
        assert lines["necessary weight"] == (list(LENGTHS), needed)
        expected = [
            need * 4.0**size * steps / 2 for need, steps in zip(needed, LENGTHS, strict=True)
        ]
        assert lines["the paper's constants"] == (list(LENGTHS), pytest.approx(expected))


def test_what_was_not_measured_is_said_in_every_panel(drawn):
    only = Rows((ratio("contraction", updates=1),))
    tightness_figures.ratios(only, "paper")
    tightness_figures.weights(only)
    empty = [ax for figure in drawn for ax in figure.axes if not ax.lines]
    assert len(empty) == 7
    assert all([t.get_text() for t in ax.texts] == ["not measured"] for ax in empty)
    assert flat(tightness.chapter(only)).count("not measured") > len(NAMES)


def test_weights_are_given_over_the_necessary_one(found):
    first, second, third = FAMILIES
    cells = re.findall(r"^  \[(.*?)\],?$", tightness.weights(found), re.MULTILINE)
    assert cells[:4] == ["necessary weight", "$1.50$", "$1.12$", "$1.03$"]
    assert cells[4:8] == ["the paper's constants", "$4.00$", "$16.0$", "$64.0$"]
    assert cells[8:12] == ["the sharper constants", "$2.00$", "$8.00$", "$32.0$"]
    assert cells[16:20] == ["one-sided constants", "$1.20$", "$4.80$", "$19.2$"]
    assert cells[24:28] == ["the paper's constants", "$16.0$", "$64.0$", "$256$"]
    assert tightness.weights(found).count("#emph") == len((first, second, third))
    said = flat(tightness.chapter(found))
    assert r"At $lambda = 0.001$ and $T = 2$" in said
    assert "the paper's constants ask for $4.00$ to $64.0$ times the necessary weight" in said
    assert (
        "the sharper ones for $2.00$ to $8.00$ times, with the exact mean maps for $1.50$ to"
        " $3.38$ times, and the one-sided ones for $1.20$ to $1.73$ times" in said
    )
    assert (
        "At $T = 32$ it is $64.0$ to $1024$ times, $32.0$ to $128$ times, $24.0$ to $54.0$ times"
        " and $19.2$ to $27.6$ times." in said
    )


def test_without_records_the_chapter_says_so_and_how_to_measure():
    said = tightness.chapter(Rows(()))
    assert NOT_MEASURED in said
    assert "socft toy tightness" in said
    assert tightness.pictures(Rows(())) == {}
    assert "@" not in said


def test_the_report_reads_both_studies_and_needs_one(tmp_path):
    seen = []

    def compose(rows, _) -> Document:
        seen.append([r.study for r in rows])
        return Document("one page", {})

    report = Report("convergence", compose, REPORT.studies)
    mine = ratio("contraction")
    write([mine], tmp_path / "tightness.jsonl")
    assert report.measured(tmp_path)
    report.write(tmp_path, tmp_path / "out")
    write(
        [Record("convergence", ProblemName.MIXTURE_HUBER, Metric.RATE, 1.0)],
        tmp_path / "convergence.jsonl",
    )
    report.write(tmp_path, tmp_path / "out")
    assert seen == [["tightness"], ["convergence", "tightness"]]


def test_exponents_are_those_of_the_least_squares_line():
    """Exact for a power, and for three points with residuals 1, -2, 1 over the spread 2."""
    power = [(math.log(T), math.log(3 * T**-0.5)) for T in (20, 50, 100, 200)]
    slope, error = along_paths.fitted(power)
    assert slope == pytest.approx(-0.5, abs=1e-12)
    assert error == pytest.approx(0.0, abs=1e-7)
    slope, error = along_paths.fitted([(-1.0, 1.0), (0.0, -2.0), (1.0, 1.0)])
    assert slope == pytest.approx(0.0, abs=1e-12)
    assert error == pytest.approx(math.sqrt(6 / 2), rel=1e-12)
