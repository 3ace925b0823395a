r"""Bellman's bracket is strongly concave in the control (19).

Setting: :math:`Q_t(y, u) = E V_{t+1}((y + g u)/\sqrt a + \sigma W) - \beta g^2 |u - s(y)|^2/(2 a
\sigma^2)` with :math:`\beta_t \ge \sigma_t^2 L^1_{V,t+1}/(1-\lambda_t)`.

Statement: $−op("Hess")_u Q_t (y, ·) ≥ (g_t^2/a_t) (β_t/σ_t^2 − L_1 (V_(t+1))) I > 0$

Kind: tight. A convex quadratic reward attains it, and with an expanding affine score does so at
every step.

Source: arXiv 2412.18164v4, equation 19; sharper constant derived here.

The sharper constant has the smoothed curvature K in place of L1V.

How it is measured: the largest eigenvalue of :math:`\mathrm{Hess}\, G V_{t+1}` over the states,
from the exact solver; and by the definition, with values only, from an own quadrature:
:math:`2 Q(\bar u) - Q(u) - Q(u') \ge \mu |u - u'|^2/4` at :math:`\bar u = (u + u')/2`. Moduli are
compared by their reciprocals, so that "measured" is at most "bound".

What would refute it: a modulus below the stated one.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import flint
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.truth.bellman import BellmanStep
from socft.truth.quadrature import Quadrature
from verify.operator_view import Bracket, states
from verify.support import topics
from verify.support.balls import ball, below_one, cells
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.quadratics import steep_quadratic
from verify.support.rewards import Parabola
from verify.support.scores import TanhScore
from verify.support.strategies import instances, line_instances, numbers, quadratic_instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Strong concavity (19)", topics.THEOREM_2_8_II)

CELLS = 24
"""Cells per axis of the certificate."""
EPSILON = 1e-14
"""50 float64 roundings per step."""
VALUES = 1e-11
"""Relative error of a value of the bracket, and of a second difference of three."""


def measure(truth: Quadrature) -> Tensor:
    """Least modulus of concavity of a one-dimensional problem over the states, times
    ``a sigma^2 / g^2``, shape (T,).
    """
    problem, found = truth.problem, []
    for t in range(problem.steps):
        step = BellmanStep.build(problem, t, truth.grids[t], truth.values[t + 1])
        hessian = step.smooth.hessian_at_nodes[:, 0, 0]
        margin = len(hessian) // 16
        found.append(
            float(problem.beta[t])
            - float(step.rho) * float(problem.beta[t]) * float(hessian[margin:-margin].max())
        )
    return torch.tensor(found, dtype=torch.float64)


def bound(
    instance: ProductInstance | QuadraticInstance,
    beta: Tensor,
    statement: theory.RegularityStatement,
) -> Tensor:
    """(19), times ``a sigma^2 / g^2``, shape (T,)."""
    chain = instance.chain
    modulus = theory.concavity_modulus(
        chain, beta, theory.constants_at(chain, beta, statement).curvature
    )
    return modulus * chain.alpha * chain.sigma.square() / chain.score_weight.square()


@settings(max_examples=18)
@given(instances(steps=6))
def test_holds(instance: ProductInstance) -> None:
    beta = instance.beta()
    measured = torch.stack([measure(part) for part in instance.parts()]).amin(0)
    paper, sharp = (
        bound(instance, beta, theory.Theorem28(x)) for x in (theory.PaperBounds(), instance.sharp)
    )
    CLAIM.holds(1 / measured, 1 / paper, instance, sharp=1 / sharp, slack=ACCURACY)


@given(quadratic_instances(steps=5))
def test_holds_in_several_dimensions(instance: QuadraticInstance) -> None:
    beta, truth = instance.beta(), instance.solve()
    largest = [
        float(torch.linalg.eigvalsh(truth.hessian(t + 1))[-1]) for t in range(instance.steps)
    ]
    measured = beta - instance.schedule.sigma.square() * torch.tensor(largest, dtype=torch.float64)
    paper, sharp = (
        bound(instance, beta, theory.Theorem28(x)) for x in (theory.PaperBounds(), instance.sharp)
    )
    CLAIM.holds(
        1 / measured,
        1 / paper,
        instance,
        sharp=1 / sharp,
        slack=rounding(instance),
        part="quadratic",
    )


@settings(max_examples=12)
@given(line_instances(steps=6), st.integers(0, 5), numbers(-1, 1), numbers(0.05, 1))
def test_holds_by_definition(
    instance: ProductInstance, step: int, centre: float, size: float
) -> None:
    """Second differences of Q over chords up to twice as long as the control is large."""
    t, beta = step % instance.steps, instance.beta()
    bracket = Bracket(instance, instance.parts()[0], t, float(beta[t]))
    defect, scale, half = _second_difference(bracket, states(instance.parts()[0], t), centre, size)
    chain = instance.chain
    price = chain.score_weight.square() / (chain.alpha * chain.sigma.square())
    lower, sharper = (
        bound(instance, beta, theory.Theorem28(x))[t] * price[t] * half**2
        for x in (theory.PaperBounds(), instance.sharp)
    )
    where = {"instance": instance.describe(), "step": t, "centre": centre, "size": size}
    CLAIM.holds(
        1 / defect,
        1 / lower,
        where,
        sharp=1 / sharper,
        slack=VALUES * scale / float(lower),
        part="chords",
    )


def test_is_attained() -> None:
    """At every step of a convex quadratic problem with an expanding score, by eigenvalues and by
    chords.
    """
    instance = steep_quadratic((0.5,) * 4)
    beta, truth = instance.beta(), instance.parts()[0]
    for least, modulus in zip(
        measure(truth).tolist(), bound(instance, beta, OPTIMUM).tolist(), strict=True
    ):
        CLAIM.attained(1 / least, 1 / modulus, instance, slack=ACCURACY, part="eigenvalues")
    bracket = Bracket(instance, truth, 3, float(beta[3]))
    y = torch.zeros(1, dtype=torch.float64)
    u = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    low, middle, high = bracket(y[:, None].expand_as(u), u)[0].tolist()
    s = instance.schedule
    modulus = float(
        bound(instance, beta, OPTIMUM)[3]
        * s.score_weight[3].square()
        / (s.alpha[3] * s.sigma[3].square())
    )
    CLAIM.attained(
        1 / (2 * middle - low - high), 1 / modulus, instance, slack=ACCURACY, part="chords"
    )


def test_needs_the_condition_on_beta() -> None:
    """With a tenth less beta than ``sigma^2 L1V`` the bracket of a convex quadratic is convex, by
    values.
    """
    instance = steep_quadratic((0.5,))
    beta = 0.9 * float(instance.schedule.sigma[0].square()) * 1.5
    bracket = Bracket(instance, instance.parts()[0], 0, beta)
    u = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    low, middle, high = bracket(torch.zeros_like(u), u)[0].tolist()
    CLAIM.breaks(
        low + high - 2 * middle,
        0.0,
        {"instance": instance.describe(), "beta": beta},
        "condition on beta",
    )


def test_concave_rewards_satisfy_it_for_every_beta() -> None:
    """The bracket is strongly concave for every beta > 0."""
    beta = torch.full((1,), 1e-3, dtype=torch.float64)
    instance = ProductInstance(
        levels=(0.4, 0.95), lam=(0.5,), factors=(Factor(TanhScore(c=-0.2), Parabola(-1.5, 0.5)),)
    )
    measured = 1e-3 + float(instance.schedule.sigma[0].square()) * 1.5
    truth = Quadrature(instance.problem(beta))
    CLAIM.equals(measure(truth), [measured], instance, ACCURACY, "concave reward")
    CLAIM.finding(
        "only the largest eigenvalue of Hess GV counts in (19): concave rewards satisfy it for"
        " every β > 0",
        instance,
    )


def test_certified() -> None:
    """Quadratic rewards of either sign and sine rewards, by the ratio p of the largest curvature of
    G V to its bound L1V.

    Where beta is the least weight for lambda, the stated modulus over the actual one is
    ``lam / (1 - (1 - lam) p)``. For sines p is how they fade.
    """
    largest, top = flint.arb(0), 1 - Fraction(1, 2**20)
    lams = [ball(*cell) for cell in cells(Fraction(1, 20), Fraction(19, 20), CELLS)]
    for lam, p in itertools.product(lams, cells(Fraction(-1), top, CELLS)):
        largest = largest.max(_share(lam, ball(*p)).upper())
    where = {"lam": [0.05, 0.95], "p": [-1, float(top)]}
    CLAIM.certified(largest, flint.arb(1), where, "quadratic rewards")
    worst = flint.arb(0)
    for lam in lams:
        worst = worst.max(
            below_one(
                lambda z, lam=lam: _share(lam, (-z * z / 2).exp()), Fraction(1, 16), Fraction(8)
            )
        )
    CLAIM.certified(
        worst, flint.arb(1), {"lam": [0.05, 0.95], "frequency sigma": [1 / 16, 8]}, "sine rewards"
    )


def _share(lam: flint.arb, p: flint.arb) -> flint.arb:
    """``lam / (1 - (1 - lam) p) = 1 / (1 + (1 / lam - 1)(1 - p))`` from above; a product of balls
    would reach 0.
    """
    return 1 / (1 + (1 / lam - 1).lower() * (1 - p).lower())


OPTIMUM = theory.Theorem28(theory.PaperBounds())


def rounding(instance: QuadraticInstance) -> float:
    """Relative rounding error of closed forms and bounds: every step divides by
    ``1 - rho P >= lam``, which magnifies it.
    """
    return EPSILON / float(instance.lams.prod())


def _second_difference(
    bracket: Bracket, y: Tensor, centre: float, size: float
) -> tuple[Tensor, float, float]:
    """``2 Q(c) - Q(c - h) - Q(c + h)`` at the states, the size of the values, and h."""
    width = bracket.width()
    middle = bracket.score(y)[:, None] + centre * width
    u = middle + size * width * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    values = bracket(y[:, None].expand_as(u), u)
    return (
        2 * values[:, 1] - values[:, 0] - values[:, 2],
        1 + float(values.abs().max()),
        size * width,
    )
