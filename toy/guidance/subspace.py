"""The published construction: data on a subspace, rewards and the runs on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from socft.density import Gaussian
from socft.guidance.policy import Guidance, LookAheadGuidance, NaiveGuidance
from socft.guidance.strength import IsotropicStrength, PublishedStrength, Response
from socft.reference import States
from socft.reward import FunctionReward, Quadratic, Reward
from socft.schedule import Schedule, cosine_levels, ddpm
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.problems import ProblemName

DIM, LATENT = 64, 16
NOISE = 0.1  # s of the published simulations
OFF_SUPPORT = 9.0  # |theta_perp| / |theta_par| of f1
BATCH = 32
SHARE = 0.02  # of the way to the batch's mean, per round of Algorithm 2
GUIDES: dict[str, Callable[[Response], Guidance]] = {
    MethodName.NAIVE: lambda response: NaiveGuidance(response, IsotropicStrength(NOISE)),
    MethodName.LOOK_AHEAD: lambda response: LookAheadGuidance(response, PublishedStrength(NOISE)),
}


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """One run.

    Attributes:
        delta: increment of the targets.
        rounds: their number.
        adapts: first round of Algorithm 2 that adapts the score.
    """

    delta: float
    rounds: int
    adapts: int = 0


RUNS: dict[tuple[str, str, int], PublishedRun] = {
    (ProblemName.F1_OFF, MethodName.NAIVE, 1): PublishedRun(0.9, 1000),
    (ProblemName.F1_OFF, MethodName.LOOK_AHEAD, 1): PublishedRun(0.2, 1000),
    (ProblemName.F1_OFF, MethodName.NAIVE, 2): PublishedRun(0.9, 1200, 40),
    (ProblemName.F1_OFF, MethodName.LOOK_AHEAD, 2): PublishedRun(0.2, 1200, 60),
    (ProblemName.F1_ON, MethodName.LOOK_AHEAD, 1): PublishedRun(0.05, 1000),
    (ProblemName.F2_ONES, MethodName.LOOK_AHEAD, 1): PublishedRun(1.0, 50),
    (ProblemName.F2_RANDOM, MethodName.LOOK_AHEAD, 1): PublishedRun(1.0, 50),
}
"""The published settings by objective, guidance and algorithm."""


@dataclasses.dataclass(frozen=True)
class Subspace:
    """Data ``x = A u`` with independent Gaussian coordinates, and the published objectives.

    Attributes:
        A: orthonormal columns, shape (D, d).
        law: the data law.
        objectives: by name.
    """

    A: Tensor
    law: Gaussian
    objectives: dict[str, Reward]

    def off(self, x: States) -> Tensor:
        """``|x_perp| / |x_par|`` per sample."""
        along = x @ self.A
        return (x - along @ self.A.mT).norm(dim=1) / along.norm(dim=1)


@functools.cache
def subspace() -> Subspace:
    """The published construction, drawn anew."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A = torch.linalg.qr(normal(DIM, LATENT)).Q
    direction, on = normal(DIM), A @ normal(LATENT)
    along = A @ (A.mT @ direction)
    across = direction - along
    theta = OFF_SUPPORT * across / across.norm() + along / along.norm()
    objectives: dict[str, Reward] = {
        ProblemName.F1_OFF: parabola(theta / theta.norm()),
        ProblemName.F1_ON: parabola(on / on.norm()),
        ProblemName.F2_ONES: cone(torch.full((DIM,), 4.0, dtype=torch.float64)),
        ProblemName.F2_RANDOM: cone(4 + 3 * normal(DIM)),
    }
    projection = A @ A.mT
    return Subspace(
        A,
        Gaussian(torch.zeros(DIM, dtype=torch.float64), (projection + projection.mT) / 2),
        objectives,
    )


def parabola(theta: Tensor) -> Quadratic:
    """``10 - (theta . x - 3)^2``."""
    return Quadratic(-2 * torch.outer(theta, theta), 6 * theta, 1.0)


def cone(b: Tensor) -> FunctionReward:
    """``5 - |x - b| / 2``."""
    return FunctionReward(lambda x: 5 - (x - b.to(x)).norm(dim=1) / 2, L0=0.5)


def chain(steps: int) -> Schedule:
    """DDPM on the cosine schedule, as published but for the variance of its kernels: the forward
    one, so that none is zero.
    """
    return ddpm(cosine_levels(steps))
