"""The tables of the Stable Diffusion report, each a function from records to markup."""

from __future__ import annotations

import math
from collections.abc import Sequence

from socft.records import Record
from socft.report.gradient_variance.cells import plain, value, with_error
from socft.report.rows import Rows
from socft.report.stable_diffusion.figures import final, methods_of
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text
from socft.study.comparison import BELIEVED, has_fallen
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

GIGA = 1e3  # of mega
WHEN = {0.0: "before", 0.5: "halfway", 1.0: "after"}
"""Parts of a training."""


def reached(rows: Rows, beta: float) -> str:
    """Every method on every prompt."""
    body: list[Sequence[str]] = []
    for prompt in rows.fields("problem"):
        body.append([text(prompt)])
        for method in methods_of(rows):
            metrics = (
                Metric.REWARD,
                Metric.REWARD_GAIN,
                Metric.KL,
                Metric.ACCURACY,
                Metric.ACCURACY_GAIN,
                Metric.DIVERSITY,
            )
            found = {m: final(rows, m, prompt, method, beta).one() for m in metrics}
            cost = found[Metric.REWARD]
            tuned = method != MethodName.PRE_TRAINED
            body.append(
                [
                    text(method),
                    *map(value, found.values()),
                    (
                        number(cost.seconds)
                        if tuned and cost is not None and cost.seconds is not None
                        else ""
                    ),
                    (
                        number(cost.peak_mb)
                        if tuned and cost is not None and cost.peak_mb is not None
                        else ""
                    ),
                ]
            )
    return Table(
        header=("", "reward", "gain", "KL", "accuracy", "gain", "diversity", "seconds", "peak MB"),
        rows=body,
        caption=f"""Every method after the same number of sampled trajectories, $beta =$
            {text(f"{beta:g}")}; all models draw from the same noise, and gains are over the
            pre-trained model's picture from it. Errors are those over the pictures of one training.
            Seconds are those of the whole run, peak memory that of its process.""",
        label="reached",
        align="lrrrrrrrr",
        long=True,
    ).markup


def ahead_in_trainings(rows: Rows, metric: Metric, beta: float) -> tuple[int, int]:
    """In how many pairs of trainings, one of each method and numbered alike, PI-FT has more than
    DPOK, and of how many.
    """
    pairs = [
        (mine, theirs)
        for prompt in rows.fields("problem")
        for mine, theirs in zip(
            *(
                _trainings(rows, metric, prompt, name, beta)
                for name in (MethodName.PI_FT, MethodName.DPOK)
            ),
            strict=True,
        )
    ]
    return sum(mine.value > theirs.value for mine, theirs in pairs), len(pairs)


def _trainings(rows: Rows, metric: Metric, prompt: str, method: str, beta: float) -> list[Record]:
    """What every training of a method reached, the first one before its repetitions."""
    first = final(rows, metric, prompt, method, beta)
    return [*first, *rows.where(metric, prompt, method, beta=beta).having("beta", "training")]


def mean_of_trainings(
    rows: Rows, metric: Metric, prompt: str, method: str, beta: float
) -> tuple[float, float] | None:
    """Mean over the trainings of a method, and its error: that over pictures, which they share, and
    that over trainings.
    """
    found = _trainings(rows, metric, prompt, method, beta)
    if not found:
        return None
    mean = sum(record.value for record in found) / len(found)
    pictures = sum((record.stderr or 0.0) ** 2 for record in found) / len(found)
    spread = (
        sum((record.value - mean) ** 2 for record in found) / max(1, len(found) - 1) / len(found)
    )
    return mean, (pictures + spread) ** 0.5


