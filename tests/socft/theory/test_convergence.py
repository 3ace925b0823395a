"""Lemma 3.2 and Theorem 3.1 against brute-force iterations and closed forms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from socft import theory
from socft.checks import InvalidProblem
from socft.schedule import ddpm
from socft.theory import ChainConstants, PaperBounds, SharpBounds
from tests.support.spline_chains import (
    EXACT,
    GAUSSIAN,
    INNER,
    LEVELS,
    MIXTURE,
    NUMERIC,
    Instance,
    Layer,
    Score,
    Sine,
    check_regularity,
    optimum,
    pi_ft,
    riccati,
    tensor,
)
from verify.support.score_units import random_chain


@pytest.mark.parametrize("problem", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("lam", [0.4, 0.7])
def test_lemma_3_2_and_theorem_3_1_hold(problem: Instance, lam: float):
    for bounds in (PaperBounds(), SharpBounds(problem.mean_L0)):
        found = theory.iterate_constants(problem.chain, lam, bounds)
        best = optimum(problem, found.beta_required)
        for rounds in (0, 1, 2, 4):
            layers = pi_ft(problem, found.beta_required, rounds)
            check_regularity(layers, found)
            for convergence in (theory.convergence, theory.sharp_convergence):
                check_errors(
                    layers, best, convergence(problem.chain, found, found.beta_required, rounds)
                )


def check_errors(layers: list[Layer], best: list[Layer], bound: theory.Convergence) -> None:
    for t, (layer, exact) in enumerate(zip(layers, best, strict=True)):
        control = np.abs(layer.control - exact.control)[INNER].max()
        gradient = np.abs(layer.derivative("value", 1) - exact.derivative("value", 1)).max()
        assert control <= float(bound.score[t]) * (1 + NUMERIC) + NUMERIC
        assert gradient <= float(bound.value_gradient[t]) * (1 + NUMERIC) + NUMERIC


def test_contraction_is_nearly_attained_at_the_last_step():
    """With lam near 0 at the last step and a steep sine the inner error shrinks by nearly 1 - lam
    from m = 3 on.
    """
    schedule = ddpm(LEVELS[-2:])
    problem = Instance(schedule, Score(0.0, 0.6, schedule), Sine(1.0, 0.5))
    found = theory.iterate_constants(problem.chain, 0.1, SharpBounds(problem.mean_L0))
    best = optimum(problem, found.beta_required)[0].control
    errors = [
        np.abs(pi_ft(problem, found.beta_required, m)[0].control - best)[INNER].max()
        for m in (3, 4)
    ]
    assert 0.8 * 0.9 < errors[1] / errors[0] <= 0.9


def quadratic_pi_ft(transfer: Tensor, rho: Tensor, last: float, rounds: int) -> np.ndarray:
    """Slopes of the shifts after ``rounds`` updates of every step, on V = P x^2 / 2,
    by (35)-(36).
    """
    P, slopes = last, []
    for A, r in zip(transfer.tolist()[::-1], rho.tolist()[::-1], strict=True):
        d = 0.0
        for _ in range(rounds):
            d = r * P * (A + d)
        P = P * (A + d) ** 2 - d**2 / r
        slopes.append(d)
    return np.array(slopes[::-1])


def test_quadratic_rates_are_attained():
    schedule, q = ddpm(LEVELS), torch.tensor([0.15, 0.3, 0.8], dtype=torch.float64)
    chain = ChainConstants(
        schedule.alpha,
        schedule.score_weight,
        schedule.sigma,
        tensor([0.4, 1.1, 0.2]),
        torch.zeros(3),
        math.inf,
        0.9,
    )
    found = theory.paper_constants(chain, 1 - q)
    rho, transfer = schedule.sigma**2 / found.beta_required, found.mean_L0
    best = quadratic_pi_ft(transfer, rho, 0.9, 2000)
    errors = [np.abs(quadratic_pi_ft(transfer, rho, 0.9, m) - best) for m in (30, 31)]
    measured = errors[1] / errors[0]
    P = riccati(chain, transfer, found.beta_required)
    rate = theory.quadratic_rate(schedule.sigma, found.beta_required, tensor(P[1:]))
    assert rate == pytest.approx(0.8, rel=EXACT)
    np.testing.assert_allclose(measured, theory.sharp_rates(1 - q).numpy(), rtol=1e-2)
    assert measured.max() == pytest.approx(rate, rel=1e-9)
    assert theory.guaranteed_rates(1 - q).tolist() == pytest.approx([0.8, 0.8, 0.8])


def test_unrolled_bounds_decay_at_their_rates():
    chain, _ = random_chain(3, steps=4)
    lam = torch.tensor([0.8, 0.75, 0.4, 0.7], dtype=torch.float64)
    found = theory.iterate_constants(chain, lam, PaperBounds())
    first, second = (theory.convergence(chain, found, found.beta_required, m) for m in (60, 61))
    torch.testing.assert_close(second.score / first.score, first.rates, rtol=1e-6, atol=0)
    torch.testing.assert_close(first.rates, torch.tensor([0.6, 0.6, 0.6, 0.3], dtype=torch.float64))
    sharp, after = (
        theory.sharp_convergence(chain, found, found.beta_required, m) for m in (60, 61)
    )
    torch.testing.assert_close(after.score / sharp.score, sharp.rates, rtol=0.04, atol=0)
    torch.testing.assert_close(
        sharp.rates, torch.tensor([0.36, 0.36, 0.6, 0.3], dtype=torch.float64)
    )
    assert (sharp.score <= first.score).all()
    shift = first.score * chain.score_weight / chain.alpha.sqrt()
    torch.testing.assert_close(shift, first.shift, rtol=EXACT, atol=0)
    torch.testing.assert_close(first.shift / chain.sigma, first.whitened, rtol=EXACT, atol=0)


def test_unrolled_bounds_by_hand_for_two_steps():
    chain, lam = random_chain(5, steps=2)
    found = theory.iterate_constants(chain, lam, PaperBounds())
    beta = 1.5 * found.beta_required
    bound = theory.convergence(chain, found, beta, torch.tensor([2.0, 3.0], dtype=torch.float64))
    q0, q1, l0, l1 = 1 - lam[0], 1 - lam[1], lam[0], lam[1]
    kappa = chain.alpha.sqrt() * chain.sigma**2 / (beta * chain.score_weight)
    M = (1 + chain.score_weight * chain.score_L0) / chain.alpha.sqrt()
    eps = M[1] * q1**4 * (1.3 + 1.3 / l1)
    torch.testing.assert_close(bound.value_gradient[1], eps)
    torch.testing.assert_close(bound.score[1], q1**3 * kappa[1] * 1.3)
    torch.testing.assert_close(bound.score[0], q0**2 * kappa[0] * M[1] * 1.3 + kappa[0] * eps / l0)
    steepest = M[1] * (1 + q1**2 / l1) * 1.3
    torch.testing.assert_close(
        bound.value_gradient[0], M[0] * (eps / l0 + q0**3 * (M[1] * 1.3 + steepest / l0))
    )


def test_value_gradients_converge_at_twice_the_order_of_controls():
    """The envelope cancels the first order in the control's error: the gradient's error over m
    times its square is bounded.
    """
    schedule = ddpm(LEVELS[-2:])
    problem = Instance(schedule, Score(0.0, 0.6, schedule), Sine(1.0, 0.5))
    beta = theory.iterate_constants(problem.chain, 0.3, SharpBounds(problem.mean_L0)).beta_required
    best = optimum(problem, beta)[0]
    linear_ratio, squared_ratio = [], []
    for m in (4, 8, 16):
        layer = pi_ft(problem, beta, m)[0]
        control = np.abs(layer.control - best.control)[INNER].max()
        gradient = np.abs(layer.derivative("value", 1) - best.derivative("value", 1)).max()
        linear_ratio.append(gradient / control)
        squared_ratio.append(gradient / (m * control**2))
    assert linear_ratio[2] < 0.02 * linear_ratio[0]
    assert squared_ratio[0] >= squared_ratio[1] >= squared_ratio[2] > 0.3 * squared_ratio[0]


@pytest.mark.parametrize(("lam", "steepest"), [(0.05, 1.15), (0.3, 1.05), (0.8, 0.99)])
def test_one_step_bounds_hold_with_measured_constants(lam: float, steepest: float):
    """m(y) = y and G V = sin, whose constants are 1: iterates and their derivatives in closed form,
    by the chain rule.

    Unfinished iterates are steeper than V* (by up to 20% here), so that (38) needs more than (14).
    """
    x, q = np.linspace(0, 2 * np.pi, 20_001), 1 - lam
    best = np.zeros_like(x)
    for _ in range(2000):
        best = q * np.cos(x + best)
    shift, jacobian, worst = np.zeros_like(x), np.zeros_like(x), []
    for m in range(12):
        gradient = np.cos(x + shift) + jacobian * (np.cos(x + shift) - shift / q)
        measured = np.array(
            [
                np.abs(gradient - best / q).max(),
                np.abs(gradient).max(),
                np.abs(np.gradient(gradient, x)).max(),
            ]
        )
        excess = theory.iterate_excess(1, 1, 1, 0, 1, lam)
        bounds = np.array(
            [
                theory.envelope_error_bound(1, 0, 1, lam, q, 1, m),
                1 + SharpBounds().overshoot(lam),
                theory.value_smoothness(1, 1, 1, 0, lam) + excess,
            ]
        )
        worst.append(measured / bounds)
        assert measured[0] <= theory.value_gradient_error_bound(1, 1, 0, 1, lam, m) * (1 + NUMERIC)
        jacobian = -q * np.sin(x + shift) * (1 + jacobian)
        shift = q * np.cos(x + shift)
    assert np.max(worst) <= 1 + NUMERIC
    assert np.max(worst, 0)[1] * (1 + SharpBounds().overshoot(lam)) > steepest


def test_envelope_error_bound_by_hand():
    value = theory.envelope_error_bound(
        iterates_L0=2.0,
        gradient_error=0.3,
        mean_L0=1.5,
        lam=0.4,
        rho=0.25,
        third_derivative_ratio=3.0,
        rounds=2,
    )
    c = 3.0 * 0.25 * 2.0
    bend = c / 0.4 * (2 + 0.6 * (1 - 0.6**4) / 0.8)
    assert value == pytest.approx(1.5 * (0.3 / 0.4 + 0.6**4 * 2.0 * (0.6 + bend)), rel=EXACT)


def test_sharp_bounds_unrolled_by_hand_for_two_steps():
    chain, _ = random_chain(5, steps=2)
    lam = torch.tensor([0.6, 0.7], dtype=torch.float64)
    found = theory.iterate_constants(chain, lam, PaperBounds())
    bound = theory.sharp_convergence(chain, found, found.beta_required, 9)
    rho, c_dim = chain.sigma**2 / found.beta_required, theory.expected_norm(7)
    eps = theory.envelope_error_bound(
        1.3, 0.0, float(found.mean_L0[1]), 0.7, float(rho[1]), c_dim / float(chain.sigma[1]), 9
    )
    assert float(bound.value_gradient[1]) == pytest.approx(eps, rel=EXACT)
    shift = 0.4**9 * float(rho[0] * found.mean_L0[1]) * 1.3 + float(rho[0]) * eps / 0.6
    assert float(bound.shift[0]) == pytest.approx(shift, rel=EXACT)


@pytest.mark.parametrize("rounds", [(1, 9), (9, 1), (0, 2)])
def test_sharp_bounds_take_the_smaller_one_with_the_updates_of_each_step(rounds: tuple[int, int]):
    """In many dimensions Lemma 3.4 is the smaller bound for few updates, else the envelope's."""
    chain, _ = random_chain(5, steps=2, dim=400)
    lam = torch.tensor([0.6, 0.7], dtype=torch.float64)
    found = theory.iterate_constants(chain, lam, PaperBounds())
    counts = torch.tensor(rounds, dtype=torch.float64)
    bound = theory.sharp_convergence(chain, found, found.beta_required, counts)
    rho = (chain.sigma**2 / found.beta_required).tolist()
    error, V0 = 0.0, 1.3
    for t in (1, 0):
        Lb0, M, tau = (
            float(x) for x in (found.L0V[t + 1], found.mean_L0[t], found.third_derivative_ratio[t])
        )
        share, m = float(lam[t]), rounds[t]
        both = (
            theory.value_gradient_error_bound(V0, Lb0, error, M, share, m),
            theory.envelope_error_bound(Lb0, error, M, share, rho[t], tau, m),
        )
        assert (both[0] < both[1]) == (m in (1, 2)), both
        error, V0 = min(both), M * V0
        assert float(bound.value_gradient[t]) == pytest.approx(error, rel=EXACT)


