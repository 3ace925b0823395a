"""What the report on flow models says follows from its records."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from socft.estimators.catalogue import CATALOGUE
from socft.records import Record
from socft.report.claim_records import Claims
from socft.report.flow import tables
from socft.report.flow.report import REPORT, compose
from socft.report.rows import Rows
from socft.report.typeset import compile_pdf
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

PLACE = {"T": 10, "beta": 2.0}


def found(method: str, source: str, values: Mapping[Metric, float]) -> list[Record]:
    return [
        Record(
            schemas.FIXED_POINTS.name,
            ProblemName.FLOW_OVERLAPPING,
            metric,
            value,
            PLACE | {"source": source},
            method,
            stderr=0.01 if source == "samples" and metric == Metric.REWARD else None,
            seeds=8,
        )
        for metric, value in values.items()
    ]


def rows(deviation: float) -> Rows:
    run = {Metric.TV_TO_TILT: 0.1, Metric.TV_TO_PREDICTION: 0.02, Metric.DEVIATION: deviation}
    return Rows(
        (
            *found("", "tilt", {Metric.REWARD: 0.3}),
            *found(MethodName.RAM, "equation", {Metric.REWARD: 0.25, Metric.TV_TO_TILT: 0.09}),
            *found(MethodName.RAM, "samples", {Metric.REWARD: 0.26, **run}),
            *found(MethodName.DANCE_GRPO, "samples", {Metric.REWARD: 0.9, Metric.TV_TO_TILT: 0.8}),
        ),
        studies=REPORT.studies,
    )


@pytest.mark.parametrize("deviation", [3.9, 4.1])
def test_predictions_beyond_the_limit_are_marked(deviation: float):
    assert (f"*${deviation}$*" in tables.predictions(rows(deviation))) == (deviation > 4)


def test_what_has_no_prediction_is_shown_without_one():
    cells = tables.predictions(rows(1.0))
    assert '[#"DanceGRPO";],\n  [–],\n  [$0.9000$ $plus.minus$ $0.01$],\n  [–],' in cells


def test_every_method_of_the_study_has_a_limit_in_words():
    assert schemas.FIXED_POINTS.estimators is not None
    for name in schemas.FIXED_POINTS.estimators:
        assert tables.limit_of(name).startswith(("(", '#"')), name
    assert CATALOGUE[MethodName.DDPO].estimates.kind in ("biased",)


def test_the_report_compiles_with_and_without_records():
    for each in (rows(5.0), Rows((), studies=REPORT.studies)):
        document = compose(each, Claims())
        assert compile_pdf(document.source, document.pictures).startswith(b"%PDF")
