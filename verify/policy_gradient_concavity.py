r"""Away from the optimum, is the action value of a policy concave in the control?

Setting: :math:`Q^K_t(y, u)` of ``policy_gradient_formula``, whose curvature in whitened control is
:math:`\sigma_t^2\, \mathrm{Hess}\, G V^K_{t+1} - \beta_t`. At the optimum it is negative under the
condition on beta (19).

Statement: for affine $K$ and quadratic $r$, $β_t − σ_t^2 λ_max (P^K_(t+1)) ≥ β_t − σ_t^2 λ_max
(P^*_(t+1))$

So at every K the modulus of strong concavity is at least the optimal one. (:math:`V^K \le V^*`
everywhere, and a quadratic function that nowhere exceeds another one has no larger Hessian.)

Kind: tight, attained by K = K*.

For nonlinear features it is false. Take identity mean maps, the reward r(x) = x, two steps, and the
features :math:`1, \sin \omega y` with weights :math:`\sigma/\beta` (optimal) and k (optimally zero)
at the second step. Then :math:`V^K_1(y) = y - \tfrac{\beta}{2} k^2 \sin^2 \omega y` up to a
constant, and the curvature at step 0 is

.. math:: -\beta \big( 1 + k^2 (\sigma\omega)^2 e^{-2 (\sigma\omega)^2} \cos 2 \omega x \big),

positive for some x if and only if :math:`k^2 (\sigma\omega)^2 e^{-2(\sigma\omega)^2} > 1`; the
smallest such k is :math:`\sqrt{2e} = 2.33`, at :math:`(\sigma\omega)^2 = 1/2`. At k = 0 the modulus
is beta.

Source: arXiv 2412.18164v4, section 4.1; derived here.

Section 4.1 has strong concavity at K* only.

How it is measured: the moduli from `evaluate_affine` and `LinearQuadratic` at random policies, near
and far; the counter-example by Gauss-Hermite quadrature of the second derivative, and in ball
arithmetic.

What would refute it: an affine policy with a smaller modulus than the optimal one; a ball below
zero in the counter-example.
"""

from __future__ import annotations

import math

import flint
import numpy as np
import torch
from hypothesis import given, settings
from torch import Tensor

from socft.policy import AffinePolicy
from socft.reference import AffineReference, ScalarDiffusion
from socft.truth.affine_policy import evaluate_affine
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.policy_gradients import SEEDS
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Concavity away from the optimum", topics.SECTION_4_1)
ROUNDING = 1e-10
"""Relative to the largest curvature on either side."""
QUADRATURE = 1e-10
"""Of a 96-node Gauss-Hermite rule for a cosine of frequency below 2."""
NODES = 96
PRECISION = 200


def moduli(instance: QuadraticInstance, beta: Tensor, hessians: Tensor) -> Tensor:
    """``beta_t - sigma_t^2 lambda_max(P_{t+1})``, shape (T,)."""
    return beta - instance.schedule.sigma.square() * torch.linalg.eigvalsh(hessians[1:])[:, -1]


@settings(max_examples=60)
@given(quadratic_instances(), SEEDS, numbers(0.01, 10))
def test_holds(instance: QuadraticInstance, seed: int, size: float) -> None:
    """At random affine policies at a distance of order ``size`` from the optimum."""
    truth, beta = instance.solve(), instance.beta()
    best, draw = truth.affine_policy, torch.Generator().manual_seed(seed)
    gain = best.gain.detach() + size * torch.randn(
        best.gain.shape, generator=draw, dtype=torch.float64
    )
    found = evaluate_affine(truth.problem, AffinePolicy(gain, best.offset.detach())).value.hessian
    optimal = torch.stack([truth.hessian(k) for k in range(instance.steps + 1)])
    scale = 1 + float(beta.max()) + float(found.abs().max()) + float(optimal.abs().max())
    where = {"instance": instance.describe(), "seed": seed, "size": size}
    CLAIM.holds(
        moduli(instance, beta, optimal),
        moduli(instance, beta, found),
        where,
        floor=ROUNDING * scale,
    )


def test_is_attained() -> None:
    """By the optimal policy."""
    instance = _turned(curvature=(1.5, -1.0))
    truth, beta = instance.solve(), instance.beta()
    found = evaluate_affine(truth.problem, truth.affine_policy).value.hessian
    optimal = torch.stack([truth.hessian(k) for k in range(instance.steps + 1)])
    for measured, limit in zip(
        moduli(instance, beta, optimal), moduli(instance, beta, found), strict=True
    ):
        CLAIM.attained(float(measured), float(limit), instance)