def repeated(rows: Rows, beta: float) -> str:
    """PI-FT and DPOK, every training from another seed; nothing if there was but one."""
    if not rows.having("beta", "training"):
        return ""
    body: list[Sequence[str]] = []
    for prompt in rows.fields("problem"):
        body.append([text(prompt)])
        for method in (MethodName.PI_FT, MethodName.DPOK):
            cells = []
            for metric in (Metric.REWARD_GAIN, Metric.ACCURACY_GAIN, Metric.KL):
                mean = mean_of_trainings(rows, metric, prompt, method, beta)
                found = ", ".join(
                    number(record.value, 2)
                    for record in _trainings(rows, metric, prompt, method, beta)
                )
                cells += [found, with_error(*mean) if mean else NOT_MEASURED]
            body.append([text(method), *cells])
    return Table(
        header=("", "gain in reward", "mean", "gain in accuracy", "mean", "KL", "mean"),
        rows=body,
        caption=f"""PI-FT and DPOK trained again from other seeds: what every training reached,
            $beta =$ {text(f"{beta:g}")}; all draw from the same noise. Errors of means have the
            pictures' part, which all trainings share, and the trainings'.""",
        label="repeated",
        align="lrrrrrr",
    ).markup


def ahead_at_the_best_rate(rows: Rows, metric: Metric, beta: float) -> tuple[int, int]:
    """On how many prompts PI-FT has more than DPOK has at the best of its learning rates, and of
    how many.
    """
    ahead, known = 0, 0
    for prompt in rows.fields("problem"):
        mine, theirs = (
            mean_of_trainings(rows, metric, prompt, method, beta)
            for method in (MethodName.PI_FT, MethodName.DPOK)
        )
        others = _at_other_rates(rows, metric, prompt, beta)
        if mine and theirs and others:
            known += 1
            ahead += mine[0] > max(theirs[0], *(record.value for record in others))
    return ahead, known


def _at_other_rates(rows: Rows, metric: Metric, prompt: str, beta: float) -> Rows:
    return rows.where(metric, prompt, MethodName.DPOK, beta=beta).having("beta", "rate")


def rates(rows: Rows, beta: float) -> str:
    """DPOK at other learning rates than the shared one; nothing if there were none."""
    others = (
        rows.where(estimator=MethodName.DPOK, beta=beta).having("beta", "rate").distinct("rate")
    )
    if not others:
        return ""
    body: list[Sequence[str]] = []
    metrics = (Metric.REWARD_GAIN, Metric.ACCURACY_GAIN, Metric.KL)
    for prompt in rows.fields("problem"):
        body.append([text(prompt)])
        found = [
            (method, "shared", [final(rows, metric, prompt, method, beta) for metric in metrics])
            for method in (MethodName.PI_FT, MethodName.DPOK)
        ]
        found += [
            (
                MethodName.DPOK,
                plain(rate),
                [
                    _at_other_rates(rows, metric, prompt, beta).where(rate=rate)
                    for metric in metrics
                ],
            )
            for rate in others
        ]
        body += [
            [text(method), rate, *(value(each.one()) for each in columns)]
            for method, rate, columns in found
        ]
    return Table(
        header=("", "rate", "gain in reward", "gain in accuracy", "KL"),
        rows=body,
        caption=f"""DPOK at other learning rates than the one that all methods share, $beta =$
            {text(f"{beta:g}")}; all draw from the same noise.""",
        label="rates",
        align="llrrr",
        long=True,
    ).markup


def sweep(rows: Rows, prompt: str) -> str:
    """PI-FT at every KL weight."""
    found = rows.where(problem=prompt, estimator=MethodName.PI_FT).having("beta")
    body = []
    for beta in found.distinct("beta"):
        mine = [
            found.where(metric, beta=beta).one()
            for metric in (Metric.REWARD, Metric.KL, Metric.ACCURACY, Metric.DIVERSITY)
        ]
        body.append([plain(beta), *map(value, mine)])
    return Table(
        header=(r"$beta$", "reward", "KL", "accuracy", "diversity"),
        rows=body,
        caption=f"PI-FT on “{text(prompt)}” at several KL weights.",
        label="sweep",
        align="lrrrr",
    ).markup


