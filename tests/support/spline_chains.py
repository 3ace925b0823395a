"""Chains on the line solved by brute force: value functions as quintic splines on a grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.interpolate import BSpline, make_interp_spline
from torch import Tensor

from socft.reward import Reward
from socft.schedule import Schedule, ddpm
from socft.theory import ChainConstants, Regularity

EXACT = 1e-11
"""Relative rounding of a few hundred float64 operations."""
NUMERIC = 1e-5
"""Relative error of second derivatives of quintic splines on a grid of spacing 0.02."""
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
        return tensor(L0s), tensor(L1s), tensor(mean_L0)


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
        value = clipped(spline(found))
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
        value = clipped(spline(found))
    return layers[::-1]


def clipped(function: BSpline) -> Function:
    return lambda x: function(inside(x))


def tensor(values: list[float]) -> Tensor:
    return torch.tensor([float(x) for x in values], dtype=torch.float64)


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


def riccati(chain: ChainConstants, transfer: Tensor, beta: Tensor) -> list[float]:
    """``P_t = A P_{t+1} A / (1 - rho P_{t+1})`` for the reward ``L1r x^2 / 2``."""
    P = [chain.reward_L1]
    for t in reversed(range(chain.steps)):
        P.insert(0, float(transfer[t] ** 2 * P[0] / (1 - chain.sigma[t] ** 2 / beta[t] * P[0])))
    return P
