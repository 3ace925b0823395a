r"""Optimal value functions with the two sides of their curvature apart.

Setting: :math:`V_T = r`; the Jacobian A of the mean map has :math:`|A| \le M` and is N-Lipschitz;
:math:`|\nabla V_{t+1}| \le L_0`, the spectrum of :math:`\nabla^2 V_{t+1}` lies in :math:`[-h^-,
h^+]`, and that of its smoothing in :math:`[-K^-, K^+]`, :math:`K^\pm = h^\pm\,\mathrm{erf}(L_0/
(\sqrt 2 \sigma h^\pm))`; :math:`a = \rho K^+ < 1`.

Statement: $|∇V_t| ≤ M L_0$ and $−(N L_0 + M^2 K^(−)/(1 + ρ K^(−))) ≤ ∇^2 V_t ≤ N L_0 + M^2 K^+/(1 −
ρ K^+)$

Only positive curvature is amplified, and nothing else can make the optimum ill posed: a concave
reward with an affine score admits every beta. The proof is in `socft.theory.one_sided`.

Kind: tight: both sides at once and at every step by a quadratic reward with eigenvalues of both
signs and scores that stretch all directions alike.

Source: derived here, in place of (14) and (15) of arXiv 2412.18164v4; that a Moreau envelope maps
an eigenvalue h to h/(1 - rho h) is classical.

How it is measured: gradients and both ends of the spectrum of the exact solution at the smallest
weights that the condition a <= 1 - lambda admits, by quadrature, in up to 64 dimensions as rotated
products; the quadratic family in closed form.

What would refute it: a gradient or an eigenvalue beyond its bound by more than quadrature error.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.one_sided import relaxations, spectrum, weights
from verify.support.rewards import Slope
from verify.support.scores import TanhScore
from verify.support.strategies import instances
from verify.support.suprema import ACCURACY, DIFFERENCED

CLAIM = Claim.of_module(__name__, __doc__, "One-sided regularity", topics.ONE_SIDED)
CLOSED_FORM = 1e-9
"""Relative error of a spectrum by Riccati's recursion."""


