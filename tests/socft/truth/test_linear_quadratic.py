"""The linear-quadratic truth against brute-force maximisation, quadrature, 50-digit arithmetic,
simulation and ODE solvers.
"""

from __future__ import annotations

import dataclasses
import decimal
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm, solve_continuous_are
from scipy.optimize import minimize
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian
from socft.path import Noise, returns, rollout
from socft.policy import AffinePolicy
from socft.problem import ControlProblem, RunningCost
from socft.reference import (
    AffineReference,
    DenseMaps,
    KernelReference,
    MatrixDiffusion,
    ScalarDiffusion,
    SpectralMaps,
)
from socft.reward import Linear, Quadratic, Sine
from socft.schedule import Schedule, ddpm, linear_levels, subsample, variance_preserving
from socft.truth import curvature, quadratic
from socft.truth.linear_quadratic import (
    LinearQuadratic,
    QuadraticCost,
    evaluate_affine,
    riccati,
    wasserstein,
)
from tests.support.tensors import F64, generator, randn
from verify.support.sampling import require_estimates, require_mean

# relative: a thousand float64 operations, each off by at most 2.2e-16, with room for condition
# numbers near 10
ROUNDING = 1e-12
SUMMED = 1e-11  # relative: sums of a few thousand terms of both signs
BRUTE_VALUE = (
    1e-9  # BFGS stops at gradients of 1e-6; the value is off by their square over the curvature
)
BRUTE_CONTROL = 1e-5  # BFGS stops at gradients of 1e-6, over a curvature of at least 0.1
QUADRATURE = 1e-9  # requested from scipy's quad
ODE = 1e-8  # solve_ivp at rtol 1e-11 over a few time units
PRINTED = 2.5e-4  # the published matrix has four decimals, the last of which is off by up to 2


