"""Theorem 2.8 against brute-force dynamic programming, closed forms and the paper's form of the
recursions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from socft import theory
from socft.checks import InvalidProblem
from socft.schedule import ddpm, variance_preserving
from socft.theory import ChainConstants, Lemma32, PaperBounds, SharpBounds, Theorem28
from tests.support.spline_chains import (
    EXACT,
    GAUSSIAN,
    GRID,
    INNER,
    LEVELS,
    MIXTURE,
    NUMERIC,
    Instance,
    Layer,
    Sine,
    check_regularity,
    optimum,
    riccati,
    tensor,
)
from verify.support.score_units import in_score_units, random_chain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("iterates", [False, True])
def test_whitened_recursions_are_the_ones_in_score_units(seed: int, iterates: bool):
    chain, lam = random_chain(seed)
    found = (
        theory.iterate_constants(chain, lam, PaperBounds())
        if iterates
        else theory.paper_constants(chain, lam)
    )
    for name, values in in_score_units(chain, lam, theory.expected_norm(7), iterates).items():
        torch.testing.assert_close(getattr(found, name), values, rtol=EXACT, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_one_plus_gain_L0u_is_one_plus_gain_L0s_over_lam(seed: int):
    chain, lam = random_chain(seed)
    L0u = theory.paper_constants(chain, lam).L0u
    torch.testing.assert_close(
        1 + chain.score_weight * L0u,
        (1 + chain.score_weight * chain.score_L0) / lam,
        rtol=EXACT,
        atol=0,
    )


def test_expected_norm_has_its_known_values():
    known = {1: math.sqrt(2 / math.pi), 2: math.sqrt(math.pi / 2), 3: 2 * math.sqrt(2 / math.pi)}
    for dim, value in known.items():
        assert theory.expected_norm(dim) == pytest.approx(value, rel=EXACT)
    d = 16384  # E|W| = sqrt(d) (1 - 1/(4d) + 1/(32 d^2) + ...)
    assert theory.expected_norm(d) == pytest.approx(
        math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (32 * d**2)), rel=1e-10
    )
    with pytest.raises(InvalidProblem, match="dim = 0"):
        theory.expected_norm(0)


def test_peak_is_the_largest_term():
    generator = np.random.default_rng(0)
    m = np.arange(1, 20_000)
    for lam, constant, slope in zip(
        *generator.uniform([[0.002], [0], [0]], [[1], [3], [0.5]], (3, 50)), strict=True
    ):
        assert theory.geometric_peak(lam, constant, slope) == pytest.approx(
            np.max((1 - lam) ** m * (constant + slope * m)), rel=EXACT
        )
    for constant, slope in ((0.0, 1.0), (0.0, 2.0), (1.0, 0.0), (3.0, 0.0)):
        largest = np.max(0.7**m * (constant + slope * m))
        assert theory.geometric_peak(0.3, constant, slope) == pytest.approx(largest, rel=EXACT)
    assert theory.geometric_peak(0.3, 0.0, 0.0) == theory.geometric_peak(1.0, 2.0, 3.0) == 0
    assert theory.geometric_peak(0.3, 2.0, 0.0) == pytest.approx(1.4, rel=EXACT)


@pytest.mark.parametrize("problem", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("lam", [0.35, 0.75])
def test_theorem_2_8_holds(problem: Instance, lam: float):
    chain, closest, required = problem.chain, [], []
    for statement in (
        Theorem28(PaperBounds()),
        Theorem28(SharpBounds()),
        Theorem28(SharpBounds(problem.mean_L0)),
    ):
        found = theory.constants(chain, lam, statement)
        closest.append(check_regularity(optimum(problem, found.beta_required), found))
        required.append(found.beta_required)
    assert closest[2] > 0.6
    assert (required[2] < required[0]).all()


def test_whitened_control_bounds_are_the_score_bounds_without_the_score():
    found = theory.sharp_constants(MIXTURE.chain, 0.4, MIXTURE.mean_L0)
    layers = optimum(MIXTURE, found.beta_required)
    for t, layer in enumerate(layers):
        alpha, gain, sigma, _ = MIXTURE.coefficients(t, found.beta_required)
        whitened = Layer(
            layer.value,
            (layer.control - MIXTURE.score(t, GRID)) * gain / (math.sqrt(alpha) * sigma),
        )
        assert whitened.supremum("control", 1) <= float(found.L0v[t]) * (1 + NUMERIC)
        assert whitened.supremum("control", 2) <= float(found.L1v[t]) * (1 + NUMERIC)
        size = theory.control_size(MIXTURE.chain, found.beta_required, found.L0V)[t]
        assert np.abs(layer.control - MIXTURE.score(t, GRID))[INNER].max() <= float(size)


LAM = torch.tensor([0.7, 0.35, 0.5], dtype=torch.float64)


def test_smoothness_of_the_value_is_attained_by_a_gaussian_score_and_a_convex_quadratic():
    schedule = ddpm(LEVELS)
    variance = LEVELS[:-1] * 0.6 + 1 - LEVELS[:-1]
    chain = ChainConstants(
        schedule.alpha,
        schedule.score_weight,
        schedule.sigma,
        1 / variance,
        torch.zeros(3),
        math.inf,
        0.9,
    )
    transfer = (1 - schedule.score_weight / variance) / schedule.alpha.sqrt()
    found = theory.sharp_constants(chain, LAM, transfer.abs())
    P = riccati(chain, transfer, found.beta_required)
    torch.testing.assert_close(found.L1V, tensor(P), rtol=EXACT, atol=0)
    assert found.L0V.isinf().all()
    without = theory.paper_constants(chain, LAM)
    assert (without.L1V[:-1] > 1.5 * found.L1V[:-1]).all()


def test_paper_constants_15_and_16_are_attained_by_an_expanding_score():
    schedule, L0s = ddpm(LEVELS), tensor([0.4, 1.1, 0.2])
    chain = ChainConstants(
        schedule.alpha, schedule.score_weight, schedule.sigma, L0s, torch.zeros(3), math.inf, 0.9
    )
    found = theory.paper_constants(chain, LAM)
    transfer = (1 + schedule.score_weight * L0s) / schedule.alpha.sqrt()
    P = tensor(riccati(chain, transfer, found.beta_required))
    torch.testing.assert_close(found.L1V, P, rtol=EXACT, atol=0)
    rho = schedule.sigma**2 / found.beta_required
    slope = L0s + schedule.alpha.sqrt() / schedule.score_weight * rho * P[1:] * transfer / (
        1 - rho * P[1:]
    )
    torch.testing.assert_close(found.L0u, slope, rtol=EXACT, atol=0)


def test_14_and_the_control_size_are_attained_by_a_linear_reward():
    """V_t is linear with slope prod M and u* = s + kappa grad V."""
    schedule, L0s = ddpm(LEVELS), tensor([0.4, 1.1, 0.2])
    chain = ChainConstants(
        schedule.alpha, schedule.score_weight, schedule.sigma, L0s, torch.zeros(3), 1.7, 0.0
    )
    found = theory.constants_at(chain, 0.5, Theorem28(PaperBounds()))
    slope = 1.7 * ((1 + schedule.score_weight * L0s) / schedule.alpha.sqrt()).flip(0).cumprod(
        0
    ).flip(0)
    torch.testing.assert_close(found.L0V[:-1], slope, rtol=EXACT, atol=0)
    assert found.L1V.eq(0).all()
    assert found.lam.eq(1).all()
    assert found.L0u.equal(L0s)
    after = torch.cat([slope[1:], tensor([1.7])])
    push = schedule.alpha.sqrt() * schedule.sigma**2 / (0.5 * schedule.score_weight) * after
    torch.testing.assert_close(theory.control_size(chain, 0.5, found.L0V), push, rtol=EXACT, atol=0)


def test_sharp_is_never_above_the_paper_at_the_same_beta():
    for seed in range(5):
        chain, lam = random_chain(seed, dim=1)
        for statement in (Theorem28, Lemma32):
            paper = theory.constants(chain, lam, statement(PaperBounds()))
            sharp = theory.constants_at(chain, paper.beta_required, statement(SharpBounds()))
            for name in ("L0V", "L1V", "L0u", "L1u", "L0v", "L1v", "curvature"):
                assert (getattr(sharp, name) <= getattr(paper, name) * (1 + EXACT)).all(), name
            assert (sharp.lam >= paper.lam - EXACT).all()


def test_sharp_third_is_free_of_the_dimension():
    chain, lam = random_chain(0, dim=1)
    wide = dataclasses.replace(chain, dim=4096)
    assert theory.sharp_constants(chain, lam).L1u.equal(theory.sharp_constants(wide, lam).L1u)
    assert theory.paper_constants(wide, lam).L1u[0] > 60 * theory.paper_constants(chain, lam).L1u[0]


def test_constants_at_inverts_the_design():
    chain, lam = random_chain(4)
    for statement in (
        Theorem28(PaperBounds()),
        Theorem28(SharpBounds()),
        Lemma32(PaperBounds()),
        Lemma32(SharpBounds()),
    ):
        designed = theory.constants(chain, lam, statement)
        found = theory.constants_at(chain, designed.beta_required, statement)
        torch.testing.assert_close(found.lam, lam, rtol=1e-9, atol=0)
        torch.testing.assert_close(found.L1u, designed.L1u, rtol=1e-8, atol=0)


def test_kinked_reward_has_only_sharp_constants():
    chain = dataclasses.replace(GAUSSIAN.chain, reward_L1=math.inf)
    sharp = theory.sharp_constants(chain, 0.5)
    assert sharp.L1V[:-1].isfinite().all()
    assert sharp.beta_required.isfinite().all()
    assert theory.paper_constants(chain, 0.5).beta_required.isinf().all()
    with pytest.raises(
        InvalidProblem, match=r"beta\[2\] = 5 gives sigma\^2 L1 / beta = inf.*finite constants"
    ):
        theory.constants_at(chain, 5.0, Theorem28(PaperBounds()))


def test_infinite_weight_leaves_the_uncontrolled_chain():
    chain, _ = random_chain(2)
    found = theory.constants_at(chain, 1e12, Theorem28(PaperBounds()))
    torch.testing.assert_close(found.L0u, chain.score_L0, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.L1u, chain.score_L1, rtol=1e-6, atol=0)
    L0, L1 = chain.reward_L0, chain.reward_L1
    for t in reversed(range(chain.steps)):
        M = float((1 + chain.score_weight[t] * chain.score_L0[t]) / chain.alpha[t].sqrt())
        L0, L1 = (
            M * L0,
            float(chain.score_weight[t] * chain.score_L1[t] / chain.alpha[t].sqrt()) * L0
            + M**2 * L1,
        )
    assert float(found.L1V[0]) == pytest.approx(L1, rel=1e-6)


def limit_constants(rate: float, beta: float, L0s: float, L1s: float, reward: Sine) -> np.ndarray:
    """L0V and L1V of the continuous problem at its start, from their ordinary differential
    equations (derived here).
    """

    def grow(_: float, x: np.ndarray) -> list[float]:
        L0, L1 = x
        return [rate * (0.5 + L0s) * L0, rate * (L1s * L0 + (1 + 2 * L0s) * L1 + L1**2 / beta)]

    return solve_ivp(grow, (0, 1), [reward.L0, reward.L1], rtol=1e-10, atol=1e-12).y[:, -1]


def test_constants_converge_to_the_continuous_limit():
    rate, beta, L0s, L1s, reward = 0.8, 9.0, 0.3, 0.2, Sine(0.5)
    limit = limit_constants(rate, beta, L0s, L1s, reward)

    def errors(steps: int, statement: theory.RegularityStatement) -> np.ndarray:
        found = theory.constants_at(
            ChainConstants.of(variance_preserving(steps, rate), L0s, L1s, reward), beta, statement
        )
        return np.array([float(found.L0V[0]), float(found.L1V[0])]) / limit - 1

    order = errors(200, Theorem28(PaperBounds())) / errors(400, Theorem28(PaperBounds()))
    np.testing.assert_allclose(order, 2, rtol=0.05)
    # The excess of Lemma 3.2 sums to the order of the square root of the step.
    root = errors(4000, Lemma32(PaperBounds()))[1] / errors(16000, Lemma32(PaperBounds()))[1]
    assert root == pytest.approx(2, rel=0.1)
