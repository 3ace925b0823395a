"""Lipschitz constants of a score, one per noise level, and the mixtures they are taken of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from socft.readable import Readable

LevelT = TypeVar("LevelT", float, Tensor)

SEARCH_TOLERANCE = 1e-10
"""Relative distance left between a certified maximum and the value found."""

THIRD_MOMENT = 1 / (6 * math.sqrt(3))
"""Largest third central moment of a law on [0, 1]."""


@dataclasses.dataclass(frozen=True)
class ScoreConstants(Readable):
    """One-sided and two-sided Lipschitz constants of a score and of its Jacobian, one per noise
    level (or scalars for one law).

    The one-sided ones bound the spectrum of the Jacobian, the Hessian of the log density, from
    above and from below: ``-down I <= Jac s <= up I``. They have a sign: ``up < 0`` says that the
    law is strongly log-concave.

    Attributes:
        up: supremum of the largest eigenvalue of the score's Jacobian, or a certified upper bound.
        down: the same of minus the smallest eigenvalue.
        L1: supremum of the norm of the third derivative of the log density, or a certified upper
            bound.
        up_exact: where ``up`` is the supremum itself (where it was searched for, to 1e-10 of the
            largest precision).
        down_exact: where ``down`` is.
        L1_exact: where L1 is the supremum itself.
    """

    up: Float[Tensor, " *levels"]
    down: Float[Tensor, " *levels"]
    L1: Float[Tensor, " *levels"]
    up_exact: Bool[Tensor, " *levels"]
    down_exact: Bool[Tensor, " *levels"]
    L1_exact: Bool[Tensor, " *levels"]

    @property
    def L0(self) -> Float[Tensor, " *levels"]:
        """Supremum of the operator norm of the score's Jacobian, or a certified upper bound."""
        return torch.maximum(self.up, self.down)

    @property
    def L0_exact(self) -> Bool[Tensor, " *levels"]:
        """Where L0 is the supremum itself."""
        return torch.where(self.up >= self.down, self.up_exact, self.down_exact)

    def at(self, k: int) -> ScoreConstants:
        """The constants of one level."""
        return ScoreConstants(*(getattr(self, f.name)[k] for f in dataclasses.fields(self)))


def noised_variance(abar: LevelT, variance: Tensor) -> Tensor:
    """``abar variance + (1 - abar)``, to rounding: ``1 - abar`` alone is exact to half an ulp,
    where ``abar variance + 1`` has lost a small variance.
    """
    return abar * variance + (1 - abar)


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
    largest = [values.amax(0) for values in (c.up, c.down, c.L1)]
    exact = [
        ((values == top) & flags).any(0)
        for values, top, flags in zip(
            (c.up, c.down, c.L1), largest, (c.up_exact, c.down_exact, c.L1_exact), strict=True
        )
    ]
    return ScoreConstants(*largest, *exact)


def largest_eigenvalue(matrices: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrices).amax(-1)
