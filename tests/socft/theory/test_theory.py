"""Constants and bounds against brute-force dynamic programming, quadrature, closed forms and the
paper's form of the recursions.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.interpolate import BSpline, make_interp_spline
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from socft import theory
from socft.checks import InvalidProblem
from socft.reward import Reward
from socft.schedule import Schedule, ddim, ddpm, linear_levels, variance_preserving
from socft.theory import ChainConstants, Lemma32, PaperBounds, Regularity, SharpBounds, Theorem28
from verify.support.score_units import in_score_units, random_chain

EXACT = 1e-11
"""Relative rounding of a few hundred float64 operations."""
NUMERIC = 1e-5
"""Relative error of second derivatives of quintic splines on a grid of spacing 0.02."""
QUADRATURE = 1e-7
"""Relative error asked of adaptive quadrature."""

GRID = np.linspace(-13.0, 13.0, 1301)
INNER = np.abs(GRID) <= 4
"""States from which no path of the test chains leaves the grid within six standard deviations."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
LEVELS = torch.tensor([0.3, 0.55, 0.8, 0.97], dtype=torch.float64)

Function = Callable[[np.ndarray], np.ndarray]


class Sine(Reward):
    """``size sin(frequency x + 0.4)`` in one dimension."""

    def __init__(self, size: float = 1.0, frequency: float = 1.0):
        self.size, self.frequency = size, frequency

    @property
    def L0(self) -> float:
        return self.size * self.frequency

    @property
    def L1(self) -> float:
        return self.size * self.frequency**2

    def __call__(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.numpy(x.numpy())).reshape(len(x))

    def numpy(self, x: np.ndarray) -> np.ndarray:
        return self.size * np.sin(self.frequency * x + 0.4)


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of 0.5 N(mean, variance) + 0.5 N(-mean, variance) noised to each level, with its
    exact Lipschitz constants.
    """

    mean: float
    variance: float
    schedule: Schedule

    def _moments(self, t: int) -> tuple[float, float]:
        level = float(self.schedule.abar[t])
        return math.sqrt(level) * self.mean, level * self.variance + 1 - level

    def __call__(self, t: int, y: np.ndarray) -> np.ndarray:
        mean, variance = self._moments(t)
        return (mean * np.tanh(mean * y / variance) - y) / variance

    def derivative(self, t: int, y: np.ndarray) -> np.ndarray:
        mean, variance = self._moments(t)
        return ((mean / np.cosh(mean * y / variance)) ** 2 / variance - 1) / variance

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """L0s, L1s and the exact Lipschitz constant of the mean map, each of shape (T,)."""
        fine = np.linspace(-8, 8, 80_001)
        L0s, L1s, mean_L0 = [], [], []
        for t in range(self.schedule.steps):
            mean, variance = self._moments(t)
            slope = self.derivative(t, fine)
            gain, alpha = float(self.schedule.score_weight[t]), float(self.schedule.alpha[t])
            # The derivative of the score is -1 / variance at infinity.
            L0s.append(max(np.abs(slope).max(), 1 / variance))
            L1s.append((mean / variance) ** 3 * 4 / (3 * math.sqrt(3)))
            mean_L0.append(
                max(np.abs(1 + gain * slope).max(), abs(1 - gain / variance)) / math.sqrt(alpha)
            )
        return _tensor(L0s), _tensor(L1s), _tensor(mean_L0)


@dataclasses.dataclass(frozen=True)
class Instance:
    """A one-dimensional problem with exact constants."""

    schedule: Schedule
    score: Score
    reward: Sine

    @property
    def chain(self) -> ChainConstants:
        L0s, L1s, _ = self.score.constants()
        return ChainConstants.of(self.schedule, L0s, L1s, self.reward)

    @property
    def mean_L0(self) -> Tensor:
        return self.score.constants()[2]

    def coefficients(self, t: int, beta: Tensor) -> tuple[float, float, float, float]:
        s = self.schedule
        return float(s.alpha[t]), float(s.score_weight[t]), float(s.sigma[t]), float(beta[t])


def instance(mean: float, variance: float, size: float = 1.0, frequency: float = 1.5) -> Instance:
    schedule = ddpm(LEVELS)
    return Instance(schedule, Score(mean, variance, schedule), Sine(size, frequency))


GAUSSIAN, MIXTURE = instance(0.0, 0.6), instance(1.2, 0.4)


def spline(values: np.ndarray) -> BSpline:
    return make_interp_spline(GRID, values, k=5)


def inside(x: np.ndarray) -> np.ndarray:
    return np.clip(x, GRID[0], GRID[-1])


def smooth(value: Function, sigma: float) -> BSpline:
    """``E value(x + sigma W)`` on the grid by Gauss-Hermite quadrature, as a spline."""
    points = GRID[:, None] + sigma * NODES
    return spline(value(points) @ WEIGHTS / WEIGHTS.sum())


@dataclasses.dataclass(frozen=True)
class Layer:
    """Value function and control of one step on the grid."""

    value: np.ndarray
    control: np.ndarray

    def supremum(self, name: str, order: int) -> float:
        return float(np.abs(self.derivative(name, order)).max())

    def derivative(self, name: str, order: int) -> np.ndarray:
        return (
            spline(getattr(self, name)).derivative(order)(GRID[INNER])
            if order
            else getattr(self, name)[INNER]
        )


def optimum(problem: Instance, beta: Tensor) -> list[Layer]:
    """Bellman's equation (9), its maximum found among 101 candidates per state and then polished by
    Newton's method.
    """
    value: Function = problem.reward.numpy
    layers = []
    for t in reversed(range(problem.schedule.steps)):
        alpha, gain, sigma, weight = problem.coefficients(t, beta)
        G, rho = smooth(value, sigma), sigma**2 / weight
        slope, curvature = G.derivative(1), G.derivative(2)
        mean = (GRID + gain * problem.score(t, GRID)) / math.sqrt(alpha)
        reach = 1.1 * rho * np.abs(slope(GRID)).max()
        candidates = np.linspace(-reach, reach, 101)
        payoff = G(inside(mean[:, None] + candidates)) - candidates**2 / (2 * rho)
        shift = candidates[payoff.argmax(1)]
        for _ in range(6):
            x = inside(mean + shift)
            shift = shift - (shift - rho * slope(x)) / (1 - rho * curvature(x))
        found = G(inside(mean + shift)) - shift**2 / (2 * rho)
        assert (found >= payoff.max(1) - EXACT)[INNER].all()
        layers.append(Layer(found, problem.score(t, GRID) + math.sqrt(alpha) / gain * shift))
        value = _clipped(spline(found))
    return layers[::-1]


def pi_ft(problem: Instance, beta: Tensor, rounds: int) -> list[Layer]:
    """Algorithm 1, (35)-(36), on the grid."""
    value: Function = problem.reward.numpy
    layers = []
    for t in reversed(range(problem.schedule.steps)):
        alpha, gain, sigma, weight = problem.coefficients(t, beta)
        G, score = smooth(value, sigma), problem.score(t, GRID)
        kappa = math.sqrt(alpha) * sigma**2 / (weight * gain)
        control = score
        for _ in range(rounds):
            control = score + kappa * G.derivative(1)(
                inside((GRID + gain * control) / math.sqrt(alpha))
            )
        kl = gain**2 / (2 * alpha * sigma**2) * (control - score) ** 2
        found = G(inside((GRID + gain * control) / math.sqrt(alpha))) - weight * kl
        layers.append(Layer(found, control))
        value = _clipped(spline(found))
    return layers[::-1]


def _clipped(function: BSpline) -> Function:
    return lambda x: function(inside(x))


def _tensor(values: list[float]) -> Tensor:
    return torch.tensor([float(x) for x in values], dtype=torch.float64)


# Identities with the paper's form


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


# Lemmas on the smoothed value function


def expectation(function: Callable[[float], float], breaks: list[float]) -> float:
    """``E function(W)`` in one dimension by adaptive quadrature."""
    density = 1 / math.sqrt(2 * math.pi)
    points = itertools.pairwise([-12.0, *sorted(breaks), 12.0])
    return sum(
        quad(lambda w: function(w) * math.exp(-w * w / 2) * density, a, b, epsabs=1e-13)[0]
        for a, b in points
    )


def test_expectations_of_one_gaussian():
    assert expectation(abs, [0]) == pytest.approx(theory.SHARP, rel=QUADRATURE)
    assert expectation(lambda w: abs(w * w - 1), [-1, 1]) == pytest.approx(
        theory.SHARP_SECOND, rel=QUADRATURE
    )


def test_second_order_weight_is_largest_for_equal_directions():
    """E|(b.W)(c.W) - b.c| over angles; the radius is integrated in closed form on a grid of
    directions.
    """
    radius = np.linspace(0, 9, 1801)
    angle = (np.arange(720) + 0.5) * 2 * np.pi / 720
    W = radius[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    weight = radius[:, None] * np.exp(-(radius[:, None] ** 2) / 2) * (radius[1] / 720)
    values = []
    for turn in np.linspace(0, np.pi, 13):
        c = np.array([np.cos(turn), np.sin(turn)])
        values.append((np.abs(W[..., 0] * (W @ c) - c[0]) * weight).sum())
    assert max(values) == values[0] == pytest.approx(theory.SHARP_SECOND, rel=1e-4)
    assert min(values) == pytest.approx(2 / math.pi, rel=1e-4)


@pytest.mark.parametrize(
    ("L0", "L1", "sigma"), [(1.0, 0.3, 0.5), (1.0, 3.0, 0.5), (0.7, 40.0, 0.2)]
)
def test_smoothed_curvature_is_attained_by_a_clipped_slope(L0: float, L1: float, sigma: float):
    def weighted(w: float) -> float:
        return float(np.clip(L1 * sigma * w, -L0, L0)) * w

    measured = expectation(weighted, [-L0 / (L1 * sigma), L0 / (L1 * sigma)]) / sigma
    bound = theory.smoothed_curvature(L0, L1, sigma)
    assert measured == pytest.approx(bound, rel=QUADRATURE)
    assert bound <= min(L1, theory.SHARP * L0 / sigma) * (1 + EXACT)


def test_smoothed_bounds_hold_for_random_slopes():
    """Random slopes with |f| <= L0 and |f'| <= L1, made by clipping and integrating; the
    derivatives of G V by quadrature.
    """
    generator = np.random.default_rng(1)
    x = np.linspace(-6, 6, 6001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    worst = np.zeros(2)
    for _ in range(300):
        L0, L1, sigma = generator.uniform(0.1, 2, 3)
        steps = (
            L1
            * sigma
            * np.sign(
                np.sin(np.outer(generator.uniform(0.2, 6, 3), x) + generator.uniform(0, 6, (3, 1)))
            ).mean(0)
        )
        slope = np.clip(np.cumsum(steps) * (x[1] - x[0]) * generator.choice([-1, 1]), -L0, L0)
        second = abs(slope @ (x * density)) / sigma
        third = abs(slope @ ((x**2 - 1) * density)) / sigma**2
        bounds = theory.smoothed_curvature(L0, L1, sigma), theory.smoothed_third(L0, L1, sigma)
        worst = np.maximum(worst, np.array([second, third]) / bounds)
    assert (worst <= 1 + NUMERIC).all()
    assert (worst > 0.4).all()


def test_third_derivative_lemma_is_attained():
    L0, L1, sigma = 1.3, 0.8, 0.4
    by_curvature = expectation(lambda w: L1 * np.sign(w) * w, [0]) / sigma
    by_slope = expectation(lambda w: L0 * np.sign(w * w - 1) * (w * w - 1), [-1, 1]) / sigma**2
    assert by_curvature == pytest.approx(theory.smoothed_third(math.inf, L1, sigma), rel=QUADRATURE)
    assert by_slope == pytest.approx(theory.smoothed_third(L0, math.inf, sigma), rel=QUADRATURE)


def test_smoothed_bounds_at_infinite_and_zero_constants():
    assert theory.smoothed_curvature(math.inf, 0.7, 0.1) == 0.7
    assert theory.smoothed_curvature(1.0, math.inf, 0.5) == pytest.approx(
        2 * theory.SHARP, rel=EXACT
    )
    assert (
        theory.smoothed_curvature(math.inf, 0.0, 0.1)
        == theory.smoothed_curvature(0.0, math.inf, 0.1)
        == 0
    )
    assert theory.smoothed_curvature(1.0, 1e-320, 1e-10) == 1e-320
    ratios = [
        SharpBounds().third_derivative_ratio(1.0, L1, 0.5, 1) * 0.5
        for L1 in np.logspace(-4, 4, 4001)
    ]
    assert min(ratios) == pytest.approx(theory.SHARP, rel=1e-6)
    assert 1.35 < max(ratios) < 1.36


def test_smoothed_curvature_alone_breaks_17():
    """The slope L0 sign(x^2 - sigma^2) refutes (17) with the smoothed curvature but the third
    derivative's old constant.
    """
    L0, sigma, lam, steep = 1.0, 0.4, 0.95, 60.0

    def slope(w: float) -> float:
        return L0 * math.tanh(steep * (w * w - 1))

    fine = np.linspace(-2, 2, 400_001)
    L1 = np.abs(np.gradient(L0 * np.tanh(steep * (fine**2 - 1)), fine)).max() / sigma
    chain = ChainConstants(
        _tensor([0.8]),
        _tensor([0.2]),
        _tensor([sigma]),
        _tensor([0.0]),
        _tensor([0.0]),
        L0,
        float(L1),
        1,
    )
    found = theory.sharp_constants(chain, lam)
    third = expectation(lambda w: slope(w) * (w * w - 1), [-1, 1]) / sigma**2
    # Where m(y) + delta* = 0 the Hessian of G V vanishes, so delta*'' = rho (G V)''' there.
    rho = sigma**2 / float(found.beta_required[0])
    measured = rho * third / 0.8 / sigma
    without = (1 - lam) * theory.SHARP / sigma / (0.8 * lam**3) / sigma
    assert measured > 1.2 * without
    assert 0.8 < measured / float(found.L1v[0]) <= 1


# Theorem 2.8 against brute-force dynamic programming


def check_regularity(layers: list[Layer], found: Regularity) -> float:
    """Assert every bound; return the largest ratio of a measured constant to its bound."""
    ratios = []
    for t, layer in enumerate(layers):
        ratios += [
            layer.supremum("value", 1) / float(found.L0V[t]),
            layer.supremum("value", 2) / float(found.L1V[t]),
        ]
        ratios += [
            layer.supremum("control", 1) / float(found.L0u[t]),
            layer.supremum("control", 2) / float(found.L1u[t]),
        ]
    assert max(ratios) <= 1 + NUMERIC
    return max(ratios)


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


def riccati(chain: ChainConstants, transfer: Tensor, beta: Tensor) -> list[float]:
    """``P_t = A P_{t+1} A / (1 - rho P_{t+1})`` for the reward ``L1r x^2 / 2``."""
    P = [chain.reward_L1]
    for t in reversed(range(chain.steps)):
        P.insert(0, float(transfer[t] ** 2 * P[0] / (1 - chain.sigma[t] ** 2 / beta[t] * P[0])))
    return P


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
    torch.testing.assert_close(found.L1V, _tensor(P), rtol=EXACT, atol=0)
    assert found.L0V.isinf().all()
    without = theory.paper_constants(chain, LAM)
    assert (without.L1V[:-1] > 1.5 * found.L1V[:-1]).all()


def test_paper_constants_15_and_16_are_attained_by_an_expanding_score():
    schedule, L0s = ddpm(LEVELS), _tensor([0.4, 1.1, 0.2])
    chain = ChainConstants(
        schedule.alpha, schedule.score_weight, schedule.sigma, L0s, torch.zeros(3), math.inf, 0.9
    )
    found = theory.paper_constants(chain, LAM)
    transfer = (1 + schedule.score_weight * L0s) / schedule.alpha.sqrt()
    P = _tensor(riccati(chain, transfer, found.beta_required))
    torch.testing.assert_close(found.L1V, P, rtol=EXACT, atol=0)
    rho = schedule.sigma**2 / found.beta_required
    slope = L0s + schedule.alpha.sqrt() / schedule.score_weight * rho * P[1:] * transfer / (
        1 - rho * P[1:]
    )
    torch.testing.assert_close(found.L0u, slope, rtol=EXACT, atol=0)


def test_14_and_the_control_size_are_attained_by_a_linear_reward():
    """V_t is linear with slope prod M and u* = s + kappa grad V."""
    schedule, L0s = ddpm(LEVELS), _tensor([0.4, 1.1, 0.2])
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
    after = torch.cat([slope[1:], _tensor([1.7])])
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


# Limits


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


# PI-FT


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
        _tensor([0.4, 1.1, 0.2]),
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
    rate = theory.quadratic_rate(schedule.sigma, found.beta_required, _tensor(P[1:]))
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


# Whitening


def test_kl_weight_is_the_divergence_between_kernels():
    schedule, L0s = ddim(LEVELS, eta=0.7), 1.0
    chain = ChainConstants.of(schedule, L0s, 0.0, Sine(), dim=3)
    generator = torch.Generator().manual_seed(0)
    y, s, u = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    for t in range(schedule.steps):
        cover = schedule.sigma[t] * torch.eye(3, dtype=torch.float64)
        kernels = [
            MultivariateNormal(
                (y + schedule.score_weight[t] * x) / schedule.alpha[t].sqrt(), scale_tril=cover
            )
            for x in (u, s)
        ]
        torch.testing.assert_close(
            theory.kl_weight(chain)[t] * (u - s).square().sum(), kl_divergence(*kernels)
        )
        v = (kernels[0].mean - kernels[1].mean) / schedule.sigma[t]
        torch.testing.assert_close(s + theory.score_unit(chain)[t] * v, u)
        torch.testing.assert_close(s + theory.shift_unit(chain)[t] * schedule.sigma[t] * v, u)


def test_concavity_modulus_is_attained_by_a_quadratic():
    schedule, P, beta = ddpm(LEVELS), _tensor([0.4, 0.7, 0.2]), _tensor([1.0, 2.0, 0.5])
    chain = ChainConstants.of(schedule, 1.0, 0.0, Sine())
    weight = beta * theory.kl_weight(chain)
    for t in range(3):
        a, g = schedule.alpha[t], schedule.score_weight[t]

        def bracket(u: Tensor, a: Tensor = a, g: Tensor = g, t: int = t) -> Tensor:
            return P[t] / 2 * ((0.3 + g * u) / a.sqrt()) ** 2 - weight[t] * (u - 0.1) ** 2

        second = torch.autograd.functional.hessian(bracket, torch.tensor(0.5, dtype=torch.float64))
        torch.testing.assert_close(
            -torch.as_tensor(second), theory.concavity_modulus(chain, beta, P)[t]
        )


def test_control_gain_solves_the_fixed_point_equation():
    """(18) at the optimum found by brute force."""
    beta = 2 * theory.paper_constants(GAUSSIAN.chain, 0.5).beta_required
    layers = optimum(GAUSSIAN, beta)
    G = smooth(_clipped(spline(layers[1].value)), float(GAUSSIAN.schedule.sigma[0]))
    alpha, gain, _, _ = GAUSSIAN.coefficients(0, beta)
    control = layers[0].control[INNER]
    pull = G.derivative(1)((GRID[INNER] + gain * control) / math.sqrt(alpha))
    kappa = float(theory.score_step(GAUSSIAN.chain, beta)[0])
    np.testing.assert_allclose(control, GAUSSIAN.score(0, GRID[INNER]) + kappa * pull, atol=EXACT)


# Choosing beta


def least_lam(chain: ChainConstants, beta: float, dim_constant: float) -> float:
    """The smallest lam_t of the paper's recursion at a constant beta, -1 where it breaks down."""
    lam = torch.full((chain.steps,), 0.5, dtype=torch.float64)
    for t in reversed(range(chain.steps)):
        L1 = float(in_score_units(chain, lam, dim_constant)["L1V"][t + 1])
        lam[t] = 1 - float(chain.sigma[t]) ** 2 * L1 / beta
        if lam[t] <= 0:
            return -1.0
    return float(lam.min())


