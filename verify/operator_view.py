r"""Bellman's equation is a smoothing, a Moreau envelope and a composition.

Setting: the value function :math:`V_{t+1}` of the chain
:math:`Y_{t+1} = (Y_t + g U_t(Y_t))/\sqrt a + \sigma W`, score s, KL weight :math:`\beta`. Bellman's
equation (8)-(9) maximises over u the bracket

.. math:: Q_t(y, u) = E V_{t+1}\Big(\frac{y + g u}{\sqrt a} + \sigma W\Big) - \frac{\beta g^2}{2 a
    \sigma^2} |u - s(y)|^2 .

Statement: $V_t = [sup_δ (G V_(t+1)) (· + δ) − |δ|^2/(2 ρ_t)] ∘ m_t$ with $ρ_t = σ_t^2/β_t$

Here :math:`m_t(y) = (y + g s(y))/\sqrt a` and :math:`(G f)(x) = E f(x + \sigma W)`; the supremum is
attained at :math:`\delta = g (u^* - s)/\sqrt a`.

Kind: equality.

Source: derived here from arXiv 2412.18164v4, equations 8-9.

How it is measured: the right side of (9) in the paper's units, by an own quadrature and a search on
nested grids that assumes neither smoothness nor concavity, against the exact solver, which works
with the operators; in several dimensions (quadratic) with a general-purpose optimiser and a
cubature that is exact for quadratics. The change of variables symbolically.

What would refute it: a residual above the errors of quadrature and search.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from socft import theory
from socft.reference import ScoreReference
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.rewards import Parabola
from verify.support.scores import TanhScore
from verify.support.strategies import entries, line_instances, quadratic_instances
from verify.support.suprema import INNER

CLAIM = Claim.of_module(__name__, __doc__, "Operator view of (9)", topics.THEOREM_2_8_II)

REACH, SPACING = 9.0, 0.075
"""Quadrature for W: the trapezoidal rule errs by exp(-2 pi c / 0.075) for integrands analytic in a
strip of half-width c.
"""
FIRST, LATER, ZOOMS = 161, 33, 7
"""Points of the search and of its refinements, each to two spacings: a width of 1 ends at 1e-7; the
value loses its square.
"""
RESIDUAL = 1e-9
"""Relative error of V_t off the nodes; `strategies` chooses the grids so that interpolation errs by
this much.
"""
MARGIN = 1.5
"""Half-width of the search over the largest possible distance of u* from s."""
GRADIENT = 1e-8
"""Gradient at which the optimiser stops; the value is then off by its square over twice the modulus
of concavity.
"""
ROUNDING = 1e-11
"""Relative error of a quadratic's value, with moduli above 1e-5."""


