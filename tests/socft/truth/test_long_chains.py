"""The linear-quadratic truth over many steps, against 50-digit arithmetic and other orders of the
same computation."""

from __future__ import annotations

import dataclasses
import decimal

import numpy as np
import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    DenseMaps,
    MatrixDiffusion,
    ScalarDiffusion,
    SpectralMaps,
)
from socft.reward import Quadratic
from socft.schedule import ddpm, linear_levels
from socft.truth import curvature
from socft.truth.linear_quadratic import (
    LinearQuadratic,
    QuadraticCost,
)
from tests.support.quadratic.cases import (
    ROUNDING,
    SUMMED,
    denoiser,
    denoising,
    general,
    orthonormal,
)
from tests.support.tensors import F64, randn


@dataclasses.dataclass(frozen=True)
class Exact:
    """``P_0``, ``q_0``, ``c_0`` and the total Gibbs gap, rounded from 50 digits."""

    P: Tensor
    q: Tensor
    c: float
    gap: float


def decimals(values: Tensor) -> np.ndarray:
    """The exact decimal value of every float64."""
    return np.vectorize(decimal.Decimal, otypes=[object])(values.numpy())


def solve_exactly(problem: ControlProblem) -> Exact:
    """The recursion with D = I - rho P of a diagonal reference with scalar noise and constant beta,
    n <= 2.
    """
    reference, reward = problem.reference, problem.reward
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, ScalarDiffusion)
    assert isinstance(reward, Quadratic)
    assert isinstance(reference.maps, SpectralMaps)
    rates, offsets, sigma = (
        decimals(reference.maps.eigenvalues),
        decimals(reference.offset),
        decimals(reference.diffusion.sigma),
    )
    P, q, beta = decimals(reward.P), decimals(reward.linear), decimals(problem.beta)[0]
    eye, half, c = (
        decimals(torch.eye(len(q), dtype=F64)),
        decimal.Decimal("0.5"),
        decimal.Decimal(reward.c),
    )
    determinants, spread = decimal.Decimal(1), decimal.Decimal(0)
    for a, b, s in zip(rates[::-1], offsets[::-1], sigma[::-1], strict=True):
        rho, D = s * s / beta, eye - s * s / beta * P
        inverse, determinant = adjugate(D)
        determinants *= determinant
        spread += s * s * half * P.trace()
        c += (
            s * s * half * P.trace()
            + half * rho * (q @ inverse @ q)
            + half * (b @ P @ inverse @ b)
            + q @ inverse @ b
        )
        q, P = a * (inverse.T @ (P @ b + q)), a[:, None] * (P @ inverse) * a
    gap = -beta * half * determinants.ln() - spread
    return Exact(torch.tensor(P.astype(float)), torch.tensor(q.astype(float)), float(c), float(gap))


def adjugate(M: np.ndarray) -> tuple[np.ndarray, decimal.Decimal]:
    """Inverse and determinant of a 1 x 1 or 2 x 2 matrix."""
    if len(M) == 1:
        return 1 / M, M[0, 0]
    determinant = M[0, 0] * M[1, 1] - M[0, 1] * M[1, 0]
    return np.array([[M[1, 1], -M[0, 1]], [-M[1, 0], M[0, 0]]]) / determinant, determinant


def long_chain(P: list[list[float]], beta: float) -> ControlProblem:
    """A thousand steps in the standard basis."""
    n = len(P)
    spectrum, basis = torch.tensor([0.2, 1.7], dtype=F64)[:n], torch.eye(n, dtype=F64)
    reference = denoiser(ddpm(linear_levels(1000)), spectrum, basis, randn(1, n))
    return ControlProblem(
        reference, Quadratic(torch.tensor(P, dtype=F64), randn(2, n), 0.3), torch.tensor(beta)
    )


INDEFINITE = [[1.0, 0.6], [0.6, -0.4]]
FLAT = [[-1.0, -0.6], [-0.6, -0.36]]  # a penalty on one direction


def scaled(P: list[list[float]], factor: float) -> list[list[float]]:
    return [[factor * entry for entry in row] for row in P]


@pytest.mark.parametrize(
    ("method", "P", "beta"),
    [
        ("_elementwise", [[1.0]], 2.0),
        ("_elementwise", [[1.0]], 1e8),
        ("_elementwise", [[-1e6]], 1.0),
        ("DifferenceCurvature", INDEFINITE, 3.0),
        ("DifferenceCurvature", INDEFINITE, 1e8),
        ("DifferenceCurvature", scaled(FLAT, 200.0), 1.0),
        ("_recursion", scaled(FLAT, 1e5), 1.0),
    ],
)
def test_a_thousand_steps_lose_no_precision(
    method: str, P: list[list[float]], beta: float, monkeypatch: pytest.MonkeyPatch
):
    solver, calls = getattr(curvature, method), []
    monkeypatch.setattr(curvature, method, lambda *given: calls.append(method) or solver(*given))
    problem = long_chain(P, beta)
    truth = LinearQuadratic(problem)
    assert calls == [method]
    with decimal.localcontext(prec=50):
        exact = solve_exactly(problem)
    carried = SUMMED if method == "_recursion" else ROUNDING
    assert float((truth.hessian(0) - exact.P).norm() / exact.P.norm()) < carried
    assert float((truth.slope[0] - exact.q).norm() / exact.q.norm()) < carried
    assert float(truth.constant[0]) == pytest.approx(exact.c, rel=SUMMED)
    assert float(truth.kernel_gap().sum()) == pytest.approx(exact.gap, rel=SUMMED)