def test_kinked_rewards_are_smoothed_in_proportion_to_their_slope():
    assert theory.smoothed_curvature(0.3, math.inf, 0.5) == pytest.approx(
        0.6 * theory.SHARP, rel=EXACT
    )


def test_chain_constants_take_numbers_and_one_dimension():
    schedule = ddpm(LEVELS)
    numbers: Any = (1.0, 2, 3.0, 4.0)
    given = ChainConstants(schedule.alpha, schedule.score_weight, schedule.sigma, *numbers)
    assert given.score_L0.tolist() == [1.0] * 3
    assert given.score_L1.tolist() == [2.0] * 3
    assert given.dim == ChainConstants.of(schedule, 1.0, 2.0, Sine()).dim == 1


def test_exact_constants_of_mean_maps_lie_between_zero_and_the_bound():
    chain, lam = random_chain(1)
    largest = theory.mean_lipschitz(chain)
    for share in (0.0, 0.3, 1.0, 1 + 1e-10):
        found = theory.sharp_constants(chain, lam, share * largest)
        torch.testing.assert_close(found.mean_L0, share * largest, rtol=EXACT, atol=0)
    for share in (-1e-6, 1 + 1e-6, 1.5):
        with pytest.raises(InvalidProblem, match="it must lie between 0 and"):
            theory.sharp_constants(chain, lam, share * largest)