def measure(instance: ProductInstance, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Suprema of the gradient, shape (T,), and of both ends of the spectrum, shape (2, T)."""
    parts = instance.parts(beta)
    ends = torch.stack([spectrum(part.values) for part in parts]).amax(0)
    return instance.suprema(beta).value_gradient[:-1], ends[:, :-1]


def bound(found: theory.Regularity) -> tuple[Tensor, Tensor]:
    """The same of the statement."""
    return found.L0V[:-1], torch.stack([found.up, found.down])[:, :-1]


@settings(max_examples=14)
@given(instances(steps=6), relaxations())
def test_holds(instance: ProductInstance, relaxation: theory.Relaxation) -> None:
    statement = theory.Theorem28(theory.OneSidedBounds(relaxation))
    beta = weights(instance, statement)
    gradient, ends = measure(instance, beta)
    limits = bound(theory.constants_at(instance.chain, beta, statement))
    where = {"instance": instance.describe(), "beta": beta.tolist()}
    floor = ACCURACY * instance.dim**0.5
    CLAIM.holds(gradient, limits[0], where, floor=floor, part="gradient")
    CLAIM.holds(ends[0], limits[1][0], where, floor=DIFFERENCED, part="largest eigenvalue")
    CLAIM.holds(ends[1], limits[1][1], where, floor=DIFFERENCED, part="smallest eigenvalue")


@pytest.mark.parametrize("score", [0.4, -0.7])
def test_is_attained(score: float) -> None:
    """Eigenvalues 0.8 and -1.2 of the reward, over four steps that expand or contract."""
    instance, beta = _mixed(score)
    exact, limits = instance.solve(beta), bound(_constants(instance, beta))
    for t in range(instance.steps):
        ends = torch.linalg.eigvalsh(exact.hessian(t))
        for side, seen in enumerate((float(ends[-1]), -float(ends[0]))):
            limit = float(limits[1][side][t])
            where = {"instance": instance.describe(), "step": t}
            CLAIM.attained(seen, limit, where, within=CLOSED_FORM, slack=CLOSED_FORM)


def test_needs_the_bend_of_the_mean_map() -> None:
    """A linear reward has no curvature, and the value one step before is as curved as the score
    bends it: without ``N L0`` the bound is zero.
    """
    instance = ProductInstance(
        levels=(0.5, 0.95), lam=(0.5,), factors=(Factor(TanhScore(0.5, 0.5, 1.5), Slope(2.0)),)
    )
    beta = torch.ones(1, dtype=torch.float64)
    _, ends = measure(instance, beta)
    limit = float(bound(_constants(instance, beta))[1][0][0])
    bend = float(theory.mean_smoothness(instance.chain)[0]) * instance.chain.reward_L0
    CLAIM.breaks(float(ends.max()), max(limit - bend, 0.0) + DIFFERENCED, instance, "term N L0")


@pytest.mark.parametrize("mutant", ["M for M^2", "K- for K+", "1 + a for 1 - a", "1 - b for 1 + b"])
def test_needs_every_factor(mutant: str) -> None:
    """The quadratic family tells each from what it could be mistaken for."""
    flat = mutant == "K- for K+"  # hardly convex and far from ill posed
    curvature, lam = ((0.2, -1.2), 0.9) if flat else ((0.8, -1.2), 0.5)
    score = 0.4 if mutant == "M for M^2" else -0.7
    instance, beta = _mixed(score, 1, curvature, lam)
    exact, found = instance.solve(beta), _constants(instance, beta)
    rho, M = float(theory.proximal_step(instance.chain, beta)[0]), float(found.mean_L0[0])
    up, down = float(found.smoothed_up[0]), float(found.smoothed_down[0])
    ends = torch.linalg.eigvalsh(exact.hessian(0))
    top, bottom = float(ends[-1]), -float(ends[0])
    measured, limit = {
        "M for M^2": (top, M * up / (1 - rho * up)),
        "K- for K+": (bottom, M**2 * up / (1 - rho * up)),
        "1 + a for 1 - a": (top, M**2 * up / (1 + rho * up)),
        "1 - b for 1 + b": (M**2 * down / (1 - rho * down), bottom * (1 + CLOSED_FORM)),
    }[mutant]
    CLAIM.breaks(measured, limit, _where(instance, mutant), "every factor")


def test_needs_the_well_posed_side() -> None:
    """With a = 1.1 the bracket is convex along the convex direction, and the optimum is infinite:
    the Hessian of Bellman's bracket has a positive eigenvalue.
    """
    instance, beta = _mixed(0.4, steps=1)
    found = _constants(instance, beta)
    scale = float(theory.proximal_step(instance.chain, beta)[0] * found.smoothed_up[0]) / 1.1
    worst = float(torch.linalg.eigvalsh(instance.reward.P)[-1]) - float(
        (scale * beta / instance.schedule.sigma.square())[0]
    )
    CLAIM.breaks(worst, 0.0, instance, "condition a < 1")


def _constants(instance: ProductInstance | QuadraticInstance, beta: Tensor) -> theory.Regularity:
    bounds = theory.OneSidedBounds(theory.BestRelaxation())
    return theory.constants_at(instance.chain, beta, theory.Theorem28(bounds))


def _mixed(
    score: float,
    steps: int = 4,
    curvature: tuple[float, float] = (0.8, -1.2),
    lam: float = 0.5,
) -> tuple[QuadraticInstance, Tensor]:
    """Reward eigenvalues of both signs, one eigenvalue of the score."""
    levels = tuple(0.3 * (0.95 / 0.3) ** (t / steps) for t in range(steps + 1))
    instance = QuadraticInstance(
        levels=levels,
        lam=(lam,) * steps,
        score=(score,) * 2,
        shift=(0.3, -0.2),
        curvature=curvature,
        slope=(0.5, 0.5),
        rotation=3,
    )
    beta = weights(instance, theory.Theorem28(theory.OneSidedBounds(theory.BestRelaxation())))
    return instance, beta


def _where(instance: QuadraticInstance, mutant: str) -> dict[str, Any]:
    return {"instance": instance.describe(), "mistaken": mutant}
