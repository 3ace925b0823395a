"""Benchmark problems: every truth against simulation, differential equations, closed forms or
published numbers.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import lean_adjoint
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.sde import DriftSDE, EulerMaruyama, Exponential, Integrator, LinearSDE, Strang
from socft.truth.base import simulate
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.separable import SeparableTruth
from tests.support.tensors import F64
from toy.problems import BENCHMARKS, FINE_TUNING, Benchmark, benchmark, fine_tuning
from toy.problems.pendulum import REACH, lowest, periodic_fields, swing_cost
from toy.problems.reversed_bsde import MIXTURE_PUBLISHED, best_start, reverse_drift
from toy.problems.socm import INTERIOR

STDERRS = 4.0
PATHS = 4096
ROUNDING = 1e-10
ODE = 1e-8  # scipy's solve_ivp at rtol 1e-10
ORDER = 0.2  # a measured order differs from its limit by O(dt)
GRID = 1e-6  # values on the grids of one-dimensional quadrature, whose own estimate is below
PLACES = 1.1e-5  # published to five decimals
G0_PUBLISHED = (
    2.5e-4  # printed to four places, of which the last is off by up to 2: 0.4739 for 0.4741
)
METHOD_OF_LINES = (
    2e-3  # second-order differences at spacing 0.01 of functions with gradients of order one
)


SMALL: dict[str, dict] = {
    "lq-fine-tuning": {"d": 3},
    "lq-sde": {"d": 3, "steps": 20},
    "mixture": {"d": 1, "steps": 10},
    "oscillator": {"dt": 0.1, "d": 4},
    "bsde-linear": {},
    "bsde-pendulum": {"dt": 0.2, "nodes": (48, 241)},
    "bsde-mixture": {"steps": 20, "temp": 6.0},
    "ou-quadratic-easy": {"d": 3},
    "ou-quadratic-hard": {"d": 3},
    "ou-linear": {"d": 3, "steps": 30},
    "double-well": {"d": 2, "deep": 0, "steps": 50},
}
TRUTHS = {
    "bsde-linear": ("truth", "uncontrolled", "continuous", "continuous_uncontrolled"),
    "bsde-pendulum": ("uncontrolled", "continuous_uncontrolled"),
}


@functools.cache
def small(name: str) -> Benchmark:
    return benchmark(name, **SMALL[name])


each_name = pytest.mark.parametrize("name", list(BENCHMARKS))
each_optimum = pytest.mark.parametrize("name", [n for n in BENCHMARKS if n != "bsde-pendulum"])


def noise_of(problem: ControlProblem, paths: int = PATHS) -> Noise:
    return Noise.sample(problem.reference, paths, torch.Generator().manual_seed(1))


def test_every_name_has_a_small_version_and_the_fine_tuning_problems_stay():
    assert set(SMALL) == set(BENCHMARKS)
    assert set(FINE_TUNING) == {"gaussian-quadratic", "mixture-huber", "gaussian-sine"}
    assert fine_tuning("gaussian-sine").name == "gaussian-sine"


@each_name
def test_a_benchmark_says_what_it_knows(name: str):
    found = small(name)
    assert found.name == name
    assert found.truths == TRUTHS.get(name, ("truth", "uncontrolled", "continuous"))
    for setting, value in SMALL[name].items():
        assert setting == "nodes" or found.settings[setting] == value
    if found.times is not None:
        assert found.sde is not None
        assert len(found.times) == found.problem.steps + 1
        assert found.times[-1] == pytest.approx(found.sde.horizon)


@each_optimum
def test_optimum_of_the_chain_is_attained_in_simulation_and_beats_its_neighbours(name: str):
    found = small(name)
    run = simulate(found.problem, found.truth.policy, noise_of(found.problem))
    assert abs(run.objective - found.truth.objective) < STDERRS * run.stderr
    idle = simulate(found.problem, Uncontrolled(found.problem.reference), noise_of(found.problem))
    assert idle.objective < found.truth.objective - STDERRS * idle.stderr


@each_name
def test_uncontrolled_value_is_the_mean_return_and_its_gradient_the_mean_of_the_lean_costate(
    name: str,
):
    found = small(name)
    policy = Uncontrolled(found.problem.reference)
    run = simulate(found.problem, policy, noise_of(found.problem))
    assert abs(run.objective - found.uncontrolled.objective) < STDERRS * run.stderr + 1e-9
    path = rollout(found.problem.reference, policy, noise_of(found.problem))
    costates = lean_adjoint(found.problem, path)
    for k in (0, found.problem.steps // 2):
        x = path.states[k]
        apart = costates[k] - found.uncontrolled.gradient(k, x)
        for weight in (torch.ones_like(x), torch.tanh(x.flip(1))):
            each = apart * weight
            assert (each.mean(0).abs() <= STDERRS * each.std(0) / PATHS**0.5 + ROUNDING).all()


@each_name
def test_gradients_are_those_of_the_values(name: str):
    """Central differences of every value function, at states of the chain, over all coordinates at
    once.
    """
    found = small(name)
    path = rollout(
        found.problem.reference, Uncontrolled(found.problem.reference), noise_of(found.problem, 8)
    )
    step = 1e-4
    for truth in found.truths:
        solved = getattr(found, truth)
        gradient = solved.value_gradient if truth == "truth" else solved.gradient
        for k in (1, found.problem.steps // 2, found.problem.steps):
            x = path.states[k]
            direction = torch.linspace(1, 0.4, x.shape[1], dtype=F64)
            slope = (
                solved.value(k, x + step * direction) - solved.value(k, x - step * direction)
            ) / (2 * step)
            scale = 1 + float(slope.abs().max())
            assert (
                slope - gradient(k, x) @ direction
            ).abs().max() < 1e-4 * scale  # step^2 times a third derivative below 1e3


LINEAR = ("lq-sde", "oscillator", "ou-quadratic-easy", "ou-quadratic-hard", "ou-linear")


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize(
    "integrator", [EulerMaruyama(), Exponential(), Strang()], ids=["Euler", "exponential", "Strang"]
)
def test_chains_approach_continuous_time(name: str, integrator: Integrator):
    """At order one, but for the linear OU, whose control does not look at the state."""
    settings = (
        [{"dt": 0.05}, {"dt": 0.025}] if name == "oscillator" else [{"steps": 40}, {"steps": 80}]
    )
    errors = []
    for setting in settings:
        found = benchmark(name, integrator=integrator, **setting)
        errors.append(abs(found.truth.objective - found.continuous.objective))
    if name == "ou-linear" and isinstance(integrator, Exponential):
        assert errors[-1] < ROUNDING
    elif name == "ou-linear" and isinstance(integrator, Strang):
        assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=ORDER)
    else:
        assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=ORDER)


@pytest.mark.parametrize(
    ("integrator", "expected"), [(EulerMaruyama(), 1), (Strang(), 2), (Exponential(), math.inf)]
)
def test_optimal_costate_of_a_terminal_cost_keeps_the_integrators_order(
    integrator: Integrator, expected: float
):
    """In linear-quadratic problems it does not feel the noise, and without noise open-loop controls
    are as good as feedback.
    """
    errors, x = [], torch.eye(2, dtype=F64)
    for dt in (0.05, 0.025):
        found = benchmark("bsde-linear", integrator=integrator, dt=dt)
        errors.append(
            float((found.truth.value_gradient(0, x) - found.continuous.gradient(0, x)).norm())
        )
    if expected == math.inf:
        assert max(errors) < ROUNDING
    else:
        assert math.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=ORDER)


def riccati_by_scipy(
    A: np.ndarray,
    B: np.ndarray,
    running: np.ndarray,
    terminal: np.ndarray,
    beta: float,
    left: float,
) -> Tensor:
    """The cost's Hessian with ``left`` to go, ``P' = A'P + PA - PBB'P/beta + Q`` in the time
    left.
    """
    n = len(A)

    def rate(_: float, state: np.ndarray) -> np.ndarray:
        P = state.reshape(n, n)
        return (A.T @ P + P @ A - P @ B @ B.T @ P / beta + running).ravel()

    end = integrate.solve_ivp(rate, (0, left), terminal.ravel(), rtol=1e-10, atol=1e-12).y[:, -1]
    return torch.from_numpy(end.reshape(n, n))


def test_oscillator_and_quadratic_ou_in_continuous_time_against_scipy():
    eye = np.eye(2)
    A, B = np.array([[0.0, 1.0], [-1.0, -0.1]]), np.array([[0.0], [1.0]])
    found = benchmark("oscillator")
    assert found.problem.steps == 200
    states = torch.eye(2, dtype=F64)
    for k in (0, 100):
        exact = riccati_by_scipy(A, B, eye, eye, 1.0, 4 - 0.02 * k)
        assert (found.continuous.gradient(k, states) + exact).abs().max() < ODE
    hard = benchmark("ou-quadratic-hard", d=2)
    exact = riccati_by_scipy(eye, eye, 2 * eye, eye, 1.0, 1.0)
    assert (hard.continuous.gradient(0, states) + exact).abs().max() < ODE
    easy = benchmark("ou-quadratic-easy", d=2)
    exact = riccati_by_scipy(0.2 * eye, eye, 0.4 * eye, 0.2 * eye, 1.0, 1.0)
    assert (easy.continuous.gradient(0, states) + exact).abs().max() < ODE


def test_noise_changes_neither_the_oscillators_costate_nor_its_control():
    quiet, loud = benchmark("oscillator", noise=0.3), benchmark("oscillator", noise=2.0)
    x = torch.eye(2, dtype=F64)
    assert (
        quiet.truth.value_gradient(0, x) - loud.truth.value_gradient(0, x)
    ).abs().max() < ROUNDING
    pushes = [
        b.problem.reference.diffusion.apply(3, x, b.truth.control(3, x)) for b in (quiet, loud)
    ]
    assert (pushes[0] - pushes[1]).abs().max() < ROUNDING
    assert quiet.truth.objective > loud.truth.objective + 1
    assert float(benchmark("oscillator", damping=-0.5).continuous.objective) < float(
        quiet.continuous.objective
    )


def test_linear_ou_has_a_control_that_does_not_look_at_the_state():
    found = benchmark("ou-linear", steps=400)
    sde = found.sde
    assert isinstance(sde, LinearSDE)
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0), dtype=F64)
    v = found.truth.control(200, x)
    assert (v - v[:1]).abs().max() < ROUNDING
    u = -sde.noise.numpy().T @ linalg.expm(sde.A.numpy().T * 0.5) @ np.ones(10)
    assert (v[0] * 20 - torch.from_numpy(u)).abs().max() < 3e-3 * np.abs(
        u
    ).max()  # v = u sqrt(dt), to O(dt)


def test_linear_study_has_the_published_costate_and_floor():
    euler, exact = benchmark("bsde-linear"), benchmark("bsde-linear", integrator=Exponential())
    published, x = euler.published["mse"], torch.eye(2, dtype=F64)
    G0 = -euler.continuous_uncontrolled.gradient(0, x)
    assert (G0 - torch.tensor(published["G0"], dtype=F64)).abs().max() < G0_PUBLISHED
    flow = torch.from_numpy(linalg.expm(2 * np.array([[0.0, 1.0], [-1.0, -0.5]])))
    assert (G0 - flow.mT @ flow).abs().max() < ROUNDING
    chain = -euler.uncontrolled.gradient(0, x)
    step = torch.eye(2, dtype=F64) + 0.05 * torch.tensor([[0.0, 1.0], [-1.0, -0.5]], dtype=F64)
    power = torch.linalg.matrix_power(step, 40)
    assert (chain - power.mT @ power).abs().max() < ROUNDING
    floor = float((chain - G0).square().sum())  # E |(chain - G0) X_0|^2 for X_0 ~ N(0, I)
    assert floor == pytest.approx(published["discrete_adjoint_floor"], abs=5.1e-6)
    assert (exact.uncontrolled.gradient(0, x) + G0).abs().max() < ROUNDING
    assert exact.uncontrolled.objective == pytest.approx(
        exact.continuous_uncontrolled.objective, abs=ROUNDING
    )


@pytest.fixture(scope="module")
def swing() -> Benchmark:
    found = benchmark("bsde-pendulum", nodes=(64, 321))
    assert found.uncontrolled.error < 1e-3
    return found


def test_pendulum_against_simulated_common_random_numbers(swing: Benchmark):
    """Central differences of the simulated mean cost, by a loop written out here."""
    step, paths, steps = 1e-3, 20_000, 80
    noise = torch.randn(steps, paths, generator=torch.Generator().manual_seed(2), dtype=F64)

    def cost(x1: float, x2: float) -> Tensor:
        x, y = torch.full((paths,), x1, dtype=F64), torch.full((paths,), x2, dtype=F64)
        for k in range(steps):
            x, y = x + 0.05 * y, y + 0.05 * (x.sin() - 0.01 * y) + 0.5 * 0.05**0.5 * noise[k]
        return swing_cost(torch.stack([x, y], 1))

    for x1, x2 in ((0.4, -0.7), (-2.5, 1.5), (3.5, 0.3)):
        state = torch.tensor([[x1, x2]], dtype=F64)
        here = cost(x1, x2)
        value, gradient = (
            -swing.uncontrolled.value(0, state),
            -swing.uncontrolled.gradient(0, state)[0],
        )
        assert abs(float(here.mean() - value)) < STDERRS * float(here.std()) / paths**0.5
        slopes = (
            cost(x1 + step, x2) - cost(x1 - step, x2),
            cost(x1, x2 + step) - cost(x1, x2 - step),
        )
        for i, slope in enumerate(s / (2 * step) for s in slopes):
            assert (
                abs(float(slope.mean() - gradient[i])) < STDERRS * float(slope.std()) / paths**0.5
            )
    assert float(here.std()) / paths**0.5 < 0.02  # so that these bounds mean something


def test_pendulum_is_periodic_odd_and_lowest_where_published(swing: Benchmark):
    value = swing.uncontrolled
    x = torch.tensor([[0.3, 1.1], [-3.1, -2.0], [2.9, REACH - 1]], dtype=F64)
    turned = x + torch.tensor([2 * math.pi, 0.0], dtype=F64)
    for k in (0, 40, 80):
        assert (value.value(k, x) - value.value(k, turned)).abs().max() < ROUNDING
        assert (value.value(k, x) - value.value(k, -x)).abs().max() < value.error
        assert (value.gradient(k, x) + value.gradient(k, -x)).abs().max() < value.error
    valley, published = lowest(value), swing.published["mean cost"]
    assert value.gradient(0, valley.state[None]).abs().max() < 1e-6
    assert published["heat_map_minimum"] == pytest.approx(valley.cost, abs=0.02)
    assert -value.objective == pytest.approx(
        published["start"], abs=0.05
    )  # 10000 draws of N(0, I): a standard error of 0.012


def test_pendulum_chains_approach_continuous_time():
    nodes, x = (
        (40, 221),
        torch.cartesian_prod(
            torch.linspace(-3, 3, 9, dtype=F64), torch.linspace(-2, 2, 5, dtype=F64)
        ),
    )
    errors, limit = [], benchmark("bsde-pendulum", dt=0.2, nodes=nodes).continuous_uncontrolled
    for dt in (0.2, 0.1):
        chain = periodic_fields(benchmark("bsde-pendulum", dt=dt).problem, nodes)
        errors.append(float((chain.at(0, x)[:, 1:] - limit.gradient(0, x)).norm(dim=1).max()))
    assert limit.error < errors[-1] / 10
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=ORDER)


def test_reverse_drift_undoes_the_forward_process():
    """Twice x plus four times the score of .5 N(3, 1) + .5 N(-3, 1) after dX = -2 X dt + 2 dW for a
    time 1 - t.
    """
    x, t = torch.linspace(-3, 3, 7, dtype=F64).requires_grad_(True), 0.7
    shrink = math.exp(-2 * (1 - t))
    variance = shrink**2 + integrate.quad(lambda s: 4 * math.exp(-4 * s), 0, 1 - t)[0]
    density = sum(torch.exp(-((x - m * shrink) ** 2) / (2 * variance)) for m in (3.0, -3.0))
    assert isinstance(density, Tensor)
    (score,) = torch.autograd.grad(density.log().sum(), x)
    found = reverse_drift(torch.tensor(t, dtype=F64), x.detach()[:, None])
    assert (found[:, 0] - (2 * x + 4 * score).detach()).abs().max() < ROUNDING


@pytest.mark.parametrize("i", range(5))
def test_mixture_study_has_the_published_optimum_in_continuous_time(i: int):
    found = benchmark("bsde-mixture", temp=MIXTURE_PUBLISHED["temp"][i])
    start = best_start(lambda x: found.continuous.value(0, x))
    assert start.unrestricted_cost == pytest.approx(
        MIXTURE_PUBLISHED["unrestricted"][i], abs=PLACES
    )
    assert start.gaussian_cost == pytest.approx(
        MIXTURE_PUBLISHED["gaussian_initial_law"][i], abs=PLACES
    )
    assert start.unrestricted_cost < start.gaussian_cost < -found.continuous.objective


def test_best_start_of_a_chain_is_what_that_chain_attains_from_it():
    found = small("bsde-mixture")
    start = best_start(lambda x: found.truth.value(0, x))

    def cost(mean: float, deviation: float) -> float:
        restarted = benchmark(
            "bsde-mixture", steps=20, temp=6.0, start_mean=mean, start_deviation=deviation
        )
        return -restarted.truth.objective + (deviation**2 + mean**2 - 1) / 2 - math.log(deviation)

    assert cost(start.mean, start.deviation) == pytest.approx(start.gaussian_cost, abs=GRID)
    assert cost(start.mean + 0.02, start.deviation - 0.05) > start.gaussian_cost
    x = torch.linspace(-7, 7, 1401, dtype=F64)
    density = torch.exp(-x.square() / 2 + found.truth.value(0, x[:, None]))
    tilted = float(torch.trapezoid(density, x))
    assert start.unrestricted_cost == pytest.approx(
        -math.log(tilted / math.sqrt(2 * math.pi)), abs=GRID
    )


def test_continuous_mixture_is_the_log_of_an_integral():
    """From an uninformative start, beta log E exp(r / beta) under the data law, by scipy; a tenth
    of a permille of memory.
    """
    found = benchmark("mixture", d=1, beta=0.7)

    def weighted(x: float) -> float:
        parts = ((0.4, -1.0, 0.2), (0.6, 1.2, 0.35))
        data = sum(
            w * math.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
            for w, m, v in parts
        )
        return data * math.exp((-0.25 * x * x + x) / 0.7)

    exact = 0.7 * math.log(integrate.quad(weighted, -8, 8, limit=200)[0])
    assert 0 <= exact - found.continuous.objective < 1e-4


@pytest.mark.parametrize(
    "settings", [{"d": 5, "curvature": 0.0, "steps": 8}, {"d": 2, "steps": 2, "beta": 2.0}]
)
def test_mixtures_in_more_dimensions(settings: dict):
    found = benchmark("mixture", **settings)
    assert isinstance(found.truth, SeparableTruth) == (settings["d"] > 2)
    run = simulate(found.problem, found.truth.policy, noise_of(found.problem))
    assert abs(run.objective - found.truth.objective) < STDERRS * run.stderr
    x = 0.5 * torch.randn(3, settings["d"], generator=torch.Generator().manual_seed(5), dtype=F64)
    last, step = found.problem.steps, 1e-4
    for k in (1, last):
        eye = step * torch.eye(settings["d"], dtype=F64)
        slopes = [
            (found.continuous.value(k, x + e) - found.continuous.value(k, x - e)) / (2 * step)
            for e in eye
        ]
        assert (
            torch.stack(slopes, 1) - found.continuous.gradient(k, x)
        ).abs().max() < 1e-6  # step^2 times a third derivative
    assert (
        found.continuous.gradient(last, x) - found.truth.value_gradient(last, x)
    ).abs().max() < GRID


def test_continuous_double_well_solves_its_linear_equation():
    """psi_t + b psi_x + psi_xx / 2 = 0 with psi = exp(-g) at the end, by the method of lines, for
    the shallow well.
    """
    found = small("double-well")
    x = np.linspace(-2.6, 2.6, 521)
    h, drift = x[1] - x[0], -4 * x * (x**2 - 1)

    def rate(_: float, psi: np.ndarray) -> np.ndarray:
        padded = np.concatenate([psi[:1], psi, psi[-1:]])
        return drift * (padded[2:] - padded[:-2]) / (2 * h) + (
            padded[2:] - 2 * psi + padded[:-2]
        ) / (2 * h * h)

    for k in (0, 40):
        end = integrate.solve_ivp(
            rate,
            (0, 1 - k / 50),
            np.exp(-((x**2 - 1) ** 2)),
            method="LSODA",
            rtol=1e-8,
            atol=1e-12,
            lband=1,
            uband=1,
        )
        inside = np.abs(x) <= INTERIOR
        value, points = np.log(end.y[inside, -1]), torch.from_numpy(x[inside])[:, None]
        pairs = torch.cat(
            [points, torch.zeros_like(points)], 1
        )  # the second coordinate adds its own value at 0
        ours = found.continuous.value(k, pairs).numpy()
        at_zero = value[len(value) // 2]
        assert np.abs(ours - value - at_zero).max() < METHOD_OF_LINES
        assert (
            np.abs(found.continuous.gradient(k, pairs)[:, 0].numpy() - np.gradient(value, h)).max()
            < 20 * METHOD_OF_LINES
        )
    assert found.continuous.objective == pytest.approx(
        float(found.continuous.value(0, torch.zeros(1, 2, dtype=F64))), abs=ROUNDING
    )
    assert isinstance(found.sde, DriftSDE)


def test_linear_quadratic_family_reaches_a_hundred_dimensions():
    for name in ("lq-fine-tuning", "lq-sde"):
        found = benchmark(name, d=100)
        assert isinstance(found.truth, LinearQuadratic)
        best, idle = found.truth.objective, found.uncontrolled.objective
        assert (
            idle
            < best
            < 0.2 * abs(best) + found.continuous.objective + 0.2 * abs(found.continuous.objective)
        )
        assert found.continuous.objective == pytest.approx(best, rel=0.2)
        other = benchmark(name, d=100, seed=1)
        assert other.truth.objective != pytest.approx(best, rel=1e-6)
        assert benchmark(name, d=100).truth.objective == best


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: benchmark("pendulum"),
            "there is no benchmark 'pendulum'; did you mean bsde-pendulum?",
        ),
        (lambda: benchmark("lq-sde", d=0), "d = 0"),
        (lambda: benchmark("oscillator", d=3), "d = 3; an oscillator has two"),
        (lambda: benchmark("oscillator", noise=0.0), "noise = 0"),
        (lambda: benchmark("oscillator", dt=0.3), "dt = 0.3 does not divide the horizon 4"),
        (lambda: benchmark("oscillator", dt=0.0), "dt = 0"),
        (lambda: benchmark("bsde-linear", noise=0.0), "noise = 0.0; a chain without noise"),
        (lambda: benchmark("bsde-mixture", temp=-1.0), "temp = -1"),
        (lambda: benchmark("bsde-pendulum", noise=-1.0), "noise = -1"),
        (lambda: benchmark("double-well", deep=11), "d = 10 and deep = 11"),
        (
            lambda: benchmark("double-well", d=1, deep=1, steps=40).truth,
            "the chain is unstable on the walls",
        ),
        (
            lambda: benchmark("bsde-pendulum").truth,
            "no optimum of its chain is known for bsde-pendulum; it has uncontrolled",
        ),
        (
            lambda: SeparableTruth.of_parts(small("double-well").problem, torch.eye(2), []),
            "0 parts",
        ),
    ],
)
def test_bad_input_is_refused(call, message: str):
    with pytest.raises(InvalidProblem, match=message):
        call()
