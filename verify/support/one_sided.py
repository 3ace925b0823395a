"""PI-FT at the smallest weights that the one-sided constants admit, and what it attains there.

Suprema are over the inner part of the grids, in d dimensions: coordinates of a rotated product vary
independently, so that lengths add in squares, values add, and spectra are those of the coordinates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.pi_ft import BackwardInduction, backward_induction
from socft.theory.regularity import run_backward
from socft.truth.grid import ValueGrid
from socft.truth.quadrature import Quadrature
from verify.support.factors import Factor
from verify.support.instances import Instance, ProductInstance
from verify.support.iterates import differentiate, inner, supremum
from verify.support.rewards import Slope
from verify.support.scores import TanhScore

LEAST = 0.1
"""Weights below this are not tried: where nearly every one is admitted, quadrature would not
resolve what they do.
"""
RELAXATIONS = (theory.UNDAMPED, theory.BestRelaxation(), theory.FixedRelaxation(0.6))


def relaxations() -> st.SearchStrategy[theory.Relaxation]:
    """The paper's iteration, the best one and a damped one."""
    return st.sampled_from(RELAXATIONS)


def weights(instance: Instance, statement: theory.RegularityStatement) -> Tensor:
    """The smallest weights above `LEAST` that a statement admits with the instance's lambda, shape
    (T,).
    """
    chain, lam, found = (
        instance.chain,
        instance.lam,
        torch.ones(instance.steps, dtype=torch.float64),
    )
    variance = chain.sigma.square()

    def choose(t: int, curvature: float) -> tuple[float, float]:
        found[t] = max(float(variance[t]) * curvature / (1 - lam[t]), LEAST)
        rho = float(variance[t] / found[t])
        return 1 - rho * curvature, rho

    run_backward(chain, statement, choose)
    return found


@dataclasses.dataclass(frozen=True)
class RelaxedPass:
    """A pass of PI-FT with m updates at every step.

    Attributes:
        instance: the problem.
        relaxation: of the updates.
        rounds: m.
    """

    instance: ProductInstance
    relaxation: theory.Relaxation
    rounds: int

    @property
    def bounds(self) -> theory.OneSidedBounds:
        return theory.OneSidedBounds(self.relaxation)

    @functools.cached_property
    def beta(self) -> Tensor:
        """The smallest weights admitted for these iterates and for the optimum that they are held
        against, shape (T,).
        """
        statements = theory.Lemma32(self.bounds, self.rounds), theory.Theorem28(self.bounds)
        return torch.stack([weights(self.instance, each) for each in statements]).amax(0)

    @functools.cached_property
    def constants(self) -> theory.Regularity:
        """Of these iterates."""
        statement = theory.Lemma32(self.bounds, self.rounds)
        return theory.constants_at(self.instance.chain, self.beta, statement)

    @functools.cached_property
    def convergence(self) -> theory.Convergence:
        """Bounds of the errors."""
        chain, bounds = self.instance.chain, self.bounds
        return theory.one_sided_convergence(chain, self.beta, self.rounds, bounds)

    @property
    def theta(self) -> Tensor:
        """Relaxation factors, shape (T,)."""
        return self.constants.theta

    @functools.cached_property
    def truths(self) -> tuple[Quadrature, ...]:
        """The exact solution of each distinct coordinate."""
        return self.instance.parts(self.beta)

    @functools.cached_property
    def found(self) -> tuple[BackwardInduction, ...]:
        """PI-FT of each distinct coordinate."""
        return tuple(
            backward_induction(truth.problem, truth.grids, self.rounds, self.theta)
            for truth in self.truths
        )

    def describe(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "instance": self.instance.describe(),
            "updates": self.rounds,
            "theta": self.theta.tolist(),
            "beta": self.beta.tolist(),
        }

    def gradient(self) -> Tensor:
        """``sup |grad V_t^(m)|``, shape (T + 1,)."""
        each = [supremum([v.gradient for v in found.values]) for found in self.found]
        return self._length(each)

    def spectrum(self) -> Tensor:
        """Suprema of the largest and of minus the smallest eigenvalue of ``Hess V_t^(m)``, shape
        (2, T + 1).
        """
        return torch.stack([spectrum(found.values) for found in self.found]).amax(0)

    def control_error(self) -> Tensor:
        """``sup |v_t^(m) - v*_t|``, shape (T,)."""
        each = [
            supremum([a - b for a, b in zip(found.shifts, truth.shifts, strict=True)])
            / self.instance.schedule.sigma
            for found, truth in zip(self.found, self.truths, strict=True)
        ]
        return self._length(each)

    def gradient_error(self) -> Tensor:
        """``sup |grad V_t^(m) - grad V*_t|``, shape (T + 1,)."""
        return self._length(self._differences(lambda v: v.gradient))

    def value_error(self) -> Tensor:
        """``sup (V*_t - V_t^(m))``, shape (T + 1,)."""
        each = self._differences(lambda v: v.value[:, None])
        return torch.stack([n * x for x, n in zip(each, self._count, strict=True)]).sum(0)

    def _differences(self, field: Callable[[ValueGrid], Tensor]) -> list[Tensor]:
        return [
            supremum([field(a) - field(b) for a, b in zip(found.values, truth.values, strict=True)])
            for found, truth in zip(self.found, self.truths, strict=True)
        ]

    @property
    def _count(self) -> list[int]:
        size, kinds = self.instance.size, len(self.truths)
        return [len(range(i, size, kinds)) for i in range(kinds)]

    def _length(self, each: list[Tensor]) -> Tensor:
        squares = [n * x.square() for x, n in zip(each, self._count, strict=True)]
        return torch.stack(squares).sum(0).sqrt()


def spectrum(values: tuple[ValueGrid, ...]) -> Tensor:
    """Suprema of V'' and of -V'' of one-dimensional value functions, shape (2, T + 1)."""
    bends = [inner(differentiate(v.grid, v.gradient)) for v in values]
    return torch.stack(
        [torch.stack([b.max() for b in bends]), torch.stack([(-b).max() for b in bends])]
    )


def linear_pass(steps: int, rounds: int) -> RelaxedPass:
    """Of a chain with a contracting affine score and a linear reward."""
    levels = tuple(0.4 * (0.95 / 0.4) ** (t / steps) for t in range(steps + 1))
    instance = ProductInstance(
        levels=levels,
        lam=(0.5,) * steps,
        factors=(Factor(TanhScore(c=-0.3), Slope(1.5)),),
    )
    return RelaxedPass(instance, theory.FixedRelaxation(0.6), rounds)
