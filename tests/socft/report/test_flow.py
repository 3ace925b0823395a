"""What the report on flow models says follows from its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from socft.estimators.catalogue import CATALOGUE
from socft.records import Record
from socft.report.claim_records import Claims
from socft.report.flow import budget, budget_tables, samplers, tables
from socft.report.flow.report import REPORT, compose
from socft.report.rows import Rows
from socft.report.typeset import compile_pdf
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.predictions import SamplerPrediction
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


@pytest.mark.parametrize(("deviation", "normal"), [(8.0, "3.9"), (9.0, "4.1")])
def test_predictions_beyond_the_limit_are_marked(deviation: float, normal: str):
    """Student's law with seven degrees of freedom has heavier tails than the normal one."""
    cells = tables.predictions(rows(deviation))
    assert f"${normal}$" in cells
    assert (f"*${normal}$*" in cells) == (float(normal) > 4)


def test_many_repetitions_make_students_law_normal():
    (row,) = found(MethodName.RAM, "samples", {Metric.DEVIATION: 3.0})
    many = dataclasses.replace(row, seeds=100_000)
    assert tables.equivalent(many) == pytest.approx(3.0, abs=1e-3)
    assert tables.equivalent(row) == pytest.approx(2.34, abs=0.02)


def test_what_has_no_prediction_is_shown_without_one():
    cells = tables.predictions(rows(1.0))
    assert '[#"DanceGRPO";],\n  [–],\n  [$0.9000$ $plus.minus$ $0.01$],\n  [–],' in cells


def test_every_method_of_the_study_has_a_limit_in_words():
    assert schemas.FIXED_POINTS.estimators is not None
    for name in schemas.FIXED_POINTS.estimators:
        assert tables.limit_of(name).startswith(("(", '#"')), name
    assert CATALOGUE[MethodName.DDPO].estimates.kind in ("biased",)


def test_rates_that_are_not_as_predicted_are_named():
    def largest(source: str, value: float) -> list[Record]:
        return found(MethodName.RAM, source, {Metric.LARGEST_RATE: value})

    near, apart = (
        Rows((*largest("equation", 1.2), *largest("population", swept))) for swept in (1.3, 1.8)
    )
    assert tables.rates_apart(near) == ""
    assert "at $b = 2$ ($1.20$ and $1.80$)" in tables.rates_apart(apart)


@pytest.mark.parametrize(("deviation", "named"), [(7.5, True), (3.0, False), (9.0, False)])
def test_a_row_near_the_limit_that_was_not_run_again_is_named(deviation: float, named: bool):
    near = ': #"RAM"; on overlapping modes, $3.8$'
    assert tables.run_once(rows(deviation)) == (near if named else "")
    again = found(MethodName.RAM, "repeated", {Metric.DEVIATION: 1.0})
    more = dataclasses.replace(rows(deviation), records=(*rows(deviation).records, *again))
    assert tables.run_once(more) == ""


def test_the_report_compiles_with_and_without_records():
    for each in (rows(5.0), Rows((), studies=REPORT.studies)):
        document = compose(each, Claims())
        assert compile_pdf(document.source, document.pictures).startswith(b"%PDF")


def predicted(value: float) -> Record:
    return Record(
        schemas.SDE_ODE.name,
        ProblemName.FLOW_LINEAR,
        Metric.PREDICTED,
        value,
        {
            "prediction": str(SamplerPrediction.OWN_SAMPLER),
            "trained": 0.7,
            "low": 0.9,
            "high": None,
        },
    )


def test_predictions_that_miss_are_counted_and_shown():
    found = Rows((predicted(0.95), predicted(0.8), predicted(2.0)), studies=(schemas.SDE_ODE,))
    cells = samplers.predictions(found)
    assert "[$2$ of $3$],\n  [Gaussian, $r = x$, $0.7$: $0.800$]" in cells
    assert samplers.holds(predicted(0.9))


def budgeted(method: MethodName, metric: Metric, value: float, at: str = "optimum") -> Record:
    place = {"T": 10, "beta": 2.0, "at": at, "low": 1, "high": 2}
    how = {"rate": 0.1, "closed": False, "updates": 32, "batch": 128, "differs": True}
    return Record(
        schemas.FLOW_BUDGET.name,
        ProblemName.FLOW_OVERLAPPING,
        metric,
        value,
        place | (how if at == "trained" else {}),
        method,
        stderr=0.01 if metric == Metric.BIAS else None,
        seeds=10,
        evaluations=40,
    )


def test_methods_with_another_limit_stand_behind_the_ranked_ones_without_a_rank():
    records = [
        budgeted(MethodName.RAM, Metric.BIAS, 0.3),
        budgeted(MethodName.RAM, Metric.ERROR_AT_BUDGET, 1.5),
        budgeted(MethodName.FULL_ADJOINT, Metric.BIAS, 0.0),
        budgeted(MethodName.FULL_ADJOINT, Metric.RANK, 2),
        budgeted(MethodName.ADJOINT_MATCHING, Metric.BIAS, 0.0),
        budgeted(MethodName.ADJOINT_MATCHING, Metric.RANK, 1),
    ]
    cells = budget_tables.proposals(Rows(tuple(records), studies=(schemas.FLOW_BUDGET,)))
    places = [cells.index(f'#"{name}";') for name in ("adjoint matching", "full adjoint", "RAM")]
    assert places == sorted(places)
    last = cells[places[2] :]
    assert "$0.30$ $plus.minus$ $0.01$" in last
    assert "$1.5$ ($1.0$–$2.0$)" in last
    assert "[–]" in last
    assert "$2$ [1–2]" in cells[places[1] : places[2]]


def trained(*gaps: tuple[MethodName, float]) -> Rows:
    ordered = sorted(gaps, key=lambda pair: pair[1])
    records = [
        record
        for rank, (name, gap) in enumerate(ordered, 1)
        for record in (
            budgeted(name, Metric.OBJECTIVE_GAP, gap, "trained"),
            budgeted(name, Metric.RANK, rank, "trained"),
        )
    ]
    return Rows(tuple(records), studies=(schemas.FLOW_BUDGET,))


def test_trainings_are_sorted_and_marked():
    found = trained((MethodName.RAM, 0.03), (MethodName.ADJOINT_MATCHING, 0.002))
    cells = budget_tables.training(found)
    places = [cells.index(f'#"{name}";') for name in ("adjoint matching", "RAM")]
    assert places == sorted(places)
    assert "[yes]" in cells[places[0] : places[1]]
    assert "[no]" in cells[places[1] :]
    assert "$2.0$\\*†" in cells[places[0] : places[1]]
    assert budget.picture(found).startswith(b"<?xml")


@pytest.mark.parametrize(("gap", "carried"), [(0.03, True), (0.001, False)])
def test_a_finding_about_training_is_withdrawn_where_it_is_not_so(gap: float, carried: bool):
    names = (MethodName.RAM, MethodName.RAM_GROUP_MEAN, MethodName.AWM)
    found = trained((MethodName.ADJOINT_MATCHING, 0.002), *((name, gap) for name in names))
    asked = {each.about: each.ask(found, Claims()) for each in budget.QUESTIONS}
    assert asked["Re-noised samples"].carried is carried
    assert asked["Noise"].carried is None
