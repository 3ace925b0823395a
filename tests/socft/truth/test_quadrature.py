"""Dynamic programming by quadrature against the linear-quadratic closed form, brute-force
maximisation and simulation.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import GaussianMixture, score_reference
from socft.path import Noise, returns, rollout
from socft.policy import AffinePolicy, FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    Reference,
    ScalarDiffusion,
)
from socft.reward import FunctionReward, Linear, PseudoHuber, Quadratic, Reward, Sine, Softplus, Sum
from socft.schedule import ddpm, linear_levels, subsample
from socft.truth.base import simulate
from socft.truth.bellman import BellmanStep
from socft.truth.chain_law import LOST_MASS, chain_law
from socft.truth.grid import Grid
from socft.truth.least_beta import measured_beta
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from socft.truth.quadrature import Quadrature
from tests.support.refusals import Refusals, refusals
from tests.support.tensors import F64, generator, t
from toy.convergence.chains import linear_quadratic_problem
from toy.problems import fine_tuning
from verify.support.sampling import require_estimates

LINE = 1e-9  # promised accuracy of the control in one dimension
PLANE = 1e-7  # and in two
ROUNDING = 1e-12  # relative: a few thousand float64 operations
FLOW = 1e-10  # forward and backward: the same sums in another order
# Brent's method stops when the argument is known to 1e-6; the value errs by its square times the
# curvature
BRUTE = 1e-9
ARGUMENT = 1e-5  # the argument itself, over a curvature of at least 0.1
ROOT = 1e-6  # relative accuracy asked of the root in log(beta), 1e-7, with room
NODAL = (
    1e-2  # the sup over nodes 0.03 apart misses the sup of a function of frequency 5 by (w h)^2 / 8
)
RESOLVED = 1e-6  # what the quadrature itself reports between two wells
SINGLE = 1e-5  # float32 states of size 5 move a control of slope 1 by 3e-7 each


def memoryless(steps: int):
    return ddpm(subsample(linear_levels(1000), steps))


def line(A: float, sigma: list[float], start: tuple[float, float] = (0.0, 1.0)) -> AffineReference:
    """``x' = A x + 0.1 + sigma_k xi`` from N(mean, spread^2)."""
    steps = len(sigma)
    transfer = torch.full((steps, 1, 1), A, dtype=F64)
    return AffineReference(
        transfer,
        ScalarDiffusion(t(*sigma)),
        torch.full((steps, 1), 0.1, dtype=F64),
        t(start[0]),
        t(start[1]).reshape(1, 1),
    )


def oscillator(steps: int, start: Tensor) -> AffineReference:
    """A damped oscillator pushed by noise in its velocity only."""
    dt = 0.3
    A = t(1, dt, -0.5 * dt, 1 - 0.1 * dt).reshape(2, 2).expand(steps, 2, 2)
    B = t(0, 0.5 * dt**0.5).reshape(2, 1).expand(steps, 2, 1)
    return AffineReference(A, MatrixDiffusion(B), None, t(0.5, -0.3), start)


def parabola(P: float, q: float = 0.0) -> Quadratic:
    return Quadratic(t(P)[:, None], t(q))


BOWL = Quadratic(t(-1.0, 0.2, 0.2, -0.5).reshape(2, 2), t(1.0, 0.3))
VARYING = torch.linspace(1.0, 3.0, 5, dtype=F64)

LINEAR_QUADRATIC: dict[str, tuple[Callable[[], ControlProblem], tuple[int, ...] | None, float]] = {
    "50 denoising steps": (lambda: linear_quadratic_problem(1, 50), None, LINE),
    "running cost, beta per step, start elsewhere": (
        lambda: ControlProblem(
            line(0.9, [0.5, 0.4, 0.35, 0.3, 0.2], (1.5, 0.3)),
            parabola(0.5, 0.3),
            VARYING,
            QuadraticCost(t(0.3)[:, None], t(-0.2)),
        ),
        None,
        LINE,
    ),
    "linear reward": (
        lambda: ControlProblem(line(1.1, [0.5] * 3), Linear(t(-0.7)), 0.2),
        None,
        LINE,
    ),
    "start at a point": (
        lambda: ControlProblem(line(0.9, [0.5] * 3, (1.0, 0.0)), parabola(-1.0, 0.5), 1.0),
        None,
        LINE,
    ),
    "plane, coupled": (lambda: linear_quadratic_problem(2, 4), (33, 33), PLANE),
    "plane, degenerate noise, running cost": (
        lambda: ControlProblem(
            oscillator(5, t(0.7, 0.0, 0.3, 0.5).reshape(2, 2)),
            BOWL,
            VARYING / 2,
            QuadraticCost(t(0.2, 0.05, 0.05, 0.1).reshape(2, 2)),
        ),
        (33, 33),
        PLANE,
    ),
    "plane, degenerate noise, start at a point": (
        lambda: ControlProblem(oscillator(4, torch.zeros(2, 2, dtype=F64)), BOWL, 1.0),
        (33, 33),
        PLANE,
    ),
}
each_linear_quadratic = pytest.mark.parametrize("name", LINEAR_QUADRATIC)


