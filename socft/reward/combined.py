"""Rewards made of others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import keep, numbers, require, require_kind, require_states
from socft.reference import States
from socft.reward.arguments import orthonormal
from socft.reward.base import PerSample, Reward


@dataclasses.dataclass(frozen=True, eq=False)
class RidgeFunction(Reward):
    """``r(x) = scalar(q . x)`` on vectors. L0 = |q| L0(scalar), L1 = |q|^2 L1(scalar).

    Attributes:
        q: direction of any length, shape (n,).
        scalar: a reward of states of shape (batch, 1).

    >>> RidgeFunction([3.0, 4.0], Sine()).L0
    5.0
    """

    q: Float[Tensor, " n"]
    scalar: Reward

    def __post_init__(self) -> None:
        q = numbers(self.q, "q", ("n",))
        require(bool((q != 0).any()), f"q = {q.tolist()}; give a non-zero vector.")
        _require_rewards([self.scalar])
        keep(self, q=q)

    @property
    def L0(self) -> float:
        return float(self.q.norm()) * self.scalar.L0

    @property
    def L1(self) -> float:
        return float(self.q.square().sum()) * self.scalar.L1

    @property
    def semiconcavity(self) -> float:
        return float(self.q.square().sum()) * self.scalar.semiconcavity

    @property
    def semiconvexity(self) -> float:
        return float(self.q.square().sum()) * self.scalar.semiconvexity

    def __call__(self, x: States) -> PerSample:
        require_states(x, self.q.shape, "the ridge function")
        return self.scalar((x @ self.q.to(x)).unsqueeze(1))

    def gradient(self, x: States) -> States:
        require_states(x, self.q.shape, "the ridge function")
        return self.scalar.gradient((x @ self.q.to(x)).unsqueeze(1)) * self.q.to(x)


@dataclasses.dataclass(frozen=True, eq=False)
class Separable(Reward):
    """``r(x) = sum_i scalars_i(q_i . x)`` with orthonormal ``q_i``.

    The coordinates ``q_i . x`` vary independently, so the suprema add up: L0 = sqrt(sum_i L0_i^2)
    and L1 = max_i L1_i, both exact whenever the scalar constants are.

    Attributes:
        rotation: the directions as columns, shape (n, m) with m <= n.
        scalars: m rewards of states of shape (batch, 1).

    >>> Separable(torch.eye(2), [Sine(), Softplus()])(torch.zeros(1, 2))
    tensor([0.6931])
    """

    rotation: Float[Tensor, "n m"]
    scalars: Sequence[Reward]

    def __post_init__(self) -> None:
        _require_rewards(self.scalars)
        rotation = orthonormal(self.rotation, "rotation")
        keep(self, rotation=rotation, scalars=tuple(self.scalars))
        columns = self.rotation.shape[1]
        require(
            len(self.scalars) == columns,
            f"there are {len(self.scalars)} scalar rewards for {columns} directions; give one"
            " each.",
        )

    @property
    def L0(self) -> float:
        return math.hypot(*(r.L0 for r in self.scalars))

    @property
    def L1(self) -> float:
        return max(r.L1 for r in self.scalars)

    @property
    def semiconcavity(self) -> float:
        return max(r.semiconcavity for r in self.scalars)

    @property
    def semiconvexity(self) -> float:
        return max(r.semiconvexity for r in self.scalars)

    def __call__(self, x: States) -> PerSample:
        z = self._along(x)
        return torch.stack([r(z[:, i : i + 1]) for i, r in enumerate(self.scalars)]).sum(0)

    def gradient(self, x: States) -> States:
        z = self._along(x)
        return torch.cat(
            [r.gradient(z[:, i : i + 1]) for i, r in enumerate(self.scalars)], 1
        ) @ self.rotation.T.to(x)

    def _along(self, x: States) -> Float[Tensor, "batch m"]:
        require_states(x, self.rotation.shape[:1], "the separable reward")
        return x @ self.rotation.to(x)


@dataclasses.dataclass(frozen=True, eq=False)
class Sum(Reward):
    """``r(x) = sum_i weights_i rewards_i(x)``; the constants add, so they are upper bounds.

    Attributes:
        rewards: at least one reward.
        weights: one number each, 1 by default; rewards of weight zero are dropped.

    >>> Sum([Sine(), Quadratic([[-1.0]])], weights=[1.0, 0.1])(torch.zeros(1, 1))
    tensor([0.])
    """

    rewards: Sequence[Reward]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _require_rewards(self.rewards)
        count = len(self.rewards)
        weights = [1.0] * count if self.weights is None else self.weights
        weights = numbers(weights, "weights", (count,)).tolist()
        kept = [(r, w) for r, w in zip(self.rewards, weights, strict=True) if w != 0]
        require(bool(kept), "every weight is 0; give at least one that is not.")
        keep(self, rewards=tuple(r for r, _ in kept), weights=tuple(w for _, w in kept))

    @property
    def terms(self) -> tuple[tuple[float, Reward], ...]:
        """The weighted rewards."""
        assert self.weights is not None
        return tuple(zip(self.weights, self.rewards, strict=True))

    @property
    def L0(self) -> float:
        return sum(abs(w) * r.L0 for w, r in self.terms)

    @property
    def L1(self) -> float:
        return sum(abs(w) * r.L1 for w, r in self.terms)

    @property
    def semiconcavity(self) -> float:
        return sum(abs(w) * (r.semiconcavity if w > 0 else r.semiconvexity) for w, r in self.terms)

    @property
    def semiconvexity(self) -> float:
        return sum(abs(w) * (r.semiconvexity if w > 0 else r.semiconcavity) for w, r in self.terms)

    def __call__(self, x: States) -> PerSample:
        return torch.stack([w * r(x) for w, r in self.terms]).sum(0)

    def gradient(self, x: States) -> States:
        return torch.stack([w * r.gradient(x) for w, r in self.terms]).sum(0)


def _require_rewards(rewards: Sequence[Reward]) -> None:
    require_kind(rewards, (list, tuple), "what is combined", "give a list of rewards.")
    require(len(rewards) > 0, "there are 0 rewards; give at least one.")
    for each in rewards:
        require_kind(each, Reward, "a part of the reward", "give a Reward, such as Sine().")
