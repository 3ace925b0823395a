"""PI-FT against hand-written recursions of its affine iterates, pathwise derivatives, finite
differences and known rates.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import full_adjoint
from socft.estimators.full_adjoint import FullAdjoint
from socft.measurement import measure, observe
from socft.path import Noise, rollout
from socft.pi_ft import (
    BackwardInduction,
    ExactPIFT,
    MonteCarloPIFT,
    PolicyGradient,
    backward_induction,
)
from socft.policy import AffinePolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, MatrixDiffusion, ScalarDiffusion
from socft.regression.features import Polynomial, RadialBasis
from socft.regression.functions import LinearRegression, NetworkRegression
from socft.reward import FunctionReward, Quadratic, Sine
from socft.schedule import ddpm, linear_levels, subsample, variance_preserving
from socft.theory import BestRelaxation, FixedRelaxation
from socft.truth.bellman import BellmanStep
from socft.truth.grid import tensor_rule
from socft.truth.least_beta import measured_beta
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from socft.truth.quadrature import Quadrature, choose_grids
from tests.support.tensors import F64, generator, t
from toy.convergence.chains import linear_quadratic_problem
from toy.problems import fine_tuning
from verify.support.sampling import STDERRS, require_mean

ITERATE = 1e-12  # exact iterates of affine problems: rounding, over noise scales down to 0.1
REGRESSED = 1e-10  # least squares on 64 samples with condition numbers near 100
GEOMETRIC = 1e-5  # 12 iterations at a contraction below 0.33, from an error of 2
FORWARD = 1e-10  # value of an iterate backwards and forwards: the same sums in another order
DIFFERENCE = 1e-9  # fourth-order differences at step 1e-3 of a value that moves at frequency 2
RATE = 0.01  # the asymptotic rate, after 20 iterations
ROUNDING = 1e-10  # increments below this are rounding: their ratios say nothing
RATIO = 1e-3  # ratios of larger ones: the sup moves over the nodes of a plane
NODAL = 1e-4  # the sup of the curvature over the nodes misses the sup by (w h)^2 / 8
# control of Monte Carlo PI-FT, root mean square: 16 draws and 2048 paths of noise near 1, times
# sigma / beta
MATCHED = 0.02
GAP = 2e-4  # objective gap of Monte Carlo PI-FT: beta / 2 times the square of the above per step
CLIMBED = 1e-3  # objective gap after 160 steps of gradient ascent with 64 paths each


def oscillator() -> ControlProblem:
    """Degenerate noise, a running cost and a weight that changes from step to step."""
    dt, steps = 0.3, 4
    A = t(1, dt, -0.5 * dt, 1 - 0.1 * dt).reshape(2, 2).expand(steps, 2, 2)
    B = t(0, 0.5 * dt**0.5).reshape(2, 1).expand(steps, 2, 1)
    b = torch.linspace(-0.1, 0.2, 2 * steps, dtype=F64).reshape(steps, 2)
    reference = AffineReference(
        A, MatrixDiffusion(B), b, t(0.5, -0.3), t(0.7, 0.0, 0.3, 0.5).reshape(2, 2)
    )
    reward = Quadratic(t(-1.0, 0.2, 0.2, -0.5).reshape(2, 2), t(1.0, 0.3))
    return ControlProblem(
        reference,
        reward,
        t(0.5, 0.8, 0.6, 0.7),
        QuadraticCost(t(0.2, 0.05, 0.05, 0.1).reshape(2, 2), t(0.1, 0.0)),
    )


AFFINE: dict[str, tuple[Callable[[], ControlProblem], tuple[int, ...]]] = {
    "line": (lambda: linear_quadratic_problem(1, 5), (301,)),
    "plane, degenerate noise, running cost": (oscillator, (31, 31)),
}


@functools.cache
def affine_case(name: str):
    make, nodes = AFFINE[name]
    problem = make()
    return problem, choose_grids(problem, nodes)


@dataclasses.dataclass(frozen=True)
class Iterate:
    """``v_k = gain_k x + offset_k`` and ``grad V_k = hessian_k x + slope_k``."""

    gain: list[Tensor]
    offset: list[Tensor]
    hessian: list[Tensor]
    slope: list[Tensor]


def affine_iterate(
    problem: ControlProblem, inner: int, relaxation: Tensor | None = None
) -> Iterate:
    """Algorithm 1 by hand: ``inner`` Picard steps of ``v <- B' (P (A x + b + B v) + q) / beta`` at
    every step, relaxed where asked, then its value.
    """
    theta = torch.ones(problem.steps, dtype=F64) if relaxation is None else relaxation
    reference, reward, cost = problem.reference, problem.reward, problem.running_cost
    assert isinstance(reference, AffineReference)
    assert isinstance(reward, Quadratic)
    (n,), (m,) = reference.dims, reference.noise_dims
    hessian, slope, gains, offsets = [reward.P], [reward.linear], [], []
    for k in reversed(range(problem.steps)):
        A, b, beta = reference.transition[k], reference.offset[k], problem.beta[k]
        B = reference.diffusion.apply(k, torch.zeros(m, n, dtype=F64), torch.eye(m, dtype=F64)).T
        P, q = hessian[-1], slope[-1]
        K, o = torch.zeros(m, n, dtype=F64), torch.zeros(m, dtype=F64)
        for _ in range(inner):
            K1, o1 = B.T @ P @ (A + B @ K) / beta, B.T @ (P @ (b + B @ o) + q) / beta
            K, o = K + theta[k] * (K1 - K), o + theta[k] * (o1 - o)
        L, c = A + B @ K, b + B @ o
        F, h = (
            (cost.F, cost.h)
            if isinstance(cost, QuadraticCost)
            else (torch.zeros(n, n, dtype=F64), torch.zeros(n, dtype=F64))
        )
        hessian.append(L.T @ P @ L - beta * K.T @ K - F)
        slope.append(L.T @ (P @ c + q) - beta * K.T @ o - h)
        gains.append(K)
        offsets.append(o)
    return Iterate(gains[::-1], offsets[::-1], hessian[::-1], slope[::-1])


@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("inner", [0, 1, 2, 5])
@pytest.mark.parametrize("name", AFFINE)
def test_every_iterate_equals_the_hand_written_recursion(name: str, inner: int, relaxed: bool):
    problem, grids = affine_case(name)
    theta = torch.linspace(0.5, 1.2, problem.steps, dtype=F64) if relaxed else None
    found = backward_induction(problem, grids, inner, 1.0 if theta is None else theta)
    expected = affine_iterate(problem, inner, theta)
    policy = found.policy(problem)
    for k, grid in enumerate(grids):
        x = grid.nodes[:: max(1, len(grid.nodes) // 50)]
        slope = x @ expected.hessian[k].T + expected.slope[k]
        assert (found.values[k].gradient_at(x) - slope).abs().max() < ITERATE * 10
        if k < problem.steps:
            control = x @ expected.gain[k].T + expected.offset[k]
            assert (policy(k, x) - control).abs().max() < ITERATE * 10


@pytest.mark.parametrize("name", AFFINE)
def test_the_hand_written_recursion_converges_to_the_optimum(name: str):
    problem, _ = affine_case(name)
    far, exact = affine_iterate(problem, 60), LinearQuadratic(problem)
    for k in range(problem.steps + 1):
        assert (far.hessian[k] - exact.hessian(k)).abs().max() < ITERATE


@pytest.mark.parametrize("name", AFFINE)
def test_the_contraction_is_the_curvature_times_the_variance_over_beta(name: str):
    problem, grids = affine_case(name)
    found, exact = backward_induction(problem, grids, 4), affine_iterate(problem, 4)
    contraction = found.contraction
    (m,), (n,) = problem.reference.noise_dims, problem.reference.dims
    for k in range(problem.steps):
        B = problem.reference.diffusion.apply(
            k, torch.zeros(m, n, dtype=F64), torch.eye(m, dtype=F64)
        ).T
        rate = torch.linalg.matrix_norm(B.T @ exact.hessian[k + 1] @ B, 2) / problem.beta[k]
        above = found.increments[k, 1:] > ROUNDING
        assert ((contraction[k] - rate)[above].abs() < RATIO * rate).all()
        assert bool(above.any()) or rate < RATIO


@functools.cache
def sine() -> Quadrature:
    return Quadrature(
        fine_tuning("gaussian-sine").problem(ddpm(subsample(linear_levels(1000), 6)), 2.0)
    )


@functools.cache
def sine_sweep(inner: int) -> BackwardInduction:
    return backward_induction(sine().problem, sine().grids, inner)


def test_the_contraction_never_exceeds_its_bound():
    """``sigma^2 sup |Hess G V| / beta`` with V the iterate's own next value (equation 67)."""
    truth, found = sine(), sine_sweep(8)
    problem = truth.problem
    for k in range(problem.steps):
        step = BellmanStep.build(problem, k, truth.grids[k], found.values[k + 1])
        bound = float(step.rho.max()) * step.curvature()
        above = found.increments[k, 1:] > ROUNDING
        assert (found.contraction[k][above] <= bound * (1 + ROUNDING)).all()
        assert bound < 1