@functools.cache
def solved(name: str) -> Quadrature:
    make, nodes, _ = LINEAR_QUADRATIC[name]
    return Quadrature(make(), nodes=nodes)


@functools.cache
def huber() -> Quadrature:
    """Two modes and a pull to the lighter one, 8 steps."""
    return Quadrature(fine_tuning("mixture-huber").problem(memoryless(8), 1.0))


@functools.cache
def sine() -> Quadrature:
    """Standard normal data and many maxima, 8 steps."""
    return Quadrature(fine_tuning("gaussian-sine").problem(memoryless(8), 1.0))


@each_linear_quadratic
def test_control_value_and_gradient_equal_the_closed_form(name: str):
    truth, tolerance = solved(name), LINEAR_QUADRATIC[name][2]
    exact = LinearQuadratic(truth.problem)
    assert truth.control_error(exact.policy).max() < tolerance
    for k in range(truth.problem.steps + 1):
        x = truth.points(k)
        assert (truth.value(k, x) - exact.value(k, x)).abs().max() < tolerance
        assert (truth.value_gradient(k, x) - exact.value_gradient(k, x)).abs().max() < tolerance


@each_linear_quadratic
def test_linear_quadratic_problems_are_exact_far_outside_the_grids(name: str):
    truth, tolerance = solved(name), LINEAR_QUADRATIC[name][2]
    exact, d = LinearQuadratic(truth.problem), truth.grids[0].dim
    x = 100 * torch.randn(20, d, generator=generator(0), dtype=F64)
    for k in range(truth.problem.steps):
        assert (truth.control(k, x) - exact.control(k, x)).abs().max() < 100 * tolerance
        assert (
            truth.value_gradient(k, x) - exact.value_gradient(k, x)
        ).abs().max() < 100 * tolerance


@each_linear_quadratic
def test_objective_and_moments_of_the_optimal_law_equal_the_closed_form(name: str):
    truth, tolerance = solved(name), LINEAR_QUADRATIC[name][2]
    exact = LinearQuadratic(truth.problem)
    best = exact.evaluate(exact.affine_policy)
    found = truth.evaluate(truth.policy)
    assert abs(truth.objective - exact.objective) < tolerance
    assert abs(found.objective - exact.objective) < tolerance
    assert abs(found.reward - best.reward) < tolerance
    assert (found.kl - best.kl).abs().max() < tolerance
    assert found.stderr == 0
    for k, (grid, mass) in enumerate(zip(truth.grids, truth.law.masses, strict=True)):
        mean = mass @ grid.nodes
        covariance = (grid.nodes.T * mass) @ grid.nodes - torch.outer(mean, mean)
        assert (mean - best.mean[k]).abs().max() < tolerance
        assert (covariance - best.covariance[k]).abs().max() < tolerance


@each_linear_quadratic
def test_other_affine_policies_are_evaluated_exactly(name: str):
    truth, tolerance = solved(name), LINEAR_QUADRATIC[name][2]
    optimum = LinearQuadratic(truth.problem).affine_policy
    policy = AffinePolicy(0.7 * optimum.gain.detach(), optimum.offset.detach() - 0.05)
    exact = LinearQuadratic(truth.problem).evaluate(policy)
    assert abs(truth.evaluate(policy).objective - exact.objective) < tolerance


