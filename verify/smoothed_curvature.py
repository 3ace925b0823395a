r"""Noise flattens: the curvature of a smoothed value function is bounded by its slope.

Setting: V is :math:`L^0`-Lipschitz with :math:`L^1`-Lipschitz gradient,
:math:`(G V)(x) = E V(x + \sigma W)`.

Statement: $|op("Hess") G V| ≤ L_1 op("erf")(L_0/(sqrt(2) σ L_1)) ≤ min {L_1, sqrt(2/π) L_0/σ}$

As only Hess G V enters the proofs of Theorem 2.8 and of the contraction, this K may stand for
:math:`L^1_{V,t+1}` in the condition on beta and in (15)-(16).

Kind: tight. The slope :math:`\mathrm{clip}(L^1 x, -L^0, L^0)` along one axis attains the first
inequality in every dimension.

Source: derived here.

Bare numbers are those of arXiv 2412.18164v4, whose condition on beta has :math:`L^1_{V,t+1}`.

How it is measured: sums of two functions along directions at any angle whose second derivatives are
staircases, for which all numbers are closed forms; Theorem 2.8 at the smaller weights, by the exact
solver; the smallest weight at which the solver's update map contracts at a given rate, beside what
the conditions ask. "bound" is the minimum, "sharp" the error function. The certificates compare the
error function with the sine's exact smoothed curvature and with the minimum, for all arguments of
an interval.

What would refute it: a smoothed curvature above the error function, or a constant of Theorem 2.8
violated at the smaller weights.
"""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction
from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socft import theory
from socft.truth.least_beta import measured_beta
from verify.support import topics
from verify.support.balls import below_one
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.scores import MixtureScore
from verify.support.staircase import POINTS, Staircase
from verify.support.strategies import Sine, instances, numbers, staircases
from verify.support.suprema import ACCURACY, DIFFERENCED

CLAIM = Claim.of_module(__name__, __doc__, "Smoothed curvature", topics.WEIGHT)

GRID = 2e-6
"""Relative error of L0 and L1 over that grid of directions: about the square of its spacing of
1.6e-3.
"""


@dataclasses.dataclass(frozen=True)
class Pair:
    """``V(x) = first(x_1) + second(x_1 cos(angle) + x_2 sin(angle))``; the arguments of the two
    vary independently.

    Every norm below is convex in the two derivatives, so that the corners of their ranges decide.
    """

    first: Staircase
    second: Staircase
    angle: float

    @property
    def L0(self) -> float:
        """Exact Lipschitz constant."""
        return self._largest((self.first.slopes, self.second.slopes), 1)

    @property
    def L1(self) -> float:
        """Exact Lipschitz constant of the gradient."""
        return self._largest((self.first.curvatures, self.second.curvatures), 2)

    def describe(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"type": "Pair"} | dataclasses.asdict(self)

    def smoothed(self, sigma: float, order: int) -> float:
        """``sup |D^order G V|``."""
        return self._largest(
            (self.first.smoothed(sigma, order), self.second.smoothed(sigma, order)), order
        )

    def _largest(
        self, ranges: tuple[tuple[float, float], tuple[float, float]], order: int
    ) -> float:
        """Operator norm of ``sum_i c_i b_i^(tensor order)``, attained at equal arguments: over
        corners and a grid of directions.
        """
        turn = np.linspace(0, np.pi, POINTS)
        along = np.stack([np.cos(turn) ** order, np.cos(turn - self.angle) ** order])
        return max(
            float(np.abs(np.array(corner) @ along).max()) for corner in itertools.product(*ranges)
        )


def pairs() -> st.SearchStrategy[Pair]:
    """Two staircases at any angle; parallel ones are left out, because their arguments are the
    same.
    """
    return st.builds(Pair, staircases(), staircases(), numbers(0.1, 3))


def measure(pair: Pair, sigma: float) -> float:
    """``sup |Hess G V|``."""
    return pair.smoothed(sigma, 2)


def bound(L0: float, L1: float, sigma: float) -> float:
    """The minimum of the two simple bounds."""
    return min(L1, theory.SHARP * L0 / sigma)


@settings(max_examples=150)
@given(pairs(), numbers(0.1, 3))
def test_holds(pair: Pair, sigma: float) -> None:
    L0, L1 = pair.L0 * (1 + GRID), pair.L1 * (1 + GRID)
    sharp = theory.smoothed_curvature(L0, L1, sigma)
    CLAIM.holds(
        measure(pair, sigma),
        bound(L0, L1, sigma),
        {**dataclasses.asdict(pair), "sigma": sigma},
        sharp=sharp,
    )


