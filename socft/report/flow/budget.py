"""The chapter on methods at an equal budget."""

from __future__ import annotations

from socft.records import Record
from socft.report.flow.tables import PROBLEMS, letter_of
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text
from socft.study.comparison import BUDGET
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric


def table(rows: Rows) -> str:
    """Every method at the optimum, one part per problem."""
    body: list[tuple[str, ...]] = []
    for problem, title in PROBLEMS.items():
        if problem not in (schemas.FLOW_BUDGET.problems or ()):
            continue
        for steps in rows.where(problem=problem).distinct("T"):
            mine = rows.where(problem=problem, T=steps)
            body.append((f"{title}, $T = {steps}$",))
            body += sorted(
                (_row(mine.where(estimator=name), name) for name in mine.fields("estimator")),
                key=lambda cells: (cells[-1] == "–", _number_of(cells[-1])),
            )
    return Table(
        header=(
            "method",
            "equation",
            "evaluations",
            "bias, start",
            "bias, optimum",
            "error, optimum",
            "rank",
        ),
        rows=body or [(NOT_MEASURED, *[""] * 6)],
        caption=f"""Proposed changes of the control at an equal budget of {BUDGET:,} network
            evaluations, in units of the right one at the pre-trained model: bias with its standard
            error at the pre-trained model and at the optimum, where the right change is none, and
            the root-mean-square error of bias and noise there with its 95% interval over
            repetitions. Ranked are the methods that rest at the optimum or the tilt; ties are one
            rank, intervals in brackets. The others have another limit, by the letter of its
            equation in section 2 where it has one, and no budget lessens their bias.""",
        label="budget",
        align="llrrrrr",
        widths=("1fr", "auto", "auto", "auto", "auto", "auto", "auto"),
        long=True,
    ).markup


def _row(mine: Rows, name: str) -> tuple[str, ...]:
    start, optimum = mine.where(at="start"), mine.where(at="optimum")
    cost = next((record.evaluations for record in mine if record.evaluations), None)
    rank = optimum.where(Metric.RANK).one()
    return (
        text(name),
        letter_of(name),
        integer(cost),
        _with_error(start.where(Metric.BIAS).one()),
        _with_error(optimum.where(Metric.BIAS).one()),
        _with_interval(optimum.where(Metric.ERROR_AT_BUDGET).one()),
        "–" if rank is None else _ranked(rank),
    )


def _with_error(record: Record | None) -> str:
    if record is None:
        return NOT_MEASURED
    return f"{number(record.value, 2)} $plus.minus$ {number(record.stderr, 1)}"


def _with_interval(record: Record | None) -> str:
    if record is None:
        return NOT_MEASURED
    low, high = record.setting["low"], record.setting["high"]
    return f"{number(record.value, 2)} ({number(low, 2)}–{number(high, 2)})"


def _ranked(record: Record) -> str:
    low, high = record.setting["low"], record.setting["high"]
    interval = "" if low == high else f" [{low}–{high}]"
    return f"{integer(record.value)}{interval}"


def _number_of(cell: str) -> float:
    digits = cell.partition("$")[2].partition("$")[0]
    return float(digits) if digits else 0.0


def chapter(rows: Rows) -> str:
    """The whole chapter."""
    found = rows.of(schemas.FLOW_BUDGET)
    seeds = found.where(Metric.BIAS).largest(lambda record: record.seeds)
    return rf"""
= At an equal budget

A method is asked what it would change of the control: its slope in the control over the curvature
of its divergence, in products with the features $(x, 1)$ of every step, so that all are in one
unit. Right is $bb(E)[(B_k bb(E) nabla V^v_(k+1) \/ beta - v_k) phi(x_k)^top]$, the gradient of the
objective over $beta$, which vanishes at the optimum of the chain. Bias and variance count together,
and nothing is dropped for being small; {integer(seeds)} repetitions have paths of their own. Rates
play no part, so nothing was tuned. Strengths are those of the fixed points. What solves an equation
of continuous time is off the chain's optimum by $O(1\/T)$: of its bias, what falls with $T$ is the
chain's and what stays is the method's. On these chains $B$ is constant, so that Hamiltonian adjoint
matching is adjoint matching. A method that proposes next to nothing at either place, with a bias
near one at the pre-trained model and near none at the optimum, has no information of its own there:
residual nabla-DB does where its residual flow is fitted anew to the current control.

{table(found)}
"""