@each_linear_quadratic
def test_curvature_is_the_operator_norm_along_the_noise(name: str):
    truth, exact = solved(name), LinearQuadratic(solved(name).problem)
    (m,), (n,) = truth.problem.reference.noise_dims, truth.problem.reference.dims
    for k in range(truth.problem.steps):
        B = truth.problem.reference.diffusion.apply(
            k, torch.zeros(m, n, dtype=F64), torch.eye(m, dtype=F64)
        ).T
        norms = (
            torch.linalg.matrix_norm(B.T @ exact.hessian(k + 1) @ B, 2)
            / torch.linalg.matrix_norm(B, 2) ** 2
        )
        assert abs(float(truth.curvature[k] - norms)) < PLANE


def test_the_region_is_bounded_by_the_quantiles_of_the_optimal_law():
    truth = solved("50 denoising steps")
    law = LinearQuadratic(truth.problem).evaluate(LinearQuadratic(truth.problem).affine_policy)
    reach = float(norm.ppf(1 - LOST_MASS / 2))
    for k in (0, 20, 50):
        mean, spread, h = (
            float(law.mean[k]),
            float(law.covariance[k]) ** 0.5,
            float(truth.grids[k].spacing),
        )
        assert abs(float(truth.region.lower[k]) - (mean - reach * spread)) <= h
        assert abs(float(truth.region.upper[k]) - (mean + reach * spread)) <= h
        assert bool(truth.region.contains(k, truth.points(k)).all())


def by_brute_force(
    problem: ControlProblem, following: Callable[[Tensor], Tensor], k: int, x: float
) -> tuple[float, float]:
    """Maximum and maximiser over v of
    ``E following(m_k(x) + B_k (v + xi)) - beta v^2 / 2 - f_k(x)``: Legendre nodes and Brent.
    """
    node, weight = np.polynomial.legendre.leggauss(240)
    xi = torch.from_numpy(9 * node)[:, None]
    density = torch.from_numpy(9 * weight * norm.pdf(9 * node))
    at = t(x).expand(len(xi), 1)

    def loss(v: float) -> float:
        return float(
            problem.beta[k] * v**2 / 2 - density @ following(problem.reference.step(k, at, v + xi))
        )

    found: Any = minimize_scalar(loss, bracket=(-0.5, 0.5), tol=1e-10)
    return -found.fun - float(problem.cost(k, at[:1])), found.x


def two_modes() -> Reference:
    data = GaussianMixture([0.4, 0.6], [[-1.0], [1.2]], [0.3, 0.5])
    return score_reference(data, memoryless(3))


WAVE = Sum([Softplus(1.5, 2.0, 0.3), Sine(0.4, 2.0, 0.5)])
BELLMAN: dict[str, ControlProblem] = {
    "softplus": ControlProblem(two_modes(), Softplus(2.0, 3.0, 0.5), 1.0),
    "softplus and sine, beta per step": ControlProblem(two_modes(), WAVE, t(2.0, 1.0, 1.5)),
    "sine, running cost": ControlProblem(
        two_modes(), Sine(0.8, 1.5), 2.0, lambda k, x: 0.1 * torch.cos(x[:, 0]) + 0.05 * x[:, 0]
    ),
}


@pytest.mark.parametrize("name", BELLMAN)
def test_the_value_solves_the_bellman_equation_at_random_points(name: str):
    problem = BELLMAN[name]
    truth = Quadrature(problem)
    for k in range(problem.steps):
        following = (
            problem.reward if k + 1 == problem.steps else functools.partial(truth.value, k + 1)
        )
        for x in torch.randn(3, generator=generator(k), dtype=F64).tolist():
            value, control = by_brute_force(problem, following, k, x)
            assert abs(float(truth.value(k, t(x)[:, None])) - value) < BRUTE
            assert abs(float(truth.control(k, t(x)[:, None])) - control) < ARGUMENT


def test_a_constant_running_cost_is_paid_and_changes_nothing_else():
    free = BELLMAN["softplus"]
    paying = ControlProblem(
        free.reference, free.reward, free.beta, lambda k, x: 0.1 * k * torch.ones_like(x[:, 0])
    )
    with_, without = Quadrature(paying), Quadrature(free)
    total = sum(0.1 * k for k in range(free.steps))
    assert with_.objective == pytest.approx(without.objective - total, abs=LINE)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    assert float((with_.control(0, x) - without.control(0, x)).abs().max()) < LINE


