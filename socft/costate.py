r"""Approximate costates as functions of step and state, and what they are for.

A costate field :math:`\phi_k(x) \approx \nabla V_k(x)`, k = 0..T, comes from the policy itself, from a regression of costate
samples, or from an exact solution. A `Correction` turns one into a martingale increment: a function of :math:`x_{k+1}` whose mean
given :math:`x_k` is zero, which an adjoint recursion subtracts from :math:`a_{k+1}` without changing any conditional mean.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import States, Step, at_step
from socft.rollout import Path

CostateField: TypeAlias = Callable[[Step, States], States]
"""``(k, x) -> phi_k(x)``, k = 0..T, differentiable in x."""


class CostateSource(abc.ABC):
    """Where a costate field comes from."""

    @abc.abstractmethod
    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        """The field to use for paths of a policy; it must not depend on the noise of those paths."""


@dataclasses.dataclass(frozen=True)
class Given(CostateSource):
    """A field fixed beforehand: an earlier regression, or ``truth.value_gradient``."""

    function: CostateField

    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        return self.function


@dataclasses.dataclass(frozen=True)
class FromPolicy(CostateSource):
    r"""The costate that the policy implies, by the optimality condition :math:`B_k^\top E[a_{k+1} | x_k] = \beta_k v_k`.

    For k < T it is :math:`\phi_k = \nabla m_k^\top (\beta_k B_k^{-\top} v_k) - \nabla f_k`, or without the derivative (one policy
    evaluation, off by a factor of order dt) :math:`\beta_k B_k^{-\top} v_k`; for k = T the gradient of the reward. Along
    directions that the noise does not reach, :math:`B^{-\top}` is the pseudo-inverse and the field is zero.

    Attributes:
        exact: whether to differentiate the mean map.
    """

    exact: bool = True

    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        def costate(k: Step, x: States) -> States:
            raise NotImplementedError

        return costate


class Correction(abc.ABC):
    """A martingale increment from a costate field."""

    @abc.abstractmethod
    def increment(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> Float[Tensor, "batch *dims"]:
        """``dM_k``, a function of ``x_k`` and ``x_{k+1}`` with mean zero given ``x_k``; computed without a graph."""


__all__ = ["Correction", "CostateField", "CostateSource", "FromPolicy", "Given", "at_step", "torch"]
