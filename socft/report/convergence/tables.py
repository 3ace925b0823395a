"""The tables of the convergence report, each a function from records to markup."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from socft.records import Record
from socft.report.rows import Rows, ratio
from socft.report.typeset import NOT_MEASURED, Table, fraction_of_bound, integer, number, text
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

LICENSED = ("paper iterates", "sharp iterates", "one-sided iterates")
"""Rules whose weights license Theorem 3.1, with the bound of their constants."""
UNBOUNDED = "no finite constant"
RULES = {
    "paper": "P1 (14)–(15)",
    "paper iterates": "P1 (38)–(39)",
    "sharp": "sharp, optimum",
    "sharp iterates": "sharp, every iterate",
    "one-sided": "one-sided, optimum",
    "one-sided iterates": "one-sided, every iterate",
    "measured": "measured",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """How a problem is introduced: data law, reward, and the reward's Lipschitz constants."""

    data: str
    reward: str
    L0: float
    L1: float


CASES: Mapping[str, Case] = {
    ProblemName.GAUSSIAN_QUADRATIC: Case(r"$N(1\/2, 1\/2)$", r"$-x^2\/2 + 3x\/2$", math.inf, 1.0),
    ProblemName.MIXTURE_HUBER: Case(
        "$0.7 N(-1.5, 0.16) + 0.3 N(1.5, 0.16)$", "$1 - sqrt(1 + (x - 1.5)^2)$", 1.0, 1.0
    ),
    ProblemName.GAUSSIAN_SINE: Case("$N(0, 1)$", "$sin 2 x$", 2.0, 4.0),
}


def problems(rows: Rows) -> str:
    """The three problems."""
    steps = rows.where(Metric.BETA_REQUIRED).distinct("k")
    length = integer(steps[-1] + 1 if steps else None)
    return Table(
        header=("problem", "data law", "reward $r(x)$", "$L_0 (r)$", "$L_1 (r)$"),
        rows=[
            (text(name), c.data, c.reward, number(c.L0, 1), number(c.L1, 1))
            for name, c in CASES.items()
        ],
        caption=f"""The three problems, in one dimension, on chains of {length} DDPM steps whose
            variances grow linearly, so that $X_0$ and $X_T$ are almost independent.""",
        label="problems",
        align="lllrr",
    ).markup


def constants(rows: Rows, lam: float | None) -> str:
    """What every rule asks for, and how much of it is needed."""
    body: list[Sequence[str]] = []
    for problem in CASES:
        body.append((text(problem),))
        body += [_asked(rows, problem, rule, lam) for rule in RULES]
    return Table(
        header=("rule", "$L_0 (V_0)$", "$L_1 (V_0)$", "$beta$", "needed / asked"),
        rows=body,
        caption=f"""What every rule says at $lambda = {design(lam)}$: Lipschitz constants of the
            first value function and of its gradient, the smallest constant KL weight admitted, and
            the share of it that the instance needs; a share below 0.1 is marked loose. A rule
            without a finite constant admits no weight: Lemma 3.2 needs a reward that is
            Lipschitz.""",
        label="constants",
        align="lrrrr",
    ).markup


def _asked(rows: Rows, problem: str, rule: str, lam: float | None) -> Sequence[str]:
    if unbounded(rows, problem, rule):
        return RULES[rule], "", "", "", UNBOUNDED
    mine = rows.where(problem=problem, rule=rule, lam=lam)
    asked = mine.where(Metric.BETA_REQUIRED).largest()
    needed = rows.where(Metric.BETA_REQUIRED, problem, rule="measured", lam=lam).largest()
    share = fraction_of_bound(needed / asked if needed is not None and asked else None)
    first = [
        number(value_of(mine.where(metric, k=0))) for metric in (Metric.L0_VALUE, Metric.L1_VALUE)
    ]
    return RULES[rule], *first, number(asked), share


