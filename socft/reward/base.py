"""What a reward is, and functions as rewards."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    InvalidProblem,
    require,
)
from socft.readable import Readable
from socft.reference import States

PerSample = Float[Tensor, " batch"]
Scalars = Float[Tensor, "batch 1"]


class Reward(Readable, abc.ABC):
    """A reward to maximise at the end of the chain.

    >>> isinstance(Sine(), Reward)
    True
    >>> Sine(frequency=2.0).gradient(torch.zeros(1, 1))
    tensor([[2.]])
    """

    @property
    @abc.abstractmethod
    def L0(self) -> float:
        """Lipschitz constant of the reward; ``inf`` where there is none."""

    @property
    @abc.abstractmethod
    def L1(self) -> float:
        """Lipschitz constant of the gradient; ``inf`` where there is none."""

    @abc.abstractmethod
    def __call__(self, x: States) -> PerSample:
        """The reward of each sample."""

    def gradient(self, x: States) -> States:
        """``grad r``, detached; by automatic differentiation unless a subclass knows better."""
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            value = self(y).sum()
            gradient = (
                torch.autograd.grad(value, y, allow_unused=True)[0] if value.requires_grad else None
            )
        if gradient is None:
            raise InvalidProblem(
                "the reward has no gradient: its value does not depend on the states through"
                " differentiable operations; compute it by torch, or give a Reward with a gradient"
                " of its own."
            )
        return gradient


class FunctionReward(Reward):
    """Any function of states as a reward; the constants are the caller's word, infinite by default.

    Args:
        function: ``batch *dims -> batch``, differentiable if `gradient` is to be used.
        L0: Lipschitz constant of the function.
        L1: Lipschitz constant of its gradient.

    >>> reward = FunctionReward(lambda x: x.square().sum(1), L1=2.0)
    >>> reward.gradient(torch.tensor([[3.0]]))
    tensor([[6.]])
    """

    def __init__(
        self, function: Callable[[States], PerSample], L0: float = math.inf, L1: float = math.inf
    ):
        for name, value in (("L0", L0), ("L1", L1)):
            require(
                value >= 0,
                f"{name} = {value}; give a number that is at least 0, or leave it out if there is"
                " none.",
            )
        self.function = function
        self._L0, self._L1 = float(L0), float(L1)

    @property
    def L0(self) -> float:
        return self._L0

    @property
    def L1(self) -> float:
        return self._L1

    def __call__(self, x: States) -> PerSample:
        return self.function(x)


def as_reward(reward: Reward | Callable[[States], PerSample]) -> Reward:
    """A reward as it is, or a function of the states as a `FunctionReward`.

    Raises:
        InvalidProblem: neither.
    """
    require(
        callable(reward),
        f"the reward is a {type(reward).__name__}; give a Reward or a function of the states.",
    )
    return reward if isinstance(reward, Reward) else FunctionReward(reward)