@pytest.mark.parametrize("seed", range(2))
def test_constant_beta_is_the_least(seed: int):
    chain, _ = random_chain(seed, steps=3)
    choice = theory.constant_beta(chain, 0.4, Theorem28(PaperBounds()))
    beta = float(choice.beta[0])
    assert choice.beta.equal(torch.full((3,), beta, dtype=torch.float64))
    root = brentq(lambda b: least_lam(chain, b, 1.0) - 0.4, beta / 3, 3 * beta, xtol=1e-12 * beta)
    assert beta == pytest.approx(root, rel=1e-9)
    assert float(choice.margin.min()) == pytest.approx(1, rel=1e-9)
    assert float(choice.lam.min()) == pytest.approx(0.4, rel=1e-9)
    assert choice.rule == "constant (Theorem 2.8, paper)"


@pytest.mark.parametrize(
    "statement",
    [Theorem28(SharpBounds()), Lemma32(PaperBounds()), Lemma32(SharpBounds())],
    ids=lambda s: s.name,
)
def test_constant_beta_is_admissible_and_no_smaller_one_is(statement: theory.RegularityStatement):
    chain, _ = random_chain(1, steps=4)
    for lam in (0.0, 0.5):
        beta = float(theory.constant_beta(chain, lam, statement).beta[0])
        assert (theory.constants_at(chain, beta, statement).lam >= lam).all()
        try:
            refused = bool(
                (theory.constants_at(chain, beta * (1 - 1e-9), statement).lam < lam).any()
            )
        except InvalidProblem:
            refused = True
        assert refused


