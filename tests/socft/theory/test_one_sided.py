"""One-sided constants against Riccati's recursion, closed forms of smoothing and quadratic inner
loops, and against the two-sided ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from socft import theory
from socft.checks import InvalidProblem
from socft.density import Gaussian, GaussianMixture, score_reference
from socft.pi_ft import backward_induction
from socft.problem import ControlProblem
from socft.reference import AffineReference, DenseMaps, ScalarDiffusion
from socft.reward import PseudoHuber, Quadratic, Reward, Sine, Sum
from socft.schedule import ddpm, linear_levels, subsample
from socft.theory import (
    UNDAMPED,
    Approximation,
    BestRelaxation,
    ChainConstants,
    FixedRelaxation,
    InnerLoop,
    Lemma32,
    OneSidedBounds,
    Relaxation,
    SharpBounds,
    Smoothed,
    Smoothness,
    Theorem28,
)
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature

EXACT = 1e-12  # a few operations in float64
INTEGRATED = 1e-6  # trapezoidal rules across kinks, at spacing 1e-4
BISECTED = 1e-9  # the bisection on beta stops at 1e-12
BEST, HALF = BestRelaxation(), FixedRelaxation(0.5)
Law = Gaussian | GaussianMixture
UNIT = Gaussian(0.0, 0.5)
OVERLAPPING = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.5)


def chain_of(law: Law, reward: Reward, steps: int) -> ChainConstants:
    schedule = ddpm(subsample(linear_levels(1000), steps))
    found = law.noised_constants(schedule.abar[:-1])
    return ChainConstants.of(
        schedule, found.L0, found.L1, reward, score_sides=(found.up, found.down)
    )


def least(chain: ChainConstants, bounds: theory.Bounds, rounds: int | None = None) -> float:
    statement = Theorem28(bounds) if rounds is None else Lemma32(bounds, rounds)
    return float(theory.constant_beta(chain, 0.5, statement).beta[0])


# Smoothing


def test_a_jump_of_the_curvature_attains_the_smoothed_third_derivative():
    """V'' from -h- to h+: D^3 G V = (h+ + h-) phi(0) / sigma, whatever multiple of I is added."""
    for up, down, sigma in ((2.0, 0.5, 0.7), (3.0, 0.0, 0.2), (0.0, 1.0, 1.5)):
        found = Smoothness(math.inf, up, down).smoothed(sigma)
        assert found.third == pytest.approx((up + down) / math.sqrt(2 * math.pi) / sigma, rel=EXACT)
        assert (found.up, found.down) == (up, down)


def test_a_clipped_slope_attains_both_sides_of_the_smoothed_curvature():
    """Rises of slope h+ up to L0 and falls of slope h- each attain their own error function."""
    w = np.linspace(-12, 12, 240_001)
    density = np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)
    L0, up, down, sigma = 1.3, 4.0, 0.7, 0.6
    found = Smoothness(L0, up, down).smoothed(sigma)
    for side, sign, bound in ((up, 1, found.up), (down, -1, found.down)):
        slope = sign * np.clip(side * sigma * w, -L0, L0)
        curvature = np.trapezoid(slope * w * density, w) / sigma
        assert sign * curvature == pytest.approx(bound, rel=INTEGRATED)


@pytest.mark.parametrize(
    ("sharp", "polynomial"),
    [
        (theory.SHARP, lambda w: w),
        (theory.SHARP_SECOND, lambda w: w**2 - 1),
        (theory.SHARP_THIRD, lambda w: w**3 - 3 * w),
    ],
)
def test_derivatives_of_a_smoothed_sign_pattern_attain_their_constants(sharp, polynomial):
    """With ``f = sign(He_n)`` the n-th derivative of G f at 0 is ``E|He_n| / sigma^n``."""
    w = np.linspace(-12, 12, 240_001)
    density = np.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)
    assert np.trapezoid(np.abs(polynomial(w)) * density, w) == pytest.approx(sharp, rel=INTEGRATED)


def test_an_approximation_is_smoothed_like_the_optimum_up_to_its_error():
    optimum = Smoothness(1.0, 2.0, 0.5)
    exact = Approximation(50.0, 90.0, 80.0, optimum, gap=0.0, gradient_error=0.0)
    assert dataclasses.astuple(exact.smoothed(0.4)) == pytest.approx(
        dataclasses.astuple(optimum.smoothed(0.4)), rel=EXACT
    )
    for gap, slope in ((0.02, math.inf), (math.inf, 0.03), (0.02, 0.03)):
        near = dataclasses.replace(exact, gap=gap, gradient_error=slope)
        error = min(gap / (0.4 * math.sqrt(2 * math.pi)), slope)
        assert pytest.approx(1 + error, rel=EXACT) == near.smoothed(0.4).L0
        assert optimum.smoothed(0.4).up < near.smoothed(0.4).up < 90


# The mean map


def test_noised_gaussian_data_contracts_and_the_two_sided_constant_does_not():
    """N(0, 1): A = sqrt(a) I exactly; the norm of the score alone says (1 + g) / sqrt(a) > 1."""
    chain = chain_of(Gaussian(0.0, 1.0), Sine(), 20)
    assert theory.one_sided_mean_lipschitz(chain).numpy() == pytest.approx(
        chain.alpha.sqrt().numpy(), rel=EXACT
    )
    assert bool((theory.mean_lipschitz(chain) > 1).all())


def test_a_score_that_pulls_hard_turns_the_mean_map_over():
    """Where ``g down > 2 + g up`` the lower end of the spectrum decides."""
    one = torch.ones(1, dtype=torch.float64)
    chain = ChainConstants(
        one, 0.5 * one, one, 9.0 * one, 0 * one, 1.0, 1.0, score_sides=(-2 * one, 9 * one)
    )
    assert float(theory.one_sided_mean_lipschitz(chain)) == pytest.approx(3.5, rel=EXACT)
    chain = dataclasses.replace(chain, score_sides=(4 * one, 9 * one))
    assert float(theory.one_sided_mean_lipschitz(chain)) == pytest.approx(3.5, rel=EXACT)
    chain = dataclasses.replace(chain, score_sides=(6 * one, 9 * one))
    assert float(theory.one_sided_mean_lipschitz(chain)) == pytest.approx(4, rel=EXACT)


# Optimal values


@pytest.mark.parametrize("stretch", [1.15, 0.8, -0.9])
def test_both_sides_are_attained_by_a_quadratic_reward_and_scores_that_stretch_alike(stretch):
    """Against the closed form: eigenvalues of both signs, in a basis of their own."""
    steps, generator = 5, torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    P = basis @ torch.diag(torch.tensor([0.8, -1.4, 0.1], dtype=torch.float64)) @ basis.T
    reward = Quadratic(P, torch.ones(3, dtype=torch.float64))
    sigma = torch.linspace(0.9, 0.4, steps, dtype=torch.float64)
    A = stretch * torch.eye(3, dtype=torch.float64).expand(steps, 3, 3)
    reference = AffineReference(DenseMaps(A), ScalarDiffusion(sigma))
    beta = torch.linspace(4.0, 6.0, steps, dtype=torch.float64)
    exact = LinearQuadratic(ControlProblem(reference, reward, beta))
    one = torch.ones(steps, dtype=torch.float64)
    slope = (stretch - 1) * one  # of the score, with g = a = 1
    chain = ChainConstants(
        one,
        one,
        sigma,
        slope.abs(),
        0 * one,
        reward.L0,
        reward.L1,
        3,
        (slope, -slope),
        (reward.semiconcavity, reward.semiconvexity),
    )
    found = theory.constants_at(chain, beta, Theorem28(OneSidedBounds(BEST)))
    for t in range(steps + 1):
        spectrum = torch.linalg.eigvalsh(exact.hessian(t))
        assert float(found.up[t]) == pytest.approx(float(spectrum[-1]), rel=1e-10)
        assert float(found.down[t]) == pytest.approx(-float(spectrum[0]), rel=1e-10)


@pytest.mark.parametrize("law", [UNIT, OVERLAPPING])
@pytest.mark.parametrize("relaxation", [UNDAMPED, BEST, HALF])
def test_one_sided_constants_are_never_above_the_sharp_ones(law: Law, relaxation):
    """At the same beta, with the mean maps' constants of the one-sided set given to both: the signs
    of curvature then gain where the reward is concave.
    """
    for reward in (Sine(1.0, 2.0), PseudoHuber(weight=-1.0), PseudoHuber(weight=0.6)):
        chain = chain_of(law, reward, 12)
        mean = theory.one_sided_mean_lipschitz(chain)
        beta = 1.1 * least(chain, SharpBounds(mean))
        sharp = theory.constants_at(chain, beta, Theorem28(SharpBounds(mean)))
        found = theory.constants_at(chain, beta, Theorem28(OneSidedBounds(relaxation)))
        assert bool((found.L0V <= sharp.L0V * (1 + EXACT)).all())
        assert bool((found.L1V <= sharp.L1V * (1 + EXACT)).all())
        assert bool((found.curvature <= sharp.curvature * (1 + EXACT)).all())
        assert bool((found.L0v <= sharp.L0v * (1 + BISECTED)).all())
        concave = reward.semiconcavity == 0
        assert bool(found.L1V[0] < 0.99 * sharp.L1V[0]) is concave


def test_the_required_beta_does_not_grow_with_the_number_of_steps():
    """Where sharp two-sided constants ask for ever more; within a factor 1.6 of the necessary
    weight .373 of this problem at T = 50 (by quadrature).
    """
    lengths = (5, 20, 50)
    found = [least(chain_of(UNIT, Sine(1.0, 2.0), T), OneSidedBounds()) for T in lengths]
    sharp = [least(chain_of(UNIT, Sine(1.0, 2.0), T), SharpBounds()) for T in lengths]
    assert all(late < early for early, late in itertools.pairwise(found))
    assert all(late > early for early, late in itertools.pairwise(sharp))
    assert 0.373 < found[2] < 1.6 * 0.373
    assert sharp[2] > 1e5 * found[2]


def test_a_concave_reward_and_gaussian_data_are_well_posed_for_every_beta():
    chain = chain_of(UNIT, PseudoHuber(weight=-3.0), 10)
    damped, undamped = (Theorem28(OneSidedBounds(r)) for r in (BEST, UNDAMPED))
    for beta in (1e-6, 1e-2, 1.0):
        found = theory.constants_at(chain, beta, damped)
        assert not found.up.any()
        assert bool((found.lam == 1).all())
        assert bool((found.rate < 1).all())
    with pytest.raises(InvalidProblem, match="not below 1"):
        theory.constants_at(chain, 1e-2, undamped)
    with pytest.raises(
        InvalidProblem, match=r"every beta\[9\] > 0 is admitted|every beta\[0\] > 0"
    ):
        theory.constants(chain, 0.5, damped)
    with pytest.raises(InvalidProblem, match="value functions are affine or concave"):
        theory.constant_beta(chain, 0.5, damped)


# Relaxation


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.0, 4.0), (0.9, 0.1), (0.3, 0.0)])
def test_the_best_relaxation_has_the_least_rate(a: float, b: float):
    grid = np.linspace(0.001, 1.999, 1999)
    rates = [max(abs(1 - t * (1 - a)), abs(1 - t * (1 + b))) for t in grid]
    best = BEST.rate(a, b)
    condition = (1 + b) / (1 - a)
    assert best == pytest.approx((condition - 1) / (condition + 1), rel=EXACT)
    assert best == pytest.approx(min(rates), abs=0.001 * (1 + b))
    assert best <= min(rates) + EXACT
    assert FixedRelaxation(BEST.factor(a, b)).rate(a, b) == pytest.approx(best, rel=EXACT)
    assert UNDAMPED.rate(a, b) == pytest.approx(max(a, b), rel=EXACT)


@pytest.mark.parametrize("theta", [0.2, 0.5, 1.0, 1.5])
def test_the_binding_curvature_decides_whether_updates_contract(theta: float):
    relaxation = FixedRelaxation(theta)
    for up, down in ((1.0, 0.2), (0.2, 1.0), (0.0, 3.0), (1.0, 1.0)):
        edge = 1 / relaxation.binding(up, down)
        for share, contracts in ((0.999, True), (1.001, False)):
            rho = share * edge
            assert (relaxation.rate(rho * up, rho * down) < 1) is contracts
        rho = 0.9 * edge
        rate, stretch = (
            relaxation.rate(rho * up, rho * down),
            relaxation.stretch(rho * up, rho * down),
        )
        assert stretch == pytest.approx(theta / (1 - rate), rel=1e-9)


# Iterates


def quadratic_loop(
    curvature: float, rho: float, relaxation: Relaxation, rounds: int
) -> tuple[float, float]:
    """Jacobian of the shift and Hessian of the value for ``G V = curvature x^2 / 2``, by the
    iteration itself.
    """
    theta = relaxation.factor(rho * max(curvature, 0.0), rho * max(-curvature, 0.0))
    J = 0.0
    for _ in range(rounds):
        J += theta * (rho * curvature * (1 + J) - J)
    return J, curvature * (1 + J) ** 2 - J**2 / rho


@pytest.mark.parametrize("relaxation", [UNDAMPED, BEST, HALF])
@pytest.mark.parametrize("rounds", [0, 1, 2, 7])
@pytest.mark.parametrize("curvature", [0.7, -0.7])
def test_quadratic_inner_loops_obey_their_bounds(relaxation, rounds: int, curvature: float):
    """Without third derivatives: the overshoot and the sag, and their limits."""
    rho, slope = 0.8, 1.0
    smooth = Smoothed(slope, max(curvature, 0.0), max(-curvature, 0.0), 0.0)
    loop = InnerLoop(smooth, rho, relaxation, rounds)
    J, value = quadratic_loop(curvature, rho, relaxation, rounds)
    assert abs(J) <= loop.jacobian * (1 + EXACT)
    assert abs(1 + J) <= loop.stretch * (1 + EXACT)
    assert value <= loop.finished_up + EXACT
    if rounds == 0 and curvature > 0:
        assert value == pytest.approx(loop.finished_up, rel=EXACT)
    assert -value <= smooth.down / (1 + loop.b) + loop.sag + EXACT
    residual = abs(rho * curvature * (1 + J) - J) / rho / abs(curvature)
    assert residual <= loop.rate**rounds * (1 + BISECTED)
    if relaxation is not HALF or curvature > 0:  # the eigenvalue that decides the rate
        assert residual == pytest.approx(loop.rate**rounds, rel=BISECTED)
    if rounds == 0 and curvature < 0:
        assert smooth.down / (1 + loop.b) + loop.sag == pytest.approx(-value, rel=EXACT)
    every = InnerLoop(smooth, rho, relaxation, 0 if rounds == 0 else None)
    for name in ("overshoot", "sag", "residual_bend", "gradient_error", "value_gap"):
        assert getattr(loop, name) <= getattr(every, name) * (1 + EXACT) + EXACT


def quadratic_gradient_error(
    curvature: float, rho: float, theta: float, rounds: int
) -> tuple[float, float]:
    """``|F_m - g|`` where ``G V = curvature y^2 / 2`` and the fixed point is 1, by the iteration
    itself, and the largest gradient on the way.
    """
    rate = rho * curvature
    x, shift, J = (1 - rate) / rate, 0.0, 0.0
    steepest = max(abs(curvature * x), 1 / rho)
    for _ in range(rounds):
        shift += theta * (rate * (x + shift) - shift)
        J += theta * (rate * (1 + J) - J)
    gradient = curvature * (x + shift)
    return abs(gradient + J * (gradient - shift / rho) - 1 / rho), steepest


@pytest.mark.parametrize("relaxation", [UNDAMPED, BEST, HALF])
@pytest.mark.parametrize("rounds", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("curvature", [0.7, -0.7])
def test_updates_leave_the_square_of_their_rate_of_the_error_of_a_gradient(
    relaxation, rounds: int, curvature: float
):
    """On quadratic steps ``q^(2m+1)`` of the optimal slope; the bound has ``(1 + b) / (1 - a)`` of
    that at most.
    """
    rho = 0.8
    smooth = Smoothed(1.0, max(curvature, 0.0), max(-curvature, 0.0), 0.0)
    unit = InnerLoop(smooth, rho, relaxation, rounds)
    error, steepest = quadratic_gradient_error(curvature, rho, unit.theta, rounds)
    loop = dataclasses.replace(unit, smooth=dataclasses.replace(smooth, L0=steepest))
    assert error <= loop.gradient_error * (1 + EXACT)
    if relaxation is UNDAMPED:
        assert error == pytest.approx(loop.rate ** (2 * rounds + 1) / rho, rel=BISECTED)
        assert loop.gradient_error <= error * (1 + loop.b) / (1 - loop.a) * (1 + BISECTED)


@pytest.mark.parametrize("relaxation", [UNDAMPED, BEST])
def test_constants_of_iterates_tend_to_the_optimum_s(relaxation):
    """As m grows; and after a few updates the condition on beta is nearly that of the optimum."""
    chain = chain_of(UNIT, Sine(1.0, 2.0), 20)
    bounds = OneSidedBounds(relaxation)
    beta = 1.2 * least(chain, bounds)
    optimum = theory.constants_at(chain, beta, Theorem28(bounds))
    far = theory.constants_at(chain, beta, Lemma32(bounds, 200))
    for name in ("L0V", "up", "down", "smoothed_up", "smoothed_down", "rate"):
        assert getattr(far, name).numpy() == pytest.approx(getattr(optimum, name).numpy(), rel=1e-9)
    needed = [least(chain, bounds, m) for m in (1, 2, 3)]
    assert all(late < early for early, late in itertools.pairwise(needed))
    assert needed[1] < 1.05 * least(chain, bounds)
    uniform = float(theory.constant_beta(chain, 0.5, Lemma32(bounds)).beta[0])
    assert uniform >= needed[0]


def test_beta_is_chosen_by_the_one_sided_constants_of_all_iterates_unless_told_otherwise():
    chain = chain_of(UNIT, Sine(1.0, 2.0), 5)
    statement = Lemma32(OneSidedBounds())
    for choose in (theory.constant_beta, theory.scheduled_beta):
        assert choose(chain, 0.5).beta.equal(choose(chain, 0.5, statement).beta)
    choice = theory.constant_beta(chain, 0.5)
    assert float(choice.margin.min()) == pytest.approx(1, rel=BISECTED)
    assert float(choice.lam.min()) == pytest.approx(0.5, rel=BISECTED)


def test_a_choice_of_beta_names_the_relaxation_that_it_supposes():
    """And the iteration relaxed so contracts by its rate, which the undamped one does not: b = 2.3
    here, measured on the optimum's own curvature.
    """
    law, reward, steps = UNIT, Sum([PseudoHuber(weight=-3.0), Sine(0.3, 2.0)]), 4
    chain = chain_of(law, reward, steps)
    choice = theory.constant_beta(chain, 0.2, Lemma32(OneSidedBounds(BEST), 6))
    schedule = ddpm(subsample(linear_levels(1000), steps))
    problem = ControlProblem(score_reference(law, schedule), reward, choice.beta)
    truth = Quadrature(problem)
    relaxed = backward_induction(problem, truth.grids, 6, choice.theta)
    undamped = backward_induction(problem, truth.grids, 6)
    assert float(choice.theta.min()) < 0.7
    ratios = relaxed.increments[:, 1:] / relaxed.increments[:, :-1]
    assert bool((ratios <= choice.rate[:, None] + 1e-6).all())
    assert float((undamped.increments[:, 1:] / undamped.increments[:, :-1]).max()) > 1
    plain = theory.constant_beta(chain, 0.2)
    assert bool((plain.theta == 1).all())
    assert plain.rate.numpy() == pytest.approx((1 - plain.lam).numpy(), rel=BISECTED)


def test_errors_of_values_add_up():
    """Every step adds its own share to the error in front, for all three sets of constants."""
    chain = chain_of(UNIT, Sine(1.0, 2.0), 8)
    beta = 2 * least(chain, OneSidedBounds(), 1)
    found = theory.one_sided_convergence(chain, beta, 3)
    local = theory.constants_at(chain, beta, Lemma32(OneSidedBounds(), 3))
    rho = chain.sigma.square() / beta
    shares = found.value[:-1] - found.value[1:]
    limit = rho * local.rate**6 * local.L0V[1:].square() / 2
    assert bool((shares >= 0).all())
    a, b = rho * local.smoothed_up, rho * local.smoothed_down
    factor = torch.minimum(1 + b, 1 / (1 - a))
    assert bool((shares <= factor * limit * (1 + BISECTED) + EXACT).all())
    assert found.objective_gap == pytest.approx(float(shares.sum()), rel=1e-9)
    sharp = theory.iterate_constants(chain, 0.5, SharpBounds())
    both = [theory.sharp_convergence(chain, sharp, sharp.beta_required, m).value for m in (2, 3)]
    assert (both[1][:-1] / both[0][:-1]).numpy() == pytest.approx(0.25, rel=1e-9)


def test_the_control_error_falls_at_the_rate_of_one_step():
    """With exact values in front, q per update, ``theta`` included."""
    smooth = Smoothed(1.0, 0.4, 0.9, 0.0)
    for relaxation in (UNDAMPED, BEST, HALF):
        loops = [InnerLoop(smooth, 0.9, relaxation, m) for m in (4, 5)]
        errors = [loop.control_error(1.0, 0.0) for loop in loops]
        assert errors[1] / errors[0] == pytest.approx(loops[0].rate, rel=EXACT)
        gaps = [loop.value_gap for loop in loops]
        assert gaps[1] / gaps[0] == pytest.approx(loops[0].rate ** 2, rel=EXACT)


def test_impossible_numbers_are_refused():
    chain = chain_of(UNIT, Sine(), 3)
    one = torch.ones(3, dtype=torch.float64)
    for message, make in (
        ("theta = 2; a relaxation factor must lie", lambda: FixedRelaxation(2.0)),
        (
            r"score_sides\[0\] = -1; the largest eigenvalue",
            lambda: dataclasses.replace(chain, score_sides=(one, -2 * one)),
        ),
        (
            "reward_sides = -1; a Lipschitz constant",
            lambda: dataclasses.replace(chain, reward_sides=(-1.0, 1.0)),
        ),
        ("the sharp constants are the same for all", lambda: Lemma32(SharpBounds(), 3)),
        (
            r"rounds\[0\] = -1; give a whole number",
            lambda: theory.one_sided_convergence(chain, 100.0, -1),
        ),
        ("not below 1", lambda: theory.one_sided_convergence(chain, 1e-3, 1)),
    ):
        with pytest.raises(InvalidProblem, match=message):
            make()
