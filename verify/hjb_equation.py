r"""The Bellman equation of many small steps is the Hamilton-Jacobi-Bellman equation (79), with the
control (78).

Setting: kernels of section 4.2, :math:`a = 1 - q\,dt`, :math:`\sigma^2 = q\,dt`, gain
:math:`1 - a`; a value function with bounded derivatives.

Statement: $V_τ + q (y/2 + s) · ∇V + (q/2) Δ V + (q/(2 β)) |∇V|^2 = 0$ and $u^* = s + ∇V/β$

This is Bellman's equation (8)-(9) to first order in dt. The logarithm of the ratio of the noised
tilted and the noised pre-trained law, times beta, solves it.

Kind: limit.

Source: arXiv 2412.18164v4, equations 78-79.

Coefficients and solution are derived here.

How it is measured: symbolically in one and two dimensions: the right side of Bellman's equation is
expanded in dt to first order with the moments of the noise, and maximised over u. Numerically:
automatic derivatives of `TiltedMixture.value`, at random states and levels, for random mixtures in
up to three dimensions.

What would refute it: an expansion with other coefficients, or a residual above `ROUNDING`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.density import GaussianMixture
from socft.reward import Quadratic
from socft.truth.mixture import TiltedMixture
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Equations (78), (79)", topics.SECTION_4_2)
ROUNDING = 1e-10
"""Relative to the largest term: second derivatives of log densities by automatic
differentiation.
"""
SEEDS = st.integers(0, 10**6)


@dataclasses.dataclass(frozen=True)
class HJBTerms:
    """The terms of (79) at states of shape (batch, d), each of shape (batch,), without their
    coefficients.
    """

    time: Tensor
    drift: Tensor
    laplacian: Tensor
    square: Tensor

    def residual(self, q: float, beta: float, noise: float = 1.0, reach: float = 1.0) -> Tensor:
        """The left side of (79) over its largest term; ``noise`` and ``reach`` scale the last two
        coefficients.
        """
        each = [
            self.time,
            q * self.drift,
            noise * q / 2 * self.laplacian,
            reach * q / (2 * beta) * self.square,
        ]
        largest = torch.stack([term.abs() for term in each]).amax(0)
        return torch.stack(each).sum(0) / largest


def terms(truth: TiltedMixture, q: float, tau: float, x: Tensor) -> HJBTerms:
    """By automatic differentiation of the value alone; the level at time tau is
    ``exp(-q (1 - tau))``.
    """
    time = torch.full((len(x),), tau, dtype=torch.float64, requires_grad=True)
    y = x.clone().requires_grad_(True)
    value = truth.value(torch.exp(-q * (1 - time)), y).sum()
    slope, gradient = torch.autograd.grad(value, (time, y), create_graph=True)
    curved = [
        torch.autograd.grad(gradient[:, i].sum(), y, retain_graph=True)[0][:, i]
        for i in range(x.shape[1])
    ]
    score = truth.density.noised_score(math.exp(-q * (1 - tau)), x)
    drift = ((x / 2 + score) * gradient).sum(1)
    return HJBTerms(
        slope.detach(),
        drift.detach(),
        torch.stack(curved).sum(0),
        gradient.square().sum(1).detach(),
    )


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 3), numbers(0.2, 4), numbers(0.05, 0.95), numbers(0.5, 3))
def test_holds(seed: int, dim: int, q: float, tau: float, beta: float) -> None:
    """Random mixtures, quadratic rewards, levels and states."""
    truth = mixture(seed, dim, beta)
    x = torch.randn(16, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    where = {"seed": seed, "dim": dim, "q": q, "tau": tau, "beta": beta}
    CLAIM.equals(terms(truth, q, tau, x).residual(q, beta), 0.0, where, ROUNDING, "solution")
    y = x.clone().requires_grad_(True)
    level = math.exp(-q * (1 - tau))
    (gradient,) = torch.autograd.grad(truth.value(level, y).sum(), y)
    control = truth.density.noised_score(level, x) + gradient / beta
    scale = 1 + float(control.abs().max())
    CLAIM.equals(
        (truth.optimal_score(level, x) - control) / scale, 0.0, where, ROUNDING, "control (78)"
    )


@pytest.mark.parametrize("dim", [1, 2])
def test_holds_symbolically(dim: int) -> None:
    """Bellman's equation, expanded and maximised."""
    s, q, beta = (
        _vector("s", dim),
        sympy.Symbol("q", positive=True),
        sympy.Symbol("beta", positive=True),
    )
    y, gradient, controls = _vector("y", dim), _vector("p", dim), _symbols("u", dim)
    hessian = sympy.Matrix(
        dim, dim, lambda i, j: sympy.Symbol(f"H{min(i, j)}{max(i, j)}", real=True)
    )
    time = sympy.Symbol("V_tau", real=True)
    rate = _first_order(y, sympy.Matrix(controls), s, gradient, hessian, time, q, beta)
    best = sympy.solve([rate.diff(c) for c in controls], controls, dict=True)
    assert len(best) == 1
    found = sympy.expand(rate.subs(best[0]))
    stated = (
        time
        + q * (y / 2 + s).dot(gradient)
        + q / 2 * hessian.trace()
        + q / (2 * beta) * gradient.dot(gradient)
    )
    left = [
        sympy.simplify(found - stated),
        *(sympy.simplify(best[0][c] - s[i] - gradient[i] / beta) for i, c in enumerate(controls)),
    ]
    where = {"symbolic": True, "dimension": dim, "left over": [str(x) for x in left]}
    CLAIM.equals([float(x != 0) for x in left], [0.0] * len(left), where, ROUNDING, "symbolic")