def test_scheduled_beta_guarantees_exactly_lam():
    chain, lam = random_chain(1)
    choice = theory.scheduled_beta(chain, lam, Theorem28(SharpBounds()))
    torch.testing.assert_close(
        theory.constants_at(chain, choice.beta, Theorem28(SharpBounds())).lam,
        lam,
        rtol=1e-9,
        atol=0,
    )
    assert choice.margin.eq(1).all()


def test_beta_from_curvature_is_where_the_measured_map_contracts():
    """On a linear-quadratic problem, whose curvature is P: the rate of every step is exactly 1 -
    lam.
    """
    sigma, lam = ddpm(LEVELS).sigma, _tensor([0.6, 0.3, 0.8])
    choice = theory.beta_from_curvature(sigma, _tensor([0.5, 0.8, 1.1]), lam)
    for t, P in enumerate([0.5, 0.8, 1.1]):
        rho = float(sigma[t] ** 2 / choice.beta[t])
        steps = [0.0, 1.0]
        steps = [rho * P * (2 + d) for d in steps]
        assert steps[1] - steps[0] == pytest.approx(1 - float(lam[t]), rel=EXACT)
    assert choice.rule == "measured curvature"


def test_required_beta_falls_by_orders_of_magnitude():
    """Unit Gaussian data, sine reward, 50 DDPM steps: the mean maps are sqrt(a_t) y, the paper's
    M_t is (1 + g_t) / sqrt(a_t).
    """
    schedule = ddpm(linear_levels(50))
    chain = ChainConstants.of(schedule, 1.0, 0.0, Sine())
    statements = (
        Theorem28(PaperBounds()),
        Theorem28(SharpBounds()),
        Theorem28(SharpBounds(schedule.alpha.sqrt())),
    )
    paper, sharp, exact = (float(theory.constant_beta(chain, 0.5, x).beta[0]) for x in statements)
    assert paper == pytest.approx(2.158e12, rel=1e-3)
    assert sharp == pytest.approx(1.427e6, rel=1e-3)
    assert exact == pytest.approx(0.3490, rel=1e-3)


