"""A user's estimator against built-in ones: right ones are ranked, broken ones stop at once."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from socft import cli
from socft.checks import InvalidProblem
from socft.estimators.catalogue import CATALOGUE, COMPARED
from socft.estimators.estimand import Kind
from socft.records import read
from toy import bench as module
from toy import shipped as rows
from toy import suite
from toy.bench import bench, gradients, ranked, study_name
from toy.leaderboard import leaderboard
from toy.ranks import standings
from toy.repeated import RepeatedGradient, draws
from toy.suite import BenchmarkCase, EstimatorFailed

QUANTILES = torch.tensor([0.025, 0.975], dtype=torch.float64)
SUITE = (
    BenchmarkCase("small, start", "lq-sde", {"d": 2, "steps": 5}, 0.0),
    BenchmarkCase("small, optimum", "lq-sde", {"d": 2, "steps": 5}, 1.0, "small, start"),
)
ESTIMATORS = """
import dataclasses
import torch
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Cost, Labels, MatchingEstimator
from socft.estimators.estimand import Biased, FixedPointResidual
from socft.estimators.full_adjoint import FullAdjoint


class Same(FullAdjoint):
    pass


class Double(FullAdjoint):
    def label(self, problem, policy, path):
        labels = super().label(problem, policy, path)
        weights = torch.full(labels.targets.shape[:2], 2.0, dtype=torch.float64)
        return dataclasses.replace(labels, weights=weights)


class Half(AdjointMatching):
    def label(self, problem, policy, path):
        labels = super().label(problem, policy, path)
        return dataclasses.replace(labels, targets=(path.controls + labels.targets) / 2)


class Still(MatchingEstimator):
    estimates, source, cost = FixedPointResidual(), "a test", Cost()

    def label(self, problem, policy, path):
        return Labels(path.states[:-1], path.controls)


class Broken(MatchingEstimator):
    estimates, source, cost = Biased("a test"), "a test", Cost()


class WrongShape(Broken):
    def label(self, problem, policy, path):
        return Labels(path.states[:-1], path.controls[..., :1])


class NotFinite(Broken):
    def label(self, problem, policy, path):
        return Labels(path.states[:-1], path.controls / 0)


class Raises(Broken):
    def label(self, problem, policy, path):
        raise ValueError("no idea")


class NotMade(Broken):
    def __init__(self):
        raise ValueError("not today")

    def label(self, problem, policy, path):
        return Labels(path.states[:-1], path.controls)


number = 3


def text():
    return "text"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's module of estimators, and what is measured of them."""
    found = tmp_path_factory.mktemp("user")
    (found / "bench_user.py").write_text(ESTIMATORS)
    return found


@pytest.fixture
def user(folder, monkeypatch) -> Path:
    """The folder of a user's module, and a suite that takes a second."""
    monkeypatch.syspath_prepend(folder)
    for each in (module, suite):
        monkeypatch.setattr(each, "SUITE", SUITE)
    monkeypatch.setattr(module, "changed", list)  # the suite is another, so all are measured
    monkeypatch.setattr(module, "shipped", tuple)
    return folder


@functools.cache
def row(user: Path, name: str) -> dict:
    """Measured once for all tests, in a folder of its own."""
    return bench(
        f"bench_user:{name}", user / name, quick=True, against=["full adjoint", "adjoint matching"]
    )["situations"]


def test_the_same_estimator_gets_the_same_numbers(user):
    found = row(user, "Same")
    records = read(user / "Same" / f"{study_name('bench_user:Same')}.jsonl")
    for place in SUITE:
        rival = {
            r.metric: r.value
            for r in records
            if r.estimator == "full adjoint" and r.setting["axis"] == place.title
        }
        assert {name: found[place.title][name] for name in rival} == rival
        assert (found[place.title]["rank"], found[place.title]["of"]) == (1, 2)
        assert found[place.title]["rank_interval"] == (1, 1)
    saved = json.loads((user / "Same" / "bench-bench_user-Same.json").read_text())["situations"]
    assert saved == json.loads(json.dumps(found))


def test_a_multiple_of_a_residual_ties_with_it(user):
    """Whatever the factor: a residual has no scale."""
    found = row(user, "Half")
    for place in SUITE:
        assert (found[place.title]["rank"], found[place.title]["of"]) == (1, 2)