def test_weights_at_the_required_ones_are_admitted_and_lower_ones_are_not():
    chain, lam = random_chain(1)
    found = theory.iterate_constants(chain, lam, PaperBounds())
    required = found.beta_required
    rounded = theory.convergence(chain, found, required * (1 - 1e-10), 3)
    torch.testing.assert_close(
        rounded.score, theory.convergence(chain, found, required, 3).score, rtol=1e-8, atol=0
    )
    with pytest.raises(InvalidProblem, match="these constants need"):
        theory.convergence(chain, found, required * (1 - 1e-8), 3)


def test_sharp_overshoot_is_the_largest_over_m():
    for lam in (0.02, 0.3, 0.55, 0.9):
        q, m = 1 - lam, np.arange(1, 2000)
        largest = np.max(q ** (m + 1) * (1 - q**m) / lam)
        assert SharpBounds().overshoot(lam) == pytest.approx(largest, rel=EXACT)
        assert largest <= q / (4 * lam) < PaperBounds().overshoot(lam) or lam >= 0.75
    assert SharpBounds().overshoot(1.0) == 0


def test_iterates_of_a_quadratic_have_no_bound():
    chain, lam = (
        dataclasses.replace(random_chain(0)[0], reward_L0=math.inf, score_L1=torch.zeros(5)),
        0.5,
    )
    assert theory.iterate_constants(chain, lam, PaperBounds()).L1V[0] == math.inf