def rates(rows: Rows) -> str:
    """Measured and exact factors per inner iteration, and those that the weights are set to."""
    found = rows.where(Metric.RATE)
    pairs = [
        (rule, lam)
        for rule in ("measured", *LICENSED)
        for lam in found.where(rule=rule).distinct("lam")
    ]
    return Table(
        header=(
            "weights from",
            "$lambda$",
            "$1 - lambda$",
            *map(text, CASES),
            r"worst / set",
        ),
        rows=[_rate(rows, rule, lam) for rule, lam in pairs] or [_missing(7)],
        caption="""Factor by which the error of the control shrinks per inner iteration, measured,
            and in parentheses the exact local factor of the slowest step; the weights are set so
            that it is at most $1 - lambda$. Theorem 3.1 applies to the last rows alone, in its
            published, its sharpened and its one-sided form. Their weights, one per step, all but
            agree at the last step, where the factor is largest.""",
        label="rates",
        align="lrrrrrr",
    ).markup


def _rate(rows: Rows, rule: str, lam: float) -> Sequence[str]:
    found = rows.where(Metric.RATE, rule=rule, lam=lam)
    cells = []
    for problem in CASES:
        record = found.where(problem=problem).one()
        missing = UNBOUNDED if unbounded(rows, problem, rule) else NOT_MEASURED
        cells.append(f"{number(record.value)} ({number(record.optimum)})" if record else missing)
    aimed = next((record.bound for record in found), None)
    return (
        RULES[rule],
        number(lam, 2),
        number(aimed, 2),
        *cells,
        fraction_of_bound(found.largest(ratio)),
    )


def bounds(rows: Rows) -> str:
    """Worst ratios to the bounds of Theorem 3.1."""
    return Table(
        header=(
            "problem",
            "weights from",
            "",
            r"control: \ measured / bound",
            r"value gradient: \ measured / bound",
        ),
        rows=[
            (text(problem) if at == 0 else "", RULES[rule] if at == 0 else "", *cells)
            for problem in CASES
            for rule in LICENSED
            for at, cells in enumerate(_worst(rows, problem, rule))
        ],
        caption="""Ratio of measured error to the bound of Theorem 3.1 before the first update,
            where the bound is one of the optimal control and says nothing of the iteration, and
            the largest after one and more; a ratio below 0.1 is marked loose.""",
        label="bounds",
        align="lllrr",
    ).markup


def _worst(rows: Rows, problem: str, rule: str) -> Sequence[Sequence[str]]:
    """Before the first update, and after."""
    if unbounded(rows, problem, rule):
        return [("", UNBOUNDED, UNBOUNDED)]
    found = [
        rows.where(metric, problem, rule=rule)
        for metric in (Metric.CONTROL_ERROR, Metric.VALUE_GRADIENT_ERROR)
    ]
    later = [some.filter(lambda record: record.setting["m"] > 0) for some in found]
    return [
        ("$m = 0$", *(fraction_of_bound(some.where(m=0).largest(ratio)) for some in found)),
        ("$m >= 1$", *(fraction_of_bound(some.largest(ratio)) for some in later)),
    ]


def tilt(rows: Rows) -> str:
    """Gaps to the exponential tilt at both ends of the range of steps."""
    lengths = rows.where(Metric.KERNEL_GAP).distinct("steps")
    first, last = (lengths[0], lengths[-1]) if lengths else (None, None)
    columns = (
        (Metric.KERNEL_GAP, "memoryless", first),
        (Metric.KERNEL_GAP, "memoryless", last),
        (Metric.MEMORY_GAP, "memoryless", last),
        (Metric.MEMORY_GAP, "constant rate 1", first),
        (Metric.MEMORY_GAP, "constant rate 1", last),
    )
    titles = (
        "kernel gap",
        "kernel gap",
        "memory gap",
        r"memory gap, \ rate 1",
        r"memory gap, \ rate 1",
    )
    return Table(
        header=(
            "problem",
            *(rf"{title}, \ $T = {c[2] or '?'}$" for title, c in zip(titles, columns, strict=True)),
        ),
        rows=[
            (
                text(problem),
                *(
                    number(value_of(rows.where(m, problem, schedule=s, steps=steps)))
                    for m, s, steps in columns
                ),
            )
            for problem in rows.where(Metric.KERNEL_GAP).fields("problem")
        ]
        or [_missing(6)],
        caption="""Gaps to the exponential tilt, with the memoryless schedule and with a constant
            rate 1, whose chain remembers its start.""",
        label="tilt",
        align="lrrrrr",
    ).markup