@pytest.mark.parametrize("maps", [SpectralMaps, DenseMaps])
def test_three_ways_to_one_solution(maps: type):
    """The recursion on full matrices carries rounding along, the closed forms do not: agreement
    tests both.
    """
    for commuting in (True, False):
        closed = LinearQuadratic(denoising(3, 40, 7, commuting))
        other = LinearQuadratic(denoising(3, 40, 7, commuting, maps))
        x = randn(8, 6, 3)
        for k in (0, 17, 39, 40):
            torch.testing.assert_close(
                other.value(k, x), closed.value(k, x), rtol=ROUNDING, atol=ROUNDING
            )
            torch.testing.assert_close(
                other.value_gradient(k, x),
                closed.value_gradient(k, x),
                rtol=ROUNDING,
                atol=ROUNDING,
            )
        torch.testing.assert_close(other.kernel_gap(), closed.kernel_gap(), rtol=SUMMED, atol=0.0)
        assert other.memory_gap() == pytest.approx(closed.memory_gap(), rel=SUMMED)


def test_matrices_evaluated_where_asked_are_the_ones_kept(monkeypatch: pytest.MonkeyPatch):
    problem, x, k = denoising(3, 40, 7), randn(8, 41, 3), torch.arange(41)
    kept = LinearQuadratic(problem)
    monkeypatch.setattr(curvature, "STORE_LIMIT", 0)
    asked = LinearQuadratic(problem)
    assert isinstance(kept._W, curvature.StoredCurvature)
    assert isinstance(asked._W, curvature.DifferenceCurvature)
    assert asked.objective == pytest.approx(kept.objective, rel=ROUNDING)
    for name in ("value", "value_gradient"):
        torch.testing.assert_close(
            getattr(asked, name)(k, x), getattr(kept, name)(k, x), rtol=ROUNDING, atol=ROUNDING
        )
        torch.testing.assert_close(
            getattr(asked, name)(5, x), getattr(kept, name)(5, x), rtol=ROUNDING, atol=ROUNDING
        )
    torch.testing.assert_close(
        asked.control(k[:-1], x[:-1]), kept.control(k[:-1], x[:-1]), rtol=ROUNDING, atol=ROUNDING
    )
    torch.testing.assert_close(
        asked.affine_policy.gain, kept.affine_policy.gain, rtol=ROUNDING, atol=ROUNDING
    )
    torch.testing.assert_close(asked.kernel_gap(), kept.kernel_gap(), rtol=ROUNDING, atol=0.0)
    with pytest.raises(InvalidProblem, match="smallest eigenvalue") as late:
        LinearQuadratic(dataclasses.replace(problem, beta=torch.tensor(0.1)))
    monkeypatch.undo()
    with pytest.raises(InvalidProblem, match="smallest eigenvalue") as early:
        LinearQuadratic(dataclasses.replace(problem, beta=torch.tensor(0.1)))
    assert str(late.value) == str(early.value)


def rotated(problem: ControlProblem, Q: Tensor) -> ControlProblem:
    """The same problem for ``y = Q x``."""
    reference, reward = problem.reference, problem.reward
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, MatrixDiffusion)
    assert isinstance(reward, Quadratic)
    cost = problem.running_cost
    turned = (
        QuadraticCost(symmetrised(Q @ cost.F @ Q.mT), cost.h @ Q.mT)
        if isinstance(cost, QuadraticCost)
        else None
    )
    chain = AffineReference(
        Q @ reference.transition @ Q.mT,
        MatrixDiffusion(Q @ reference.diffusion.matrices),
        reference.offset @ Q.mT,
        Q @ reference.initial_mean,
        Q @ reference.initial_factor,
    )
    return ControlProblem(
        chain,
        Quadratic(symmetrised(Q @ reward.P @ Q.mT), Q @ reward.linear, reward.c),
        problem.beta,
        turned,
    )


def symmetrised(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


@pytest.mark.parametrize(
    "Q", [orthonormal(1, 3), torch.eye(3, dtype=F64)[[2, 0, 1]]], ids=["rotation", "permutation"]
)
def test_rotating_states_rotates_the_solution(Q: Tensor):
    problem = general(3, 2, 6, 3)
    truth, turned = LinearQuadratic(problem), LinearQuadratic(rotated(problem, Q))
    assert turned.objective == pytest.approx(truth.objective, rel=SUMMED)
    x = randn(4, 5, 3)
    for k in range(6):
        torch.testing.assert_close(
            turned.value(k, x @ Q.mT), truth.value(k, x), rtol=SUMMED, atol=SUMMED
        )
        torch.testing.assert_close(
            turned.control(k, x @ Q.mT), truth.control(k, x), rtol=SUMMED, atol=SUMMED
        )
    policy = truth.affine_policy
    moved = AffinePolicy(policy.gain.detach() @ Q.mT, policy.offset.detach())
    assert turned.evaluate(moved).objective == pytest.approx(truth.objective, rel=SUMMED)
