"""What the report on flow models finds."""

from __future__ import annotations

from socft.report.claim_records import Claims
from socft.report.findings import Answer, NotMeasured, Number, Question, count, largest, made, one
from socft.report.flow.tables import LIMIT, equivalent
from socft.report.rows import Rows
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

STRENGTH = 2.0
"""The weight of the divergence at which methods are compared."""
STEPS = 10
CHAIN = (
    MethodName.ADJOINT_MATCHING,
    MethodName.FULL_ADJOINT,
    MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
)
RENOISED = (MethodName.RAM, MethodName.AWM, MethodName.DIFFUSION_NFT_VELOCITY)
STEEP = (
    (ProblemName.FLOW_SEPARATED, MethodName.DETERMINISTIC_ADJOINT_MATCHING),
    (ProblemName.FLOW_SEPARATED, MethodName.VGG_FLOW),
)
"""Where equations without noise have several solutions."""
SLOW = (MethodName.EFFICIENT_ADJOINT_MATCHING,)
"""What is far from its limit when a run ends."""
SAME = 1e-6
NAMED = {
    ProblemName.FLOW_GAUSSIAN: "gaussian",
    ProblemName.FLOW_OVERLAPPING: "modes",
    ProblemName.FLOW_SEPARATED: "separated",
}
"""How numbers of a law are called."""
FALLING, SPREAD = ("gaussian", "modes"), ("grpo", "guard")
"""Laws on which the weight falls, and methods that divide by the spread of the rewards."""


def _solved(
    rows: Rows,
    name: str,
    steps: int,
    problem: str = ProblemName.FLOW_OVERLAPPING,
    metric: Metric = Metric.TV_TO_TILT,
) -> Number:
    found = rows.where(metric, problem, name, source="equation")
    return one(found.where(T=steps, beta=STRENGTH), digits=2)


def _lengths(rows: Rows) -> list[int]:
    found = rows.where(Metric.TV_TO_TILT, ProblemName.FLOW_OVERLAPPING, source="equation")
    lengths = found.where(beta=STRENGTH).distinct("T")
    if len(lengths) < 2:
        raise NotMeasured
    return lengths


def _predictions(rows: Rows, _: Claims) -> Answer:
    held = rows.where(Metric.DEVIATION, source="samples")
    off = held.filter(lambda record: equivalent(record) > LIMIT)
    near = rows.where(Metric.TV_TO_PREDICTION, source="samples").filter(
        lambda record: (record.problem, record.estimator) not in STEEP
    )
    numbers = {
        "predictions": count(held),
        "off": count(off, held),
        "apart": largest(near.filter(lambda record: record.estimator not in SLOW), digits=2),
        "steep": one(rows.where(Metric.TV_TO_PREDICTION, *STEEP[0], source="samples"), 2),
    }
    repeated = rows.where(Metric.DEVIATION, source="repeated")
    if not repeated:
        raise NotMeasured
    batches = repeated.distinct("batch")
    again = repeated.where(batch=batches[-1])
    chosen = {(record.problem, record.estimator) for record in again}
    kept = held.filter(lambda record: equivalent(record) <= LIMIT)
    alone = kept.filter(lambda record: (record.problem, record.estimator) not in chosen)
    numbers["rows"] = count(again)
    numbers["after"] = made(max(map(equivalent, again)), numbers["rows"], digits=2)
    numbers["batch"] = made(batches[-1], numbers["rows"], digits=4)
    numbers["alone"] = made(max(map(equivalent, alone)), count(alone), digits=2)
    carried = 0 < numbers["off"].value < numbers["predictions"].value / 4
    carried = carried and numbers["after"].value < LIMIT
    return numbers, carried and numbers["apart"].value < 0.05 < numbers["steep"].value


def _chain(rows: Rows, _: Claims) -> Answer:
    lengths = _lengths(rows)
    first, last = lengths[0], lengths[-1]
    ends = [[_solved(rows, name, steps) for name in CHAIN] for steps in (first, last)]
    spread = max(abs(a.value - each[0].value) for each in ends for a in each)
    numbers = {
        "first": made(first, *ends[0]),
        "last": made(last, *ends[1]),
        "before": made(ends[0][0].value, *ends[0], digits=2),
        "after": made(ends[1][0].value, *ends[1], digits=2),
    }
    falls = numbers["after"].value < numbers["before"].value / 2
    return numbers, falls and spread < SAME


