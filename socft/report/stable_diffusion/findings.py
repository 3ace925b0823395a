"""What the report on Stable Diffusion finds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

from socft.report.claim_records import Claims
from socft.report.findings import Answer, NotMeasured, Number, Question, count, made, one
from socft.report.rows import Rows
from socft.study.comparison import BELIEVED, gradient_norm_study, holm
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema

MATCHING = (
    MethodName.CORRECTED_ADJOINT,
    MethodName.PI_FT,
    MethodName.ADJOINT_MATCHING,
)
COMPOSED = ("a circle and a triangle", "a triangle above a square")
HACKED = "four circles"
GAINED, LOST = 0.2, 0.1
"""A gain in reward that is a large one, and a share of diversity that is."""


def questions(study: StudySchema) -> tuple[Question, ...]:
    """What is asked of the study of one scale."""
    return tuple(
        Question(about, sentence, functools.partial(answer, study))
        for about, sentence, answer in ASKED
    )


def _beta(runs: Rows) -> float:
    """The weight at which all methods ran."""
    found = runs.where(Metric.REWARD_GAIN, estimator=MethodName.DPOK).having("beta")
    betas = found.distinct("beta")
    if not betas:
        raise NotMeasured
    return betas[0]


def _gain(runs: Rows, prompt: str, method: str, training: int = 1) -> Number:
    """Objective over the pre-trained model's, of one training."""
    beta = _beta(runs)
    found = runs.where(problem=prompt, estimator=method, beta=beta)
    mine = (
        found.having("beta")
        if training == 1
        else found.having("beta", "training").where(training=training)
    )
    reward, kl = (one(mine.where(metric)) for metric in (Metric.REWARD_GAIN, Metric.KL))
    return made(reward.value - beta * kl.value, reward, kl)


def _trainings(runs: Rows) -> Sequence[int]:
    return [1, *runs.having("beta", "training").distinct("training")]


def _mean(parts: Sequence[Number], digits: int = 2) -> Number:
    return made(math.fsum(each.value for each in parts) / len(parts), *parts, digits=digits)


def _reached(study: StudySchema, rows: Rows, _: Claims) -> Answer:
    runs = rows.of(study)
    prompts = runs.where(Metric.REWARD_GAIN).fields("problem")
    if not prompts:
        raise NotMeasured
    means = {
        method: _mean([_gain(runs, prompt, method) for prompt in prompts])
        for method in (*MATCHING, MethodName.DRAFT_1, MethodName.DPOK)
    }
    corrected, policy, lean, last_step, rival = means.values()
    numbers = {
        "corrected": corrected,
        "policy": policy,
        "lean": lean,
        "last_step": last_step,
        "rival": rival,
    }
    least = min(corrected.value, policy.value, lean.value)
    return numbers, least > 2 * max(last_step.value, rival.value) and least > 0


def _below(study: StudySchema, rows: Rows, _: Claims) -> Answer:
    runs = rows.of(study)
    gains = [
        _gain(runs, prompt, MethodName.DPOK, training)
        for prompt in COMPOSED
        for training in _trainings(runs)
    ]
    numbers = {
        "runs": made(len(gains), *gains),
        "best": made(max(each.value for each in gains), *gains, digits=2),
        "worst": made(min(each.value for each in gains), *gains, digits=2),
    }
    return numbers, numbers["best"].value < 0


def _ahead(study: StudySchema, rows: Rows, _: Claims) -> Answer:
    """Welch's test on every prompt, Holm's correction over the prompts."""
    runs = rows.of(study)
    prompts = runs.where(Metric.REWARD_GAIN).fields("problem")
    pairs, levels = [], []
    for prompt in prompts:
        mine, theirs = (
            [_gain(runs, prompt, method, training) for training in _trainings(runs)]
            for method in (MethodName.PI_FT, MethodName.DPOK)
        )
        if len(mine) < 2:
            raise NotMeasured
        pairs += list(zip(mine, theirs, strict=True))
        test: Any = stats.ttest_ind(
            [each.value for each in mine], [each.value for each in theirs], equal_var=False
        )
        levels.append(float(test.pvalue))
    if not levels:
        raise NotMeasured
    everything = [each for pair in pairs for each in pair]
    numbers = {
        "ahead": made(sum(a.value > b.value for a, b in pairs), *everything),
        "pairs": made(len(pairs), *everything),
        "sure": made(sum(holm(levels)), *everything),
        "prompts": made(len(levels), *everything),
    }
    return numbers, numbers["ahead"].value == numbers["pairs"].value


