"""Laws, and their densities by other means."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributions as td

from socft.density import (
    Density,
    Gaussian,
    GaussianMixture,
    Rotated,
)
from socft.reward import Quadratic

ALGEBRA = 1e-10  # relative: matrix algebra in float64 at these condition numbers
QUADRATURE = 1e-8  # scipy's quad at its default tolerance
ATTAINED = 1e-6  # relative: a maximum that local optimisation reaches
Function = Callable[[Tensor], Tensor]
GENERATOR = torch.Generator().manual_seed(7)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def covariance(n: int, least: float = 0.3) -> Tensor:
    root = randn(n, n)
    return root @ root.T / n + least * torch.eye(n, dtype=torch.float64)


COVS = torch.stack([covariance(3) for _ in range(3)])
MIXTURE = GaussianMixture([0.2, 0.5, 0.3], randn(3, 3), COVS)
SHARED = GaussianMixture([0.6, 0.4], randn(2, 3), COVS[0])
LINE = GaussianMixture([0.3, 0.7], [-1.0, 2.0], [0.5, 1.5])
TRIPLE = GaussianMixture([0.2, 0.3, 0.5], [-3.0, 0.0, 2.5], 0.8)
Q3 = torch.linalg.qr(randn(3, 3)).Q
ROTATED = Rotated(Q3, [LINE, TRIPLE, Gaussian(0.5, 2.0)])
LAWS: dict[str, Density] = {
    "gaussian": Gaussian(randn(3), COVS[1]),
    "common covariance": SHARED,
    "mixture": MIXTURE,
    "rotated": ROTATED,
}


def independent_log_prob(law: Density, x: Tensor, abar: float = 1.0) -> Tensor:
    """The same law through torch.distributions, from its own means and covariances,
    noised by hand.
    """
    if isinstance(law, Rotated):
        z = x @ law.rotation
        return torch.stack(
            [independent_log_prob(f, z[:, i : i + 1], abar) for i, f in enumerate(law.factors)]
        ).sum(0)
    assert isinstance(law, GaussianMixture)
    covs = abar * law.covariances + (1 - abar) * torch.eye(law.dims[0], dtype=torch.float64)
    parts = td.MultivariateNormal(abar**0.5 * law.means, covs)
    return td.MixtureSameFamily(td.Categorical(law.weights), parts).log_prob(x)


def bell(x: float, mean: float, variance: float) -> float:
    """The normal density."""
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def gradient(function: Function, x: Tensor) -> Tensor:
    y = x.clone().requires_grad_(True)
    return torch.autograd.grad(function(y).sum(), y)[0]


CURVED = Quadratic(0.4 * (COVS[0] - COVS[1]), randn(3), 0.7)