@dataclasses.dataclass(frozen=True)
class Bracket:
    """Bellman's bracket Q_t(y, u) of a one-dimensional problem in the paper's units, by quadrature.

    Attributes:
        instance: the problem without its weights.
        truth: its exact solution, of which only V_{t+1} is used, and that only for t + 1 < T.
        t: the step.
        beta: weight of the step.
    """

    instance: ProductInstance
    truth: Quadrature
    t: int
    beta: float

    def __call__(self, y: Tensor, u: Tensor) -> Tensor:
        """``Q_t(y, u)`` for tensors of one shape."""
        s = self.instance.schedule
        alpha, gain, sigma = (float(x[self.t]) for x in (s.alpha, s.score_weight, s.sigma))
        centre = (y + gain * u) / math.sqrt(alpha)
        price = self.beta * gain**2 / (2 * alpha * sigma**2)
        return self.expect(self.following, centre) - price * (u - self.score(y)) ** 2

    def slope(self, y: Tensor, u: Tensor) -> Tensor:
        """``s(y) + kappa E grad V_{t+1} - u``, which vanishes where (18) holds."""
        s = self.instance.schedule
        alpha, gain, sigma = (float(x[self.t]) for x in (s.alpha, s.score_weight, s.sigma))
        kappa = math.sqrt(alpha) * sigma**2 / (self.beta * gain)
        return (
            self.score(y)
            + kappa * self.expect(self.following_gradient, (y + gain * u) / math.sqrt(alpha))
            - u
        )

    def expect(self, function: Callable[[Tensor], Tensor], centre: Tensor) -> Tensor:
        """``E function(centre + sigma W)``."""
        nodes = torch.arange(-REACH, REACH + SPACING / 2, SPACING, dtype=torch.float64)
        weights = torch.exp(-(nodes**2) / 2)
        points = centre[..., None] + float(self.instance.schedule.sigma[self.t]) * nodes
        return function(points.reshape(-1, 1)).reshape(points.shape) @ (weights / weights.sum())

    def following(self, x: Tensor) -> Tensor:
        """``V_{t+1}``."""
        last = self.t + 1 == self.instance.steps
        return self.instance.reward(x) if last else self.truth.value(self.t + 1, x)

    def following_gradient(self, x: Tensor) -> Tensor:
        """``grad V_{t+1}``."""
        last = self.t + 1 == self.instance.steps
        return (
            self.instance.reward.gradient(x) if last else self.truth.value_gradient(self.t + 1, x)
        )[:, 0]

    def score(self, y: Tensor) -> Tensor:
        """``s_t(y)``."""
        reference = self.instance.problem(1.0).reference
        assert isinstance(reference, ScoreReference)
        return reference.score(self.t, y.reshape(-1, 1)).reshape(y.shape)

    def width(self) -> float:
        """Half-width around s of an interval that holds every maximiser and stationary point, from
        ``|u - s| <= kappa L0V``.
        """
        steepest = theory.paper_constants(self.instance.chain, self.instance.lams).L0V
        return MARGIN * float(theory.control_size(self.instance.chain, self.beta, steepest)[self.t])


@dataclasses.dataclass(frozen=True)
class Maximum:
    """Maximisers and maxima of a bracket, one per state."""

    u: Tensor
    value: Tensor


def maximise(bracket: Bracket, y: Tensor) -> Maximum:
    """Search on nested grids, without derivatives or concavity."""
    centre, width = bracket.score(y), torch.full_like(y, bracket.width())
    points = FIRST
    for _ in range(ZOOMS):
        u = centre[:, None] + width[:, None] * torch.linspace(-1, 1, points, dtype=torch.float64)
        best = bracket(y[:, None].expand_as(u), u).argmax(1, keepdim=True)
        centre, width, points = u.gather(1, best)[:, 0], 4 * width / (points - 1), LATER
    return Maximum(centre, bracket(y, centre))


def states(truth: Quadrature, t: int, count: int = 3) -> Tensor:
    """States of step t spread over the region in which suprema are taken."""
    grid = truth.grids[t]
    centre, reach = (grid.lower + grid.upper) / 2, INNER * (grid.upper - grid.lower) / 2
    return centre + reach * torch.linspace(-1, 1, count, dtype=torch.float64)


def measure(bracket: Bracket, y: Tensor) -> Tensor:
    """The right side of (9)."""
    return maximise(bracket, y).value


def bound(truth: Quadrature, t: int, y: Tensor) -> Tensor:
    """``V_t`` from the operators."""
    return truth.value(t, y[:, None])


@settings(max_examples=10)
@given(line_instances(steps=6), st.integers(0, 5))
def test_holds(instance: ProductInstance, step: int) -> None:
    t, beta = step % instance.steps, instance.beta()
    truth = instance.parts()[0]
    y = states(truth, t)
    expected = bound(truth, t, y)
    measured = measure(Bracket(instance, truth, t, float(beta[t])), y)
    where = {"instance": instance.describe(), "step": t, "y": y}
    CLAIM.equals(measured, expected, where, RESIDUAL * (1 + float(expected.abs().max())))


@settings(max_examples=30)
@given(quadratic_instances(steps=4), st.integers(0, 3), entries(5))
def test_holds_in_several_dimensions(
    instance: QuadraticInstance, step: int, state: list[float]
) -> None:
    """With a reward that does not separate in the score's coordinates."""
    t, beta = step % instance.steps, instance.beta()
    truth, y = instance.solve(), np.array(state[: instance.dim])
    expected = float(truth.value(t, torch.from_numpy(y)[None])[0])
    found = maximise_quadratic(instance, truth, t, float(beta[t]), y)
    where = {"instance": instance.describe(), "step": t, "y": y}
    CLAIM.equals(found.value, expected, where, ROUNDING * (1 + abs(expected)), "quadratic")


