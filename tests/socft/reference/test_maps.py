"""Linear maps and affine references."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from socft.checks import InvalidProblem
from socft.reference import (
    AffineReference,
    DenseMaps,
    ScalarDiffusion,
    SpectralMaps,
)
from tests.support.quadratic.cases import ROUNDING, orthonormal
from tests.support.tensors import randn


def test_spectral_maps_are_the_matrices_they_abbreviate():
    spectral = SpectralMaps(randn(1, 4, 3), orthonormal(2, 3))
    x, k = randn(3, 5, 3), torch.tensor([0, 3, 1, 1, 2])
    for maps in (spectral, DenseMaps(spectral.dense())):
        for step in range(4):
            torch.testing.assert_close(
                maps.apply(step, x), x @ spectral.dense()[step].mT, rtol=ROUNDING, atol=ROUNDING
            )
        rows = torch.stack(
            [spectral.dense()[i] @ row for i, row in zip(k.tolist(), x, strict=True)]
        )
        torch.testing.assert_close(maps.apply(k, x), rows, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(spectral.dense().mT, spectral.dense())


@pytest.mark.refusal
def test_malformed_references_are_refused():
    scalar = ScalarDiffusion(torch.ones(4))
    refusals: dict[str, Callable[[], object]] = {
        r"A has shape \(4, 2, 3\)": lambda: DenseMaps(torch.ones(4, 2, 3)),
        r"eigenvalues has shape \(4,\); give \(steps, n\)": lambda: SpectralMaps(torch.ones(4)),
        r"eigenvalues\[1, 0\] = inf": lambda: SpectralMaps(torch.tensor([[1.0], [math.inf]])),
        r"basis has shape \(3, 3\); give \(2, 2\)": lambda: SpectralMaps(
            torch.ones(4, 2), torch.eye(3)
        ),
        "off orthonormal by 3": lambda: SpectralMaps(torch.ones(4, 2), 2 * torch.eye(2)),
        "A has 3 steps and the diffusion 4": lambda: AffineReference(
            SpectralMaps(torch.ones(3, 2)), scalar
        ),
        r"b has shape \(4, 3\)": lambda: AffineReference(
            SpectralMaps(torch.ones(4, 2)), scalar, torch.ones(4, 3)
        ),
        r"initial_mean has shape \(3,\); give \(2,\)": lambda: AffineReference(
            SpectralMaps(torch.ones(4, 2)), scalar, None, torch.ones(3)
        ),
    }
    for message, refused in refusals.items():
        with pytest.raises(InvalidProblem, match=message):
            refused()


@pytest.mark.refusal
def test_maps_from_one_space_into_another_are_refused():
    with pytest.raises(InvalidProblem, match=r"A has shape \(2, 3, 4\); give \(steps, n, n\)"):
        DenseMaps(torch.zeros(2, 3, 4))
