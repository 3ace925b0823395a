"""The sentences on runs that end below their best follow from the records."""

from __future__ import annotations

import math
import re

import pytest
from scipy import stats

from socft.records import Record
from socft.report.rows import Rows
from socft.report.stable_diffusion import flows, objective
from socft.report.stable_diffusion.stability import reasons
from socft.report.stable_diffusion.tables import ahead_at_the_best_rate, mean_of_trainings
from socft.study.comparison import LEVEL, holm
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

BETA = 0.02


def drop(method: str, value: float, prompt: str = "p", **changed: object) -> Record:
    return Record(
        "s", prompt, "drop", value, {"beta": BETA} | changed, estimator=method, stderr=0.1
    )


def gradients(agreement: float, alignment: float, stderr: float, prompt: str = "p") -> list[Record]:
    """At the policy that DDPO ended with, and quite different ones at another."""

    def at(policy: str, method: str, metric: str, value: float, error: float) -> Record:
        return Record(
            "s",
            prompt,
            metric,
            value,
            {"beta": BETA, "policy": policy},
            estimator=method,
            stderr=error,
        )

    return [
        at("DRaFT-1", method, metric, -0.77, 0.01)
        for method in (MethodName.PI_FT, "DDPO")
        for metric in ("agreement", "alignment")
    ] + [
        at("DDPO", MethodName.PI_FT, "agreement", 0.8, 0.01),
        at("DDPO", MethodName.PI_FT, "alignment", 1.0, 0.0),
        at("DDPO", "DDPO", "agreement", agreement, stderr),
        at("DDPO", "DDPO", "alignment", alignment, stderr),
    ]


def told(records: list[Record]) -> str:
    """As it is read: without markup."""
    markup = reasons(Rows(tuple(records)), BETA)
    return re.sub(r'#"([^"]*)";|#text\(.*\)\[([^]]*)\]', r"\1\2", markup).replace("$", "")


def test_nothing_is_said_where_nothing_falls():
    assert told([]) == ""
    assert (
        told([drop(MethodName.PI_FT, 0.3), drop("DPOK", 0.39)])
        == "No run ends below its best by more than noise."
    )


def test_what_was_not_measured_is_not_explained():
    found = told([drop(MethodName.PI_FT, 0.0), drop("DPOK", 0.5)])
    assert "DPOK on “p”: why was not measured." in found
    assert MethodName.PI_FT not in found


@pytest.mark.parametrize(
    ("own", "alignment", "stderr", "reason"),
    [
        (0.8, 0.3, 0.1, "it climbs something else"),
        (0.8, -0.5, 0.1, "it climbs something else"),
        (0.8, 0.3, 0.2, "why is not decided"),
        (0.8, 1.0, 0.01, "why is not decided"),
        (0.1, 1.0, 0.01, "it is noisier"),
    ],
)
def test_a_reason_is_given_beyond_four_standard_errors(
    own: float, alignment: float, stderr: float, reason: str
):
    assert f"DDPO on “p”: {reason}" in told([drop("DDPO", 5.0), *gradients(own, alignment, stderr)])


def test_every_prompt_has_its_own_reason():
    records = (
        gradients(0.8, 0.2, 0.01, "p")
        + gradients(0.8, 0.7, 0.1, "q")
        + gradients(0.8, -1.0, 0.01, "r")
    )
    found = told([drop("DDPO", 5.0, "p"), drop("DDPO", 5.0, "q"), drop("DDPO", 0.0, "r"), *records])
    lines = [line for line in found.splitlines() if line.startswith("- ")]
    assert [line.split(":")[0] for line in lines] == ["- DDPO on “p”", "- DDPO on “q”"]
    assert "climbs something else" in lines[0]
    assert "not decided" in lines[1]


