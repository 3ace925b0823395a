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


def _solved(rows: Rows, name: str, steps: int, metric: Metric = Metric.TV_TO_TILT) -> Number:
    found = rows.where(metric, ProblemName.FLOW_OVERLAPPING, name, source="equation")
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
    again = repeated.where(batch=repeated.distinct("batch")[-1])
    numbers["rows"] = count(again)
    numbers["after"] = made(max(map(equivalent, again)), numbers["rows"], digits=2)
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
    mine = [_solved(rows, name, STEPS) for name in RENOISED]
    chain = _solved(rows, MethodName.ADJOINT_MATCHING, STEPS)
    ratios = [each.over(chain, 2) for each in mine]
    numbers = {
        "least": min(ratios, key=lambda each: each.value),
        "most": max(ratios, key=lambda each: each.value),
        "steps": made(STEPS, *ratios),
    }
    numbers = {name: made(n.value, *ratios, digits=2) for name, n in numbers.items()}
    return numbers, numbers["least"].value > 1.5


def _noiseless(rows: Rows, _: Claims) -> Answer:
    lengths = _lengths(rows)
    name = MethodName.DETERMINISTIC_ADJOINT_MATCHING
    first, last = (_solved(rows, name, steps) for steps in (lengths[0], lengths[-1]))
    numbers = {
        "first": made(lengths[0], first),
        "last": made(lengths[-1], last),
        "before": first,
        "after": last,
    }
    return numbers, last.value > 0.9 * first.value and last.value > 0.1


def _weights(rows: Rows, _: Claims) -> Answer:
    grpo, guard, chain = (
        _solved(rows, name, STEPS, Metric.EFFECTIVE_BETA)
        for name in (
            MethodName.FLOW_GRPO,
            MethodName.GRPO_GUARD,
            MethodName.ADJOINT_MATCHING,
        )
    )
    numbers = {"asked": made(chain.value, chain), "grpo": grpo, "guard": guard}
    numbers = {name: Number(n.value, n.evidence, 3) for name, n in numbers.items()}
    return numbers, abs(chain.value - STRENGTH) < SAME and max(grpo.value, guard.value) < STRENGTH


QUESTIONS = (
    Question(
        "Predictions",
        "Of {predictions} predictions of where a method converges to, {off} are refuted. Laws are"
        " within a total variation of {apart} of the predicted ones, but for methods without noise"
        " on separated modes, where their equation has several solutions and deterministic adjoint"
        " matching is off by {steep}, and for efficient adjoint matching, whose runs are not at"
        " their limit. The {rows} others that deviated most, run again with fresh random numbers,"
        " are off by at most {after} standard errors of a normal variable.",
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
        " {steps} steps and equal strength their limits are {least} to {most} times as far from the"
        " tilt as that of adjoint matching.",
        _renoised,
    ),
    Question(
        "Training without noise",
        "The optimum without noise is no tilt: deterministic adjoint matching ends {before} from it"
        " with {first} steps and {after} with {last}.",
        _noiseless,
    ),
    Question(
        "Normalised rewards",
        "Rewards divided by their standard deviation price the divergence less the further one has"
        " gone: of a weight of {asked} at the start Flow-GRPO leaves {grpo}, GRPO-Guard {guard}.",
        _weights,
    ),
)
