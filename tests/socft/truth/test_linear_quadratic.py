"""The linear-quadratic truth against brute-force maximisation and derivatives of its value."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from socft.checks import InvalidProblem
from socft.policy import AffinePolicy
from socft.problem import ControlProblem, RunningCost
from socft.reference import (
    AffineReference,
    KernelReference,
    ScalarDiffusion,
)
from socft.reward import Linear, Quadratic, Sine
from socft.truth import quadratic
from socft.truth.linear_quadratic import (
    LinearQuadratic,
    QuadraticCost,
    evaluate_affine,
)
from tests.support.quadratic.cases import (
    ROUNDING,
    SUMMED,
    Case,
    denoising,
    each_case,
    general,
    symmetric,
)
from tests.support.tensors import F64, randn

BRUTE_VALUE = (
    1e-9  # BFGS stops at gradients of 1e-6; the value is off by their square over the curvature
)
BRUTE_CONTROL = 1e-5  # BFGS stops at gradients of 1e-6, over a curvature of at least 0.1


def bellman(
    problem: ControlProblem, value: Callable[[Tensor], Tensor], k: int, x: Tensor
) -> tuple[float, np.ndarray]:
    """Maximum and maximiser over v of E value(m + B (v + xi)) - beta |v|^2 / 2 - f_k(x), by BFGS
    and Gauss-Hermite.
    """
    (m,) = problem.reference.noise_dims
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    xi = torch.tensor(np.array(list(itertools.product(nodes, repeat=m))), dtype=F64)
    weight = torch.tensor(
        np.array([math.prod(w) for w in itertools.product(weights / weights.sum(), repeat=m)]),
        dtype=F64,
    )
    points = x.expand(len(xi), -1)

    def loss(v: np.ndarray) -> float:
        control = torch.tensor(v, dtype=F64)
        after = value(problem.reference.step(k, points, control + xi))
        return float(problem.beta[k] * control.square().sum() / 2 - weight @ after)

    found = minimize(loss, np.zeros(m), method="BFGS", options={"gtol": 1e-7})
    return -found.fun - float(problem.cost(k, x.unsqueeze(0))), found.x


@each_case
def test_the_value_solves_the_bellman_equation_at_the_optimal_control(case: Case):
    problem, truth = case.problem, LinearQuadratic(case.problem)
    for k in range(problem.steps):
        for x in randn(k, 2, *problem.reference.dims):
            maximum, maximiser = bellman(
                problem, lambda y, after=k + 1: truth.value(after, y), k, x
            )
            assert maximum == pytest.approx(float(truth.value(k, x[None])), abs=BRUTE_VALUE)
            np.testing.assert_allclose(maximiser, truth.control(k, x[None])[0], atol=BRUTE_CONTROL)
    x = randn(99, 5, *problem.reference.dims)
    torch.testing.assert_close(
        truth.value(problem.steps, x), problem.reward(x), rtol=ROUNDING, atol=ROUNDING
    )


@each_case
def test_gradient_and_pushed_costate_are_derivatives_of_the_value(case: Case):
    problem, truth = case.problem, LinearQuadratic(case.problem)
    for k in range(problem.steps + 1):
        x = randn(k + 1, 3, *problem.reference.dims).requires_grad_(True)
        (slope,) = torch.autograd.grad(truth.value(k, x).sum(), x)
        torch.testing.assert_close(
            truth.value_gradient(k, x.detach()), slope, rtol=ROUNDING, atol=ROUNDING
        )
    for k in range(problem.steps):
        x = randn(k + 2, 3, *problem.reference.dims)
        after = truth.value_gradient(k + 1, problem.reference.step(k, x, truth.control(k, x)))
        torch.testing.assert_close(truth.pushed_costate(k, x), after, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("limit", [quadratic.GATHER_LIMIT, 0], ids=["gathered", "grouped"])
@each_case
def test_one_step_per_sample_agrees_with_one_step(
    case: Case, limit: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(quadratic, "GATHER_LIMIT", limit)
    problem, truth = case.problem, LinearQuadratic(case.problem)
    k = torch.arange(problem.steps + 1)
    x = randn(5, problem.steps + 1, *problem.reference.dims)
    value, slope = truth.value(k, x), truth.value_gradient(k, x)
    control, push = truth.control(k[:-1], x[:-1]), truth.pushed_costate(k[:-1], x[:-1])
    for i in range(problem.steps + 1):
        row = x[i : i + 1]
        torch.testing.assert_close(
            value[i : i + 1], truth.value(i, row), rtol=ROUNDING, atol=ROUNDING
        )
        torch.testing.assert_close(
            slope[i : i + 1], truth.value_gradient(i, row), rtol=ROUNDING, atol=ROUNDING
        )
        if i < problem.steps:
            torch.testing.assert_close(
                control[i : i + 1], truth.control(i, row), rtol=ROUNDING, atol=ROUNDING
            )
            torch.testing.assert_close(
                push[i : i + 1], truth.pushed_costate(i, row), rtol=ROUNDING, atol=ROUNDING
            )
    assert truth.value(k, x.float()).dtype == truth.control(0, x.float()).dtype == torch.float32


@each_case
def test_objective_hessian_and_affine_policy_agree_with_evaluating_the_optimum(case: Case):
    problem, truth = case.problem, LinearQuadratic(case.problem)
    policy = truth.affine_policy
    found = truth.evaluate(policy)
    assert found.objective == pytest.approx(truth.objective, rel=SUMMED)
    for k in range(problem.steps):
        x = randn(k, 4, *problem.reference.dims)
        torch.testing.assert_close(
            policy(k, x).detach(), truth.control(k, x), rtol=ROUNDING, atol=ROUNDING
        )
        torch.testing.assert_close(truth.policy(k, x), truth.control(k, x))
    for k in range(problem.steps + 1):
        torch.testing.assert_close(
            found.value.hessian[k], truth.hessian(k), rtol=SUMMED, atol=SUMMED
        )
    torch.testing.assert_close(found.value.slope, truth.slope, rtol=SUMMED, atol=SUMMED)
    torch.testing.assert_close(found.value.constant, truth.constant, rtol=SUMMED, atol=SUMMED)


@each_case
def test_no_affine_policy_does_better(case: Case):
    truth = LinearQuadratic(case.problem)
    best = truth.affine_policy
    for seed in range(5):
        gain = best.gain.detach() + 0.05 * randn(seed, *best.gain.shape)
        other = AffinePolicy(
            gain, best.offset.detach() + 0.05 * randn(seed + 100, *best.offset.shape)
        )
        assert truth.evaluate(other).objective < truth.objective
    slope = truth.gradient(best)
    assert float(slope.gain.abs().max()) < SUMMED * (1 + abs(truth.objective))
    assert float(slope.offset.abs().max()) < SUMMED * (1 + abs(truth.objective))


@pytest.mark.parametrize(
    "problem",
    [
        denoising(1, 6, 3),
        denoising(3, 6, 3),
        denoising(3, 6, 4, commuting=True),
        general(2, 1, 5, 60, running=False),
    ],
    ids=["elementwise", "difference", "commuting", "recursion"],
)
def test_the_beta_it_asks_for_is_the_smallest(problem: ControlProblem):
    """Just above it the problem is solved, just below it is refused at step 0, the
    last to break.
    """
    problem = dataclasses.replace(
        problem, reward=Quadratic(torch.eye(*problem.reference.dims, dtype=F64))
    )
    with pytest.raises(InvalidProblem, match="raise beta above") as refusal:
        LinearQuadratic(dataclasses.replace(problem, beta=torch.tensor(1e-3)))
    asked = float(str(refusal.value).split("raise beta above ")[1].rstrip("."))
    LinearQuadratic(dataclasses.replace(problem, beta=torch.tensor(asked)))
    with pytest.raises(InvalidProblem, match=r"smallest eigenvalue -\d.* at step 0"):
        LinearQuadratic(dataclasses.replace(problem, beta=torch.tensor(asked * 0.9999)))


def test_the_refusal_names_the_step_the_eigenvalue_and_the_remedy():
    reference = AffineReference(
        torch.full((3, 1, 1), 1.0), ScalarDiffusion(torch.tensor([1.0, 1.0, 2.0]))
    )
    reward = Quadratic(torch.tensor([[1.0]]))
    message = (
        r"beta\[2\] = 3 leaves beta I - B' P B with smallest eigenvalue -1 at step 2; .*raise beta"
        r" above 6.0000"
    )
    with pytest.raises(InvalidProblem, match=message):
        LinearQuadratic(ControlProblem(reference, reward, torch.tensor(3.0)))
    with pytest.raises(
        InvalidProblem, match=r"multiply every beta by more than 1\.9166"
    ):  # 1/3 + 1/4 + 4/3
        LinearQuadratic(ControlProblem(reference, reward, torch.tensor([3.0, 4.0, 3.0])))
    with pytest.raises(InvalidProblem, match=r"raise beta\[2\] above 4\.0000"):
        LinearQuadratic(
            ControlProblem(
                reference, reward, torch.tensor(3.0), QuadraticCost(torch.tensor([[0.1]]))
            )
        )


def shallow(problem: ControlProblem, cost: RunningCost | None) -> ControlProblem:
    return dataclasses.replace(problem, running_cost=cost)


@pytest.mark.refusal
def test_what_has_no_closed_form_is_refused():
    problem = denoising(2, 3, 1)
    kernel = KernelReference(lambda k, x: x, ScalarDiffusion(torch.ones(3)), 3, (2,))
    refusals: dict[str, Callable[[], object]] = {
        "the reference is a KernelReference": lambda: LinearQuadratic(
            dataclasses.replace(problem, reference=kernel)
        ),
        "Sine has no closed-form": lambda: LinearQuadratic(
            dataclasses.replace(denoising(1, 3, 1), reward=Sine())
        ),
        "the running cost is a function": lambda: LinearQuadratic(
            shallow(problem, lambda k, x: x.sum(1))
        ),
        r"F of shape \(4, 2, 2\)": lambda: LinearQuadratic(
            shallow(problem, QuadraticCost(torch.eye(2).expand(4, 2, 2)))
        ),
        r"the running cost fails on tensors of shape \(2, 2\)": lambda: shallow(
            problem, QuadraticCost(torch.eye(3))
        ),
        r"F has shape \(2, 3\)": lambda: QuadraticCost(torch.ones(2, 3)),
        r"h has shape \(3,\)": lambda: QuadraticCost(torch.eye(2), torch.ones(3)),
        "F differs from its transpose by 1": lambda: QuadraticCost(
            torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        ),
        r"F\[0, 0\] = nan": lambda: QuadraticCost(torch.tensor([[math.nan]])),
        r"this problem needs \(3, 2, 2\)": lambda: evaluate_affine(
            problem, AffinePolicy(torch.zeros(4, 2, 2), torch.zeros(4, 2))
        ),
        "a running cost tilts paths": (
            lambda: LinearQuadratic(shallow(problem, QuadraticCost(torch.eye(2)))).tilt()
        ),
        "beta runs from 2 to 4; memory_gap": (
            lambda: LinearQuadratic(
                dataclasses.replace(problem, beta=torch.tensor([2.0, 3.0, 4.0]))
            ).memory_gap()
        ),
    }
    for message, refused in refusals.items():
        with pytest.raises(InvalidProblem, match=message):
            refused()


def test_a_linear_reward_moves_the_mean_along_it():
    """With V_k = q_k . x + c_k nothing depends on curvature: the control is B' A'...A' w / beta."""
    problem = dataclasses.replace(denoising(2, 4, 1), reward=Linear(torch.tensor([1.0, -2.0]), 0.5))
    reference, truth = problem.reference, LinearQuadratic(problem)
    assert isinstance(reference, AffineReference)
    costate = torch.tensor([1.0, -2.0], dtype=F64)
    for k in reversed(range(4)):
        expected = reference.diffusion.transpose(k, costate[None], costate[None]) / 2.0
        torch.testing.assert_close(
            truth.control(k, randn(k, 3, 2)), expected.expand(3, 2), rtol=ROUNDING, atol=ROUNDING
        )
        costate = reference.transition[k].mT @ costate


@pytest.mark.parametrize(
    "cost",
    [
        QuadraticCost(symmetric(1, 2), randn(2, 2)),
        QuadraticCost(torch.stack([symmetric(1, 2)] * 3)),
    ],
)
def test_a_quadratic_cost_is_the_quadratic_it_names(cost: QuadraticCost):
    k, x = torch.tensor([2, 0, 1]), randn(3, 3, 2)
    expected = [
        float(row @ symmetric(1, 2) @ row / 2 + (cost.h @ row if cost.h.any() else 0)) for row in x
    ]
    np.testing.assert_allclose(cost(k, x), expected, rtol=ROUNDING)
    np.testing.assert_allclose(cost(1, x), expected, rtol=ROUNDING)
