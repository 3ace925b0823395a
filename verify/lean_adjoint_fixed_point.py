r"""The optimal control is the fixed point of adjoint matching, whose residual is no gradient
elsewhere.

Setting: lean costates, :math:`a_T = \nabla r(x_T)`, :math:`a_k = \nabla m_k(x_k)^\top a_{k+1}`,
along paths of a policy v; the mean residual of the target,
:math:`R_k(x) = B_k^\top E[a_{k+1} \mid x_k = x] - \beta_k v_k(x)`.

Statement: $B_k^⊤ bb(E) [a_(k+1) | x_k] − β_k v_k = 0$ for all $k$ and $x$ $⇔$ $v = v^*$, with lean
costates $a$

Away from it the left side, R, is a vector field other than :math:`\partial_v Q^v_k(x, v_k(x))`,
whose projection on features is the gradient of the objective (77).

Kind: equality.

Proof (derived here). Under v*, :math:`E[a_k \mid x_k]` obeys the envelope identity (34), so it is
:math:`\nabla V_k`, and the optimality condition is R = 0. Conversely R = 0 determines
:math:`v_{T-1}` where Bellman's bracket is strongly concave; then
:math:`E[a_{T-1} \mid x_{T-1}] = \nabla V_{T-1}`, and so on backwards.

Source: arXiv 2409.08861, proposition 7; discrete statement derived here.

Proposition 7 is in continuous time. The proof is with arXiv 2412.18164v4, equation 34.

How it is measured: in one dimension, conditional means of lean costates under the solved optimal
control by the trapezoidal rule; in up to 5 dimensions with quadratic rewards in closed form, where
the conditional mean is affine. Uniqueness: matching the conditional mean of the target, backwards
from the last step, ends at the optimum from any policy after T rounds.

What would refute it: a residual above `QUADRATURE` or `ROUNDING` at v*; T rounds that end
elsewhere; no difference away from v*.
"""

from __future__ import annotations

import dataclasses
import math

import hypothesis
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.checks import require
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion, ScoreReference
from socft.reward import as_quadratic
from socft.truth.affine_policy import affine_gradient, evaluate_affine
from socft.truth.bellman import mean_and_jacobian
from socft.truth.quadrature import Quadrature
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.strategies import line_instances, numbers, quadratic_instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Lean adjoint", topics.ADJOINTS)
QUADRATURE = ACCURACY
"""Relative to 1 + |beta v|: the optimal control is accurate to `ACCURACY`, and enters every step's
conditional mean.
"""
ROUNDING = 1e-12
"""Relative, per step; each step divides the relative error of its curvature by lambda."""
SPACING, FINEST, MOST_NODES = 0.75, 0.07, 700
INNER = 0.45
"""Share of the grid on which the residual is taken, 4 standard deviations: from there a path leaves
the grid with chance 1e-7.
"""
SEEDS = st.integers(0, 10**6)


def line_residual(truth: Quadrature) -> float:
    """Largest ``|R_k| / (1 + |beta v|)`` of the optimal control of a one-dimensional problem, by
    the trapezoidal rule.
    """
    problem = truth.problem
    reference = problem.reference
    assert isinstance(reference, ScoreReference)
    sigma = reference.schedule.sigma
    low, high = (
        min(float(g.lower.min()) for g in truth.grids),
        max(float(g.upper.max()) for g in truth.grids),
    )
    count = math.ceil((high - low) / min(SPACING * float(sigma.min()), FINEST)) + 1
    if count > MOST_NODES and hypothesis.currently_in_test_context():
        hypothesis.reject()
    require(
        count <= MOST_NODES,
        f"the chain needs {count} nodes, more than {MOST_NODES}; use fewer or longer steps.",
    )
    x = torch.linspace(low, high, count, dtype=torch.float64)[:, None]
    costate, worst = problem.reward.gradient(x)[:, 0], 0.0
    for k in reversed(range(problem.steps)):
        control = truth.control(k, x)
        mean, jacobian = mean_and_jacobian(reference, k, x)
        gaps = (x[:, 0] - (mean + sigma[k] * control)) / sigma[k]
        kernel = torch.exp(-(gaps**2) / 2)
        pushed = kernel @ costate / kernel.sum(1)
        price = problem.beta[k] * control[:, 0]
        residual = (sigma[k] * pushed - price).abs() / (1 + price.abs().max())
        centre, half = (
            (truth.grids[k].lower + truth.grids[k].upper) / 2,
            (truth.grids[k].upper - truth.grids[k].lower) / 2,
        )
        worst = max(worst, float(residual[((x - centre).abs() <= INNER * half)[:, 0]].max()))
        costate = jacobian[:, 0, 0] * pushed
    return worst


