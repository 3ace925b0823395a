"""What the report on flow models finds of other samplers and of equal budgets."""

from __future__ import annotations

from socft.report.claim_records import Claims
from socft.report.findings import Answer, NotMeasured, Number, Question, largest, one
from socft.report.flow.samplers import KERNEL, MEMORYLESS
from socft.report.flow.tables import LIMIT
from socft.report.rows import Rows
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

DEFAULT = 0.7
"""The noise level of published training."""
NEAR_ONE = 0.2
"""Of an order."""


def _last(rows: Rows, digits: int = 2) -> Number:
    """The number at the most steps."""
    found = rows.filter(lambda record: "T" in record.setting)
    if not found:
        raise NotMeasured
    return one(found.where(T=found.distinct("T")[-1]), digits)


def _samplers(rows: Rows, claims: Claims) -> Answer:
    found = rows.of(schemas.SDE_ODE).where(kernel=KERNEL, used=0.0)
    trained = found.where(Metric.REWARD_GAP, trained=DEFAULT)
    linear = trained.where(problem=ProblemName.FLOW_LINEAR)
    order = found.where(
        Metric.ORDER,
        ProblemName.FLOW_OVERLAPPING,
        trained=MEMORYLESS,
        of=str(Metric.W1_TO_OWN),
    )
    numbers = {
        "linear": _last(linear),
        "limit": one(linear.where(source="limit"), 2),
        "modes": _last(trained.where(problem=ProblemName.FLOW_OVERLAPPING)),
        "order": one(order, 2),
    }
    positive = all(numbers[name].value > 0 for name in ("linear", "limit", "modes"))
    return numbers, positive and abs(numbers["order"].value - 1) < NEAR_ONE


def _nearer(rows: Rows, claims: Claims) -> Answer:
    found = rows.of(schemas.SDE_ODE)
    divergences = found.where(
        Metric.KL_TO_TILT, ProblemName.FLOW_CENTRED, kernel=KERNEL, trained=MEMORYLESS
    )
    flow, chain = (_last(divergences.where(used=used)) for used in (0.0, MEMORYLESS))
    numbers = {"share": one(found.where(Metric.NEARER)), "times": flow.over(chain, 2)}
    return numbers, numbers["share"].value > 0.5 and numbers["times"].value > 1


def _budget(rows: Rows, claims: Claims) -> Answer:
    found = rows.of(schemas.FLOW_BUDGET).where(
        Metric.BIAS, ProblemName.FLOW_OVERLAPPING, at="optimum"
    )
    biases = found.where(estimator=MethodName.RAM_GROUP_MEAN)
    steps = biases.distinct("T")
    if not steps:
        raise NotMeasured
    at = {T: one(biases.where(T=T), 2) for T in steps}
    own = list(found.where(estimator=MethodName.ADJOINT_MATCHING))
    numbers = {
        "few": Number(steps[0], at[steps[0]].evidence),
        "many": Number(steps[-1], at[steps[-1]].evidence),
        "first": at[steps[0]],
        "last": at[steps[-1]],
        "matching": largest(found.where(estimator=MethodName.ADJOINT_MATCHING), digits=1),
    }
    (record,) = biases.where(T=steps[-1])
    biased = record.stderr is not None and record.value > LIMIT * record.stderr
    unbiased = all(each.value <= LIMIT * (each.stderr or 0) for each in own)
    return numbers, biased and unbiased


QUESTIONS = (
    Question(
        "Trained with noise, sampled without",
        "A model trained at noise level 0.7 and sampled without noise goes too far: its mean reward"
        " is {linear} above that of its own chain for a linear reward ({limit} in the limit of many"
        " steps, by a closed form derived here), {modes} on overlapping modes. Trained at the"
        " memoryless level, the two laws approach each other with order {order} in one over the"
        " number of steps.",
        _samplers,
    ),
    Question(
        "Which of the two is nearer the tilt",
        "In a share {share} of random Gaussian instances the samples without noise are nearer the"
        " tilt than the chain that was trained. It is no theorem: for N(0, 1) and the reward -x²"
        " their divergence is {times} times the chain's.",
        _nearer,
    ),
    Question(
        "At an equal budget",
        "At the optimum RAM with the group's mean as baseline still proposes {first} of the first"
        " change at {few} steps, {last} at {many}, whatever the budget; adjoint matching at most"
        " {matching}, which is noise.",
        _budget,
    ),
)
