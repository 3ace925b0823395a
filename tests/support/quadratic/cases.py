"""Linear-quadratic problems of every structure."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    DenseMaps,
    MatrixDiffusion,
    ScalarDiffusion,
    SpectralMaps,
)
from socft.reward import Quadratic
from socft.schedule import Schedule, variance_preserving
from socft.truth.linear_quadratic import QuadraticCost
from tests.support.tensors import F64, generator, randn

# relative: a thousand float64 operations, each off by at most 2.2e-16, with room for condition
# numbers near 10
ROUNDING = 1e-12
SUMMED = 1e-11  # relative: sums of a few thousand terms of both signs
QUADRATURE = 1e-9  # requested from scipy's quad


def orthonormal(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(randn(seed, n, n)).Q


def symmetric(seed: int, n: int) -> Tensor:
    matrix = randn(seed, n, n)
    return (matrix + matrix.mT) / 2


def denoiser(
    schedule: Schedule, spectrum: Tensor, basis: Tensor, mean: Tensor, maps: type = SpectralMaps
) -> AffineReference:
    """The exact chain for N(mean, basis diag(spectrum) basis'), with its transfers diagonal, or as
    full matrices.
    """
    abar, root = schedule.abar[:-1, None], schedule.alpha.sqrt()[:, None]
    pull = schedule.score_weight[:, None] / (abar * spectrum + 1 - abar)
    offset = (pull * abar.sqrt() * (mean @ basis) / root) @ basis.mT
    spectral = SpectralMaps((1 - pull) / root, basis)
    return AffineReference(
        spectral if maps is SpectralMaps else DenseMaps(spectral.dense()),
        ScalarDiffusion(schedule.sigma),
        offset,
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A well-posed problem of each structure the solution distinguishes."""

    name: str
    problem: ControlProblem


def general(n: int, m: int, steps: int, seed: int, running: bool = True) -> ControlProblem:
    """Full matrices, degenerate noise if m < n, weights and costs that change from step to step."""
    A = 0.8 * torch.eye(n, dtype=F64) + 0.2 * randn(seed, steps, n, n)
    B = 0.5 * randn(seed + 1, steps, n, m)
    reference = AffineReference(
        A,
        MatrixDiffusion(B),
        0.3 * randn(seed + 2, steps, n),
        randn(seed + 3, n),
        0.5 * randn(seed + 4, n, n),
    )
    reward = Quadratic(0.4 * symmetric(seed + 5, n), randn(seed + 6, n), 0.7)
    F = torch.stack([0.2 * symmetric(seed + 7 + k, n) for k in range(steps)])
    cost = QuadraticCost(F, 0.2 * randn(seed + 8, steps, n)) if running else None
    beta = 2 + 2 * torch.rand(steps, generator=generator(seed + 9), dtype=F64)
    return ControlProblem(reference, reward, beta, cost)


def denoising(
    n: int,
    steps: int,
    seed: int,
    commuting: bool = False,
    maps: type = SpectralMaps,
    beta: float = 2.0,
) -> ControlProblem:
    basis, spectrum, mean = (
        orthonormal(seed, n),
        torch.linspace(0.3, 1.5, n, dtype=F64),
        randn(seed + 1, n),
    )
    reference = denoiser(variance_preserving(steps, 1.0), spectrum, basis, mean, maps)
    P = (
        basis @ torch.diag(torch.linspace(-1.0, 0.5, n, dtype=F64)) @ basis.mT
        if commuting
        else 0.5 * symmetric(seed + 2, n)
    )
    return ControlProblem(
        reference, Quadratic((P + P.mT) / 2, randn(seed + 3, n), -0.2), torch.tensor(2.0)
    )


CASES = [
    Case("matrices, degenerate noise, running cost", general(2, 1, 4, 10)),
    Case("matrices, more noise than states", general(1, 2, 3, 30)),
    Case("matrices, no running cost", general(2, 2, 4, 50, running=False)),
    Case("commuting transfers, any reward", denoising(2, 4, 70)),
    Case("commuting transfers and reward", denoising(2, 4, 90, commuting=True)),
    Case("one dimension", denoising(1, 5, 110)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])


def order(errors: list[float]) -> float:
    """Observed order from the last two of errors at halved steps."""
    return math.log2(errors[-2] / errors[-1])