@dataclasses.dataclass(frozen=True)
class Residual:
    """``R_k(x) = gain_k x + offset_k``, shapes (T, d, d) and (T, d)."""

    gain: Tensor
    offset: Tensor

    @property
    def size(self) -> float:
        """The largest entry."""
        return max(float(self.gain.abs().max()), float(self.offset.abs().max()))


@torch.no_grad()
def affine_residual(problem: ControlProblem, policy: AffinePolicy) -> Residual:
    """The mean residual of lean costates in a linear-quadratic problem, where
    ``E[a_k | x_k] = p_k x_k + c_k``.
    """
    reference, form = problem.reference, as_quadratic(problem.reward)
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, ScalarDiffusion)
    p, c, gains, offsets = form.P, form.linear, [], []
    for k in reversed(range(problem.steps)):
        A, b, sigma, beta = (
            reference.transition[k],
            reference.offset[k],
            reference.diffusion.sigma[k],
            problem.beta[k],
        )
        slope = p @ (A + sigma * policy.gain[k])
        level = p @ (b + sigma * policy.offset[k]) + c
        gains.append(sigma * slope - beta * policy.gain[k])
        offsets.append(sigma * level - beta * policy.offset[k])
        p, c = A.T @ slope, A.T @ level
    return Residual(torch.stack(gains[::-1]), torch.stack(offsets[::-1]))


@settings(max_examples=8)
@given(line_instances(steps=4))
def test_holds(instance: ProductInstance) -> None:
    """One dimension, any score and reward."""
    (truth,) = instance.parts()
    CLAIM.equals(line_residual(truth), 0.0, instance, QUADRATURE, "one dimension")


@settings(max_examples=60)
@given(quadratic_instances(steps=6))
def test_holds_for_quadratic_rewards(instance: QuadraticInstance) -> None:
    """Closed form in up to 5 dimensions."""
    truth, beta = instance.solve(), instance.beta()
    residual = affine_residual(truth.problem, truth.affine_policy)
    scale = 1 + float((beta[:, None] * truth.affine_policy.gain.detach().flatten(1)).abs().max())
    amplified = ROUNDING * float((1 / instance.lams).prod())
    CLAIM.equals(residual.size / scale, 0.0, instance, amplified, "quadratic rewards")


@settings(max_examples=20)
@given(quadratic_instances(steps=4, dims=2), SEEDS, numbers(0.1, 2))
def test_is_the_only_fixed_point(instance: QuadraticInstance, seed: int, size: float) -> None:
    """From any policy, solving R_k = 0 for the control of one step at a time, backwards, ends at
    the optimum.

    R_k is affine in the control of step k, with derivative ``sigma_k^2 p - beta_k``, so one Newton
    step solves it.
    """
    truth, draw = instance.solve(), torch.Generator().manual_seed(seed)
    best_gain, best_offset = (each.detach() for each in truth.affine_policy.parameters())
    gain = size * torch.randn(best_gain.shape, generator=draw, dtype=torch.float64)
    offset = size * torch.randn(best_offset.shape, generator=draw, dtype=torch.float64)
    for k in reversed(range(instance.steps)):
        residual = affine_residual(truth.problem, AffinePolicy(gain, offset))
        slope = truth.problem.beta[k] * torch.eye(instance.dim, dtype=torch.float64) - _smoothed(
            truth.problem, gain, offset, k
        )
        gain[k] += torch.linalg.solve(slope, residual.gain[k])
        offset[k] += torch.linalg.solve(slope, residual.offset[k])
    apart = max(float((gain - best_gain).abs().max()), float((offset - best_offset).abs().max()))
    scale = 1 + size + max(float(best_gain.abs().max()), float(best_offset.abs().max()))
    where = {"instance": instance.describe(), "seed": seed, "size": size}
    CLAIM.equals(
        apart / scale,
        0.0,
        where,
        100 * ROUNDING * float((1 / instance.lams).prod()),
        "only fixed point",
    )


