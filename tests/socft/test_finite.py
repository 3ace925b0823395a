"""A reward, a control or a label that is not finite stops a training with its cause."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.ddpo import DDPO, centred_rewards
from socft.estimators.dpok import DPOK
from socft.estimators.log_variance import LogVariance
from socft.estimators.score_function import ScoreFunction
from socft.estimators.socm import SOCM
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.variance import Variance
from socft.finite import require_finite_paths
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.train import fit
from tests.support.estimator_cases import CONSTANT, paths, quadratic_problem
from tests.support.tensors import F64, generator, randn, t

BAD = [math.nan, math.inf, -math.inf]
BATCH = 8
JOINT: list[Estimator] = [
    DDPO(),
    DDPO(divide=False),
    DDPO(kl_in_reward=True),
    CrossEntropy(),
    SOCM(),
    SOCM(degree=1),
    SOCMAdjoint(),
    LogVariance(),
    Variance(),
]
"""One path among others changes the labels of all."""
ALONE: list[Estimator] = [AdjointMatching(), ScoreFunction(), DPOK()]


def broken(value: float, count: int = 1) -> tuple[ControlProblem, AffinePolicy]:
    """A problem whose reward takes this value on the first paths of a batch that is not a probe."""
    whole = quadratic_problem(CONSTANT)

    def reward(x: Tensor) -> Tensor:
        found = whole.reward(x)
        bad = (torch.arange(len(x)) < count) & (len(x) == BATCH)
        return torch.where(bad, value * (1 + 0 * x[:, 0]), found)

    problem = ControlProblem(whole.reference, reward, CONSTANT, whole.running_cost)
    return problem, AffinePolicy.zeros(whole.reference)


def named(each: object) -> str:
    return repr(each)[:30]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("estimator", JOINT, ids=named)
def test_labels_that_compare_paths_refuse_a_reward_that_is_not_finite(
    estimator: Estimator, value: float
) -> None:
    problem, policy = broken(value, 3)
    path = paths(problem, policy, count=BATCH)
    with pytest.raises(InvalidProblem, match=f"the reward is {value} on 3 of 8 paths; it must be"):
        estimator.label(problem, policy, path)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("estimator", JOINT + ALONE, ids=named)
def test_a_training_stops_with_the_cause_and_its_last_finite_parameters(
    estimator: Estimator, value: float
) -> None:
    problem, policy = broken(value)
    with torch.no_grad():
        policy.gain.add_(0.1)
    kept = [p.detach().clone() for p in policy.parameters()]
    adam = torch.optim.Adam(policy.parameters(), lr=0.1)
    run = fit(problem, policy, estimator, adam, generator(0), batch=BATCH, steps=2)
    next(run)
    with pytest.raises(InvalidProblem, match=f"the reward is {value} on 1 of 8 paths"):
        next(run)
    assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), kept, strict=True))


def test_a_control_is_named_before_the_states_it_makes() -> None:
    problem, policy = quadratic_problem(CONSTANT), AffinePolicy.zeros(quadratic_problem().reference)
    with torch.no_grad():
        policy.offset[2, 0] = math.nan
    path = paths(problem, policy, count=BATCH)
    message = "the control of step 2 is nan on 8 of 8 paths; the controls grow"
    for estimator in (DDPO(), LogVariance(), Variance(), CrossEntropy()):
        with pytest.raises(InvalidProblem, match=message):
            estimator.label(problem, policy, path)


def test_a_state_is_named_before_the_controls_it_makes() -> None:
    problem, policy = quadratic_problem(CONSTANT), AffinePolicy.zeros(quadratic_problem().reference)
    with torch.no_grad():
        policy.gain[3] = 1.0
    path = paths(problem, policy, count=BATCH)
    path.states[3, 5:] = math.inf
    path.controls[3, 5:] = math.inf
    with pytest.raises(InvalidProblem, match="the state of step 3 is inf on 3 of 8 paths"):
        CrossEntropy().label(problem, policy, path)


def test_a_running_cost_and_an_overflow_of_the_values_alone_are_named() -> None:
    whole = quadratic_problem(CONSTANT)
    cost = lambda k, x: torch.where(  # noqa: E731
        (torch.arange(len(x)) < 2) & torch.as_tensor(k == 1), math.inf, x[:, 0]
    )
    problem = ControlProblem(whole.reference, whole.reward, CONSTANT, cost)
    path = paths(problem, AffinePolicy.zeros(whole.reference), count=BATCH)
    with pytest.raises(InvalidProblem, match="the running cost of step 1 is inf on 2 of 8 paths"):
        LogVariance().label(problem, AffinePolicy.zeros(whole.reference), path)
    values = torch.zeros(3, BATCH, dtype=F64)
    values[1, 4:] = math.inf
    require_finite_paths(whole, path, values[0], "the sums")
    with pytest.raises(InvalidProblem, match="the sums are not finite on 4 of 8 paths, where"):
        require_finite_paths(whole, path, values, "the sums")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.1, -1e6, 1e-30])
def test_rewards_that_are_equal_up_to_rounding_say_nothing(
    dtype: torch.dtype, level: float
) -> None:
    """Their deviations would be divided by each other: noise of size one."""
    equal = torch.full((300,), level, dtype=dtype)
    shaken = equal * (1 + torch.finfo(dtype).eps * torch.randint(-2, 3, (300,)))
    for rewards in (equal, shaken):
        assert (centred_rewards(rewards, None, True) == 0).all()
        assert (centred_rewards(rewards, None, False) == 0).all()


def test_rewards_of_any_level_and_unit_are_normalised_alike() -> None:
    groups = torch.arange(40) % 3
    drawn = randn(0, 40)
    found = centred_rewards(drawn, groups, True)
    for i in range(3):
        assert float(found[groups == i].mean().abs()) < 1e-14
        assert float(found[groups == i].square().mean()) == pytest.approx(1, rel=1e-12)
    torch.testing.assert_close(
        centred_rewards(3e8 * drawn + 1e9, groups, True), found, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        centred_rewards(drawn + t(5.0), groups, False),
        found * _spread(drawn, groups),
        rtol=1e-12,
        atol=1e-12,
    )


def _spread(drawn: Tensor, groups: Tensor) -> Tensor:
    deviations = [float(drawn[groups == i].std(correction=0)) for i in range(3)]
    return torch.tensor(deviations, dtype=F64)[groups]


@pytest.mark.parametrize("divide", [True, False])
def test_one_group_that_is_all_equal_leaves_the_others_as_they_are(divide: bool) -> None:
    groups = torch.arange(12) % 2
    rewards = torch.where(groups == 0, 0.3, randn(1, 12))
    found = centred_rewards(rewards, groups, divide)
    assert (found[groups == 0] == 0).all()
    alone = centred_rewards(rewards[groups == 1], None, divide)
    torch.testing.assert_close(found[groups == 1], alone, rtol=1e-13, atol=1e-13)
    assert dataclasses.replace(DDPO(), groups=groups).smallest_batch(quadratic_problem()) == 2
