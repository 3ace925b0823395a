"""The tables of the report on flow models, each a function from records to markup."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import norm
from scipy.stats import t as student

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Biased, EquationResidual, FixedPointEquation
from socft.records import Record
from socft.report.claim_records import ClaimLine, Claims
from socft.report.rows import Rows
from socft.report.typeset import (
    NOT_MEASURED,
    Table,
    cited,
    fraction_of_bound,
    integer,
    number,
    text,
)
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

PROBLEMS = {
    ProblemName.FLOW_GAUSSIAN: "Gaussian",
    ProblemName.FLOW_OVERLAPPING: "overlapping modes",
    ProblemName.FLOW_SEPARATED: "separated modes",
}
MOMENTS = (Metric.REWARD, Metric.END_MEAN, Metric.END_VARIANCE)
TOPIC = "Flow matching: samplers and what they keep"
"""Of the claims that stand here."""
LIMIT = 4.0
"""Standard errors of a normal variable beyond which a prediction is refuted."""


APART = 0.1
"""Logarithm of a ratio from which on two rates are said to be apart."""
NEAR = 2.7
"""Standard errors from which on a row is named as near the limit."""


def methods(rows: Rows) -> list[str]:
    """What was run, in the order of the study."""
    return [name for name in rows.fields("estimator") if name]


def optimised(rows: Rows) -> str:
    """Which law every method goes to, and how far from the tilt."""
    return Table(
        header=("method", "its limit solves", "Gaussian", "overlap", "separated", "source"),
        rows=[_optimised(rows.where(estimator=name), name) for name in methods(rows)]
        or [(NOT_MEASURED, *[""] * 5)],
        caption="""What every method converges to in an exact class, by the letters of the
            equations in section 3, and the total variation between the law that it reached on
            samples and the tilt, on three laws of data with $T = 10$ and $b = 2$. Methods are as
            published by default but for the ratio of evidence bounds, which is (R) then, and is
            given a KL term. The law of the optimum of the chain is the tilt up to $O(1\\/T)$.""",
        label="optimised",
        align="llrrrl",
        widths=("3.7cm", "1fr", "auto", "auto", "auto", "3.1cm"),
        long=True,
    ).markup


def _optimised(mine: Rows, name: str) -> Sequence[str]:
    far = [mine.where(Metric.TV_TO_TILT, problem, source="samples").one() for problem in PROBLEMS]
    return (
        text(name),
        limit_of(name),
        *(number(None if each is None else each.value, 2) for each in far),
        cited(CATALOGUE[name].source),
    )


LIMITS = {
    FixedPointEquation.ENDPOINT_COVARIANCE: ("(E)", "endpoint covariance"),
    FixedPointEquation.NO_KL_TO_GO: ("(N)", "no KL to go"),
    FixedPointEquation.TILT: ("(O)", "the tilt, up to $O(1\\/T)$"),
    FixedPointEquation.DETERMINISTIC: ("(D)", "the optimum without noise"),
    FixedPointEquation.LOOK_AHEAD: ("(L)", "guidance by the reward of the predicted endpoint"),
    FixedPointEquation.REWARD_ALONE: ("(R)", "the greatest reward, whatever the divergence"),
}
"""Letter and words of every equation."""
IN_RUNS = {
    MethodName.ELBO_RATIO: FixedPointEquation.ENDPOINT_COVARIANCE,
    MethodName.DPOK_LEAVE_ONE_OUT: FixedPointEquation.NO_KL_TO_GO,
    MethodName.VGG_FLOW: FixedPointEquation.DETERMINISTIC,
    MethodName.DDPO: FixedPointEquation.REWARD_ALONE,
}
"""Of methods whose default is another, or which are described in words."""
OPTIMUM = "(O)", "the optimum of the chain"
IN_WORDS_ONLY = (MethodName.RESIDUAL_NABLA_DB,)
"""Whose fitted correction makes the optimum of the chain their limit."""
NO_LETTER = "–"


def limit_of(name: str) -> str:
    """The equation of a method's limit, in words."""
    letter, words = _limit_of(name)
    return words if letter == NO_LETTER else f"{letter} {words}"


def letter_of(name: str) -> str:
    """The letter of that equation, a dash where it has none."""
    return _limit_of(name)[0]


