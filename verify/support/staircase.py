r"""Functions of the line whose second derivative is a staircase, and one step of control from them,
in closed form.

With :math:`(G V)(x) = E V(x + \sigma W)` every derivative of a `Staircase` after smoothing is a sum
of normal distribution functions. `OneStep` has the mean map :math:`m(y) = y` and such a function as
next value function: the optimum, PI-FT's iterates and their derivatives follow without quadrature.
Staircases include what attains bounds: the clipped slope :math:`\mathrm{clip}(K x, -L_0, L_0)`,
`clipped`, and a curvature that jumps from one end of its range to the other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from socft import theory
from verify.support.instances import describe, recorded
from verify.support.iterates import Iterate

POINTS = 2001
"""Points of a grid of states, and of one of directions."""
STATES = 8001
"""States of one step over which suprema are taken."""
TAIL = 9.0
"""Standard deviations beyond the outermost knots, where a step sees a constant slope to
rounding.
"""
HALVINGS = 54
"""Of the interval that holds a shift: its width ends below rounding."""
APART = 1e-4
"""Distance for differences, in units of sigma: relative error 1e-7."""


@recorded
@dataclasses.dataclass(frozen=True)
class Staircase:
    """A function on the line with V'' = levels[i] between knots[i] and knots[i + 1], zero outside,
    and V' centred around zero.
    """

    knots: tuple[float, ...]
    levels: tuple[float, ...]

    @property
    def slopes(self) -> tuple[float, float]:
        """Least and largest V'."""
        half = float(self._heights.max() - self._heights.min()) / 2
        return -half, half

    @property
    def curvatures(self) -> tuple[float, float]:
        """Least and largest V''."""
        return min(0.0, *self.levels), max(0.0, *self.levels)

    def states(self, sigma: float) -> np.ndarray:
        """A grid that covers what noise makes of the knots, and the knots."""
        return np.append(
            np.linspace(self.knots[0] - 3 * sigma, self.knots[-1] + 3 * sigma, POINTS), self.knots
        )

    def derivative(self, x: np.ndarray, sigma: float, order: int) -> np.ndarray:
        """The derivative of G V of order 1, 2 or 3."""
        z = (np.array(self.knots) - x[:, None]) / sigma
        if order == 1:
            centre = float(self._heights.max() + self._heights.min()) / 2
            return -sigma * np.diff(_integral(-z), axis=1) @ np.array(self.levels) - centre
        pieces = np.diff(ndtr(z), axis=1) if order == 2 else -np.diff(_density(z), axis=1) / sigma
        return pieces @ np.array(self.levels)

    def smoothed(self, sigma: float, order: int) -> tuple[float, float]:
        """Its least and largest value."""
        values = self.derivative(self.states(sigma), sigma, order)
        return float(values.min()), float(values.max())

    @functools.cached_property
    def _heights(self) -> np.ndarray:
        """V' at the knots, from 0 at the first."""
        return np.concatenate([[0.0], np.cumsum(np.array(self.levels) * np.diff(self.knots))])


@dataclasses.dataclass(frozen=True)
class Reached:
    """An iterate at some states: its shift ``delta_m``, ``d delta_m / dy`` and ``dV^(m)/dy``."""

    shift: np.ndarray
    jacobian: np.ndarray
    value_slope: np.ndarray