def methods(rows: Rows, problem: str, names: Sequence[str]) -> str:
    """Where every method ends."""
    body = []
    for method in names:
        mine = rows.where(problem=problem, estimator=method).having("index")
        last = max(mine.distinct("index"), default=None)
        gap, error = (
            mine.where(metric, index=last).one()
            for metric in (Metric.OBJECTIVE_GAP, Metric.CONTROL_ERROR)
        )
        kind = text(gap.kind) if gap else NOT_MEASURED
        numbers = (
            gap.value if gap else None,
            error.value if error else None,
            gap.seconds if gap else None,
        )
        body.append((text(method), kind, integer(last), *map(number, numbers)))
    return Table(
        header=("method", "kind", "iterations", "$J^* - J$", "$sup |v - v^*|$", "seconds"),
        rows=body,
        caption=f"""Where every method ends, on {text(problem)}: objective gap and largest error of
            the control, both measured by quadrature. An iteration is an inner iteration of PI-FT or
            one gradient step.""",
        label="methods",
        align="llrrrr",
    ).markup


def accuracy(rows: Rows) -> str:
    """Errors and times of the exact solutions."""
    kinds = {
        Metric.TRUTH_ERROR: "error estimate of the exact solution, by refinement",
        Metric.CLOSED_FORM_ERROR: "exact solution by quadrature against the closed form",
        Metric.INNER_ERROR: "exact PI-FT against the closed form",
    }
    body: list[Sequence[str]] = []
    for metric, title in kinds.items():
        body.append((title,))
        body += [
            (text(r.problem), _size(r), number(r.value, 2), _required(r), number(r.seconds, 2))
            for r in rows.where(metric)
        ] or [_missing(5)]
    body.append(("closed form by the Riccati recursion",))
    body += [
        (text(r.problem), _size(r), "", "", number(r.value, 2))
        for r in rows.where(Metric.RICCATI_SECONDS)
    ] or [_missing(5)]
    return Table(
        header=("problem", "size", "largest error of $v$", "required", "seconds"),
        rows=body,
        caption=(
            "Accuracy and cost of the exact solutions, on one thread, in double precision. $n$ is"
            " the largest number of nodes."
        ),
        label="accuracy",
        align="llrrr",
    ).markup


def sweeps(rows: Rows) -> str:
    """Time of one sweep, in a table of steps by inner iterations."""
    found = rows.where(Metric.SWEEP_SECONDS)
    inner = found.distinct("inner")
    return Table(
        header=("", *(f"$m = {m}$" for m in inner)) if inner else ("", "seconds"),
        rows=[
            (
                f"$T = {steps}$",
                *(
                    (
                        number(cell.value, 2)
                        if (cell := found.where(steps=steps, inner=m).one())
                        else ""
                    )
                    for m in inner
                ),
            )
            for steps in found.distinct("steps")
        ]
        or [_missing(2)],
        caption=(
            "Seconds of one sweep of exact PI-FT with $m$ inner iterations at each of $T$ steps;"
            " blank: no such run."
        ),
        label="sweeps",
        align="l" + "r" * max(1, len(inner)),
    ).markup


def unbounded(rows: Rows, problem: str, rule: str) -> bool:
    """Whether a rule has no finite constant: Lemma 3.2 needs a Lipschitz reward."""
    lipschitz = math.isfinite(CASES[problem].L0) or rule not in LICENSED
    return (
        not lipschitz or rows.where(Metric.BETA_REQUIRED, problem, rule=rule).largest() == math.inf
    )


def value_of(rows: Rows) -> float | None:
    """The value of the only record, None where there is none."""
    record = rows.one()
    return None if record is None else record.value


def design(lam: float | None) -> str:
    """A design constant in mathematics."""
    return "?" if lam is None else f"{lam:g}"


def _required(record: Record) -> str:
    return "" if record.bound is None else f"$<=$ {number(record.bound, 1)}"


def _size(record: Record) -> str:
    symbols = {"dim": "d", "steps": "T", "inner": "m", "nodes": "n"}
    return ", ".join(
        f"${symbol} = {record.setting[key]}$"
        for key, symbol in symbols.items()
        if key in record.setting
    )


def _missing(columns: int) -> Sequence[str]:
    return NOT_MEASURED, *[""] * (columns - 1)
