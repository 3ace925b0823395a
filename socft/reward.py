r"""Rewards :math:`r(x)` with the constants the theory needs.

``L0`` is the Lipschitz constant of the reward and ``L1`` that of its gradient (both may be infinite). A reward maps states of shape
``batch *dims`` to one number per sample.
"""

from __future__ import annotations

import abc

import torch
from jaxtyping import Float
from torch import Tensor

from socft.reference import States

PerSample = Float[Tensor, " batch"]


class Reward(abc.ABC):
    """A reward to maximise at the end of the chain."""

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
            (gradient,) = torch.autograd.grad(self(y).sum(), y)
        return gradient
