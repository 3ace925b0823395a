"""What the report on guidance finds."""

from __future__ import annotations

import itertools
import math

from socft.report.claim_records import Claims
from socft.report.findings import Answer, NotMeasured, Number, Question, made, one
from socft.report.rows import Rows
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

REWARD = 3.0
"""The mean reward at which divergences are compared."""
GUIDES = (MethodName.NAIVE, MethodName.LOOK_AHEAD)


def _price(rows: Rows, method: str, steps: int) -> Number:
    """Divergence over that of the optimum with the same number of steps."""
    found = rows.of(schemas.GUIDANCE).where(Metric.EQUAL_KL, ProblemName.ISOTROPIC)
    here = found.where(reward=REWARD, T=steps)
    mine, best = (one(here.where(estimator=name)) for name in (method, MethodName.OPTIMAL_CONTROL))
    return mine.over(best, 2)


def _law(rows: Rows, _: Claims) -> Answer:
    found = rows.of(schemas.GUIDANCE).where(Metric.EQUAL_KL, ProblemName.ISOTROPIC)
    lengths = found.distinct("T")
    if len(lengths) < 3:
        raise NotMeasured
    naive = [_price(rows, MethodName.NAIVE, steps) for steps in lengths]
    first, last = naive[0], naive[-1]
    growth = last.over(first).value
    grown = math.log(growth) if growth > 0 else math.nan
    power = grown / math.log(lengths[-1] / lengths[0])
    tuned = _price(rows, MethodName.FINE_TUNED_SCORE, lengths[-1])
    numbers = {
        "low": made(lengths[0], *naive),
        "high": made(lengths[-1], *naive),
        "first": made(first.value, *naive, digits=2),
        "last": made(last.value, *naive, digits=2),
        "power": made(power, *naive, digits=2),
        "tuned": Number(tuned.value, tuned.evidence, 3),
    }
    rising = all(a.value < b.value for a, b in itertools.pairwise(naive))
    return numbers, rising and power > 1 and tuned.value < 1.1


def _last(rows: Rows, metric: Metric, guide: str, algorithm: int) -> Number:
    mine = rows.of(schemas.GUIDANCE).where(metric, ProblemName.F1_OFF, guide)
    mine = mine.where(algorithm=algorithm, score="exact")
    last = max(mine.distinct("round"), default=None)
    return one(mine.where(round=last))


def _subspace(rows: Rows, _: Claims) -> Answer:
    naive, ahead = (_last(rows, Metric.OFF_SUPPORT, guide, 1) for guide in GUIDES)
    again, kept = (_last(rows, Metric.OFF_SUPPORT, guide, 2) for guide in GUIDES)
    numbers = {"naive": naive, "ahead": ahead, "again": again, "kept": kept}
    return numbers, ahead.value < naive.value / 2 and kept.value < again.value / 2


def _algorithms(rows: Rows, _: Claims) -> Answer:
    one_pass, adapted = (_last(rows, Metric.REWARD, MethodName.LOOK_AHEAD, a) for a in (1, 2))
    found = rows.of(schemas.GUIDANCE).where(problem=ProblemName.F1_OFF)
    predicted = one(found.where(Metric.REGULARISED_VALUE))
    most = one(found.where(Metric.MAXIMUM))
    numbers = {"first": one_pass, "second": adapted, "predicted": predicted, "most": most}
    carried = one_pass.value < 1.02 * predicted.value < 0.8 * most.value
    return numbers, carried and 0.95 * most.value < adapted.value


def _prices(rows: Rows, _: Claims) -> Answer:
    found = rows.of(schemas.GUIDANCE).where(Metric.EQUAL_KL, ProblemName.ISOTROPIC)
    here = found.where(reward=REWARD).having("reward")
    best = one(here.where(estimator=MethodName.OPTIMAL_CONTROL))
    ratios = {
        key: one(here.where(estimator=name)).over(best, 3)
        for key, name in (
            ("ahead", MethodName.LOOK_AHEAD_PUBLISHED),
            ("universal", MethodName.UNIVERSAL),
            ("classifier", MethodName.CLASSIFIER),
            ("tuned", MethodName.FINE_TUNED_SCORE),
        )
    }
    close = all(1 < ratios[key].value < 1.1 for key in ("universal", "classifier", "tuned"))
    return ratios, close and ratios["ahead"].value > 1.1


def _learnt(rows: Rows, _: Claims) -> Answer:
    mine = rows.where(Metric.OFF_SUPPORT, ProblemName.F1_OFF, algorithm=1)
    last = max(mine.where(score="network").distinct("round"), default=None)
    ends = {
        (guide, score): one(mine.where(estimator=guide, score=score, round=last))
        for guide in GUIDES
        for score in ("network", "exact")
    }
    naive, ahead = GUIDES
    numbers = {
        "naive": ends[naive, "network"],
        "naive_exact": ends[naive, "exact"],
        "ahead": ends[ahead, "network"],
        "ahead_exact": ends[ahead, "exact"],
        "rounds": made(last or 0, *ends.values()),
    }
    worse = all(ends[guide, "network"].value > 2 * ends[guide, "exact"].value for guide in GUIDES)
    return numbers, worse and numbers["naive"].value > numbers["ahead"].value


QUESTIONS = (
    Question(
        "The price of the naive gradient",
        "To reach one mean reward in one pass the naive gradient spends {first} times the"
        " divergence of the optimal control with {low} steps and {last} times with {high}, as"
        " T^{power}: the last kernels have hardly any noise across the subspace. It has no limit in"
        " continuous time. A fine-tuned score pays {tuned} times the optimum at {high} steps.",
        _law,
    ),
    Question(
        "The subspace of the data",
        "Look-ahead guidance keeps the samples where the data are, the naive gradient takes them"
        " off: with the exact score the ratio of norms across and along the subspace ends at"
        " {ahead} and {naive} under Algorithm 1, at {kept} and {again} under Algorithm 2.",
        _subspace,
    ),
    Question(
        "What the algorithms maximise",
        "Algorithm 1 stops at a regularised maximum, Algorithm 2 goes on towards the maximum: they"
        " end at a mean reward of {first}, where {predicted} is predicted for the mean, and of"
        " {second} of {most}. One run each, one draw of directions.",
        _algorithms,
    ),
    Question(
        "Guidance beside the optimum",
        "At a mean reward of three in one pass universal guidance pays {universal}, classifier"
        " guidance {classifier} and a fine-tuned score {tuned} times the divergence of the optimal"
        " control, look-ahead guidance, which conditions on a narrow band, {ahead} times.",
        _prices,
    ),
    Question(
        "A learnt score",
        "A learnt score pulls samples back less than the exact one: after {rounds} rounds the ratio"
        " is {naive} for the naive gradient and {ahead} for look-ahead guidance, with the exact"
        " score {naive_exact} and {ahead_exact}.",
        _learnt,
    ),
)