def test_the_contraction_stops_where_increments_are_rounding():
    """At a contraction below 0.35 forty increments end in roundings, whose ratios would exceed
    every bound.
    """
    found = sine_sweep(40)
    rates = torch.tensor(
        [
            float(step.rho.max()) * step.curvature()
            for step in (
                BellmanStep.build(sine().problem, k, sine().grids[k], found.values[k + 1])
                for k in range(6)
            )
        ],
        dtype=F64,
    )
    contraction = found.contraction
    assert contraction.shape == (6, 39)
    known = ~contraction.isnan()
    assert bool(known[:, 0].all())
    assert not bool(known[:, -1].any())
    assert bool((known[:, :-1] >= known[:, 1:]).all())
    assert bool((contraction <= rates[:, None] * (1 + RATIO))[known].all())
    raw = found.increments[:, 1:] / found.increments[:, :-1]
    assert not bool((raw <= rates[:, None] * (1 + RATIO)).all())
    assert sine_sweep(1).contraction.shape == (6, 0)
    assert sine_sweep(0).contraction.shape == (6, 0)


@pytest.mark.parametrize("inner", [0, 1, 3])
def test_the_value_gradient_of_an_iterate_is_the_derivative_of_its_value(inner: int):
    found, h = sine_sweep(inner), 1e-3
    x = torch.linspace(-2.2, 2.1, 13, dtype=F64)[:, None]
    for value in found.values:
        ahead, behind = (8 * value.at(x + s * h) - value.at(x + 2 * s * h) for s in (1, -1))
        assert ((ahead - behind) / (12 * h) - value.gradient_at(x)[:, 0]).abs().max() < DIFFERENCE


