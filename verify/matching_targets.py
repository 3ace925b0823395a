r"""Regression targets made of noise have infinite variance at one end of the levels, lean costates
at none.

Setting: :math:`x_s = a x_0 + s \epsilon`, a = 1 - s; targets for the score at level s:
:math:`-\epsilon/s` of denoising (DSM), :math:`\nabla\log p(x_0)/a` of the target score (TSM), and
:math:`(a^2\,\mathrm{TSM} + s^2\,\mathrm{DSM})/(a^2 + s^2)`, their mixture.

Statement: as $s → 0$, $s^2 op("Var") (−ε\/s | x_s) → 1$; as $a → 0$, $a^2 op("Var") (∇log p(x_0)\/a
| x_s) → op("Var") ∇log p$, the Fisher information; the variance of the mixture tends to $0$ at both
ends; and lean costates have $|a_k| ≤ (Π_(j ≥ k) M_j) L_0 (r)$, which is (14), on every path

Given x_s the first is :math:`a^2\,\mathrm{Var}(x_0|x_s)/s^4` and the posterior of x_0 has the width
s/a; the second is :math:`\mathrm{Var}(\nabla\log p(x_0)|x_s)/a^2`, and x_0 is independent of x_s in
the limit. The mixture is :math:`(a\nabla\log p(x_0) + a x_0 - x_s)/(a^2 + s^2)`, a Lipschitz
function of x_0, times a.

Kind: limit; the bound of costates is attained by expanding affine mean maps and linear rewards.

Source: derived here; finite and infinite variances of such targets are arXiv 2605.00229, the
mixture is that of arXiv 2605.11480, (14) of arXiv 2412.18164v4.

How it is measured: posteriors of random mixtures by the trapezoidal rule, on Gaussians in closed
form; costates of the library along paths of chains in up to 64 dimensions.

What would refute it: another limit, a variance of the mixture that does not vanish, or a costate
above its bound.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.costates.adjoint import lean_adjoint
from socft.density import Gaussian, GaussianMixture
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion
from socft.reward import Linear
from verify.endpoint_covariance import mixtures
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.strategies import instances, numbers

CLAIM = Claim.of_module(__name__, __doc__, "Variance of targets", topics.ADJOINTS)
NEAR = 2e-3
"""Distance from an end of the levels at which a limit is read."""
NEXT = 0.05
"""Share of the next order there, for laws no narrower than 0.15 and states of size one."""
ROUNDING = 1e-6
"""Relative, of the trapezoidal rule."""
POINTS = torch.tensor([-0.7, 0.2, 1.1], dtype=torch.float64)
WIDTH, NODES = 13.0, 6001


def variances(law: GaussianMixture, s: float, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the three targets given states, shape (points,) each."""
    a = 1 - s
    # the posterior's nodes, in units of its likelihood where that is narrower than the law
    width = min(WIDTH, WIDTH * s / a)
    centre = points / a if s < 0.5 else 0 * points
    x0 = centre[:, None] + torch.linspace(-width, width, NODES, dtype=torch.float64)
    flat = x0.reshape(-1, 1)
    log_law = law.log_prob(flat).reshape(x0.shape)
    score = law.noised_score(1.0, flat).reshape(x0.shape)
    gaps = (points[:, None] - a * x0) / s
    weight = torch.softmax(log_law - gaps.square() / 2, 1)
    dsm, tsm = -gaps / s, score / a
    mixed = (a * score + a * x0 - points[:, None]) / (a**2 + s**2)
    return tuple(_variance(weight, each) for each in (dsm, tsm, mixed))  # type: ignore[return-value]


def _variance(weight: Tensor, values: Tensor) -> Tensor:
    mean = (weight * values).sum(1, keepdim=True)
    return (weight * (values - mean).square()).sum(1)


def information(law: GaussianMixture) -> float:
    """``Var grad log p``."""
    x = torch.linspace(-WIDTH, WIDTH, NODES, dtype=torch.float64)[:, None]
    weight = torch.softmax(law.log_prob(x), 0)[None]
    return float(_variance(weight, law.noised_score(1.0, x).T))


@settings(max_examples=25)
@given(mixtures())
def test_holds(law: GaussianMixture) -> None:
    """Three limits at either end."""
    fisher = information(law)
    where = {"means": law.means.flatten().tolist(), "variances": law.covariances.flatten().tolist()}
    dsm, _, mixed = variances(law, NEAR, POINTS)
    CLAIM.equals(NEAR**2 * dsm, 1 + 0 * dsm, where, NEXT, "denoising, $s → 0$")
    CLAIM.holds(mixed, 0.01 * (1 + fisher) ** 2, where, part="mixture, $s → 0$")
    _, tsm, mixed = variances(law, 1 - NEAR, POINTS)
    CLAIM.equals(NEAR**2 * tsm / fisher, 1 + 0 * tsm, where, NEXT, "target score, $a → 0$")
    CLAIM.holds(mixed, 0.01 * (1 + fisher) ** 2, where, part="mixture, $a → 0$")


