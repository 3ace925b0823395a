r"""The Jacobian of the optimal control is Lipschitz (17).

Setting: scores with constants :math:`L^0_{s,t}, L^1_{s,t}` and
:math:`\beta_t \ge \sigma_t^2 L^1_{V,t+1}/(1-\lambda_t)`.

Statement: $|∇u^*_t (y) − ∇u^*_t (y')| ≤ L_1 (u_t) |y − y'|$ with $L_1 (u_t) = (L_1 (s_t) + (1 −
λ_t)/g_t · C_d (1 + g_t L_0 (u_t))^2/(σ_t sqrt(a_t)))/λ_t$ and $C_d = bb(E) |W|$

Kind: tight, at every lambda: a convex quadratic reward approaches it as the score bends within an
ever shorter distance, because :math:`u^*` is then the score and a multiple of the mean map, and the
term with :math:`L^1_s` is all that counts (derived here). Without it an affine score leaves the
other term, which is attained only at the ends. A linear reward attains it at the last step, where
every lambda below 1 is admitted and u* - s is constant; and it is approached as lambda tends to 1.
In between the proof adds maxima that occur at different states: for one step, one dimension and an
affine expanding score the largest possible ratio is (derived here)

.. math:: \max_h\, e^{-h^2/2} \Big( \frac{\lambda}{1 - (1-\lambda)\,\mathrm{erf}(h/\sqrt 2)} \Big)^3
    ,

because :math:`u^{*\prime\prime}` is proportional to
:math:`D^3 G r/(1 - \rho\,\mathrm{Hess}\, G r)^3`, and among curvatures in :math:`[-L^1, L^1]` one
jump from :math:`-L^1` to :math:`L^1`, at distance :math:`h \sigma`, has the largest third
derivative for a given smoothed curvature (Neyman-Pearson). That jump is a `Ramp` of width zero.

The same factor with :math:`\sqrt{2/\pi}` in place of :math:`C_d` is sharp in every dimension
(derived here). With :math:`P = (I - \rho\, \mathrm{Hess}\, G r)^{-1}` the second derivative of the
shift is the symmetric trilinear form :math:`\rho\, D^3 G r[P \cdot, P \cdot, P \cdot]`, whose norm
is attained on the diagonal; and for the unit vector u along :math:`P c` there is
:math:`|P c| \le (1 - \rho\, u^\top \mathrm{Hess}\, G r\, u)^{-1}`, so that along u the problem is
that of one dimension.

Source: arXiv 2412.18164v4, Theorem 2.8 (iii), equation 17; sharper constants derived here.

They have the exact mean map, the smoothed curvature and no dimension.

How it is measured: the formula in the paper's variables on random chains; the supremum of the
second derivative of the exact control in score units, at the weights the paper's condition asks,
also in closed form where the score is steep; the largest ratio of a family of one-step problems by
differential evolution, with a solver of its own; in two dimensions sums of two functions along
directions at any angle, over their arguments and over directions.

What would refute it: a second derivative above the constant beyond the error of differencing twice.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.optimize import differential_evolution, minimize_scalar
from scipy.special import erf
from torch import Tensor

from socft import theory
from socft.truth.quadrature import Quadrature
from verify.smoothed_curvature import GRID, Pair, pairs, staircases
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.passes import hold_at_the_optimum
from verify.support.rewards import Slope
from verify.support.score_units import formula
from verify.support.scores import TanhScore
from verify.support.staircase import Staircase
from verify.support.steep import BETWEEN, SteepScore
from verify.support.strategies import Sine, instances, numbers, steep_scores
from verify.support.suprema import TWICE
from verify.theorem_2_8_iii_control_lipschitz import controls, inner

CLAIM = Claim.of_module(__name__, __doc__, "Theorem 2.8 (iii), (17)", topics.THEOREM_2_8_III)
PAPER = theory.Theorem28(theory.PaperBounds())
DIFFERENCES = 1e-4
"""Relative error of a ramp's second derivative by differences over 0.003."""
NARROWEST = 0.02
"""Least width of a ramp, whose bend falls short of a jump's by a share of about its square."""
WITHIN = 0.01
TINY = 1e-300
ARGUMENTS, DIRECTIONS = 40, 60


def measure(truth: Quadrature) -> Tensor:
    """``sup |D^2 u*_t|`` of a one-dimensional problem in score units, shape (T,)."""
    bends = [
        (grid, grid.jacobian(grid.jacobian(u)[:, :, 0])[:, :, 0]) for grid, u in controls(truth)
    ]
    return torch.stack([inner(grid, bend).abs().max() for grid, bend in bends])


def bound(instance: ProductInstance, statement: theory.RegularityStatement) -> Tensor:
    """(17) at the weights of the paper's condition, shape (T,)."""
    return theory.constants_at(instance.chain, instance.beta(), statement).L1u


