"""The chapter of the convergence report on tightness: how much of each bound is reached, and how
much of the KL weight is needed.

Its records are those of the study ``tightness``: metric ``ratio`` is the largest measured / bound
that a search found, metric ``beta`` a constant KL weight, with the necessary one as its optimum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from socft.records import Record
from socft.report.convergence import tightness_figures as figures
from socft.report.convergence.tightness_figures import (
    CONSTANTS,
    NECESSARY,
    RULES,
    along,
    base,
    largest,
)
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, figure, integer, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric

GROUPS: Mapping[str, Mapping[str, str]] = {
    "Theorem 2.8": {
        "theorem_2_8_i_value_lipschitz": "P1 (14), gradient of the value",
        "theorem_2_8_i_value_smoothness": "P1 (15), Hessian of the value",
        "theorem_2_8_iii_control_lipschitz": "P1 (16), slope of the control",
        "theorem_2_8_iii_control_smoothness": "P1 (17), bend of the control",
        "strong_concavity": "P1 (19), strong concavity",
    },
    "Lemma 3.2, iterates of PI-FT": {
        "lemma_3_2_lipschitz": "P1 (38), gradient of the value",
        "lemma_3_2_smoothness": "P1 (39), Hessian of the value",
        "lemma_3_2_control": "slope of the control",
        "lemma_3_2_control_jacobian": "bend of the control",
        "lemma_3_2_increments": "increments of costates",
    },
    "Convergence of PI-FT": {
        "contraction": "P1 (67), contraction",
        "lemma_3_3": "Lemma 3.3, error of the control",
        "lemma_3_4": "Lemma 3.4, error of the value",
        "theorem_3_1": "Theorem 3.1",
    },
    "Smoothing of one function": {
        "smoothed_curvature": "smoothed curvature",
        "third_derivative_lemma": "third derivative",
    },
}
"""Titles of the inequalities, in the order of the table."""
STEPLESS = ("smoothed_curvature", "third_derivative_lemma")
"""What is not about a chain."""
VERDICTS: Mapping[str, str] = {"attained": "$checkmark$", "loose": "", "violated": "*violated*"}
COMMAND = "socft toy tightness --out reports/records"
NONE = "–"


def chapter(rows: Rows) -> str:
    """The chapter; its pictures are `pictures`."""
    found = rows.of(schemas.TIGHTNESS)
    if not found:
        return f"""
= How tight is the theory?

The search for the instances that come closest to each bound: {NOT_MEASURED}. It is a study of its
own, `{COMMAND}`.
"""
    return "\n\n".join([_introduction(), _ratios(found), _weights(found), _axes(found)])


def pictures(rows: Rows) -> Mapping[str, bytes]:
    """The pictures by file name, as the chapter names them; none where nothing was measured."""
    found = rows.of(schemas.TIGHTNESS)
    if not found:
        return {}
    return {
        "tightness-paper.svg": figures.ratios(found, "paper"),
        "tightness-sharp.svg": figures.ratios(found, "sharp"),
        "tightness-beta.svg": figures.weights(found),
    }


def _introduction() -> str:
    return r"""
= How tight is the theory?

That a bound holds says little where it is never approached. For every inequality of the theory a
numerical search looks for the largest ratio of what is measured to its bound, at the smallest KL
weights that the constants under search admit for a design constant $lambda$. The instances are
single steps whose next value function has a staircase as second derivative, in closed form; affine
scores with linear or quadratic rewards in $d$ dimensions, in closed form; and lines with affine or
tanh scores and Lipschitz rewards, by quadrature, of which each stands for itself along one axis of
$d$ dimensions in which nothing else is rewarded. What a search finds is a lower bound on the
tightness; _attained_ means within 1% of 1. @claims-table says where the inequalities are stated.
"""


def _ratios(found: Rows) -> str:
    return f"""
== The largest ratio found

{" ".join(_summary(found, constants) for constants in CONSTANTS)} {_known(found)}