@pytest.mark.parametrize("inner", [0, 1, 3])
def test_the_value_of_an_iterate_is_what_its_policy_achieves(inner: int):
    truth, found = sine(), sine_sweep(inner)
    points, weights = tensor_rule(1)
    backward = float(weights @ found.values[0].at(truth.problem.reference.initial(points)))
    assert abs(backward - truth.evaluate(found.policy(truth.problem)).objective) < FORWARD
    assert backward <= truth.objective + FORWARD


def test_the_value_gradient_of_an_iterate_is_the_mean_pathwise_derivative_of_its_return():
    """On a chain that remembers its start; the check tells the iterates 0 and 1 apart."""
    problem = fine_tuning("gaussian-sine").problem(variance_preserving(3, 1.0), 1.5)
    grids = choose_grids(problem, (601,))
    found, plain = backward_induction(problem, grids, 1), backward_induction(problem, grids, 0)
    policy = found.policy(problem)
    for start in (0.4, 0.7):
        at = _from_point(problem, start)
        path = rollout(at.reference, policy, Noise.sample(at.reference, 80000, generator(1)))
        samples = full_adjoint(at, policy, path)[0, :, 0]
        stderr = float(samples.std()) / 80000**0.5
        x = t(start)[:, None]
        require_mean(samples, found.values[0].gradient_at(x), 0.0023)
        assert (
            abs(float(samples.mean() - plain.values[0].gradient_at(x)[0, 0])) > 2 * STDERRS * stderr
        )


