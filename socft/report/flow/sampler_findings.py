"""What the report on flow models finds of samplers that are not those of training."""

from __future__ import annotations

from socft.report.claim_records import Claims
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
from socft.report.flow.samplers import KERNEL, MEMORYLESS
from socft.report.rows import Rows
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

DEFAULT = 0.7
"""The noise level of published training."""


def _samplers(rows: Rows, _: Claims) -> Answer:
    found = rows.of(schemas.SDE_ODE).where(kernel=KERNEL, used=0.0)
    trained = found.where(Metric.REWARD_GAP, trained=DEFAULT)
    linear = trained.where(problem=ProblemName.FLOW_LINEAR)
    orders = found.where(Metric.ORDER, trained=MEMORYLESS, of=str(Metric.W1_TO_OWN))
    numbers = {
        "linear": _last(linear),
        "limit": one(linear.where(source="limit"), 2),
        "modes": _last(trained.where(problem=ProblemName.FLOW_OVERLAPPING)),
        "slowest": smallest(orders, digits=2),
        "fastest": largest(orders, digits=3),
        "laws": count(orders),
    }
    positive = all(numbers[name].value > 0 for name in ("linear", "limit", "modes"))
    numbers["level"] = made(DEFAULT, numbers["linear"], digits=1)
    return numbers, positive and numbers["slowest"].value > 0


def _last(rows: Rows, digits: int = 2) -> Number:
    """The number at the most steps."""
    found = rows.filter(lambda record: "T" in record.setting)
    if not found:
        raise NotMeasured
    return one(found.where(T=found.distinct("T")[-1]), digits)


QUESTION = Question(
    "Trained with noise, sampled without",
    "A model that is trained at noise level {level}, a published default, and sampled without noise"
    " goes too far: its mean reward is {linear} above that of its own chain for a linear reward"
    " ({limit} in the limit of many steps, by a closed form derived here) and {modes} on"
    " overlapping modes. Trained at the memoryless level, the two laws approach each other, with"
    " orders of {slowest} to {fastest} in one over the number of steps on {laws} problems.",
    _samplers,
)
