"""The guidance study and its report: the published construction, the envelope, and that nothing
measured is invented.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from socft.density import affine_reference
from socft.guidance.denoiser import GaussianDenoiser
from socft.guidance.policy import GuidancePolicy, LookAheadGuidance
from socft.guidance.strength import PublishedStrength, Response
from socft.path import Noise, rollout
from socft.problem import ControlProblem
from socft.records import Record
from socft.report.claim_records import Claims
from socft.report.guidance.report import compose
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED
from socft.study.digest import fingerprint
from socft.truth.affine_policy import evaluate_affine
from toy.guidance.frontier import ALL_METHODS, KNOBS, Frontier, guided_coordinates
from toy.guidance.subspace import NOISE, OFF_SUPPORT, RUNS, chain, subspace
from toy.studies.guidance import (
    STUDY,
    _marks,
    equal_reward_task,
    pole,
    regularised_task,
    rounds_task,
    sphere_frontier_task,
    sphere_task,
)
from toy.studies.guidance_network import STUDY as NETWORK
from toy.studies.guidance_network import network_task

ALGEBRA = 1e-9
REACHED = 1e-3  # of the reward, from the accuracy of the knob
STANDARD_ERRORS = 4.0
STEPS = 12


def test_the_published_construction():
    """The ratio of theta, its length, an orthonormal A, and f1 and f2 by their formulas."""
    data = subspace()
    assert torch.allclose(data.A.mT @ data.A, torch.eye(16, dtype=torch.float64), atol=ALGEBRA)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = data.objectives["f1 off"].gradient(torch.zeros(1, 64, dtype=torch.float64))[0] / 6
    assert float(theta.norm()) == pytest.approx(1)
    assert float(data.off(theta[None])) == pytest.approx(OFF_SUPPORT)
    assert torch.allclose(data.objectives["f1 off"](x), 10 - (x @ theta - 3).square())
    assert torch.allclose(data.objectives["f2 ones"](x), 5 - (x - 4).norm(dim=1) / 2)
    assert torch.allclose(
        data.objectives["f2 ones"].gradient(x), (4 - x) / (x - 4).norm(dim=1, keepdim=True) / 2
    )
    on = data.objectives["f1 on"].gradient(torch.zeros(1, 64, dtype=torch.float64))
    assert float(data.off(on)) == pytest.approx(0, abs=ALGEBRA)


def test_moved_coordinates_are_those_of_the_whole_space():
    """Reward, divergence and distance of one pass in 17 coordinates against paths in all 64."""
    data, schedule, frontier = subspace(), chain(STEPS), Frontier("isotropic", STEPS)
    found = frontier.outcome("G_loss, published", 3.0)
    reference = affine_reference(data.law, schedule)
    reward = data.objectives["f1 off"]
    gradient = reward.gradient(torch.zeros(1, 64, dtype=torch.float64))[0]
    denoiser = GaussianDenoiser(data.law, schedule.abar[:-1])
    policy = GuidancePolicy(
        schedule, denoiser, LookAheadGuidance(Response(gradient, 3.0), PublishedStrength(NOISE))
    )
    with torch.no_grad():
        path = rollout(
            reference, policy, Noise.sample(reference, 5_000, torch.Generator().manual_seed(0))
        )
    across = (path.final - path.final @ data.A @ data.A.mT).square().sum(1)
    for values, exact in (
        (reward(path.final), found.reward),
        (path.kl().sum(0), found.kl),
        (across, found.distance**2),
    ):
        assert float(values.mean()) == pytest.approx(
            exact, abs=STANDARD_ERRORS * float(values.std()) / 5_000**0.5
        )


@pytest.mark.parametrize("spread", ["isotropic", "anisotropic"])
def test_the_optimal_control_is_the_envelope(spread: str):
    """At equal reward no method spends less, and the knob reaches the reward asked for."""
    frontier = Frontier(spread, STEPS)
    found = {method: frontier.reach(method, 3.0) for method in ALL_METHODS}
    best = found["optimal control"]
    assert best is not None
    for method, outcome in found.items():
        assert outcome is not None, method
        assert outcome.reward == pytest.approx(3.0, rel=REACHED)
        assert outcome.kl >= best.kl * (1 - REACHED), method
    assert guided_coordinates(spread).law.dims == (17,)


@pytest.mark.parametrize("method", ALL_METHODS)
def test_outcomes_are_those_of_the_policy_itself(method: str):
    """The policy between two tabulated ones against the one at the knob, and moments against those
    with the value functions.
    """
    frontier, knob = Frontier("anisotropic", STEPS), 0.4
    found, policy = frontier.outcome(method, knob), frontier.policy(method, knob)
    if method != "optimal control":
        own = frontier.tabulated(method, knob)
        assert torch.allclose(policy.gain, own.gain, rtol=ALGEBRA, atol=ALGEBRA)
        assert torch.allclose(policy.offset, own.offset, rtol=ALGEBRA, atol=ALGEBRA)
        policy = own
    problem = ControlProblem(frontier.reference, frontier.case.reward, 1.0)
    exact = evaluate_affine(problem, policy)
    start = (
        exact.value.value(0, torch.zeros(1, 17, dtype=torch.float64))
        + exact.value.hessian[0].diagonal().sum() / 2
    )
    assert found.reward - found.kl == pytest.approx(float(start), rel=ALGEBRA)
    assert found.reward == pytest.approx(exact.reward, rel=ALGEBRA)
    assert found.distance**2 == pytest.approx(
        float(exact.covariance[-1, -1, -1] + exact.mean[-1, -1] ** 2)
        + frontier.case.rest * frontier.floor,
        rel=ALGEBRA,
    )


def test_a_reward_out_of_reach_is_nan():
    """No method makes 10 - (theta . x - 3)^2 exceed 10."""
    rows = equal_reward_task(spread="isotropic", method="universal", rewards=[11.0], steps=STEPS)
    assert [r.metric for r in rows] == ["equal_kl", "equal_distance", "task_seconds"]
    assert all(math.isnan(r.value) for r in rows[:2])
    assert set(KNOBS) == set(ALL_METHODS)


def test_regularised_value_of_a_parabola():
    """By its closed form along the projection of theta: the maximiser solves a scalar equation."""
    data, delta = subspace(), 0.2
    theta = data.objectives["f1 off"].gradient(torch.zeros(1, 64, dtype=torch.float64))[0] / 6
    p = float((theta @ data.A).square().sum())
    lam = NOISE**2 / delta
    reached = 6 * p / (lam + 2 * p)
    rows = {r.metric: r.value for r in regularised_task(objective="f1 off", delta=delta)}
    assert rows["regularised_value"] == pytest.approx(10 - (reached - 3) ** 2, rel=1e-6)
    assert rows["maximum"] == pytest.approx(10, rel=1e-6)


def test_rounds_record_what_they_claim():
    rows = rounds_task(
        objective="f1 off",
        guidance="G_loss",
        algorithm=2,
        delta=0.2,
        rounds=3,
        adapts=1,
        steps=STEPS,
    )
    assert {r.metric for r in rows} == {
        "reward",
        "off_support",
        "kl",
        "value_at_mean",
        "task_seconds",
    }
    assert {r.setting["round"] for r in rows[:-1]} == {0, 1, 2, 3}
    kl = {r.setting["round"]: r.value for r in rows if r.metric == "kl"}
    assert kl[0] == 0
    assert kl[3] > kl[1] > 0


def test_sphere_records():
    """Reward grows with the weight of universal guidance and of the optimal control, and no more
    than 1.
    """
    assert float(pole().norm()) == pytest.approx(1)
    for method in ("universal", "optimal control"):
        rows = sphere_frontier_task(method=method, knobs=[5.0, 80.0], paths=64, steps=STEPS)
        low, high = [r.value for r in rows if r.metric == "frontier_reward"]
        assert low < high < 1.2
    rows = sphere_task(guidance="G_loss", deltas=[0.05, 0.5], rounds=2, steps=STEPS)
    found = {
        (r.setting["delta"], r.setting["round"]): r.value for r in rows if r.metric == "reward"
    }
    assert set(found) == {(delta, index) for delta in (0.05, 0.5) for index in range(3)}
    assert found[0.05, 2] < found[0.5, 2]


def test_a_network_in_place_of_the_exact_score():
    """The runs of both algorithms and guidances at the same increments, and a score that is not
    exact.
    """
    rows = network_task(train=5, width=8, rounds=1, steps=6)
    assert 0 < next(r.value for r in rows if r.metric == "score_error") < math.inf
    runs = {
        (r.problem, r.estimator, r.setting["algorithm"]): r.setting["delta"]
        for r in rows
        if r.metric == "reward"
    }
    assert runs == {key: run.delta for key, run in RUNS.items() if key[0] == "f1 off"}
    assert {r.study for r in rows} == {NETWORK.name}


def test_tasks_are_distinct_and_plain():
    for study in (STUDY, NETWORK):
        for quick in (True, False):
            found = study.tasks(quick)
            assert (
                len({task.name for task in found})
                == len({fingerprint(task) for task in found})
                == len(found)
            )
            assert all(
                set(task.arguments) == set(inspect.signature(task.function).parameters)
                for task in found
            )


def test_published_rounds_are_run():
    """1000 rounds of Algorithm 1 and 1200 of Algorithm 2 on f1, and every round that the network's
    runs end with is recorded.
    """
    rounds = {key: run.rounds for key, run in RUNS.items() if key[0].startswith("f1")}
    assert all(count == {1: 1000, 2: 1200}[key[2]] for key, count in rounds.items())
    ends = {task.arguments["rounds"] for task in NETWORK.tasks(False)}
    assert ends <= _marks(1000)
    assert {0, 1000} <= _marks(1000)


def test_an_empty_study_reports_nothing_as_measured():
    """Every table and figure says so."""
    made = compose(Rows(()), Claims())
    assert made.source.count("not measured") > 20
    assert f"Exact-score tasks: {NOT_MEASURED} seconds in total on one core" in made.source
    assert set(made.pictures) == {
        "rounds.svg",
        "objectives.svg",
        "network.svg",
        "frontier.svg",
        "sphere.svg",
    }


def test_the_report_shows_the_records():
    """Numbers of a few records appear in the source as they are."""
    rows = [
        Record("guidance", "isotropic", "equal_kl", kl, {"reward": 3.0}, method)
        for method, kl in (
            ("G", 123.0),
            ("G_loss, published", 6.78),
            ("fine-tuned score", 5.43),
            ("optimal control", 4.32),
        )
    ]
    rows += [
        Record("guidance", "isotropic", "equal_kl", kl, {"T": 50}, method)
        for method, kl in (("G", 123.0), ("optimal control", 4.32))
    ]
    rows += [Record("guidance", "sphere", "task_seconds", seconds) for seconds in (40.5, 21.0)]
    source = compose(Rows(tuple(rows)), Claims()).source
    assert "Exact-score tasks: $61.5$ seconds in total on one core" in source
    for shown in ("$123$", "$6.78$", "$5.43$", "$4.32$", "$28.5$"):
        assert shown in source
