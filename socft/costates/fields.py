r"""Approximate costates as functions of step and state, and where they come from.

A costate field :math:`\phi_k(x) \approx \nabla V_k(x)`, k = 0..T, comes from the policy itself,
from a regression of costate samples (`socft.costates.regression`), or from an exact solution. A
`Correction` turns one into a martingale increment: a function of :math:`x_{k+1}` whose mean given
:math:`x_k` is zero, which an adjoint recursion subtracts from :math:`a_{k+1}` without changing any
conditional mean (`socft.costates.martingale`).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import probe, require_callable, require_kinds
from socft.costates.adjoint import LeanRecursion
from socft.costates.base import Cost
from socft.costates.directional import gradient_of
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import States, Step, at_step

CostateField: TypeAlias = Callable[[Step, States], States]
"""``(k, x) -> phi_k(x)``, k = 0..T, differentiable in x."""

FREE = Cost(memory=0)
"""The cost of a field that evaluates neither the reference nor the policy."""


class CostateSource(Readable, abc.ABC):
    """Where a costate field comes from."""

    @property
    @abc.abstractmethod
    def cost(self) -> Cost:
        """What one evaluation of the field costs at a step k < T; networks of its own are not
        counted.
        """

    @abc.abstractmethod
    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        """The field to use for paths of a policy; it must not depend on the noise of those
        paths.
        """


@dataclasses.dataclass(frozen=True)
class GivenCostate(CostateSource):
    """A field fixed beforehand: an earlier regression, or ``truth.value_gradient``."""

    function: CostateField

    def __post_init__(self) -> None:
        require_callable(self.function, "the costate", "of step and states")

    @property
    def cost(self) -> Cost:
        return FREE

    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        return lambda k, x: probe(self.function, (k, x), tuple(x.shape), "the costate")


@dataclasses.dataclass(frozen=True)
class PolicyCostate(CostateSource):
    r"""The costate that the policy implies, by the optimality condition
    :math:`B_k^\top E[a_{k+1} | x_k] = \beta_k v_k`.

    For k < T it is :math:`\phi_k = \nabla m_k^\top (\beta_k B_k^{-\top} v_k) - \nabla f_k`, or
    without the derivative (one policy evaluation, off by a factor of order dt)
    :math:`\beta_k B_k^{-\top} v_k`; for k = T the gradient of the reward. At the optimum the former
    is the value gradient, by the envelope identity (34) of arXiv 2412.18164v4. Along directions
    that the noise does not reach, :math:`B^{-\top}` is the pseudo-inverse and the field sees
    nothing.

    Attributes:
        exact: whether to differentiate the mean map.
    """

    exact: bool = True

    def __post_init__(self) -> None:
        require_kinds(self, exact=bool)

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1 if self.exact else 0, policy=1, memory=0)

    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        def before_the_end(k: Step, x: States) -> States:
            v = policy(k, x)
            pushed = at_step(problem.beta, k, v) * problem.reference.diffusion.solve_transpose(
                k, x, v
            )
            if not self.exact:
                return pushed
            lean = LeanRecursion()
            return gradient_of(lambda y: lean.potential(problem, policy, k, y, pushed), x)

        return with_terminal(problem, before_the_end)


def with_terminal(problem: ControlProblem, field: CostateField) -> CostateField:
    """The field with the reward's own gradient at k = T."""

    def costate(k: Step, x: States) -> States:
        if isinstance(k, int):
            return _reward_gradient(problem, x) if k == problem.steps else field(k, x)
        last = k == problem.steps
        early, final = (~last).nonzero().flatten(), last.nonzero().flatten()
        rows = torch.cat([field(k[early], x[early]), _reward_gradient(problem, x[final])])
        return rows[torch.cat([early, final]).argsort()]

    return costate


def zero_field(k: Step, x: States) -> States:
    """``phi = 0``: what a refinement starts from when nothing is known."""
    return torch.zeros_like(x)


class Correction(Readable, abc.ABC):
    """A martingale increment from a costate field."""

    @property
    @abc.abstractmethod
    def cost(self) -> Cost:
        """What one increment costs at a step k < T - 1, with noise of one dimension."""

    @abc.abstractmethod
    def increment(
        self, problem: ControlProblem, policy: Policy, path: Path, k: int
    ) -> Float[Tensor, "batch *dims"]:
        """``dM_k``, a function of ``x_k`` and ``x_{k+1}`` with mean zero given ``x_k``; computed
        without a graph.
        """


def total(*costs: Cost) -> Cost:
    """The work of several things together; the memory of the largest."""
    names = ("reference", "reference_derivatives", "policy", "policy_derivatives")
    memory = "T" if any(c.memory == "T" for c in costs) else max(int(c.memory) for c in costs)
    return Cost(**{name: sum(getattr(c, name) for c in costs) for name in names}, memory=memory)


def times(count: float, cost: Cost) -> Cost:
    """The work of ``count`` repetitions."""
    return Cost(
        count * cost.reference,
        count * cost.reference_derivatives,
        count * cost.policy,
        count * cost.policy_derivatives,
        0,
    )


def differentiated(cost: Cost, order: int = 1) -> Cost:
    """The work of a nested derivative: each pass through a network counts once per derivative taken
    of it.

    Holds for a cost whose own derivatives are of first order.
    """
    reference = order * cost.reference + (1 + order) * cost.reference_derivatives
    policy = order * cost.policy + (1 + order) * cost.policy_derivatives
    return Cost(0, reference, 0, policy, cost.memory)


def _reward_gradient(problem: ControlProblem, x: States) -> States:
    """``grad r(x)``, differentiable in x."""
    return gradient_of(lambda y: problem.reward(y).sum(), x)
