r"""With a constant KL weight the continuous problem is linear in disguise, and its optimal law is
the exponential tilt.

Setting: the continuous problem of section 4.2 with the exact scores of a law p and constant beta.

Statement: $V = β log bb(E) [exp(r(Y_1)/β) | Y_τ]$, and if the chain is memoryless, the law of $Y_1$
is $p exp(r/β)/Z$

The expectation is under the pre-trained process; memoryless means that :math:`Y_0` and :math:`Y_1`
are independent.

Kind: limit (T to infinity) for the law, equality for the value.

Source: arXiv 2412.18164v4, section 4.2; arXiv 2403.06279.

Also Uehara et al., arXiv 2402.15194.

How it is measured: symbolically, :math:`V = \beta \log \phi` turns (79) into the linear backward
equation of :math:`\phi`. Numerically, `TiltedMixture.value` against the conditional expectation by
the trapezoidal rule: given the state at level a, the sample has the density
:math:`\propto p(x_0) N(y; \sqrt a\, x_0, 1 - a)`. For the law, the discrete optimum of a Gaussian
with a quadratic reward on a schedule that forgets its start (:math:`q = 16`) against the tilt's
mean and deviation; their distance falls like 1/T.

What would refute it: a residual above `QUADRATURE`, or laws that do not approach each other in
proportion to 1/T.
"""

from __future__ import annotations

import math

import sympy
import torch
from hypothesis import given, settings
from torch import Tensor

from socft.density import Gaussian, GaussianMixture, affine_reference
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import variance_preserving
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.mixture import TiltedMixture
from verify.support import topics
from verify.support.claims import Claim
from verify.support.scores import MixtureScore
from verify.support.strategies import mixture_scores, numbers

CLAIM = Claim.of_module(__name__, __doc__, "Cole-Hopf", topics.SECTION_4_2)
QUADRATURE = 1e-11
"""Relative to 1 + |V|: the trapezoidal rule with `NODES` nodes errs by less than rounding for
Gaussians of width 0.1 or more.
"""
NODES, WIDTH = 8001, 20.0
FORGETTING, REMEMBERING = 16.0, 1.0
"""Rates q: the correlation of Y_0 and Y_1 is of order exp(-q / 2), 3e-4 and 0.6."""
STEPS = 1024
NEXT = 0.02
"""Share of the order 1/T^2 in the distance of the laws: q / T = 1/64, rounded up."""
MEMORY = 1e-6
"""Squared correlation, about exp(-q): what the distance tends to in place of zero."""


def measure(score: MixtureScore, reward: Quadratic, beta: float, level: float, y: Tensor) -> Tensor:
    """``beta log E[exp(r / beta) | y]`` by the trapezoidal rule, shape (batch,)."""
    x = torch.linspace(-WIDTH, WIDTH, NODES, dtype=torch.float64)
    each = [
        math.log(w) - (x - m) ** 2 / (2 * v) - math.log(v) / 2
        for w, m, v in zip(score.weights, score.means, score.variances, strict=True)
    ]
    joint = torch.logsumexp(torch.stack(each), 0) - (y - math.sqrt(level) * x) ** 2 / (
        2 * (1 - level)
    )
    gained = reward(x[:, None]) / beta
    return beta * (torch.logsumexp(joint + gained, 1) - torch.logsumexp(joint, 1))


@settings(max_examples=60)
@given(mixture_scores(), numbers(-2, 0.2), numbers(-1, 1), numbers(0.5, 3), numbers(0.05, 0.95))
def test_holds(score: MixtureScore, p: float, slope: float, beta: float, level: float) -> None:
    """The value of random mixtures."""
    reward = _reward(p, slope)
    truth = TiltedMixture(
        GaussianMixture(score.weights, score.means, score.variances), reward, beta
    )
    y = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    value = truth.value(level, y)
    where = {
        "weights": score.weights,
        "means": score.means,
        "variances": score.variances,
        "p": p,
        "q": slope,
        "beta": beta,
    }
    scale = 1 + float(value.abs().max())
    CLAIM.equals(
        (measure(score, reward, beta, level, y) - value) / scale,
        0.0,
        {**where, "level": level},
        QUADRATURE,
        "value",
    )