def test_a_run_that_differs_in_one_setting_is_held_against_the_one_that_does_not():
    """Another KL weight has a comparison of gradients of its own."""
    changed = [
        drop("DDPO", 5.0, limit="none"),
        drop("DRaFT-1", 5.0, rate=0.5),
        drop("DRaFT-1", 5.0, training=2),
        drop("DRaFT-1", 0.0, training=3),
    ]
    lines = [
        line
        for line in told(
            [drop("DDPO", 0.0), drop("DRaFT-1", 6.0), *changed, drop("DDPO", 5.0, beta=0.5)]
        ).splitlines()
        if line[:1] == "-"
    ]
    assert [line.split(":")[0] for line in lines] == [
        "- DRaFT-1 on “p”",
        "- DDPO on “p”, without the limit on target controls",
        "- DRaFT-1 on “p”, at the learning rate 0.5",
        "- DRaFT-1 on “p”, training 2",
        "- DDPO on “p”, beta = 0.5",
    ]
    for line, unchanged, difference in zip(
        lines[1:4],
        ("with the limit by ", "at the shared learning rate by ", "from the first seed by "),
        ("5.0", "-1.0", "-1.0"),
        strict=True,
    ):
        assert unchanged in line
        assert f"a difference of {difference} plus.minus 0.1" in line  # 0.14, of two drops
    assert "why was not measured" in lines[4]


def gain(method: str, value: float, **changed: object) -> Record:
    return Record(
        "s", "p", Metric.REWARD_GAIN, value, {"beta": BETA} | changed, estimator=method, stderr=0.03
    )


def test_means_over_trainings_have_the_error_of_pictures_and_that_of_trainings():
    rows = Rows(
        (
            gain(MethodName.PI_FT, 1.0),
            gain(MethodName.PI_FT, 2.0, training=2),
            gain(MethodName.PI_FT, 3.0, training=3),
            gain(MethodName.PI_FT, 9.0, limit="none"),
        )
    )
    mean, error = mean_of_trainings(rows, Metric.REWARD_GAIN, "p", MethodName.PI_FT, BETA) or (
        0.0,
        0.0,
    )
    assert (mean, error) == pytest.approx((2.0, (0.03**2 + 1.0 / 3) ** 0.5))
    assert mean_of_trainings(rows, Metric.REWARD_GAIN, "p", MethodName.DPOK, BETA) is None
    assert mean_of_trainings(
        Rows((gain(MethodName.DPOK, 1.0),)), Metric.REWARD_GAIN, "p", MethodName.DPOK, BETA
    ) == pytest.approx((1.0, 0.03))


@pytest.mark.parametrize(("best", "ahead"), [(1.9, 1), (2.1, 0)])
def test_the_best_rate_of_the_rival_is_what_counts(best: float, ahead: int):
    rows = Rows(
        (
            gain(MethodName.PI_FT, 1.0),
            gain(MethodName.PI_FT, 3.0, training=2),
            gain(MethodName.DPOK, 0.0),
            gain(MethodName.DPOK, best, rate=0.1),
            gain(MethodName.DPOK, 0.1, rate=0.2),
        )
    )
    assert ahead_at_the_best_rate(rows, Metric.REWARD_GAIN, BETA) == (ahead, 1)


def reach(method: str, prompt: str, gained: float, kl: float, **changed: object) -> list[Record]:
    """Gain in reward and divergence of a training."""
    return [
        Record("s", prompt, metric, value, {"beta": BETA} | changed, estimator=method, stderr=error)
        for metric, value, error in ((Metric.REWARD_GAIN, gained, 0.03), (Metric.KL, kl, 2.0))
    ]


def test_the_objective_is_what_reward_and_divergence_leave():
    rows = Rows(
        (
            *reach(MethodName.PI_FT, "p", 1.0, 10.0),
            *reach(MethodName.PI_FT, "p", 2.0, 30.0, training=2),
            *reach(MethodName.DPOK, "p", 0.1, 100.0),
        )
    )
    found = objective.gains(rows, BETA)
    assert list(found) == [MethodName.PI_FT, MethodName.DPOK]
    value, error = found[MethodName.PI_FT]["p"]
    assert value == pytest.approx(1.5 - 20 * BETA)
    spread = math.sqrt(0.03**2 + 0.5 / 2)
    assert error == pytest.approx(math.hypot(spread, BETA * math.sqrt(2.0**2 + 200.0 / 2)))
    assert objective.below(found[MethodName.PI_FT]) == 0
    assert objective.below(found[MethodName.DPOK]) == 1
    assert f'{MethodName.DPOK}"; on 1 of 1' in objective.findings(rows, BETA)


