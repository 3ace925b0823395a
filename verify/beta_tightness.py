r"""How much larger than necessary the KL weight is that the theory asks for.

Setting: one constant weight beta for all T steps, under which the inner loop of PI-FT contracts by
:math:`1 - \lambda` at every step.

Statement: the least constant $β$ with $β ≥ σ_t^2 L_1 (V_(t+1))/(1 − λ)$ for all $t$ is at least the
least constant $β$ with $max_t σ_t^2 sup |∇^2 G V_(t+1)|/β ≤ 1 − λ$

The first is *sufficient*, with the paper's constants or the sharper ones. The second is
*necessary*, with the exact value functions, which depend on beta.

Kind: tight. For a convex quadratic reward and scores :math:`s(y) = +L^{(0)}_s y` the paper's
condition is necessary for every T. Otherwise the gap grows with T: the recursion (15) adds up worst
cases that do not meet.

Source: arXiv 2412.18164v4, condition on β of Theorem 2.8; necessary weight and sharper constants
derived here.

The gap is derived here too.

How it is measured: by dynamic programming, with beta found by bisection, for fixed families of
problems and T = 1 to 12. The certificate brackets the necessary weight of the quadratic family in
ball arithmetic.

What would refute it: a necessary weight above a sufficient one.
"""

from __future__ import annotations

import math

import flint
import pytest
import torch
from scipy.optimize import root_scalar

from socft import theory
from socft.checks import InvalidProblem
from socft.truth.backward import solve_backward
from socft.truth.least_beta import measured_beta
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.scores import MixtureScore, TanhScore
from verify.support.strategies import Sine, Softplus
from verify.support.suprema import grids_for

CLAIM = Claim.of_module(__name__, __doc__, "Condition on the KL weight", topics.WEIGHT)
LAM = 1e-3
"""Design constant: nearly where the map stops contracting."""
SEARCHED = 1e-4
"""Relative error of the bisection on beta, and of the curvature by quadrature."""
WIDTH = math.log(16)
"""First width of the bracket on log(beta) below the sharper sufficient weight; it grows until the
necessary one is inside.
"""
FAMILIES = {
    "tanh score, sine reward": Factor(TanhScore(c=0.8, b=0.4), Sine(1.0, 1.5, 0.3)),
    "mixture score, sine reward": Factor(
        MixtureScore((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5)), Sine(1.0, 1.5, 0.3)
    ),
    "affine score, softplus reward": Factor(TanhScore(c=0.2), Softplus(1.0, 2.0)),
}
STEPS = (1, 2, 4, 12)


def measure(instance: ProductInstance, lam: float) -> float:
    """The necessary weight."""
    problem = instance.problem(1.0)
    grids, variance = grids_for(problem), instance.schedule.sigma.square()

    def excess(log_beta: float) -> float:
        try:
            curvature = solve_backward(instance.problem(math.exp(log_beta)), grids).curvature
        except InvalidProblem:
            return 100.0
        return (
            math.log(
                float((variance * torch.tensor(curvature, dtype=torch.float64)).max()) / (1 - lam)
            )
            - log_beta
        )

    high = math.log(bound(instance, lam, theory.SharpBounds()))
    low = high - WIDTH
    while excess(low) < 0:
        low -= WIDTH
    return math.exp(
        root_scalar(
            excess, bracket=(low, high + SEARCHED), method="brentq", xtol=SEARCHED / 10
        ).root
    )