def test_two_steps_of_a_sine_reward_from_its_closed_form_expectation():
    """E sin(w (x + s W)) = exp(-(w s)^2 / 2) sin(w x), so V_1 needs a scalar maximisation only and
    V_0 one integral more.
    """
    amplitude, w, A, s, beta = 0.8, 1.5, 0.9, 0.6, 1.0
    problem = ControlProblem(line(A, [s, s]), Sine(amplitude, w), beta)
    truth = Quadrature(problem)
    damped = amplitude * math.exp(-((w * s) ** 2) / 2)

    def first_value(x: Tensor) -> Tensor:
        v, mean = torch.zeros_like(x), A * x + 0.1
        for _ in range(
            200
        ):  # the map v -> s damped w cos(w (mean + s v)) / beta contracts by s^2 w^2 damped = 0.54
            v = s * damped * w / beta * torch.cos(w * (mean + s * v))
        return (damped * torch.sin(w * (mean + s * v)) - beta * v**2 / 2)[:, 0]

    for x in (-1.3, 0.2, 0.9):
        assert abs(float(truth.value(1, t(x)[:, None])) - float(first_value(t(x)[:, None]))) < BRUTE
        value, control = by_brute_force(problem, first_value, 0, x)
        assert abs(float(truth.value(0, t(x)[:, None])) - value) < BRUTE
        assert abs(float(truth.control(0, t(x)[:, None])) - control) < ARGUMENT


@pytest.mark.parametrize("make", [huber, sine])
def test_the_objective_is_the_same_backwards_forwards_and_simulated(make: Callable[[], Quadrature]):
    truth = make()
    forward = truth.evaluate(truth.policy)
    assert abs(truth.objective - forward.objective) < FLOW
    noise = Noise.sample(truth.problem.reference, 20000, generator(5))
    simulated = simulate(truth.problem, truth.policy, noise)
    require_estimates(simulated.objective, simulated.stderr, truth.objective, 0.0069)
    assert (
        abs(forward.reward - float(truth.problem.beta @ forward.kl) - forward.objective) < ROUNDING
    )


@pytest.mark.parametrize("make", [huber, sine])
def test_any_policy_is_evaluated_as_by_simulation_and_none_beats_the_optimum(
    make: Callable[[], Quadrature],
):
    truth = make()
    noise = Noise.sample(truth.problem.reference, 20000, generator(6))
    policies: list[Policy] = [
        Uncontrolled(truth.problem.reference),
        FunctionPolicy(lambda k, x: 0.3 * torch.sin(x + k)),
        FunctionPolicy(lambda k, x: 1.3 * truth.control(k, x) + 0.05),
    ]
    for policy in policies:
        found, simulated = truth.evaluate(policy), simulate(truth.problem, policy, noise)
        assert found.stderr == 0
        require_estimates(simulated.objective, simulated.stderr, found.objective, 0.0075)
        assert found.objective < truth.objective


def test_a_policy_that_leaves_the_grids_is_simulated():
    truth = sine()
    policy = FunctionPolicy(lambda k, x: torch.full_like(x, 5.0))
    assert chain_law(truth.problem, policy, truth.grids).lost > 0.9
    found = truth.evaluate(policy)
    paths = rollout(truth.problem.reference, policy, truth.probe.noise)
    assert found.stderr > 0
    assert abs(found.objective - float(returns(truth.problem, paths).mean())) < ROUNDING * abs(
        found.objective
    )


def test_a_policy_that_is_not_finite_is_refused():
    with pytest.raises(InvalidProblem, match="a policy must return finite numbers"):
        sine().evaluate(FunctionPolicy(lambda k, x: x * math.nan))


@pytest.mark.parametrize("make", [huber, sine])
def test_the_reported_error_bounds_the_distance_to_a_much_finer_grid(
    make: Callable[[], Quadrature],
):
    """Also between the nodes, where the interpolated control is less accurate."""
    truth = make()
    fine = Quadrature(
        truth.problem, tuple(Grid.box(g.lower, g.upper, (3 * g.shape[0],)) for g in truth.grids)
    )
    error = truth.error
    for k in range(truth.problem.steps):
        lower, upper = truth.region.lower[k], truth.region.upper[k]
        x = lower + (upper - lower) * torch.rand(2000, 1, generator=generator(k), dtype=F64)
        assert (truth.control(k, x) - fine.control(k, x)).abs().max() <= error


