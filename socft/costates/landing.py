r"""Costates that stick the landing: the derivative of the return with the score function left in.

Along a path the return is, up to a constant, :math:`r(x_T) - \sum_k (f_k(x_k) + \beta_k |v_k +
\xi_k|^2/2)`, a logarithmic ratio of densities whose noises :math:`\xi_k` are not differentiated.
Compared with the adjoints of `socft.costates.adjoint`, its derivative in the state has one more
term of mean zero given :math:`x_k`, :math:`-\beta_k (\nabla v_k)^\top \xi_k`:

.. math:: \text{full:}\quad a_k = (\nabla m_k + \nabla (B_k (v_k + \xi_k)))^\top a_{k+1} - \beta_k
   (\nabla v_k)^\top (v_k + \xi_k) - \nabla f_k, \qquad \text{lean:}\quad a_k = (\nabla m_k)^\top
   a_{k+1} - \beta_k (\nabla v_k)^\top \xi_k - \nabla f_k .

At the optimum, with :math:`\bar x_k = m_k + B_k v_k` and constant :math:`B_k`,

.. math:: \beta_k (\nabla v_k)^\top \xi_k = (\nabla \bar x_k)^\top D_k, \qquad D_k = E[\nabla^2
   V_{k+1}(\bar x_k + B_k \xi)]\, B_k \xi_k ,

by differentiating :math:`\beta_k v_k = B_k^\top E \nabla V_{k+1}(\bar x_k + B_k \xi)`: the term is
the martingale increment :math:`dM_k = D_k` of `socft.costates.martingale`, the projection of
:math:`\nabla V_{k+1}(x_{k+1})` on functions linear in the noise, with one omission: the target of
step k itself keeps :math:`D_k` in :math:`a_{k+1}`. An `OwnStep` takes it out.

Sticking the landing is of Roeder, Wu and Duvenaud (arXiv 1703.09194), in continuous time of Xu,
Chen, Li and Duvenaud (arXiv 2102.06559); the projection is the control variate of Newton (1994) and
of Belomestny et al. (arXiv 1510.03141), its use for sensitivities of controlled diffusions of Gobet
and Munos (2005). The generalisation to lean and full costates that is exact for the chain, the
relation above and the own step are derived here.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.costates.adjoint import FullRecursion, LeanRecursion, StepTaken
from socft.costates.base import Cost
from socft.costates.directional import derivative
from socft.path import Path
from socft.policy import FunctionPolicy, Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import Noises, States, at_step


@dataclasses.dataclass(frozen=True)
class FullLanding(FullRecursion):
    """The full adjoint of ``r - sum_k beta_k |v_k + xi_k|^2 / 2``; costs what the full adjoint
    does.
    """

    def along(
        self, problem: ControlProblem, policy: Policy, k: int, x: States, step: StepTaken
    ) -> Tensor:
        noisy = FunctionPolicy(lambda at, y: policy(at, y) + step.noise)
        return self.potential(problem, noisy, k, x, step.target_costate)


@dataclasses.dataclass(frozen=True)
class LeanLanding(LeanRecursion):
    """The lean adjoint and the gradient of ``-beta_k v_k . xi_k``."""

    cost = Cost(reference_derivatives=1, policy_derivatives=1)

    def along(
        self, problem: ControlProblem, policy: Policy, k: int, x: States, step: StepTaken
    ) -> Tensor:
        v = policy(k, x)
        score = at_step(problem.beta, k, v) * v * step.noise
        return super().along(problem, policy, k, x, step) - score.sum()


class OwnStep(Readable, abc.ABC):
    """What a target of step k subtracts for the noise of its own step, linear in that noise."""

    @property
    @abc.abstractmethod
    def cost(self) -> Cost:
        """What it costs per step, with noise and states of one dimension."""

    @abc.abstractmethod
    def increment(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> Noises:
        """Of mean zero given ``x_k``, shape (batch, *noise_dims); without a graph."""


@dataclasses.dataclass(frozen=True)
class OwnStepAsIs(OwnStep):
    """Nothing: at the optimum of a linear-quadratic problem the target's noise is of order dt."""

    @property
    def cost(self) -> Cost:
        return Cost(memory=0)

    def increment(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> Noises:
        return torch.zeros_like(path.controls[k])


@dataclasses.dataclass(frozen=True)
class OwnStepByJvp(OwnStep):
    """``Jac v_k(x_k) B_k xi_k``, one Jacobian-vector product of the policy: ``B_k^T D_k / beta_k``
    up to the factor ``Jac xbar_k = I + O(dt)``.
    """

    @property
    def cost(self) -> Cost:
        return Cost(policy_derivatives=1)

    @torch.no_grad()
    def increment(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> Noises:
        x = path.states[k].clone()  # the tangent of a view would stay with its base
        moved = problem.reference.diffusion.apply(k, x, path.noise.steps[k].to(x))
        return derivative(lambda y: policy(k, y), x, moved).detach()


@dataclasses.dataclass(frozen=True)
class OwnStepExact(OwnStep):
    """``B_k^T (Jac xbar_k)^-T (Jac v_k)^T xi_k``, at the optimum ``B_k^T D_k / beta_k``; for
    vectors: as many derivatives as a state and a noise have entries. Where a step bends the states
    so much that the Jacobian is singular it may add more noise than it removes.
    """

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1, policy_derivatives=1)

    def increment(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> Noises:
        reference, noise = problem.reference, path.noise.steps[k].to(path.states)
        require(
            len(reference.dims) == 1,
            f"states have shape {reference.dims}; the exact own step inverts a Jacobian of vectors:"
            " use OwnStepByJvp.",
        )
        with torch.enable_grad():
            x = path.states[k].detach().requires_grad_(True)
            slopes = _jacobian(policy(k, x), x)
            means = _jacobian(reference.mean(k, x), x)
        columns = [reference.diffusion.apply(k, x.detach(), each) for each in slopes.unbind(2)]
        inverse = torch.linalg.pinv(means + torch.stack(columns, 2))
        costate = inverse.mT @ slopes.mT @ noise.unsqueeze(-1)
        return reference.diffusion.transpose(k, path.states[k], costate.squeeze(-1))


def _jacobian(function: Tensor, x: Tensor) -> Float[Tensor, "batch out n"]:
    """Of vectors with respect to vectors; zero where ``x`` does not matter."""
    if not function.requires_grad:
        return x.new_zeros(len(x), function.shape[1], x.shape[1])
    rows = [
        torch.autograd.grad(each.sum(), x, retain_graph=True, materialize_grads=True)[0]
        for each in function.unbind(1)
    ]
    return torch.stack(rows, 1)
