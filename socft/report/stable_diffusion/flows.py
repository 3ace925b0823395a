"""Methods on the tiny flow model, each at the best of several rates: a section of the Stable
Diffusion report, and the report of ``socft sd reproduce --scale tiny_flow``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from scipy import stats

from socft.records import Record
from socft.report.gradient_variance.cells import plain, with_error
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, number, text
from socft.study.comparison import LEVEL, pilot_study
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import STABLE_DIFFUSION

STUDY = STABLE_DIFFUSION.named("stable_diffusion_tiny_flow")
STUDIES = (STUDY, STUDY.named(pilot_study(STUDY.name)))
"""The trainings, and the pilots by which their rates were chosen."""
COMMAND = "socft sd reproduce --scale tiny_flow"
LAST = 2
"""Rounds whose paths say what a training has reached when its time is over."""
FIRST = MethodName.ADJOINT_MATCHING
"""The method that the others are held against."""
Trainings = Mapping[int, float]
"""A number of every training, by its seed."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over trainings and half the width of its interval at 95 per cent, by Student's t."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval of independent numbers.

        >>> Interval.of([1.0, 2.0, 3.0]).mean
        2.0
        """
        number_, mean = len(values), math.fsum(values) / len(values)
        if number_ < 2:
            return cls(mean, math.nan)
        spread = math.fsum((each - mean) ** 2 for each in values) / (number_ - 1)
        quantile = float(stats.t(number_ - 1).ppf(1 - LEVEL / 2))
        return cls(mean, quantile * math.sqrt(spread / number_))

    @property
    def markup(self) -> str:
        return with_error(self.mean, self.half)


def adjusted(levels: Sequence[float]) -> list[float]:
    """Holm's adjusted levels of a family of tests: those below a level are rejected at it together.

    >>> [round(each, 3) for each in adjusted([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(levels)), key=levels.__getitem__)
    found, largest = [0.0] * len(levels), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(levels) - place) * levels[i]))
        found[i] = largest
    return found


def ends(runs: Rows, metric: Metric, prompt: str, method: str) -> Trainings:
    """What every training ended with."""
    found = runs.where(metric, prompt, method).having("beta", "rate", "training")
    return {record.setting["training"]: record.value for record in found}


def rounds_of(runs: Rows, metric: Metric, prompt: str, method: str) -> dict[int, list[Record]]:
    """What every training measured in its rounds, in their order."""
    found = runs.where(metric, prompt, method).having("beta", "rate", "training", "round")
    by_training: dict[int, list[Record]] = {}
    for record in sorted(found, key=lambda each: each.setting["round"]):
        by_training.setdefault(record.setting["training"], []).append(record)
    return by_training


def seconds_per_round(runs: Rows, prompt: str, method: str) -> float:
    """The median over the rounds of all trainings, which what else the machine did moves least."""
    found = rounds_of(runs, Metric.SECONDS, prompt, method).values()
    return median([record.value for each in found for record in each])


def at_equal_seconds(runs: Rows, prompt: str, methods: Sequence[str]) -> dict[str, Trainings]:
    """Gain in the objective of the paths that every training drew last, in the time in which the
    fastest method ends.

    The paths are those of training, few and by the current layers, so that these numbers have more
    noise than those of the pictures at the end.
    """
    seconds = {method: seconds_per_round(runs, prompt, method) for method in methods}
    found: dict[str, Trainings] = {}
    for method in methods:
        kls = rounds_of(runs, Metric.KL, prompt, method)
        before = pretrained(runs, prompt, method)
        gains: dict[int, float] = {}
        for training, rewards in rounds_of(runs, Metric.REWARD, prompt, method).items():
            affordable = math.floor(len(rewards) * min(seconds.values()) / seconds[method])
            end = max(affordable, LAST)
            worth = [
                reward.value - reward.setting["beta"] * kl.value
                for reward, kl in zip(rewards, kls[training], strict=True)
            ][end - LAST : end]
            gains[training] = math.fsum(worth) / LAST - before
        found[method] = gains
    return found


def pretrained(runs: Rows, prompt: str, method: str) -> float:
    """The mean reward of the pre-trained model's pictures, those of all trainings."""
    rewards, gains = (
        ends(runs, metric, prompt, method) for metric in (Metric.REWARD, Metric.REWARD_GAIN)
    )
    return math.fsum(rewards[each] - gains[each] for each in rewards) / len(rewards)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more of the objective a method gains than `FIRST`, training by training."""

    prompt: str
    method: str
    interval: Interval
    level: float


def differences(runs: Rows) -> list[Difference]:
    """Of every other method on every prompt, by paired t-tests with Holm's correction over all."""
    found: list[Difference] = []
    for prompt in runs.fields("problem"):
        first = ends(runs, Metric.OBJECTIVE_GAIN, prompt, FIRST)
        for method in methods_of(runs):
            theirs = ends(runs, Metric.OBJECTIVE_GAIN, prompt, method)
            shared = sorted(first.keys() & theirs.keys())
            if method == FIRST or len(shared) < 2:
                continue
            away = [theirs[each] - first[each] for each in shared]
            test: Any = stats.ttest_1samp(away, 0.0)
            found.append(Difference(prompt, method, Interval.of(away), float(test.pvalue)))
    levels = adjusted([each.level for each in found])
    return [dataclasses.replace(each, level=p) for each, p in zip(found, levels, strict=True)]


def methods_of(runs: Rows) -> list[str]:
    """The methods, in the order in which they were trained."""
    return runs.where(Metric.OBJECTIVE_GAIN).fields("estimator")