def _from_point(problem: ControlProblem, start: float) -> ControlProblem:
    reference = problem.reference
    fixed = KernelReference(
        reference.mean,
        reference.diffusion,
        reference.steps,
        (1,),
        lambda z: torch.full_like(z, start),
    )
    return ControlProblem(fixed, problem.reward, problem.beta)


def test_the_exact_method_yields_every_iterate_from_the_pre_trained_model_on():
    truth = sine()
    found = list(ExactPIFT(3, truth.grids).iterations(truth.problem))
    assert [i.index for i in found] == [0, 1, 2, 3]
    assert truth.evaluate(found[0].policy).kl.abs().max() == 0
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    for iteration in found:
        same = sine_sweep(iteration.index)
        assert torch.equal(iteration.policy(3, x), same.policy(truth.problem)(3, x))
        assert iteration.value_gradient is not None
        assert torch.equal(
            iteration.value_gradient(torch.full((9,), 3), x), same.values[3].gradient_at(x)
        )
        assert iteration.details["increments"].shape == (6, iteration.index)
    seconds, evaluations = [i.seconds for i in found], [i.evaluations for i in found]
    assert seconds == sorted(seconds)
    assert evaluations == sorted(evaluations)


def test_errors_fall_and_the_objective_rises_to_the_optimum():
    truth = sine()
    found = list(observe(truth, ExactPIFT(8, truth.grids).iterations(truth.problem), every=2))
    errors = [float(m.control_error.max()) for m in found]
    gaps = [m.objective_gap for m in found]
    assert [m.iteration.index for m in found] == [0, 2, 4, 6, 8]
    assert all(b < 0.6 * a for a, b in itertools.pairwise(errors))
    assert all(-FORWARD < b < a for a, b in itertools.pairwise(gaps))
    for m in found:
        assert m.value_gradient_error is not None
        assert m.value_gradient_error[-1] == 0
        assert m.evaluation.stderr == 0


def test_grids_are_chosen_where_none_are_given():
    problem = linear_quadratic_problem(1, 5)
    *_, last = ExactPIFT(12).iterations(problem)
    assert LinearQuadratic(problem).control_error(last.policy).max() < GEOMETRIC


def test_the_asymptotic_rate_of_an_affine_problem_is_one_minus_lambda():
    problem = linear_quadratic_problem(1, 4)
    beta = float(measured_beta(problem, lam=0.5).beta[0])
    problem = ControlProblem(problem.reference, problem.reward, beta)
    exact, grids = LinearQuadratic(problem), choose_grids(problem, (301,))
    first, last = (
        float(exact.control_error(backward_induction(problem, grids, m).policy(problem)).max())
        for m in (20, 25)
    )
    assert abs((last / first) ** 0.2 / 0.5 - 1) < RATE


