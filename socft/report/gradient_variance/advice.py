"""Which estimator to use: every recommendation beside what the records say for it, in one place for
the report, the README and the site.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from socft.estimators.estimand import Kind
from socft.report.claim_records import Claims
from socft.report.findings import Answer, Finding, Number, Question, error, one
from socft.report.gradient_variance import findings
from socft.report.gradient_variance.cells import NONE, ends
from socft.report.gradient_variance.findings import START
from socft.report.gradient_variance.tables import COMPARISON_PROBLEMS, ComparisonProblem
from socft.report.gradient_variance.text import best, listed
from socft.report.rows import Rows
from socft.report.typeset import Table, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

ADVISED = (Kind.OBJECTIVE_GRADIENT, Kind.FIXED_POINT_RESIDUAL)
HEADER = ("take", "when", "why", "evidence", "not when")


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """A line of the table.

    Attributes:
        estimators: their names.
        when: to use them, as plain text.
        why: plain text.
        evidence: what the records must carry for it.
        unless: when not to.
    """

    estimators: tuple[str, ...]
    when: str
    why: str
    evidence: Question
    unless: str

    def seen(self, rows: Rows) -> Finding:
        """The evidence of these records, measured as they were."""
        return self.evidence.ask(rows, Claims())


def _trained(rows: Rows, _: Claims) -> Answer:
    found = rows.of(schemas.TRAINING).where(Metric.OBJECTIVE_GAP, ProblemName.LQ_FINE_TUNING)
    numbers = {}
    for key, name in (("lean", MethodName.ADJOINT_MATCHING), ("full", MethodName.FULL_ADJOINT)):
        mine = ends(found.where(estimator=name), "iteration")
        numbers[key], numbers[f"{key}_error"] = one(mine, 2), error(mine)
    numbers = {
        name: Number(each.value, each.evidence, 1 if name.endswith("error") else 2)
        for name, each in numbers.items()
    }
    return numbers, numbers["lean"].value < numbers["full"].value


def _unbiased(rows: Rows, claims: Claims) -> Answer:
    numbers, carried = findings.same_path(rows, claims)
    return {name: numbers[name] for name in ("lean", "full")}, carried


def _fitted(rows: Rows, claims: Claims) -> Answer:
    numbers, carried = findings.fitted_costate(rows, claims)
    return {name: numbers[name] for name in ("near", "plain_near")}, carried


def _own(rows: Rows, claims: Claims) -> Answer:
    numbers, carried = findings.own_costate(rows, claims)
    return {name: numbers[name] for name in ("near", "start")}, carried


def _black_box(rows: Rows, _: Claims) -> Answer:
    mine, plain, full = (
        findings.error_with_bias(rows, name, START)
        for name in (
            MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
            MethodName.SCORE_FUNCTION_NO_BASELINE,
            MethodName.FULL_ADJOINT,
        )
    )
    numbers = {"baseline": mine.over(plain, 2), "full": mine.over(full, 2)}
    return numbers, numbers["baseline"].value < 1 < numbers["full"].value


def _other_paths(rows: Rows, _: Claims) -> Answer:
    found = ends(rows.of(schemas.SOCM).where(Metric.CONTROL_L2), "iteration")
    numbers = {}
    for key, problem in (
        ("well", ProblemName.DOUBLE_WELL),
        ("hard", ProblemName.OU_QUADRATIC_HARD),
    ):
        mine, lean = (
            one(found.where(problem=problem, estimator=name))
            for name in (MethodName.SOCM_ADJOINT, MethodName.ADJOINT_MATCHING)
        )
        numbers[key] = mine.over(lean, 2)
    return numbers, numbers["well"].value < 1 < numbers["hard"].value


def _published(rows: Rows, claims: Claims) -> Answer:
    numbers, carried = findings.biased_mean(rows, claims)
    return {name: numbers[name] for name in ("refl", "refl_error")}, carried


def _line(
    estimators: Sequence[str],
    when: str,
    why: str,
    evidence: str,
    answer: Callable[[Rows, Claims], Answer],
    unless: str,
) -> Recommendation:
    return Recommendation(
        tuple(estimators), when, why, Question(estimators[0], evidence, answer), unless
    )


RECOMMENDATIONS = (
    _line(
        (MethodName.ADJOINT_MATCHING,),
        "the reward is differentiable",
        "cheaper than the full adjoint; zero on average at the optimum and nowhere else",
        "trained with equal budgets it ends {lean} ± {lean_error} below the optimum, the full"
        " adjoint {full} ± {full_error}",
        _trained,
        "the objective's gradient itself is asked for",
    ),
    _line(
        (MethodName.MARTINGALE_POLICY_COSTATE,),
        "the policy is near the optimum, or noise limits",
        "its noise vanishes at the optimum",
        "its error is {near} times that of adjoint matching near the optimum, {start} times at the"
        " start",
        _own,
        "at the start: the policy knows nothing yet",
    ),
    _line(
        (MethodName.FULL_ADJOINT,),
        "line searches, and whatever needs the gradient",
        "its mean is the gradient at every policy",
        "{full} evaluations per path, adjoint matching {lean}",
        _unbiased,
        "evaluations are what limits",
    ),
    _line(
        (MethodName.FULL_MARTINGALE_FITTED_COSTATE,),
        "the same, in few dimensions",
        "a regression takes the noise away",
        "near the optimum its error is {near}, that of the full adjoint {plain_near}",
        _fitted,
        "features cannot hold the costate",
    ),
    _line(
        (MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,),
        "the reward is a black box",
        "unbiased, without any derivative",
        "its error is {baseline} times that without a baseline, {full} times the full adjoint's",
        _black_box,
        "the reward has a gradient",
    ),
    _line(
        (MethodName.SOCM_ADJOINT,),
        "paths of another policy",
        "it holds on any paths",
        "its control error is {well} times that of adjoint matching on the double well, {hard}"
        " times on the hard Ornstein-Uhlenbeck problem",
        _other_paths,
        "weights degenerate: many steps, a small KL weight",
    ),
    _line(
        (MethodName.REFL, MethodName.DDPO, MethodName.DPOK),
        "comparing with what is published",
        "they are what was published",
        "at the optimum the mean of ReFL is {refl} ± {refl_error}, not zero",
        _published,
        "where training ends matters: not at the optimum",
    ),
)


def markdown(rows: Rows, link: Callable[[str], str] = str) -> str:
    """The table for the README and the site.

    Args:
        link: an estimator's name with the address of its page.

    Raises:
        InvalidProblem: the records do not carry a line.
    """
    body = [
        (
            ", ".join(map(link, each.estimators)),
            each.when,
            each.why,
            each.seen(rows).plain,
            each.unless,
        )
        for each in RECOMMENDATIONS
    ]
    lines = [HEADER, ("---",) * len(HEADER), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def chapter(rows: Rows, measured: Rows) -> str:
    """The chapter.

    Args:
        rows: records whose errors have the shared bias.
        measured: the same as they were measured.
    """
    table = Table(
        header=HEADER,
        rows=[
            (
                text(", ".join(each.estimators)),
                text(each.when),
                text(each.why),
                each.seen(measured).markup,
                text(each.unless),
            )
            for each in RECOMMENDATIONS
        ],
        caption="""Which estimator to use, and what the records say for it: errors are those at
            equal budget on the Gaussian problem, in units of the gradient at the pre-trained
            model.""",
        label="advice",
        align="lllll",
        widths=("1fr", "0.9fr", "1fr", "1.6fr", "1fr"),
        long=True,
    ).markup
    return rf"""