def orthonormal(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(randn(seed, n, n)).Q


def symmetric(seed: int, n: int) -> Tensor:
    matrix = randn(seed, n, n)
    return (matrix + matrix.mT) / 2


def denoiser(
    schedule: Schedule, spectrum: Tensor, basis: Tensor, mean: Tensor, maps: type = SpectralMaps
) -> AffineReference:
    """The exact chain for N(mean, basis diag(spectrum) basis'), with its transfers diagonal, or as
    full matrices.
    """
    abar, root = schedule.abar[:-1, None], schedule.alpha.sqrt()[:, None]
    pull = schedule.score_weight[:, None] / (abar * spectrum + 1 - abar)
    offset = (pull * abar.sqrt() * (mean @ basis) / root) @ basis.mT
    spectral = SpectralMaps((1 - pull) / root, basis)
    return AffineReference(
        spectral if maps is SpectralMaps else DenseMaps(spectral.dense()),
        ScalarDiffusion(schedule.sigma),
        offset,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A well-posed problem of each structure the solution distinguishes."""

    name: str
    problem: ControlProblem


def general(n: int, m: int, steps: int, seed: int, running: bool = True) -> ControlProblem:
    """Full matrices, degenerate noise if m < n, weights and costs that change from step to step."""
    A = 0.8 * torch.eye(n, dtype=F64) + 0.2 * randn(seed, steps, n, n)
    B = 0.5 * randn(seed + 1, steps, n, m)
    reference = AffineReference(
        A,
        MatrixDiffusion(B),
        0.3 * randn(seed + 2, steps, n),
        randn(seed + 3, n),
        0.5 * randn(seed + 4, n, n),
    )
    reward = Quadratic(0.4 * symmetric(seed + 5, n), randn(seed + 6, n), 0.7)
    F = torch.stack([0.2 * symmetric(seed + 7 + k, n) for k in range(steps)])
    cost = QuadraticCost(F, 0.2 * randn(seed + 8, steps, n)) if running else None
    beta = 2 + 2 * torch.rand(steps, generator=generator(seed + 9), dtype=F64)
    return ControlProblem(reference, reward, beta, cost)


def denoising(
    n: int,
    steps: int,
    seed: int,
    commuting: bool = False,
    maps: type = SpectralMaps,
    beta: float = 2.0,
) -> ControlProblem:
    basis, spectrum, mean = (
        orthonormal(seed, n),
        torch.linspace(0.3, 1.5, n, dtype=F64),
        randn(seed + 1, n),
    )
    reference = denoiser(variance_preserving(steps, 1.0), spectrum, basis, mean, maps)
    P = (
        basis @ torch.diag(torch.linspace(-1.0, 0.5, n, dtype=F64)) @ basis.mT
        if commuting
        else 0.5 * symmetric(seed + 2, n)
    )
    return ControlProblem(
        reference, Quadratic((P + P.mT) / 2, randn(seed + 3, n), -0.2), torch.tensor(2.0)
    )


CASES = [
    Case("matrices, degenerate noise, running cost", general(2, 1, 4, 10)),
    Case("matrices, more noise than states", general(1, 2, 3, 30)),
    Case("matrices, no running cost", general(2, 2, 4, 50, running=False)),
    Case("commuting transfers, any reward", denoising(2, 4, 70)),
    Case("commuting transfers and reward", denoising(2, 4, 90, commuting=True)),
    Case("one dimension", denoising(1, 5, 110)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


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


# Long chains in 50-digit arithmetic
# -----------------------------------------------------------------------------


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


# Policies
# -----------------------------------------------------------------------------


def some_policy(problem: ControlProblem, seed: int = 0) -> AffinePolicy:
    (m,), (n,) = problem.reference.noise_dims, problem.reference.dims
    return AffinePolicy(
        0.3 * randn(seed, problem.steps, m, n), 0.3 * randn(seed + 1, problem.steps, m)
    )


@each_case
def test_evaluation_agrees_with_simulation(case: Case):
    problem = case.problem
    for policy in (LinearQuadratic(problem).affine_policy, some_policy(problem)):
        exact = evaluate_affine(problem, policy)
        with torch.no_grad():
            path = rollout(
                problem.reference, policy, Noise.sample(problem.reference, 20_000, generator(3))
            )
        require_mean(returns(problem, path), torch.tensor(exact.objective, dtype=F64), 0.025)
        require_mean(problem.reward(path.final), torch.tensor(exact.reward, dtype=F64), 0.023)
        require_mean(path.kl().mT, exact.kl, 0.0045)
        require_mean(
            torch.stack([problem.cost(k, path.states[k]) for k in range(problem.steps)], 1),
            exact.running_cost,
            0.0031,
        )
        require_mean(path.states.transpose(0, 1), exact.mean, 0.011)
        apart = path.states - exact.mean.unsqueeze(1)
        require_mean(torch.einsum("kbi,kbj->bkij", apart, apart), exact.covariance, 0.023)
        require_mean(
            apart[-1, :, :, None] * apart[-1, :, None, :], exact.final_law.covariance, 0.023
        )


@each_case
def test_a_policys_value_is_its_return_and_its_gradient_the_costate(case: Case):
    """From a fixed state: the mean return of simulated paths, and of its pathwise derivatives."""
    problem, policy = case.problem, some_policy(case.problem, 4)
    exact, n = evaluate_affine(problem, policy), problem.reference.dims[0]
    start = randn(6, n).requires_grad_(True)
    first = problem.steps // 2
    noise = torch.randn(
        problem.steps, 20_000, *problem.reference.noise_dims, generator=generator(7), dtype=F64
    )
    fixed = start.expand(20_000, n)
    x, total = fixed, torch.zeros(20_000, dtype=F64)
    for k in range(first, problem.steps):
        v = policy(k, x)
        total = total - problem.cost(k, x) - problem.beta[k] * v.square().sum(1) / 2
        x = problem.reference.step(k, x, v + noise[k])
    total = total + problem.reward(x)
    (slopes,) = torch.autograd.grad(total.sum(), fixed)
    row = start.detach().unsqueeze(0)
    require_mean(total.detach(), exact.value.value(first, row)[0], 0.018)
    require_mean(slopes, exact.value.gradient(first, row)[0], 0.0059)
    k = torch.tensor([first, problem.steps])
    torch.testing.assert_close(
        exact.value.value(k, row.expand(2, n))[:1], exact.value.value(first, row)
    )


def closed_objective(problem: ControlProblem, gain: Tensor, offset: Tensor) -> Tensor:
    """The objective from the mean and covariance of the stacked noise's affine image,
    differentiable, sharing nothing.
    """
    reference, reward = problem.reference, problem.reward
    assert isinstance(reference, AffineReference)
    assert isinstance(reward, Quadratic)
    n, (m,), T = reference.dims[0], reference.noise_dims, problem.steps
    center = reference.initial_mean
    image = torch.cat([reference.initial_factor, torch.zeros(n, T * m, dtype=F64)], 1)
    total = torch.zeros((), dtype=F64)
    for k in range(T):
        cost = problem.running_cost
        if isinstance(cost, QuadraticCost):
            F, h = cost.F[k], cost.h[k]
            total = (
                total - (image.mT @ F @ image).trace() / 2 - center @ F @ center / 2 - h @ center
            )
        control, moved = gain[k] @ center + offset[k], gain[k] @ image
        total = total - problem.beta[k] / 2 * (control @ control + (moved * moved).sum())
        step = torch.eye(m, dtype=F64)
        noise = reference.diffusion.apply(k, center.expand(m, n), step).mT
        fresh = torch.zeros(m, n + T * m, dtype=F64)
        fresh[:, n + k * m : n + (k + 1) * m] = step
        center = reference.transition[k] @ center + reference.offset[k] + noise @ control
        image = reference.transition[k] @ image + noise @ (moved + fresh)
    return (
        total
        + (image.mT @ reward.P @ image).trace() / 2
        + center @ reward.P @ center / 2
        + reward.linear @ center
        + reward.c
    )


@each_case
def test_the_gradient_is_that_of_the_closed_form_objective(case: Case):
    problem, policy = case.problem, some_policy(case.problem, 8)
    objective = closed_objective(problem, policy.gain, policy.offset)
    assert evaluate_affine(problem, policy).objective == pytest.approx(
        float(objective.detach()), rel=SUMMED
    )
    gain, offset = torch.autograd.grad(objective, [policy.gain, policy.offset])
    found = LinearQuadratic(problem).gradient(policy)
    torch.testing.assert_close(found.gain, gain, rtol=SUMMED, atol=SUMMED)
    torch.testing.assert_close(found.offset, offset, rtol=SUMMED, atol=SUMMED)


@each_case
def test_the_gradient_is_the_mean_of_pathwise_gradients(case: Case):
    problem, policy, groups = case.problem, some_policy(case.problem, 8), 100
    exact = LinearQuadratic(problem).gradient(policy)
    gains, offsets = [], []
    for group in range(groups):
        path = rollout(
            problem.reference, policy, Noise.sample(problem.reference, 50, generator(group))
        )
        gain, offset = torch.autograd.grad(
            returns(problem, path).mean(), [policy.gain, policy.offset]
        )
        gains.append(gain)
        offsets.append(offset)
    require_mean(torch.stack(gains), exact.gain, 0.07)
    require_mean(torch.stack(offsets), exact.offset, 0.024)


def test_a_policy_has_a_value_where_the_optimum_is_infinite():
    reward = Quadratic(torch.eye(2, dtype=F64))
    problem = dataclasses.replace(
        general(2, 2, 4, 50, running=False), beta=torch.tensor(0.01), reward=reward
    )
    with pytest.raises(InvalidProblem, match="the optimum is infinite"):
        LinearQuadratic(problem)
    policy = some_policy(problem)
    objective = closed_objective(problem, policy.gain.detach(), policy.offset.detach())
    assert evaluate_affine(problem, policy).objective == pytest.approx(float(objective), rel=SUMMED)


def test_other_policies_are_evaluated_by_simulation():
    truth = LinearQuadratic(denoising(1, 3, 5))
    simulated = truth.evaluate(truth.policy)
    assert simulated.stderr > 0
    require_estimates(simulated.objective, simulated.stderr, truth.objective, 0.0044)


def test_the_costate_of_the_uncontrolled_oscillator():
    """The linear study of arXiv 2603.20455v2: the pathwise gradient of |X_2|^2 / 2 is exp(A't)
    exp(A t) x at t = 2.
    """
    A, steps, horizon = np.array([[0.0, 1.0], [-1.0, -0.5]]), 40, 2.0
    transfer = torch.tensor(expm(A * horizon / steps)).expand(steps, 2, 2)
    noise = MatrixDiffusion((horizon / steps) ** 0.5 * torch.eye(2, dtype=F64).expand(steps, 2, 2))
    problem = ControlProblem(
        AffineReference(transfer, noise), Quadratic(-torch.eye(2, dtype=F64)), torch.tensor(1.0)
    )
    found = -evaluate_affine(problem, AffinePolicy.zeros(problem.reference)).value.hessian[0]
    np.testing.assert_allclose(found, [[0.3473, 0.1710], [0.1710, 0.4739]], atol=PRINTED)
    np.testing.assert_allclose(found, expm(A.T * horizon) @ expm(A * horizon), rtol=ROUNDING)


# Tilts
# -----------------------------------------------------------------------------


def line(
    schedule: Schedule, curvature: float = 0.3, beta: float = 1.0, variance: float = 0.5
) -> ControlProblem:
    """Fine-tuning N(0.4, variance) in one dimension."""
    reference = denoiser(
        schedule, torch.tensor([variance]), torch.eye(1, dtype=F64), torch.tensor([0.4], dtype=F64)
    )
    reward = Quadratic(torch.tensor([[curvature]], dtype=F64), torch.tensor([0.7], dtype=F64), 0.1)
    return ControlProblem(reference, reward, torch.tensor(beta))


def conditional_law(problem: ControlProblem, start: float) -> tuple[float, float]:
    """Mean and variance of X_T given X_0 in one dimension."""
    mean, variance = torch.tensor([[start]], dtype=F64), 0.0
    for k in range(problem.steps):
        one = torch.ones(1, 1, dtype=F64)
        rate = float(problem.reference.mean(k, one) - problem.reference.mean(k, 0 * one))
        mean, variance = (
            problem.reference.mean(k, mean),
            rate**2 * variance + float(problem.reference.diffusion.apply(k, one, one)) ** 2,
        )
    return float(mean), variance


def gibbs_value(problem: ControlProblem, mean: float, variance: float) -> float:
    """``beta log E exp(r / beta)`` under N(mean, variance), by adaptive quadrature."""
    beta, spread = float(problem.beta[0]), variance**0.5

    def weighed(z: float) -> float:
        reward = float(problem.reward(torch.tensor([[mean + spread * z]], dtype=F64)))
        return math.exp(reward / beta - z * z / 2) / math.sqrt(2 * math.pi)

    return beta * math.log(
        quad(weighed, -40, 40, epsabs=0, epsrel=QUADRATURE, limit=400, points=[0.0])[0]
    )


@pytest.mark.parametrize("curvature", [0.3, -2.0])
def test_the_kernel_gap_is_the_excess_of_the_whole_chains_gibbs_value(curvature: float):
    problem = line(variance_preserving(6), curvature)
    truth = LinearQuadratic(problem)
    for start in (-1.0, 0.0, 2.0):
        excess = gibbs_value(problem, *conditional_law(problem, start)) - float(
            truth.value(0, torch.tensor([[start]], dtype=F64))
        )
        assert float(truth.kernel_gap().sum()) == pytest.approx(excess, abs=10 * QUADRATURE)
    assert bool((truth.kernel_gap() > 0).all())


@pytest.mark.parametrize("running", [False, True])
def test_the_kernel_gap_in_two_dimensions_from_the_stacked_noise(running: bool):
    """Reward minus costs is quadratic in all noises at once, so the Gibbs value is one Gaussian
    integral in T m dimensions.
    """
    beta = 3.0
    problem = dataclasses.replace(general(2, 1, 5, 21, running), beta=torch.tensor(beta))
    truth, zero = LinearQuadratic(problem), torch.zeros(5, dtype=F64)
    for start in randn(2, 3, 2):

        def outcome(noises: Tensor, start: Tensor = start) -> Tensor:
            x, total = start[None], torch.zeros(1, dtype=F64)
            for k in range(5):
                total = total - problem.cost(k, x)
                x = problem.reference.step(k, x, noises[k].reshape(1, 1))
            return (total + problem.reward(x))[0]

        bend = torch.autograd.functional.hessian(outcome, zero)
        assert isinstance(bend, Tensor)
        inner = torch.eye(5, dtype=F64) - bend / beta
        (slope,) = torch.autograd.functional.vjp(outcome, zero, torch.ones((), dtype=F64))[1:]
        gibbs = (
            outcome(zero)
            + slope @ torch.linalg.solve(inner, slope) / beta / 2
            - beta * torch.logdet(inner) / 2
        )
        assert float(truth.kernel_gap().sum()) == pytest.approx(
            float(gibbs - truth.value(0, start[None])[0]), rel=SUMMED
        )


def order(errors: list[float]) -> float:
    """Observed order from the last two of errors at halved steps."""
    return math.log2(errors[-2] / errors[-1])


def test_the_kernel_gap_vanishes_at_order_one():
    gaps = [
        float(LinearQuadratic(line(variance_preserving(T))).kernel_gap().sum())
        for T in (50, 100, 200, 400)
    ]
    assert order(gaps) == pytest.approx(1.0, abs=0.02)


def test_the_memory_gap_is_the_difference_of_two_gibbs_values():
    problem = line(variance_preserving(8))
    laws = [conditional_law(problem, start) for start in (0.0, 1.0)]
    (mean, variance), slope = laws[0], laws[1][0] - laws[0][0]
    whole = gibbs_value(problem, mean, variance + slope**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    split = [gibbs_value(problem, *conditional_law(problem, float(node))) for node in nodes]
    assert LinearQuadratic(problem).memory_gap() == pytest.approx(
        whole - float(weights @ split) / weights.sum(), abs=10 * QUADRATURE
    )


def test_the_memory_gap_in_two_dimensions_from_the_tilt_of_a_gaussian():
    problem = dataclasses.replace(general(2, 2, 4, 50, running=False), beta=torch.tensor(4.0))
    truth = LinearQuadratic(problem)
    law = evaluate_affine(problem, AffinePolicy.zeros(problem.reference)).final_law
    path_value = truth.objective + float(truth.kernel_gap().sum())
    assert truth.memory_gap() == pytest.approx(
        4.0 * law.tilted(problem.reward, 4.0).log_normaliser - path_value, rel=SUMMED
    )


def test_more_steps_do_not_remove_the_memory_gap_but_a_memoryless_schedule_does():
    remembering = [
        LinearQuadratic(line(variance_preserving(T))).memory_gap() for T in (100, 200, 400, 800)
    ]
    assert order([abs(a - b) for a, b in itertools.pairwise(remembering)]) == pytest.approx(
        1.0, abs=0.05
    )
    limit = 2 * remembering[-1] - remembering[-2]
    assert limit > 0.5 * remembering[0] > 0.01
    levels = linear_levels(1000)
    memoryless = ddpm(subsample(levels, 200))
    assert memoryless.is_memoryless()
    assert LinearQuadratic(line(memoryless)).memory_gap() < 10 * memoryless.memory() ** 2
    fading = [
        LinearQuadratic(line(variance_preserving(400, rate))).memory_gap()
        for rate in (2.0, 4.0, 8.0)
    ]
    assert fading[0] > 5 * fading[1] > 5 * 5 * fading[2] > 0


def test_the_memory_gap_is_infinite_where_only_the_controlled_problem_is_well_posed():
    problem = line(variance_preserving(50), curvature=2.0)
    law = evaluate_affine(problem, AffinePolicy.zeros(problem.reference)).final_law
    _, variance = conditional_law(problem, 0.0)
    between = 2.0 * (float(law.covariance) + variance) / 2
    tilt = dataclasses.replace(problem, beta=torch.tensor(between))
    assert LinearQuadratic(tilt).memory_gap() == math.inf
    with pytest.raises(InvalidProblem, match="not integrable"):
        LinearQuadratic(tilt).tilt()


def test_the_optimal_law_tends_to_the_tilt_only_without_memory():
    distances = {}
    for name, schedules in {
        "memoryless": [
            ddpm(subsample(linear_levels(4000, train_steps=1000), T)) for T in (100, 200, 400)
        ],
        "remembering": [variance_preserving(T) for T in (100, 200, 400)],
    }.items():
        truths = [LinearQuadratic(line(schedule, curvature=-1.0)) for schedule in schedules]
        distances[name] = [wasserstein(truth.final_law, truth.tilt()) for truth in truths]
    assert order(distances["memoryless"]) == pytest.approx(1.0, abs=0.1)
    assert distances["remembering"][-1] > 0.9 * distances["remembering"][0] > 0.02


def test_the_wasserstein_distance_of_gaussians():
    first, second = (
        Gaussian(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])),
        Gaussian(torch.zeros(2), torch.tensor([1.0, 1.0])),
    )
    assert wasserstein(first, second) == pytest.approx(math.sqrt(5 + 1 + 4), rel=ROUNDING)
    root = torch.tensor(
        [[2.0, 0.5], [0.5, 1.0]], dtype=F64
    )  # the symmetric positive map of the standard law is optimal
    third = Gaussian(torch.zeros(2), root @ root)
    assert wasserstein(third, second) == pytest.approx(
        float((root - torch.eye(2, dtype=F64)).norm()), rel=ROUNDING
    )
    assert wasserstein(third, third) < math.sqrt(ROUNDING)


# Refusals
# -----------------------------------------------------------------------------


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


# Structured references
# -----------------------------------------------------------------------------


def test_spectral_maps_are_the_matrices_they_abbreviate():
    spectral = SpectralMaps(randn(1, 4, 3), orthonormal(2, 3))
    x, k = randn(3, 5, 3), torch.tensor([0, 3, 1, 1, 2])
    for maps in (spectral, DenseMaps(spectral.dense())):
        for step in range(4):
            torch.testing.assert_close(
                maps.apply(step, x), x @ spectral.dense()[step].mT, rtol=ROUNDING, atol=ROUNDING
            )
        rows = torch.stack(
            [spectral.dense()[i] @ row for i, row in zip(k.tolist(), x, strict=True)]
        )
        torch.testing.assert_close(maps.apply(k, x), rows, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(spectral.dense().mT, spectral.dense())


@pytest.mark.refusal
def test_malformed_references_are_refused():
    scalar = ScalarDiffusion(torch.ones(4))
    refusals: dict[str, Callable[[], object]] = {
        r"A has shape \(4, 2, 3\)": lambda: DenseMaps(torch.ones(4, 2, 3)),
        r"eigenvalues has shape \(4,\); give \(steps, n\)": lambda: SpectralMaps(torch.ones(4)),
        r"eigenvalues\[1, 0\] = inf": lambda: SpectralMaps(torch.tensor([[1.0], [math.inf]])),
        r"basis has shape \(3, 3\); give \(2, 2\)": lambda: SpectralMaps(
            torch.ones(4, 2), torch.eye(3)
        ),
        "off orthonormal by 3": lambda: SpectralMaps(torch.ones(4, 2), 2 * torch.eye(2)),
        "A has 3 steps and the diffusion 4": lambda: AffineReference(
            SpectralMaps(torch.ones(3, 2)), scalar
        ),
        r"b has shape \(4, 3\)": lambda: AffineReference(
            SpectralMaps(torch.ones(4, 2)), scalar, torch.ones(4, 3)
        ),
        r"initial_mean has shape \(3,\); give \(2,\)": lambda: AffineReference(
            SpectralMaps(torch.ones(4, 2)), scalar, None, torch.ones(3)
        ),
    }
    for message, refused in refusals.items():
        with pytest.raises(InvalidProblem, match=message):
            refused()


# Continuous time
# -----------------------------------------------------------------------------

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
