r"""What the discrete optimum misses of the exponential tilt because its kernels move means only.

Setting: a linear-quadratic problem, constant beta, :math:`D_t = I - \sigma_t^2 P_{t+1}/\beta`.

Statement: $β log bb(E) [exp(r(Y_T)/β) | Y_0] − V_0 (Y_0) = sum_t (−(β/2) log det D_t − (σ_t^2/2) tr
P_(t+1)) ≥ 0$ with $D_t = I − σ_t^2 P_(t+1)/β$, of order $1/T$

Every term is at most :math:`\tfrac\beta4 \sum_i e_i^2 / \min(1, 1 - \max_i e_i)` with :math:`e =
\sigma_t^2\, \mathrm{eig}(P_{t+1})/\beta`, so that the sum is O(1/T) where :math:`\sigma_t^2` is.

Kind: equality; the bound is tight as e tends to zero.

Source: derived here, from arXiv 2412.18164v4, equations 8-9.

How it is measured: the left side from the Gaussian law of Y_T given Y_0, composed over all steps,
and the moments of an exponential of a quadratic form; the right side from
`LinearQuadratic.kernel_gap`; both in up to 5 dimensions. The order on `variance_preserving` with T
and 2 T steps, also in ball arithmetic.

What would refute it: a residual above `ROUNDING`, a negative term, or a sum that does not halve
when T doubles.
"""

from __future__ import annotations

import flint
import torch
from hypothesis import given, settings
from torch import Tensor

from socft.density import Gaussian, affine_reference
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion
from socft.reward import Quadratic, as_quadratic
from socft.schedule import variance_preserving
from socft.truth.linear_quadratic import LinearQuadratic
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Kernel gap", topics.SECTION_4_2)
ROUNDING = 1e-11
"""Relative to the largest of beta and the two values that are subtracted."""
NEXT = 0.05
"""Share of the order 1/T^2 at T = 256."""
PRECISION = 300


def gibbs_value(problem: ControlProblem, y: Tensor) -> Tensor:
    """``beta log E[exp(r(Y_T) / beta) | Y_0 = y]`` from the law of Y_T given Y_0, shape
    (batch,).
    """
    reference, form, beta = problem.reference, as_quadratic(problem.reward), problem.beta[0]
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, ScalarDiffusion)
    eye = torch.eye(y.shape[1], dtype=torch.float64)
    mean, covariance = y, torch.zeros_like(eye)
    for k in range(problem.steps):
        A = reference.transition[k]
        mean = mean @ A.T + reference.offset[k]
        covariance = A @ covariance @ A.T + reference.diffusion.sigma[k] ** 2 * eye
    return beta * log_moment(form.P / beta, form.linear / beta, mean, covariance) + form.c


