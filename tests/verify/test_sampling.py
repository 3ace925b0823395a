"""Means that are compared in standard errors: refused where they are off, or their noise grew."""

from __future__ import annotations

import pytest
import torch

from tests.support.tensors import F64, randn, t
from verify.support.sampling import STDERRS, require_estimates, require_mean

COUNT, ERROR = 10_000, 0.0105  # of standard normal samples, with their own deviation


def test_the_right_mean_passes() -> None:
    require_mean(randn(0, COUNT, 3) + t(1.0, -2.0, 0.5), t(1.0, -2.0, 0.5), ERROR)
    require_mean(randn(1, COUNT), 0.0, ERROR)


def test_a_mean_that_is_off_in_one_entry_fails() -> None:
    with pytest.raises(AssertionError, match="off by"):
        require_mean(randn(0, COUNT, 3) + t(0.0, 0.0, 0.06), 0.0, ERROR)


@pytest.mark.parametrize("factor", [1.1, 2.0, 100.0])
def test_noise_that_grew_fails_though_the_mean_is_right(factor: float) -> None:
    """In standard errors the mean is as close as before."""
    with pytest.raises(AssertionError, match=r"the standard error is .* above"):
        require_mean(factor * randn(0, COUNT, 3), 0.0, ERROR)
    with pytest.raises(AssertionError, match=r"the standard error is .* above"):
        require_estimates(0.0, factor * ERROR, 0.0, ERROR)


def test_entries_that_do_not_vary_are_exact() -> None:
    samples = torch.stack([randn(0, COUNT), torch.full((COUNT,), 3.0, dtype=F64)], 1)
    require_mean(samples, t(0.0, 3.0), ERROR)
    with pytest.raises(AssertionError):
        require_mean(samples, t(0.0, 3.0 + 1e-9), ERROR)


def test_estimates_are_compared_entry_by_entry() -> None:
    require_estimates(t(0.0, 3.9 * 0.01), 0.01, 0.0, 0.01)
    with pytest.raises(AssertionError, match="off by"):
        require_estimates(t(0.0, 1.01 * STDERRS * 0.01), 0.01, 0.0, 0.01)
