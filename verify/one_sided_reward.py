r"""How far the built-in rewards curve upwards and downwards.

Setting: semiconcavity is the least :math:`c \ge 0` with :math:`r - c|x|^2/2` concave, semiconvexity
that with :math:`r + c|x|^2/2` convex.

Statement: $−c_"convex" I ≤ ∇^2 r ≤ c_"concave" I$, with $c_"concave" = 0$ ⇔ $r$ is concave and
$c_"convex" = 0$ ⇔ $r$ is convex

A concave reward starts the recursion of curvatures with :math:`h^+ = 0`.

Kind: tight for scalar rewards, separable sums and ridge functions of them; upper bounds for sums.

Source: derived here.

How it is measured: second derivatives of drawn scalar rewards over 40001 points, and of separable
sums, by automatic differentiation.

What would refute it: a second derivative outside the interval.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from socft.reward import PseudoHuber, Reward, Separable, Softplus
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import describe, random_rotation
from verify.support.rewards import ScalarReward, build_reward
from verify.support.strategies import curved_rewards

CLAIM = Claim.of_module(__name__, __doc__, "One-sided constants of rewards", topics.ONE_SIDED)
REACH, POINTS = 25.0, 40001
FLOOR = 1e-9
"""Absolute error of a second derivative that is zero."""


def measure(reward: Reward, x: Tensor) -> tuple[float, float]:
    """Suprema of r'' and of -r'' over points of the line, at least 0."""
    y = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(reward(y).sum(), y, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), y)
    return max(float(bend.max()), 0.0), max(-float(bend.min()), 0.0)


def bound(reward: Reward) -> tuple[float, float]:
    """Semiconcavity and semiconvexity."""
    return reward.semiconcavity, reward.semiconvexity


def line() -> Tensor:
    return torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)[:, None]


@settings(max_examples=60)
@given(curved_rewards())
def test_holds(plain: ScalarReward) -> None:
    reward = build_reward(plain)
    pairs = zip(measure(reward, line()), bound(reward), ("largest", "smallest"), strict=True)
    for seen, limit, part in pairs:
        CLAIM.holds(seen, limit, describe(plain), floor=FLOOR, part=part)


def test_holds_in_64_dimensions() -> None:
    """Rotated separable sums, along their own directions and along random ones."""
    scalars = [PseudoHuber(0.7, 0.2, -1.5), Softplus(2.0, 1.5), PseudoHuber(1.0, 0.0, 0.4)] * 21
    reward = Separable(random_rotation(64, 5)[:, :63], scalars)
    generator = torch.Generator().manual_seed(1)
    x, b = (torch.randn(200, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    b = torch.cat([b[:137] / b[:137].norm(dim=1, keepdim=True), reward.rotation.T])
    y = x.requires_grad_(True)
    (slope,) = torch.autograd.grad(reward(y).sum(), y, create_graph=True)
    (push,) = torch.autograd.grad((slope * b).sum(), y)
    bends = (push * b).sum(1)
    for seen, limit in zip((bends.max(), (-bends).max()), bound(reward), strict=True):
        CLAIM.holds(max(float(seen), 0.0), limit, {"d": 64}, floor=FLOOR, part="separable")


@pytest.mark.parametrize(
    "reward",
    [PseudoHuber(0.7, 0.5, -1.5), PseudoHuber(0.7, 0.5, 1.5), Softplus(2.0, 3.0), Softplus(-2.0)],
    ids=str,
)
def test_is_attained(reward: PseudoHuber | Softplus) -> None:
    """At the centre, on the one side that is not zero."""
    x = torch.full((1, 1), reward.center, dtype=torch.float64)
    side = int(bound(reward)[0] == 0)
    CLAIM.attained(measure(reward, x)[side], bound(reward)[side], {"reward": str(reward)})


def test_needs_the_sign() -> None:
    """With the two sides exchanged the statement fails for every concave or convex reward."""
    for reward in (PseudoHuber(weight=-1.0), Softplus(2.0)):
        seen, limits = measure(reward, line()), bound(reward)
        side = int(limits[0] == 0)
        CLAIM.breaks(seen[side], limits[1 - side] + FLOOR, {"reward": str(reward)}, "sign")
