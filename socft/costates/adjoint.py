r"""Costates along a path, by one backward pass of vector-Jacobian products.

The costate is the gradient of the remaining return. With the policy's state dependence it is the
**full** adjoint, the exact derivative of the simulator,

.. math:: a_T = \nabla r(x_T), \qquad a_k = \big(\nabla m_k + \nabla (B_k (v_k + \xi_k))\big)^\top
   a_{k+1} - \beta_k (\nabla v_k)^\top v_k - \nabla f_k ;

without it, :math:`a_k = (\nabla m_k)^\top a_{k+1} - \nabla f_k`, the **lean** adjoint
(Domingo-Enrich et al., arXiv 2409.08861), biased where :math:`B_k` depends on the state (arXiv
2604.08580).

Other estimators pull something else back in place of :math:`a_{k+1}`, such as
:math:`a_{k+1} - dM_k` with a martingale increment (`socft.costates.martingale`). Where :math:`B_k`
depends on the state, :math:`\nabla(B_k \xi_k)` always acts on :math:`a_{k+1}` itself: it has mean
zero and is correlated with :math:`dM_k`, so the correction would be biased (derived here). All use
O(1) memory in the number of steps beyond the path and the costates.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from socft.costates.base import Cost, CostateStep
from socft.path import Path
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import Noises, States, Step, at_step

NextCostate: TypeAlias = Callable[[int, Tensor], Tensor]
"""``(k, a_{k+1}) -> `` what step k pulls back in its place, shape (batch, *dims)."""


@dataclasses.dataclass(frozen=True)
class StepTaken:
    """The noise of a step on a path, and the costates after it.

    Attributes:
        noise: shape (batch, *noise_dims).
        next: ``a_{k+1}``, shape (batch, *dims).
        target_costate: what is pulled back in its place, shape (batch, *dims).
    """

    noise: Noises
    next: States
    target_costate: States


class Adjoint(Readable, abc.ABC):
    """Which state dependence a costate differentiates.

    Attributes:
        cost: what pulling back one step costs.
    """

    cost: Cost

    @abc.abstractmethod
    def potential(
        self, problem: ControlProblem, policy: Policy, k: Step, x: States, costate: States
    ) -> Tensor:
        """The number whose gradient in ``x`` is the costate of step k without noise, summed over
        the batch; the running cost is part of it.
        """

    @abc.abstractmethod
    def noise_potential(
        self, problem: ControlProblem, k: int, x: States, noise: Noises, costate: States
    ) -> Tensor | float:
        """What the noise of the step adds to it."""

    def along(
        self, problem: ControlProblem, policy: Policy, k: int, x: States, step: StepTaken
    ) -> Tensor:
        """The number whose gradient in ``x`` is the costate of step k on a path that took it so,
        summed over the batch.
        """
        noisy = self.noise_potential(problem, k, x, step.noise, step.next)
        return self.potential(problem, policy, k, x, step.target_costate) + noisy

    def vjp(
        self, problem: ControlProblem, policy: Policy, k: int, x: States, costate: States
    ) -> States:
        """The costate of step k at ``x`` from a costate of step k + 1, without noise and without a
        graph.
        """
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.potential(problem, policy, k, y, costate), y)
        return gradient


@dataclasses.dataclass(frozen=True)
class LeanRecursion(Adjoint):
    """The pre-trained mean alone: the gradient is ``Jac m_k(x)^T a - grad f_k(x)``."""

    cost = Cost(reference_derivatives=1)

    def potential(
        self, problem: ControlProblem, policy: Policy, k: Step, x: States, costate: States
    ) -> Tensor:
        return (problem.reference.mean(k, x) * costate).sum() - problem.cost(k, x).sum()

    def noise_potential(
        self, problem: ControlProblem, k: int, x: States, noise: Noises, costate: States
    ) -> Tensor | float:
        return 0.0


@dataclasses.dataclass(frozen=True)
class FullRecursion(Adjoint):
    """Everything: the derivative of the simulator."""

    cost = Cost(reference_derivatives=1, policy_derivatives=1)

    def potential(
        self, problem: ControlProblem, policy: Policy, k: Step, x: States, costate: States
    ) -> Tensor:
        v = policy(k, x)
        moved = (problem.reference.step(k, x, v) * costate).sum()
        price = at_step(problem.beta, k, v) * v.square() / 2
        return moved - price.sum() - problem.cost(k, x).sum()

    def noise_potential(
        self, problem: ControlProblem, k: int, x: States, noise: Noises, costate: States
    ) -> Tensor | float:
        return (problem.reference.diffusion.apply(k, x, noise) * costate).sum()


def full_adjoint(
    problem: ControlProblem, policy: Policy, path: Path, next_costate: NextCostate | None = None
) -> Float[Tensor, "steps_plus_1 batch *dims"]:
    """``a_k = d(return from step k on) / d x_k`` along the path with the policy differentiated, k =
    0..T.
    """
    return _stacked(backward_pass(FullRecursion(), problem, policy, path, next_costate))


def lean_adjoint(
    problem: ControlProblem, path: Path, next_costate: NextCostate | None = None
) -> Float[Tensor, "steps_plus_1 batch *dims"]:
    """The costate of the pre-trained dynamics along the path, k = 0..T."""
    return _stacked(
        backward_pass(LeanRecursion(), problem, Uncontrolled(problem.reference), path, next_costate)
    )


def backward_pass(
    adjoint: Adjoint,
    problem: ControlProblem,
    policy: Policy,
    path: Path,
    next_costate: NextCostate | None = None,
) -> Iterator[CostateStep]:
    """Costates along the path, from k = T down to 0, that pull back ``next_costate(k, a_{k+1})``,
    by default ``a_{k+1}``.
    """
    costate = problem.reward.gradient(path.final)
    yield CostateStep(problem.steps, path.states[-1], costate, None)
    for k in reversed(range(problem.steps)):
        after = costate
        target = after if next_costate is None else next_costate(k, after)
        with torch.enable_grad():
            x = path.states[k].detach().requires_grad_(True)
            taken = StepTaken(path.noise.steps[k].to(x), after, target)
            scalar = adjoint.along(problem, policy, k, x, taken)
            (costate,) = torch.autograd.grad(scalar, x)
        yield CostateStep(k, path.states[k], costate, target)


def _stacked(steps: Iterable[CostateStep]) -> Tensor:
    return torch.stack([step.value for step in steps][::-1])
