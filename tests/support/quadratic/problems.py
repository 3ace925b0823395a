"""Random linear-quadratic problems over all that constructors accept: log-uniform scales, levels
that crowd at 0 and 1, degenerate noise, transfers of large norm, rewards of any sign, weights down
to a hair above the smallest one with a finite optimum.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian, affine_reference
from socft.problem import ControlProblem
from socft.reference import AffineReference, MatrixDiffusion, ScalarDiffusion
from socft.reward import Quadratic
from socft.schedule import Schedule, cosine_levels, ddim, ddpm, linear_levels, soften_last
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadratic import QuadraticCost
from tests.support.tensors import F64


@dataclasses.dataclass(frozen=True)
class Dice:
    """Seeded random numbers."""

    generator: torch.Generator

    @classmethod
    def seeded(cls, seed: int) -> Dice:
        return cls(torch.Generator().manual_seed(seed))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=F64))

    def power(self, low: float, high: float) -> float:
        """Ten to a uniform exponent."""
        return 10 ** self.uniform(low, high)

    def powers(self, low: float, high: float, n: int) -> Tensor:
        return torch.tensor([self.power(low, high) for _ in range(n)], dtype=F64)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=F64)

    def rotation(self, n: int) -> Tensor:
        return torch.linalg.qr(self.normal(n, n)).Q

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability


def schedule(dice: Dice, most: int) -> Schedule:
    kind, steps = dice.integer(0, 3), dice.integer(1, most)
    if kind == 0:
        return ddpm(linear_levels(max(steps, 25)))
    if kind == 1:
        return ddim(soften_last(cosine_levels(steps + 1)), dice.power(-3, 0))
    noise, signal = dice.powers(-14, 0, steps), dice.powers(-14, 0, steps + 1)
    levels = torch.cat([signal / 2, 1 - noise / 2]).unique()
    levels = levels[torch.randperm(len(levels), generator=dice.generator)[: steps + 1]].sort()[0]
    if kind == 2:
        return ddpm(levels)
    weight = (1 - levels[:-1]) * torch.rand(steps, generator=dice.generator, dtype=F64)
    return Schedule(levels, weight, dice.powers(-8, 2, steps))


def denoiser(dice: Dice) -> AffineReference:
    n = dice.integer(1, 10)
    root = dice.rotation(n) * dice.powers(-6, 2, n).sqrt()
    law = Gaussian(dice.normal(n), root @ root.mT)
    return affine_reference(law, schedule(dice, 1000 if n == 1 else 60 // n))


def chain(dice: Dice) -> AffineReference:
    n, steps = dice.integer(1, 10), dice.integer(1, 8)
    A = dice.normal(steps, n, n) * dice.power(-3, 3) / n
    if dice.chance(0.5):
        noise = ScalarDiffusion(dice.powers(-10, 4, steps))
    else:
        B = dice.normal(steps, n, dice.integer(1, n + 1)) * dice.power(-8, 3)
        noise = MatrixDiffusion(B * dice.powers(-3, 3, n).unsqueeze(1))
    return AffineReference(A, noise, dice.normal(steps, n), dice.normal(n), dice.normal(n, n))


def reward(dice: Dice, n: int) -> Quadratic:
    signs = [-torch.ones(n, dtype=F64), torch.ones(n, dtype=F64), dice.normal(n).sign()]
    low = dice.uniform(-12, 12)
    values = dice.powers(low, min(low + dice.uniform(0, 8), 12), n) * signs[dice.integer(0, 2)]
    turn = torch.eye(n, dtype=F64) if dice.chance(0.2) else dice.rotation(n)
    P = turn * values @ turn.mT
    slope = dice.normal(n) * float(values.abs().max())
    return Quadratic((P + P.mT) / 2, slope, float(dice.normal(1)))


def random_problem(seed: int) -> ControlProblem:
    """One with a finite optimum as far as its constructor can tell."""
    dice = Dice.seeded(seed)
    reference = denoiser(dice) if dice.chance(0.6) else chain(dice)
    (n,), steps = reference.dims, reference.steps
    cost = None
    if dice.chance(0.2):
        F = dice.normal(n, n) * dice.power(-6, 4)
        cost = QuadraticCost((F + F.mT) / 2, dice.normal(n))
    beta = dice.power(-12, 12) * (dice.powers(-1, 1, steps) if dice.chance(0.3) else 1)
    given = reward(dice, n)
    for _ in range(80):
        problem = ControlProblem(reference, given, beta, cost)
        try:
            LinearQuadratic(problem)
        except InvalidProblem:
            beta = beta * dice.power(0, 2)
        else:
            return problem
    return random_problem(seed + 1_000_000)
