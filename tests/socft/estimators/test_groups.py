"""What estimators hold against each other within a group of paths: rewards, starts, work."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.estimators.ddpo import DDPO, centred_rewards
from socft.estimators.log_variance import LogVariance, on_policy, require_same_starts
from socft.path import Path
from socft.problem import ControlProblem
from socft.reward import FunctionReward
from tests.support.estimator_cases import FEW, IDENTITY, away, paths, quadratic_problem
from tests.support.tensors import F64, randn

EPS = torch.finfo(F64).eps
HALF = EPS**0.5
"""Half the digits."""


def few() -> tuple[ControlProblem, Path]:
    problem = quadratic_problem()
    return problem, paths(problem, away(problem), count=FEW)


def started(path: Path, starts: list[float]) -> Path:
    """A path whose states begin at given numbers in both coordinates."""
    first = torch.tensor(starts, dtype=F64)[:, None].expand(-1, 2)
    return dataclasses.replace(path, states=torch.cat([first[None], path.states[1:]]))


def with_spread(roundings: float, size: float) -> Tensor:
    """Two rewards about a size whose standard deviation is so many roundings of it."""
    return size * (1 + roundings * EPS * torch.tensor([-1.0, 1.0], dtype=F64))


@pytest.mark.parametrize("size", [1e-6, 1.0, 2.0**20])
def test_rewards_that_differ_by_less_than_eight_roundings_are_equal(size: float):
    assert float(centred_rewards(with_spread(6, size), None, True).abs().max()) == 0
    assert centred_rewards(with_spread(12, size), None, True).tolist() == [-1.0, 1.0]


def test_the_mean_of_centred_rewards_is_zero_to_the_precision_of_their_spread():
    """However large the rewards are: what their mean loses to rounding is taken off."""
    for seed in range(20):
        rewards = 1e8 / 3 + randn(seed, 7)
        centred = centred_rewards(rewards, None, False)
        assert abs(float(centred.sum())) < 7 * 4 * EPS * float(centred.abs().max())


def test_ddpo_compares_what_a_path_earns_less_all_that_it_pays():
    problem, path = few()
    assert problem.running_cost is not None
    paid = torch.stack([problem.cost(k, path.states[k]) for k in range(problem.steps)])
    earned = problem.reward(path.final) - paid.sum(0)
    found = DDPO(divide=False).label(problem, away(problem), path).advantages
    for row in found:
        assert torch.allclose(row, earned - earned.mean(), rtol=0, atol=IDENTITY)
    assert float((paid[0] - paid[0].mean()).abs().max()) > 0.01


@pytest.mark.parametrize("averaged", [False, True])
def test_the_loss_of_one_row_is_that_of_the_row_among_others(averaged: bool):
    problem, path = few()
    estimator, policy = DDPO(averaged=averaged), away(problem)
    rows = estimator.label(problem, policy, path).step(1)
    whole = estimator.loss(problem, policy, 1, rows)
    for i in range(FEW):
        one = dataclasses.replace(
            rows,
            **{
                field.name: getattr(rows, field.name)[i : i + 1]
                for field in dataclasses.fields(rows)
                if getattr(rows, field.name) is not None
            },
        )
        assert torch.allclose(estimator.loss(problem, policy, 1, one), whole[i], rtol=IDENTITY)


def test_controls_are_those_of_the_paths_up_to_half_the_digits():
    _, path = few()
    room = HALF * (1 + path.controls.abs())
    assert on_policy(path.controls + 0.9 * room, path)
    assert not on_policy(path.controls + 1.1 * room, path)


def test_starts_of_a_group_are_one_up_to_half_the_digits_of_the_largest():
    _, path = few()
    large, spread = 1e3, torch.tensor([-1.0, 1.0] * (FEW // 2), dtype=F64)
    apart = HALF * (1 + large) * spread
    require_same_starts(started(path, (large + 0.9 * apart).tolist()), None, "it")
    with pytest.raises(InvalidProblem, match="initial states of a group differ by"):
        require_same_starts(started(path, (large + 1.1 * apart).tolist()), None, "it")


def test_a_start_at_the_mean_of_its_group_does_not_hide_the_others():
    _, path = few()
    with pytest.raises(InvalidProblem, match="initial states of a group differ by 1 from"):
        require_same_starts(started(path, [-1.0, 0.0, 1.0, -1.0, 0.0, 1.0]), None, "it")


def test_a_reward_that_is_not_finite_is_named_before_it_makes_every_target_so():
    problem, path = few()
    worst = float(path.final[:, 0].max())

    def holed(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] == worst, torch.nan, x.sum(1))

    broken = ControlProblem(problem.reference, FunctionReward(holed), problem.beta)
    with pytest.raises(InvalidProblem, match="the reward is nan on 1 of 6 paths"):
        LogVariance().label(broken, away(problem), path)
