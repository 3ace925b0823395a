"""Integrators: exact moments of linear chains, weak orders by quadrature, controls against an
ordinary differential equation.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import full_adjoint, lean_adjoint
from socft.path import Noise, returns, rollout
from socft.policy import FunctionPolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, Reference
from socft.reward import FunctionReward, Quadratic
from socft.sde import (
    SDE,
    DriftSDE,
    EulerMaruyama,
    Exponential,
    Integrator,
    LinearSDE,
    SemilinearSDE,
    StateDiffusion,
    Strang,
    Taylor,
    gramian,
    noise_root,
    propagator,
)
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadratic import QuadraticCost
from socft.truth.riccati import riccati
from tests.support.tensors import F64, randn, t
from verify.support.sampling import STDERRS, require_mean

EPS = 4e-16  # two roundings of numbers near one
ROUNDING = 1e-12  # products of ten matrices of norm near one
ODE = 1e-9  # scipy's solve_ivp at rtol 1e-11, over one unit of time
ORDER = 0.15  # a measured order differs from its limit by O(dt) at the step sizes used
DIFFERENCE = 1e-7  # central differences at step 1e-5 of functions of order one


A = torch.tensor([[-0.3, 1.0, 0.0], [-1.2, -0.4, 0.5], [0.2, 0.0, -0.7]], dtype=F64)
B = torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.2, 0.5]], dtype=F64)
OFFSET, MEAN, FACTOR = (
    t(0.3, -0.2, 0.1),
    t(1.0, 0.5, -0.5),
    0.4 * torch.eye(3, dtype=F64) + 0.1 * randn(0, 3, 3),
)
LINEAR = LinearSDE(A, B, 1.2, OFFSET, MEAN, FACTOR)
INTEGRATORS = {
    "Euler": EulerMaruyama(),
    "Strang": Strang(),
    "Taylor": Taylor(),
    "exponential": Exponential(),
}
each_integrator = pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=list(INTEGRATORS))


def moments(reference: Reference) -> tuple[Tensor, Tensor]:
    assert isinstance(reference, AffineReference)
    mean, covariance = (
        reference.initial_mean,
        reference.initial_factor @ reference.initial_factor.mT,
    )
    factors = reference.diffusion.matrices  # type: ignore[union-attr]
    for k in range(reference.steps):
        mean = reference.transition[k] @ mean + reference.offset[k]
        covariance = (
            reference.transition[k] @ covariance @ reference.transition[k].mT
            + factors[k] @ factors[k].mT
        )
    return mean, covariance


def exact_moments(sde: LinearSDE) -> tuple[Tensor, Tensor]:
    """The moment equations by scipy."""
    n, a, q, c = len(sde.A), sde.A.numpy(), (sde.noise @ sde.noise.mT).numpy(), sde.offset.numpy()

    def rate(_: float, state: np.ndarray) -> np.ndarray:
        m, s = state[:n], state[n:].reshape(n, n)
        return np.concatenate([a @ m + c, (a @ s + s @ a.T + q).ravel()])

    start = np.concatenate(
        [sde.initial_mean.numpy(), (sde.initial_factor @ sde.initial_factor.mT).numpy().ravel()]
    )
    end = integrate.solve_ivp(rate, (0, sde.horizon), start, rtol=1e-11, atol=1e-12).y[:, -1]
    return torch.from_numpy(end[:n]), torch.from_numpy(end[n:].reshape(n, n))


def order(errors: list[float]) -> float:
    """From errors at step sizes that halve."""
    return math.log2(errors[-2] / errors[-1])


def test_exponential_integrator_has_the_exact_moments_at_any_step_size():
    mean, covariance = exact_moments(LINEAR)
    for steps in (1, 7):
        found = moments(Exponential().chain(LINEAR, steps))
        assert (found[0] - mean).abs().max() < ODE
        assert (found[1] - covariance).abs().max() < ODE
    euler = moments(EulerMaruyama().chain(LINEAR, 7))
    assert (euler[1] - covariance).abs().max() > 1e6 * ODE


@pytest.mark.parametrize(
    ("integrator", "expected"), [(EulerMaruyama(), 1), (Strang(), 2), (Taylor(), 2)]
)
def test_weak_order_on_a_linear_sde(integrator: Integrator, expected: int):
    exact = exact_moments(LINEAR)
    errors = []
    for steps in (32, 64):
        found = moments(integrator.chain(LINEAR, steps))
        errors.append([float((f - e).abs().max()) for f, e in zip(found, exact, strict=True)])
    for column in zip(*errors, strict=True):
        assert order(list(column)) == pytest.approx(expected, abs=ORDER)


WELL = DriftSDE(
    lambda s, x: x - x**3 + torch.cos(2 * s), t(0.8)[:, None], 1.0, lambda z: 0.3 + 0.5 * z
)
GRID = torch.linspace(
    -3.5, 3.5, 401, dtype=F64
)  # four nodes per deviation of the smallest kick, so exact to rounding


def expectations(reference: Reference) -> Tensor:
    """E X_T, E X_T^2 and E cos X_T by pushing the density through the kernels with the trapezoidal
    rule.
    """
    width = float(GRID[1] - GRID[0])
    density = torch.exp(-(((GRID - 0.3) / 0.5) ** 2) / 2)
    density = density / density.sum()
    for k in range(reference.steps):
        x = GRID[:, None]
        mean = reference.mean(k, x)
        scale = reference.diffusion.apply(k, x, torch.ones_like(x))
        kernel = torch.exp(-(((GRID - mean) / scale) ** 2) / 2) / scale
        density = density @ (kernel * width / math.sqrt(2 * math.pi))
    return torch.stack([density @ GRID, density @ GRID**2, density @ torch.cos(GRID)])


def exact_expectations() -> Tensor:
    """The same by the Fokker-Planck equation in Fourier space on a wide interval, dissipative
    boundaries never reached.
    """
    n, width = 192, 8.0
    x = (np.arange(n) / n - 0.5) * width
    wave = 2j * np.pi * np.fft.fftfreq(n, width / n)

    def rate(s: float, p: np.ndarray) -> np.ndarray:
        drift = (x - x**3 + np.cos(2 * s)) * p
        return np.real(np.fft.ifft(-wave * np.fft.fft(drift) + 0.32 * wave**2 * np.fft.fft(p)))

    start = np.exp(-(((x - 0.3) / 0.5) ** 2) / 2)
    end = integrate.solve_ivp(
        rate, (0, 1), start / start.sum(), method="DOP853", rtol=1e-10, atol=1e-14
    ).y[:, -1]
    return torch.tensor([end @ x, end @ x**2, end @ np.cos(x)])


@pytest.fixture(scope="module")
def well_exact() -> Tensor:
    return exact_expectations()


@pytest.mark.parametrize(
    ("integrator", "expected"), [(EulerMaruyama(), 1), (Strang(), 2), (Taylor(), 2)]
)
def test_weak_order_on_a_nonlinear_sde_with_time_dependent_drift(
    integrator: Integrator, expected: int, well_exact: Tensor
):
    before_after = [
        (expectations(integrator.chain(WELL, steps)) - well_exact).abs() for steps in (32, 64)
    ]
    for before, after in zip(*before_after, strict=True):
        assert math.log2(float(before / after)) == pytest.approx(expected, abs=2 * ORDER)


def test_exponential_euler_has_order_one_and_is_exact_without_a_remainder(well_exact: Tensor):
    rate = torch.full((1, 1), -3.0, dtype=F64)
    split = SemilinearSDE(
        rate, lambda s, x: 4 * x - x**3 + torch.cos(2 * s), t(0.8)[:, None], 1.0, WELL.initial
    )
    assert torch.allclose(
        split.drift(t(0.3), t(0.7)[:, None]), WELL.drift(t(0.3), t(0.7)[:, None]), atol=ROUNDING
    )
    errors = [
        (expectations(Exponential().chain(split, steps)) - well_exact).abs() for steps in (64, 128)
    ]
    for before, after in zip(*errors, strict=True):
        assert math.log2(float(before / after)) == pytest.approx(1, abs=2 * ORDER)
    affine = SemilinearSDE(A, lambda s, x: OFFSET.expand_as(x), B, 1.2)
    x, z = randn(1, 5, 3), randn(2, 5, 3)
    assert (
        Exponential().chain(affine, 4).step(2, x, z) - Exponential().chain(LINEAR, 4).step(2, x, z)
    ).abs().max() < ROUNDING


def _series(M: np.ndarray) -> np.ndarray:
    return sum(
        (np.linalg.matrix_power(M, i) / math.factorial(i) for i in range(30)), np.zeros_like(M)
    )


def test_gramian_is_its_integral_and_the_root_is_nearest_to_the_noise():
    exact = np.zeros((3, 3))
    for i, j in itertools.product(range(3), repeat=2):

        def entry(s: float, i: int = i, j: int = j) -> float:
            flowed = linalg.expm(A.numpy() * s) @ B.numpy()
            return float((flowed @ flowed.T)[i, j])

        exact[i, j] = integrate.quad(entry, 0, 0.4)[0]
    G = gramian(A, B, 0.4)
    assert (G - torch.from_numpy(exact)).abs().max() < ROUNDING
    for dt in (0.4, 0.04, 0.004):
        assert (propagator(A, dt) - torch.from_numpy(_series(A.numpy() * dt))).abs().max() < EPS
    root = noise_root(A, B, 0.4)
    assert (root @ root.mT - G).abs().max() < ROUNDING
    padded = torch.nn.functional.pad(B, (0, 1)) * 0.4**0.5
    for seed in range(20):
        rotation = torch.linalg.qr(randn(seed, 3, 3)).Q
        assert (root - padded).norm() <= (root @ rotation - padded).norm() + ROUNDING
    gaps = [float((noise_root(A, B, dt)[:, :2] / dt**0.5 - B).norm()) for dt in (0.02, 0.01)]
    assert order(gaps) == pytest.approx(1, abs=ORDER)


def test_whitened_cost_of_the_exact_chain_is_the_least_energy_of_an_open_loop_control():
    """u(s) = B' e^{A'(dt-s)} G^-1 B_k v shifts the end of a noiseless step by B_k v and costs int
    |u|^2 = |v|^2.
    """
    dt, steps = 0.4, 3
    chain = Exponential().chain(LinearSDE(A, B, dt * steps, OFFSET), steps)
    x, v = randn(3, 1, 3), randn(4, 1, 3)
    shift = chain.diffusion.apply(1, x, v)[0]
    pull = torch.linalg.solve(gramian(A, B, dt), shift).numpy()

    def rate(s: float, state: np.ndarray) -> np.ndarray:
        u = B.numpy().T @ linalg.expm(A.numpy().T * (dt - s)) @ pull
        return np.append(A.numpy() @ state[:3] + OFFSET.numpy() + B.numpy() @ u, u @ u)

    end = integrate.solve_ivp(
        rate, (0, dt), np.append(x[0].numpy(), 0.0), rtol=1e-11, atol=1e-12
    ).y[:, -1]
    assert (chain.step(1, x, v)[0] - torch.from_numpy(end[:3])).abs().max() < ODE
    assert end[3] == pytest.approx(float(v.square().sum()), abs=ODE)


@pytest.mark.parametrize("integrator", [EulerMaruyama(), Strang()], ids=["Euler", "Strang"])
def test_a_control_is_u_times_the_root_of_the_duration_of_its_kick(integrator: Integrator):
    """A constant u in dX = c + B u without noise moves by c T + B u T and costs |u|^2 T / 2."""
    sde = LinearSDE(torch.zeros(3, 3, dtype=F64), B, 0.8, OFFSET)
    chain, u = integrator.chain(sde, 5), t(0.7, -0.4)
    durations = (
        torch.tensor([0.08, 0.16, 0.16, 0.16, 0.16, 0.08], dtype=F64)
        if chain.steps == 6
        else torch.full((5,), 0.16, dtype=F64)
    )
    x, cost = torch.zeros(1, 3, dtype=F64), 0.0
    for k in range(chain.steps):
        v = (u * durations[k] ** 0.5).unsqueeze(0)
        x, cost = chain.step(k, x, v), cost + float(v.square().sum()) / 2
    assert (x[0] - 0.8 * (OFFSET + B @ u)).abs().max() < ROUNDING
    assert cost == pytest.approx(0.8 * float(u.square().sum()) / 2, abs=ROUNDING)


@pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=list(INTEGRATORS))
def test_the_controlled_value_has_order_one_by_every_integrator(integrator: Integrator):
    """Against the Riccati equation: weak order two is that of the uncontrolled chain."""
    sde = LinearSDE(A, B, 1.2, initial_mean=MEAN, initial_factor=FACTOR)
    eye = torch.eye(3, dtype=F64)
    exact = riccati(A, B, -eye, 0.5 * eye, 1.0, 1.2)
    start = FACTOR @ FACTOR.mT + torch.outer(MEAN, MEAN)
    objective = float((exact.hessian(0.0) * start).sum()) / 2 + exact.constant(0.0)
    errors = []
    for steps in (40, 80, 160):
        spans = integrator.times(1.2, steps).diff()
        cost = QuadraticCost(0.5 * eye * spans[:, None, None])
        found = LinearQuadratic(
            ControlProblem(integrator.chain(sde, steps), Quadratic(-eye), 1.0, cost)
        ).objective
        errors.append(abs(found - objective))
    assert order(errors) == pytest.approx(1, abs=ORDER)


@each_integrator
def test_linear_sdes_become_affine_chains_equal_to_the_general_ones(integrator: Integrator):
    general = SemilinearSDE(A, lambda s, x: OFFSET.expand_as(x), B, 1.2, LINEAR.initial)
    affine, kernels = integrator.chain(LINEAR, 5), integrator.chain(general, 5)
    x = randn(5, 6, 3)
    z = randn(6, 6, *affine.noise_dims)
    k = torch.tensor([0, 1, 4, 2, 2, 3])
    assert (affine.initial(x) - kernels.initial(x)).abs().max() < ROUNDING
    assert (affine.step(k, x, z) - kernels.step(k, x, z)).abs().max() < ROUNDING
    assert len(integrator.times(1.2, 5)) == affine.steps + 1
    assert integrator.times(1.2, 5)[-1] == pytest.approx(1.2)


def tumbling() -> SDE:
    return DriftSDE(
        lambda s, x: torch.stack(
            [torch.sin(x[:, 1]) + 0.2 * x[:, 0], torch.cos(x[:, 0] * x[:, 1])], 1
        ),
        randn(7, 2, 3),
        1.0,
    )


def test_state_dependent_noise_and_its_maps():
    chain = Taylor().chain(tumbling(), 4)
    k, x, a, z = torch.tensor([1, 0, 3]), randn(8, 3, 2), randn(9, 3, 2), randn(10, 3, 3)
    diffusion, dt, noise = chain.diffusion, 0.25, randn(7, 2, 3)
    assert isinstance(diffusion, StateDiffusion)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(
            lambda y: tumbling().drift(t(0.0)[0], y[None])[0], x[i]
        )
        factor = (torch.eye(2, dtype=F64) + dt / 2 * jacobian) @ noise * dt**0.5  # type: ignore[operator]
        assert (diffusion.apply(k, x, z)[i] - factor @ z[i]).abs().max() < ROUNDING
        assert (diffusion.transpose(k, x, a)[i] - factor.mT @ a[i]).abs().max() < ROUNDING
        assert (
            diffusion.whiten(k, x, a)[i] - torch.linalg.pinv(factor) @ a[i]
        ).abs().max() < ROUNDING
        assert (
            diffusion.solve_transpose(k, x, z)[i] - torch.linalg.pinv(factor).mT @ z[i]
        ).abs().max() < ROUNDING


def test_state_dependent_noise_is_differentiated_by_the_full_adjoint():
    problem = ControlProblem(
        Taylor().chain(tumbling(), 4), FunctionReward(lambda x: torch.sin(x).sum(1)), 1.0
    )
    policy = FunctionPolicy(lambda k, x: torch.tanh(x @ torch.ones(2, 3, dtype=F64)))
    noise = Noise.sample(problem.reference, 4, torch.Generator().manual_seed(3))
    step = 1e-5
    for i in range(2):
        shift = torch.zeros_like(noise.initial)
        shift[:, i] = step
        ahead, behind = (
            returns(
                problem, rollout(problem.reference, policy, Noise(noise.initial + s, noise.steps))
            )
            for s in (shift, -shift)
        )
        slope = (ahead - behind) / (2 * step)
        path = rollout(problem.reference, policy, noise)
        assert (full_adjoint(problem, policy, path)[0][:, i] - slope).abs().max() < DIFFERENCE


def test_lean_adjoint_is_biased_by_state_dependent_noise_in_one_dimension():
    """One step x' = x + (1 + x) s xi and r = -x'^2 / 2: V' = -x - s^2 (1 + x), of which the mean
    map's adjoint knows -x.
    """
    s, x0 = 0.7, 0.4
    diffusion = StateDiffusion(lambda k, x, z: s * (1 + x) * z, (1,), (1,))
    problem = ControlProblem(
        _plain(diffusion, x0), FunctionReward(lambda x: -x[:, 0].square() / 2), 1.0
    )
    noise = Noise.sample(problem.reference, 40_000, torch.Generator().manual_seed(4))
    policy = Uncontrolled(problem.reference)
    path = rollout(problem.reference, policy, noise)
    lean, full = lean_adjoint(problem, path)[0][:, 0], full_adjoint(problem, policy, path)[0][:, 0]
    exact, without = -x0 - s**2 * (1 + x0), -x0
    for costates, expected in ((full, exact), (lean, without)):
        require_mean(costates, expected, 0.0081)
    assert abs(float(lean.mean()) - exact) > 10 * STDERRS * float(lean.std()) / 200


def _plain(diffusion: StateDiffusion, start: float) -> Reference:
    return KernelReference(lambda k, x: x, diffusion, 1, (1,), lambda z: start + 0 * z)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearSDE(A, B[:2], 1.0), r"A has shape \(3, 3\)"),
        (lambda: LinearSDE(A, B[:, 0], 1.0), r"B has shape \(3,\)"),
        (lambda: LinearSDE(A, B, 0.0), "horizon = 0"),
        (lambda: LinearSDE(A, B * math.nan, 1.0), r"B\[0, 0\] = nan"),
        (lambda: LinearSDE(A * math.inf, B, 1.0), r"A\[0, 0\] = "),
        (lambda: LinearSDE(A, B, 1.0, offset=t(1.0)), r"c has shape \(1,\)"),
        (lambda: EulerMaruyama().chain(LINEAR, 0), "steps = 0"),
        (lambda: Exponential().chain(WELL, 4), "a DriftSDE; Exponential needs"),
        (
            lambda: StateDiffusion(lambda k, x, z: z, (2,), (2,)).noise_dims((3,)),
            r"states have shape \(3,\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message: str):
    with pytest.raises(InvalidProblem, match=message):
        call()