def test_the_reported_error_grows_when_the_grid_is_too_coarse():
    truth = huber()
    coarse = Quadrature(truth.problem, nodes=(121,))
    apart = truth.control_error(coarse.policy).max()
    assert coarse.error > 100 * truth.error
    assert apart < coarse.error


def moved(sign: float, shift: float, reward: Callable[[Tensor], Tensor]) -> ControlProblem:
    """A chain between two wells and a reward, in the coordinate ``sign x + shift``."""
    to, back = lambda x: sign * x + shift, lambda y: (y - shift) * sign
    mean = lambda k, y: to(0.8 * back(y) + 0.5 * torch.tanh(back(y)))  # noqa: E731
    reference = KernelReference(mean, ScalarDiffusion(t(0.5, 0.4, 0.3)), 3, (1,), to)
    return ControlProblem(
        reference, FunctionReward(lambda y: reward(back(y)[:, 0]), L0=2.0, L1=2.0), 1.0
    )


@pytest.mark.parametrize(("sign", "shift"), [(1.0, 7.3), (-1.0, 0.0), (-1.0, -2.1)])
def test_translating_or_reflecting_the_states_does_the_same_to_the_solution(
    sign: float, shift: float
):
    reward = lambda x: torch.sin(1.7 * x) + 0.3 * x  # noqa: E731
    plain, other = Quadrature(moved(1.0, 0.0, reward)), Quadrature(moved(sign, shift, reward))
    tolerance = max(plain.error, other.error, ROUNDING)
    assert tolerance < RESOLVED
    assert abs(plain.objective - other.objective) < tolerance
    x = 2 * torch.randn(50, 1, generator=generator(1), dtype=F64)
    for k in range(3):
        assert (
            plain.control(k, x) - sign * other.control(k, sign * x + shift)
        ).abs().max() < tolerance
        assert (plain.value(k, x) - other.value(k, sign * x + shift)).abs().max() < tolerance


@pytest.mark.parametrize("make", [huber, sine])
def test_the_solved_control_is_stationary_at_every_node(make: Callable[[], Quadrature]):
    """Also at the edges, where the following value function is continued."""
    truth = make()
    for k in range(truth.problem.steps):
        step = BellmanStep.build(truth.problem, k, truth.grids[k], truth.values[k + 1])
        shift = truth.shifts[k]
        assert (shift - step.improve(shift)).abs().max() < ROUNDING * (1 + float(shift.abs().max()))


def test_beta_is_refused_exactly_below_the_curvature():
    """One step: G r has the curvature P of the reward, so the supremum is finite iff beta > sigma^2
    P = 0.75.
    """
    reference = line(0.9, [0.5])
    assert Quadrature(ControlProblem(reference, parabola(3.0), 0.7501)).objective > 0
    with pytest.raises(
        InvalidProblem, match=r"beta\[0\] = 0.7499 gives sigma\^2 sup Hess\(G V\) / beta = 1.0001"
    ) as refused:
        Quadrature(ControlProblem(reference, parabola(3.0), 0.7499))
    needed = re.search(r"Raise beta above ([\d.]+)\.", str(refused.value))
    assert needed is not None
    assert abs(float(needed[1]) - 0.75) < 1e-5  # printed with six digits


def test_curvature_and_least_beta_of_a_sine_are_not_spoilt_by_the_edges():
    """sup |Hess G sin(w x)| = w^2 exp(-(w s)^2 / 2), much below the w^2 of the sine itself, of
    which the edges still show some.
    """
    w, s = 5.0, 0.6
    curvature = w**2 * math.exp(-((w * s) ** 2) / 2)
    least = s**2 * curvature
    truth = Quadrature(ControlProblem(line(0.9, [s]), Sine(1.0, w), 1.02 * least))
    assert abs(float(truth.curvature[0]) / curvature - 1) < NODAL
    with pytest.raises(InvalidProblem, match=r"it must be < 1 for the control to be well defined"):
        Quadrature(ControlProblem(line(0.9, [s]), Sine(1.0, w), 0.98 * least))


def test_measured_beta_is_the_closed_form_of_one_step():
    choice = measured_beta(ControlProblem(line(0.9, [0.5]), parabola(-3.0), 1.0), lam=0.4)
    assert abs(float(choice.beta[0]) / (0.25 * 3.0 / 0.6) - 1) < ROOT
    assert abs(float(choice.lam[0]) - 0.4) < ROOT


