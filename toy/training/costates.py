"""Exact costate fields of the policy in training, where it is affine."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.base import Cost
from socft.costates.fields import FREE, CostateField, CostateSource
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.truth.affine_policy import evaluate_affine
from socft.truth.quadratic import QuadraticValue, affine_of, diffusion_apply, running_of


@dataclasses.dataclass(frozen=True)
class SolvedField:
    """A field, and the problem and the coefficients of the policy that it was solved for."""

    problem: ControlProblem
    gain: Tensor
    offset: Tensor
    field: CostateField

    def is_of(self, problem: ControlProblem, policy: AffinePolicy) -> bool:
        """Whether it is that of a policy."""
        return (
            self.problem is problem
            and torch.equal(self.gain, policy.gain)
            and torch.equal(self.offset, policy.offset)
        )


class OwnCostate(CostateSource, abc.ABC):
    """An exact field of an affine policy in a linear-quadratic problem, solved again whenever the
    policy has other coefficients than before.
    """

    def __init__(self) -> None:
        self._solved: SolvedField | None = None

    @property
    def cost(self) -> Cost:
        return FREE

    @abc.abstractmethod
    def solve(self, problem: ControlProblem, policy: AffinePolicy) -> QuadraticValue:
        """A quadratic function whose gradient is the field."""

    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        if not isinstance(policy, AffinePolicy):
            raise InvalidProblem(
                f"the policy is a {type(policy).__name__}; only the costate of an AffinePolicy is"
                " known in closed form.",
            )
        if self._solved is None or not self._solved.is_of(problem, policy):
            gain, offset = policy.gain.detach().clone(), policy.offset.detach().clone()
            field = self.solve(problem, policy).gradient
            self._solved = SolvedField(problem, gain, offset, field)
        return self._solved.field


class OwnValue(OwnCostate):
    """``grad V_k`` of the policy: the conditional mean of full adjoints."""

    def solve(self, problem: ControlProblem, policy: AffinePolicy) -> QuadraticValue:
        return evaluate_affine(problem, policy).value


class OwnLean(OwnCostate):
    r"""The conditional mean of lean adjoints on the policy's paths, :math:`L_k x + l_k` with a
    matrix that is not symmetric: :math:`L_k = A_k^\top L_{k+1} \bar A_k - F_k`,
    :math:`l_k = A_k^\top (L_{k+1} \bar b_k + l_{k+1}) - h_k` (derived here).
    """

    @torch.no_grad()
    def solve(self, problem: ControlProblem, policy: AffinePolicy) -> QuadraticValue:
        reference, (F, h), steps = affine_of(problem), running_of(problem), problem.steps
        closed = reference.transition + diffusion_apply(reference.diffusion, policy.gain)
        moved = reference.offset + diffusion_apply(
            reference.diffusion, policy.offset.unsqueeze(2)
        ).squeeze(2)
        end = torch.zeros(1, *reference.dims, dtype=torch.float64)
        slope = problem.reward.gradient(end)[0]
        eye = torch.eye(*reference.dims, dtype=torch.float64)
        L, q = [(problem.reward.gradient(eye) - slope).mT], [slope]
        for k in reversed(range(steps)):
            A = reference.transition[k]
            q.append(A.mT @ (L[-1] @ moved[k] + q[-1]) - h[k])
            L.append(A.mT @ L[-1] @ closed[k] - (0 if F is None else F[k]))
        return QuadraticValue(
            torch.stack(L[::-1]), torch.stack(q[::-1]), torch.zeros(steps + 1, dtype=torch.float64)
        )
