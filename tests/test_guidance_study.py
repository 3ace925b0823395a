"""The guidance study and its report: the published construction, the envelope, and that nothing measured is invented."""

from __future__ import annotations

import math

import pytest
import torch

from socft.guidance import GaussianDenoiser, GuidancePolicy, LookAhead, Published, Response
from socft.records import Record
from socft.report.claim_lines import Claims
from socft.report.guidance import compose
from socft.report.rows import Rows
from socft.rollout import Noise, rollout
from toy.guidance import (
    ALL_METHODS,
    KNOBS,
    NOISE,
    OFF_SUPPORT,
    STUDY,
    Frontier,
    chain,
    equal_reward_task,
    moved,
    pole,
    regularised_task,
    rounds_task,
    sphere_frontier_task,
    sphere_task,
    subspace,
    tabulated,
)

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
    assert torch.allclose(data.objectives["f2 ones"].gradient(x), (4 - x) / (x - 4).norm(dim=1, keepdim=True) / 2)
    on = data.objectives["f1 on"].gradient(torch.zeros(1, 64, dtype=torch.float64))
    assert float(data.off(on)) == pytest.approx(0, abs=ALGEBRA)


def test_moved_coordinates_are_those_of_the_whole_space():
    """Reward, divergence and distance of one pass in 17 coordinates against paths in all 64."""
    data, schedule, frontier = subspace(), chain(STEPS), Frontier("isotropic", STEPS)
    found = frontier.outcome("G_loss, published", 3.0)
    reference = tabulated(data.law, schedule)
    reward = data.objectives["f1 off"]
    gradient = reward.gradient(torch.zeros(1, 64, dtype=torch.float64))[0]
    denoiser = GaussianDenoiser(data.law, schedule.abar[:-1])
    policy = GuidancePolicy(schedule, denoiser, LookAhead(Response(gradient, 3.0), Published(NOISE)))
    with torch.no_grad():
        path = rollout(reference, policy, Noise.sample(reference, 5_000, torch.Generator().manual_seed(0)))
    across = (path.final - path.final @ data.A @ data.A.mT).square().sum(1)
    for values, exact in ((reward(path.final), found.reward), (path.kl().sum(0), found.kl), (across, found.distance**2)):
        assert float(values.mean()) == pytest.approx(exact, abs=STANDARD_ERRORS * float(values.std()) / 5_000**0.5)


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
    assert moved(spread).law.dims == (17,)


def test_a_reward_out_of_reach_is_nan():
    """No method makes 10 - (theta . x - 3)^2 exceed 10."""
    rows = equal_reward_task("isotropic", "universal", [11.0], STEPS)
    assert [r.metric for r in rows] == ["equal_kl", "equal_distance"]
    assert all(math.isnan(r.value) for r in rows)
    assert set(KNOBS) == set(ALL_METHODS)


def test_regularised_value_of_a_parabola():
    """By its closed form along the projection of theta: the maximiser solves a scalar equation."""
    data, delta = subspace(), 0.2
    theta = data.objectives["f1 off"].gradient(torch.zeros(1, 64, dtype=torch.float64))[0] / 6
    p = float((theta @ data.A).square().sum())
    lam = NOISE**2 / delta
    reached = 6 * p / (lam + 2 * p)
    rows = {r.metric: r.value for r in regularised_task("f1 off", delta)}
    assert rows["regularised_value"] == pytest.approx(10 - (reached - 3) ** 2, rel=1e-6)
    assert rows["maximum"] == pytest.approx(10, rel=1e-6)


def test_rounds_record_what_they_claim():
    rows = rounds_task("f1 off", "G_loss", 2, 0.2, 3, 1, STEPS)
    assert {r.metric for r in rows} == {"reward", "off_support", "kl", "value_at_mean"}
    assert {r.setting["round"] for r in rows} == {0, 1, 2, 3}
    kl = {r.setting["round"]: r.value for r in rows if r.metric == "kl"}
    assert kl[0] == 0
    assert kl[3] > kl[1] > 0


def test_sphere_records():
    """Reward grows with the weight of universal guidance and of the optimal control, and no more than 1."""
    assert float(pole().norm()) == pytest.approx(1)
    for method in ("universal", "optimal control"):
        rows = sphere_frontier_task(method, [5.0, 80.0], 64, STEPS)
        low, high = [r.value for r in rows if r.metric == "frontier_reward"]
        assert low < high < 1.2
    rows = sphere_task("G_loss", 0.2, 2, STEPS)
    assert [r.setting["round"] for r in rows if r.metric == "off_sphere"] == [0, 1, 2]


def test_tasks_are_distinct_and_plain():
    for quick in (True, False):
        names = [task.name for task in STUDY.tasks(quick)]
        assert len(names) == len(set(names))
    assert len(STUDY.tasks(True)) < len(STUDY.tasks(False))


def test_an_empty_study_reports_nothing_as_measured():
    """Every table and figure says so."""
    made = compose(Rows(()), Claims())
    assert made.source.count("not measured") > 20
    assert set(made.pictures) == {"rounds.svg", "objectives.svg", "network.svg", "frontier.svg", "sphere.svg"}


def test_the_report_shows_the_records():
    """Numbers of a few records appear in the source as they are."""
    rows = [
        Record("guidance", "isotropic", "equal_kl", kl, {"reward": 3.0}, method)
        for method, kl in (("G", 123.0), ("G_loss, published", 6.78), ("fine-tuned score", 5.43), ("optimal control", 4.32))
    ]
    source = compose(Rows(tuple(rows)), Claims()).source
    for shown in ("$123$", "$6.78$", "$5.43$", "$4.32$", "$28.5$"):
        assert shown in source