def test_who_proposes_the_current_control_has_no_rank(user):
    found = row(user, "Still")
    for place in SUITE:
        assert found[place.title]["rank"] is None
        assert "no information" in found[place.title]["ordered_by"]
    assert found["small, optimum"]["error_at_budget"] < 1e-12


def test_errors_are_never_less_than_biases(user):
    for name in ("Same", "Double", "Half", "Still"):
        for found in row(user, name).values():
            assert found["error_at_budget"] >= found["bias"]
            low, high = found["error_interval"]
            assert low <= found["error_at_budget"] <= high


def test_a_wrong_factor_is_seen_as_bias(user):
    found = row(user, "Double")["small, start"]
    assert 0.9 < found["bias"] < 1.1  # twice the gradient is off by the gradient
    assert (found["rank"], found["rank_interval"], found["of"]) == (2, (2, 2), 2)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("WrongShape", "the labels' targets have shape (5, 8, 1); they must have (5, 8, 2)."),
        ("NotFinite", "the labels' targets must be finite numbers."),
        ("Raises", "ValueError: no idea"),
        ("NotMade", "ValueError: not today"),
    ],
)
def test_a_broken_estimator_stops_at_once_with_its_traceback(user, name, reason, capsys):
    with pytest.raises(EstimatorFailed) as failed:
        row(user, name)
    said = str(failed.value)
    assert said.startswith(f"bench_user:{name} fails at once, in the situation 'small, start':")
    assert "Traceback" in said
    assert said.endswith(reason)
    assert not (user / name).exists()
    assert cli.main(["bench", f"bench_user:{name}", "--out", str(user / name)]) == cli.FAILED
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_one_that_fails_later_loses_that_row_alone(user):
    """Where every path is followed by the optimum."""
    source = (
        "\n\nclass Later(FullAdjoint):\n    def label(self, problem, policy, path):\n"
        "        if path.controls.abs().max() > 0:\n            raise RuntimeError('too late')\n"
        "        return super().label(problem, policy, path)\n"
    )
    (user / "bench_later.py").write_text(ESTIMATORS + source)
    found = bench("bench_later:Later", user / "later", True, against=["full adjoint"])["situations"]
    assert found["small, start"]["rank"] == 1
    assert found["small, optimum"]["failed"]
    assert "RuntimeError: too late (line" in found["small, optimum"]["refused"]
    arguments = ["bench", "bench_later:Later", "--quick", "--against", "full adjoint"]
    assert cli.main([*arguments, "--out", str(user / "later")]) == cli.FAILED


def repeated(mean: float, noise: float, count: int = 8, seed: int = 0) -> RepeatedGradient:
    """Repetitions of a noisy estimate of a gradient of length 1, from 100 paths each."""
    draw = torch.Generator().manual_seed(seed)
    exact = torch.ones(20, dtype=torch.float64) / 20**0.5
    scatter = torch.randn(count, 20, generator=draw, dtype=torch.float64) * noise / 10
    return RepeatedGradient.of(
        mean * exact + scatter,
        exact,
        1.0,
        kind=Kind.OBJECTIVE_GRADIENT,
        noise=0.0,
        variances=torch.full((count,), 20 * noise**2, dtype=torch.float64),
        paths=100,
        evaluations=1_000,
        fit_evaluations=0,
    )


def test_what_cannot_be_told_apart_is_tied_and_what_can_is_not():
    case = BenchmarkCase("start", "lq-sde", {}, 0.0)
    here = {"a": repeated(1.0, 0.5), "b": repeated(1.0, 0.5, seed=1), "c": repeated(3.0, 0.5)}
    found = standings(case, here, {})
    assert [found[name].rank for name in "abc"] == [1, 1, 3]
    assert found["c"].rank_interval == (3, 3)
    assert found["a"].rank_interval == found["b"].rank_interval == (1, 2)


def test_intervals_have_the_truth_as_often_as_they_say():
    """The squared bias of 200 repeated measurements, whose truth is 4."""
    hits = 0
    for seed in range(200):
        each = repeated(3.0, 2.0, seed=seed)
        low, high = each.bias_squared(draws(each.count, 1000)).quantile(QUANTILES).tolist()
        hits += low <= 4.0 <= high
    assert 0.83 < hits / 200 < 0.99


