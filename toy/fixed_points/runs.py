"""Methods run on samples in the exact class, by damped Newton steps of their own losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.estimators.base import Estimator
from socft.path import Noise, Path, rollout
from socft.policy import FeaturePolicy
from toy.fixed_points.line import LineChain
from toy.measure import control_slope

PRIOR = 2.0
"""Samples of which a node is taken to know that its coefficient is what it was."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long a method is run.

    Attributes:
        batch: paths of every iteration.
        iterations: their number; the mean of the coefficients of the last half counts.
        rate: damping of the Newton steps.
    """

    batch: int
    iterations: int
    rate: float


@torch.no_grad()
def run(
    line: LineChain,
    estimator: Estimator,
    unit: Callable[[Path], Float[Tensor, " steps"]],
    effort: Effort,
    generator: torch.Generator,
) -> FeaturePolicy:
    """Where a method goes from the pre-trained model.

    Args:
        unit: curvature of the method's loss in the control, by step, on a batch of paths, up to a
            factor near one.
    """
    policy, problem = line.hats.policy(line.problem.steps), line.problem
    total, counted = torch.zeros_like(policy.weight), 0
    for iteration in range(effort.iterations):
        noise = Noise.sample(problem.reference, effort.batch, generator)
        path = rollout(problem.reference, policy, noise)
        labels, curvature = estimator.label(problem, policy, path), unit(path)
        for k in range(problem.steps):
            phi = line.hats(labels.states[k])
            slope = control_slope(estimator, problem, policy, labels, k) / curvature[k]
            known = phi.T @ phi + PRIOR * torch.eye(phi.shape[1], dtype=phi.dtype)
            step = torch.linalg.solve(known, phi.T @ slope)
            policy.weight[k] += effort.rate * step.T
        if 2 * iteration >= effort.iterations:
            total, counted = total + policy.weight, counted + 1
    policy.weight.copy_(total / counted)
    return policy
