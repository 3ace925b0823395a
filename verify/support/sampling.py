"""Means of samples against what they should be.

A mean is compared in standard errors, and the standard error is bounded besides: what inflates the
noise would pass every comparison in units of it.
"""

from __future__ import annotations

import torch
from scipy.stats import chi2, norm
from torch import Tensor

STDERRS = 4.0
"""A normal variable exceeds it with chance 6e-5."""
CLOSED = 1e-12
"""Of entries that are the same in every sample."""


def require_mean(
    samples: Tensor, expected: Tensor | float, noise: float, within: float = STDERRS
) -> None:
    """Assert that the mean of independent samples is what is expected, and that its standard error
    is at most ``noise`` in every entry.

    All entries are one comparison, `distance`, but for those that do not vary: these are exact.
    """
    samples = samples.reshape(len(samples), -1)
    expected = torch.as_tensor(expected, dtype=samples.dtype).reshape(-1).expand(samples.shape[1])
    same = samples.std(0) == 0
    torch.testing.assert_close(samples.mean(0)[same], expected[same], rtol=CLOSED, atol=CLOSED)
    samples, expected = samples[:, ~same], expected[~same]
    if not samples.shape[1]:
        return
    found = float(samples.std(0).max()) / len(samples) ** 0.5
    assert found <= noise, f"the standard error is {found:.3g}, above {noise:g}"
    off = distance(samples, expected)
    assert off < within, f"the mean is off by {off:.2f} standard errors of {found:.3g}"


def require_estimates(
    mean: Tensor | float,
    stderr: Tensor | float,
    expected: Tensor | float,
    noise: float,
    within: float = STDERRS,
) -> None:
    """The same of means whose standard errors are known, entry by entry.

    A standard error of zero is of a mean that is exact.
    """
    mean, stderr, expected = (
        torch.as_tensor(each, dtype=torch.float64) for each in (mean, stderr, expected)
    )
    found = float(stderr.max())
    assert found <= noise, f"the standard error is {found:.3g}, above {noise:g}"
    gap = (mean - expected).abs()
    assert bool((gap <= within * stderr).all()), f"off by {gap}, standard errors {stderr}"


def distance(samples: Tensor, expected: Tensor | float) -> float:
    """How far the mean is from its expectation, all entries in one comparison, in standard errors
    of a single number.

    Squared deviations of n means in standard errors sum to n on average, with variance
    ``2 |rho|^2`` for the correlations rho. That sum over ``|rho|^2 / n`` is a chi-squared variable
    with ``n^2 / |rho|^2`` degrees of freedom (Satterthwaite 1946), exactly so for one entry and for
    independent ones; returned is the deviation of a normal variable that is as improbable.
    """
    n, centred = samples.shape[1], samples - samples.mean(0)
    stderr = samples.std(0) / len(samples) ** 0.5
    unit = centred / centred.norm(dim=0)
    spread = float((unit.T @ unit).square().sum())
    total = float(((samples.mean(0) - expected) / stderr).square().sum())
    return float(norm.isf(chi2.sf(total * n / spread, n**2 / spread) / 2))
