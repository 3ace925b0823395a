"""Records of repetitions: means, standard errors, and what is left out of them."""

from __future__ import annotations

import math
import statistics

import pytest

from socft.study.repetitions import record_repetitions
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema

SCHEMA = StudySchema("squares", frozenset({Metric.MSE, Metric.BIAS}))


def record_of(*rows: dict, **more):
    return {r.metric: r for r in record_repetitions(SCHEMA, "p", rows, **more)}


def test_a_record_is_the_mean_with_its_standard_error():
    values = [1.0, 2.0, 4.0]
    found = record_of(*({Metric.MSE: v, Metric.BIAS: 1.0} for v in values), setting={"a": 1})
    assert found["mse"].value == pytest.approx(statistics.mean(values))
    assert found["mse"].stderr == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert (found["bias"].value, found["bias"].stderr) == (1.0, 0.0)
    assert {(r.study, r.problem, r.seeds, r.setting["a"]) for r in found.values()} == {
        ("squares", "p", 3, 1)
    }


def test_one_repetition_and_a_divergence_have_no_standard_error():
    assert record_of({Metric.MSE: 1.0})["mse"].stderr is None
    found = record_of({Metric.MSE: 1.0}, {Metric.MSE: math.inf})["mse"]
    assert (found.value, found.stderr, found.seeds) == (math.inf, None, 2)


def test_what_a_repetition_lacks_is_averaged_over_the_others():
    found = record_of({Metric.MSE: 1.0}, {Metric.MSE: 3.0, Metric.BIAS: 5.0})
    assert (found["mse"].value, found["bias"].value) == (2.0, 5.0)


def test_optima_and_published_numbers_are_those_of_the_metric():
    row = {Metric.MSE: 1.0, Metric.BIAS: 2.0}
    found = record_of(
        row, optimum={Metric.MSE: 0.5}, published={Metric.BIAS: 3.0}, seconds=math.nan
    )
    assert (found["mse"].optimum, found["bias"].optimum) == (0.5, None)
    assert (found["mse"].published, found["bias"].published) == (None, 3.0)
    assert found["mse"].seconds is None