def _limit_of(name: str) -> tuple[str, str]:
    estimand = CATALOGUE[name].estimates
    if name in IN_RUNS:
        return LIMITS[IN_RUNS[MethodName(name)]]
    if isinstance(estimand, EquationResidual):
        return LIMITS[estimand.equation]
    if name in IN_WORDS_ONLY:
        return OPTIMUM
    if isinstance(estimand, Biased) and not estimand.zero_at_optimum:
        return NO_LETTER, text(estimand.why)
    return OPTIMUM


def predictions(rows: Rows) -> str:
    """Measured limits beside the predicted ones."""
    body: list[Sequence[str]] = []
    for problem, title in PROBLEMS.items():
        mine = rows.where(problem=problem, source="samples")
        for setting in {tuple(sorted(r.setting.items())): r.setting for r in mine}.values():
            steps, beta = setting["T"], setting["beta"]
            body.append((f"{title}, $T = {steps}$, $b = {beta:g}$",))
            body += [
                _prediction(rows.where(problem=problem, estimator=name, T=steps, beta=beta), name)
                for name in methods(mine)
            ]
    return Table(
        header=(
            "method",
            "reward, predicted",
            "reward, measured",
            "TV to prediction",
            "TV to tilt",
            "deviation",
            "normal",
        ),
        rows=body or [(NOT_MEASURED, *[""] * 6)],
        caption=f"""Where the methods run on samples end, beside the solution of the equation that
            each is predicted to solve: mean reward with its standard error, total variation of the
            mean law to the predicted law and to the tilt, the largest deviation of mean reward,
            mean and variance from those of the population after as many iterations of the same
            rate, in standard errors, and the deviation of a normal variable that is as rare as this
            one under Student's law. More than {LIMIT:g} of the latter refutes the prediction
            (*bold*). A dash: predicted to have no limit.""",
        label="predictions",
        align="lrrrrrr",
        long=True,
    ).markup


def _prediction(mine: Rows, name: str) -> Sequence[str]:
    predicted = mine.where(Metric.REWARD, source="equation").one()
    measured = mine.where(Metric.REWARD, source="samples").one()
    off = mine.where(Metric.DEVIATION, source="samples").one()
    near, tilt = (
        mine.where(metric, source="samples").one()
        for metric in (Metric.TV_TO_PREDICTION, Metric.TV_TO_TILT)
    )
    return (
        text(name),
        "–" if predicted is None else number(predicted.value, 4),
        with_error(measured),
        "–" if near is None else number(near.value, 2),
        number(None if tilt is None else tilt.value, 2),
        "–" if off is None else number(off.value, 2),
        "–" if off is None else _bold(equivalent(off)),
    )


def equivalent(deviation: Record) -> float:
    """The deviation of a normal variable that is as rare as a deviation in standard errors that
    were estimated from the repetitions.
    """
    return float(norm.isf(student.sf(deviation.value, deviation.seeds - 1)))


def _bold(value: float) -> str:
    return f"*{number(value, 2)}*" if value > LIMIT else number(value, 2)


def repeated(rows: Rows) -> str:
    """Bias and deviation of the rows that were run again, by batch."""
    found = rows.where(source="repeated")
    batches = found.distinct("batch")
    first = rows.where(Metric.DEVIATION, source="samples")
    body = []
    for problem, title in PROBLEMS.items():
        for name in found.where(problem=problem).fields("estimator"):
            mine = found.where(problem=problem, estimator=name)
            before = first.where(problem=problem, estimator=name).one()
            body.append(
                (
                    f"{text(name)}, {title}",
                    "–" if before is None else number(equivalent(before), 2),
                    *(_again(mine.where(batch=batch)) for batch in batches),
                )
            )
    return Table(
        header=("row", "first run", *(f"batch {batch}" for batch in batches)),
        rows=body or [(NOT_MEASURED, *[""] * (1 + len(batches)))],
        caption="""The rows that passed the limit of a refutation or came near it in the first
            reading, again with fresh random numbers and other batches than the 1000 of the first
            run: deviation as that of a normal variable, and in brackets the bias of the variance of
            the samples with its standard error. All else is as it was.""",
        label="repeated",
        align="lr" + "r" * len(batches),
        long=True,
    ).markup


