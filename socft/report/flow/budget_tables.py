"""The tables of methods at an equal budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.rows import Group
from socft.records import Record
from socft.report.flow.samplers import holds
from socft.report.flow.tables import PROBLEMS, letter_of
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text
from socft.study.comparison import BUDGET, LEVEL
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.predictions import BudgetPrediction

TRAINED = "trained"
PATHWISE = (Group.PATHWISE, Group.CORRECTED)


def uses_the_gradient(name: str) -> bool:
    """Whether a method asks for the gradient of the reward."""
    return CATALOGUE[name].group in PATHWISE


def training(rows: Rows) -> str:
    """What training makes of every method: the best first, by the sum of its ranks."""
    found = rows.where(at=TRAINED)
    body = [
        (
            text(name),
            letter_of(name),
            "yes" if uses_the_gradient(name) else "no",
            integer(_evaluations(rows.where(estimator=name))),
            *(_ended(found.where(problem=problem, estimator=name)) for problem in PROBLEMS),
        )
        for name in by_rank(found)
    ]
    return Table(
        header=("method", "limit", "gradient", "evaluations", *PROBLEMS.values()),
        rows=body or [(NOT_MEASURED, *[""] * 6)],
        caption=f"""Training at an equal budget of network evaluations, the best first: what the
            exact objective falls short of the optimum by, in thousandths, with its 95% interval by
            Student's law, and the rank, ties being one rank, with its interval by the bootstrap. A
            star: differs from adjoint matching by Welch's test at the level {number(LEVEL, 1)} for
            all methods of a problem together, by Holm's procedure. A dagger: the best rate is the
            last of its grid. Limits by the letters of their equations, whether the gradient of the
            reward is used, and evaluations of a path.""",
        label="budget-training",
        align="lllrrrr",
        widths=("1fr", "auto", "auto", "auto", "auto", "auto", "auto"),
        long=True,
    ).markup


def by_rank(found: Rows) -> list[str]:
    """Methods that were trained, by the sum of their ranks; those that diverged last."""
    ranks = found.where(Metric.RANK)
    names = found.where(Metric.OBJECTIVE_GAP).fields("estimator")

    def place(name: str) -> tuple[float, float]:
        mine, gaps = ranks.where(estimator=name), found.where(Metric.OBJECTIVE_GAP, estimator=name)
        missing = len(gaps.records) - len(mine.records)
        return missing, sum(r.value for r in mine) + 1e-3 * sum(
            r.value for r in gaps if r.value < 1e3
        )

    return sorted(names, key=place)


def _evaluations(mine: Rows) -> float | None:
    """Of a path, where the fewest steps were measured."""
    found = mine.where(Metric.BIAS).filter(lambda record: record.evaluations is not None)
    return min((record.evaluations or 0 for record in found), default=None)


def _ended(mine: Rows) -> str:
    gap, rank = mine.where(Metric.OBJECTIVE_GAP).one(), mine.where(Metric.RANK).one()
    if gap is None:
        return NOT_MEASURED
    if rank is None:
        return "diverged"
    low, high = (1000 * gap.setting[end] for end in ("low", "high"))
    star = "\\*" if gap.setting["differs"] else ""
    dagger = "" if gap.setting["closed"] else "†"
    return f"{number(1000 * gap.value, 2)}{star}{dagger} ({_span(low, high)}), {_ranked(rank)}"


def _span(low: float, high: float) -> str:
    return f"{number(low, 2)}–{number(high, 2)}"


def _ranked(record: Record) -> str:
    low, high = record.setting["low"], record.setting["high"]
    interval = "" if low == high else f" [{low:g}–{high:g}]"
    return f"{integer(record.value)}{interval}"


def rates(rows: Rows) -> str:
    """The rates that pilot seeds chose."""
    found = rows.where(Metric.OBJECTIVE_GAP, at=TRAINED)
    body = [
        (
            text(name),
            integer(next((r.setting["updates"] for r in found.where(estimator=name)), None)),
            *(_rate(found.where(problem=problem, estimator=name).one()) for problem in PROBLEMS),
        )
        for name in by_rank(rows.where(at=TRAINED))
    ]
    batch = next((record.setting["batch"] for record in found), None)
    return Table(
        header=("method", "updates", *PROBLEMS.values()),
        rows=body or [(NOT_MEASURED, *[""] * 4)],
        caption=f"""How settings were chosen: updates of {integer(batch)} paths that the budget
            buys, fits of corrections included, and first rates of Adam by the mean gap of pilot
            seeds, which are none of those reported. Grids are logarithmic and were extended until a
            worse rate stood on either side, but where a dagger in @budget-training marks the last
            rate of a grid.""",
        label="budget-rates",
        align="lrrrr",
        long=True,
    ).markup


def _rate(record: Record | None) -> str:
    return NOT_MEASURED if record is None else number(record.setting["rate"], 1)


def proposals(rows: Rows) -> str:
    """Biases at three places and errors at the optimum, one part per problem and length."""
    body: list[Sequence[str]] = []
    for problem, title in PROBLEMS.items():
        for steps in rows.where(Metric.BIAS, problem).distinct("T"):
            mine = rows.where(problem=problem, T=steps)
            body.append((f"{title}, $T = {steps}$",))
            body += _by_error(mine, mine.where(Metric.BIAS).fields("estimator"))
    return Table(
        header=("method", "limit", "start", "midway", "optimum", "error, optimum", "rank"),
        rows=body or [(NOT_MEASURED, *[""] * 6)],
        caption=f"""Proposed changes of the control in units of the right one at the pre-trained
            model. Bias with its standard error at the pre-trained model, at half the optimal
            control and at the optimum, where the right change is none; and the error there with
            {BUDGET:,} network evaluations, bias, noise and fits together, with the 95% interval of
            a bootstrap over repetitions. Ranked, by the error over the size of their own proposal
            at the pre-trained model, are methods that rest at the optimum or the tilt and propose
            at least a tenth of the right change; ties are one rank. The others rest elsewhere, and
            no budget lessens their bias.""",
        label="budget",
        align="llrrrrr",
        widths=("1fr", "auto", "auto", "auto", "auto", "auto", "auto"),
        long=True,
    ).markup


def _by_error(mine: Rows, names: Iterable[str]) -> list[Sequence[str]]:
    """Ranked methods first, then the others by their error."""

    def place(name: str) -> tuple[float, float]:
        here = mine.where(estimator=name, at="optimum")
        rank, error = here.where(Metric.RANK).one(), here.where(Metric.ERROR_AT_BUDGET).one()
        return (
            float("inf") if rank is None else rank.value,
            float("inf") if error is None else error.value,
        )

    return [_proposal(mine.where(estimator=name), name) for name in sorted(names, key=place)]


def _proposal(mine: Rows, name: str) -> Sequence[str]:
    optimum = mine.where(at="optimum")
    rank, error = (optimum.where(metric).one() for metric in (Metric.RANK, Metric.ERROR_AT_BUDGET))
    return (
        text(name),
        letter_of(name),
        *(
            _with_error(mine.where(Metric.BIAS, at=place).one())
            for place in ("start", "midway", "optimum")
        ),
        NOT_MEASURED
        if error is None
        else f"{number(error.value, 2)} ({_span(error.setting['low'], error.setting['high'])})",
        "–" if rank is None else _ranked(rank),
    )


def _with_error(record: Record | None) -> str:
    if record is None:
        return NOT_MEASURED
    return f"{number(record.value, 2)} $plus.minus$ {number(record.stderr, 1)}"


def predictions(rows: Rows) -> str:
    """What was predicted, how often it held, and the misses."""
    found = rows.where(Metric.PREDICTED)
    body = []
    for which in BudgetPrediction:
        mine = found.where(prediction=str(which))
        misses = mine.filter(lambda record: not holds(record))
        held = len(mine.records) - len(misses.records)
        body.append(
            (
                text(which),
                _range(next(iter(mine), None)),
                f"{integer(held)} of {integer(len(mine.records))}" if mine else NOT_MEASURED,
                "; ".join(map(_miss, misses)) or "–",
            )
        )
    return Table(
        header=("predicted", "range", "held", "misses"),
        rows=body,
        caption="""Predictions written before the runs, each with the range of a number: of biases
            in standard errors, of ratios of variances or gaps, of powers of $T$; a bias that is not
            told from none counts as a thousandth of that with fewer steps. Misses with what was
            measured.""",
        label="budget-predictions",
        align="llll",
        widths=("4.6cm", "auto", "auto", "1fr"),
        long=True,
    ).markup


def _range(record: Record | None) -> str:
    if record is None:
        return "–"
    low, high = record.setting["low"], record.setting["high"]
    if low is None:
        return f"at most {number(high, 2)}"
    return (
        f"at least {number(low, 2)}" if high is None else f"{number(low, 2)} to {number(high, 2)}"
    )


def _miss(record: Record) -> str:
    problem = {str(each): title for each, title in PROBLEMS.items()}[record.problem]
    about = text(f"{record.estimator}, {problem}, {record.setting['about']}")
    return f"{about}: {number(record.value, 2)}"
