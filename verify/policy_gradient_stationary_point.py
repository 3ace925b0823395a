r"""Under realisability the optimal weights are the only stationary point.

Setting: :math:`U_t = K_t \varphi_t(y)`, one weight matrix per step, features that can represent the
optimal control, :math:`u^*_t = K^*_t \varphi_t`; beta at which Bellman's bracket is strongly
concave at the optimum; :math:`E[\varphi_t(Y_t) \varphi_t(Y_t)^\top] \succ 0` under every policy.

Statement: if $u^*$ is realisable and $bb(E) φ φ^⊤ ≻ 0$, then $∇J(K) = 0 ⇒ K = K^*$

Kind: equality (of every stationary point with K*).

Proof (derived here), backwards in t. If :math:`K_s = K^*_s` for all s > t, then
:math:`Q^K_t = Q^*_t` is strongly concave in u, so for the given law of :math:`Y_t` the objective is
strongly concave in :math:`K_t`; the maximiser of :math:`Q^*_t(y, \cdot)` at every y is
:math:`K^*_t \varphi_t(y)`, so the only zero of (77) is :math:`K^*_t`. What happens before t only
changes that law. Concavity away from K* is not needed, and fails (see
``policy_gradient_concavity``).

Source: arXiv 2412.18164v4, section 4.1; proof derived here.

The counter-examples are derived here too.

How it is measured: roots of the exact gradient from random starts by Powell's hybrid method, which
finds saddles and minima as well as maxima, for affine policies of linear-quadratic problems and for
a nonconvex problem with the optimal control and a sine as features. The negative controls drop one
assumption each: without realisability a closed-form objective in one number has three stationary
points, proved in ball arithmetic; with collinear features a line of them; below the least beta an
optimum is no longer there, and the stationary point is a saddle.

What would refute it: a root of the gradient at a distance from K*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flint
import numpy as np
import torch
from hypothesis import given, settings
from scipy.optimize import root
from torch import Tensor

from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.policy_gradients import SEEDS, Line, optimum, small_problem
from verify.support.scores import MixtureScore
from verify.support.strategies import Sine, numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Stationary point", topics.SECTION_4_1)
RELATIVE_STEP = 1e-12
"""Relative step at which the root finder stops."""
SAME = 1e-6
"""Distance of two roots, relative to 1 + |K*|, that counts as none: the step above times the
condition number of the Jacobian.
"""
FLAT = 1e-8
"""Gradient, relative to its size at the start, above which a stop of the root finder is not a
root.
"""
STARTS, EVALUATIONS = 2, 400
PRECISION = 200


def stationary_points(
    gradient: Callable[[np.ndarray], np.ndarray], starts: list[np.ndarray]
) -> list[np.ndarray]:
    """Roots of a gradient found from given starts; a start from which the search gets stuck gives
    none.
    """
    found = []
    for start in starts:
        result = root(
            gradient, start, method="hybr", options={"xtol": RELATIVE_STEP, "maxfev": EVALUATIONS}
        )
        if np.abs(result.fun).max() <= FLAT * max(np.abs(gradient(start)).max(), 1e-3):
            found.append(result.x)
    return found


@settings(max_examples=12)
@given(quadratic_instances(steps=3, dims=2), SEEDS, numbers(0.1, 10))
def test_holds(instance: QuadraticInstance, seed: int, size: float) -> None:
    """Affine policies: every root of the exact gradient found from starts at distances of order
    ``size`` is the optimum.
    """
    flat, best = optimum(instance.solve())
    draw = np.random.default_rng(seed)
    found = stationary_points(
        flat.gradient, [best + size * draw.standard_normal(len(best)) for _ in range(STARTS)]
    )
    where = {"instance": instance.describe(), "seed": seed, "size": size, "roots": len(found)}
    for point in found:
        CLAIM.equals(
            (point - best) / (1 + np.abs(best).max()), 0.0, where, SAME, "linear-quadratic"
        )


def test_holds_for_nonlinear_features() -> None:
    """Features that contain the optimal control of a nonconvex problem, and a sine."""
    instance, draw = _double_well(), np.random.default_rng(0)
    steps = _Steps.build(instance)
    best = np.array([1.0, 0.0] * instance.steps)
    starts = [best + size * draw.standard_normal(best.size) for size in (0.3, 1.0, 1.0, 3.0, 3.0)]
    found = stationary_points(steps.gradient, starts)
    where = {
        "instance": instance.describe(),
        "features": ["u*", "sin(2y)"],
        "starts": len(starts),
        "roots": len(found),
    }
    CLAIM.equals([float(len(found) >= 3)], [1.0], where, SAME, "searches that end at a root")
    for point in found:
        CLAIM.equals(point, best, where, SAME, "nonlinear features")


def test_needs_realisability() -> None:
    """A constant control, then a bump: three stationary points with two steps, identity mean maps
    and a linear reward.

    With ``x_1 = x_0 + sigma (c + xi)``, ``v_1 = k exp(-x_1^2 / 2)``, ``r(x) = x`` and the best k
    for every c, in units of ``sigma^2 / beta`` the objective of ``z = beta c / sigma`` is
    ``z - z^2 / 2 + psi(R z) / 2``, ``R = sigma^2 / beta``, where ``psi(m) = (E phi)^2 / E phi^2``
    under N(m, tau^2). Without the bump it has one stationary point, z = 1.
    """
    flint.ctx.prec = PRECISION
    points = [flint.arb(p) / 100 for p in (1, 30, 90, 101)]
    slopes = [_reduced_slope(z) for z in points]
    starts = [np.array([z]) for z in (0.0, 0.2, 0.4, 0.5, 0.8, 1.2)]
    roots = stationary_points(
        lambda z: np.array([float(_reduced_slope(flint.arb(float(z[0]))))]), starts
    )
    distinct = {round(float(point[0]), 6) for point in roots}
    where = {
        "R": 10,
        "tau^2": 2,
        "z": [0.01, 0.3, 0.9, 1.01],
        "slopes": [float(s) for s in slopes],
        "roots": sorted(distinct),
    }
    CLAIM.breaks(float(len(distinct)), 1.0, where, "realisability: stationary points")
    CLAIM.certified(
        max(-slopes[0], slopes[1], -slopes[2], slopes[3], key=float),
        flint.arb(0),
        where,
        "three sign changes",
    )
    CLAIM.finding(
        "without realisability J has several stationary points although Bellman's bracket is"
        " strongly concave",
        where,
    )


def test_needs_independent_features() -> None:
    """Two equal features: the gradient vanishes on a line of weights."""
    flat = small_problem(beta=2.0)
    best = stationary_points(flat.gradient, [np.zeros(4)])[0]

    def doubled(weights: np.ndarray) -> np.ndarray:
        return np.repeat(flat.gradient(weights.reshape(-1, 2).sum(1)), 2)

    optimum, moved = (
        np.stack([best + shift, -shift * np.ones_like(best)], 1).ravel() for shift in (0.0, 1.0)
    )
    assert np.abs(doubled(moved)).max() <= FLAT
    CLAIM.breaks(
        float(np.abs(moved - optimum).max()), SAME, {"features": "(x, 1), twice"}, "E φφᵀ ≻ 0"
    )


def test_needs_the_condition_on_beta() -> None:
    """Below sigma^2 P the stationary point is no maximum: the objective is unbounded."""
    flat = small_problem(beta=0.6)
    point = stationary_points(flat.gradient, [np.zeros(4)])[0]
    step = 1e-4
    eye = step * np.eye(4)
    hessian = np.stack(
        [(flat.gradient(point + e) - flat.gradient(point - e)) / (2 * step) for e in eye]
    )
    largest = float(np.linalg.eigvalsh((hessian + hessian.T) / 2).max())
    CLAIM.breaks(largest, 0.0, {"beta": 0.6, "sigma^2 P": 1.0}, "beta > sigma^2 P")


@dataclasses.dataclass(frozen=True, eq=False)
class _Steps:
    """`Line` with the optimal control and a sine as features of every step, shape (nodes, 2)
    each.
    """

    line: Line
    bases: tuple[Tensor, ...]

    @classmethod
    def build(cls, instance: ProductInstance) -> _Steps:
        """On the nodes that a policy without control of its own needs."""
        truth = instance.solve()
        line = Line.covering(
            truth.problem, torch.zeros(instance.steps, 1, dtype=torch.float64), lambda x: x
        )
        return cls(
            line,
            tuple(
                torch.cat([truth.control(k, line.nodes), (2 * line.nodes).sin()], 1)
                for k in line.range
            ),
        )

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """Of the objective, by the trapezoidal rule."""
        problem = self.line.problem
        leaf = torch.from_numpy(weights.reshape(problem.steps, 2)).requires_grad_(True)
        value = problem.reward(self.line.nodes)
        for k in reversed(self.line.range):
            control, kernel = self.line.push_control(k, self.bases[k] @ leaf[k])
            value = kernel @ value - problem.beta[k] * control**2 / 2
        (gradient,) = torch.autograd.grad(self.line.start @ value, leaf)
        return gradient.numpy().ravel()


def _reduced_slope(z: flint.arb) -> flint.arb:
    """Derivative in z of ``z - z^2 / 2 + psi(R z) / 2`` for ``R = 10``, ``tau^2 = 2`` and
    ``phi(x) = exp(-x^2 / 2)``.

    ``E phi = (1 + tau^2)^(-1/2) exp(-m^2 / (2 (1 + tau^2)))`` and
    ``E phi^2 = (1 + 2 tau^2)^(-1/2) exp(-m^2 / (1 + 2 tau^2))``.
    """
    R, variance = flint.arb(10), flint.arb(2)
    rate = 1 / (1 + variance) - 1 / (1 + 2 * variance)
    height = (1 + 2 * variance).sqrt() / (1 + variance)
    m = R * z
    return 1 - z - R * rate * m * height * (-rate * m * m).exp()


def _double_well() -> ProductInstance:
    factor = Factor(MixtureScore((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5)), Sine(1.0, 2.0, 0.3))
    return ProductInstance(levels=(0.4, 0.65, 0.9), lam=(0.3, 0.3), factors=(factor,))