def run_once(rows: Rows) -> str:
    """What is near the limit and was not run again, after a colon; nothing where nothing is."""
    again = {(r.problem, r.estimator) for r in rows.where(Metric.DEVIATION, source="repeated")}
    near = [
        f"{text(record.estimator)} on {PROBLEMS[ProblemName(record.problem)]}, {number(off, 2)}"
        for record in rows.where(Metric.DEVIATION, source="samples")
        for off in [equivalent(record)]
        if NEAR < off <= LIMIT and (record.problem, record.estimator) not in again
    ]
    return f": {'; '.join(near)}" if near else ""


def _again(mine: Rows) -> str:
    off = mine.where(Metric.DEVIATION).one()
    bias = mine.where(Metric.BIAS, of=str(Metric.END_VARIANCE)).one()
    if off is None or bias is None:
        return NOT_MEASURED
    shown = f"{number(bias.value, 2)} $plus.minus$ {number(bias.stderr, 1)}"
    return f"{_bold(equivalent(off))} ({shown})"


def rates(rows: Rows) -> str:
    """The largest rates, predicted and swept."""
    found = rows.where(Metric.LARGEST_RATE)
    betas = found.distinct("beta")
    body: list[Sequence[str]] = []
    for problem, title in PROBLEMS.items():
        mine = found.where(problem=problem)
        for name in mine.fields("estimator"):
            cells = [
                number(_value(mine.where(estimator=name, beta=beta, source=source)), 3)
                for beta in betas
                for source in ("equation", "population")
            ]
            body.append((f"{text(name)}, {title}", *cells))
    heads = [f"$b = {beta:g}$, {how}" for beta in betas for how in ("predicted", "swept")]
    return Table(
        header=("method", *heads),
        rows=body or [(NOT_MEASURED, *[""] * len(heads))],
        caption="""The largest rate at which damped sweeps of the population converge near the
            solution: by the diagonal of their derivative, and by bisection to 1%.""",
        label="rates",
        align="l" + "r" * len(heads),
        long=True,
    ).markup


def rates_apart(rows: Rows) -> str:
    """Methods whose predicted and swept rates are apart, as a sentence; nothing where none is."""
    found = rows.where(Metric.LARGEST_RATE)
    apart = []
    for swept in found.where(source="population"):
        same = found.where(problem=swept.problem, estimator=swept.estimator)
        predicted = same.where(source="equation", beta=swept.setting["beta"]).one()
        if predicted is not None and abs(math.log(swept.value / predicted.value)) > APART:
            title = PROBLEMS[ProblemName(swept.problem)]
            apart.append(
                f"{text(swept.estimator)} on {title} at $b = {swept.setting['beta']:g}$"
                f" ({number(predicted.value)} and {number(swept.value)})"
            )
    if not apart:
        return ""
    return f"""Rates predicted and swept are a tenth or more apart for {"; ".join(apart)}. Where
the weight follows the spread that may be this feedback; elsewhere it is not explained here."""


def least_weights(rows: Rows) -> str:
    """The least weights of regressions on re-noised samples."""
    found = rows.where(Metric.LEAST_BETA)
    body = [
        (
            title,
            text(name),
            number(_value(found.where(problem=problem, estimator=name)), 3),
            number(_value(rows.where(Metric.LEAST_CURVATURE, problem=problem, estimator=name)), 2),
        )
        for problem, title in PROBLEMS.items()
        for name in found.where(problem=problem).fields("estimator")
    ]
    return Table(
        header=("data", "method", "least $b$", "least curvature there"),
        rows=body or [(NOT_MEASURED, "", "", "")],
        caption="""The least $b$ at which half sweeps of (E) settle, by bisection to 2%, and the
            least of $1 + bb(E)_q [r - c | x]\\/beta$ over the states there, predicted to be
            zero. The AWM and DiffusionNFT losses are one equation.""",
        label="least-weights",
        align="llrr",
    ).markup


def with_error(record: Record | None) -> str:
    """A number and its standard error."""
    if record is None:
        return NOT_MEASURED
    if record.stderr is None:
        return number(record.value, 4)
    return f"{number(record.value, 4)} $plus.minus$ {number(record.stderr, 1)}"


