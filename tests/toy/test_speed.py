"""Exponents of costs, and what the study of costs promises."""

from __future__ import annotations

import pytest

from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from toy.studies import speed


@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_the_exponent_of_a_power_law_is_its_power(power: float):
    sizes = [3, 5, 40, 100]
    found = speed.exponent(sizes, [0.2 * size**power for size in sizes])
    assert found == pytest.approx(power, abs=1e-12)


def test_a_cost_that_grows_has_a_record_per_size_and_an_exponent():
    axis = "steps, adjoint matching"
    records = speed.growth_task(axis, runs=1, sizes=2)
    schemas.SPEED.check(records)
    seconds = [each.value for each in records if each.metric == Metric.SECONDS]
    assert [each.setting["size"] for each in records[:-1]] == list(speed.GROWING[axis][1][:2])
    assert all(each > 0 for each in seconds)
    assert records[-1].value == pytest.approx(speed.exponent([25, 50], seconds))


def test_what_became_quicker_says_by_how_much(monkeypatch: pytest.MonkeyPatch):
    (name,) = [name for name, each in speed.AWAITED.items() if each[4] == 12.0]
    done = []
    monkeypatch.setitem(speed.AWAITED, name, (work(done), *speed.AWAITED[name][1:]))
    seconds, speedup = speed.awaited_task(name, 2)
    schemas.SPEED.check([seconds, speedup])
    assert done == [0, 1, 1]
    assert (seconds.published, seconds.bound) == (12.0, 1.0)
    assert speedup.value * seconds.value == pytest.approx(12.0)


def work(done: list[int]) -> speed.Work:
    """Takes a while, and notes its sizes."""

    def call(size: int) -> object:
        done.append(size)
        return sum(range(100_000))

    return call
