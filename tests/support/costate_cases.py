"""Problems that the tests of costates share."""

from __future__ import annotations

import torch

from socft.costates.martingale import (
    AntitheticCorrection,
    ExactCorrection,
    FieldCorrection,
    FirstOrderCorrection,
    SecondOrderCorrection,
)
from socft.policy import MLPPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference, MatrixDiffusion, Reference
from socft.reward import Quadratic
from socft.truth.linear_quadratic import QuadraticCost
from tests.support.tensors import F64, generator, randn, t

STEPS = 4
CORRECTIONS: list[type[FieldCorrection]] = [
    FirstOrderCorrection,
    AntitheticCorrection,
    SecondOrderCorrection,
    ExactCorrection,
]


def quadratic_problem(running: bool = True) -> ControlProblem:
    """Two dimensions, correlated noise, a drift, beta that changes."""
    A = 0.9 * torch.eye(2, dtype=F64) + 0.2 * randn(0, STEPS, 2, 2)
    B = 0.6 * torch.eye(2, dtype=F64) + 0.2 * randn(1, STEPS, 2, 2)
    reference = AffineReference(A, MatrixDiffusion(B), 0.2 * randn(2, STEPS, 2))
    reward = Quadratic(-torch.eye(2, dtype=F64) + torch.ones(2, 2, dtype=F64) / 4, t(0.5, -1.0))
    cost = QuadraticCost(t(0.2, 0.1).diag(), t(0.1, -0.3)) if running else None
    return ControlProblem(reference, reward, t(0.7, 1.5, 0.9, 1.1), cost)


def network_policy(reference: Reference) -> Policy:
    """A perceptron that is not zero."""
    policy = MLPPolicy(reference, width=8, depth=2, generator=generator(4))
    last = list(policy.network.network.children())[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.copy_(0.5 * randn(5, *last.weight.shape))
    return policy