def test_holds_symbolically() -> None:
    """The penalty of (9) is ``|delta|^2 / (2 rho)`` and its argument is ``m + delta``."""
    y, s, u = sympy.symbols("y s u", real=True)
    a, g, sigma, beta = sympy.symbols("a g sigma beta", positive=True)
    delta, mean, rho = g * (u - s) / sympy.sqrt(a), (y + g * s) / sympy.sqrt(a), sigma**2 / beta
    left_over = [
        sympy.simplify(beta * g**2 * (u - s) ** 2 / (2 * a * sigma**2) - delta**2 / (2 * rho)),
        sympy.simplify((y + g * u) / sympy.sqrt(a) - (mean + delta)),
    ]
    CLAIM.equals(
        [float(x != 0) for x in left_over],
        [0.0, 0.0],
        {"symbolic": True, "left over": str(left_over)},
        0.5,
        "symbolic",
    )


def test_needs_the_order() -> None:
    """Envelope before smoothing, as if the control could see the noise, promises more than V_t."""
    problem = PARABOLA.problem(beta := PARABOLA.beta())
    y = torch.tensor([0.3], dtype=torch.float64)
    mean, noise, p = problem.reference.mean(0, y[:, None]), PARABOLA.schedule.sigma[0].square(), 1.5
    envelope = p / (1 - noise * p / beta[0])
    swapped = float(envelope * (mean.square() + noise) / 2)
    CLAIM.breaks(
        swapped - float(bound(PARABOLA.parts()[0], 0, y)),
        RESIDUAL,
        PARABOLA,
        "smoothing before the envelope",
    )


def test_needs_kernels_of_fixed_covariance() -> None:
    """A control that may also change the variance of the kernel, at its divergence, does better on
    a convex reward.
    """
    beta, variance, p = float(PARABOLA.beta()[0]), float(PARABOLA.schedule.sigma[0].square()), 1.5
    ratio = np.linspace(0.5, 2, 301)
    gained = p * variance * (ratio - 1) / 2 - beta * (ratio - 1 - np.log(ratio)) / 2
    CLAIM.breaks(float(gained.max()), RESIDUAL, PARABOLA, "fixed covariance")


PARABOLA = ProductInstance(
    levels=(0.4, 0.8), lam=(0.5,), factors=(Factor(TanhScore(c=1.0), Parabola(1.5)),)
)


@dataclasses.dataclass(frozen=True)
class VectorMaximum:
    """Maximiser (d,) and maximum of a bracket in d dimensions."""

    u: np.ndarray
    value: float


def maximise_quadratic(
    instance: QuadraticInstance,
    truth: LinearQuadratic,
    t: int,
    beta: float,
    y: np.ndarray,
    start: np.ndarray | None = None,
) -> VectorMaximum:
    """By scipy, from the score unless told otherwise; the mean over ``x +- sqrt(d) sigma e_i`` is
    exact for quadratics.
    """
    s, d = instance.schedule, instance.dim
    alpha, gain, sigma = (float(x[t]) for x in (s.alpha, s.score_weight, s.sigma))
    nodes = (
        math.sqrt(d)
        * sigma
        * torch.cat([torch.eye(d, dtype=torch.float64), -torch.eye(d, dtype=torch.float64)])
    )
    score = np.array(instance.score) * y + np.array(instance.shift)

    def negative(u: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy((y + gain * u) / math.sqrt(alpha)) + nodes
        price = beta * gain**2 / (alpha * sigma**2)
        value = float(truth.value(t + 1, x).mean()) - price / 2 * float(((u - score) ** 2).sum())
        slope = truth.value_gradient(t + 1, x).mean(0).numpy() * gain / math.sqrt(alpha) - price * (
            u - score
        )
        return -value, -slope

    found = minimize(
        negative,
        score if start is None else start,
        jac=True,
        method="BFGS",
        options={"gtol": GRADIENT},
    )
    return VectorMaximum(found.x, -float(found.fun))
