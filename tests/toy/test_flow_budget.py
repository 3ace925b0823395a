"""Methods for flow models at an equal budget: what is right is right, the protocol is kept."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from socft.checks import InvalidProblem
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.rows import Group
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, rollout
from socft.reward import Sine
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.fixed_points.problems import Targets
from toy.flow_budget import training
from toy.flow_budget.methods import METHODS, TWINS, Expense, has_the_optimum, made
from toy.flow_budget.proposals import OPTIMUM, START, peers, policy_points, repeated, right_change
from toy.measure import control_slope, estimate
from toy.studies import flow_budget

STEPS = 4
GRID = 2e-3  # of the change at the pre-trained model: the optimum and its gradient, on two grids
DIVERGENCE_APART = 1e-6


@functools.cache
def targets() -> Targets:
    return Targets.of(ProblemName.FLOW_OVERLAPPING, STEPS, 2.0)


def test_what_is_right_by_quadrature_is_what_the_full_adjoint_finds():
    line = targets().line
    for place in policy_points(targets())[:2]:
        noise = Noise.sample(line.reference, 20_000, torch.Generator().manual_seed(5))
        found = estimate(FullAdjoint(), line.problem, place.policy, noise)
        error = found.stderr / targets().beta
        assert float(error.max()) < 0.02 * place.unit
        away = (found.mean / targets().beta - place.exact) / error
        assert float(away.abs().max()) < 4


def test_at_the_optimum_nothing_is_to_be_changed():
    start, midway, optimum = policy_points(targets())
    left = right_change(targets().line, optimum.policy)
    assert float(left.norm()) < GRID * start.unit
    assert float(midway.exact.norm()) > 0.2 * start.unit


def labelled(name: MethodName, problem=None):
    """Slopes of a method in the control of every step, off the pre-trained model."""
    line = targets().line
    policy = policy_points(targets())[1].policy
    generator = torch.Generator().manual_seed(0)
    estimator = made(targets(), name, generator, 64)
    noise = Noise.sample(line.reference, 64, generator)
    with torch.no_grad():
        path = rollout(line.reference, policy, noise)
        labels = estimator.label(problem or line.problem, policy, path)
    return [
        control_slope(estimator, problem or line.problem, policy, labels, k) for k in range(STEPS)
    ]


@pytest.mark.parametrize(("name", "twin"), TWINS.items(), ids=str)
def test_twins_have_one_gradient_up_to_a_factor_per_step(name, twin):
    for mine, theirs in zip(labelled(name), labelled(twin), strict=True):
        cosine = torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)
        assert float(cosine) == pytest.approx(1, abs=DIVERGENCE_APART)


class Blind(Sine):
    """A reward whose gradient must not be asked for."""

    def gradient(self, x):
        raise PermissionError

    def __call__(self, x):
        if x.requires_grad:
            raise PermissionError
        return super().__call__(x)


@pytest.mark.parametrize("name", METHODS, ids=str)
def test_the_group_says_whether_the_gradient_of_the_reward_is_used(name):
    blind = dataclasses.replace(targets().line.problem, reward=Blind(1.0, 1.0))
    if CATALOGUE[name].group == Group.ZEROTH_ORDER:
        assert len(labelled(name, blind)) == STEPS
    else:
        with pytest.raises((PermissionError, InvalidProblem), match=r"^$|PermissionError"):
            labelled(name, blind)


@pytest.mark.slow
def test_what_proposes_nothing_has_no_rank_at_the_optimum():
    at = {place.name: place for place in policy_points(targets())}
    names = (MethodName.ADJOINT_MATCHING, MethodName.RESIDUAL_NABLA_DB)
    start, optimum = (
        {name: repeated(targets(), name, at[place], 50, 2) for name in names}
        for place in (START, OPTIMUM)
    )
    ranked = peers(OPTIMUM, optimum, start)
    assert set(ranked) == {MethodName.ADJOINT_MATCHING}
    assert not peers(START, start, start)
    for each in (*start.values(), *optimum.values()):
        bias, error = each.bias_squared(each.equal).sqrt(), each.error(each.equal)
        assert float(error) >= float(bias)


def test_fits_are_charged():
    generator = torch.Generator()
    for name in (MethodName.RESIDUAL_NABLA_DB, MethodName.VGG_FLOW):
        few, many = (
            Expense.of(name, made(targets(), name, generator, paths), STEPS, paths)
            for paths in (100, 1000)
        )
        assert few.path == many.path
        assert many.fit == 10 * few.fit > 1000 * STEPS
    name = MethodName.ADJOINT_MATCHING
    assert Expense.of(name, made(targets(), name, generator), STEPS, 1000).fit == 0


def test_the_optimum_has_no_gap_and_the_pre_trained_model_has_one():
    line = targets().line
    best = training.best_objective(line)
    zero = torch.zeros_like(line.means)
    assert best - training.objective(line, zero) > 0.05
    bent = 1.02 * line.controls(policy_points(targets())[2].policy)
    assert 0 < best - training.objective(line, bent) < 1e-3


@pytest.mark.parametrize("best", [0.004, 0.1, 1.5])
def test_a_grid_of_rates_is_extended_until_the_best_is_inside(monkeypatch, best):
    def ending(targets, optimum, name, count, rate, seed):
        return {Metric.OBJECTIVE_GAP: abs(torch.tensor(rate / best).log().item())}

    monkeypatch.setattr(training, "ending", ending)
    effort = training.TrainingBudget(1, (1, 2), (3,))
    chosen = training.choose(targets(), 0.0, MethodName.RAM, 1, effort)
    assert min(chosen.gaps) < chosen.rate < max(chosen.gaps)
    assert chosen.closed
    assert abs(torch.tensor(chosen.rate / best).log()) < torch.tensor(training.FACTOR).log()


def test_a_best_rate_at_the_end_of_all_rates_is_said_to_be_there(monkeypatch):
    def ending(targets, optimum, name, count, rate, seed):
        return {Metric.OBJECTIVE_GAP: rate}

    monkeypatch.setattr(training, "ending", ending)
    chosen = training.choose(
        targets(), 0.0, MethodName.RAM, 1, training.TrainingBudget(1, (1,), (2,))
    )
    assert not chosen.closed
    assert chosen.rate < 2 * training.FACTOR * training.LEAST


def test_no_seed_is_both_a_pilot_and_reported():
    for effort in (flow_budget.EFFORT, flow_budget.QUICK_EFFORT):
        assert not set(effort.pilots) & set(effort.seeds)
    assert len(flow_budget.EFFORT.seeds) >= 10


def test_equal_budgets_are_equal():
    budget = 8 * training.expense(targets(), MethodName.ADJOINT_MATCHING)
    for name in (MethodName.DDPO, MethodName.VGG_FLOW, MethodName.MALLIAVIN_WEIGHTS):
        spent = training.expense(targets(), name)
        count = training.updates(targets(), name, training.TrainingBudget(8, (), ()))
        assert budget - spent < count * spent <= max(budget, spent)


def test_the_interval_of_a_mean_is_students():
    low, high = training.t_interval([0.0, 2.0])
    assert (low, high) == (pytest.approx(1 - 12.7062, abs=1e-4), pytest.approx(13.7062, abs=1e-4))


def test_the_tilt_counts_as_the_optimum_and_other_equations_do_not():
    assert has_the_optimum(MethodName.EFFICIENT_ADJOINT_MATCHING)
    assert has_the_optimum(MethodName.MALLIAVIN_WEIGHTS)
    assert not has_the_optimum(MethodName.RAM)
    assert not has_the_optimum(MethodName.DDPO)
