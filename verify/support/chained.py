r"""Chains of steps without a score, with a number of updates of its own at every step.

All mean maps are :math:`m_t(y) = y` and all noise scales one; the reward has the clipped slope
:math:`\mathrm{clip}(x, -L, L)`, so that its curvature is one. Slopes of value functions are splines
on one grid, constant outside, and are smoothed by a Gauss-Hermite rule; the optimum needs no
iteration, since :math:`x = z - \rho\, (G V)'(z)` at the mean z that it steers to.

An unfinished last step in front of finished ones is what makes Lemma 3.4 pass errors on as they
are: there the error of the slope is the same over a whole region in which the curvature is as large
as it can be.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from torch import Tensor

from socft import theory
from verify.support.instances import describe, recorded
from verify.support.staircase import Staircase
from verify.support.strategies import numbers

POINTS = 6001
"""Of the grid."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(30)
ACCURACY = 1e-6
"""Relative to L: error of a slope by splines of spacing 0.03, after three steps."""
TAIL = 12.0

Slope = Callable[[np.ndarray], np.ndarray]


@recorded
@dataclasses.dataclass(frozen=True)
class Unequal:
    """A chain with design constants and numbers of updates per step.

    Attributes:
        corner: L.
        lam: design constants of Lemma 3.2, which decide the weights.
        rounds: updates m_t.
    """

    corner: float
    lam: tuple[float, ...]
    rounds: tuple[int, ...]

    @functools.cached_property
    def chain(self) -> theory.ChainConstants:
        """What the theory knows of it."""
        one = torch.ones(len(self.lam), dtype=torch.float64)
        return theory.ChainConstants(one, one, one, 0 * one, 0 * one, self.corner, 1.0)

    @functools.cached_property
    def constants(self) -> theory.Regularity:
        """Of Lemma 3.2."""
        lam = torch.tensor(self.lam, dtype=torch.float64)
        return theory.iterate_constants(self.chain, lam, theory.PaperBounds())

    @property
    def beta(self) -> Tensor:
        """The least weights for these design constants, shape (T,)."""
        return self.constants.beta_required

    @functools.cached_property
    def errors(self) -> tuple[list[float], list[float]]:
        """``sup |delta_t^(m_t) - delta*_t|``, t < T, and ``eps_t``, t <= T."""
        clip = Staircase((-self.corner, self.corner), (1.0,))
        smooth: Slope = lambda x: clip.derivative(x, 1.0, 1)  # noqa: E731
        found, best, shifts, slopes = smooth, smooth, [], [0.0]
        rho = (1 / self.beta).tolist()
        for t in reversed(range(len(self.lam))):
            shift, value = self._updated(found, rho[t], self.rounds[t])
            optimal = self._optimum(best, rho[t])
            shifts.append(float(np.abs(shift - rho[t] * optimal).max()))
            slopes.append(float(np.abs(value - optimal).max()))
            found, best = self._smoothed(value), self._smoothed(optimal)
        return shifts[::-1], slopes[::-1]

    def visible(self, measured: list[float], limits: list[float]) -> list[float]:
        """The measured numbers, zero where the limit is not a hundred times what splines err by."""
        least = 100 * ACCURACY * self.corner
        return [x if y >= least else 0.0 for x, y in zip(measured, limits, strict=True)]

    def describe(self) -> dict[str, Any]:
        """As plain JSON."""
        return describe(self)

    @functools.cached_property
    def _grid(self) -> np.ndarray:
        reach = self.corner * (1 + float((1 / self.beta).sum())) + TAIL
        return np.linspace(-reach, reach, POINTS)

    def _updated(self, slope: Slope, rho: float, rounds: int) -> tuple[np.ndarray, np.ndarray]:
        """Shift and ``dV^(m)/dy`` on the grid, by (55)."""
        shift, jacobian = np.zeros_like(self._grid), np.zeros_like(self._grid)
        for _ in range(rounds):
            x = self._grid + shift
            shift, jacobian = rho * slope(x), rho * _derivative(slope, x) * (1 + jacobian)
        costate = slope(self._grid + shift)
        return shift, costate + jacobian * (costate - shift / rho)

    def _optimum(self, slope: Slope, rho: float) -> np.ndarray:
        """``dV*/dy`` on the grid, which is the costate at the mean that the optimum steers to."""
        reached = 1.5 * self._grid
        costate = slope(reached)
        return CubicSpline(reached - rho * costate, costate)(self._grid)

    def _smoothed(self, slope: np.ndarray) -> Slope:
        spline, ends = CubicSpline(self._grid, slope), (self._grid[0], self._grid[-1])
        here = spline(np.clip(self._grid[:, None] + NODES, *ends)) @ WEIGHTS / WEIGHTS.sum()
        smooth = CubicSpline(self._grid, here)
        return lambda x: smooth(np.clip(x, *ends))


def unequal() -> st.SearchStrategy[Unequal]:
    """Chains of two or three steps."""
    each = st.lists(st.tuples(numbers(0.2, 0.98), st.integers(0, 20)), min_size=2, max_size=3)
    return st.builds(
        lambda corner, steps: Unequal(corner, *zip(*steps, strict=True)), numbers(2, 100), each
    )


def _derivative(slope: Slope, x: np.ndarray, step: float = 1e-4) -> np.ndarray:
    return (slope(x + step) - slope(x - step)) / (2 * step)