def test_the_asymptotic_rate_of_a_sine_is_one_minus_lambda_with_a_square_root_correction():
    """Where |Hess G r| is largest the gradient of G r, and with it the error, vanishes, so the sup
    falls like 2^-m / sqrt(m).
    """
    w, s = 1.5, 0.6
    reference = AffineReference(t(0.9).reshape(1, 1, 1), ScalarDiffusion(t(s)))
    beta = (
        s**2 * w**2 * math.exp(-((w * s) ** 2) / 2) / 0.5
    )  # sigma^2 sup |Hess G sin(w x)| / (1 - lam)
    choice = measured_beta(ControlProblem(reference, Sine(1.0, w), 1.0), lam=0.5)
    assert abs(float(choice.beta[0]) / beta - 1) < NODAL
    truth = Quadrature(ControlProblem(reference, Sine(1.0, w), beta))
    first, last = (
        float(
            truth.control_error(
                backward_induction(truth.problem, truth.grids, m).policy(truth.problem)
            ).max()
        )
        for m in (20, 25)
    )
    assert abs((last / first) ** 0.2 / 0.5 - 1) > RATE
    assert abs((last / first * math.sqrt(25 / 20)) ** 0.2 / 0.5 - 1) < RATE


@pytest.mark.parametrize("name", AFFINE)
def test_monte_carlo_with_affine_features_reproduces_the_exact_iterates(name: str):
    """Antithetic draws make the expectation of an affine costate exact, whatever the draws."""
    problem, _ = affine_case(name)
    affine = LinearRegression(Polynomial(1))
    theta = torch.linspace(0.6, 1.1, problem.steps, dtype=F64)
    method = MonteCarloPIFT(3, affine, affine, paths=64, draws=2, relaxation=theta)
    found = list(method.iterations(problem))
    x = torch.randn(20, problem.reference.dims[0], generator=generator(2), dtype=F64)
    assert isinstance(found[0].policy, Uncontrolled)
    for iteration in found[1:]:
        expected = affine_iterate(problem, iteration.index, theta)
        assert iteration.value_gradient is not None
        for k in range(problem.steps):
            assert (
                iteration.policy(k, x) - x @ expected.gain[k].T - expected.offset[k]
            ).abs().max() < REGRESSED
            slope = x @ expected.hessian[k].T + expected.slope[k]
            assert (iteration.value_gradient(k, x) - slope).abs().max() < REGRESSED
        k = torch.arange(20) % problem.steps
        singly = torch.cat([iteration.policy(int(i), y[None]) for i, y in zip(k, x, strict=True)])
        assert (iteration.policy(k, x) - singly).abs().max() < REGRESSED


def test_monte_carlo_with_bumps_comes_near_the_exact_iterate():
    truth = sine()
    bumps = LinearRegression(
        RadialBasis(torch.linspace(-4, 4, 25, dtype=F64)[:, None], 0.5), ridge=1e-4
    )
    *_, found = MonteCarloPIFT(3, bumps, bumps, paths=2048, draws=16).iterations(truth.problem)
    exact = sine_sweep(3).policy(truth.problem)
    for k in range(truth.problem.steps):
        x = truth.points(k)
        law = truth.law.masses[k][truth.region.contains(k, truth.grids[k].nodes)]
        apart = (found.policy(k, x) - exact(k, x)).square().sum(1)
        assert float(law @ apart) ** 0.5 < MATCHED
    measured = measure(truth, found)
    assert -FORWARD < measured.objective_gap < GAP
    assert measured.value_gradient_error is not None


def test_monte_carlo_is_a_function_of_its_seed():
    problem = linear_quadratic_problem(1, 2)
    x = torch.linspace(-1, 1, 5, dtype=F64)[:, None]

    def control(seed: int) -> Tensor:
        network, bumps = NetworkRegression(8, 1, 20, 64), LinearRegression(Polynomial(3))
        *_, last = MonteCarloPIFT(2, network, bumps, paths=64, draws=4, seed=seed).iterations(
            problem
        )
        return last.policy(0, x)

    assert torch.equal(control(3), control(3))
    assert not torch.equal(control(3), control(4))