def bound(
    instance: ProductInstance | QuadraticInstance, lam: float, bounds: theory.Bounds
) -> float:
    """The weight that Theorem 2.8's condition asks for."""
    return float(theory.constant_beta(instance.chain, lam, theory.Theorem28(bounds)).beta[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_holds(family: str) -> None:
    gaps = {}
    for steps in STEPS:
        instance = member(FAMILIES[family], steps)
        necessary = measure(instance, LAM)
        paper, sharp, exact = (
            bound(instance, LAM, b)
            for b in (theory.PaperBounds(), theory.SharpBounds(), instance.sharp)
        )
        where = {
            "family": family,
            "instance": instance.describe(),
            "paper": paper,
            "sharp": sharp,
            "exact means": exact,
        }
        CLAIM.holds(necessary, paper, where, sharp=exact, slack=SEARCHED)
        gaps[steps] = [round(x / necessary, 2) for x in (paper, sharp, exact)]
    CLAIM.finding(
        f"{family}: sufficient over necessary β (paper, sharper, with exact mean maps) by T:"
        f" {gaps}",
        {"lam": LAM},
    )


def test_necessary_weight_is_the_one_of_the_package() -> None:
    """`measured_beta` searches on its own grids."""
    instance = member(FAMILIES["tanh score, sine reward"], 2)
    own, other = measure(instance, LAM), float(measured_beta(instance.problem(1.0), LAM).beta[0])
    CLAIM.equals(own, other, instance, 10 * SEARCHED * own, "measured_beta")


@pytest.mark.parametrize("steps", [1, 4, 12])
def test_is_attained(steps: int) -> None:
    """A convex quadratic reward: necessary by Riccati's recursion in ball arithmetic, a relative
    `SEARCHED` below sufficient.
    """
    instance, lam = _quadratic(steps), 0.1
    sufficient = bound(instance, lam, theory.PaperBounds())
    low, high = (
        _largest_rate(instance, sufficient * (1 - SEARCHED)),
        _largest_rate(instance, sufficient * (1 + SEARCHED)),
    )
    where = {"instance": instance.describe(), "beta": sufficient, "lam": lam}
    CLAIM.certified(high, flint.arb(1 - lam), where, "sufficient")
    CLAIM.certified(flint.arb(1 - lam), low, where, "necessary")
    CLAIM.attained(sufficient * (1 - SEARCHED), sufficient, where)


def test_one_step_is_closed_form() -> None:
    """``sigma^2 |P| / (1 - lam)``, whatever the sign of P."""
    for curvature in (1.5, -1.5):
        instance = _quadratic(1, curvature)
        necessary = float(instance.schedule.sigma[0] ** 2) * abs(curvature) / (1 - LAM)
        CLAIM.attained(
            necessary, bound(instance, LAM, theory.PaperBounds()), instance, part="one step"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_needs_the_necessary_weight(family: str) -> None:
    """A tenth below the necessary weight some inner map no longer contracts by ``1 - lam``, so that
    no theory could admit it.
    """
    instance = member(FAMILIES[family], 2)
    beta = 0.9 * measure(instance, 0.3)
    problem = instance.problem(beta)
    curvature = torch.tensor(
        solve_backward(problem, grids_for(problem)).curvature, dtype=torch.float64
    )
    rate = float((instance.schedule.sigma.square() * curvature).max()) / beta
    CLAIM.breaks(
        rate,
        0.7,
        {"family": family, "instance": instance.describe(), "beta": beta, "lam": 0.3},
        "necessary weight",
    )


def test_needs_convexity_to_be_attained() -> None:
    """For a concave quadratic reward the paper's weight is more than necessary: curvature then
    shrinks from step to step.
    """
    instance, lam = _quadratic(4, -1.5), 0.1
    sufficient = bound(instance, lam, theory.PaperBounds())

    def excess(beta: float) -> float:
        return float(_largest_rate(instance, beta)) - (1 - lam)

    necessary = root_scalar(
        excess, bracket=(sufficient / 16, sufficient), method="brentq", rtol=SEARCHED
    ).root
    CLAIM.holds(necessary, sufficient, instance, slack=SEARCHED, part="concave quadratic reward")
    CLAIM.finding(
        "concave quadratic reward, T = 4: sufficient over necessary β is"
        f" {sufficient / necessary:.3f}",
        instance,
    )


def member(factor: Factor, steps: int) -> ProductInstance:
    """The member of a family with T steps, from signal level 0.3 to 0.95 in equal ratios."""
    levels = tuple(0.3 * (0.95 / 0.3) ** (t / steps) for t in range(steps + 1))
    return ProductInstance(levels=levels, lam=(0.5,) * steps, factors=(factor,))


def _quadratic(steps: int, curvature: float = 1.5) -> QuadraticInstance:
    levels = tuple(0.3 * (0.95 / 0.3) ** (t / steps) for t in range(steps + 1))
    return QuadraticInstance(
        levels=levels,
        lam=(0.5,) * steps,
        score=(0.2,),
        shift=(0.0,),
        curvature=(curvature,),
        slope=(0.0,),
    )


def _largest_rate(instance: QuadraticInstance, beta: float) -> flint.arb:
    """``max_t sigma_t^2 |P_{t+1}| / beta``, P by Riccati's recursion."""
    P, largest = flint.arb(instance.curvature[0]), flint.arb(0)
    for sigma, slope in zip(
        instance.schedule.sigma.tolist()[::-1], instance.mean_L0.tolist()[::-1], strict=True
    ):
        rate = flint.arb(sigma) ** 2 * P / beta
        largest = largest.max(abs(rate))
        P = flint.arb(slope) ** 2 * P / (1 - rate)
    return largest