@given(instances())
def test_holds(instance: ProductInstance) -> None:
    measured = torch.stack([measure(part) for part in instance.parts()]).amax(0)
    floor = TWICE * (1 + float(theory.score_unit(instance.chain).max()))
    hold_at_the_optimum(CLAIM, instance, measured, bound, floor)


@settings(max_examples=40)
@given(steep_scores())
def test_holds_for_steep_scores(step: SteepScore) -> None:
    CLAIM.holds(
        step.bend(), float(bound(step.instance, PAPER)[0]), step.instance, part="steep score"
    )


test_formula = formula(CLAIM, "L1u")


@settings(max_examples=100)
@given(staircases(), numbers(0.05, 0.95))
def test_largest_ratio_of_one_step(staircase: Staircase, lam: float) -> None:
    """Rewards whose curvature is a staircase of six steps or fewer, by closed forms at equal
    states.
    """
    x, L1 = staircase.states(1.0), max(abs(level) for level in staircase.levels)
    third, curvature = (
        (np.abs(staircase.derivative(x, 1.0, 3)), staircase.derivative(x, 1.0, 2))
        if L1 > 0
        else (0 * x, 0 * x)
    )
    scale = (1 - lam) / max(L1, TINY)
    bend = float((scale * third / (1 - scale * curvature) ** 3).max())
    where = {**dataclasses.asdict(staircase), "lam": lam, "sigma": 1.0}
    term = second_term(lam)
    CLAIM.holds(bend, term, where, sharp=largest_ratio(lam) * term, part="one step, affine score")


@settings(max_examples=40)
@given(pairs(), numbers(0.05, 0.95))
def test_largest_ratio_in_two_dimensions(pair: Pair, lam: float) -> None:
    """Sums of two functions along directions at an angle: the form's values over both arguments and
    a circle of directions.
    """
    L1 = max(pair.L1 * (1 + GRID), TINY)
    bend = _form(pair, (1 - lam) / L1)
    term = second_term(lam)
    CLAIM.holds(
        bend,
        term,
        pair.describe() | {"lam": lam},
        sharp=largest_ratio(lam) * term,
        part="one step, two dimensions",
    )


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.8])
def test_best_ratio_found(lam: float) -> None:
    """Differential evolution over ramps finds the jump of the module docstring."""
    box = [(-1.0, 0.9), (NARROWEST, 3.0)]
    found = differential_evolution(
        lambda x: -Ramp(lam, *x).ratio(), box, rng=0, maxiter=25, popsize=8, tol=1e-8
    )
    best = Ramp(lam, *(float(x) for x in found.x))
    ratio = best.ratio(states=8001)
    CLAIM.holds(
        ratio,
        1.0,
        dataclasses.asdict(best),
        sharp=largest_ratio(lam),
        slack=DIFFERENCES,
        part="best of a family",
    )
    assert ratio >= (1 - WITHIN) * largest_ratio(lam)
    text = f"largest ratio found to (17) at λ = {lam}, one step, d = 1, affine score: {ratio:.4f}, "
    CLAIM.finding(
        text + f"by a jump of r'' from −L1 to L1; {largest_ratio(lam):.4f} is the largest possible",
        dataclasses.asdict(best),
    )


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9])
def test_is_attained_by_a_steep_score(lam: float) -> None:
    step = SteepScore(b=1e-5, w=1e5, p=1.0, lam=lam)
    limit = float(bound(step.instance, PAPER)[0])
    CLAIM.attained(step.bend(), limit, step.instance, slack=BETWEEN, part="steep score")


def test_is_attained() -> None:
    """By a linear reward with a nonlinear score, and by a jump of the curvature as lambda tends to
    1.
    """
    instance = ProductInstance(
        levels=(0.4, 0.9), lam=(0.95,), factors=(Factor(TanhScore(0.5, 0.5, 1.5), Slope(1.2)),)
    )
    measured = float(measure(instance.parts()[0])[0])
    CLAIM.attained(
        measured, float(bound(instance, PAPER)[0]), instance, slack=TWICE, part="linear reward"
    )
    jump = Ramp(0.999, -1.0, NARROWEST)
    CLAIM.attained(
        jump.ratio(), 1.0, dataclasses.asdict(jump), slack=DIFFERENCES, part="lambda near 1"
    )


def test_paper_constant_grows_with_the_dimension() -> None:
    """A rotated product has the third derivatives of its coordinates; only the sharper constant
    says so.
    """
    factor = Factor(TanhScore(c=-0.3), Sine(1.0, 1.0))
    line = ProductInstance(levels=(0.4, 0.9), lam=(0.8,), factors=(factor,))
    product = dataclasses.replace(line, size=64, rotation=0)
    ratio = float(bound(product, PAPER)[0] / bound(line, PAPER)[0])
    CLAIM.equals(
        product.suprema().control_bend, line.suprema().control_bend, product, TWICE, "64 dimensions"
    )
    CLAIM.finding(
        f"d = 64 instead of 1: (17) grows {ratio:.3g}-fold where the control's bend is the same",
        product,
    )


