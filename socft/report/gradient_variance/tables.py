"""The tables of estimators against the exact gradient: one per kind, since variances of different
targets do not compare.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from socft.estimators.catalogue import CATALOGUE, COMPARED
from socft.estimators.catalogue.rows import Group
from socft.estimators.estimand import Kind
from socft.records import Record
from socft.report.gradient_variance.cells import NONE, small, value
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, cited, integer, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

METRICS: Mapping[Metric, str] = {
    Metric.BIAS: "bias",
    Metric.VARIANCE: "variance",
    Metric.ERROR_AT_BUDGET: "error at budget",
}
FIT_METRICS: Mapping[Metric, str] = {
    Metric.BIAS: "bias",
    Metric.VARIANCE: "variance",
    Metric.FIT_VARIANCE: "of the fit",
    Metric.ERROR_AT_BUDGET: "error at budget",
}
"""By how they are called; the variance that a fit leaves is that of biased estimators alone."""
THOUSAND = 1000
COSTS = (r"seconds, \ 1000 paths", r"evaluations \ per path", r"memory, \ MB")
SHORT: Mapping[str, str] = {
    Kind.OBJECTIVE_GRADIENT: "objective",
    Kind.FIXED_POINT_RESIDUAL: "fixed point",
    Kind.APPROXIMATE_RESIDUAL: "fixed point, $O(d t)$",
}
MEANING: Mapping[str, str] = {
    Kind.OBJECTIVE_GRADIENT: "the mean is the gradient of the objective at every policy",
    Kind.FIXED_POINT_RESIDUAL: (
        """the mean vanishes at the optimum and at no other policy; elsewhere it is another vector
        field, whose distance from the gradient is given as the bias"""
    ),
    Kind.APPROXIMATE_RESIDUAL: (
        """the same, but that the mean vanishes at a policy that differs from the optimum by a
        relative $O(d t)$, unless paths are weighted and the problem is linear-quadratic"""
    ),
    Kind.BIASED: (
        "the mean is not the gradient, and its zeros need not be the optimum, or not that alone"
    ),
}


@dataclasses.dataclass(frozen=True)
class ComparisonProblem:
    """A problem on which all estimators are compared.

    Attributes:
        problem: its name.
        title: markup.
        label: for references.
        axes: the axes of the study that have it.
        settings: what completes the name.
        scales: policies, by title.
    """

    problem: str
    title: str
    label: str
    axes: tuple[str, ...]
    settings: Mapping[str, Any]
    scales: Mapping[float, str]

    def rows(self, rows: Rows) -> Rows:
        """Its records."""
        found = (
            rows.of(schemas.VARIANCE)
            .where(problem=self.problem)
            .filter(lambda record: record.setting.get("axis") in self.axes)
        )
        return found.where(**self.settings)


COMPARISON_PROBLEMS = (
    ComparisonProblem(
        ProblemName.LQ_FINE_TUNING,
        '#"lq-fine-tuning"; ($d = 4$)',
        "lq",
        ("distance",),
        {"d": 4},
        {0.0: "at the pre-trained model", 0.9: "near the optimum", 1.0: "at the optimum"},
    ),
    ComparisonProblem(
        ProblemName.MIXTURE,
        '#"mixture"; ($d = 1$)',
        "mixture",
        ("mixture",),
        {"d": 1},
        {0.0: "at the pre-trained model", 1.0: "at the optimum"},
    ),
)


def kinds(rows: Rows) -> Mapping[str, str]:
    """Kind by estimator, those of the catalogue first: that of its records, of one that was always
    refused the catalogue's.
    """
    known: dict[str, str] = {name: CATALOGUE[name].kind for name in COMPARED}
    refused = {
        record.estimator: Kind.BIASED
        for record in rows
        if record.metric == "refused" and record.estimator not in known
    }
    return (
        known
        | refused
        | {record.estimator: record.kind for record in rows if record.kind in set(Kind)}
    )


def names(rows: Rows, kind: str) -> list[str]:
    """The estimators of a kind."""
    return [name for name, found in kinds(rows).items() if found == kind]


def catalogue(rows: Rows) -> str:
    """Every estimator in one line."""
    found, body = COMPARISON_PROBLEMS[0].rows(rows), []
    all_kinds = kinds(rows.of(schemas.VARIANCE))
    for group in Group:
        body.append((f"{group}",))
        body += [
            _line(found, name, all_kinds[name])
            for name in COMPARED
            if CATALOGUE[name].group == group
        ]
    others = [name for name in all_kinds if name not in COMPARED]
    if others:
        body.append(("others",))
        body += [
            (text(name), NONE, text(all_kinds[name]), NONE, _evaluations(found, name))
            for name in others
        ]
    return Table(
        header=("estimator", "target of step $k$", "kind", "source", r"evaluations \ per path"),
        rows=body,
        caption="""The estimators: what their loss matches the control with, what they estimate,
            where they are from, and network evaluations per path of the Gaussian problem, the
            rollout included; a derivative counts as two.""",
        label="catalogue",
        align="llllr",
        widths=("47mm", "1fr", "auto", "31mm", "auto"),
        long=True,
    ).markup


def _line(found: Rows, name: str, kind: str) -> Sequence[str]:
    line = CATALOGUE[name]
    return (
        text(name),
        line.target,
        SHORT.get(kind, text(kind)),
        cited(line.source),
        _evaluations(found, name),
    )


def _evaluations(found: Rows, name: str) -> str:
    record = next(iter(found.where(Metric.BIAS, estimator=name)), None)
    return integer(record.evaluations if record else None)


def master(rows: Rows, problem: ComparisonProblem, kind: str) -> str:
    """All estimators of a kind on a problem, and beneath them why some are refused."""
    found, notes = problem.rows(rows), Notes()
    metrics = FIT_METRICS if kind == Kind.BIASED else METRICS
    body = [
        _estimator(found, problem, name, metrics, notes)
        for name in names(rows.of(schemas.VARIANCE), kind)
    ]
    columns = 1 + len(metrics) * len(problem.scales) + len(COSTS)
    cells = [f"[{cell}]" for row in body or [(NOT_MEASURED, *[""] * (columns - 1))] for cell in row]
    fits = ", and of its mean from fit to fit" if kind == Kind.BIASED else ""
    caption = f"""Estimators of the kind _{kind}_ on {problem.title}: {MEANING.get(kind, "")}. In
        units of the exact gradient at the pre-trained model; bias with its standard error, variance
        of the estimate from one path{fits}, root-mean-square error with the same number of network
        evaluations for all."""
    made = f"""#figure(kind: table, caption: [{caption}],