def compared(
    method: str, gains: list[float], prompt: str = "p", seconds: float = 1.0, rounds: int = 4
) -> list[Record]:
    """Trainings with these gains, whose rounds are worth one more each than the one before."""

    def made(metric: Metric, value: float, training: int, **more: object) -> Record:
        setting = {"beta": 0.5, "rate": 0.1, "training": training} | more
        return Record(flows.STUDY.name, prompt, metric, value, setting, estimator=method)

    found = []
    for training, gain in enumerate(gains, 1):
        found += [
            made(Metric.OBJECTIVE_GAIN, gain, training),
            made(Metric.REWARD, 10.0, training),
            made(Metric.REWARD_GAIN, 3.0, training),
            made(Metric.KL, 2.0, training),
            made(Metric.ACCURACY_GAIN, 0.1, training),
        ]
        for number in range(rounds):
            found += [
                made(Metric.REWARD, 8.0 + number, training, round=number),
                made(Metric.KL, 2.0, training, round=number),
                made(Metric.SECONDS, seconds * (1 + (number == 1) * 9), training, round=number),
            ]
    return found


def flow_rows(records: list[Record]) -> Rows:
    return Rows(tuple(records), studies=(flows.STUDY,))


def test_an_interval_is_students():
    values = [0.3, -0.1, 0.8, 0.4, 0.2]
    expected = stats.t.interval(0.95, 4, loc=0.32, scale=stats.sem(values))
    found = flows.Interval.of(values)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx(expected)
    assert math.isnan(flows.Interval.of([1.0]).half)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0.5, 0.02, 0.001, 0.03], [0.5, 0.06, 0.004, 0.06]),
        ([0.03, 0.04], [0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([], []),
    ],
)
def test_levels_that_holm_adjusts_reject_what_his_procedure_does(
    levels: list[float], expected: list[float]
):
    found = flows.adjusted(levels)
    assert found == pytest.approx(expected)
    assert [each < LEVEL for each in found] == holm(levels)


def test_differences_are_paired_by_training_and_corrected_over_all():
    first, more = [0.1, 0.5, 0.9, 0.3], [0.2, 0.6, 1.0, 0.41]
    rows = flow_rows(
        [
            *compared(MethodName.ADJOINT_MATCHING, first),
            *compared(MethodName.DRAFT_1, more),
            *compared(MethodName.FLOW_GRPO, first[::-1]),
        ]
    )
    found = {each.method: each for each in flows.differences(rows)}
    assert found.keys() == {MethodName.DRAFT_1, MethodName.FLOW_GRPO}
    paired = found[MethodName.DRAFT_1]
    assert paired.interval.mean == pytest.approx(0.1025)
    assert paired.level == pytest.approx(2 * float(stats.ttest_rel(more, first).pvalue))
    assert paired.level < LEVEL < found[MethodName.FLOW_GRPO].level
    said = flows.findings(rows)
    assert "Of 2 differences" in said
    assert "1 are settled" in said
    assert "gains more than" in said


def test_in_the_same_time_a_slower_method_has_had_fewer_rounds():
    """The pre-trained model is worth 7, a round its number and 8, less a half of 2; the slow round
    that every training has is no matter.
    """
    rows = flow_rows(
        [
            *compared(MethodName.ADJOINT_MATCHING, [0.0, 0.0], seconds=2.0),
            *compared(MethodName.DRAFT_1, [0.0, 0.0], seconds=1.3),
            *compared(MethodName.FLOW_GRPO, [0.0, 0.0], seconds=1.0),
        ]
    )
    found = flows.at_equal_seconds(rows, "p", flows.methods_of(rows))
    assert found[MethodName.FLOW_GRPO] == {1: 2.5, 2: 2.5}
    assert found[MethodName.DRAFT_1] == {1: 1.5, 2: 1.5}
    assert found[MethodName.ADJOINT_MATCHING] == {1: 0.5, 2: 0.5}
