"""Lipschitz constants of a score, one per noise level, and the mixtures they are taken of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from socft.readable import Readable

SEARCH_TOLERANCE = 1e-10
"""Relative distance left between a certified maximum and the value found."""

THIRD_MOMENT = 1 / (6 * math.sqrt(3))
"""Largest third central moment of a law on [0, 1]."""


@dataclasses.dataclass(frozen=True)
class ScoreConstants(Readable):
    """Lipschitz constants of a score and of its Jacobian, one per noise level (or scalars for one
    law).

    Attributes:
        L0: supremum of the operator norm of the score's Jacobian, or a certified upper bound.
        L1: supremum of the norm of the third derivative of the log density, or a certified upper
            bound.
        L0_exact: where L0 is the supremum itself (to 1e-10 where it was searched for).
        L1_exact: where L1 is the supremum itself.
    """

    L0: Float[Tensor, " *levels"]
    L1: Float[Tensor, " *levels"]
    L0_exact: Bool[Tensor, " *levels"]
    L1_exact: Bool[Tensor, " *levels"]

    def at(self, k: int) -> ScoreConstants:
        """The constants of one level."""
        return ScoreConstants(self.L0[k], self.L1[k], self.L0_exact[k], self.L1_exact[k])


@runtime_checkable
class Components(Protocol):
    """A Gaussian mixture as far as its constants need it; see `socft.density.GaussianMixture`."""

    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K n"]
    spectra: Float[Tensor, "k n"]
    bases: Float[Tensor, "k n n"]

    @property
    def components(self) -> int:
        """Number of components K."""
        ...

    @property
    def covariances(self) -> Float[Tensor, "K n n"]:
        """Covariance of each component."""
        ...


@dataclasses.dataclass(frozen=True)
class Stacked:
    """One-dimensional mixtures side by side, shape (N, K); missing components have log weight
    -inf.
    """

    log_weights: Float[Tensor, "N K"]
    means: Float[Tensor, "N K"]
    variances: Float[Tensor, "N K"]


def stack_lines(lines: Sequence[Components]) -> Stacked:
    width = max(f.components for f in lines)

    def pad(values: list[Tensor], fill: float) -> Tensor:
        return torch.stack(
            [torch.nn.functional.pad(v, (0, width - len(v)), value=fill) for v in values]
        )

    return Stacked(
        pad([f.weights.log() for f in lines], -math.inf),
        pad([f.means[:, 0] for f in lines], 0.0),
        pad([f.spectra[:, 0].expand(f.components) for f in lines], 1.0),
    )


def join_levels(parts: Sequence[ScoreConstants]) -> ScoreConstants:
    """Constants of consecutive levels."""
    names = [field.name for field in dataclasses.fields(ScoreConstants)]
    return ScoreConstants(**{name: torch.cat([getattr(c, name) for c in parts]) for name in names})


def largest_of(c: ScoreConstants) -> ScoreConstants:
    """The largest constants over the first axis; exact where an exact one is the largest."""
    L0, L1 = c.L0.amax(0), c.L1.amax(0)
    return ScoreConstants(
        L0, L1, ((c.L0 == L0) & c.L0_exact).any(0), ((c.L1 == L1) & c.L1_exact).any(0)
    )


def largest_eigenvalue(matrices: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrices).amax(-1)