def test_needs_affine_features() -> None:
    """The counter-example of the docstring with k = 3, at whose optimum every step has the modulus
    beta.
    """
    k, beta, sigma = 3.0, 1.0, 0.5
    omega = math.sqrt(0.5) / sigma
    where = {
        "features": ["1", "sin(w y)"],
        "k": k,
        "beta": beta,
        "sigma": sigma,
        "w": omega,
        "x": math.pi / (2 * omega),
    }
    curvature = _curvature(k, beta, sigma, omega, math.pi / (2 * omega))
    closed = -beta * (1 - k**2 * (sigma * omega) ** 2 * math.exp(-2 * (sigma * omega) ** 2))
    CLAIM.equals(curvature, closed, where, QUADRATURE, "closed form of the counter-example")
    CLAIM.equals(
        _curvature(0.0, beta, sigma, omega, 0.3), -beta, where, QUADRATURE, "modulus at the optimum"
    )
    CLAIM.breaks(curvature, 0.0, where, "affine features: curvature of Q in the control")
    text = (
        "for nonlinear features $Q^K_t (y, ·)$ need not be concave although $Q^(K^*)_t (y, ·)$ is,"
        " even"
        " for a linear reward: k > √(2e)"
    )
    CLAIM.finding(text, where)


def test_certified() -> None:
    """``1 - 9 / (2 e) < 0`` and, for the threshold, ``1 - k^2 / (2 e) > 0`` for k = 2.33 at every
    frequency.
    """
    flint.ctx.prec = PRECISION
    e = flint.arb(1).exp()
    CLAIM.certified(
        1 - flint.arb(9) / (2 * e),
        flint.arb(0),
        {"k": 3, "(sigma w)^2": 0.5},
        "not concave at k = 3",
    )
    largest = flint.arb(0)
    for i in range(400):  # z exp(-2 z) on [0, 4] by cells, and beyond 4 it decreases
        z = flint.arb(flint.fmpq(2 * i + 1, 200), flint.fmpq(1, 200))
        slope = (-2 * z).exp() * (1 - 2 * z)
        centre = flint.arb(flint.fmpq(2 * i + 1, 200))
        value = centre * (-2 * centre).exp() + slope * (z - centre)
        largest = largest.max(value.upper())
    CLAIM.certified(
        flint.arb("2.33") ** 2 * largest,
        flint.arb(1),
        {"k": 2.33, "(sigma w)^2": [0, 4]},
        "concave at k = 2.33",
    )


def test_needs_the_value_of_the_same_problem() -> None:
    """With the Hessians of a smaller reward in place of the optimal ones the order fails."""
    instance, smaller = _turned(curvature=(1.5, -1.0)), _turned(curvature=(0.5, -1.0))
    beta, truth = instance.beta(), smaller.solve(instance.beta())
    reference = instance.problem(beta).reference
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, ScalarDiffusion)
    found = evaluate_affine(instance.problem(beta), AffinePolicy.zeros(reference)).value.hessian
    other = torch.stack([truth.hessian(k) for k in range(3)])
    worst = (moduli(instance, beta, other) / moduli(instance, beta, found)).max()
    CLAIM.breaks(float(worst), 1.0, instance, "the optimum of the same problem")


def _curvature(k: float, beta: float, sigma: float, omega: float, x: float) -> float:
    """``sigma^2 (G V_1)''(x) - beta`` by quadrature; by parts,
    ``sigma^2 (G V)'' = E[V(x + sigma W)(W^2 - 1)]``.
    """
    z, weight = np.polynomial.hermite_e.hermegauss(NODES)
    y = x + sigma * z
    control = sigma / beta + k * np.sin(omega * y)
    value = y + sigma * control - beta * control**2 / 2
    return float((weight / weight.sum()) @ (value * (z**2 - 1))) - beta


def _turned(curvature: tuple[float, float]) -> QuadraticInstance:
    """Two dimensions, two steps."""
    return QuadraticInstance(
        levels=(0.3, 0.6, 0.9),
        lam=(0.5, 0.5),
        score=(-0.5, 0.2),
        shift=(0.0, 0.1),
        curvature=curvature,
        slope=(0.3, 0.1),
        rotation=2,
    )
