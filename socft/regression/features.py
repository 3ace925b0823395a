"""Feature maps for linear function approximation: ``batch n -> batch p``, differentiable."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    keep,
    positive,
    require_generator,
    require_kind,
    require_states,
    tensor,
    whole,
)
from socft.readable import Readable


class Features(Readable, abc.ABC):
    """A fixed feature map."""

    @abc.abstractmethod
    def __call__(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch p"]:
        """The features of each sample."""

    def count(self, n: int) -> int:
        """Their number p for samples of n entries."""
        return self(torch.zeros(1, n, dtype=torch.float64)).shape[1]


@dataclasses.dataclass(frozen=True)
class Polynomial(Features):
    """All monomials up to ``degree`` of the coordinates; degree 1 is (1, x).

    >>> Polynomial(degree=2)(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 1., 2., 1., 2., 4.]])
    """

    degree: int = 1

    def __post_init__(self) -> None:
        keep(self, degree=whole(self.degree, "degree", 0, 20))

    def __call__(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch p"]:
        require_kind(x, Tensor, "what has features", "give states of shape (batch, n).")
        require_states(x, tuple(x.shape[1:2]), "the feature map")
        blocks = [torch.ones_like(x[:, :1])]
        for order in range(1, self.degree + 1):
            places = zip(
                *itertools.combinations_with_replacement(range(x.shape[1]), order), strict=True
            )
            blocks.append(
                functools.reduce(
                    torch.mul, (x if order == 1 else x[:, list(place)] for place in places)
                )
            )
        return torch.cat(blocks, 1)


@dataclasses.dataclass(frozen=True)
class RadialBasis(Features):
    """Gaussian bumps of a width around centres (p, n), with the affine features (1, x) appended.

    >>> RadialBasis(torch.tensor([[-1.0], [1.0]]), width=1.0)(torch.zeros(3, 1)).shape
    torch.Size([3, 4])
    """

    centres: Float[Tensor, "p n"]
    width: float

    def __post_init__(self) -> None:
        tensor(self.centres, "centres", ("p", "n"))
        keep(self, width=positive(self.width, "width"))

    def __call__(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch q"]:
        require_states(x, tuple(self.centres.shape[1:]), "the feature map")
        squared = (x[:, None, :] - self.centres.to(x)).square().sum(-1)
        return torch.cat(
            [torch.exp(-squared / (2 * self.width**2)), torch.ones_like(x[:, :1]), x], 1
        )


@dataclasses.dataclass(frozen=True)
class RandomFourier(Features):
    """Cosines of random directions (p, n) with phases (p,), with the affine features (1, x)
    appended.

    >>> RandomFourier(torch.ones(5, 2), torch.zeros(5))(torch.zeros(3, 2)).shape
    torch.Size([3, 8])
    """

    frequencies: Float[Tensor, "p n"]
    phases: Float[Tensor, " p"]

    def __post_init__(self) -> None:
        tensor(self.frequencies, "frequencies", ("p", "n"))
        tensor(self.phases, "phases", self.frequencies.shape[:1])

    @classmethod
    def sample(
        cls, count: int, dim: int, length: float, generator: torch.Generator
    ) -> RandomFourier:
        """Features of a Gaussian kernel with a length scale."""
        count, dim = whole(count, "count"), whole(dim, "dim")
        require_generator(generator)
        frequencies = torch.randn(count, dim, generator=generator, dtype=torch.float64)
        frequencies = frequencies / positive(length, "length")
        return cls(
            frequencies, 2 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        )

    def __call__(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch q"]:
        require_states(x, tuple(self.frequencies.shape[1:]), "the feature map")
        waves = torch.cos(x @ self.frequencies.T.to(x) + self.phases.to(x))
        return torch.cat([waves, torch.ones_like(x[:, :1]), x], 1)
