"""The Riccati equation in continuous time against ODE solvers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import solve_continuous_are

from socft.checks import InvalidProblem
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    MatrixDiffusion,
)
from socft.reward import Quadratic
from socft.truth.linear_quadratic import (
    LinearQuadratic,
    QuadraticCost,
    riccati,
)
from tests.support.quadratic.cases import SUMMED, order
from tests.support.tensors import F64, randn

ODE = 1e-8  # solve_ivp at rtol 1e-11 over a few time units
OSCILLATOR = {
    "A": torch.tensor([[0.0, 1.0], [-1.0, -0.5]], dtype=F64),
    "B": torch.tensor([[0.2], [1.0]], dtype=F64),
    "terminal": torch.tensor([[-1.0, 0.3], [0.3, 0.4]], dtype=F64),
    "running": torch.tensor([[1.0, 0.2], [0.2, 0.5]], dtype=F64),
}


def test_riccati_solves_its_differential_equation():
    A, B, terminal, running = (
        OSCILLATOR[name].numpy() for name in ("A", "B", "terminal", "running")
    )
    beta, horizon = 1.5, 2.0

    def backward(s: float, y: np.ndarray) -> np.ndarray:
        P = y[:4].reshape(2, 2)
        return np.append(
            (A.T @ P + P @ A + P @ B @ B.T @ P / beta - running).ravel(), np.trace(B.T @ P @ B) / 2
        )

    solved = solve_ivp(
        backward,
        (0, horizon),
        np.append(terminal.ravel(), 0.0),
        rtol=1e-11,
        atol=1e-12,
        t_eval=[0.0, 0.3, 1.1, 2.0],
    )
    found = riccati(**OSCILLATOR, beta=beta, horizon=horizon)
    for s, y in zip(solved.t.tolist(), solved.y.T, strict=True):
        np.testing.assert_allclose(found.hessian(horizon - s), y[:4].reshape(2, 2), atol=ODE)
        assert found.constant(horizon - s) == pytest.approx(y[4], abs=ODE)
    x = randn(1, 3, 2)
    torch.testing.assert_close(
        found.control(0.7, x), x @ found.hessian(0.7).mT @ OSCILLATOR["B"] / beta
    )


def test_riccati_over_a_long_horizon_is_stationary():
    """Far from the end P is minus the solution of the algebraic Riccati equation, and c grows at
    the rate tr(B' P B) / 2.
    """
    A, B, running, beta = OSCILLATOR["A"], OSCILLATOR["B"], torch.eye(2, dtype=F64), 1.5
    limit = -solve_continuous_are(A.numpy(), B.numpy(), running.numpy(), beta * np.eye(1))
    found = riccati(A, B, OSCILLATOR["terminal"], running, beta, horizon=200.0)
    np.testing.assert_allclose(found.hessian(0.0), limit, rtol=SUMMED)
    rate = np.trace(B.numpy().T @ limit @ B.numpy()) / 2
    assert found.constant(10.0) - found.constant(30.0) == pytest.approx(20 * rate, rel=SUMMED)


def test_the_discrete_value_tends_to_the_continuous_one_at_order_one():
    beta, horizon = 1.5, 2.0
    limit = riccati(**OSCILLATOR, beta=beta, horizon=horizon)
    hessians, constants = [], []
    for steps in (100, 200, 400):
        dt = horizon / steps
        A = (torch.eye(2, dtype=F64) + dt * OSCILLATOR["A"]).expand(steps, 2, 2)
        reference = AffineReference(
            A, MatrixDiffusion(dt**0.5 * OSCILLATOR["B"].expand(steps, 2, 1))
        )
        cost = QuadraticCost(dt * OSCILLATOR["running"])
        truth = LinearQuadratic(
            ControlProblem(reference, Quadratic(OSCILLATOR["terminal"]), torch.tensor(beta), cost)
        )
        hessians.append(float((truth.hessian(0) - limit.hessian(0.0)).norm()))
        constants.append(abs(float(truth.constant[0]) - limit.constant(0.0)))
    assert order(hessians) == pytest.approx(1.0, abs=0.05)
    assert order(constants) == pytest.approx(1.0, abs=0.05)
    assert hessians[-1] < 0.01


@pytest.mark.parametrize("n", [1, 2])
def test_riccati_refuses_horizons_beyond_the_escape(n: int):
    """With A = 0 and terminal p I the value is p / (1 - p t / beta): infinite at t = beta / p, in
    every direction at once.
    """
    zero, eye = torch.zeros(n, n, dtype=F64), torch.eye(n, dtype=F64)
    before = riccati(zero, eye, 2 * eye, beta=3.0, horizon=1.4999)
    assert float(before.hessian(0.0)[0, 0]) == pytest.approx(2 / (1 - 2 * 1.4999 / 3), rel=1e-8)
    for horizon in (1.5001, 40.0):
        with pytest.raises(
            InvalidProblem,
            match=f"at beta = 3 the value is infinite .* before the horizon of {horizon:g}",
        ):
            riccati(zero, eye, 2 * eye, beta=3.0, horizon=horizon)


def test_riccati_refuses_horizons_at_which_a_running_reward_escapes():
    """A cost rate of -x^2 / 2 alone gives -P' = P^2 + 1: P = tan(horizon - t), infinite at pi / 2
    and finite again later.
    """
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    assert float(riccati(zero, one, zero, -one, horizon=1.5).hessian(0.0)) == pytest.approx(
        math.tan(1.5), rel=SUMMED
    )
    for horizon in (1.6, 2.0, 7.0):
        with pytest.raises(InvalidProblem, match="the value is infinite"):
            riccati(zero, one, zero, -one, horizon=horizon)


@pytest.mark.refusal
def test_malformed_continuous_problems_are_refused():
    eye = torch.eye(2)
    refusals: dict[str, Callable[[], object]] = {
        r"terminal has shape \(3, 3\); give \(2, 2\)": lambda: riccati(eye, eye, torch.eye(3)),
        r"terminal\[0, 0\] = nan": lambda: riccati(eye, eye, eye * math.nan),
        "beta = 0": lambda: riccati(eye, eye, eye, beta=0.0),
        "horizon = inf": lambda: riccati(eye, eye, eye, horizon=math.inf),
        r"t = 3; it must lie in \[0, 1\]": lambda: riccati(eye, eye, -eye).hessian(3.0),
    }
    for message, refused in refusals.items():
        with pytest.raises(InvalidProblem, match=message):
            refused()