def test_measured_beta_makes_the_slowest_step_contract_at_the_wanted_rate():
    problem = linear_quadratic_problem(1, 3)
    choice = measured_beta(problem, lam=0.5)
    beta = float(choice.beta[0])
    exact = LinearQuadratic(ControlProblem(problem.reference, problem.reward, beta))
    curvature = torch.stack([exact.hessian(k + 1).abs().squeeze() for k in range(3)])
    sigma = problem.reference.diffusion.apply(
        torch.arange(3), torch.zeros(3, 1, dtype=F64), torch.ones(3, 1, dtype=F64)
    )[:, 0]
    assert abs(float((sigma**2 * curvature).max() / beta) - 0.5) < ROOT
    assert (choice.lam - (1 - sigma**2 * curvature / beta)).abs().max() < ROOT
    assert (
        (choice.margin - beta * 0.5 / (sigma**2 * curvature)).abs() < ROOT * choice.margin
    ).all()
    lower = measured_beta(problem, lam=0.3)
    assert float(lower.beta[0]) < beta


@pytest.mark.parametrize(
    ("lam", "remedy"),
    [
        *((lam, r"the design constant must lie in \(0, 1\)") for lam in (0.0, 1.0, -0.2)),
        (math.nan, "it must be a finite number"),
    ],
)
def test_measured_beta_refuses_a_constant_outside_the_unit_interval(lam: float, remedy: str):
    with pytest.raises(InvalidProblem, match=f"lam = {lam}; {remedy}"):
        measured_beta(linear_quadratic_problem(1, 2), lam)


def test_one_step_per_sample_gives_the_same_as_one_step_at_a_time():
    for truth in (huber(), solved("plane, degenerate noise, running cost")):
        d, T = truth.grids[0].dim, truth.problem.steps
        k, x = (
            torch.tensor([3, 0, T - 1, 3, 1]),
            torch.randn(5, d, generator=generator(2), dtype=F64),
        )
        for function in (truth.control, truth.value, truth.value_gradient):
            singly = torch.cat([function(int(i), y[None]) for i, y in zip(k, x, strict=True)])
            assert (function(k, x) - singly).abs().max() < ROUNDING


def test_single_precision_states_get_single_precision_answers():
    truth = huber()
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    for function in (truth.control, truth.value, truth.value_gradient):
        single = function(0, x.float())
        assert single.dtype == torch.float32
        assert (single.double() - function(0, x)).abs().max() < SINGLE


def bad(reward: Reward, reference: Reference | None = None) -> ControlProblem:
    return ControlProblem(reference or line(0.9, [0.5, 0.5]), reward, 1.0)


def matrices(B: Tensor) -> AffineReference:
    n = len(B)
    return AffineReference(
        torch.eye(n, dtype=F64).expand(2, n, n), MatrixDiffusion(B.expand(2, *B.shape))
    )


def images() -> KernelReference:
    return KernelReference(lambda k, x: x, ScalarDiffusion(t(1.0, 1.0)), 2, (1, 2, 2))


