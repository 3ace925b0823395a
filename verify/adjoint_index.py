r"""The target of step k takes the costate of step k + 1; that of step k is off by the order of the
step.

Setting: the lean costate :math:`a_k = \nabla m_k(x_k)^\top a_{k+1}`; adjoint matching's target for
the control at step k.

Statement: the fixed point of $B_k^⊤ a_(k+1)/β_k$ is $v^*$; that of $B_k^⊤ a_k/β_k$ has the relative
error $C d t$, and $J^* − J = C' d t^2$

Kind: limit; the orders are exactly one and two.

Source: derived here; arXiv 2409.08861, section 4.

That section states the continuous target, where the two agree.

How it is measured: in the linear-quadratic problem in one dimension. With costate mean
:math:`p_k x + c_k` under the fixed point, :math:`p_k = A_k\, \bar p_{k+1}` and
:math:`v_k = \sigma_k (\bar p_{k+1} x + \bar c_{k+1})/\beta` for the exact index, where the bar is
the mean of the next costate given x; the other index has
:math:`v_k = \sigma_k (p_k x + c_k)/\beta`. Both fixed points are solved backwards, because the
control at step k enters its own target linearly. Errors on `variance_preserving` with T and 2 T
steps.

What would refute it: an error of the exact index above `ROUNDING`, or orders other than one and
two.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from hypothesis import given, settings
from torch import Tensor

from socft.density import Gaussian, affine_reference
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion
from socft.reward import Quadratic, as_quadratic
from socft.schedule import variance_preserving
from socft.truth.linear_quadratic import LinearQuadratic
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.strategies import quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Index of the costate", topics.ADJOINTS)
ROUNDING = 1e-12
"""Relative, per step; each step divides the relative error of its curvature by lambda."""
NEXT = 0.05
"""Deviation of a measured order from its limit, at T = 256."""
STEPS = (256, 512)


@dataclasses.dataclass(frozen=True)
class Target:
    """Which costate a target takes, as weights of that of step k + 1 and that of step k."""

    following: float
    current: float


EXACT, PUBLISHED = Target(1.0, 0.0), Target(0.0, 1.0)


def fixed_point(problem: ControlProblem, target: Target) -> AffinePolicy:
    """The affine policy that equals the conditional mean of its own target, in one dimension,
    backwards from the last step.

    With ``x' = A x + b + sigma (v + xi)``, the mean of the next costate ``p x' + c`` is
    ``n = p (A x + b + sigma v) + c``, the current costate's is ``A n``, and
    ``v = w sigma n / beta`` with ``w = following + current A``.
    """
    reference, form = problem.reference, as_quadratic(problem.reward)
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, ScalarDiffusion)
    p, c = float(form.P), float(form.linear)
    gains, offsets = [], []
    for k in reversed(range(problem.steps)):
        A, b = float(reference.transition[k]), float(reference.offset[k])
        sigma, weight = (
            float(reference.diffusion.sigma[k]),
            target.following + target.current * float(reference.transition[k]),
        )
        share = 1 - weight * sigma**2 * p / float(problem.beta[k])
        slope, level = p * A / share, (p * b + c) / share
        gains.append(weight * sigma * slope / float(problem.beta[k]))
        offsets.append(weight * sigma * level / float(problem.beta[k]))
        p, c = A * slope, A * level
    return AffinePolicy(_column(gains)[:, None, None], _column(offsets)[:, None])


@torch.no_grad()
def relative_error(truth: LinearQuadratic, policy: AffinePolicy) -> float:
    """Largest error of gain and offset over the largest optimal one."""
    best = truth.affine_policy
    apart = max(
        float((policy.gain - best.gain).abs().max()),
        float((policy.offset - best.offset).abs().max()),
    )
    return apart / max(float(best.gain.abs().max()), float(best.offset.abs().max()))


@settings(max_examples=60)
@given(quadratic_instances(steps=4, dims=1))
def test_holds(instance: QuadraticInstance) -> None:
    """The exact index has the optimum as its fixed point."""
    truth = instance.solve()
    amplified = ROUNDING * float((1 / instance.lams).prod())
    CLAIM.equals(
        relative_error(truth, fixed_point(truth.problem, EXACT)),
        0.0,
        instance,
        amplified,
        "exact index",
    )


def test_published_index_is_of_first_order() -> None:
    """Control and objective of the fixed point with the costate of step k."""
    truths = [_fine_tuning(T) for T in STEPS]
    policies = [fixed_point(truth.problem, PUBLISHED) for truth in truths]
    errors = [relative_error(truth, policy) for truth, policy in zip(truths, policies, strict=True)]
    missing = [
        truth.objective - truth.evaluate(policy).objective
        for truth, policy in zip(truths, policies, strict=True)
    ]
    where = {"T": list(STEPS), "relative errors": errors, "missing objective": missing}
    CLAIM.equals(math.log2(errors[0] / errors[1]), 1.0, where, NEXT, "order of the control")
    CLAIM.equals(math.log2(missing[0] / missing[1]), 2.0, where, NEXT, "order of the objective")
    coarse = _fine_tuning(25)
    error = relative_error(coarse, fixed_point(coarse.problem, PUBLISHED))
    CLAIM.finding(
        "with 25 steps at q = 4 the target with the costate of step k is off by"
        f" {100 * error:.1f}%",
        {"T": 25, "q": 4.0},
    )


def test_needs_the_following_costate() -> None:
    """With the costate of step k the fixed point is not the optimum."""
    truth = _fine_tuning(25)
    CLAIM.breaks(
        relative_error(truth, fixed_point(truth.problem, PUBLISHED)),
        ROUNDING,
        {"T": 25, "q": 4.0},
        "costate of step k + 1",
    )


def _fine_tuning(T: int) -> LinearQuadratic:
    reward = Quadratic(
        torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)
    )
    reference = affine_reference(Gaussian([0.5], [[0.6]]), variance_preserving(T, 4.0))
    return LinearQuadratic(ControlProblem(reference, reward, 1.0))


def _column(backwards: list[float]) -> Tensor:
    return torch.tensor(backwards[::-1], dtype=torch.float64)