def test_too_small_beta_is_refused_with_the_remedy():
    chain, _ = random_chain(1, steps=4)
    enough = float(chain.sigma[3]) ** 2 * 0.8
    beta = torch.tensor([9.0, 9.0, 9.0, enough / 1.25], dtype=torch.float64)
    value = (
        f"beta[3] = {enough / 1.25:g} gives sigma^2 L1 / beta = 1.25, not below 1 (Theorem 2.8,"
        " paper)"
    )
    with pytest.raises(InvalidProblem, match=re.escape(f"{value}; raise beta[3] above {enough:g}")):
        theory.constants_at(chain, beta, Theorem28(PaperBounds()))


def test_refusals_quote_the_value_and_the_remedy():
    chain, lam = random_chain(1, steps=4)
    found = theory.iterate_constants(chain, lam, PaperBounds())
    refused: list[tuple[str, Callable[[], object]]] = [
        (
            r"lam\[2\] = 1; every design constant",
            lambda: theory.paper_constants(chain, torch.tensor([0.5, 0.5, 1.0, 0.5])),
        ),
        (r"lam has shape \(2,\)", lambda: theory.paper_constants(chain, torch.tensor([0.5, 0.5]))),
        (
            r"mean_L0\[0\] = 50; it must lie between",
            lambda: theory.sharp_constants(chain, lam, torch.full((4,), 50.0)),
        ),
        (
            r"beta\[0\] = .* these constants need beta\[0\] >=",
            lambda: theory.convergence(chain, found, found.beta_required / 2, 3),
        ),
        (
            r"rounds\[0\] = 1.5; give a whole number",
            lambda: theory.convergence(chain, found, found.beta_required, torch.full((4,), 1.5)),
        ),
        (r"beta\[0\] = -1; every KL weight", lambda: theory.score_step(chain, -1.0)),
        (r"beta\[0\] = 0; every KL weight", lambda: theory.score_step(chain, 0.0)),
        (
            r"lam\[0\] = 0; every design constant",
            lambda: theory.beta_from_curvature(chain.sigma, chain.sigma, 0.0),
        ),
        (
            r"lam\[0\] = 1; every design constant",
            lambda: theory.beta_from_curvature(chain.sigma, chain.sigma, 1.0),
        ),
        (
            r"score_weight\[1\] = 0; it must be positive",
            lambda: dataclasses.replace(chain, score_weight=torch.tensor([0.1, 0.0, 0.1, 0.1])),
        ),
        (
            r"score_L0\[0\] = -1; a Lipschitz",
            lambda: dataclasses.replace(chain, score_L0=-torch.ones(4)),
        ),
        (
            r"reward_L1 = nan; it must be a finite",
            lambda: dataclasses.replace(chain, reward_L1=math.nan),
        ),
        (r"dim = 0; give a whole number", lambda: dataclasses.replace(chain, dim=0)),
        (
            r"lam = 1; the least design constant",
            lambda: theory.constant_beta(chain, 1, Theorem28(PaperBounds())),
        ),
        (
            r"no beta below 1e\+250",
            lambda: theory.constant_beta(
                dataclasses.replace(chain, reward_L1=math.inf), 0.5, Theorem28(PaperBounds())
            ),
        ),
        (
            r"every beta > 0 satisfies",
            lambda: theory.constant_beta(linear(chain), 0.5, Theorem28(PaperBounds())),
        ),
        (
            r"required beta\[0\] = 0; use a constant beta",
            lambda: theory.scheduled_beta(linear(chain), 0.5, Theorem28(PaperBounds())),
        ),
    ]
    for message, call in refused:
        with pytest.raises(InvalidProblem, match=message):
            call()


def linear(chain: ChainConstants) -> ChainConstants:
    """The same chain with a linear reward and an affine score, so that value functions are
    affine.
    """
    return dataclasses.replace(chain, reward_L1=0.0, score_L1=torch.zeros(chain.steps))