def test_holds_symbolically() -> None:
    """The nonlinear term of (79) cancels against that of the second derivative."""
    left = _transformed(sympy.Symbol("beta", positive=True))
    CLAIM.equals(
        float(left != 0), 0.0, {"symbolic": True, "left over": str(left)}, QUADRATURE, "symbolic"
    )


def test_law_tends_to_the_tilt() -> None:
    """Mean and standard deviation of the discrete optimum, at T and 2 T."""
    coarse, fine = (_distance(T, FORGETTING) for T in (STEPS, 2 * STEPS))
    where = {"q": FORGETTING, "T": [STEPS, 2 * STEPS], "distances": [coarse, fine]}
    CLAIM.holds(fine, coarse / 2, where, slack=NEXT, floor=MEMORY, part="law")
    CLAIM.equals(2 * fine / coarse, 1.0, where, NEXT, "order of the law's distance")


def test_needs_a_memoryless_schedule() -> None:
    """With q = 1 more steps do not bring the law to the tilt."""
    coarse, fine = (_distance(T, REMEMBERING) for T in (STEPS, 2 * STEPS))
    where = {"q": REMEMBERING, "T": [STEPS, 2 * STEPS], "distances": [coarse, fine]}
    CLAIM.breaks(fine, coarse / 2 * (1 + NEXT) + MEMORY, where, "memoryless")


def test_needs_a_constant_weight() -> None:
    """A weight that falls from 8 to 1 leaves ``beta' log phi`` in the equation, and the law is the
    tilt at none of its values.
    """
    tau = sympy.Symbol("tau", real=True)
    left = _transformed(8 - 7 * tau)
    assert left != 0
    law = _final_law(STEPS, 4.0, torch.linspace(8, 1, STEPS, dtype=torch.float64))
    nearest = min(
        _from_tilt(law, beta) for beta in torch.linspace(1, 8, 701, dtype=torch.float64).tolist()
    )
    constant = _from_tilt(_final_law(STEPS, 4.0, 1.0), 1.0)
    where = {
        "q": 4.0,
        "T": STEPS,
        "beta": "8 - 7 tau",
        "left over": str(left),
        "at constant beta": constant,
    }
    CLAIM.breaks(nearest, 2 * constant, where, "constant beta: distance to the nearest tilt")


def _transformed(beta: sympy.Expr) -> sympy.Expr:
    """(79) at ``V = beta log phi``, with phi_tau from the linear backward equation."""
    tau, y, s = sympy.symbols("tau y s", real=True)
    q = sympy.Symbol("q", positive=True)
    phi = sympy.Function("phi", positive=True)(tau, y)
    value, drift = beta * sympy.log(phi), q * (y / 2 + s)
    equation = (
        value.diff(tau)
        + drift * value.diff(y)
        + q / 2 * value.diff(y, 2)
        + q / (2 * beta) * value.diff(y) ** 2
    )
    return sympy.simplify(
        equation.subs(phi.diff(tau), -drift * phi.diff(y) - q / 2 * phi.diff(y, 2))
    )


def _distance(steps: int, q: float) -> float:
    """Between the final law of the discrete optimum with beta = 1 and the tilt."""
    return _from_tilt(_final_law(steps, q, 1.0), 1.0)


def _final_law(steps: int, q: float, beta: Tensor | float) -> Gaussian:
    """Of the discrete optimum for N(0.5, 0.6) and ``r(x) = -x^2 / 2 + x``."""
    reference = affine_reference(Gaussian([0.5], [[0.6]]), variance_preserving(steps, q))
    return LinearQuadratic(ControlProblem(reference, _reward(-1.0, 1.0), beta)).final_law


def _from_tilt(law: Gaussian, beta: float) -> float:
    """Distance in mean and deviation from the tilt ``N(0.5, 0.6) exp(r / beta)``, by completing the
    square.
    """
    precision = 1 / 0.6 + 1 / beta
    centre = (0.5 / 0.6 + 1 / beta) / precision
    return math.hypot(
        float(law.mean[0]) - centre, math.sqrt(float(law.covariance[0, 0])) - precision**-0.5
    )


def _reward(p: float, slope: float) -> Quadratic:
    return Quadratic(
        torch.tensor([[p]], dtype=torch.float64), torch.tensor([slope], dtype=torch.float64)
    )
