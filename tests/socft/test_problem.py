"""The control problem's door: what it stores, what it refuses, and that |v|^2 / 2 is the divergence
it claims.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from socft.checks import InvalidProblem, per_step, require_finite
from socft.measurement import measure, observe
from socft.policy import FunctionPolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    Reference,
    ScalarDiffusion,
)
from socft.reward import FunctionReward, Linear, Quadratic
from socft.schedule import ddpm
from socft.train import Iteration
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from tests.support.tensors import F64, randn, t
from toy.problems import FINE_TUNING, fine_tuning

CLOSED = 1e-12  # a Cholesky factorisation of a 2 x 2 covariance
REWARD = Linear(torch.tensor([1.0, -2.0], dtype=F64))


def chain(
    steps: int = 3, n: int = 2, diffusion: ScalarDiffusion | MatrixDiffusion | None = None
) -> AffineReference:
    return AffineReference(
        0.9 * torch.eye(n, dtype=F64).expand(steps, n, n),
        diffusion or ScalarDiffusion(torch.linspace(0.5, 0.2, steps, dtype=F64)),
    )


def test_one_weight_is_repeated_at_every_step():
    assert torch.equal(ControlProblem(chain(), REWARD, 2.5).beta, t(2.5, 2.5, 2.5))
    assert torch.equal(ControlProblem(chain(), REWARD, torch.tensor(2)).beta, t(2.0, 2.0, 2.0))
    assert ControlProblem(chain(), REWARD, torch.tensor([1.0, 2.0, 3.0])).beta.dtype == F64
    assert ControlProblem(chain(), REWARD, 1.0).steps == 3


def test_changing_the_weights_afterwards_does_not_change_the_problem():
    weights = t(1.0, 2.0, 3.0)
    problem = ControlProblem(chain(), REWARD, weights)
    weights[1] = -5.0
    assert torch.equal(problem.beta, t(1.0, 2.0, 3.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.beta = weights  # type: ignore[misc]


@pytest.mark.parametrize(
    ("beta", "message"),
    [
        (0.0, r"beta\[0\] = 0; every KL weight must be positive"),
        (-1.0, r"beta\[0\] = -1; every KL weight must be positive"),
        (t(1.0, 0.5, -0.25), r"beta\[2\] = -0.25; every KL weight must be positive"),
        (math.nan, "beta = nan; it must be a finite number"),
        (t(1.0, math.inf, 1.0), r"beta\[1\] = inf; it must be a finite number"),
        (1e-60, r"beta\[0\] = 1e-60; it must be at least 1e-50"),
        (1e60, r"beta = 1e\+60; it must be at most 1e\+50 in size"),
        (t(1.0, 2.0), r"beta has shape \(2,\); give one number or 3 values, one per step"),
        (torch.ones(3, 1), r"beta has shape \(3, 1\); give one number or 3 values"),
        (t(1.0), r"beta has shape \(1,\); give one number or 3 values"),
    ],
)
def test_impossible_weights_are_refused_with_their_value(beta: float | Tensor, message: str):
    with pytest.raises(InvalidProblem, match=message):
        ControlProblem(chain(), REWARD, beta)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            lambda x: x.sum(),
            (
                r"the reward returned a tensor of float64, shape \(\); it must return a tensor of"
                r" shape \(2,\)"
            ),
        ),
        (lambda x: x, r"the reward returned a tensor of float64, shape \(2, 2\)"),
        (lambda x: x.sum(1, keepdim=True), r"the reward returned a tensor of .* \(2, 1\)"),
        (lambda x: 1.0, "the reward returned a float; it must return"),
        (lambda x: None, "the reward returned None; it must"),
        (lambda x: x[:, 0].log(), r"the reward\[0\] = nan; the reward must be finite"),
        (
            lambda x: 1 / (x[:, 0] - 0.5),
            r"the reward\[1\] = inf; the reward must be finite",
        ),
    ],
)
def test_rewards_that_are_not_one_finite_number_per_sample_are_refused(reward, message: str):
    with pytest.raises(InvalidProblem, match=message):
        ControlProblem(chain(), reward, 1.0)


def test_a_function_of_the_states_is_a_reward_with_its_derivative():
    problem, x = ControlProblem(chain(), lambda x: x.square().sum(1), 1.0), randn(1, 4, 2)
    assert torch.equal(problem.reward(x), x.square().sum(1))
    torch.testing.assert_close(problem.reward.gradient(x), 2 * x)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((chain(), 3.0, 1.0), "the reward is a float; give a function of the states, or a Reward"),
        (("sd", REWARD, 1.0), "the reference is a str; give a Reference"),
        (
            (chain(), REWARD, 1.0, lambda k, x: x),
            r"the running cost returned a tensor of float64, shape \(2, 2\)",
        ),
        ((chain(), REWARD, "b"), "beta = 'b'; give a number, an array, or"),
    ],
)
def test_what_is_no_problem_is_refused(given: tuple[Any, ...], message: str):
    with pytest.raises(InvalidProblem, match=message):
        ControlProblem(*given)


@pytest.mark.parametrize("function", [lambda x: x.detach().sum(1), lambda x: torch.ones(len(x))])
def test_a_reward_without_a_gradient_is_refused_where_one_is_needed(function):
    """Estimators that need no gradient take it; a truth says what it lacks."""
    problem = ControlProblem(chain(1, 1), function, 1.0)
    with pytest.raises(InvalidProblem, match="the reward has no gradient: its value does not dep"):
        problem.reward.gradient(randn(2, 3, 1))
    with pytest.raises(InvalidProblem, match="the reward has no gradient: its value does not dep"):
        Quadrature(problem)


def test_a_step_function_is_refused_where_a_gradient_is_needed():
    """Its gradient is zero wherever there is one, so nothing would be learnt, in silence; a
    constant and a reward that is flat in places are what they are.
    """
    states = torch.linspace(-1.9, 1.9, 64, dtype=torch.float64).unsqueeze(1)
    for steps in (lambda x: x.floor().sum(1), lambda x: (x.sum(1) > 0).double() + 0 * x.sum(1)):
        with pytest.raises(InvalidProblem, match="different values at 64 states and has grad"):
            FunctionReward(steps).gradient(states)
    for flat in (lambda x: 1 + 0 * x.sum(1), lambda x: x.sum(1).clamp(min=2.5)):
        FunctionReward(flat).gradient(states)


@pytest.mark.parametrize("convert", [list, np.array, lambda values: np.float32(values)])
def test_numbers_come_in_any_form(convert):
    """Lists, arrays and single precision are converted; the algebra is in double precision."""
    levels = convert([0.5, 0.75, 1.0])
    assert torch.equal(ddpm(levels).abar, t(0.5, 0.75, 1.0))
    assert torch.equal(Linear(levels).w, t(0.5, 0.75, 1.0))
    assert torch.equal(ScalarDiffusion(levels).sigma, t(0.5, 0.75, 1.0))
    problem = ControlProblem(chain(3), REWARD, levels)
    assert problem.beta.dtype == torch.float64


def test_the_reward_is_probed_on_states_of_the_reference():
    """At the initial states of noise -1/2 and 1/2, whatever their shape."""
    seen = []

    def reward(x: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1).sum(1)

    reference = KernelReference(
        lambda k, x: x, ScalarDiffusion(t(1.0)), 1, (3, 4, 4), lambda z: 10 + 2 * z
    )
    ControlProblem(reference, FunctionReward(reward), 1.0)
    assert seen[0].shape == (2, 3, 4, 4)
    assert torch.equal(
        seen[0],
        torch.stack(
            [torch.full((3, 4, 4), 9.0, dtype=F64), torch.full((3, 4, 4), 11.0, dtype=F64)]
        ),
    )


def test_the_running_cost_is_zero_where_there_is_none():
    x = randn(0, 5, 2)
    assert torch.equal(ControlProblem(chain(), REWARD, 1.0).cost(1, x), torch.zeros(5, dtype=F64))
    assert ControlProblem(chain(), REWARD, 1.0).cost(1, x.float()).dtype == torch.float32
    cost = ControlProblem(chain(), REWARD, 1.0, lambda k, x: k * x[:, 0]).cost(2, x)
    assert torch.equal(cost, 2 * x[:, 0])


DIFFUSIONS = {
    "scalar": ScalarDiffusion(t(0.5, 0.3)),
    "square": MatrixDiffusion(randn(1, 2, 2, 2)),
    "more noise than states": MatrixDiffusion(randn(2, 2, 2, 3)),
}


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_divergence_of_a_controlled_kernel_is_half_the_squared_control(name: str):
    """N(m + B v, B B') from N(m, B B'), by torch's closed form; the least control that makes a
    shift is what it costs.
    """
    reference: Reference = chain(2, 2, DIFFUSIONS[name])
    (m,) = reference.noise_dims
    for k in range(2):
        x, v = randn(3, 1, 2), randn(4, 1, m)
        B = reference.diffusion.apply(k, x.expand(m, 2), torch.eye(m, dtype=F64)).T
        mean = reference.mean(k, x)
        least = reference.diffusion.whiten(k, x, reference.diffusion.apply(k, x, v))
        plain = MultivariateNormal(mean[0], B @ B.T)
        moved = MultivariateNormal(reference.step(k, x, v)[0], B @ B.T)
        assert (
            abs(float(kl_divergence(moved, plain) - least.square().sum() / 2))
            < CLOSED * float(v.square().sum() + 1) * 10
        )
        assert least.norm() <= v.norm() * (1 + CLOSED)
        if m == 2:
            assert (least - v).abs().max() < CLOSED * 10


def test_the_divergence_of_a_degenerate_kernel_lives_on_its_range():
    """One noise in two dimensions: along the unit vector of B the kernels are N(. + |B| v,
    |B|^2).
    """
    B = randn(5, 1, 2, 1)
    reference, v = chain(1, 2, MatrixDiffusion(B)), t(0.7)[:, None]
    x, length = randn(6, 1, 2), B.norm()
    along = B[0, :, 0] / length
    shift = float((reference.step(0, x, v) - reference.mean(0, x))[0] @ along)
    closed_form = shift**2 / (2 * float(length) ** 2)
    assert abs(closed_form - 0.7**2 / 2) < CLOSED
    assert (
        abs(float(reference.diffusion.whiten(0, x, reference.diffusion.apply(0, x, v))) - 0.7)
        < CLOSED
    )


def test_per_step_and_finite_checks_name_the_entry():
    with pytest.raises(InvalidProblem, match=r"lam\[1, 2\] = nan; mend it"):
        require_finite(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, math.nan]]), "lam", "mend it")
    assert torch.equal(per_step(3, 2, "lam"), t(3.0, 3.0))


def test_measurements_compare_an_iterate_with_the_truth():
    """For a policy a constant c away from the optimum of a quadratic problem everything is known by
    hand.
    """
    problem = ControlProblem(chain(2, 1), Quadratic(t(-1.0)[:, None], t(0.5)), 1.0)
    truth, c = LinearQuadratic(problem), 0.25
    policy = FunctionPolicy(lambda k, x: truth.control(k, x) + (c if k == 1 else 0.0))
    steeper = lambda k, x: truth.value_gradient(k, x) + (0.5 if k == 0 else 0.0)  # noqa: E731
    found = measure(truth, Iteration(7, policy, 0.0, 0, value_gradient=steeper))
    assert (found.control_error - t(0.0, c)).abs().max() < CLOSED
    assert found.value_gradient_error is not None
    assert (found.value_gradient_error - t(0.5, 0.0, 0.0)).abs().max() < CLOSED
    # at the last step r(m + s (v + xi)) - v^2 / 2 has the second derivative -(1 + s^2) in v, s =
    # 0.2
    assert abs(found.objective_gap - (1 + 0.2**2) * c**2 / 2) < 4 * found.evaluation.stderr + CLOSED
    assert (
        measure(truth, Iteration(0, Uncontrolled(problem.reference), 0.0, 0)).value_gradient_error
        is None
    )


def test_observing_measures_every_so_many_iterates():
    problem = ControlProblem(chain(2, 1), Quadratic(t(-1.0)[:, None]), 1.0)
    iterations = (Iteration(i, Uncontrolled(problem.reference), 0.0, 0) for i in range(8))
    assert [m.iteration.index for m in observe(LinearQuadratic(problem), iterations, every=3)] == [
        0,
        3,
        6,
    ]


@pytest.mark.parametrize("every", [0, -2])
def test_observing_refuses_a_stride_that_is_not_positive(every: int):
    problem = ControlProblem(chain(2, 1), Quadratic(t(-1.0)[:, None]), 1.0)
    with pytest.raises(
        InvalidProblem,
        match=f"^every = {every}; give a whole number that is at least 1.$",
    ):
        observe(LinearQuadratic(problem), [], every=every)


@pytest.mark.parametrize("name", FINE_TUNING)
def test_named_problems_are_found_by_name(name: str):
    case = fine_tuning(name)
    assert case.name == name
    assert case.density.dims == (1,)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        InvalidProblem,
        match="there is no problem 'sine'; did you mean ",
    ):
        fine_tuning("sine")
