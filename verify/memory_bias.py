r"""What the optimum misses of the tilted law because it cannot choose where it starts.

Setting: a linear-quadratic problem, constant beta; the Gibbs value of a start,
:math:`G(y) = \beta \log E[e^{r(Y_T)/\beta} \mid Y_0 = y]`, which ``tilt_gap`` compares with V_0.

Statement: $β log bb(E) exp(r(Y_T)/β) − bb(E) β log bb(E) [exp(r(Y_T)/β) | Y_0] ≥ 0$, which is $0$
if the chain is memoryless, and otherwise does not vanish as $T → ∞$

On a schedule with memory it tends to :math:`\beta \log E e^{V(0, Y_0)/\beta} - E V(0, Y_0) > 0`
with the continuous V.

Kind: equality (with the closed form), and a limit.

Source: derived here; arXiv 2409.08861, section 4.

The inequality is Jensen's; that section describes the schedule's bias.

How it is measured: `LinearQuadratic.memory_gap` against the same difference from the Gaussian laws
of Y_T, given Y_0 and not; the mean of the quadratic G from three of its values per direction,
exactly. The limit by Gauss-Hermite quadrature of `TiltedMixture.value`; that it stays away from
zero also in ball arithmetic.

What would refute it: a negative difference, a residual above `ROUNDING`, or a difference that
vanishes with T at q = 1.
"""

from __future__ import annotations

import math

import flint
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from socft.density import Gaussian, affine_reference
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference
from socft.reward import Quadratic, as_quadratic
from socft.schedule import variance_preserving
from socft.truth.affine_policy import evaluate_affine
from socft.truth.grid import tensor_rule
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.mixture import TiltedMixture
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.strategies import numbers, quadratic_instances
from verify.tilt_gap import gibbs_value, log_moment

CLAIM = Claim.of_module(__name__, __doc__, "Memory gap", topics.SECTION_4_2)
ROUNDING = 1e-11
"""Relative to beta and the values that are subtracted, over the squared distance of the tilt from
one not integrable.
"""
FORGETTING, REMEMBERING = 40.0, 1.0
FORGOTTEN = 1e-12
"""At q = 40 the squared correlation of Y_0 and Y_T is exp(-40)."""
NEXT = 0.05
"""Share of the next order in the distance to the limit, at T = 256."""
PRECISION = 300


def measure(problem: ControlProblem) -> float:
    """The difference, from laws of Y_T; G is quadratic, so its mean under N(m, C) is exact from
    central differences.
    """
    reference, form, beta = problem.reference, as_quadratic(problem.reward), problem.beta[0]
    assert isinstance(reference, AffineReference)
    law = evaluate_affine(problem, AffinePolicy.zeros(reference)).final_law
    total = (
        beta * log_moment(form.P / beta, form.linear / beta, law.mean[None], law.covariance)[0]
        + form.c
    )
    centre, steps = reference.initial_mean[None], reference.initial_factor.T
    curved = (
        gibbs_value(problem, centre + steps)
        + gibbs_value(problem, centre - steps)
        - 2 * gibbs_value(problem, centre)
    )
    return float(total - gibbs_value(problem, centre)[0] - curved.sum() / 2)


@settings(max_examples=40)
@given(quadratic_instances(), numbers(1, 3))
def test_holds(instance: QuadraticInstance, more: float) -> None:
    """Equality with the closed form, and the sign, where the tilt of the final law is
    integrable.
    """
    truth = instance.solve(float(instance.beta().max()) * more)
    gap = truth.memory_gap()
    room = _room(truth.problem)
    assume(math.isfinite(gap) and room > 0)
    where = {"instance": instance.describe(), "more": more, "room": room}
    scale = (
        1
        + gap
        + float(truth.problem.beta[0])
        + float(gibbs_value(truth.problem, torch.zeros(1, instance.dim, dtype=torch.float64)).abs())
    )
    tolerance = ROUNDING / min(room, 1.0) ** 2
    CLAIM.equals((measure(truth.problem) - gap) / scale, 0.0, where, tolerance, "closed form")
    CLAIM.holds(
        max(-measure(truth.problem), 0.0), 0.0, where, floor=tolerance * scale, part="non-negative"
    )