def drops(rows: Rows, beta: float) -> str:
    """Runs and how far they end below their best, with what their targets did."""
    body = []
    for method in methods_of(rows):
        found = rows.where(Metric.DROP, estimator=method, beta=beta).having("beta")
        if not found:
            continue
        worst = max(found, key=lambda record: record.value / (record.stderr or 1.0))
        growth = rows.where(Metric.TARGET_GROWTH, worst.problem, method, beta=beta).one()
        body.append(
            [
                text(method),
                text(worst.problem),
                value(worst),
                "yes" if has_fallen(worst) else "no",
                number(growth.value if growth else None),
            ]
        )
    return Table(
        header=("method", "worst prompt", "best minus last", "beyond noise", "growth of targets"),
        rows=body,
        caption=f"""How far the reward at the end of a run lies below the best of the same run, both
            averaged over a few rounds; beyond noise means more than {integer(BELIEVED)} standard
            errors. Growth is that of the largest target control, end over beginning.""",
        label="drops",
        align="llrlr",
    ).markup


def unlimited(rows: Rows, beta: float) -> str:
    """Methods with and without a limit on their target controls; nothing if none ran without."""
    free = rows.where(beta=beta).having("beta", "limit")
    if not free:
        return ""
    body: list[Sequence[str]] = []
    for prompt in free.fields("problem"):
        body.append([text(prompt)])
        for method in free.fields("estimator"):
            for title, found in (("with", rows.having("beta").where(beta=beta)), ("without", free)):
                mine = found.where(None, prompt, method)
                cells = [
                    mine.where(metric).one()
                    for metric in (Metric.REWARD_GAIN, Metric.ACCURACY_GAIN, Metric.KL, Metric.DROP)
                ]
                fallen = cells[-1] is not None and has_fallen(cells[-1])
                body.append([text(method), title, *map(value, cells), "yes" if fallen else "no"])
    return Table(
        header=(
            "",
            "limit",
            "gain in reward",
            "gain in accuracy",
            "KL",
            "best minus last",
            "beyond noise",
        ),
        rows=body,
        caption="Methods that regress on target controls, with and without a limit on these,"
        f" $beta =$ {text(f'{beta:g}')}.",
        label="unlimited",
        align="llrrrrl",
        long=True,
    ).markup


def descent(rows: Rows) -> str:
    """How the gradient of PI-FT shrinks, without its noise; nothing if that was not measured."""
    if not rows:
        return ""
    parts, body = rows.distinct("part"), []
    for prompt in rows.fields("problem"):
        mean, one = (
            rows.where(metric, prompt)
            for metric in (Metric.MEAN_GRADIENT_SQUARED, Metric.GRADIENT_SQUARED)
        )
        body.append(
            [
                text(prompt),
                *(value(found.where(part=part).one()) for found in (mean, one) for part in parts),
            ]
        )
    when = [WHEN.get(part, plain(part)) for part in parts]
    paths = ", ".join(f"{each:g}" for each in rows.distinct("paths"))
    return Table(
        header=("", *(f"mean, {each}" for each in when), *(f"one batch, {each}" for each in when)),
        rows=body,
        caption=f"""PI-FT: squared norm of the mean gradient before, halfway through and after its
            training, without bias by its noise, and mean squared norm of the gradient of one batch
            of {paths} paths.""",
        label="descent",
        align="l" + "r" * (2 * len(parts)),
    ).markup


def targets(rows: Rows, prompt: str, beta: float) -> str:
    """How heavy the tails of the target controls are."""
    columns = [(at, quantile) for at in ("last", "first") for quantile in (0.5, 0.9, 1.0)]
    body = []
    for method in methods_of(rows):
        found = rows.where(Metric.TARGET, prompt, method, beta=beta)
        cells = [found.where(at=at, quantile=quantile).one() for at, quantile in columns]
        if any(cells):
            body.append([text(method), *(number(cell.value if cell else None) for cell in cells)])
    return Table(
        header=(
            "policy",
            *(
                f"{at}, {'largest' if q == 1 else f'{q:.0%}'.replace('%', chr(92) + '%')}"
                for at, q in columns
            ),
        ),
        rows=body or [[NOT_MEASURED]],
        caption=f"""Norms of the target controls of the last and of the first step over paths of
            “{text(prompt)}”: quantiles. The targets are those of the method itself, under the
            policy it ended with; the first row has those of PI-FT under no control.""",
        label="targets",
        align="lrrrrrr",
    ).markup