def _renoised(rows: Rows, _: Claims) -> Answer:
    numbers, every = {}, []
    for problem, key in NAMED.items():
        chain = _solved(rows, MethodName.ADJOINT_MATCHING, STEPS, problem)
        ratios = [_solved(rows, name, STEPS, problem).over(chain) for name in RENOISED]
        values = [each.value for each in ratios]
        numbers[f"{key}_least"] = made(min(values), *ratios)
        numbers[f"{key}_most"] = made(max(values), *ratios)
        every += ratios
    numbers["steps"] = made(STEPS, *every)
    return numbers, min(each.value for each in every) > 1.1


def _noiseless(rows: Rows, _: Claims) -> Answer:
    lengths = _lengths(rows)
    name = MethodName.DETERMINISTIC_ADJOINT_MATCHING
    numbers, ends = {}, []
    for problem in (ProblemName.FLOW_GAUSSIAN, ProblemName.FLOW_OVERLAPPING):
        pair = [_solved(rows, name, steps, problem) for steps in (lengths[0], lengths[-1])]
        key = NAMED[problem]
        numbers |= {f"{key}_before": pair[0], f"{key}_after": pair[1]}
        ends += pair
    numbers["first"], numbers["last"] = made(lengths[0], *ends), made(lengths[-1], *ends)
    numbers["chain"] = _solved(rows, MethodName.ADJOINT_MATCHING, lengths[-1])
    stays = numbers["modes_after"].value > 0.9 * numbers["modes_before"].value
    far = min(numbers[f"{key}_after"].value for key in ("gaussian", "modes"))
    return numbers, stays and far > 10 * numbers["chain"].value


def _weights(rows: Rows, _: Claims) -> Answer:
    """What normalised rewards leave of a weight, which falls on two laws and rises on one."""
    numbers: dict[str, Number] = {}
    for problem, key in NAMED.items():
        for name, method in (
            ("chain", MethodName.ADJOINT_MATCHING),
            ("grpo", MethodName.FLOW_GRPO),
            ("guard", MethodName.GRPO_GUARD),
        ):
            found = _solved(rows, method, STEPS, problem, Metric.EFFECTIVE_BETA)
            numbers[f"{key}_{name}"] = Number(found.value, found.evidence, 3)
    left = [numbers.pop(f"{key}_chain") for key in NAMED.values()]
    numbers["asked"] = made(left[0].value, *left)
    falls = all(numbers[f"{key}_{name}"].value < STRENGTH for key in FALLING for name in SPREAD)
    rises = all(numbers[f"separated_{name}"].value > STRENGTH for name in SPREAD)
    given = all(abs(each.value - STRENGTH) < SAME for each in left)
    return numbers, given and falls and rises


QUESTIONS = (
    Question(
        "Predictions",
        "Of {predictions} predictions of where a method converges to, {off} are refuted. Laws are"
        " within a total variation of {apart} of the predicted ones, but for methods without noise"
        " on separated modes, where their equation has several solutions and deterministic adjoint"
        " matching is off by {steep}, and for efficient adjoint matching, whose runs are not at"
        " their limit. Of the others, {rows} had passed the limit of a refutation or come near it"
        " in a first reading; with fresh random numbers and batches of {batch} they are off by at"
        " most {after} standard errors of a normal variable, what was not run again by at most"
        " {alone}.",
        _predictions,
    ),
    Question(
        "The optimum of the chain",
        "Adjoint matching, the full adjoint and the score function have the same limit, the optimum"
        " of the chain, whose distance from the tilt falls with the step: {before} with {first}"
        " steps, {after} with {last}, in total variation on overlapping modes.",
        _chain,
    ),
    Question(
        "Regressions on re-noised samples",
        "RAM, AWM and DiffusionNFT solve another equation, that of the endpoint covariance: with"
        " {steps} steps and equal strength their limits are {gaussian_least} to {gaussian_most}"
        " times as far from the tilt as that of adjoint matching on Gaussian data, {modes_least} to"
        " {modes_most} times on overlapping and {separated_least} to {separated_most} times on"
        " separated modes.",
        _renoised,
    ),
    Question(
        "Training without noise",
        "The optimum without noise is no tilt: the limit of deterministic adjoint matching is"
        " {gaussian_before} from it with {first} steps and {gaussian_after} with {last} on Gaussian"
        " data, {modes_before} and {modes_after} on overlapping modes, where that of adjoint"
        " matching is then {chain} from it.",
        _noiseless,
    ),
    Question(
        "Normalised rewards",
        "Rewards divided by their standard deviation change the price of the divergence on the way."
        " Of a weight of {asked} at the start Flow-GRPO leaves {gaussian_grpo} and GRPO-Guard"
        " {gaussian_guard} on Gaussian data, {modes_grpo} and {modes_guard} on overlapping modes;"
        " on separated ones, where mass moves to the smaller mode, it rises to {separated_grpo} and"
        " {separated_guard}.",
        _weights,
    ),
)
