r"""Costates along a path, by one backward pass of vector-Jacobian products.

The costate is the gradient of the remaining return. With the policy's state dependence it is the **full** adjoint, the exact
derivative of the simulator,

.. math:: a_T = \nabla r(x_T), \qquad
   a_k = \big(\nabla m_k + \nabla (B_k v_k)\big)^\top a_{k+1} - \beta_k (\nabla v_k)^\top v_k - \nabla f_k ;

without it, :math:`a_k = (\nabla m_k)^\top a_{k+1} - \nabla f_k`, the **lean** adjoint
(Domingo-Enrich et al., arXiv 2409.08861). A correction replaces :math:`a_{k+1}` by :math:`a_{k+1} - dM_k` with a martingale
increment :math:`dM_k`, which leaves every conditional mean as it is (see `socft.costate`). All use O(1) memory in the number of
steps beyond the path and the costates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.policy import Policy
from socft.problem import ControlProblem
from socft.rollout import Path

Increment = Callable[[int], Tensor]
"""``k -> dM_k``, shape (batch, *dims)."""


def full_adjoint(
    problem: ControlProblem, policy: Policy, path: Path, correction: Increment | None = None
) -> Float[Tensor, "steps_plus_1 batch *dims"]:
    """``a_k = d(return from step k on) / d x_k`` along the path with the policy differentiated, k = 0..T."""

    def pulled_back(k: int, x: Tensor, costate: Tensor) -> Tensor:
        v = policy(k, x)
        pushed = problem.reference.step(k, x, v + path.noise.steps[k].to(x))
        price = problem.beta[k].to(x) * v.square().sum() / 2
        return (pushed * costate).sum() - price

    return _backward(problem, path, pulled_back, correction)


def lean_adjoint(
    problem: ControlProblem, path: Path, correction: Increment | None = None
) -> Float[Tensor, "steps_plus_1 batch *dims"]:
    """The costate of the pre-trained dynamics along the path, k = 0..T."""

    def pulled_back(k: int, x: Tensor, costate: Tensor) -> Tensor:
        return (problem.reference.mean(k, x) * costate).sum()

    return _backward(problem, path, pulled_back, correction)


def _backward(
    problem: ControlProblem, path: Path, pulled_back: Callable[[int, Tensor, Tensor], Tensor], correction: Increment | None
) -> Tensor:
    costates = [problem.reward.gradient(path.final)]
    for k in reversed(range(problem.steps)):
        after = costates[-1] if correction is None else costates[-1] - correction(k)
        with torch.enable_grad():
            x = path.states[k].detach().requires_grad_(True)
            scalar = pulled_back(k, x, after)
            if problem.running_cost is not None:
                scalar = scalar - problem.running_cost(k, x).sum()
            (costate,) = torch.autograd.grad(scalar, x)
        costates.append(costate)
    return torch.stack(costates[::-1])
