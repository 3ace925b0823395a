"""The chains of the study, and the constants and weights that each rule takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from socft.density import Gaussian, affine_reference
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import Schedule, ddpm, linear_levels, subsample, variance_preserving
from socft.theory import (
    Lemma32,
    OneSidedBounds,
    PaperBounds,
    RegularityStatement,
    SharpBounds,
    Theorem28,
    convergence,
    one_sided_convergence,
    sharp_convergence,
)

STEPS = 50
STATEMENTS: dict[str, Callable[[Tensor], RegularityStatement]] = {
    "paper": lambda _: Theorem28(PaperBounds()),
    "sharp": lambda stretch: Theorem28(SharpBounds(stretch)),
    "paper iterates": lambda _: Lemma32(PaperBounds()),
    "sharp iterates": lambda stretch: Lemma32(SharpBounds(stretch)),
    "one-sided": lambda _: Theorem28(OneSidedBounds()),
    "one-sided iterates": lambda _: Lemma32(OneSidedBounds()),
}
BOUNDS = {
    "paper iterates": convergence,
    "sharp iterates": sharp_convergence,
    "one-sided iterates": lambda chain, _, beta, rounds: one_sided_convergence(chain, beta, rounds),
}


def memoryless(steps: int) -> Schedule:
    """DDPM with linear variances, sub-sampled from 1000 steps: Y_0 and Y_T are independent to
    0.3%.
    """
    return ddpm(subsample(linear_levels(1000), steps))


def with_memory(steps: int) -> Schedule:
    """A constant rate 1 on [0, 1]: Y_0 and Y_T stay correlated however many steps."""
    return variance_preserving(steps, rate=1.0)


SCHEDULES = {"memoryless": memoryless, "constant rate 1": with_memory}


def linear_quadratic_problem(dim: int, steps: int) -> ControlProblem:
    """Gaussian data and a coupled concave quadratic reward in one or two dimensions."""
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.8]], dtype=torch.float64)[:dim, :dim]
    curvature = torch.tensor([[-1.0, 0.3], [0.3, -0.5]], dtype=torch.float64)[:dim, :dim]
    density = Gaussian(torch.full((dim,), 0.5, dtype=torch.float64), covariance)
    reward = Quadratic(curvature, torch.ones(dim, dtype=torch.float64))
    return ControlProblem(affine_reference(density, memoryless(steps)), reward, 1.0)
