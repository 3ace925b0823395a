"""Which runs end below their best and why: a section of the Stable Diffusion report."""

from __future__ import annotations

import math

from socft.records import Record
from socft.report.gradient_variance.cells import value, with_error
from socft.report.rows import Rows
from socft.report.stable_diffusion import tables
from socft.report.stable_diffusion.costate_size import directions
from socft.report.typeset import NOT_MEASURED, figure, number, text
from socft.study.comparison import BELIEVED, has_fallen
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

SAME = 0.9
"""Cosine above which two directions are called the same."""
CHANGED = {
    "training": "training {}",
    "rate": "at the learning rate {}",
    "limit": "without the limit on target controls",
}
"""Settings in which a run may differ from the one that the comparison is made with."""
UNCHANGED = {
    "training": "from the first seed",
    "rate": "at the shared learning rate",
    "limit": "with the limit",
}


def section(rows: Rows, sizes: Rows, shrinking: Rows, prompt: str, beta: float) -> str:
    """The section: pictures of one prompt, drops of all, and what the gradients at the same policy
    say of them.
    """
    picture = figure(
        "noise.svg",
        f"Training on “{text(prompt)}”: norm of the gradient, standard deviation of its noise, and"
        " the largest target control.",
        "noise-figure",
        "Three panels against rounds on logarithmic scales, one curve per method.",
    )
    return rf"""
= Stability

{picture}

{tables.drops(rows, beta)}

{reasons(rows, beta)}

{directions(sizes)}

{unlimited(rows, beta)}

{descent(shrinking)}

A target control is $B_k^top a_(k+1)\/beta$, so its norm is that of the adjoint up to constants. In
@targets, what is already spread at the last step is the gradient of the reward itself, and what is
added towards the first step is the product of the sampler's Jacobians; the next section says when
both are large.

{tables.targets(rows, prompt, beta)}
"""


def reasons(rows: Rows, beta: float) -> str:
    """Every run that ends below its best by more than noise, and why it does, as far as that was
    measured.
    """
    if not rows.where(Metric.DROP, beta=beta).having("beta"):
        return ""
    fallen = [record for record in rows.where(Metric.DROP) if has_fallen(record)]
    if not fallen:
        return "No run ends below its best by more than noise."
    found = "\n".join(f"- {_named(record, beta)}: {_reason(rows, record)}" for record in fallen)
    return f"""
These runs end below their best by more than {BELIEVED:g} standard errors. Beside each stands what
was measured besides: gradients at the policy with which the run ended, or a run that differs in one
setting alone, with the difference of the two drops. That is no proof of a cause; where the
difference is within its noise it says nothing:

{found}
"""


def _named(record: Record, beta: float) -> str:
    """A run by its method, its prompt and what is different in it."""
    own = record.setting["beta"]
    changed = [
        CHANGED[key].format(text(str(value)))
        for key, value in record.setting.items()
        if key in CHANGED
    ]
    return ", ".join(
        [
            f"{text(record.estimator)} on “{text(record.problem)}”",
            *([] if own == beta else [f"$beta = {own:g}$"]),
            *changed,
        ]
    )


def _reason(rows: Rows, record: Record) -> str:
    keys = [key for key in record.setting if key in CHANGED]
    return (
        _contrast(rows, record, keys[0])
        if keys
        else _direction(rows, record.estimator, record.problem, record.setting["beta"])
    )


def _contrast(rows: Rows, record: Record, key: str) -> str:
    """What the same run without the change does."""
    same = (
        rows.where(Metric.DROP, record.problem, record.estimator, beta=record.setting["beta"])
        .having("beta")
        .one()
    )
    if same is None:
        return f"why was {NOT_MEASURED}."
    error = math.hypot(record.stderr or 0.0, same.stderr or 0.0)
    return (
        f"it falls by {value(record)}, {UNCHANGED[key]} by {value(same)}, a difference of"
        f" {with_error(record.value - same.value, error)}."
    )


def descent(rows: Rows) -> str:
    """Whether the mean gradient shrinks."""
    table = tables.descent(rows)
    if not table:
        return ""
    ends = [
        [rows.where(Metric.MEAN_GRADIENT_SQUARED, prompt, part=part).one() for part in (0.0, 1.0)]
        for prompt in rows.fields("problem")
    ]
    known = [(first, last) for first, last in ends if first is not None and last is not None]
    clear = sum(
        first.value - last.value > BELIEVED * math.hypot(first.stderr or 0.0, last.stderr or 0.0)
        for first, last in known
    )
    return f"""
The norm of a gradient falls to that of its noise and no further. Without the noise (@descent),
PI-FT's is smaller after training than before by more than {BELIEVED:g} standard errors on {clear}
of {len(known)} prompts{_grown(rows)}.

{table}
"""


def _grown(rows: Rows) -> str:
    """Where it is larger halfway than before, by more than noise."""
    grown = []
    for prompt in rows.fields("problem"):
        first, half = (
            rows.where(Metric.MEAN_GRADIENT_SQUARED, prompt, part=part).one() for part in (0.0, 0.5)
        )
        if first is None or half is None:
            continue
        error = math.hypot(first.stderr or 0.0, half.stderr or 0.0)
        if half.value - first.value > BELIEVED * error:
            factor = number(half.value / first.value, 2)
            grown.append(f"on “{text(prompt)}” it is {factor} times as large halfway as before")
    return "; " + ", ".join(grown) if grown else ""


def unlimited(rows: Rows, beta: float) -> str:
    """What becomes of the runs without a limit on target controls."""
    table = tables.unlimited(rows, beta)
    if not table:
        return ""
    free = rows.where(Metric.DROP, beta=beta).having("beta", "limit")
    runs = {method: tuple(free.where(estimator=method)) for method in free.fields("estimator")}
    counts = ", ".join(
        f"{sum(map(has_fallen, each))} of {len(each)} by {text(method)}"
        for method, each in runs.items()
    )
    return f"""
Adjoint matching is known to become unstable where a few costates are very large, and a limit on
target controls is one way out. Of the runs without it these end below their best by more than
noise: {counts} (@unlimited).

{table}
"""


def _direction(rows: Rows, method: str, prompt: str, beta: float) -> str:
    """A bias or more noise than PI-FT has, if one of them was found."""
    own, theirs, cosine = (
        rows.where(metric, prompt, title, beta=beta, policy=method).one()
        for metric, title in (
            (Metric.AGREEMENT, method),
            (Metric.AGREEMENT, MethodName.PI_FT),
            (Metric.ALIGNMENT, method),
        )
    )
    if own is None or theirs is None:
        return f"why was {NOT_MEASURED}."
    if cosine is not None and _is_below(cosine, SAME):
        return (
            "it climbs something else; the cosine of its mean gradient with PI-FT's is"
            f" {value(cosine)}."
        )
    if _is_below(own, theirs.value):
        return (
            f"it is noisier; two of its batches have a cosine of {value(own)}, two of PI-FT's"
            f" {value(theirs)}."
        )
    known = (
        f"the cosine of its mean gradient with PI-FT's is {value(cosine)}"
        if cosine is not None
        else "its gradient is only noise"
    )
    return f"why is not decided by what was measured: {known}."


def _is_below(record: Record, level: float) -> bool:
    return record.stderr is not None and record.value + BELIEVED * record.stderr < level