def drift(rows: Rows) -> str:
    """The KL weight that every method leaves, against strengths."""
    found = rows.where(Metric.EFFECTIVE_BETA, ProblemName.FLOW_OVERLAPPING, source="equation")
    at = {T: found.where(T=T).distinct("beta") for T in found.distinct("T")}
    steps = max(at, key=lambda T: len(at[T]), default=None)
    betas = at.get(steps, [])
    body = [
        (
            text(name),
            *(number(_value(found.where(estimator=name, T=steps, beta=beta)), 3) for beta in betas),
        )
        for name in methods(rows.where(Metric.EFFECTIVE_BETA, source="training"))
        if any(found.where(estimator=name, T=steps, beta=beta) for beta in betas)
    ]
    return Table(
        header=("method", *(f"$b = {beta:g}$" for beta in betas)) if betas else ("method", "b"),
        rows=body if betas and body else [(NOT_MEASURED, *[""] * max(1, len(betas)))],
        caption=f"""Mean over the steps of the KL weight that a method leaves at its limit, where
            its settings leave $b$ at the pre-trained model: overlapping modes, $T =$
            {integer(steps)}. Methods that do not divide by the spread leave $b$. Not measured: the
            equation's sweeps diverge.""",
        label="drift",
        align="l" + "r" * max(1, len(betas)),
    ).markup


def along_training(rows: Rows) -> str:
    """The KL weight that normalised rewards leave, against iterations."""
    problem = ProblemName.FLOW_OVERLAPPING
    found = rows.where(Metric.EFFECTIVE_BETA, problem, source="training")
    iterations = found.distinct("iteration")
    body = [
        (
            text(name),
            *(number(_value(found.where(estimator=name, iteration=i)), 3) for i in iterations),
        )
        for name in methods(found)
    ]
    return Table(
        header=("method", *(str(i) for i in iterations)) if iterations else ("method", "iteration"),
        rows=body or [(NOT_MEASURED, *[""] * max(1, len(iterations)))],
        caption="""The same weight after iterations of the population, from the pre-trained model,
            by damped Newton steps: it is near its limit after a few.""",
        label="drift-along-training",
        align="l" + "r" * max(1, len(iterations)),
    ).markup


def solutions(rows: Rows) -> str:
    """Where sweeps of the equation without noise settle."""
    mine = rows.where(estimator=MethodName.DETERMINISTIC_ADJOINT_MATCHING)
    places = [("pretrained", 0.5), ("pretrained", 0.2), ("bellman", 0.5), ("bellman", 0.2)]
    body = []
    for problem, title in PROBLEMS.items():
        best = mine.where(Metric.OBJECTIVE, problem, source="bellman").one()
        settled = mine.where(Metric.OBJECTIVE, problem, source="solution")
        if best is None:
            continue
        ends = [_value(settled.where(start=s, damping=d)) for s, d in places]
        body.append(
            (title, number(best.value, 3), *("–" if e is None else number(e, 3) for e in ends))
        )
    return Table(
        header=(
            "data",
            "Bellman",
            "from $u_0$, $1\\/2$",
            "from $u_0$, $1\\/5$",
            "from the best, $1\\/2$",
            "from the best, $1\\/5$",
        ),
        rows=body or [(NOT_MEASURED, *[""] * 5)],
        caption="""Objectives of the controls at which sweeps of (D) settle, from the pre-trained
            model and from the best control by Bellman's equation on a fine grid, projected on the
            class, with two dampings. A dash: they do not settle. Different numbers are different
            solutions.""",
        label="solutions",
        align="lrrrrr",
    ).markup


def claims(found: Claims) -> str:
    """Every statement about flow models and what its checks found."""
    return Table(
        header=("claim", "statement", "kind", "status", "worst ratio"),
        rows=[_claim(line) for line in found if line.topic.title == TOPIC]
        or [(NOT_MEASURED, *[""] * 4)],
        caption="""Statements that the conclusions rest on. The worst ratio is that of measured to
            bound, or of a residual to its tolerance.""",
        label="flow-claims",
        align="lllll",
        widths=("2.9cm", "1fr", "auto", "auto", "auto"),
        long=True,
    ).markup


def _claim(line: ClaimLine) -> Sequence[str]:
    worst = fraction_of_bound(line.ratio) if line.compares_with_bound else number(line.ratio, 2)
    return text(line.title), line.statement, text(line.kind), text(line.status), worst


def _value(rows: Rows) -> float | None:
    record = rows.one()
    return None if record is None else record.value
