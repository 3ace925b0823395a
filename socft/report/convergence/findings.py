"""What the report on convergence finds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from socft.records import Record
from socft.report.claim_records import Claims
from socft.report.convergence.tables import CASES, LICENSED
from socft.report.findings import (
    Answer,
    NotMeasured,
    Number,
    Question,
    count,
    largest,
    made,
    one,
    smallest,
)
from socft.report.rows import Rows, ratio
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric

DESIGN = 0.5
"""The design constant of the weights that are compared."""
VACUOUS, USABLE, LOOSE = 1e6, 10.0, 100.0
"""Multiples of the necessary weight."""
ATTAINED = 0.99
FALLING_FROM = 10
"""Number of steps from which the necessary weight is followed."""
CONCENTRATED = ("Gaussian", "overlapping modes")
SEPARATED = "separated modes"


def _asked(rows: Rows, rule: str, steps: int, *laws: str) -> Rows:
    found = rows.of(schemas.TIGHTNESS).where(Metric.SUFFICIENT_BETA, rule=rule, T=steps, d=1)
    kept = found.where(reward="sine", lam=DESIGN)
    return kept.filter(lambda record: not laws or record.problem in laws)


def _lengths(rows: Rows) -> Sequence[int]:
    found = rows.of(schemas.TIGHTNESS).where(Metric.SUFFICIENT_BETA, rule="necessary")
    return [each for each in found.distinct("T") if each >= FALLING_FROM]


def _last(rows: Rows) -> int:
    lengths = _lengths(rows)
    if not lengths:
        raise NotMeasured
    return lengths[-1]


def _over(record: Record) -> float | None:
    return record.value / record.optimum if record.optimum else None


def _constants(rows: Rows, _: Claims) -> Answer:
    steps = _last(rows)
    numbers = {
        "published": smallest(_asked(rows, "paper", steps), _over),
        "one_sided": largest(_asked(rows, "one-sided", steps, *CONCENTRATED), _over, 2),
        "separated": smallest(_asked(rows, "one-sided", steps, SEPARATED), _over, 2),
        "steps": made(steps, largest(_asked(rows, "necessary", steps))),
    }
    numbers["rate"] = made(1 - DESIGN, numbers["steps"])
    carried = (
        numbers["published"].value > VACUOUS
        and numbers["one_sided"].value < USABLE
        and numbers["separated"].value > LOOSE
    )
    return numbers, carried


def _law(rows: Rows, _: Claims) -> Answer:
    """Whether necessary weights fall with the number of steps, and published ones rise."""
    lengths, falls, rises = _lengths(rows), [], []
    if len(lengths) < 2:
        raise NotMeasured
    found = rows.of(schemas.TIGHTNESS).where(Metric.SUFFICIENT_BETA, d=1, lam=DESIGN)
    for problem, reward in itertools.product(found.fields("problem"), found.distinct("reward")):
        mine = found.where(problem=problem, reward=reward)
        for rule, factors in (("necessary", falls), ("paper", rises)):
            each = [one(mine.where(rule=rule, T=steps)) for steps in lengths]
            factors.append([b.over(a) for a, b in itertools.pairwise(each)])
    overall_fall, overall_rise = ([_product(each) for each in side] for side in (falls, rises))
    numbers = {
        "instances": made(len(falls), *overall_fall),
        "first": made(lengths[0], *overall_fall),
        "last": made(lengths[-1], *overall_fall),
        "least": made(1 / max(each.value for each in overall_fall), *overall_fall),
        "most": made(1 / min(each.value for each in overall_fall), *overall_fall),
        "growth": made(min(each.value for each in overall_rise), *overall_rise),
        "rising": _rising(found),
    }
    falling = all(factor.value < 1 for each in falls for factor in each)
    return numbers, falling and all(factor.value > 1 for each in rises for factor in each)


def _rising(found: Rows) -> Number:
    """Instances whose necessary weight rises between two numbers of steps below the first."""
    short = found.where(rule="necessary").filter(lambda record: record.setting["T"] <= FALLING_FROM)
    rising = 0
    for problem, reward in itertools.product(found.fields("problem"), found.distinct("reward")):
        mine = short.where(problem=problem, reward=reward)
        values = [one(mine.where(T=steps)).value for steps in mine.distinct("T")]
        rising += any(later > earlier for earlier, later in itertools.pairwise(values))
    return made(rising, count(short))


def _product(factors: Sequence[Number]) -> Number:
    value = 1.0
    for factor in factors:
        value *= factor.value
    return made(value, *factors)


def _rate(rows: Rows, _: Claims) -> Answer:
    here = rows.of(schemas.CONVERGENCE)
    rates = here.where(Metric.RATE, rule="measured")
    charged = []
    for problem in CASES:
        needed = here.where(Metric.BETA_REQUIRED, problem, rule="measured", lam=DESIGN)
        for rule in LICENSED:
            asked = here.where(Metric.BETA_REQUIRED, problem, rule=rule, lam=DESIGN)
            if asked:  # where no finite weight is admitted there is no record
                charged.append(largest(asked).over(largest(needed)))
    if not charged:
        raise NotMeasured
    numbers = {
        "runs": count(rates),
        "low": smallest(rates, ratio),
        "high": largest(rates, ratio, 4),
        "asked": made(min(each.value for each in charged), *charged, digits=2),
        "forms": made(len(LICENSED), *charged),
    }
    numbers["rate"] = made(1 - DESIGN, numbers["asked"])
    close = numbers["low"].value > 0.9 and numbers["high"].value < 1.005
    return numbers, close and numbers["asked"].value > 1


def _licensed(rows: Rows, _: Claims) -> Answer:
    """How much of the bound of Theorem 3.1 is reached where it applies."""
    found = rows.of(schemas.CONVERGENCE).where(Metric.CONTROL_ERROR, rule="paper iterates")
    updates = found.distinct("m")
    if not updates:
        raise NotMeasured
    each = [largest(found.where(m=m), ratio, 2) for m in updates]
    numbers = {
        "start": made(each[0].value, each[0]),
        "updates": made(updates[-1], each[-1]),
        "end": each[-1],
    }
    return numbers, numbers["end"].value < numbers["start"].value < 1.0


def _tightness(rows: Rows, _: Claims) -> Answer:
    found = rows.of(schemas.TIGHTNESS).where(Metric.RATIO, "theorem_3_1", constants="paper")
    found = found.filter(lambda record: record.setting["axis"] in ("base", "T"))
    lengths = found.distinct("T")
    if len(lengths) < 2:
        raise NotMeasured
    each = {steps: largest(found.where(T=steps), digits=2) for steps in lengths}
    one_step, long = each[lengths[0]], each[lengths[-1]]
    others = max(each[steps].value for steps in lengths[1:])
    updates = {record.setting["updates"] for record in found if record.setting["T"] == lengths[0]}
    along = rows.of(schemas.TIGHTNESS).where(Metric.CONTROL_ERROR, rule="coupled")
    least = smallest(along, ratio, digits=2)
    numbers = {
        "one": one_step,
        "steps": made(lengths[-1], long),
        "many": long,
        "near": made(1 / least.value, least, digits=2),
        "chain": made(min(along.distinct("T")), least),
        "updates": made(max(along.distinct("m")), least),
    }
    attained = one_step.value >= ATTAINED > others and updates == {0}
    return numbers, attained and long.value < one_step.value / 10 and least.value > 1 / USABLE


def _tilt(rows: Rows, _: Claims) -> Answer:
    here = rows.of(schemas.CONVERGENCE)
    kernel = here.where(Metric.KERNEL_GAP, schedule="memoryless")
    memory = here.where(Metric.MEMORY_GAP, schedule="constant rate 1")
    lengths = kernel.distinct("steps")
    if len(lengths) < 2:
        raise NotMeasured
    first, last = lengths[0], lengths[-1]
    kept = {
        problem: one(memory.where(problem=problem, steps=last)).over(
            one(memory.where(problem=problem, steps=first))
        )
        for problem in memory.fields("problem")
    }
    numbers = {
        "first": made(first, largest(kernel.where(steps=first))),
        "last": made(last, largest(kernel.where(steps=last))),
        "before": largest(kernel.where(steps=first)),
        "after": largest(kernel.where(steps=last)),
        "memory": largest(memory.where(steps=last)),
        "kept": made(min(each.value for each in kept.values()), *kept.values()),
    }
    falls = numbers["after"].value < numbers["before"].value / 2
    return numbers, falls and numbers["kept"].value >= 1


QUESTIONS = (
    Question(
        "What the published constants ask for",
        "In one dimension, with a sine as reward and {steps} steps, the constants of Theorem 2.8"
        " (arXiv 2412.18164v4) ask for at least {published} times the KL weight that is needed for"
        " updates to contract by {rate} at the optimum. One-sided constants, derived here, ask for"
        " at most {one_sided} times on Gaussian data and overlapping modes, and still for"
        " {separated} times on separated modes.",
        _constants,
    ),
    Question(
        "How the weight depends on the number of steps",
        "The weight that is needed falls with the number of steps in all {instances} instances, by"
        " a factor of {least} to {most} from {first} to {last} steps, while the one that the"
        " published constants ask for grows by at least {growth}. With fewer steps than {first}"
        " it rises at first in {rising} of them.",
        _law,
    ),
    Question(
        "The local rate",
        "At weights set so that the linearised iteration contracts by a given factor at the"
        " optimum, the factor observed per update is {low} to {high} times that, in {runs} runs."
        " Theorem 3.1 does not promise it there: for a factor of {rate} the weakest of the"
        " {forms} forms of its premise asks for at least {asked} times the constant weight of these"
        " runs, where it admits a finite one.",
        _rate,
    ),
    Question(
        "Theorem 3.1 where its premise holds",
        "Of the bound of Theorem 3.1 an error reaches {start} before the first update, which says"
        " no more than that the optimal control is bounded, and {end} after {updates} updates.",
        _licensed,
    ),
    Question(
        "Tightness",
        "A search attains Theorem 3.1 with one step and no update alone (ratio {one}); with {steps}"
        " steps the largest ratio found is {many}. A bound along paths, derived here, stays within"
        " a factor of {near} of the errors of the control over {chain} steps and up to {updates}"
        " updates, on Gaussian data and on overlapping modes.",
        _tightness,
    ),
    Question(
        "The optimum of finitely many steps",
        "The optimum of a chain is not the exponential tilt: objectives differ by up to {before}"
        " with {first} steps and {after} with {last}. A schedule that remembers its start keeps a"
        " gap of up to {memory}, which does not fall.",
        _tilt,
    ),
)