def log_moment(P: Tensor, q: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """``log E exp(X'PX / 2 + q'X)`` for ``X ~ N(mean, covariance)``, mean of shape (batch, n);
    complete the square.
    """
    eye = torch.eye(len(covariance), dtype=torch.float64)
    inner = eye - covariance @ P
    slope = mean @ P + q
    exponent = (mean * (mean @ P / 2 + q)).sum(1) + (
        slope @ torch.linalg.solve(inner, covariance) * slope
    ).sum(1) / 2
    return exponent - torch.linalg.slogdet(inner).logabsdet / 2


def bound(truth: LinearQuadratic, instance: QuadraticInstance) -> Tensor:
    """``beta / 4 sum_i e_i^2 / min(1, 1 - max e)``, shape (T,)."""
    beta = truth.problem.beta
    hessians = torch.stack([truth.hessian(k + 1) for k in range(instance.steps)])
    e = instance.schedule.sigma.square()[:, None] * torch.linalg.eigvalsh(hessians) / beta[:, None]
    return beta / 4 * e.square().sum(1) / (1 - e.amax(1).clamp(min=0))


@settings(max_examples=50)
@given(quadratic_instances(), numbers(1, 3))
def test_holds(instance: QuadraticInstance, more: float) -> None:
    """At random instances with a constant beta that admits an optimum."""
    truth = instance.solve(float(instance.beta().max()) * more)
    y = torch.stack(
        [
            torch.linspace(-1, 1, instance.dim, dtype=torch.float64),
            torch.ones(instance.dim, dtype=torch.float64),
        ]
    )
    gibbs, value, gaps = gibbs_value(truth.problem, y), truth.value(0, y), truth.kernel_gap()
    where = {"instance": instance.describe(), "more": more}
    scale = 1 + float(truth.problem.beta[0]) + float(gibbs.abs().max()) + float(value.abs().max())
    CLAIM.equals((gibbs - value - gaps.sum()) / scale, 0.0, where, ROUNDING, "exact")
    CLAIM.holds((-gaps).clamp(min=0), 0.0, where, part="non-negative")
    CLAIM.holds(gaps, bound(truth, instance), where, part="size of each term")


def test_is_of_order_one_over_T() -> None:
    """The sum halves as T doubles."""
    coarse, fine = (float(_vanishing(T).kernel_gap().sum()) for T in (256, 512))
    where = {"q": 4.0, "T": [256, 512], "gaps": [coarse, fine]}
    CLAIM.attained(fine, coarse / 2, where, within=NEXT, slack=NEXT, part="order 1/T")


def test_is_attained() -> None:
    """The bound on the terms, by small ones."""
    instance = QuadraticInstance(
        levels=(0.8, 0.9), lam=(0.5,), score=(-1.0,), shift=(0.0,), curvature=(-0.01,), slope=(0.0,)
    )
    truth = instance.solve(1.0)
    CLAIM.attained(
        float(truth.kernel_gap()[0]),
        float(bound(truth, instance)[0]),
        instance,
        part="size of each term",
    )


def test_needs_a_constant_weight() -> None:
    """With weights 1 and 2 at two steps the sum is not the gap to any one tilt's value at either
    weight.
    """
    instance = QuadraticInstance(
        levels=(0.3, 0.6, 0.9),
        lam=(0.5, 0.5),
        score=(-0.5,),
        shift=(0.2,),
        curvature=(-1.0,),
        slope=(1.0,),
    )
    truth = instance.solve(torch.tensor([1.0, 2.0], dtype=torch.float64))
    y = torch.tensor([[0.5]], dtype=torch.float64)
    left = [
        float(gibbs_value(instance.problem(beta), y) - truth.value(0, y)) for beta in (1.0, 2.0)
    ]
    residual = min(abs(x - float(truth.kernel_gap().sum())) for x in left)
    CLAIM.breaks(residual, ROUNDING * 10, instance, "constant beta")


def test_certified() -> None:
    """``gap(2T) <= 0.52 gap(T)`` and ``gap(T) > 0`` for r = -x^2 / 2, N(0, 1) data, q = 1, beta =
    1, T = 16 .. 1024.
    """
    flint.ctx.prec = PRECISION
    gaps = {T: _exact_gap(T) for T in (16, 32, 64, 128, 256, 512, 1024)}
    where = {"P": -1, "q": 1, "beta": 1, "T": list(gaps)}
    for T in list(gaps)[:-1]:
        CLAIM.certified(gaps[2 * T], flint.arb("0.52") * gaps[T], where, "order 1/T")
        CLAIM.certified(-gaps[T], flint.arb(0), where, "positive")


def _exact_gap(T: int) -> flint.arb:
    """In balls; for N(0, 1) data the score is -y, so the mean map multiplies by sqrt(a)."""
    variance, P, total = flint.arb(flint.fmpq(1, T)), flint.arb(-1), flint.arb(0)
    for _ in range(T):
        e = variance * P
        total += -(1 - e).log() / 2 - e / 2
        P = (1 - variance) * P / (1 - e)
    return total


def _vanishing(T: int) -> LinearQuadratic:
    reward = Quadratic(
        torch.tensor([[-1.0, 0.2], [0.2, 0.1]], dtype=torch.float64),
        torch.tensor([1.0, 0.0], dtype=torch.float64),
    )
    law = Gaussian([0.5, 0.0], [[0.6, 0.1], [0.1, 1.2]])
    return LinearQuadratic(
        ControlProblem(affine_reference(law, variance_preserving(T, 4.0)), reward, 1.0)
    )