= Which estimator should I use?

{table}

@winners ranks the estimators by their error at equal budget; exact costates and scores are known on
test problems only and are left out.

{winners(rows)}
"""


def winners(rows: Rows) -> str:
    """The best two of every kind in every situation."""
    body: list[Sequence[str]] = []
    for problem in COMPARISON_PROBLEMS:
        body.append((problem.title,))
        for scale, title in problem.scales.items():
            last = NONE if scale == 1.0 else _usable(rows, Kind.BIASED, problem, scale)
            body.append((title, *(_usable(rows, kind, problem, scale) for kind in ADVISED), last))
    return Table(
        header=("policy", *(f"{kind}" for kind in (*ADVISED, Kind.BIASED))),
        rows=body,
        caption="""The two estimators of every kind with the smallest error at equal budget, and
            that error. At the optimum biased ones are not ranked: one that always returns zero
            would win.""",
        label="winners",
        align="llll",
        widths=("auto", "1fr", "1fr", "1fr"),
        long=True,
    ).markup


def _usable(rows: Rows, kind: str, problem: ComparisonProblem, scale: float) -> str:
    ranked = best(rows, kind, problem, scale)
    return listed(ranked[:1]) + (rf" \ {listed(ranked[1:2])}" if len(ranked) > 1 else "")