def test_the_policy_gradient_reaches_the_linear_quadratic_optimum():
    problem = linear_quadratic_problem(1, 3)
    exact = LinearQuadratic(problem)
    method = PolicyGradient(
        lambda: AffinePolicy.zeros(problem.reference), FullAdjoint(), steps=160, batch=64, rate=0.1
    )
    gaps = [m.objective_gap for m in observe(exact, method.iterations(problem), every=80)]
    assert len(gaps) == 3
    assert gaps[0] > 0.01
    assert 0 <= gaps[2] < CLIMBED


def test_relaxation_converges_where_the_undamped_iteration_diverges():
    """A concave reward with sigma^2 |P| / beta = 4: the best factor is 1 / 3, with the rate 2 / 3,
    exactly, and the undamped iteration multiplies its error by 4.
    """
    reference = AffineReference(t(0.9).reshape(1, 1, 1), ScalarDiffusion(t(0.5)))
    problem = ControlProblem(reference, Quadratic(t(-8.0)[:, None], t(1.0)), 0.5)
    grids = choose_grids(problem, (301,))
    truth = Quadrature(problem, grids)
    loop = FixedRelaxation(1.0), BestRelaxation()
    assert [each.rate(0.0, 4.0) for each in loop] == pytest.approx([4.0, 2 / 3])
    errors = [
        [
            float(
                (backward_induction(problem, grids, m, theta).shifts[0] - truth.shifts[0])
                .abs()
                .max()
            )
            for m in (4, 5)
        ]
        for theta in (1.0, loop[1].factor(0.0, 4.0))
    ]
    assert errors[0][1] / errors[0][0] == pytest.approx(4, rel=RATE)
    assert errors[1][1] / errors[1][0] == pytest.approx(2 / 3, rel=RATE)


def test_an_inner_iteration_that_diverges_is_refused_with_the_step():
    """One step with sigma^2 |P| / beta = 50: the shift overflows within 400 iterations although the
    optimum exists.
    """
    reference = AffineReference(t(0.9).reshape(1, 1, 1), ScalarDiffusion(t(0.5)))
    problem = ControlProblem(reference, Quadratic(t(-10.0)[:, None], t(1.0)), 0.05)
    grids = choose_grids(problem, (301,))
    assert Quadrature(problem, grids).error < FORWARD
    with pytest.raises(
        InvalidProblem,
        match=(
            r"shift at node \[0, 0\] = .*; the inner iteration diverges at beta\[0\] = 0.05;"
            r" raise it"
        ),
    ):
        backward_induction(problem, grids, 400)


def test_impossible_numbers_are_refused():
    truth = sine()
    with pytest.raises(InvalidProblem, match="inner = -1; give a whole number that is at least 0"):
        backward_induction(truth.problem, truth.grids, -1)
    for factor in (0.0, 2.0):
        with pytest.raises(InvalidProblem, match=rf"relaxation\[0\] = {factor:g}; .* in \(0, 2\)"):
            backward_induction(truth.problem, truth.grids, 1, factor)
    with pytest.raises(InvalidProblem, match=r"6 grids for 6 steps; give one per step 0\.\.T"):
        backward_induction(truth.problem, truth.grids[1:], 1)
    bumps = LinearRegression(Polynomial(1))
    for draws, remedy in ((0, "whole number that is at least 2"), (3, "positive even number")):
        with pytest.raises(InvalidProblem, match=f"draws = {draws}; give a {remedy}"):
            MonteCarloPIFT(1, bumps, bumps, draws=draws)


def test_a_costate_that_is_not_finite_is_refused_before_it_is_fitted():
    problem = linear_quadratic_problem(1, 2)
    steep = ControlProblem(problem.reference, FunctionReward(lambda x: (x[:, 0] + 1).sqrt()), 1.0)
    affine = LinearRegression(Polynomial(1))
    with pytest.raises(InvalidProblem, match=r"target\[\d+, 0\] = "):
        list(MonteCarloPIFT(1, affine, affine, paths=512, draws=2).iterations(steep))
