r"""What sticking the landing subtracts is the control variate of first order, smoothed, but for the
noise of a target's own step.

Setting: constant :math:`B_k`; the optimum :math:`\beta v = B^\top E \nabla V(\bar x + B\xi)`,
:math:`\bar x = m + B v`, in front of a value function V. Sticking the landing adds :math:`-\beta
(\nabla v)^\top \xi` to the costate of a step.

Statement: $β (∇v)^⊤ ξ = (∇macron(x))^⊤ D$ with $D = bb(E) [∇^2 V(macron(x) + B ξ')] B ξ$, the
projection of $∇V(macron(x) + B ξ)$ on functions linear in $ξ$; so $op("Var") (∇V − D) =
op("Var") ∇V − op("Var") D$, and where $∇V$ is affine full costates are $∇V_k (x_k)$ on every path

By differentiating the optimality condition in the state; by parts :math:`E[\nabla V \xi^\top] =
E[\nabla^2 V] B`. The Taylor expansion :math:`\nabla^2 V(\bar x) B \xi` of a first-order correction
has mean zero too, but is no projection and can add variance. A target of step k keeps its own D_k:
that is the whole noise of sticking the landing to leading order, and one derivative of the policy
repairs it.

Kind: equality.

Source: derived here for discrete lean and full costates; sticking the landing is arXiv 1703.09194
and 2102.06559, the projection Newton 1994 and arXiv 1510.03141, martingales in gradients Gobet and
Munos 2005.

How it is measured: value functions that are sums of waves, whose smoothing is known, in up to 3
dimensions with any number of noises; the optimal control by Newton's method and its derivative by
differences; costates of the library along paths of quadratic problems.

What would refute it: two sides that differ by more than `DIFFERENCE`, a projection that adds
variance, or noise of a full costate in a quadratic problem.
"""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.costates.landing import OwnStepAsIs, OwnStepExact
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.sticking_the_landing import FullStickingTheLanding
from socft.path import Noise, rollout
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.nonlinear_chains.waves import DIFFERENCE, F64, WaveStep, differences
from verify.support.quadratics import LINE_QUADRATIC
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Sticking the landing", topics.ADJOINTS)
ROUNDING = 1e-9
SETTLED, NEWTON_STEPS = 1e-13, 60


@dataclasses.dataclass(frozen=True, eq=False)
class Waves(WaveStep):
    """With noise ``B xi``."""

    @property
    def curvature(self) -> Tensor:
        return (self.c.abs() * (self.w @ self.B).square().sum(1)).sum()

    def smooth(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and Hessian of ``E V(y + B xi)``."""
        c = self.c * torch.exp(-(self.w @ self.B).square().sum(1) / 2)
        return self.bends(y, c)

    def gradient(self, y: Tensor) -> Tensor:
        """``grad V``."""
        return self.bends(y, self.c)[0]

    def control(self, x: Tensor) -> Tensor:
        """The optimum."""
        mean, v = self.mean(x), torch.zeros(len(x), self.B.shape[1], dtype=F64)
        eye = torch.eye(self.B.shape[1], dtype=F64)
        for _ in range(NEWTON_STEPS):
            slope, bent = self.smooth(mean + v @ self.B.T)
            residual = slope @ self.B - v
            v = (
                v
                + torch.linalg.solve(eye - self.B.T @ bent @ self.B, residual.unsqueeze(2))[..., 0]
            )
            if float(residual.abs().max()) < SETTLED:
                break
        return v

    def jacobians(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the control and of the controlled mean, by differences, shapes (batch, m, n), (batch,
        n, n).
        """
        slopes = differences(self.control, x)
        bent = self.A + torch.diag_embed(0.3 / torch.cosh(x).square())
        return slopes, bent + self.B @ slopes


@settings(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6), numbers(0.1, 0.9))
def test_holds(n: int, m: int, seed: int, size: float) -> None:
    """The relation, with the noise of random paths."""
    waves, draw = Waves.drawn(n, m, seed, size), torch.Generator().manual_seed(seed + 1)
    x, xi = (torch.randn(6, k, generator=draw, dtype=F64) for k in (n, m))
    slopes, carried = waves.jacobians(x)
    centre = waves.mean(x) + waves.control(x) @ waves.B.T
    D = (waves.smooth(centre)[1] @ waves.B @ xi.unsqueeze(2))[..., 0]
    left, right = (slopes.mT @ xi.unsqueeze(2))[..., 0], (carried.mT @ D.unsqueeze(2))[..., 0]
    where = {"n": n, "m": m, "seed": seed, "size": size}
    CLAIM.equals(left - right, 0 * left, where, DIFFERENCE, "relation")