def test_shipped_rows_are_of_all_that_are_compared():
    found = gradients(rows.shipped())
    for case in suite.SUITE:
        refused = {
            each.estimator
            for each in rows.shipped()
            if each.metric == "refused" and each.setting["axis"] == case.title
        }
        assert found[case.title].keys() | refused == set(COMPARED)
    for here in ranked(rows.shipped()).values():
        for each in here.values():
            assert each.error_at_budget >= each.bias


@pytest.mark.slow
def test_rows_of_other_code_are_measured_again_where_they_differ(monkeypatch):
    names, heard = ["full adjoint", "adjoint matching"], Console(file=io.StringIO())
    monkeypatch.setattr(rows, "SUITE", suite.SUITE[:2])
    monkeypatch.setattr(rows, "measuring_code", lambda: "other code")
    assert rows.changed(names, heard) == []
    off = tuple(
        dataclasses.replace(
            each, setting={**each.setting, "along": [2 * b for b in each.setting["along"]]}
        )
        if each.estimator == "adjoint matching" and each.metric == "repetitions"
        else each
        for each in rows.shipped()
    )
    monkeypatch.setattr(rows, "shipped", lambda: off)
    assert rows.changed(names, heard) == ["adjoint matching"]


def test_a_file_is_a_row_of_the_leaderboard(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    mine = {"repetitions": gradients(rows.shipped())["Gaussian, near"]["full adjoint"].written()}
    row = {"estimator": "mine:Mine", "situations": {"Gaussian, near": mine}}
    (folder / "mine.json").write_text(json.dumps(row))
    found = leaderboard(folder)
    (line,) = [each for each in found.markdown().splitlines() if "mine:Mine" in each]
    (twin,) = [each for each in found.markdown().splitlines() if "| full adjoint |" in each]
    assert line.split(" | ")[2] == twin.split(" | ")[2]
    table = json.loads(found.json())["rows"]
    assert {each["estimator"] for each in table} == {*COMPARED, "mine:Mine"}
    assert found.html().count("<tr>") == 1 + len(COMPARED) + len(found.tables)
    for name in found.tables["oracles"]:
        assert CATALOGUE[name].oracle
        assert all(each[name].rank is None for each in found.standings.values() if name in each)
    (folder / "mine.json").write_text('{"estimator": "x"}')
    with pytest.raises(InvalidProblem, match=r"mine\.json is no row of socft bench"):
        leaderboard(folder)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("full", "there is no estimator 'full'; did you mean full adjoint; "),
        (
            "bench_user:number",
            "bench_user:number is a int; it must be a class or function that makes an estimator",
        ),
        (
            "bench_user:text",
            "bench_user:text makes a str; it must be a socft.estimators.base.Estimator",
        ),
        ("bench_user:absent", "module 'bench_user' has no 'absent'"),
    ],
)
def test_what_is_no_estimator_is_refused(user, path, message):
    with pytest.raises(InvalidProblem) as refusal:
        bench(path, user / "out", quick=True)
    assert message in str(refusal.value)


def test_a_rival_that_does_not_exist_is_refused(user):
    """Nothing is measured, and the nearest names are said."""
    for name, said_of_it in (
        ("full adjiont", "did you mean full adjoint?"),
        ("TYPO", "give one of: full adjoint; "),
        ("", "give one of: full adjoint; "),
    ):
        with pytest.raises(InvalidProblem) as refusal:
            bench("bench_user:Same", user / "out", quick=True, against=["full adjoint", name])
        said = str(refusal.value)
        assert said.startswith(f"there is no built-in estimator {name!r}; {said_of_it}")
        assert not (user / "out").exists()


def test_the_command_line(user, capsys):
    arguments = [
        "bench",
        "bench_user:Same",
        "--quick",
        "--out",
        str(user / "command"),
        "--against",
        "full adjoint",
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "bench_user:Same estimates: objective gradient" in said
    assert "small, start: bias" in said
    assert (user / "command" / "bench-bench_user-Same.pdf").read_bytes().startswith(b"%PDF")