def findings(runs: Rows) -> str:
    """Which differences are settled, in words."""
    found = differences(runs)
    if not found:
        return f"Which method gains most: {NOT_MEASURED}."
    sure = [each for each in found if each.level < LEVEL]
    said = "; ".join(
        f"{text(each.method)} gains {'more' if each.interval.mean > 0 else 'less'} than"
        f" {text(FIRST)} on “{text(each.prompt)}” ({each.interval.markup})"
        for each in sure
    )
    settled = f"Of {len(found)} differences from {text(FIRST)} {len(sure)} are settled"
    return f"{settled}: {said}." if sure else f"{settled}."


def table(runs: Rows) -> str:
    """What every method reaches on every prompt."""
    away = {(each.prompt, each.method): each for each in differences(runs)}
    methods, body = methods_of(runs), []
    for prompt in runs.where(Metric.OBJECTIVE_GAIN).fields("problem"):
        body.append([text(prompt)])
        timed = at_equal_seconds(runs, prompt, methods)
        for method in methods:
            cells = [
                Interval.of([*ends(runs, metric, prompt, method).values()]).markup
                for metric in (Metric.OBJECTIVE_GAIN, Metric.KL, Metric.ACCURACY_GAIN)
            ]
            other = away.get((prompt, method))
            rates = runs.where(Metric.OBJECTIVE_GAIN, prompt, method).distinct("rate")
            body.append(
                [
                    text(method),
                    ", ".join(map(plain, rates)),
                    *cells,
                    "" if other is None else other.interval.markup,
                    "" if other is None else number(other.level, 2),
                    number(seconds_per_round(runs, prompt, method), 2),
                    Interval.of([*timed[method].values()]).markup,
                ]
            )
    trainings = len(runs.distinct("training"))
    header = ("", "rate", "objective", "KL", "checker", "difference", "level", "s/round", "in time")
    return Table(
        header=header,
        rows=body or [[NOT_MEASURED, *[""] * (len(header) - 1)]],
        caption=f"""The tiny flow model after the same number of sampled trajectories, {trainings}
            trainings from fresh seeds each: gains over the pre-trained model in the objective and
            in the checker's judgement, the divergence, the difference of the gain in the objective
            from that of {text(FIRST)}, training by training, and its level with Holm's correction
            over all of them. Errors are half the widths of intervals at 95 per cent by Student's t
            over trainings. In time: the gain in the objective on the last {LAST} rounds of paths
            that end before the fastest method does.""",
        label="flow-reached",
        align="llrrrrrrr",
    ).markup


def gains_by_rate(pilots: Rows, method: str) -> dict[float, float]:
    """Mean gain in the objective of the pilots of a method, by rate in increasing order."""
    found = pilots.where(Metric.OBJECTIVE_GAIN, estimator=method)
    return {
        rate: Interval.of([each.value for each in found.where(rate=rate)]).mean
        for rate in found.distinct("rate")
    }


def is_at_edge(gains: Mapping[float, float]) -> bool:
    """Whether the greatest gain is at the first or the last rate."""
    return max(gains, key=lambda rate: gains[rate]) in (min(gains), max(gains))


def at_edges(pilots: Rows) -> str:
    """Whose best rate is no better than known to a bound, in words; nothing if nobody's is."""
    found = [
        text(method) for method in methods_of(pilots) if is_at_edge(gains_by_rate(pilots, method))
    ]
    if not found:
        return ""
    return (
        f"The best rate of {', '.join(found)} lies at the edge of the grid: one beyond may suit"
        " them better, and what they lack here is no verdict on them."
    )


def rates(pilots: Rows) -> str:
    """What the pilots gained, by which rates were chosen."""
    grid, body = pilots.distinct("rate"), []
    for method in methods_of(pilots):
        gains = gains_by_rate(pilots, method)
        best = max(gains.values())
        cells = (
            NOT_MEASURED if (gain := gains.get(rate)) is None else number(gain, 2) for rate in grid
        )
        shown = [
            f"*{cell}*" if gains.get(rate) == best else cell
            for rate, cell in zip(grid, cells, strict=True)
        ]
        body.append([text(method), *shown, "yes" if is_at_edge(gains) else "no"])
    return Table(
        header=("rate", *map(plain, grid), "at the edge"),
        rows=body or [[NOT_MEASURED, *[""] * (len(grid) + 1)]],
        caption="""Gain in the objective of the pilots, whose seeds are none of the trainings', in
            the mean over the prompts: the rate of the greatest is the method's own.""",
        label="flow-rates",
        align="l" + "r" * len(grid) + "l",
    ).markup


def section(runs: Rows, pilots: Rows) -> str:
    """The section, of what was measured: the pilots alone, or the trainings too."""
    if not pilots:
        return f"{NOT_MEASURED} (`{COMMAND}`)"
    return rf"""
The tiny flow model is a small Stable Diffusion 3 of the same captioned shapes; its chain is the
memoryless DDIM(1) on the linear interpolant, its reward and its checker those of the other model.
Every method has a learning rate of its own, chosen by pilots (@flow-rates). Flow-GRPO and
DiffusionNFT see the value of the reward alone and weigh the divergence as published, not by
$beta$. {at_edges(pilots)}

{rates(pilots)}

All trainings of one seed draw their paths and, at the end, their pictures from the same noise, and
no two seeds share any, so that the spread over trainings is all there is of error. The clock ran
while the machine did other work, and methods took turns; medians over rounds are what is compared
in time. {findings(runs)}

{table(runs) if runs else f"The trainings: {NOT_MEASURED} (`{COMMAND}`)."}
"""