def test_needs_the_optimum() -> None:
    """Away from it the field, weighted by the policy's law, is not the gradient of the
    objective.
    """
    instance = QuadraticInstance(
        levels=(0.1, 0.3, 0.6, 0.9),
        lam=(0.2,) * 3,
        score=(-0.5,),
        shift=(0.3,),
        curvature=(-2.0,),
        slope=(1.0,),
    )
    small, large = (
        _angles(instance, torch.tensor(0.5, dtype=torch.float64)),
        _angles(instance, instance.beta()),
    )
    where = {
        "instance": instance.describe(),
        "beta": 0.5,
        "degrees": small,
        "theory's beta": instance.beta(),
        "degrees there": large,
    }
    CLAIM.breaks(min(small), 1.0, where, "angle to the gradient in degrees")
    CLAIM.finding(
        f"away from $v^*$ the lean field is {min(small):.0f} to {max(small):.0f} degrees off the"
        f" gradient at beta = 0.5, but only {min(large):.2f} to {max(large):.1f} at the larger"
        " weights of Theorem 2.8",
        where,
    )


def _angles(instance: QuadraticInstance, beta: Tensor) -> list[float]:
    """Between the projected field and the gradient, in degrees, at four random policies."""
    truth = instance.solve(beta)
    best, angles = truth.affine_policy, []
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        moved = [
            x.detach() + torch.randn(x.shape, generator=draw, dtype=torch.float64)
            for x in (best.gain, best.offset)
        ]
        policy = AffinePolicy(*moved)
        field, exact = _projected(truth.problem, policy), affine_gradient(truth.problem, policy)
        gradient = torch.cat([exact.gain.flatten(), exact.offset.flatten()])
        angles.append(
            math.degrees(math.acos(float(field @ gradient / (field.norm() * gradient.norm()))))
        )
    return angles


def _projected(problem: ControlProblem, policy: AffinePolicy) -> Tensor:
    """``E[R_k(X_k) (X_k, 1)']`` under the policy's law, as one vector."""
    found, residual = evaluate_affine(problem, policy), affine_residual(problem, policy)
    mean = found.mean[:-1]
    second = found.covariance[:-1] + mean.unsqueeze(2) * mean.unsqueeze(1)
    gain = residual.gain @ second + residual.offset.unsqueeze(2) * mean.unsqueeze(1)
    offset = (residual.gain @ mean.unsqueeze(2)).squeeze(2) + residual.offset
    return torch.cat([gain.flatten(), offset.flatten()])


def _smoothed(problem: ControlProblem, gain: Tensor, offset: Tensor, k: int) -> Tensor:
    """``sigma_k^2 p_{k+1}``: how the residual's first term of step ``k`` answers to its control."""
    eye, reference = torch.eye(gain.shape[1], dtype=torch.float64), problem.reference
    moved = gain.clone()
    moved[k] += eye
    base, shifted = (
        affine_residual(problem, AffinePolicy(g, offset)).gain[k] for g in (gain, moved)
    )
    assert isinstance(reference, AffineReference)
    return shifted - base + problem.beta[k] * eye
