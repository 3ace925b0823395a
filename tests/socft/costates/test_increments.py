"""Increments of quadratic fields are exact, and the work of a costate is counted exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.costates.adjoint import Adjoint, FullRecursion, LeanRecursion, backward_pass
from socft.costates.base import Cost
from socft.costates.fields import differentiated, times, total
from socft.costates.increments import AnalyticIncrement, FiniteDifferenceIncrement
from socft.costates.time_reversal import Reversal
from socft.path import Noise, rollout
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference, DenseMaps, MatrixDiffusion
from tests.support.tensors import F64, generator, randn

ROUNDING = 1e-12
STEPS, DIM, NOISE, PATHS = 4, 3, 2, 5
DIFFUSION = randn(1, STEPS, DIM, NOISE)
REFERENCE = AffineReference(DenseMaps(0.5 * randn(2, STEPS, DIM, DIM)), MatrixDiffusion(DIFFUSION))
PROBLEM = ControlProblem(REFERENCE, lambda x: torch.sin(x).sum(1), 0.7)
BEND = randn(3, DIM, DIM, DIM)
BEND = BEND + BEND.mT
SLOPE = randn(4, DIM, DIM)
REVERSED = ((5, STEPS + 1, DIM), (6, STEPS, DIM), (7, STEPS, DIM), (8, STEPS, NOISE))


def field(x: Tensor) -> Tensor:
    """``x' A_i x / 2 + b_i' x``, i = 1..d."""
    return torch.einsum("bj,ijk,bk->bi", x, BEND, x) / 2 + x @ SLOPE.T


def slope(x: Tensor, u: Tensor) -> Tensor:
    return torch.einsum("bj,ijk,bk->bi", x, BEND, u) + u @ SLOPE.T


def bend(u: Tensor) -> Tensor:
    return torch.einsum("bj,ijk,bk->bi", u, BEND, u)


def test_gains_of_a_quadratic_field():
    """Both by hand; with the noise's own moments they differ by the bend along the drift."""
    states, drifts, noises, controls = (randn(seed, n, PATHS, m) for seed, n, m in REVERSED)
    back = Reversal(states, drifts, noises, controls)
    k = 2
    x, drift, noise = back.states[k + 1], back.drifts[k], back.noise_increments[k]
    spread = sum(bend(DIFFUSION[k, :, j].expand(PATHS, DIM)) for j in range(NOISE))
    analytic = AnalyticIncrement().along(PROBLEM, field, back, k)
    expected = slope(x, drift + noise) + spread
    torch.testing.assert_close(analytic, expected, rtol=ROUNDING, atol=ROUNDING)
    differences = FiniteDifferenceIncrement().along(PROBLEM, field, back, k)
    moved = slope(x + drift, noise) + bend(noise) + slope(x, drift) + bend(drift) / 2
    torch.testing.assert_close(differences, moved, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("adjoint", [LeanRecursion(), FullRecursion()], ids=["lean", "full"])
def test_costates_stand_at_the_states_of_the_path(adjoint: Adjoint):
    policy = AffinePolicy.zeros(REFERENCE)
    noise = Noise.sample(REFERENCE, PATHS, generator(8))
    path = rollout(REFERENCE, policy, noise)
    steps = list(backward_pass(adjoint, PROBLEM, policy, path))
    assert [step.k for step in steps] == [4, 3, 2, 1, 0]
    assert all(torch.equal(step.state, path.states[step.k]) for step in steps)


def test_pulling_a_costate_back_leaves_the_states_alone():
    x, costate = randn(9, PATHS, DIM), randn(10, PATHS, DIM)
    pulled = LeanRecursion().vjp(PROBLEM, AffinePolicy.zeros(REFERENCE), 1, x, costate)
    assert not x.requires_grad
    assert not pulled.requires_grad
    assert pulled.dtype == F64


def test_work_adds_up():
    assert Cost() == Cost(0, 0, 0, 0, 1)
    assert times(3, Cost(2, 3, 5, 7, "T")) == Cost(6, 9, 15, 21, 0)
    assert total(Cost(1, 2, 3, 4, 0), Cost(5, 6, 7, 8, 2)) == Cost(6, 8, 10, 12, 2)
    assert total(Cost(memory="T"), Cost(memory=1)).memory == "T"


def test_each_derivative_passes_through_what_it_is_taken_of():
    """A value once per derivative, what is a derivative already once more."""
    assert differentiated(Cost(2, 3, 5, 7, 1)) == Cost(0, 8, 0, 19, 1)
    assert differentiated(Cost(2, 3, 5, 7, "T"), 2) == Cost(0, 13, 0, 31, "T")