def _hacked(study: StudySchema, rows: Rows, _: Claims) -> Answer:
    runs = rows.of(study)
    found = runs.where(problem=HACKED, beta=_beta(runs)).having("beta")
    before = one(found.where(Metric.DIVERSITY, estimator=MethodName.PRE_TRAINED))
    gained = found.where(Metric.REWARD_GAIN).filter(lambda record: record.value > GAINED)
    after = [one(found.where(Metric.DIVERSITY, estimator=record.estimator)) for record in gained]
    if not after:
        raise NotMeasured
    kept = [each.over(before) for each in after]
    lost = [made(100 * (1 - each.value), each) for each in kept]
    counted = count(gained)
    numbers = {
        "methods": made(len(lost), counted, *lost),
        "least": made(min(each.value for each in lost), counted, *lost, digits=2),
        "most": made(max(each.value for each in lost), counted, *lost, digits=2),
    }
    return numbers, numbers["least"].value > 100 * LOST


def _gradients(study: StudySchema, rows: Rows, _: Claims) -> Answer:
    found = rows.of(schemas.SD_GRADIENT_NORM.named(gradient_norm_study(study.name)))
    means = found.where(Metric.MEAN_GRADIENT_SQUARED)
    prompts = means.fields("problem")
    if not prompts:
        raise NotMeasured
    fallen, grown, everything = 0, [], []
    for prompt in prompts:
        first, half, last = (means.where(problem=prompt, part=part).one() for part in (0, 0.5, 1))
        if first is None or half is None or last is None or not first.value:
            raise NotMeasured
        everything += [first, half, last]
        error = math.hypot(first.stderr or 0.0, last.stderr or 0.0)
        fallen += first.value - last.value > BELIEVED * error
        grown.append(half.value / first.value)
    numbers = {
        "fallen": Number(fallen, tuple(everything)),
        "prompts": Number(len(prompts), tuple(everything)),
        "grown": Number(max(grown), tuple(everything), 2),
    }
    return numbers, 0 < fallen < len(prompts) and max(grown) > 2


ASKED = (
    (
        "What is reached of the objective",
        "Of the reward less the KL weight times the divergence the three methods that regress on"
        " adjoints gain most over the pre-trained model, in the mean over the prompts: {corrected}"
        " with martingale-corrected adjoints, {policy} PI-FT, {lean} adjoint matching; DRaFT-1"
        " gains {last_step}, DPOK {rival}. One training each: the three are not told apart.",
        _reached,
    ),
    (
        "DPOK at this budget",
        "DPOK ends below the pre-trained model on both composed prompts in all {runs} trainings, by"
        " {worst} to {best}: so few trajectories are no budget for a method that sees the value of"
        " the reward alone.",
        _below,
    ),
    (
        "PI-FT beside DPOK",
        "Of what both maximise PI-FT gains more than DPOK in {ahead} of {pairs} pairs of trainings;"
        " by Welch's test with Holm's correction this is settled on {sure} of {prompts} prompts.",
        _ahead,
    ),
    (
        "What is paid for the reward",
        "On “four circles” all {methods} methods that gain much reward lose {least}% to {most}% of"
        " the diversity of the pictures.",
        _hacked,
    ),
    (
        "Gradients along training",
        "The mean gradient of PI-FT is smaller after training than before, beyond noise, on"
        " {fallen} of {prompts} prompts, and on one it is {grown} times as large halfway.",
        _gradients,
    ),
)
