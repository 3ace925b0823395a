"""The tables of the guidance report, each a function from records to markup."""

from __future__ import annotations

import math
from collections.abc import Sequence

from socft.report.claim_records import ClaimLine, Claims
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, fraction_of_bound, integer, number, text
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

METHODS = (
    MethodName.NAIVE,
    MethodName.LOOK_AHEAD_PUBLISHED,
    MethodName.LOOK_AHEAD_EXACT,
    MethodName.UNIVERSAL,
    MethodName.CLASSIFIER,
    MethodName.FINE_TUNED_SCORE,
    MethodName.OPTIMAL_CONTROL,
)
SPREADS = {
    ProblemName.ISOTROPIC: "latent variances 1",
    ProblemName.ANISOTROPIC: "latent variances from 0.05 to 2",
}
OBJECTIVES = {
    ProblemName.F1_OFF: r"$f_1$, $|theta_perp|\/|theta_parallel| = 9$",
    ProblemName.F1_ON: r"$f_1$, $theta$ in the subspace",
    ProblemName.F2_ONES: r"$f_2$, $b = 4$",
    ProblemName.F2_RANDOM: r"$f_2$, $b tilde N(4, 9 I)$",
}


def claims(found: Claims) -> str:
    """Every statement and what its checks found."""
    return Table(
        header=("claim", "statement", "kind", "status", "worst ratio"),
        rows=[_claim(line) for line in found if line.name.startswith("guidance_")]
        or [(NOT_MEASURED, *[""] * 4)],
        caption="""The theory, checked on exact chains, $S$ the covariance of the data. The worst
            ratio is that of measured to bound, or of a residual to its tolerance; a bound that an
            instance attains is marked.""",
        label="claims",
        align="lllll",
        widths=("2.9cm", "1fr", "auto", "auto", "auto"),
    ).markup


def _claim(line: ClaimLine) -> Sequence[str]:
    worst = number(line.ratio, 2)
    if line.compares_with_bound:
        worst = fraction_of_bound(line.ratio)
    if line.attained is not None and line.compares_with_bound:
        worst += ", attained"
    return text(line.title), line.statement, text(line.kind), text(line.status), worst


def runs(rows: Rows) -> str:
    """Where every published run ends."""
    body: list[Sequence[str]] = []
    for objective, title in OBJECTIVES.items():
        found = rows.where(Metric.REWARD, objective)
        keys = [
            (r.estimator, r.setting["algorithm"], r.setting["score"], r.setting["delta"])
            for r in found
        ]
        body += [_run(rows, objective, title, *key) for key in dict.fromkeys(keys)]
    return Table(
        header=(
            "objective",
            "guidance",
            "alg.",
            "score",
            r"$delta$",
            "rounds",
            "reward",
            "off-support",
            "KL",
        ),
        rows=body or [(NOT_MEASURED, *[""] * 8)],
        caption="""Where the runs end: mean reward of the last batch of 32, mean ratio of its norms
            across and along the subspace, and divergence of its paths from the pre-trained
            chain.""",
        label="runs",
        align="lllcrrrrr",
    ).markup


def _run(
    rows: Rows, objective: str, title: str, guide: str, algorithm: int, score: str, delta: float
) -> Sequence[str]:
    mine = rows.where(problem=objective, estimator=guide, algorithm=algorithm, score=score)
    last = max(mine.distinct("round"), default=None)
    values = [
        _value(mine.where(metric, round=last))
        for metric in (Metric.REWARD, Metric.OFF_SUPPORT, Metric.KL)
    ]
    return (
        title,
        symbol(guide),
        integer(algorithm),
        text(score),
        number(delta, 2),
        integer(last),
        *map(number, values),
    )


def limits(rows: Rows) -> str:
    """Where the published targets lead, predicted and measured."""
    body = []
    for objective, title in OBJECTIVES.items():
        mine = rows.where(
            Metric.VALUE_AT_MEAN, objective, MethodName.LOOK_AHEAD, algorithm=1, score="exact"
        )
        last = max(mine.distinct("round"), default=None)
        predicted, best = (
            _value(rows.where(metric, objective))
            for metric in (Metric.REGULARISED_VALUE, Metric.MAXIMUM)
        )
        body.append(
            (
                title,
                number(_value(mine.where(round=last))),
                number(predicted),
                number(best),
                integer(last),
            )
        )
    return Table(
        header=("objective", "value at the mean", "regularised maximum", "maximum", "rounds"),
        rows=body,
        caption="""Algorithm 1 with
    the published targets: the objective at the mean of the last batch, at the maximum of $f(x) -
    s^2\\/(2 delta) thin |x - macron(mu)|^2$ on the subspace, where the mean would settle without
    sampling noise, and at the maximum of f on the subspace.""",
        label="limits",
        align="lrrrr",
    ).markup


