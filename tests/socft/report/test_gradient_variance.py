"""The reports on gradients show what the records say, keep kinds apart, and say what was refused or
not measured.

Records are synthetic, with the settings and metrics of the studies; each value is made to be found
again in the source.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from socft.estimators.catalogue import CATALOGUE, COMPARED
from socft.estimators.estimand import Kind
from socft.records import Record, write
from socft.report import bench
from socft.report.base import Document
from socft.report.claim_records import Claims
from socft.report.gradient_variance import advice as gradient_variance_advice
from socft.report.gradient_variance import curves as gradient_variance_curves
from socft.report.gradient_variance import errors, verdicts
from socft.report.gradient_variance import linear as gradient_variance_linear
from socft.report.gradient_variance import studies as gradient_variance_studies
from socft.report.gradient_variance.cells import ends, value, varying, with_error
from socft.report.gradient_variance.figures import BROAD
from socft.report.gradient_variance.report import REPORT, compose
from socft.report.gradient_variance.tables import (
    COMPARISON_PROBLEMS,
    ComparisonProblem,
    master,
    names,
)
from socft.report.gradient_variance.verdicts import crossing
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, compile_pdf
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from toy.bench import SUITE
from toy.problems import benchmark
from toy.problems.reversed_bsde import LINEAR_PUBLISHED
from toy.situations import situation

ONE = Record("variance", "p", "m", 1.0, {}, versions={"python": "3"}, commit="", dirty=False)
REASON = "the noise is degenerate; choose another estimator."
REFUSED = "reciprocal adjoint matching"
LQ = {"problem": "lq-fine-tuning", "steps": 50, "beta": 1.0, "seed": 0}
TEMPS = (50.0, 20.0, 8.0, 6.0, 1.0)
TRAINED = {
    "full adjoint": Kind.OBJECTIVE_GRADIENT,
    "score function, leave-one-out": Kind.OBJECTIVE_GRADIENT,
    "log-variance": Kind.OBJECTIVE_GRADIENT,
    "adjoint matching": Kind.FIXED_POINT_RESIDUAL,
    "martingale, policy's costate": Kind.FIXED_POINT_RESIDUAL,
    "martingale, policy's costate, cheap": Kind.FIXED_POINT_RESIDUAL,
    "truncated backpropagation, last fifth": Kind.BIASED,
}
SOLVED = {
    "log-variance": Kind.OBJECTIVE_GRADIENT,
    "adjoint matching": Kind.FIXED_POINT_RESIDUAL,
    "SOCM, degree 2": Kind.APPROXIMATE_RESIDUAL,
    "SOCM-adjoint": Kind.APPROXIMATE_RESIDUAL,
    "cross entropy": Kind.BIASED,
}
PIPELINES = (
    "adjoint matching",
    "martingale, fitted costate",
    "time-reversed, exact score",
    "least squares, costate form",
)
NETWORKS = [
    f"{name}, {how}"
    for name in ("time-reversed", "adjoint matching")
    for how in ("published", "network")
]
RECURSION = "fitted Bellman recursion"


def record(
    study: str,
    problem: str,
    metric: str,
    found: float,
    setting: dict,
    name: str = "",
    kind: str = "exact",
    **more,
) -> Record:
    made = Record(study, problem, metric, found, setting, name, kind, **more)
    return dataclasses.replace(made, versions=ONE.versions, commit="", dirty=False)


def measured(name: str, problem: str, setting: dict, size: float) -> Iterator[Record]:
    """What the study of variance records of an estimator in a situation."""
    if name == REFUSED and setting["axis"] in ("noise", "mixture"):
        yield record("variance", problem, "refused", 1.0, setting | {"reason": REASON}, name)
        return
    more = {
        "kind": CATALOGUE[name].kind,
        "seconds": 4e-4,
        "evaluations": 300,
        "peak_mb": 0.0123,
        "seeds": 2,
    }
    yield record("variance", problem, "bias", 0.1 * size, setting, name, stderr=0.0034, **more)
    yield record("variance", problem, "variance", size**2, setting, name, **more)
    yield record("variance", problem, "error_at_budget", size / 7, setting, name, **more)
    if CATALOGUE[name].kind == Kind.BIASED:
        yield record("variance", problem, "fit_variance", size / 3, setting, name, **more)
    if "martingale" in name or "adjoint" in name or "time" in name:
        for k in range(0, 50, 5):
            yield record(
                "variance",
                problem,
                "costate_mse",
                size * math.exp(-k / 20),
                setting | {"k": k},
                name,
                more["kind"],
            )


def situations() -> Iterator[tuple[str, dict]]:
    for scale in (0.0, 1.0, 0.5, 0.9):
        yield "lq-fine-tuning", {**LQ, "d": 4, "scale": scale, "axis": "distance"}
    for d in (1, 16, 64):
        yield "lq-fine-tuning", {**LQ, "d": d, "scale": 0.9, "axis": "dimension"}
    for steps in (10, 30, 100):
        yield "lq-sde", {"d": 2, "steps": steps, "scale": 0.9, "axis": "steps"}
    for horizon in (0.4, 1.2, 4.0):
        yield "lq-sde", {"d": 2, "horizon": horizon, "scale": 0.9, "axis": "horizon"}
    for noise in (1.0, 0.1, 10.0):
        yield "oscillator", {"noise": noise, "scale": 0.9, "axis": "noise"}
    for scale in (0.0, 1.0):
        yield "mixture", {"d": 1, "steps": 50, "scale": scale, "axis": "mixture"}


def variance() -> Iterator[Record]:
    for index, name in enumerate(COMPARED):
        for problem, setting in situations():
            yield from measured(
                name, problem, setting, (1 + index / 3) * (1.05 - 0.9 * setting["scale"])
            )


def linear() -> Iterator[Record]:
    for integrator, gap in (("Euler-Maruyama", 0.00337), ("exponential", 2e-31)):
        yield record("linear", "bsde-linear", "kernel_gap", gap, {"integrator": integrator})
        for name in PIPELINES:
            for noise, paths in [
                *((e, 2000) for e in (0.5, 1.0, 2.0, 5.0)),
                *((1.0, n) for n in (50, 100, 500, 5000, 10000)),
            ]:
                setting = {
                    "noise": noise,
                    "integrator": integrator,
                    "paths": paths,
                    "function_class": "linear",
                }
                found = 0.003 + 1e-4 * noise if "reversed" in name else 10 * noise**2 / paths
                for metric in ("mse", "chain_mse"):
                    more = {
                        "stderr": found / 9,
                        "seconds": 0.25,
                        "published": 0.0123 if metric == "mse" else None,
                    }
                    yield record(
                        "linear", "bsde-linear", metric, found, setting, name, "unbiased", **more
                    )
    for noise, metric in itertools.product((0.5, 1.0, 2.0, 5.0), ("mse", "chain_mse")):
        setting = {
            "noise": noise,
            "integrator": "Euler-Maruyama",
            "paths": 2000,
            "function_class": "network",
        }
        more = {
            "stderr": 0.01,
            "seconds": 60.0,
            "published": 0.07 if metric == "mse" else None,
            "seeds": 3,
        }
        for name in (
            "time-reversed, published",
            "time-reversed, network",
            "martingale, fitted costate, first order, network",
        ):
            yield record("linear", "bsde-linear", metric, 0.06, setting, name, "biased", **more)


def others() -> Iterator[Record]:
    return itertools.chain(pendulum(), mixture(), sweeps(), limits())


def pendulum() -> Iterator[Record]:
    more = {"stderr": 0.002, "seconds": 30.0, "optimum": 1.4512, "published": 1.603, "seeds": 3}
    setting = {"paths": 10000, "function_class": "bumps"}
    for name in sorted(schemas.PENDULUM.estimators or ()):
        for metric in ("cost", "cost_simulated", "mse", "mse_descent"):
            yield record(
                "pendulum", "bsde-pendulum", metric, 1.4667, setting, name, "unbiased", **more
            )
    yield record("pendulum", "bsde-pendulum", "label_noise", 41.5, {}, "antithetic correction")


def mixture() -> Iterator[Record]:
    costs = {"optimum": 0.17, "published": 0.395}
    others = {"optimum": 0.0, "published": None}
    names = (*PIPELINES, *NETWORKS, "full martingale, fitted costate, network", RECURSION)
    for name, metric, temp in itertools.product(names, ("cost", "regret", "w1"), TEMPS):
        more = {"stderr": 0.01, "seeds": 3} | (costs if metric == "cost" else others)
        setting = {"temp": temp}
        yield record("mixture", "bsde-mixture", metric, 3 / temp, setting, name, "unbiased", **more)
    for temp in TEMPS:
        yield record("mixture", "bsde-mixture", "optimum", 1 / temp, {"temp": temp})


def sweeps() -> Iterator[Record]:
    axes = (("dt", 0.1), ("dt", 0.2), ("noise", 0.1), ("noise", 10.0))
    more = {"stderr": 0.001, "published": 0.037}
    for name, (axis, each) in itertools.product(PIPELINES, axes):
        given = {"dt": 0.1, "noise": 1.0, "axis": axis, "policy": "given", "rounds": int(each * 10)}
        setting = given | {axis: each}
        yield record("lq_sweeps", "oscillator", "mse", each / 7, setting, name, "unbiased", **more)


def limits() -> Iterator[Record]:
    places = ((0.02, 4.0), (0.1, 4.0), (0.4, 4.0), (0.02, 0.5), (0.02, 8.0))
    names = ("chain's optimum", "time-reversed, exact score")
    for name, (dt, horizon) in itertools.product(names, places):
        setting = {"dt": dt, "horizon": horizon, "axis": "limit"}
        published = 2.2e-6 if dt < 0.1 else None
        off = dt**2 / horizon
        yield record(
            "lq_sweeps", "oscillator", "limit_mse", off, setting, name, published=published
        )


def trained(study: str, problem: str) -> Iterator[Record]:
    for metric in gradient_variance_studies.PARTS if study == "training" else ():
        yield record(study, problem, metric, 0.0123, {"d": 4})
    for name, kind in (TRAINED if study == "training" else SOLVED).items():
        if study == "training":
            yield record(study, problem, "pilot_gap", 0.1, {"rate": 0.03}, name, kind)
        for iteration in range(0, 201, 20):
            setting = {"rate": 0.03, "batch": 64, "iterations": 200, "d": 4, "iteration": iteration}
            for metric in (
                "objective_gap",
                "kl",
                "wasserstein2",
                "gradient_noise",
                "target_noise",
                "bias_gap",
                Metric.CONTROL_L2,
            ):
                found = 2.0 * math.exp(-iteration / 40) + 0.001
                yield record(
                    study,
                    problem,
                    metric,
                    found,
                    setting,
                    name,
                    kind,
                    stderr=found / 8,
                    evaluations=12800 * iteration,
                )


def synthetic() -> Rows:
    training = [
        *trained("training", "lq-fine-tuning"),
        *trained("training", "mixture"),
        *trained("socm", "ou-linear"),
    ]
    return Rows((*variance(), *linear(), *others(), *training))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return synthetic()


@pytest.fixture(scope="module")
def composed(rows) -> Document:
    return compose(rows, Claims())


def lines(markup: str, problem: ComparisonProblem, columns: int = 3) -> list[list[str]]:
    """The cells of the rows of a master table."""
    (body,) = (line.strip() for line in markup.splitlines() if line.strip().startswith('[#"'))
    cells, width = (
        body.removesuffix(", rule(0.8pt))").split("rule(0.8pt)")[0][1:].split("], ["),
        1 + columns * len(problem.scales) + 3,
    )
    return [cells[index : index + width] for index in range(0, len(cells), width)]


def test_the_catalogue_says_what_estimators_estimate():
    where = situation(benchmark("lq-fine-tuning", d=1), 0.9)
    for name in COMPARED:
        assert CATALOGUE[name].make(where.context).estimates == CATALOGUE[name].estimates, name


def test_a_master_table_has_the_numbers_of_its_records(rows):
    problem = COMPARISON_PROBLEMS[0]
    table = lines(master(rows, problem, Kind.OBJECTIVE_GRADIENT), problem)
    shown = {row[0]: row[1:] for row in table}
    assert set(shown) == {
        f'#"{name}";' for name in COMPARED if CATALOGUE[name].kind == Kind.OBJECTIVE_GRADIENT
    }
    index = COMPARED.index("full adjoint")
    for position, scale in enumerate(problem.scales):
        size = (1 + index / 3) * (1.05 - 0.9 * scale)
        cells = shown['#"full adjoint";'][3 * position : 3 * position + 3]
        bias = cells[0].strip("$").split(" plus.minus ")
        assert [float(each) for each in bias] == [pytest.approx(0.1 * size, abs=5e-4), 0.003]
        assert [float(each.strip("$")) for each in cells[1:]] == [
            pytest.approx(each, rel=5e-2) for each in (size**2, size / 7)
        ]
    assert shown['#"full adjoint";'][9:] == ["$0.40$", "$300$", "$0.012$"]


def test_no_table_of_estimators_mixes_kinds(rows):
    for problem in COMPARISON_PROBLEMS:
        for kind in Kind:
            columns = 4 if kind == Kind.BIASED else 3
            table = lines(master(rows, problem, kind), problem, columns)
            shown = {row[0][2:-2] for row in table}
            assert shown, kind
            assert {CATALOGUE[name].kind for name in shown} == {kind}
    for name in ("lq-fine-tuning", "mixture"):
        tables = re.split(r"(?=#figure\()", gradient_variance_studies.training(rows, name))[1:]
        trained = [kind for kind in Kind if kind in TRAINED.values()]
        for table, kind in zip(tables, trained, strict=True):
            assert {name for name in TRAINED if f'#"{name}";' in table} == {
                n for n in TRAINED if TRAINED[n] == kind
            }


def test_the_suite_has_a_table_for_every_kind(rows):
    tables = re.split(r"(?=#figure\()", gradient_variance_studies.socm(rows))[1:]
    for table, kind in zip(tables, Kind, strict=True):
        assert {name for name in SOLVED if f'#"{name}";' in table} == {
            n for n in SOLVED if SOLVED[n] == kind
        }
        assert table.count('[#emph[#"ou-linear";]]') == 1


def test_curves_have_no_column_for_a_kind_that_was_not_trained(rows):
    some = Rows(tuple(r for r in rows.of(schemas.SOCM) if r.kind != Kind.BIASED))
    wanted = [gradient_variance_curves.Curves("ou-linear", Metric.CONTROL_L2, "")]
    for found, kinds in ((rows, Kind), (some, list(Kind)[:3]), (Rows(()), Kind)):
        picture = gradient_variance_curves.learning(
            found.of(schemas.SOCM), wanted, "iteration"
        ).decode()
        ends = {kind: textwrap.fill(kind, BROAD).splitlines()[-1] for kind in Kind}
        assert [kind for kind, end in ends.items() if f"{end} -->" in picture] == list(kinds)
        assert ("<!-- not measured -->" in picture) is (not found.of(schemas.SOCM))


def test_the_sweeps_show_every_setting_of_every_scheme(rows):
    table = gradient_variance_studies.sweeps(rows).split("Finitely many paths")[1]
    small, large = "$0.014 plus.minus 0.001$", "$0.029 plus.minus 0.001$"
    shown = (
        ("Delta t = 0.1", small),
        ("Delta t = 0.2", large),
        ('"noise" = 0.1', small),
        ('"noise" = 10', "$1.43$"),
    )
    cells = re.findall(r"\[(.*?)\](?=,|\))", table)
    for label, error in shown:
        place = cells.index(f"${label}$")
        assert cells[place + 1 : place + 1 + len(PIPELINES)] == [error] * len(PIPELINES)
    assert table.count("_$0.037$_") == len(shown) * len(PIPELINES)


def test_every_axis_shows_the_base_point_that_is_measured_once(rows):
    setting = {"dt": 0.1, "noise": 1.0, "axis": "base", "policy": "given"}
    middle = [
        record("lq_sweeps", "oscillator", "mse", 0.6543, setting, name, "unbiased")
        for name in PIPELINES
    ]
    table = gradient_variance_studies.sweeps(Rows((*rows, *middle))).split("Finitely many paths")[1]
    cells = re.findall(r"\[(.*?)\](?=,|\))", table)
    order = [cells.index(f'$"noise" = {noise}$') for noise in (0.1, 1, 10)]
    assert order == sorted(order)
    assert cells[order[1] + 1 : order[1] + 1 + len(PIPELINES)] == ["$0.65$"] * len(PIPELINES)
    assert table.count("0.65") == len(
        PIPELINES
    )  # not among the step sizes, whose noise is another, nor on its own


def test_a_divergence_says_by_what_factor_offsets_grow(rows):
    found = [
        record(
            "lq_sweeps",
            "oscillator",
            "limit_offset_factor",
            factor,
            {"dt": dt, "horizon": horizon, "axis": "limit"},
        )
        for dt, horizon, factor in ((0.4, 4.0, 1.147), (0.2, 4.0, 0.794), (0.2, 8.0, 0.31))
    ]
    said = gradient_variance_studies.sweeps(Rows((*rows, *found)))
    assert (
        "$0.794$ at $Delta t = 0.2$, $1.15$ at $Delta t = 0.4$; above 1 offsets grow"
        in " ".join(said.split())
    )
    assert "0.31" not in said
    assert "offsets grow" not in gradient_variance_studies.sweeps(rows)


def test_the_kind_of_the_records_counts_not_that_of_the_catalogue(rows):
    changed = Rows(
        tuple(
            dataclasses.replace(r, kind=Kind.BIASED) if r.estimator == "SOCM" else r
            for r in rows.of(schemas.VARIANCE)
        )
    )
    assert "SOCM" in names(changed, Kind.BIASED)
    assert "SOCM" not in names(changed, Kind.APPROXIMATE_RESIDUAL)


@pytest.mark.slow
def test_refusals_show_their_reason(rows, composed):
    found = master(rows, COMPARISON_PROBLEMS[1], Kind.APPROXIMATE_RESIDUAL)
    assert "refused#super[a]" in found
    assert f'#super[a] #"{REASON}";' in found
    assert "refused" not in master(rows, COMPARISON_PROBLEMS[0], Kind.APPROXIMATE_RESIDUAL)
    assert (
        composed.source.count(REASON) == 2
    )  # beneath the mixture's table, and among those on the oscillator
    assert '#"oscillator";' in composed.source


def test_a_full_report_misses_nothing_and_an_empty_one_says_so(composed):
    body = composed.source.partition("*Abstract*")[2].partition("= Which estimator should")[0]
    assert len(body) > 1000
    assert "not measured" not in body
    empty = compose(Rows(()), Claims())
    assert empty.source.count("not measured") > 3 * len(COMPARED)
    assert compile_pdf(empty.source, empty.pictures).startswith(b"%PDF")


def test_the_report_reads_what_there_is_of_its_studies(tmp_path, rows, composed):
    seen: list[Rows] = []
    assert not REPORT.measured(tmp_path)
    for study in (schemas.LINEAR, schemas.PENDULUM):
        write(rows.of(study), tmp_path / f"{study.name}.jsonl")
    assert REPORT.measured(tmp_path)
    files = dataclasses.replace(
        REPORT, compose=lambda found, _: seen.append(found) or composed
    ).write(tmp_path, tmp_path / "out")
    assert {each.study for each in seen[0]} == {"linear", "pendulum"}
    assert [file.name for file in files][-1] == "gradient_variance.pdf"
    assert all(file.stat().st_size for file in files)


def test_published_numbers_are_those_of_the_problem():
    assert LINEAR_PUBLISHED["samples"] == gradient_variance_linear.PUBLISHED_PATHS
    found = gradient_variance_linear.PUBLISHED_BY_PATHS
    assert found["adjoint matching, published"] == LINEAR_PUBLISHED["non_adapted_by_samples"]
    assert found["time-reversed, published"] == LINEAR_PUBLISHED["tr_bsde_by_samples"]


def test_published_numbers_stand_beneath_the_measured(rows):
    table = gradient_variance_linear.by(rows, "noise")
    assert table.count("_$0.0123$_") == 2 * 4 * len(PIPELINES)  # two integrators
    assert "$N = 50$" in gradient_variance_linear.by(rows, "paths")


def test_the_crossing_is_where_the_errors_cross(rows):
    said = crossing(rows, "Euler-Maruyama")
    assert (
        "the errors cross between $N$ of $2000$ and $5000$; adjoint matching is the worse one below"
        in said
    )
    assert NOT_MEASURED in crossing(Rows(()), "exponential")
    few = Rows(tuple(r for r in rows.of(schemas.LINEAR) if r.setting.get("paths", 0) < 5000))
    assert "better one at every $N$ up to $2000$" in crossing(few, "exponential")


def planted(
    study: str, metric: str, setting: dict, **found: tuple[float, float, float | None]
) -> Rows:
    """Records by estimator: a value, its standard error, a published number."""
    names = {
        "lean": "adjoint matching",
        "back": "time-reversed",
        "full": "full martingale, fitted costate",
        "fitted": "fitted Bellman recursion",
    }
    rows = []
    for key, (size, stderr, published) in found.items():
        name, _, how = key.partition("_")
        full = names[name] + (f", {how}" if how else "")
        more = {
            "stderr": stderr,
            "published": published,
            "optimum": 1.25 if metric == "cost" else 0.0,
            "seeds": 3,
        }
        rows.append(record(study, "p", metric, size, setting, full, "biased", **more))
    return Rows(tuple(rows))


def test_verdicts_say_what_is_better_beyond_its_noise():
    found = planted(
        "pendulum",
        "cost",
        {},
        back_published=(2.0, 0.1, 1.4),
        lean_published=(1.5, 0.1, 1.6),
        back_network=(1.5, 0.1, None),
        lean_network=(1.6, 0.1, None),
        fitted=(1.2625, 0.001, None),
    )
    said = " ".join(verdicts.pendulum(found).split())
    for what, told, ours in (
        ("time-reversed costates", "1.400", "2.000"),
        ("the forward adjoint", "1.600", "1.500"),
    ):
        assert (
            f"The published pipeline of {what} leads to a cost of ${told}$ in the"
            f" publication and to ${ours}$ in our run of the same length." in said
        )
    assert "where they are not told apart (Welch's test at 5%)" in said
    assert "within $1.0$% of the least possible" in said


@pytest.mark.parametrize(("seeds", "told"), [(2, False), (10, True)])
def test_few_repetitions_tell_less_apart(seeds, told):
    """Three standard errors of the difference: p = 0.1 with one degree of freedom or two, 0.008
    with eighteen.
    """
    mine, theirs = (
        dataclasses.replace(ONE, value=each, stderr=0.1, seeds=seeds)
        for each in (1.0, 1.0 + 3 * 0.02**0.5)
    )
    assert verdicts.below(mine, theirs) is told
    assert not verdicts.below(theirs, mine)
    assert not verdicts.below(dataclasses.replace(mine, value=math.inf), theirs)


def test_verdicts_count_temperatures_and_take_infinity_for_the_worst():
    hot = planted(
        "mixture",
        "regret",
        {"temp": 50.0},
        back_network=(0.1, 0.01, None),
        lean_network=(0.2, 0.01, None),
        full_network=(0.09, 0.01, None),
    )
    cold = planted(
        "mixture",
        "regret",
        {"temp": 1.0},
        back_network=(math.inf, math.nan, None),
        lean_network=(1.0, 0.1, None),
        full_network=(0.5, 0.1, None),
    )
    cost = planted(
        "mixture",
        "cost",
        {"temp": 1.0},
        lean_published=(2.0, 0.1, 2.5),
        back_published=(2.2, 0.1, 2.2),
        fitted=(1.3, 0.1, None),
    )
    said = " ".join(verdicts.mixture(Rows((*hot, *cold, *cost))).split())
    assert "cost less than adjoint matching at $1$ of $1$ temperatures" in said
    diverged = '(where #"time-reversed, network"; diverged)'
    assert f"beside adjoint matching are better at $50$ and worse at $1$ {diverged}." in said
    assert (
        f"beside the time-reversed costates, is better at $1$ {diverged} and not told apart at"
        " $50$." in said
    )
    assert "The published costs are up to $100$% above" in said
    assert '#"adjoint matching";: $0.80$ at $"temp" = 1$' in said


def test_verdicts_of_nothing_say_so():
    for verdict in (verdicts.linear, verdicts.pendulum, verdicts.mixture, verdicts.repetitions):
        assert NOT_MEASURED in verdict(Rows(()))


def test_repetitions_are_counted_from_the_records():
    counts = {"a": 10, "b": 3, "c": 10, "d": 2}
    rows = Rows(
        tuple(
            dataclasses.replace(ONE, estimator=name, stderr=0.1, seeds=n)
            for name, n in counts.items()
        )
    )
    assert (
        verdicts.repetitions(rows)
        == 'Means and standard errors are of $10$ repetitions; $3$ of #"b";; $2$ of #"d";.'
    )


def test_the_suite_names_the_nearest_and_those_that_moved_away():
    ends = {"SOCM": (2.0, 0.5), "moment": (2.0, 3.0), "variance": (2.0, math.inf)}
    found = [
        record("socm", "ou-linear", Metric.CONTROL_L2, value, {"iteration": 20 * index}, name)
        for name, values in ends.items()
        for index, value in enumerate(values)
    ]
    assert (
        gradient_variance_studies.suite_verdict(Rows(tuple(found)))
        == '- #"ou-linear";: nearest to the optimal control ends #"SOCM";; further away than the'
        ' pre-trained model: #"moment";'
    )


def test_winners_are_the_least_errors_without_oracles(rows):
    said = gradient_variance_advice.winners(rows)
    sizes = {name: 1 + index / 3 for index, name in enumerate(COMPARED)}
    winner = min(
        (n for n in COMPARED if CATALOGUE[n].kind == Kind.FIXED_POINT_RESIDUAL),
        key=lambda n: sizes[n],
    )
    assert f'#"{winner}";, ${sizes[winner] * 1.05 / 7:.3f}$' in said
    assert "exact costate" not in said.split("table(")[1]


def test_every_recommendation_is_of_the_catalogue():
    for each in gradient_variance_advice.RECOMMENDATIONS:
        assert set(each.estimators) <= set(CATALOGUE)


def variance_records(name: str, kind: str, bias: float, noise: float, error: float) -> list[Record]:
    common: dict[str, Any] = {"problem": "lq-fine-tuning", "estimator": name, "kind": kind}
    setting = {"axis": "distance", "scale": 0.9, "d": 4}
    return [
        Record("variance", metric=metric, value=value, setting=setting, stderr=stderr, **common)
        for metric, value, stderr in (("bias", bias, noise), ("error_at_budget", error, None))
    ]


def test_no_estimator_gains_by_a_bias_that_its_own_noise_hides():
    """Adjoint matching and its correction have one mean: the quiet one measures the bias of both.
    An error without its bias gets it, one that has it keeps it, and what is unbiased has none.
    """
    kind = Kind.FIXED_POINT_RESIDUAL
    found = Rows(
        (
            *variance_records("adjoint matching", kind, 0.0105, 0.0157, 0.0145),
            *variance_records("martingale, policy's costate", kind, 0.0154, 0.0029, 0.0159),
            *variance_records("ReFL", Kind.BIASED, 0.007, 0.0023, 0.0043),
            *variance_records("full adjoint", Kind.OBJECTIVE_GRADIENT, 0.01, 0.02, 0.0126),
            *variance_records("moment", Kind.OBJECTIVE_GRADIENT, 0.0, 1e-4, 0.5),
        )
    )
    whole = errors.with_bias(found)
    values = {(record.estimator, record.metric): record.value for record in whole}
    for name in {record.estimator for record in found}:
        assert values[name, "error_at_budget"] >= values[name, "bias"]
    assert values["adjoint matching", "bias"] == 0.0154
    assert values["adjoint matching", "error_at_budget"] == pytest.approx(
        math.hypot(0.0154, 0.0145)
    )
    assert values["martingale, policy's costate", "error_at_budget"] == pytest.approx(0.0159)
    assert values["ReFL", "error_at_budget"] == pytest.approx(math.hypot(0.007, 0.0043))
    assert values["full adjoint", "error_at_budget"] == pytest.approx(0.0126)


def test_numbers_with_errors():
    assert with_error(0.1053, 0.0034) == "$0.105 plus.minus 0.003$"
    assert with_error(12.34, 2.1) == "$12 plus.minus 2$"
    assert with_error(1.6e-15, 9e-16) == "$(1.6 plus.minus 0.9) 10^(-15)$"
    assert with_error(0.5, None) == "$0.500$"
    assert with_error(0.123456, 1e-9) == "$0.1235$"
    assert value(None) == NOT_MEASURED
    assert value(dataclasses.replace(ONE, value=math.nan)) == "diverged"


def test_the_end_of_training_is_the_last_iteration_of_each(rows):
    last = ends(
        rows.of(schemas.TRAINING).filter(lambda each: "iteration" in each.setting), "iteration"
    )
    assert {each.setting["iteration"] for each in last} == {200}
    assert len(last.records) == 2 * 7 * len(TRAINED)
    assert varying(last) == []


RANKED = {"rank": 3, "rank_interval": [2, 5], "of": 45}


def benched(mine: str) -> Rows:
    found = []
    for problem in SUITE:
        for index, name in enumerate((*COMPARED, mine)):
            setting = {
                "problem": problem.problem,
                **problem.settings,
                "scale": problem.scale,
                "axis": problem.title,
            }
            if name == mine and problem is SUITE[-1]:
                found.append(
                    record(
                        "variance",
                        problem.problem,
                        "refused",
                        1.0,
                        setting | {"reason": f"ValueError: {REASON}"},
                        name,
                    )
                )
                continue
            kind = CATALOGUE[name].kind if name in CATALOGUE else Kind.OBJECTIVE_GRADIENT
            for metric, number in (
                ("bias", 0.01),
                ("variance", 4.0 + index),
                ("error_at_budget", 0.2 + 0.01 * index),
            ):
                more = {"stderr": 0.002} if metric == "bias" else {}
                ranked = RANKED if metric == "error_at_budget" else {}
                found.append(
                    record(
                        "variance",
                        problem.problem,
                        metric,
                        number,
                        setting | ranked,
                        name,
                        kind,
                        seconds=1e-3,
                        evaluations=150,
                        **more,
                    )
                )
    return Rows(tuple(found), studies=(schemas.VARIANCE.of_anything("variance"),))


def test_a_bench_report_ranks_and_shows_refusals():
    mine = "my_module:Mine"
    made = bench.compose(benched(mine), Claims())
    assert bench.method(benched(mine)) == mine
    assert made.source.count("$3$ ($2$ to $5$) of $45$") == len(SUITE) - 1
    assert REASON in made.source
    assert '#"full adjoint";, $0.200$' in made.source
    assert f"in $1$ of ${len(SUITE)}$ situations" in made.source


def test_an_empty_bench_report_says_so():
    made = bench.compose(Rows(()), Claims())
    assert "not measured" in made.source


def test_a_bench_report_is_typeset(tmp_path):
    write(benched("a:b"), tmp_path / "bench-a-b.jsonl")
    files = bench.report("bench-a-b").write(tmp_path, tmp_path)
    assert [file.name for file in files] == ["bench-a-b.pdf"]
    assert files[0].read_bytes().startswith(b"%PDF")