def benchmark(rows: Rows) -> str:
    """Time and memory of a gradient step."""
    if not rows:
        return f"{NOT_MEASURED} (`socft sd benchmark`)"
    keys = ("steps", "trajectories", "loss_steps")
    body: list[Sequence[str]] = []
    timed = rows.where(Metric.SECONDS)
    for method in timed.fields("estimator"):
        body.append([text(method)])
        mine = timed.where(estimator=method)
        for record in mine:
            memory = Rows(
                tuple(
                    r
                    for r in rows.where(Metric.PEAK_MB, record.problem, method)
                    if r.setting == record.setting
                )
            ).one()
            cells = [str(record.setting.get(key, "")) for key in keys]
            body.append(
                [
                    text(record.problem),
                    *cells,
                    value(record),
                    number(memory.value if memory else None),
                    text(record.device),
                ]
            )
    return Table(
        header=(
            "model",
            "steps",
            "trajectories",
            "loss steps",
            "seconds per gradient",
            "peak MB",
            "device",
        ),
        rows=body,
        caption="""Time and largest memory of a gradient step, sampling and labels included, by the
            names that configurations give to estimators.""",
        label="benchmark",
        align="lrrrrrl",
        long=True,
    ).markup


def gpu(rows: Rows) -> str:
    """What was found on an accelerator."""
    if not rows:
        return "Not measured here (`socft sd gpu`, on a machine with a GPU)."
    largest = {
        metric: number(max((r.value for r in rows.where(metric)), default=None), 2)
        for metric in (Metric.CHAIN_DIFFERENCE, Metric.LOG_RATIO, Metric.RESUME_DIFFERENCE)
    }
    body = [
        [
            text(r.problem),
            text(r.estimator),
            value(r),
            number(_beside(rows, r, Metric.PEAK_MB) / GIGA),
            text(r.device),
        ]
        for r in rows.where(Metric.SECONDS)
    ]
    body += [
        [text(r.problem), text(r.estimator), text(r.setting["reason"]), "", text(r.device)]
        for r in rows.where(Metric.REFUSED)
    ]
    table = Table(
        header=("network", "estimator", "seconds per gradient", "peak GB", "device"),
        rows=body,
        caption="""Time and largest memory of a gradient step on random networks of the sizes of the
            published ones, of a few sampling steps; what is missing is not measured here.""",
        label="gpu",
        align="llrrl",
        long=True,
    ).markup
    return f"""
The end of a chain on this device differs from that on the CPU by {largest[Metric.CHAIN_DIFFERENCE]}
in float32, relative to its largest entry; the log-ratio of a policy with itself in bfloat16, in
calls of any number of samples, is at most {largest[Metric.LOG_RATIO]}; and the layers after a run
that continued differ from those of one that went on by {largest[Metric.RESUME_DIFFERENCE]}.

{table}
"""


def _beside(rows: Rows, record: Record, metric: Metric) -> float:
    """Another number of the same measurement; NaN where there is none."""
    found = [
        r.value
        for r in rows.where(metric, record.problem, record.estimator)
        if r.setting == record.setting and r.device == record.device
    ]
    return found[0] if found else math.nan


def savings(rows: Rows) -> str:
    """What sharing and arranging the network's calls saves."""
    found = rows.where(Metric.SPEEDUP)
    return Table(
        header=("model", "way", "times as fast", "device"),
        rows=[[text(r.problem), text(r.setting["saving"]), value(r), text(r.device)] for r in found]
        or [[NOT_MEASURED]],
        caption="""How many times as fast the same work is: a gradient step of adjoint matching,
            sampling and labels included, with the frozen outputs kept, with layers merged while
            nothing is learnt, and with the weights in another layout; and a call of the network
            for the last two ways.""",
        label="savings",
        align="llrl",
    ).markup