def moments(waves: Waves, centre: Tensor, nodes: int = 400) -> tuple[float, float, float]:
    """Variances of ``grad V``, of it less D, and of it less its Taylor term; one dimension."""
    z = torch.linspace(-9, 9, nodes, dtype=F64)
    weight = torch.softmax(-z.square() / 2, 0)
    b = waves.B[0, 0]
    found = waves.gradient(centre + b * z[:, None])[:, 0]
    smooth = waves.smooth(centre)[1][0, 0, 0] * b * z
    taylor = waves.bends(centre, waves.c)[1][0, 0, 0] * b * z
    spread = lambda each: float(weight @ (each - weight @ each).square())  # noqa: E731
    return spread(found), spread(found - smooth), spread(found - taylor)


@settings(max_examples=40)
@given(st.integers(0, 10**6), numbers(0.1, 0.9), numbers(-2, 2))
def test_holds_for_variances(seed: int, size: float, at: float) -> None:
    """The projection removes exactly its own variance."""
    waves = Waves.drawn(1, 1, seed, size)
    centre = torch.full((1, 1), at, dtype=F64)
    whole, left, _ = moments(waves, centre)
    own = float((waves.smooth(centre)[1][0, 0, 0] * waves.B[0, 0]).square())
    where = {"seed": seed, "size": size, "x": at}
    CLAIM.equals((whole - own - left) / (1 + whole), 0.0, where, ROUNDING, "variance")


@settings(max_examples=12)
@given(quadratic_instances(steps=5, dims=3), st.integers(0, 10**6))
def test_holds_for_costates_of_quadratic_problems(instance: QuadraticInstance, seed: int) -> None:
    """Path by path ``a_k = grad V_k(x_k)``, and targets without their own noise are the control."""
    truth = instance.solve()
    problem, policy = truth.problem, truth.affine_policy
    with torch.no_grad():
        noise = Noise.sample(problem.reference, 20, torch.Generator().manual_seed(seed))
        path = rollout(problem.reference, policy, noise)
    found = FullStickingTheLanding(OwnStepExact())
    costates = found.costates(problem, policy, path).values
    exact = torch.stack([truth.value_gradient(k, path.states[k]) for k in range(problem.steps + 1)])
    scale = 1 + float(exact.abs().max())
    where = instance.describe() | {"seed": seed}
    CLAIM.equals((costates - exact) / scale, 0 * exact, where, ROUNDING, "full costates")
    off = found.label(problem, policy, path).targets - path.controls
    scale = 1 + float(path.controls.abs().max())
    CLAIM.equals(off / scale, 0 * off, where, 1e-7, "targets, exact own step")


def test_needs_the_smoothed_curvature() -> None:
    """A Taylor term adds variance where the noise is wider than a wave."""
    one = torch.ones(1, dtype=F64)
    waves = Waves(one, 2 * one[:, None], 0 * one, one[:, None], 1.2 * one[:, None])
    whole, left, taylor = moments(waves, torch.full((1, 1), 0.6, dtype=F64))
    where = {"V": "sin 2x", "B": 1.2, "x": 0.6}
    CLAIM.holds(left, whole, where, part="smoothed")
    CLAIM.breaks(taylor, 2 * whole, where, "smoothing")
    CLAIM.finding(
        f"$V = sin 2 x$, $B = 1.2$: variance {whole:.3f}, less the smoothed term {left:.3f}, less"
        f" the Taylor term {taylor:.3f}",
        where,
    )


def test_needs_the_optimum() -> None:
    """At another control the two sides differ."""
    waves, x = Waves.drawn(2, 2, 3, 0.8), torch.full((1, 2), 0.4, dtype=F64)
    xi = torch.ones(1, 2, 1, dtype=F64)
    slopes, carried = waves.jacobians(x)
    half = carried - waves.B @ slopes / 2
    D = waves.smooth(waves.mean(x) + waves.control(x) @ waves.B.T / 2)[1] @ waves.B @ xi
    off = slopes.mT @ xi / 2 - half.mT @ D
    CLAIM.breaks(float(off.abs().max()), 1e-3, {"control": "half of the optimum"}, "optimum")


def test_needs_the_own_step() -> None:
    """A target keeps the noise of its step, most of what is left."""
    truth = LINE_QUADRATIC.solve()
    problem, policy = truth.problem, truth.affine_policy
    with torch.no_grad():
        noise = Noise.sample(problem.reference, 2000, torch.Generator().manual_seed(0))
        path = rollout(problem.reference, policy, noise)
    left = [
        float((each.label(problem, policy, path).targets - path.controls).square().mean())
        for each in (FullStickingTheLanding(OwnStepAsIs()), AdjointMatching())
    ]
    CLAIM.breaks(left[0], 1e-6, LINE_QUADRATIC, "own step")
    CLAIM.holds(left[0], left[1], LINE_QUADRATIC, part="below adjoint matching")
