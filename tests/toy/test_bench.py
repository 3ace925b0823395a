"""A user's estimator against built-in ones: right ones are ranked, broken ones lose their own
rows.
"""

from __future__ import annotations

import json

import pytest

from socft import cli
from socft.checks import InvalidProblem
from socft.records import read
from toy import bench as module
from toy.bench import BenchmarkCase, bench, study_name

SUITE = (
    BenchmarkCase("small, start", "lq-sde", {"d": 2, "steps": 5}, 0.0),
    BenchmarkCase("small, optimum", "lq-sde", {"d": 2, "steps": 5}, 1.0),
)
ESTIMATORS = """
import dataclasses
import torch
from socft.estimators.base import Cost, Labels, MatchingEstimator
from socft.estimators.estimand import Biased
from socft.estimators.full_adjoint import FullAdjoint


class Same(FullAdjoint):
    pass


class Double(FullAdjoint):
    def label(self, problem, policy, path):
        labels = super().label(problem, policy, path)
        weights = torch.full(labels.targets.shape[:2], 2.0, dtype=torch.float64)
        return dataclasses.replace(labels, weights=weights)


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


@pytest.fixture
def user(tmp_path, monkeypatch):
    """Estimators of a user's module, and a suite that takes a second."""
    (tmp_path / "bench_user.py").write_text(ESTIMATORS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "SUITE", SUITE)
    return tmp_path


def row(user, name: str) -> dict:
    return bench(
        f"bench_user:{name}", user / "out", quick=True, against=["full adjoint", "adjoint matching"]
    )["situations"]


def test_the_same_estimator_gets_the_same_numbers(user):
    found = row(user, "Same")
    records = read(user / "out" / f"{study_name('bench_user:Same')}.jsonl")
    for place in SUITE:
        rival = {
            r.metric: r.value
            for r in records
            if r.estimator == "full adjoint" and r.setting["axis"] == place.title
        }
        assert {name: found[place.title][name] for name in rival} == rival
        assert (found[place.title]["rank"], found[place.title]["of"]) in {(1, 3), (2, 3)}
    assert (
        json.loads((user / "out" / "bench-bench_user-Same.json").read_text())["situations"] == found
    )


def test_a_wrong_factor_is_seen_as_bias(user):
    found = row(user, "Double")["small, start"]
    assert 0.9 < found["bias"] < 1.1  # twice the gradient is off by the gradient
    assert found["rank"] == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("WrongShape", "the labels' targets have shape (5, 400, 1); they must have (5, 400, 2)."),
        ("NotFinite", "the labels' targets must be finite numbers."),
        ("Raises", "ValueError: no idea"),
        ("NotMade", "ValueError: not today"),
    ],
)
def test_a_broken_estimator_loses_only_its_own_row(user, name, reason):
    found = row(user, name)
    assert all(reason in found[place.title]["refused"] for place in SUITE)
    records = read(user / "out" / f"{study_name(f'bench_user:{name}')}.jsonl")
    assert sum(r.metric == "error_at_budget" for r in records) == 2 * len(SUITE)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("full", "there is no estimator 'full'; give MODULE:NAME, or one of: full adjoint"),
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
        str(user / "out"),
        "--against",
        "full adjoint",
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "bench_user:Same estimates: objective gradient" in said
    assert "small, start: bias" in said
    assert (user / "out" / "bench-bench_user-Same.pdf").read_bytes().startswith(b"%PDF")
