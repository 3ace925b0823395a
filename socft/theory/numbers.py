"""Numbers of the theory: values per step, products in which zero beats infinity, and refusals that
name a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import per_step, require_each, require_positive

StepValues = Float[Tensor, " steps"]
StateValues = Float[Tensor, " steps_plus_1"]

ROUNDING = 1e-9
"""Relative slack for comparing two numbers that are equal in exact arithmetic (thousands of float64
roundings).
"""


def product(*factors: float) -> float:
    """The product in which zero times infinity is zero."""
    return 0.0 if 0 in factors else math.prod(factors)


def vector(values: Iterable[float]) -> Tensor:
    """The numbers as a float64 tensor."""
    return torch.tensor(list(values), dtype=torch.float64)


def positive_beta(beta: float | Tensor, steps: int) -> StepValues:
    """``beta_t > 0``, shape (T,), from one number or T of them."""
    weights = per_step(beta, steps, "beta")
    require_positive(weights, "beta", "every KL weight must be positive.")
    return weights


def whole_rounds(rounds: int | Tensor, steps: int) -> list[int]:
    """Numbers of inner updates m_t, one for all steps or T of them, checked."""
    counts = per_step(rounds, steps, "rounds")
    require_each(
        counts,
        lambda x: (x >= 0) & (x == x.round()),
        "rounds",
        "give a whole number of updates >= 0.",
    )
    return [int(x) for x in counts.tolist()]