@pytest.mark.parametrize(("noise", "reach"), [(2.0, 1.0), (1.0, 0.5)])
def test_needs_its_coefficients(noise: float, reach: float) -> None:
    """A noise of variance 2 q dt, or the square of the gradient with half its coefficient, gives an
    equation V does not solve.
    """
    truth = mixture(0, 1, 1.0)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    residual = terms(truth, 1.0, 0.5, x).residual(1.0, 1.0, noise, reach)
    where = {"seed": 0, "dim": 1, "q": 1.0, "tau": 0.5, "beta": 1.0, "noise": noise, "reach": reach}
    CLAIM.breaks(float(residual.abs().max()), ROUNDING, where, "coefficients")


def mixture(seed: int, dim: int, beta: float) -> TiltedMixture:
    """Three components with variances in [0.4, 1.5] and a quadratic reward that keeps every tilt
    integrable.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(3, generator=generator, dtype=torch.float64) + 0.2
    means = torch.randn(3, dim, generator=generator, dtype=torch.float64)
    variances = 0.4 + 1.1 * torch.rand(3, generator=generator, dtype=torch.float64)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    P = 0.2 * torch.eye(dim, dtype=torch.float64) - factor @ factor.T
    q = torch.randn(dim, generator=generator, dtype=torch.float64)
    return TiltedMixture(
        GaussianMixture(weights / weights.sum(), means, variances),
        Quadratic((P + P.T) / 2, q),
        beta,
    )


def _first_order(
    y: sympy.Matrix,
    u: sympy.Matrix,
    s: sympy.Matrix,
    gradient: sympy.Matrix,
    hessian: sympy.Matrix,
    time: sympy.Symbol,
    q: sympy.Symbol,
    beta: sympy.Symbol,
) -> sympy.Expr:
    """Coefficient of dt = h^2 in ``E V(tau + dt, y') - V(tau, y) - beta KL``; that of dt^0 and of
    odd powers of h vanish.
    """
    h, noise = sympy.Symbol("h", positive=True), _symbols("W", len(y))
    a = 1 - q * h**2
    move = (y + q * h**2 * u) / sympy.sqrt(a) + sympy.sqrt(q) * h * sympy.Matrix(noise) - y
    gained = time * h**2 + gradient.dot(move) + (move.T * hessian * move)[0] / 2
    paid = beta * (q * h**2) ** 2 / (2 * a * q * h**2) * (u - s).dot(u - s)
    expanded = sympy.expand(sympy.series(gained - paid, h, 0, 3).removeO())
    for first, second in itertools.combinations(noise, 2):
        expanded = sympy.expand(expanded).subs(first * second, 0)
    for w in noise:
        expanded = sympy.expand(expanded).subs(w**2, 1).subs(w, 0)
    assert sympy.simplify(expanded.subs(h, 0)) == 0
    return sympy.expand(expanded).coeff(h, 2)


def _symbols(name: str, dim: int) -> list[sympy.Symbol]:
    return [sympy.Symbol(f"{name}{i}", real=True) for i in range(dim)]


def _vector(name: str, dim: int) -> sympy.Matrix:
    return sympy.Matrix(_symbols(name, dim))
