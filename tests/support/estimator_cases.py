"""A linear-quadratic problem with a policy away from its optimum, where estimators are tested, and
what is measured there: gradients of each path, deviations in standard errors, costs of labels.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from socft.costates.base import Cost
from socft.estimators.base import Estimator, Labels
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    MatrixDiffusion,
    Reference,
    Step,
)
from socft.reward import Quadratic
from socft.truth.affine_policy import affine_gradient
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from tests.support.tensors import F64, randn

IDENTITY = 1e-12  # relative: the same products in another order
DETECTED = 10.0  # standard errors of a bias that is there
PATHS, FEW, STEPS = 20_000, 6, 4
VARYING, CONSTANT = torch.tensor([0.7, 1.5, 0.9, 1.1], dtype=F64), 1.0


def reference(noises: int = 2) -> AffineReference:
    """Two dimensions, four steps, noise of any shape."""
    transfer = 0.8 * torch.eye(2, dtype=F64) + 0.2 * randn(1, STEPS, 2, 2)
    diffusion = MatrixDiffusion(
        0.4 * torch.eye(2, noises, dtype=F64) + 0.15 * randn(2, STEPS, 2, noises)
    )
    return AffineReference(
        transfer,
        diffusion,
        0.2 * randn(3, STEPS, 2),
        torch.tensor([0.5, -0.3], dtype=F64),
        0.6 * torch.eye(2, dtype=F64),
    )


def quadratic_problem(beta: float | Tensor = VARYING, noises: int = 2) -> ControlProblem:
    reward = Quadratic(
        torch.tensor([[-1.0, 0.3], [0.3, 0.4]], dtype=F64), torch.tensor([1.0, -0.5], dtype=F64)
    )
    cost = QuadraticCost(
        torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=F64), torch.tensor([0.1, -0.2], dtype=F64)
    )
    return ControlProblem(reference(noises), reward, beta, cost)


def away(problem: ControlProblem) -> AffinePolicy:
    """A policy away from the optimum."""
    best = LinearQuadratic(problem).affine_policy
    gain, offset = best.gain.detach(), best.offset.detach()
    return AffinePolicy(gain + 0.3 * randn(4, *gain.shape), offset + 0.3 * randn(5, *offset.shape))


def paths(problem: ControlProblem, policy: Policy, seed: int = 0, count: int = PATHS) -> Path:
    noise = Noise.sample(problem.reference, count, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return rollout(problem.reference, policy, noise)


class GivenControl(Policy):
    """Controls given per sample."""

    def __init__(self, control: Tensor):
        self.control = control

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        return self.control


def per_path(
    estimator: Estimator, problem: ControlProblem, policy: AffinePolicy, labels: Labels
) -> Tensor:
    """Gradient of each path's loss in the gains and offsets, step by step: shape (paths, T (m n +
    m)).
    """
    found = []
    for k in range(problem.steps):
        x = labels.states[k]
        control = policy(k, x).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(
            estimator.loss(problem, GivenControl(control), k, labels.step(k)).sum(), control
        )
        found.append(torch.cat([(slope.unsqueeze(2) * x.unsqueeze(1)).flatten(1), slope], 1))
    return torch.cat(found, 1)


def in_order(gain: Tensor, offset: Tensor) -> Tensor:
    """Gains and offsets in the order of `per_path`."""
    return torch.cat([gain.flatten(1), offset], 1).flatten()


def minus_gradient(problem: ControlProblem, policy: AffinePolicy) -> Tensor:
    exact = affine_gradient(problem, policy)
    return -in_order(exact.gain, exact.offset)


def estimates(
    estimator: Estimator, problem: ControlProblem, policy: AffinePolicy, path: Path
) -> Tensor:
    return per_path(estimator, problem, policy, estimator.label(problem, policy, path))


@dataclasses.dataclass
class Count:
    """Evaluations and derivatives asked of the reference and of the policy, in rows."""

    reference: int = 0
    reference_derivatives: int = 0
    policy: int = 0
    policy_derivatives: int = 0


class CountedReference(Reference):
    """Counts the rows that pass; those of an input that requires a gradient are one derivative
    each.
    """

    def __init__(self, inner: Reference, count: Count):
        super().__init__(inner.steps, inner.dims, inner.diffusion)
        self.inner, self.count = inner, count

    def mean(self, k: Step, x: Tensor) -> Tensor:
        derived = x.requires_grad
        self.count.reference += 0 if derived else len(x)
        self.count.reference_derivatives += len(x) if derived else 0
        return self.inner.mean(k, x)


class CountedPolicy(Policy):
    def __init__(self, inner: Policy, count: Count):
        self.inner, self.count = inner, count

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        self.count.policy += 0 if x.requires_grad else len(x)
        self.count.policy_derivatives += len(x) if x.requires_grad else 0
        return self.inner(k, x)


def counted(
    estimator: Estimator, problem: ControlProblem, policy: Policy, path: Path, chances: int
) -> Cost:
    """What making labels cost per chance, a step of a path by default."""
    count = Count()
    chain = CountedReference(problem.reference, count)
    estimator.label(
        ControlProblem(chain, problem.reward, problem.beta, problem.running_cost),
        CountedPolicy(policy, count),
        path,
    )
    per = {field.name: getattr(count, field.name) / chances for field in dataclasses.fields(count)}
    return Cost(**per, memory=estimator.cost.memory)