NARROW = tuple(Grid.box(t(-1.0), t(1.0), (61,)) for _ in range(3))
SQUARE = tuple(Grid.box(t(-9.0, -9.0), t(9.0, 9.0), (20, 20)) for _ in range(3))
REFUSED: Refusals = {
    "undefined reward": (
        lambda: Quadrature(bad(FunctionReward(lambda x: (x[:, 0] + 4).log()))),
        r"reward at node \[0\] = nan; the reward must be finite",
    ),
    "infinite slope": (
        lambda: Quadrature(
            bad(FunctionReward(lambda x: -x[:, 0].abs().sqrt(), L0=1.0)),
            tuple(Grid.box(t(-8.0), t(8.0), (65,)) for _ in range(3)),
        ),
        r"reward gradient at node \[32, 0\] = ",
    ),
    "three dimensions": (
        lambda: Quadrature(bad(Linear(t(1.0, 1.0, 1.0)), matrices(torch.eye(3, dtype=F64)))),
        r"states of shape \(3,\) have no grid; quadrature solves vectors of length 1 and 2",
    ),
    "images": (
        lambda: Quadrature(bad(FunctionReward(lambda x: x.flatten(1).sum(1)), images())),
        r"states of shape \(1, 2, 2\) have no grid",
    ),
    "correlated noise": (
        lambda: Quadrature(bad(Linear(t(1.0, 1.0)), matrices(t(1.0, 0.5, 0.0, 1.0).reshape(2, 2)))),
        r"B\[1\] B\[1\]\^T has an off-diagonal entry 0.5; rotate the state",
    ),
    "too few grids": (
        lambda: Quadrature(bad(parabola(-1.0)), NARROW[:2]),
        "2 grids for 2 steps; give one per step 0..T, 3",
    ),
    "grids of another dimension": (
        lambda: Quadrature(bad(parabola(-1.0)), SQUARE),
        r"grids of shape \(20, 20\) for states of",
    ),
    "grids that lose mass": (
        lambda: Quadrature(bad(parabola(-1.0)), NARROW),
        r"the grids lose [\d.e+-]+ of the optimal chain's mass, more than 1e-06",
    ),
    "running cost without a gradient": (
        lambda: Quadrature(
            ControlProblem(
                line(0.9, [0.5, 0.5]), parabola(-1.0), 1.0, lambda k, x: x.detach()[:, 0]
            )
        ),
        "the running cost has no gradient",
    ),
    "beta too small": (
        lambda: Quadrature(bad(parabola(5.0))),
        r"beta\[1\] = 1 gives sigma\^2 sup Hess\(G V\) / beta = 1.25; it must be < 1",
    ),
}


test_what_quadrature_cannot_solve_is_refused_with_the_reason = refusals(REFUSED)


def test_noise_along_the_axes_may_come_from_any_orthogonal_mixture():
    """B B' is diagonal although B is not: only the covariance matters for the value, and the
    control is B^T times the costate.
    """
    angle = t(0.6)
    B = 0.5 * torch.stack(
        [torch.cat([angle.cos(), -angle.sin()]), torch.cat([angle.sin(), angle.cos()])]
    )
    problem = ControlProblem(matrices(B), BOWL, 1.0)
    truth, exact = Quadrature(problem, nodes=(41, 41)), LinearQuadratic(problem)
    assert truth.control_error(exact.policy).max() < PLANE


def test_a_pull_towards_far_away_is_followed_by_the_grids():
    """A linear reward of slope 1 at beta = 0.1 moves the chain ten standard deviations: E X_1 = 0.1
    + sigma^2 slope / beta.
    """
    truth = Quadrature(ControlProblem(line(0.0, [1.0]), Linear(t(1.0)), 0.1))
    assert abs(truth.law.expect(1, truth.grids[1].nodes[:, 0]) - 10.1) < LINE
    assert abs(truth.objective - (0.1 + 1.0 / 0.1 / 2)) < LINE


def test_a_bounded_gradient_stays_bounded_outside():
    problem = ControlProblem(line(0.9, [0.5, 0.5]), PseudoHuber(1.0, 0.0, -1.0), 1.0)
    truth = Quadrature(problem)
    x = t(-1e4, 1e4)[:, None]
    assert truth.value_gradient(2, x).abs().max() <= 1.0
    assert truth.value_gradient(0, x).abs().max() <= 0.81 * (
        1 + ROUNDING
    )  # the Lipschitz constant of r times that of both means


def test_curvature_is_that_between_the_nodes():
    """The supremum over a hundred points per cell, which the nodes alone miss by more than the
    margin that is added.
    """
    truth = sine()
    k = truth.problem.steps - 1
    step = BellmanStep.build(truth.problem, k, truth.grids[k], truth.values[k + 1])
    nodes = step.smooth.hessian_at_nodes[step._interior].abs().max()
    x = truth.grids[k + 1].nodes[step._interior]
    fine = torch.linspace(float(x[0]), float(x[-1]), 100 * len(x), dtype=F64)[:, None]
    highest = step.smooth.derivatives(fine)[1].abs().max()
    assert highest > nodes
    assert highest <= truth.curvature[k] <= highest * (1 + 1e-7)


def test_curvature_error_bounds_the_change_on_a_finer_grid():
    truth = Quadrature(sine().problem, nodes=(151,))
    fine = sine()
    apart = float((truth.curvature - fine.curvature).abs().max())
    assert 0 < apart <= truth.curvature_error