@settings(max_examples=20)
@given(numbers(0.15, 3), st.sampled_from([0.02, 0.3, 0.7, 0.98]))
def test_holds_on_gaussians(S: float, s: float) -> None:
    """``C = S s^2 / (a^2 S + s^2)``: a^2 C / s^4, C / (S a)^2 and (a / n^2)^2 (1 - 1 / S)^2 C."""
    a = 1 - s
    C, n = S * s**2 / (a**2 * S + s**2), a**2 + s**2
    expected = (a**2 * C / s**4, C / (S * a) ** 2, (a / n * (1 - 1 / S)) ** 2 * C)
    found = variances(Gaussian(0.0, S), s, POINTS)
    for name, left, right in zip(
        ("denoising", "target score", "mixture"), found, expected, strict=True
    ):
        off = (left - right) / (1e-3 + right)
        CLAIM.equals(off, 0 * off, {"S": S, "s": s}, ROUNDING, f"Gaussian, {name}")


@settings(max_examples=10)
@given(instances(steps=5), st.integers(0, 10**6))
def test_holds_for_costates(instance: ProductInstance, seed: int) -> None:
    """Along paths of the pre-trained chain."""
    problem = instance.problem(1.0)
    policy = Uncontrolled(problem.reference)
    with torch.no_grad():
        noise = Noise.sample(problem.reference, 16, torch.Generator().manual_seed(seed))
        path = rollout(problem.reference, policy, noise)
    sizes = lean_adjoint(problem, path).flatten(2).norm(dim=2).amax(1)
    growth = torch.cat([instance.mean_L0, torch.ones(1, dtype=torch.float64)])
    limit = growth.flip(0).cumprod(0).flip(0) * float(instance.reward.L0)
    CLAIM.holds(sizes, limit, instance, part="costates")


@pytest.mark.parametrize("steps", [1, 7])
def test_costates_are_attained(steps: int) -> None:
    """Mean maps that expand along the gradient of a linear reward."""
    A = torch.diag(torch.tensor([1.2, 0.6], dtype=torch.float64)).expand(steps, -1, -1)
    chain = AffineReference(A, ScalarDiffusion([0.3] * steps))
    problem = ControlProblem(chain, Linear(torch.tensor([1.5, 0.0], dtype=torch.float64)), 1.0)
    noise = Noise.sample(chain, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        path = rollout(chain, Uncontrolled(chain), noise)
    first = float(lean_adjoint(problem, path)[0].norm(dim=1).max())
    CLAIM.attained(first, 1.5 * 1.2**steps, {"T": steps}, part="costates")


def test_needs_the_other_end() -> None:
    """Each of the two exceeds every bound where the other is finite."""
    law = GaussianMixture([0.6, 0.4], [-1.0, 0.8], [0.3, 0.5])
    for s in (1e-2, 1e-3):
        dsm, tsm, _ = (float(each.max()) for each in variances(law, s, POINTS))
        CLAIM.breaks(dsm, 0.5 / s**2, {"s": s}, "denoising, $s$ away from 0")
        CLAIM.holds(tsm, 2 / 0.3, {"s": s}, part="target score near data")
        dsm, tsm, _ = (float(each.max()) for each in variances(law, 1 - s, POINTS))
        CLAIM.breaks(tsm, 0.3 / s**2, {"a": s}, "target score, $a$ away from 0")
        CLAIM.holds(dsm, 2.0, {"a": s}, part="denoising near noise")


def test_needs_a_lipschitz_reward() -> None:
    """A quadratic reward has costates of any size."""
    chain = AffineReference([[[1.0]]], ScalarDiffusion([1.0]))
    problem = ControlProblem(chain, lambda x: x[:, 0].square() / 2, 1.0)
    noise = Noise(torch.zeros(1, 1), torch.full((1, 1, 1), 50.0))
    with torch.no_grad():
        path = rollout(chain, Uncontrolled(chain), noise)
    found = float(lean_adjoint(problem, path)[0].abs())
    CLAIM.breaks(found, 10.0, {"noise": 50.0}, "$L_0 (r) < ∞$")
    assert math.isfinite(found)
