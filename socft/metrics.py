r"""Distances between laws, from samples and of Gaussian laws.

The Wasserstein-1 distance on the line is :math:`W_1(\mu, \nu) = \int |F_\mu - F_\nu|\,dx = \int_0^1
|F_\mu^{-1} - F_\nu^{-1}|\,du`. The squared maximum mean discrepancy of the kernel :math:`k(x, y) =
\exp(-|x-y|^2 / 2 h^2)` is :math:`E k(X, X') + E k(Y, Y') - 2 E k(X,
Y)` (Gretton et al. 2012); `mmd` is its unbiased estimate, which may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from socft.checks import positive, probe, require, require_kind, tensor
from socft.density import Gaussian

NEGATIVE = 1e-15
"""Share of negative mass that counts as rounding, and as zero: laws of chains on grids, which are
interpolated, keep 4e-55 in the far tail.
"""
CELL_NODES = 8
CHUNK = 2**22
"""Kernel values held at once (32 MB)."""


def wasserstein1(
    x: Float[Tensor, " n"],
    y: Float[Tensor, " p"],
    x_weights: Float[Tensor, " n"] | None = None,
    y_weights: Float[Tensor, " p"] | None = None,
) -> float:
    """Exact Wasserstein-1 distance between two discrete laws on the line, by scipy.

    Args:
        x: atoms of the first law: samples, or the nodes of a grid.
        y: atoms of the second law.
        x_weights: masses, equal by default; they are normalised to sum to 1.
        y_weights: the same for the second law.

    Raises:
        InvalidProblem: a law has no atoms, a shape does not fit, or a number is not finite.
    """
    places = (_line(x, "x"), _line(y, "y"))
    masses = (_masses(x_weights, x, "x"), _masses(y_weights, y, "y"))
    return float(stats.wasserstein_distance(*(each.numpy() for each in (*places, *masses))))


def wasserstein1_to_quantiles(
    x: Float[Tensor, " n"], quantile: Callable[[Tensor], Tensor]
) -> float:
    """Wasserstein-1 distance between samples and a law given by its quantile function
    ``u -> F^{-1}(u)`` on (0, 1).

    Gauss-Legendre with 8 nodes on each of the n cells on which the samples' quantile function is
    constant: exact to rounding where the quantile function is smooth and does not cross the sample;
    elsewhere, as in a tail, off by about 1% of the cell's own part.

    Raises:
        InvalidProblem: there are no samples, or a number is not finite.
    """
    ordered = _line(x, "x").sort().values
    node, weight = (
        torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(CELL_NODES)
    )
    n = len(ordered)
    u = (torch.arange(n, dtype=torch.float64)[:, None] + (1 + node) / 2) / n
    found = probe(quantile, (u.flatten(),), (u.numel(),), "the quantile function")
    far = found.to(ordered).reshape(u.shape)
    return float(((ordered[:, None] - far).abs() @ (weight / 2)).mean())


def mmd(x: Float[Tensor, "n d"], y: Float[Tensor, "p d"], bandwidth: float) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy with a Gaussian kernel.

    Args:
        x: samples of the first law, at least two.
        y: samples of the second law, at least two, independent of the first.
        bandwidth: h, in the units of the samples.

    Raises:
        InvalidProblem: fewer than two samples, vectors of different length, or a bandwidth that is
            not positive and finite.
    """
    bandwidth = positive(bandwidth, "bandwidth")
    tensor(x, "x", ("n", "d"))
    tensor(y, "y", ("p", x.shape[1]))
    n, p = len(x), len(y)
    require(min(n, p) >= 2, f"there are {n} and {p} samples; give at least two of each law.")
    within = (_kernel_sum(x, x, bandwidth) - n) / (n * (n - 1)) + (
        _kernel_sum(y, y, bandwidth) - p
    ) / (p * (p - 1))
    return within - 2 * _kernel_sum(x, y, bandwidth) / (n * p)


def gaussian_mmd(a: Gaussian, b: Gaussian, bandwidth: float) -> float:
    r"""The squared maximum mean discrepancy of two Gaussian laws with a Gaussian kernel, exact.

    With S the sum of two covariances, :math:`E\, k(x, y) = \det(I + S/h^2)^{-1/2} \exp(-|m_a -
    m_b|^2_{(S + h^2 I)^{-1}}/2)`.

    Args:
        bandwidth: h, in the units of the samples.

    Raises:
        InvalidProblem: the dimensions differ, or the bandwidth is not positive and finite.
    """
    bandwidth = positive(bandwidth, "bandwidth")
    for law in (a, b):
        require_kind(law, Gaussian, "a law", "give a Gaussian.")
    require(
        a.mean.shape == b.mean.shape,
        f"the laws have means of shape {tuple(a.mean.shape)} and {tuple(b.mean.shape)}.",
    )
    return _expected(a, a, bandwidth) + _expected(b, b, bandwidth) - 2 * _expected(a, b, bandwidth)


def _expected(a: Gaussian, b: Gaussian, bandwidth: float) -> float:
    """``E k(x, y)`` of independent x and y."""
    both = (a.covariance + b.covariance).double() / bandwidth**2 + torch.eye(
        len(a.mean), dtype=torch.float64
    )
    difference = (a.mean - b.mean).double() / bandwidth
    return float(
        torch.exp(-difference @ torch.linalg.solve(both, difference) / 2)
        / torch.linalg.det(both).sqrt()
    )


def _kernel_sum(x: Tensor, y: Tensor, bandwidth: float) -> float:
    rows = max(1, CHUNK // len(y))
    parts = [
        torch.exp(-(torch.cdist(part, y.double()) / bandwidth).square() / 2).sum()
        for part in x.double().split(rows)
    ]
    return math.fsum(map(float, parts))


def _line(x: Tensor, what: str) -> Tensor:
    found = tensor(x, what, ("n",)).double()
    require(len(found) > 0, f"{what} has shape (0,); give a vector of at least one number.")
    return found


def _masses(weights: Tensor | None, x: Tensor, what: str) -> Tensor:
    if weights is None:
        return torch.full((len(x),), 1 / len(x), dtype=torch.float64)
    tensor(weights, f"weights of {what}", x.shape)
    masses = weights.double().clamp(min=0)
    total, missing = float(masses.sum()), float(masses.sum() - weights.double().sum())
    require(
        0 < total < math.inf,
        f"the weights of {what} sum to {total:g}; they must have a positive finite sum.",
    )
    require(
        missing <= NEGATIVE * total,
        f"the negative weights of {what} sum to {-missing:g}; every mass must be at least 0.",
    )
    return masses / total