table(columns: {columns}, align: (left, {", ".join(["right"] * (columns - 1))}), rule(0.8pt),
  {_heading(list(problem.scales.values()), list(metrics.values()))}, rule(0.4pt),
  {", ".join(cells)}, rule(0.8pt))) <master-{problem.label}-{list(Kind).index(Kind(kind))}>
{notes.markup}"""
    return small(made, 7) if kind == Kind.BIASED else small(made)


def _heading(titles: Sequence[str], measured: Sequence[str]) -> str:
    """Two lines: situations, and beneath them what is measured there."""
    groups, rules, before = ["[]"], [], 1
    for title, columns in (*((title, len(measured)) for title in titles), ("cost", len(COSTS))):
        groups.append(f"table.cell(colspan: {columns}, align: center)[_{title}_]")
        rules.append(f"table.hline(start: {before}, end: {before + columns}, stroke: 0.3pt)")
        before += columns
    below = ", ".join(f"[{each}]" for each in (*[*measured] * len(titles), *COSTS))
    return f"table.header({', '.join([*groups, *rules, '[estimator]', below])})"


class Notes:
    """Reasons beneath a table, one letter each."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, reason: str) -> str:
        """The letter of a reason."""
        letter = self._letters.setdefault(reason, string.ascii_lowercase[len(self._letters) % 26])
        return f"#super[{letter}]"

    @property
    def markup(self) -> str:
        """All reasons."""
        if not self._letters:
            return ""
        lines = " ".join(
            f"#super[{letter}] {text(reason)}" for reason, letter in self._letters.items()
        )
        style = r"#set text(size: 7.6pt); #set par(first-line-indent: 0pt, justify: false);"
        return f"#block(above: 0.2em, below: 1em, width: 100%)[{style} {lines}]"


def _estimator(
    found: Rows, problem: ComparisonProblem, name: str, metrics: Iterable[Metric], notes: Notes
) -> Sequence[str]:
    mine, cells = found.where(estimator=name), []
    for scale in problem.scales:
        here = mine.where(scale=scale)
        refusal = here.where(Metric.REFUSED).one()
        if refusal is not None:
            cells += [
                f"refused{notes.mark(str(refusal.setting.get('reason', '')))}",
                *[NONE for _ in metrics][1:],
            ]
        else:
            bias, *others = (here.where(metric).one() for metric in metrics)
            cells += [
                value(bias),
                *(NOT_MEASURED if r is None else value(r, 2) for r in others),
            ]
    return text(name), *cells, *_cost(next(iter(mine.where(Metric.BIAS)), None))


def _cost(record: Record | None) -> Sequence[str]:
    if record is None:
        return NONE, NONE, NONE
    seconds = None if record.seconds is None else THOUSAND * record.seconds
    return number(seconds, 2), integer(record.evaluations), number(record.peak_mb, 2)


def refusals(rows: Rows) -> str:
    """Every refusal outside the two problems of the tables, with what tells the situations
    apart.
    """
    shown = {id(record) for problem in COMPARISON_PROBLEMS for record in problem.rows(rows)}
    found: dict[tuple[str, str], list[Record]] = {}
    for record in rows.of(schemas.VARIANCE).where(Metric.REFUSED):
        if id(record) not in shown:
            dims = f", $d = {record.setting['d']}$" if "d" in record.setting else ""
            place = text(record.problem) + dims
            reason = str(record.setting.get("reason", ""))
            found.setdefault((place, reason), []).append(record)
    if not found:
        return f"Refusals: {NOT_MEASURED}."
    body = [
        (
            place,
            ", ".join(text(name) for name in dict.fromkeys(r.estimator for r in records)),
            text(reason),
        )
        for (place, reason), records in found.items()
    ]
    return Table(
        header=("problem", "refused", "reason"),
        rows=body,
        caption="""Refusals outside the problems of the first tables. An estimator that does not
            apply raises an error; none returns a wrong number instead.""",
        label="refusals",
        align="lll",
        widths=("auto", "1fr", "1.4fr"),
        long=True,
    ).markup