def at_equal_reward(
    rows: Rows, metric: Metric, spread: str, method: str, reward: float
) -> float | None:
    """What a method pays for a mean reward with the number of steps of the other measurements."""
    found = rows.where(metric, spread, method, reward=reward).having("reward").one()
    return None if found is None else found.value


def equal_reward(rows: Rows) -> str:
    """Divergence and distance of every method at given rewards."""
    rewards = rows.where(Metric.EQUAL_KL).distinct("reward")
    body: list[Sequence[str]] = []
    for spread, title in SPREADS.items():
        body.append((title,))
        body += [_equal(rows, spread, method, rewards) for method in METHODS]
    far = (*rewards[1:2], *rewards[-1:])
    titles = [f"KL, \\ $f_1 = {r:g}$" for r in rewards] + [
        f"distance, \\ $f_1 = {r:g}$" for r in far
    ]
    return Table(
        header=("method", *titles) if rewards else ("method", "KL"),
        rows=body if rewards else [(NOT_MEASURED, "")],
        caption="""What a
    mean reward costs in one pass: divergence from the pre-trained chain, and root mean square
    distance from the subspace. All numbers are exact moments of the controlled chain; a dash means
    that the method does not get there.""",
        label="equal",
        align="l" + "r" * max(1, len(titles)),
    ).markup


def steps(rows: Rows) -> str:
    """Divergence of every method over that of the optimum, against the number of steps."""
    found = rows.where(Metric.EQUAL_KL, ProblemName.ISOTROPIC)
    lengths = found.distinct("T")
    body = []
    for method in METHODS:
        pairs = [
            [
                found.where(estimator=name, T=length).one()
                for name in (method, MethodName.OPTIMAL_CONTROL)
            ]
            for length in lengths
        ]
        cells = [
            number(mine.value / best.value if mine is not None and best is not None else None)
            for mine, best in pairs
        ]
        body.append((symbol(method), *cells))
    return Table(
        header=("method", *(f"$T = {length}$" for length in lengths)) if lengths else ("", "T"),
        rows=body if lengths else [(NOT_MEASURED, "")],
        caption="""Divergence at a mean reward of 3 in one pass, latent variances 1, over that of
            the optimal control with as many steps: that of the naive gradient grows without limit,
            the others settle.""",
        label="steps",
        align="l" + "r" * max(1, len(lengths)),
    ).markup


def _equal(rows: Rows, spread: str, method: str, rewards: Sequence[float]) -> Sequence[str]:
    mine = rows.where(problem=spread, estimator=method).having("reward")
    kl = [_cell(mine.where(Metric.EQUAL_KL, reward=reward)) for reward in rewards]
    far = [
        _cell(mine.where(Metric.EQUAL_DISTANCE, reward=reward), 4)
        for reward in (*rewards[1:2], *rewards[-1:])
    ]
    return symbol(method), *kl, *far


def sphere(rows: Rows) -> str:
    """The runs on the sphere."""
    found = rows.where(problem=ProblemName.SPHERE)
    last = max(found.where(Metric.REWARD).distinct("round"), default=None)
    body = []
    for guide in (MethodName.NAIVE, MethodName.LOOK_AHEAD):
        for delta in found.where(Metric.REWARD, estimator=guide).distinct("delta"):
            mine = found.where(estimator=guide, delta=delta, round=last)
            body.append(
                (
                    symbol(guide),
                    number(delta, 2),
                    *(
                        number(_value(mine.where(m)))
                        for m in (Metric.REWARD, Metric.OFF_SPHERE, Metric.KL)
                    ),
                )
            )
    start = (
        _value(Rows(tuple(found.where(Metric.OFF_SPHERE, estimator=MethodName.NAIVE, round=0))[:1]))
        if body
        else None
    )
    return Table(
        header=("guidance", r"$delta$", "reward", r"mean $abs(abs(x) - 1)$", "KL"),
        rows=body or [(NOT_MEASURED, "", "", "", "")],
        caption=f"""The unit sphere after {integer(last)} rounds of Algorithm 1 with the exact
            score; the pre-trained chain is at {number(start)} from the sphere.""",
        label="sphere-runs",
        align="lrrrr",
    ).markup


def symbol(method: str) -> str:
    """A method's name in markup."""
    names: dict[str, str] = {
        MethodName.NAIVE: "$G$",
        MethodName.LOOK_AHEAD: '$G_"loss"$',
        MethodName.LOOK_AHEAD_PUBLISHED: '$G_"loss"$, published',
        MethodName.LOOK_AHEAD_EXACT: '$G_"loss"$, exact',
    }
    return names.get(method, text(method))


def _cell(rows: Rows, digits: int = 3) -> str:
    record = rows.one()
    if record is None:
        return NOT_MEASURED
    return "–" if math.isnan(record.value) else number(record.value, digits)


def _value(rows: Rows) -> float | None:
    record = rows.one()
    return None if record is None else record.value
