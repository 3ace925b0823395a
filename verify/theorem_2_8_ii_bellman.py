r"""The solution of Bellman's equation is optimal, and its control is the only optimal one.

Setting: the control problem with :math:`\beta_t \ge \sigma_t^2 L^1_{V,t+1}/(1-\lambda_t)`; V solves
(8)-(9), u* attains the maximum there, J is the objective, v and v* are U and u* in whitened units.

Statement: $bb(E) V_0 (Y_0) = J(u^*)$, and $J(u^*) − J(U) ≥ 1/2 sum_t λ_t β_t bb(E)_U |v_t −
v^*_t|^2$ for every $U$: $u^*$ is the only optimum

So U is optimal only if it equals u* wherever its own chain goes.

Kind: tight. A convex quadratic reward with an expanding affine score attains it: there the
difference is :math:`\frac12 \sum_t E_U\, (v - v^*)^\top (\beta_t I - \sigma_t^2 P_{t+1}) (v - v^*)`
exactly.

Source: arXiv 2412.18164v4, Theorem 2.8 (ii), equations 8-9; quantified uniqueness derived here.

The uniqueness follows from (19), by summing :math:`Q_t(Y_t, u^*) - Q_t(Y_t, U)` along the chain of
U.

How it is measured: the objective of u* by pushing the law of its chain forward, against V_0;
differences of objectives for controls that differ from u* by waves of any size. In several
dimensions all in closed form, for any affine control. That V solves Bellman's equation is measured
in ``operator_view``, that nothing else than u* attains it pointwise in ``optimality_condition``.

What would refute it: a control that does better than V_0 promises, or as well as u* although it
differs.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.policy import AffinePolicy, FunctionPolicy, Policy
from socft.truth.chain_law import chain_law
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from verify.operator_view import Bracket
from verify.strong_concavity import rounding
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.scores import TanhScore
from verify.support.strategies import PseudoHuber, line_instances, numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Theorem 2.8 (ii)", topics.THEOREM_2_8_II)

OBJECTIVE = 1e-7
"""Relative error of an objective by quadrature along a whole chain."""
LOST = 1e-9
"""Mass that a control may carry out of the grids of the optimal chain; what it earns there is not
counted.
"""
APART = 1e-3
"""Maximisers further apart than this are two."""


def measure(truth: Quadrature, policy: Policy) -> float:
    """``J(u*) - J(U)``, both by pushing a law forward."""
    return truth.evaluate(truth.policy).objective - truth.evaluate(policy).objective


def bound(truth: Quadrature, policy: Policy, lams: Tensor) -> float:
    """``sum_t lam_t beta_t E_U |v_t - v*_t|^2 / 2`` in one dimension."""
    law, total = chain_law(truth.problem, policy, truth.grids), 0.0
    for t, weight in enumerate((lams * truth.problem.beta).tolist()):
        y = truth.grids[t].nodes
        with torch.no_grad():
            total += (
                weight / 2 * law.expect(t, (policy(t, y) - truth.control(t, y)).square().sum(1))
            )
    return total


@settings(max_examples=25)
@given(line_instances(steps=6), numbers(0.05, 1), numbers(0.2, 3), numbers(-3, 3))
def test_holds(instance: ProductInstance, size: float, frequency: float, phase: float) -> None:
    """The value is attained by u*, and by nothing that differs from it."""
    truth = instance.parts()[0]
    reached, promised = truth.evaluate(truth.policy).objective, truth.objective
    where = {
        "instance": instance.describe(),
        "$U - u^*$": "size sin(frequency y + phase)",
        "wave": [size, frequency, phase],
    }
    CLAIM.equals(reached, promised, where, OBJECTIVE * (1 + abs(promised)), "verification")

    def wave(k: int | Tensor, y: Tensor) -> Tensor:
        return truth.control(k, y) + size * torch.sin(frequency * y + phase)

    policy = FunctionPolicy(wave)
    assume(chain_law(truth.problem, policy, truth.grids).lost <= LOST)
    scale = 1 + abs(reached) + abs(truth.evaluate(policy).objective)
    CLAIM.holds(
        bound(truth, policy, instance.lams),
        measure(truth, policy),
        where,
        floor=OBJECTIVE * scale,
        part="uniqueness",
    )


@given(quadratic_instances(steps=5), numbers(0.1, 2), st.integers(0, 10**6))
def test_holds_in_several_dimensions(instance: QuadraticInstance, size: float, seed: int) -> None:
    """Exactly, for any affine control."""
    truth = instance.solve()
    policy = _perturbed(truth, size, seed)
    gap, exact, lower = (
        _gap(truth, policy),
        _exact_gap(truth, policy),
        _lower_gap(truth, policy, instance.lams),
    )
    where = {"instance": instance.describe(), "size": size, "seed": seed}
    scale = 1 + exact + abs(truth.objective)
    tolerance = rounding(instance) * scale * PATHS
    CLAIM.equals(
        truth.evaluate(truth.affine_policy).objective,
        truth.objective,
        where,
        tolerance,
        "verification, quadratic",
    )
    CLAIM.equals(gap, exact, where, tolerance, "difference of objectives")
    CLAIM.holds(lower, exact, where, slack=rounding(instance), part="uniqueness, quadratic")


def test_is_attained() -> None:
    """By an isotropic convex quadratic reward and an expanding score, whatever the control."""
    instance = QuadraticInstance(
        levels=(0.4, 0.55, 0.75, 0.95),
        lam=(0.5,) * 3,
        score=(0.2,) * 2,
        shift=(0.1,) * 2,
        curvature=(1.5,) * 2,
        slope=(0.3,) * 2,
    )
    truth = instance.solve()
    for seed in range(3):
        policy = _perturbed(truth, 0.5, seed)
        where = {"instance": instance.describe(), "size": 0.5, "seed": seed}
        CLAIM.attained(
            _lower_gap(truth, policy, instance.lams), _gap(truth, policy), where, slack=OBJECTIVE
        )


def test_needs_the_condition_on_beta() -> None:
    """Where the bracket is not concave, two controls are optimal: at the centre of a symmetric
    convex reward.
    """
    instance = ProductInstance(
        levels=(0.4, 0.8),
        lam=(0.5,),
        factors=(Factor(TanhScore(c=0.5), PseudoHuber(1.0, 0.0, 2.0)),),
    )
    beta = 0.5 * float(instance.schedule.sigma[0].square())
    bracket = Bracket(instance, instance.parts()[0], 0, beta)
    y, u = (
        torch.zeros(1, 1, dtype=torch.float64),
        bracket.width() * torch.linspace(0, 1, 4001, dtype=torch.float64)[None],
    )
    right, left = bracket(y.expand_as(u), u)[0], bracket(y.expand_as(u), -u)[0]
    np.testing.assert_allclose(right, left, rtol=1e-12)
    best = float(u[0, right.argmax()])
    assert float(right.max()) > float(right[0])
    CLAIM.breaks(
        2 * best,
        APART,
        {"instance": instance.describe(), "beta": beta, "maximisers": [-best, best]},
        "condition on beta",
    )


PATHS = 1e3
"""Objectives add a few hundred products, of both signs."""


def _perturbed(truth: LinearQuadratic, size: float, seed: int) -> AffinePolicy:
    """The optimal control plus an affine one."""
    generator, optimal = torch.Generator().manual_seed(seed), truth.affine_policy
    gain = optimal.gain + size * torch.randn(
        optimal.gain.shape, generator=generator, dtype=torch.float64
    )
    return AffinePolicy(gain.detach(), (optimal.offset + size).detach())


def _gap(truth: LinearQuadratic, policy: AffinePolicy) -> float:
    return truth.objective - truth.evaluate(policy).objective


def _exact_gap(truth: LinearQuadratic, policy: AffinePolicy) -> float:
    """``sum_t E (v - v*)' (beta I - B' P_{t+1} B) (v - v*) / 2``."""
    problem, steps = truth.problem, truth.problem.steps
    eye = torch.eye(problem.reference.dims[0], dtype=torch.float64)
    variance = torch.stack(
        [problem.reference.diffusion.apply(t, eye, eye)[0, 0].square() for t in range(steps)]
    )
    prices = [problem.beta[t] * eye - variance[t] * truth.hessian(t + 1) for t in range(steps)]
    return _expected(truth, policy, prices)


def _lower_gap(truth: LinearQuadratic, policy: AffinePolicy, lams: Tensor) -> float:
    eye = torch.eye(truth.problem.reference.dims[0], dtype=torch.float64)
    return _expected(truth, policy, [float(w) * eye for w in lams * truth.problem.beta])


@torch.no_grad()
def _expected(truth: LinearQuadratic, policy: AffinePolicy, prices: list[Tensor]) -> float:
    """``sum_t E (v - v*)' prices_t (v - v*) / 2`` along the chain of the policy."""
    law, optimal, total = truth.evaluate(policy), truth.affine_policy, 0.0
    for t, price in enumerate(prices):
        gain, offset = policy.gain[t] - optimal.gain[t], policy.offset[t] - optimal.offset[t]
        mean = gain @ law.mean[t] + offset
        total += (
            float(mean @ price @ mean + (price * (gain @ law.covariance[t] @ gain.T)).sum()) / 2
        )
    return total