def test_vanishes_without_memory() -> None:
    """N(0, 1) data with q = 40: every step forgets a little, the whole chain everything."""
    truth = _problem(160, FORGETTING)
    where = {"q": FORGETTING, "T": 160, "memory": variance_preserving(160, FORGETTING).memory()}
    CLAIM.equals(
        [truth.memory_gap(), measure(truth.problem)], [0.0, 0.0], where, FORGOTTEN, "memoryless"
    )


def test_does_not_vanish_with_T() -> None:
    """At q = 1 it tends to the continuous one, which is positive; the kernel gap halves
    meanwhile.
    """
    limit, gaps = _continuous(), [_problem(T, REMEMBERING).memory_gap() for T in (256, 512)]
    kernel = [float(_problem(T, REMEMBERING).kernel_gap().sum()) for T in (256, 512)]
    where = {"q": REMEMBERING, "T": [256, 512], "gaps": gaps, "kernel gaps": kernel, "limit": limit}
    CLAIM.holds(abs(gaps[1] - limit), abs(gaps[0] - limit) / 2, where, slack=NEXT, part="limit")
    CLAIM.finding(
        f"with q = 1 the memory bias tends to {limit:.4f} while the kernel gap at T = 512 is"
        f" {kernel[1]:.1e}",
        where,
    )


def test_needs_independence() -> None:
    """On the schedule with memory it is not zero."""
    CLAIM.breaks(
        _problem(512, REMEMBERING).memory_gap(),
        FORGOTTEN,
        {"q": REMEMBERING, "T": 512},
        "memoryless schedule",
    )


def test_certified() -> None:
    """At q = 1 it is above 0.01 for N(0, 1) data, r = -x^2 / 2, beta = 1 and every T = 16 .. 1024,
    in balls.

    With ``E = P_0`` the difference is ``(-log(1 - E) - E) / 2``; the mean maps multiply by sqrt(a).
    """
    flint.ctx.prec = PRECISION
    for T in (16, 32, 64, 128, 256, 512, 1024):
        variance, P = flint.arb(flint.fmpq(1, T)), flint.arb(-1)
        for _ in range(T):
            P = (1 - variance) * P / (1 - variance * P)
        CLAIM.certified(
            flint.arb("0.01"),
            (-(1 - P).log() - P) / 2,
            {"P": -1, "q": 1, "beta": 1, "T": T},
            "does not vanish",
        )


def _room(problem: ControlProblem) -> float:
    """``1 - max eig(C P) / beta`` for the covariance C of Y_T: the tilt of its law is integrable if
    it is positive.
    """
    assert isinstance(problem.reference, AffineReference)
    law = evaluate_affine(problem, AffinePolicy.zeros(problem.reference)).final_law
    product = law.covariance @ as_quadratic(problem.reward).P / problem.beta[0]
    return 1 - float(torch.linalg.eigvals(product).real.max())


def _problem(T: int, q: float) -> LinearQuadratic:
    return LinearQuadratic(
        ControlProblem(affine_reference(_law(), variance_preserving(T, q)), _reward(), 1.0)
    )


def _continuous() -> float:
    """``log E exp V(0, Y_0) - E V(0, Y_0)`` under N(0, 1) by Gauss-Hermite, for beta = 1."""
    points, weights = tensor_rule(1)
    value = TiltedMixture(_law(), _reward(), 1.0).value(math.exp(-REMEMBERING), points)
    return float(torch.logsumexp(value + weights.log(), 0) - weights @ value)


def _law() -> Gaussian:
    return Gaussian([0.0], [[1.0]])


def _reward() -> Quadratic:
    return Quadratic(_vector([[-1.0]]), _vector([1.0]))


def _vector(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