@settings(max_examples=15)
@given(instances(steps=6))
def test_theorem_2_8_holds_at_the_smaller_weights(instance: ProductInstance) -> None:
    """(14)-(16), whitened, with K in place of L1V and beta as small as that allows."""
    statement = theory.Theorem28(instance.sharp)
    beta, found = instance.beta(statement), instance.regularity(statement)
    measured = instance.suprema(beta)
    CLAIM.holds(measured.smoothed_hessian, found.curvature, instance, floor=ACCURACY, part="K")
    CLAIM.holds(measured.value_gradient, found.L0V, instance, floor=ACCURACY, part="(14)")
    CLAIM.holds(measured.value_hessian, found.L1V, instance, floor=DIFFERENCED, part="(15)")
    CLAIM.holds(measured.control_slope, found.L0v, instance, floor=DIFFERENCED, part="(16)")


@pytest.mark.parametrize(
    ("L0", "L1", "sigma"), [(1.0, 0.3, 0.5), (1.0, 3.0, 0.5), (0.7, 40.0, 0.2)]
)
def test_is_attained(L0: float, L1: float, sigma: float) -> None:
    """By a clipped slope."""
    clipped = Staircase((-L0 / L1, L0 / L1), (L1,))
    measured = clipped.smoothed(sigma, 2)[1]
    CLAIM.attained(
        measured,
        theory.smoothed_curvature(L0, L1, sigma),
        {**dataclasses.asdict(clipped), "sigma": sigma},
    )


def test_required_beta() -> None:
    """What contracts at rate 1 - lam = 1/2 on an instance, beside what each condition asks."""
    score = MixtureScore((1.0,), (0.0,), (1.0,))
    levels = tuple(0.2 * (0.98 / 0.2) ** (t / 10) for t in range(11))
    instance = ProductInstance(
        levels=levels, lam=(0.5,) * 10, factors=(Factor(score, Sine(1.0, 2.0)),)
    )
    bounds = theory.PaperBounds(), theory.SharpBounds(), instance.sharp
    paper, smoothed, sharp = (
        float(theory.constant_beta(instance.chain, 0.5, theory.Theorem28(x)).beta[0])
        for x in bounds
    )
    needed = float(measured_beta(instance.problem(1.0), 0.5).beta[0])
    CLAIM.holds(needed, paper, instance, sharp=sharp, part="required beta")
    assert smoothed < paper
    text = (
        "unit Gaussian data, sine reward sin 2x, 10 steps, λ = 1/2: the least constant β is"
        f" {paper:.3g} by the paper's condition, "
    )
    text += (
        f"{smoothed:.3g} with smoothed curvature, {sharp:.3g} with exact mean maps besides;"
        f" {needed:.3g} is necessary"
    )
    CLAIM.finding(text, instance)


def test_needs_a_lipschitz_function() -> None:
    """A parabola keeps its curvature under smoothing, whatever its slope on the scale of the
    noise.
    """
    L1, sigma = 1.0, 1.0
    CLAIM.breaks(
        L1,
        theory.smoothed_curvature(L1 * sigma, L1, sigma),
        {"V": "x^2 / 2", "L0": "slope at sigma"},
        "L0",
    )


def test_needs_a_lipschitz_gradient() -> None:
    """Near a kink the second entry of the minimum is approached, above the error function for any
    smaller L1.
    """
    kink = Staircase((-1e-6, 1e-6), (1e6,))
    measured = kink.smoothed(0.5, 2)[1]
    CLAIM.breaks(
        measured,
        theory.smoothed_curvature(1.0, 3.0, 0.5),
        {**dataclasses.asdict(kink), "sigma": 0.5, "L1": 3.0},
        "L1",
    )


def test_certified() -> None:
    """Sine rewards, with z = sigma frequency, and the second inequality, with x = L0 / (sigma
    L1).
    """
    root = flint.arb(2).sqrt()
    sine = below_one(
        lambda z: (-z * z / 2).exp() / (1 / (root * z)).erf(), Fraction(1, 16), Fraction(16)
    )
    CLAIM.certified(sine, flint.arb(1), {"V": "sine", "z": [1 / 16, 16]}, part="sine")
    line = below_one(
        lambda x: (x / root).erf() / (x * root / flint.arb.pi().sqrt()),
        Fraction(1, 16),
        Fraction(8),
    )
    CLAIM.certified(line, flint.arb(1), {"x": [1 / 16, 8]}, part="second inequality")