@recorded
@dataclasses.dataclass(frozen=True)
class OneStep:
    """One step with ``m(y) = y``, a next value function with curvature at most 1, and ``rho = q``:
    updates contract by q.

    Suprema are in shifts of the mean, which are score units here, over `count` states.

    Attributes:
        q: ``sigma^2 / beta``.
        value: the next value function.
        sigma: noise scale.
        count: number of states.
    """

    q: float
    value: Staircase
    sigma: float = 1.0
    count: int = STATES

    @property
    def L0(self) -> float:
        """Lipschitz constant of the next value function."""
        return self.value.slopes[1]

    @property
    def chain(self) -> theory.ChainConstants:
        """What the theory knows of it: the score is zero and coefficients are one."""
        one, L1 = torch.ones(1, dtype=torch.float64), max(abs(x) for x in self.value.curvatures)
        return theory.ChainConstants(one, one, self.sigma * one, 0 * one, 0 * one, self.L0, L1)

    @property
    def beta(self) -> Tensor:
        """The KL weight, shape (1,)."""
        return torch.tensor([self.sigma**2 / self.q], dtype=torch.float64)

    @functools.cached_property
    def states(self) -> np.ndarray:
        """States from which noise and the control reach every knot."""
        reach = self.q * self.L0 + TAIL * self.sigma
        return np.linspace(self.value.knots[0] - reach, self.value.knots[-1] + reach, self.count)

    def slope(self, x: np.ndarray) -> np.ndarray:
        """``(G V)'``."""
        return self.value.derivative(x, self.sigma, 1)

    def curvature(self, x: np.ndarray) -> np.ndarray:
        """``(G V)''``."""
        return self.value.derivative(x, self.sigma, 2)

    def shifts(self, rounds: int) -> list[np.ndarray]:
        """``delta_0 .. delta_rounds`` at the states."""
        found = [np.zeros_like(self.states)]
        for _ in range(rounds):
            found.append(self.q * self.slope(self.states + found[-1]))
        return found

    @functools.cached_property
    def best(self) -> np.ndarray:
        """The optimal shift, by bisection."""
        low, high = (
            np.full_like(self.states, -self.q * self.L0),
            np.full_like(self.states, self.q * self.L0),
        )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = middle > self.q * self.slope(self.states + middle)
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return (low + high) / 2

    def value_slope(self, rounds: int) -> np.ndarray:
        """``dV^(m)/dy`` at the states."""
        return self.reach(self.states, rounds).value_slope

    def reach(self, y: np.ndarray, rounds: int) -> Reached:
        """What the iterate does at given states, by the chain rule (55)."""
        shift, jacobian = np.zeros_like(y), np.zeros_like(y)
        for _ in range(rounds):
            x = y + shift
            shift, jacobian = self.q * self.slope(x), self.q * self.curvature(x) * (1 + jacobian)
        costate = self.slope(y + shift)
        return Reached(shift, jacobian, costate + jacobian * (costate - shift / self.q))

    def increments(self, rounds: int) -> np.ndarray:
        """``sup |G_j - G_{j-1}|``, j = 0..rounds, with ``G_{-1} = 0``."""
        return np.array(
            [np.abs(b - a).max() / self.q for a, b in itertools.pairwise(self.shifts(rounds + 1))]
        )

    def increment_jacobians(self, rounds: int) -> list[float]:
        """``sup |d(G_j - G_{j-1})/dy|``, j = 1..rounds."""
        shift = jacobian = np.zeros_like(self.states)
        found, before = [], None
        for _ in range(rounds + 1):
            costate = self.curvature(self.states + shift) * (1 + jacobian)
            if before is not None:
                found.append(float(np.abs(costate - before).max()))
            shift, jacobian = self.q * self.slope(self.states + shift), self.q * costate
            before = costate
        return found

    def control_errors(self, rounds: int) -> list[float]:
        """``sup |delta_m - delta*|``, m = 0..rounds."""
        return [float(np.abs(shift - self.best).max()) for shift in self.shifts(rounds)]

    def steepest(self, rounds: int) -> float:
        """``sup |dV^(m)/dy|``."""
        return float(np.abs(self.value_slope(rounds)).max())

    def gradient_error(self, rounds: int) -> float:
        """``sup |dV^(m)/dy - dV*/dy|``; the optimal slope is ``delta* / rho``."""
        return float(np.abs(self.value_slope(rounds) - self.best / self.q).max())

    def iterate(self, rounds: int) -> Iterate:
        """What the pass with ``rounds`` updates attains, as for passes by quadrature; second
        derivatives by differences.
        """
        h, steepest = APART * self.sigma, float(np.abs(self.curvature(self.states)).max())
        here, right, left = (self.reach(self.states + x, rounds) for x in (0.0, h, -h))
        return Iterate(
            value_gradient=_suprema(here.value_slope, self.L0),
            value_hessian=_suprema((right.value_slope - left.value_slope) / (2 * h), steepest),
            control_slope=_suprema(here.jacobian),
            control_bend=_suprema((right.jacobian - left.jacobian) / (2 * h)),
            control_error=_suprema((here.shift - self.best) / self.sigma),
            gradient_error=_suprema(here.value_slope - self.best / self.q, 0.0),
            increments=torch.from_numpy(self.increments(rounds)[:rounds])[None],
        )

    def steepness(self) -> float:
        """``sup |delta*'| = sup rho |Hess G V| / |1 - rho Hess G V|``."""
        slope = self.q * self.curvature(self.states)
        return float(np.abs(slope / (1 - slope)).max())

    def bend(self) -> float:
        """``sup |delta*''| = sup rho |D^3 G V| / (1 - rho Hess G V)^3``, over where the control
        leads.
        """
        third = self.value.derivative(self.states, self.sigma, 3)
        return float(np.abs(self.q * third / (1 - self.q * self.curvature(self.states)) ** 3).max())

    def describe(self) -> dict[str, Any]:
        """As plain JSON."""
        return describe(self)


def clipped(q: float, corner: float, sigma: float = 1.0, sign: int = 1) -> OneStep:
    """The step with ``V'(x) = sign clip(x, -corner, corner)``, which attains what can be
    attained.
    """
    return OneStep(q, Staircase((-corner, corner), (float(sign),)), sigma)


def _suprema(field: np.ndarray, *following: float) -> Tensor:
    """The supremum at step 0, and what the next value function has."""
    return torch.tensor([np.abs(field).max(), *following], dtype=torch.float64)


def _integral(z: np.ndarray) -> np.ndarray:
    """``E max(z + W, 0)``."""
    return z * ndtr(z) + _density(z)


def _density(z: np.ndarray) -> np.ndarray:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