{ratios(found)}
"""


def ratios(found: Rows) -> str:
    """The table of every inequality at the base setting and with a single step, with both kinds of
    constants.
    """
    body: list[Sequence[str]] = []
    for group, titles in GROUPS.items():
        body.append((group,))
        for name, title in titles.items():
            body += _rows(found, name, title)
    return Table(
        header=("inequality", "$T$", "paper", "", "reached by", "sharper", "", "reached by"),
        rows=body,
        caption=f"""Largest measured / bound found at {_where(found)} and with a single step, with
            the paper's constants and with the sharper ones, and the family of instances that
            reaches it, with its number of inner iterations $m$ where it matters: at $m = 0$ nothing
            has been iterated, and the bound is one of the optimum. A mark: attained, to 1%.""",
        label="tightness-table",
        align="llrclrcl",
        widths=("auto", "auto", "auto", "auto", "1fr", "auto", "auto", "1fr"),
        long=True,
    ).markup


def _rows(found: Rows, name: str, title: str) -> Sequence[Sequence[str]]:
    """The rows of an inequality, one for each number of steps."""
    body = [
        (
            NONE if name in STEPLESS else f"${steps}$",
            *(cell for constants in CONSTANTS for cell in _best(found, name, constants, steps)),
        )
        for steps in _lengths(found)
        if any(largest(found, name, constants, T=steps) for constants in CONSTANTS)
    ] or [("", *[NOT_MEASURED, "", ""] * 2)]
    return [(title if index == 0 else "", *cells) for index, cells in enumerate(body)]


def _best(found: Rows, name: str, constants: str, steps: int) -> Sequence[str]:
    record = largest(found, name, constants, T=steps)
    if record is None:
        return NOT_MEASURED, "", ""
    updates = record.setting["updates"]
    family = text(record.setting["family"]) + ("" if updates is None else f", $m = {updates}$")
    return number(record.value), VERDICTS[record.setting["verdict"]], family


def _lengths(found: Rows) -> Sequence[int]:
    """A single step, and the steps of the base setting."""
    place = base(found)
    return [] if place is None else sorted({1, place.T})


def _where(found: Rows) -> str:
    place = base(found)
    return (
        NOT_MEASURED
        if place is None
        else rf"$d = {place.d}$, $T = {place.T}$, $lambda = {place.lam:g}$"
    )


def headline(rows: Rows) -> str:
    """How many inequalities are attained with the paper's constants, as a sentence; nothing where
    that was not measured.
    """
    found = rows.of(schemas.TIGHTNESS)
    return (
        f"With the published constants a search attains, to 1%, {_counts(found, 'paper')}."
        if base(found)
        else ""
    )


def _counts(found: Rows, constants: str) -> str:
    """How many inequalities are attained, for each number of steps."""
    said = []
    for steps in _lengths(found):
        extremes = _extremes(found, constants, steps)
        attained = [
            record for record in extremes.values() if record.setting["verdict"] == "attained"
        ]
        said.append(
            f"{integer(len(attained))} of {integer(len(extremes))}{'' if said else ' inequalities'}"
            f" at $T = {steps}$"
        )
    return " and ".join(said)


def _extremes(found: Rows, constants: str, steps: int) -> Mapping[str, Record]:
    """The record of the largest ratio of each inequality about chains of so many steps."""
    named = {
        title: name
        for titles in GROUPS.values()
        for name, title in titles.items()
        if name not in STEPLESS
    }
    records = {title: largest(found, name, constants, T=steps) for title, name in named.items()}
    return {title: record for title, record in records.items() if record is not None}


def _summary(found: Rows, constants: str) -> str:
    """What the search found with one kind of constants, in words."""
    lengths = [steps for steps in _lengths(found) if _extremes(found, constants, steps)]
    if not lengths:
        return f"With {CONSTANTS[constants]}: {NOT_MEASURED}."
    said = f"With {CONSTANTS[constants]} the search attains {_counts(found, constants)}."
    extremes = _extremes(found, constants, lengths[-1])
    rest = sorted(
        (record.value, title)
        for title, record in extremes.items()
        if record.setting["verdict"] == "loose"
    )
    titles = {name: title for each in GROUPS.values() for name, title in each.items()}
    wrong = [
        titles[name]
        for name in found.where(Metric.RATIO, constants=constants, verdict="violated").fields(
            "problem"
        )
    ]
    if rest:
        (low, last), (high, first) = rest[0], rest[-1]
        said += (
            f" The others reach there between {number(low)}, for {_short(last)}, and"
            f" {number(high)}, for {_short(first)}."
        )
    return said + (f" *Violated: {'; '.join(map(_short, wrong))}.*" if wrong else "")


def _short(title: str) -> str:
    """A title within a sentence, with its result where it does not name it."""
    group = next(group for group, titles in GROUPS.items() if title in titles.values())
    return (
        title
        if title.split()[0] in ("P1", "Lemma", "Theorem")
        else f"{title} in {group.split(',')[0]}"
    )


def _known(found: Rows) -> str:
    """The one ratio whose supremum is known."""
    record = largest(found, "theorem_2_8_iii_control_smoothness", "paper", T=1)
    if record is None or record.optimum is None:
        return ""
    return f"""For P1 (17) at one step with an affine score the supremum is known in closed form,
{number(record.optimum)}; the search found {number(record.value)}."""


def _axes(found: Rows) -> str:
    paper = figure(
        "tightness-paper.svg",
        f"""Largest measured / bound with the paper's constants against dimension, number of steps
        and design constant; what is not varied is as at {_where(found)}.""",
        "tightness-paper-figure",
        "Nine panels: largest ratios against dimension, number of steps and design constant, one"
        " row per result.",
    )
    sharp = figure(
        "tightness-sharp.svg",
        """The same with the sharper constants, none of which depends on $d$.""",
        "tightness-sharp-figure",
        "Six panels: largest ratios against number of steps and design constant, one row per"
        " result.",
    )
    return f"""
