"""What a reward is, and functions as rewards."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    InvalidProblem,
    called,
    constant,
    require,
    require_callable,
    require_kind,
    require_states,
)
from socft.readable import Readable
from socft.reference import States

PerSample = Float[Tensor, " batch"]
Scalars = Float[Tensor, "batch 1"]
MANY = 32
"""States at which a gradient that is nowhere but zero is no accident."""


class Reward(Readable, abc.ABC):
    """A reward to maximise at the end of the chain.

    >>> isinstance(Sine(), Reward)
    True
    >>> Sine(frequency=2.0).gradient(torch.zeros(1, 1))
    tensor([[2.]])
    """

    @property
    def L0(self) -> float:
        """Lipschitz constant of the reward; ``inf`` where there is none, or none is known."""
        return math.inf

    @property
    def L1(self) -> float:
        """Lipschitz constant of the gradient; ``inf`` where there is none, or none is known."""
        return math.inf

    @property
    def semiconcavity(self) -> float:
        """Least c >= 0 for which ``r - c |x|^2 / 2`` is concave, so that ``Hess r <= c I``: zero
        for concave rewards; L1 unless a subclass knows better.
        """
        return self.L1

    @property
    def semiconvexity(self) -> float:
        """Least c >= 0 for which ``r + c |x|^2 / 2`` is convex, so that ``Hess r >= -c I``: zero
        for convex rewards; L1 unless a subclass knows better.
        """
        return self.L1

    @abc.abstractmethod
    def __call__(self, x: States) -> PerSample:
        """The reward of each sample."""

    def gradient(self, x: States) -> States:
        """``grad r``, detached; by automatic differentiation unless a subclass knows better.

        Raises:
            InvalidProblem: automatic differentiation finds none, or zero at all of `MANY` states or
                more, though the values there differ: a step function.
        """
        require_kind(x, Tensor, "a state", "give a tensor of floating-point states.")
        require_states(x, tuple(x.shape[1:]), "the reward")
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            values = self(y)
            gradient = (
                torch.autograd.grad(values.sum(), y, allow_unused=True)[0]
                if values.requires_grad
                else None
            )
        if gradient is None:
            raise InvalidProblem(
                "the reward has no gradient: its value does not depend on the states through"
                " differentiable operations; compute it by torch, or give a Reward with a gradient"
                " of its own."
            )
        require(
            len(x) < MANY or bool(gradient.any()) or bool((values == values[0]).all()),
            f"the reward takes different values at {len(x)} states and has gradient zero at all of"
            " them, as a step function has; give a Reward with a gradient of its own, or an"
            " estimator that asks for none, such as ScoreFunction.",
        )
        return gradient


class FunctionReward(Reward):
    """Any function of states as a reward; the constants are the caller's word, infinite by default.

    Args:
        function: ``batch *dims -> batch``, differentiable if `gradient` is to be used.
        L0: Lipschitz constant of the function.
        L1: Lipschitz constant of its gradient.
        semiconcavity: bound of the largest eigenvalue of its Hessian, zero if it is concave; L1 by
            default.
        semiconvexity: bound of minus the smallest eigenvalue, zero if it is convex; L1 by default.

    >>> reward = FunctionReward(lambda x: x.square().sum(1), L1=2.0)
    >>> reward.gradient(torch.tensor([[3.0]]))
    tensor([[6.]])
    """

    def __init__(
        self,
        function: Callable[[States], PerSample],
        L0: float = math.inf,
        L1: float = math.inf,
        semiconcavity: float = math.inf,
        semiconvexity: float = math.inf,
    ):
        require_callable(function, "the reward", "of the states, or a Reward")
        self.function = function
        self._L0, self._L1 = constant(L0, "L0"), constant(L1, "L1")
        self._semiconcavity = constant(semiconcavity, "semiconcavity")
        self._semiconvexity = constant(semiconvexity, "semiconvexity")

    def shown(self) -> dict[str, Any]:
        own = super().shown()
        known = {"semiconcavity", "semiconvexity"} if self._one_sided < self._L1 else set()
        return {k: v for k, v in own.items() if not k.startswith("semi") or k in known}

    @property
    def _one_sided(self) -> float:
        return min(self._semiconcavity, self._semiconvexity)

    @property
    def L0(self) -> float:
        return self._L0

    @property
    def L1(self) -> float:
        return self._L1

    @property
    def semiconcavity(self) -> float:
        return min(self._semiconcavity, self._L1)

    @property
    def semiconvexity(self) -> float:
        return min(self._semiconvexity, self._L1)

    def __call__(self, x: States) -> PerSample:
        require_kind(x, Tensor, "a state", "give a tensor of floating-point states.")
        return called(self.function, (x,), (len(x),), "the reward")


def as_reward(reward: Reward | Callable[[States], PerSample]) -> Reward:
    """A reward as it is, or a function of the states as a `FunctionReward`.

    Raises:
        InvalidProblem: neither.
    """
    return reward if isinstance(reward, Reward) else FunctionReward(reward)