def test_needs_the_condition_on_beta() -> None:
    """With a weight for a fifth of lambda a jump bends the control more than the bound for
    lambda.
    """
    weak = Ramp(0.1, -1.0, NARROWEST)
    CLAIM.breaks(
        weak.bend(),
        second_term(0.5),
        {**dataclasses.asdict(weak), "claimed lam": 0.5},
        "condition on beta",
    )


def test_needs_the_bend_of_the_score() -> None:
    """With L1s = 0 for a nonlinear score the bound fails."""
    instance = ProductInstance(
        levels=(0.4, 0.9), lam=(0.95,), factors=(Factor(TanhScore(0.5, 0.5, 3.0), Slope(1.2)),)
    )
    chain = theory.ChainConstants.of(instance.schedule, instance.constants.L0, 0.0, instance.reward)
    claimed = float(theory.paper_constants(chain, instance.lams).L1u[0])
    CLAIM.breaks(
        float(measure(instance.parts()[0])[0]),
        claimed,
        instance,
        "Lipschitz constant of the score's Jacobian",
    )


@dataclasses.dataclass(frozen=True)
class Ramp:
    """One step with the score ``+L0s y`` and a reward whose curvature rises from ``low L1`` to L1
    over ``2 width sigma``.

    In units of sigma; beta is ``sigma^2 L1 / (1 - lam)``, and states are measured by the
    pre-trained mean x.
    """

    lam: float
    low: float
    width: float

    def bend(self, states: int = 4001) -> float:
        """``sup |delta''|`` by differences of the inverse of ``z -> x = z - rho (G r)'(z)``, where
        ``z = x + delta(x)``.
        """
        z = np.linspace(-6, 6, states)
        x, h = z - (1 - self.lam) * self._slope(z), z[1] - z[0]
        first, second = (x[2:] - x[:-2]) / (2 * h), (x[2:] - 2 * x[1:-1] + x[:-2]) / h**2
        return float(np.abs(second / first**3).max())

    def ratio(self, states: int = 4001) -> float:
        """To the second term of (17), as the first is zero."""
        return self.bend(states) / second_term(self.lam)

    def _slope(self, z: np.ndarray) -> np.ndarray:
        """``(G r)' / L1``: the curvature is ``middle + half clip(x / width, -1, 1)``."""
        middle, half = (1 + self.low) / 2, (1 - self.low) / 2
        return middle * z + half * (_bowl(z + self.width) - _bowl(z - self.width)) / (
            2 * self.width
        )


def _bowl(z: np.ndarray) -> np.ndarray:
    """``E (z + W) |z + W| / 2``."""
    return (z**2 + 1) * erf(z / math.sqrt(2)) / 2 + z * theory.SHARP * np.exp(-(z**2) / 2) / 2


def _form(pair: Pair, rho: float) -> float:
    """``sup rho D^3 G V [P c, P c, P c]`` over unit vectors c, with P the inverse of
    ``I - rho Hess G V``.
    """
    turn = np.linspace(0, np.pi, DIRECTIONS, endpoint=False)
    b, c = (
        np.array([math.cos(pair.angle), math.sin(pair.angle)]),
        np.stack([np.cos(turn), np.sin(turn)]),
    )
    fields = []
    for function in (pair.first, pair.second):
        x = function.states(1.0)[:: len(function.states(1.0)) // ARGUMENTS]
        fields.append([function.derivative(x, 1.0, order) for order in (2, 3)])
    (h, third), (k, other) = fields
    H = rho * (
        h[:, None, None, None] * np.diag([1.0, 0.0]) + k[None, :, None, None] * np.outer(b, b)
    )
    moved = np.linalg.solve(np.eye(2) - H, np.broadcast_to(c, (*H.shape[:2], *c.shape)))
    form = (
        third[:, None, None] * moved[:, :, 0] ** 3
        + other[None, :, None] * np.einsum("i,xyit->xyt", b, moved) ** 3
    )
    return float(rho * np.abs(form).max())


def second_term(lam: float) -> float:
    """(17) for the shift of one step with an affine score, per slope of the mean map squared and in
    units of sigma.
    """
    return theory.shift_smoothness(
        1.0, 0.0, theory.PaperBounds().third_derivative_ratio(1.0, 1.0, 1.0, 1), lam
    )


def largest_ratio(lam: float) -> float:
    """The maximum over h of the module docstring."""
    found = minimize_scalar(
        lambda h: -_jump_ratio(lam, h), bounds=(0, 6), method="bounded", options={"xatol": 1e-10}
    )
    return -float(found.fun)


def _jump_ratio(lam: float, h: float) -> float:
    return math.exp(-(h**2) / 2) * (lam / (1 - (1 - lam) * math.erf(h / math.sqrt(2)))) ** 3