== Against dimension, number of steps and $lambda$

@tightness-paper-figure and @tightness-sharp-figure show where the bounds lose. {_growth(found)}

{paper}

{sharp}
"""


def _growth(found: Rows) -> str:
    """Ends of the curves that say most."""
    over_T = [_ends(found, "theorem_3_1", constants, "T") for constants in CONSTANTS]
    over_d = _ends(found, "theorem_2_8_iii_control_smoothness", "paper", "d")
    said = []
    if all(over_T):
        said.append(
            f"The ratio of Theorem 3.1 is {over_T[0]}, with the sharper constants {over_T[1]}."
        )
    if over_d:
        said.append(f"That of P1 (17), whose constant grows with the dimension, is {over_d}.")
    return " ".join(said)


def _ends(found: Rows, name: str, constants: str, axis: str) -> str:
    line = along(found, name, constants, axis)
    ends = (
        [f"{number(line.y[i])} at ${axis} = {line.x[i]:g}$" for i in (0, -1)]
        if len(line.x) > 1
        else []
    )
    return " and ".join(ends)


def _weights(found: Rows) -> str:
    picture = figure(
        "tightness-beta.svg",
        f"""Smallest constant KL weight that suffices by the paper's constants, by the sharper ones,
        and by these with exact Lipschitz constants of the mean maps, and the necessary one;
        $lambda = {_lam(found.where(Metric.BETA))}$.""",
        "tightness-beta-figure",
        "KL weight against the number of steps on logarithmic scales, four curves, one panel per"
        " family of problems.",
    )
    return f"""
== Sufficient and necessary KL weights

A constant weight is _necessary_ if with less of it some inner iteration no longer contracts by $1 -
lambda$; @condition with $K_(t+1) = sup |nabla^2 (G_t V_(t+1))|$ gives it, by bisection with the
exact solver. {_interpretation(found)}

{picture}

{weights(found)}
"""


def _interpretation(found: Rows) -> str:
    """The range over the families of asked / needed at both ends of the range of steps."""
    steps = found.where(Metric.BETA).distinct("T")
    if not steps:
        return f"{NOT_MEASURED}."
    first, last = steps[0], steps[-1]
    lam = _lam(found.where(Metric.BETA))
    paper, sharp, exact, one_sided = (
        [_range(found, rule, steps) for steps in (first, last)] for rule in RULES
    )
    return f"""At $lambda = {lam}$ and $T = {first}$ the paper's constants ask for {paper[0]}
times the necessary weight, over the families; the sharper ones for {sharp[0]} times, with the exact
mean maps for {exact[0]} times, and the one-sided ones for {one_sided[0]} times. At $T = {last}$ it
is {paper[1]} times, {sharp[1]} times, {exact[1]} times and {one_sided[1]} times."""


def _lam(weights: Rows) -> str:
    """The design constant of all weights, in mathematics."""
    return "?" if not weights else f"{weights.distinct('lam')[0]:g}"


def _range(found: Rows, rule: str, steps: int) -> str:
    """Asked over needed, from the least to the largest family."""
    here = found.where(Metric.BETA, rule=rule, T=steps)
    low, high = number(here.smallest(_overcharge)), number(here.largest(_overcharge))
    return low if low == high else f"{low} to {high}"


def _overcharge(record: Record) -> float | None:
    """A sufficient weight over the necessary one."""
    return record.value / record.optimum if record.optimum else None


def _cells(
    found: Rows, lengths: Sequence[int], shown: Callable[[Record], float | None]
) -> Sequence[str]:
    """A number for each number of steps."""
    records = [found.where(T=length).one() for length in lengths]
    return [number(None if record is None else shown(record)) for record in records]


def weights(found: Rows) -> str:
    """The table of sufficient over necessary weights."""
    here = found.where(Metric.BETA)
    lengths = here.distinct("T")
    body: list[Sequence[str]] = []
    for family in here.fields("problem"):
        body.append((text(family),))
        mine = here.where(problem=family)
        body.append(
            (NECESSARY, *_cells(mine.where(rule="necessary"), lengths, lambda record: record.value))
        )
        body += [
            (name, *_cells(mine.where(rule=rule), lengths, _overcharge))
            for rule, name in RULES.items()
        ]
    return Table(
        header=("", *(f"$T = {length}$" for length in lengths)) if lengths else ("", "weight"),
        rows=body or [(NOT_MEASURED, "")],
        caption=(
            f"Necessary constant KL weight at $lambda = {_lam(here)}$, and over it the sufficient"
            " ones by four kinds of constants."
        ),
        label="tightness-beta-table",
        align="l" + "r" * max(1, len(lengths)),
        long=True,
    ).markup
