"""The pendulum and the mixture study: what they promise at a small budget, against exact optima,
and what must come out worse.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from socft.checks import InvalidProblem, require
from socft.cli import STUDIES
from socft.costates.fields import GivenCostate
from socft.costates.marginal_score import DenoisingScore
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.reversed_bsde import ReversedBSDE
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.records import Record
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.study.digest import fingerprint
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from tests.support.tensors import F64
from toy.learners import martingale_backward_pass
from toy.mixture import evaluation, learning, methods
from toy.problems import benchmark
from toy.problems.pendulum import lowest
from toy.problems.reversed_bsde import MIXTURE_PUBLISHED
from toy.studies import mixture, pendulum

ROUNDING = 1e-10
COARSE: list[int] = list(pendulum.QUICK_NODES)
MUST_COST = 1.47  # mean cost after the descent; the lowest point of the value is 1.4640
HEAT_MAP = 1.46402  # of the Euler chain, on the full grid
GRID = 2e-3  # the coarse grid's values
MUST_REGRET, MUST_W1 = 0.02, 0.03
CHAIN_OPTIMA = {50.0: 0.16884, 20.0: 0.36156, 8.0: 0.63055, 6.0: 0.70741, 1.0: 1.08188}
PLACES = 1e-5
LOST = 1e-6  # cost of the exact policy on the grids it is tabulated on
LARGEST_SHARE = 0.7  # of a mean square that a control variate must at least remove


@functools.cache
def learnt_mixture(temp: float) -> dict[str, Record]:
    return {record.metric: record for record in mixture.method_task(methods.BEST, [temp], 1)}


@functools.cache
def learnt_pendulum(name: str) -> dict[str, Record]:
    return {record.metric: record for record in pendulum.pipeline_task(name, 1800, 300, COARSE, 1)}


@functools.cache
def split(temp: float) -> dict[str, dict[str, Record]]:
    found: dict[str, dict[str, Record]] = {}
    for record in mixture.split_task(temp):
        found.setdefault(record.estimator, {})[record.metric] = record
    return found


@pytest.mark.parametrize("temp", [8.0, 1.0])
@pytest.mark.slow
def test_the_best_method_meets_the_optimum_from_a_cold_start(temp: float):
    found = learnt_mixture(temp)
    assert found["cost"].optimum == pytest.approx(CHAIN_OPTIMA[temp], abs=PLACES)
    assert -LOST < found["regret"].value < MUST_REGRET
    assert found["cost"].value == pytest.approx(CHAIN_OPTIMA[temp], rel=MUST_REGRET)
    assert found["w1"].value < MUST_W1
    assert not found["cost"].setting["warm_start"]
    assert 0 < found["control_l2"].value < MUST_REGRET
    own_step = split(temp)["costate of the own step"]
    assert found["control_l2"].value < own_step["control_l2"].value


def test_the_optimum_measures_as_the_optimum():
    evaluator = mixture._evaluator(1.0)
    found = evaluator.measure(
        evaluator.truth.policy,
        evaluation.InitialDistribution(evaluator.start.mean, evaluator.start.deviation),
    )
    assert found[Metric.COST] == pytest.approx(evaluator.start.gaussian_cost, rel=LOST)
    assert found[Metric.W1] < LOST
    assert found[Metric.CONTROL_L2] < LOST
    pretrained = learning.pretrained_model(1.0)
    reward = benchmark("bsde-mixture", temp=1.0)
    assert evaluator.measure(pretrained.policy, pretrained.law)[Metric.COST] == pytest.approx(
        -reward.uncontrolled.objective, rel=LOST
    )


def test_what_must_come_out_worse_does():
    """None of them has noise, so the features alone are what both others are held against."""
    found = split(1.0)
    features = found["exact control on bumps"]
    for metric in ("regret", "control_l2"):
        assert found["costate of the own step"][metric].value > 2 * features[metric].value > LOST
    assert found["start not learned"]["regret"].value > LOST
    assert found["start not learned"]["control_l2"].value < LOST
    assert features["regret"].value < MUST_REGRET


def test_a_lean_regression_solved_exactly_does_not_contract_where_the_reward_is_strong():
    (record,) = [
        r for r in mixture.method_task("adjoint matching", [1.0], 1) if r.metric == "regret"
    ]
    assert record.value > 10 * MUST_REGRET


def test_the_start_of_a_quadratic_value_takes_one_newton_step():
    node, weight = np.polynomial.hermite_e.hermegauss(4)
    z = torch.from_numpy(np.repeat(node, np.rint(1000 * weight / weight.sum()).astype(int)))[
        :, None
    ]
    z = (z - z.mean()) / z.std(correction=0)
    law = evaluation.InitialDistribution(0.7, 1.3).improved(lambda x: 2.0 - 3.0 * x, z, z)
    assert law.mean == pytest.approx(2 / 4, abs=ROUNDING)
    assert law.deviation == pytest.approx(4**-0.5, abs=ROUNDING)
    half = evaluation.InitialDistribution(0.7, 1.3).improved(lambda x: 2.0 - 3.0 * x, z, z, 0.5)
    assert half.deviation == pytest.approx((1.3 + law.deviation) / 2, abs=ROUNDING)
    other = torch.randn(len(z), 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    stale = evaluation.InitialDistribution(0.7, 1.3).improved(lambda x: 2.0 - 3.0 * x, z, other)
    assert abs(stale.deviation - 1) < abs(stale.deviation - law.deviation)


def test_a_law_has_its_divergence():
    law = evaluation.InitialDistribution(0.3, 0.8)
    x = torch.linspace(-8, 8, 4001, dtype=F64)
    p = torch.distributions.Normal(0.3, 0.8).log_prob(x)
    q = torch.distributions.Normal(0.0, 1.0).log_prob(x)
    assert law.kl == pytest.approx(float(torch.trapezoid(p.exp() * (p - q), x)), abs=1e-8)


def test_a_clipped_fit_is_constant_outside_its_samples():
    x = torch.linspace(-1, 1, 1001, dtype=F64)[:, None]
    fitted = learning.ClippedRegression(LinearRegression(Polynomial(1))).fit(x, 2 * x)
    assert fitted(torch.tensor([[0.5]], dtype=F64)).item() == pytest.approx(1.0, abs=ROUNDING)
    far, edge = fitted(torch.tensor([[9.0]], dtype=F64)).item(), 1 - 2 * learning.OUTSIDE
    assert far == pytest.approx(2 * edge, abs=ROUNDING)


def test_mended_time_reversal_is_less_noisy_than_the_published_pairing():
    evaluator = mixture._evaluator(1.0)
    problem, source = (
        evaluator.truth.problem,
        GivenCostate(lambda k, x: evaluator.truth.values[int(k)].gradient_at(x)),
    )

    def spread(published: bool) -> float:
        generator = torch.Generator().manual_seed(1)
        reverser = Reverser(DenoisingScore(learning.STIFF), generator, published_pairing=published)
        with torch.no_grad():
            noise = Noise.sample(problem.reference, 250, torch.Generator().manual_seed(2))
            path = rollout(problem.reference, evaluator.truth.policy, noise)
            found = ReversedBSDE(source, reverser).costates(problem, evaluator.truth.policy, path)
        return float(
            (found.values[0] - evaluator.truth.value_gradient(0, found.states[0])).square().mean()
        )

    assert spread(True) > 1.1 * spread(False)


@pytest.mark.slow
def test_a_method_whose_samples_run_away_costs_infinity(monkeypatch):
    """At one temperature only: a chain of temperatures starts afresh after it."""

    def learn(temp: float, seed: int, begin: learning.PolicyFit) -> learning.PolicyFit:
        require(temp != 8.0, "the samples left the region")
        return begin

    found = dataclasses.replace(
        methods.METHODS["adjoint matching"], name="made up", learn=learn, chain=True
    )
    monkeypatch.setitem(methods.METHODS, "made up", found)
    records = mixture.method_task("made up", [50.0, 8.0, 6.0], 2)
    costs = {r.setting["temp"]: r.value for r in records if r.metric == "cost"}
    assert costs[8.0] == math.inf
    for temp in (50.0, 6.0):
        start = learning.pretrained_model(temp)
        assert costs[temp] == mixture._evaluator(temp).measure(start.policy, start.law)[Metric.COST]
    assert len({r.metric for r in records}) * 3 == len(records)


@pytest.mark.slow
def test_the_best_costate_leads_states_to_the_valley():
    best, lean = learnt_pendulum(pendulum.BEST), learnt_pendulum("adjoint matching")
    optimum = best["cost"].optimum
    assert optimum == pytest.approx(HEAT_MAP, abs=GRID)
    assert optimum is not None
    assert optimum - LOST < best["cost"].value < MUST_COST
    assert lean["cost"].value > MUST_COST
    assert best["mse"].value < LARGEST_SHARE * lean["mse"].value
    assert abs(best["cost_simulated"].value - best["cost"].value) < 4 * 1.5 / 300**0.5


@pytest.mark.slow
def test_records_of_the_pendulum_say_how_they_were_made():
    for metric, record in learnt_pendulum(pendulum.BEST).items():
        assert (record.study, record.problem) == ("pendulum", "bsde-pendulum")
        assert record.setting == {"paths": 1800, "function_class": "bumps", "gradient_steps": 0}
        assert math.isfinite(record.value), metric
        assert record.seconds is not None
    published = {c.published for c in pendulum.PIPELINES.values()}
    assert {"non_adapted", "tr_bsde"} <= published


def test_only_the_exact_increment_leaves_no_noise():
    noise = {record.estimator: record.value for record in pendulum.label_noise_task(150, COARSE)}
    exact = noise[MethodName.EXACT_CORRECTION]
    antithetic = noise[MethodName.ANTITHETIC_CORRECTION]
    assert exact < 1e-4
    assert noise[MethodName.NO_CORRECTION] > 10 * antithetic > 1000 * exact
    assert noise[MethodName.FIRST_ORDER_CORRECTION] > 1000 * exact


def test_bumps_live_on_the_cylinder():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    turned = x + torch.tensor([2 * math.pi, 0.0], dtype=F64)
    assert (
        float((pendulum.CylinderBumps()(turned) - pendulum.CylinderBumps()(x)).abs().max())
        < ROUNDING
    )
    assert (
        float((pendulum.CylinderBumps()(x + 0.5) - pendulum.CylinderBumps()(x)).abs().max()) > 0.1
    )
    assert pendulum.CylinderBumps(5, 7)(x).shape == (50, 36)


def test_a_sweep_finds_the_costate_of_a_linear_chain_without_noise():
    found = benchmark("bsde-linear", noise=1.0)
    policy = Uncontrolled(found.problem.reference)
    noise = Noise.sample(found.problem.reference, 20, torch.Generator().manual_seed(0))
    field = martingale_backward_pass(LinearRegression(Polynomial(1)))(
        found.problem, policy, noise, 0
    )
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert float((field(0, x) - found.uncontrolled.gradient(0, x)).abs().max()) < ROUNDING
    path = rollout(found.problem.reference, policy, noise)
    lean = AdjointMatching().costates(found.problem, policy, path).values[0]
    assert float((lean - found.uncontrolled.gradient(0, path.states[0])).abs().max()) > 0.1


def test_a_descent_with_the_exact_costate_ends_in_the_valley(monkeypatch: pytest.MonkeyPatch):
    value = pendulum._problem(tuple(COARSE)).uncontrolled
    first = pendulum._states(20)
    descent = pendulum.descent_path(value.gradient, first)
    assert torch.equal(descent.way[0], first)
    assert pendulum._cost(value, descent.end) == pytest.approx(lowest(value).cost, abs=1e-3)
    monkeypatch.setattr(pendulum, "DESCENT_STEPS", 100)
    uphill = pendulum.descent_path(lambda k, x: -value.gradient(k, x), first)
    assert pendulum._cost(value, uphill.end) > pendulum._cost(value, first)


@pytest.mark.parametrize("study", [pendulum.STUDY, mixture.STUDY])
@pytest.mark.parametrize("quick", [True, False])
def test_tasks_are_distinct_plain_and_repeat(study, quick: bool):
    found = study.tasks(quick)
    assert study.name in STUDIES.names
    assert len({task.name for task in found}) == len(found)
    assert len({fingerprint(task) for task in found}) == len(found)
    assert any("seeds" in task.arguments for task in found)


def test_every_temperature_of_the_publication_is_measured_cold():
    chosen = [task for task in mixture.tasks(False) if task.arguments.get("method") == methods.BEST]
    assert [task.arguments["temps"] for task in chosen] == [
        [temp] for temp in MIXTURE_PUBLISHED["temp"]
    ]
    assert all(task.arguments["seeds"] == methods.SEEDS for task in chosen)
    assert not methods.METHODS[methods.BEST].chain


def test_a_chain_begins_where_the_last_temperature_ended():
    seen: list[learning.PolicyFit] = []

    def learn(temp: float, seed: int, begin: learning.PolicyFit) -> learning.PolicyFit:
        seen.append(begin)
        return dataclasses.replace(begin, law=evaluation.InitialDistribution(0.25, 1.0))

    chosen = dataclasses.replace(
        methods.METHODS["adjoint matching, published"], name="probe", learn=learn
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, "probe", chosen)
        records = mixture.method_task("probe", [8.0, 1.0], 1)
    assert [begin.law.mean for begin in seen] == [0.0, 0.25]
    published = [r.published for r in records if r.metric == "cost"]
    assert published == [0.802, 2.164]


def test_a_reversed_mixture_wants_positive_deviations():
    with pytest.raises(InvalidProblem, match="start_deviation = -1"):
        evaluation.problem_at(1.0, evaluation.InitialDistribution(0.0, -1.0))
