"""What identities compare numbers with, and the states and models that they use."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from socft.conform.sampler import Sampler

BATCH, SIZE, MANY = 8, 3, 40_000
"""Samples, coordinates, and draws of what is random."""
STANDARD_ERRORS = 4.5
POINT, MEAN, VARIANCE = 0.7, 0.4, 0.5
NODES = 40
EXACT = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.1, torch.float16: 2e-2}
"""Relative tolerance of what is not random, by the precision that the sampler answers in."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One number against what it should be, with the tolerance, what a failure would mean, and what
    is worth saying where there is none.
    """

    step: int
    measured: float
    expected: float
    tolerance: float
    advice: str
    note: str = ""

    @property
    def excess(self) -> float:
        """Deviation in tolerances; infinite where a number is not finite."""
        off = abs(self.measured - self.expected) / self.tolerance
        return off if math.isfinite(off) else math.inf


def normal_quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and weights for means over a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    return torch.from_numpy(nodes), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def states(sampler: Sampler, k: int, batch: int = BATCH, size: int = SIZE) -> Tensor:
    """States of level k for data N(MEAN, VARIANCE)."""
    a, s = sampler.signal[k], sampler.noise[k]
    z = torch.randn(batch, size, generator=random(k), dtype=torch.float64)
    return a * MEAN + (a.square() * VARIANCE + s.square()).sqrt() * z


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + seed)


def model(sampler: Sampler, k: int, x: Tensor, shift: float = 0.0) -> Tensor:
    return sampler.of_gaussian(k, x, MEAN, VARIANCE) + shift


def tolerance_of(sampler: Sampler, found: Tensor) -> float:
    """The tolerance of what the sampler computes in its own precision and answers in that of
    ``found``.
    """
    return max(EXACT.get(found.dtype, 0.0), EXACT[sampler.precision])


def noisy(sampler: Sampler) -> Iterator[tuple[int, Tensor, Tensor, float]]:
    """Steps with noise: number, states, output, standard deviation."""
    for k in range(sampler.steps):
        x = states(sampler, k)
        output = model(sampler, k, x)
        std = float(sampler.std_at(k, x, output).max())
        if std > 0:
            yield k, x, output, std


def has_noise(sampler: Sampler, k: int) -> bool:
    """Whether a step depends on its random numbers."""
    x = states(sampler, k)
    one, two = (sampler.step_at(k, x, model(sampler, k, x), random(seed)) for seed in (1, 2))
    return not torch.equal(one, two)
