"""Regression of vector fields on samples: what turns noisy targets into functions of the state."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from socft.checks import (
    at_least_zero,
    keep,
    positive,
    require_finite,
    require_kinds,
    whole,
)
from socft.readable import Readable
from socft.regression.features import Features
from socft.regression.gradient_descent import minimise
from socft.regression.networks import multilayer_perceptron

_REMEDY = "the samples left the region where the fit is accurate; add paths, ridge, or centres."

Field = Callable[[Tensor], Tensor]


class Regression(Readable, abc.ABC):
    """A least-squares fit ``y ~ f(x)``."""

    def smallest_sample(self, n: int) -> int:
        """The fewest samples of n entries that determine it."""
        return 1

    @abc.abstractmethod
    def fit(
        self, x: Float[Tensor, "batch n"], y: Float[Tensor, "batch m"], start: Field | None = None
    ) -> Field:
        """The fitted function, differentiable in ``x``; ``start`` is an earlier fit to begin from
        where that helps.
        """


@dataclasses.dataclass(frozen=True)
class LinearRegression(Regression):
    """Linear in fixed features, solved exactly by a singular value decomposition (of least norm
    where the features are dependent).

    Attributes:
        features: the feature map.
        ridge: penalty on the squared weights, relative to the mean energy of a feature over the
            samples; 0 for none.

    >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    >>> fitted = LinearRegression(Polynomial(1)).fit(x, 3 * x + 1)
    >>> torch.allclose(fitted(x), 3 * x + 1)
    True
    """

    features: Features
    ridge: float = 0.0

    def __post_init__(self) -> None:
        require_kinds(self, features=Features)
        keep(self, ridge=at_least_zero(self.ridge, "ridge"))

    def smallest_sample(self, n: int) -> int:
        return self.features.count(n) if self.ridge == 0 else 1

    def fit(
        self, x: Float[Tensor, "batch n"], y: Float[Tensor, "batch m"], start: Field | None = None
    ) -> Field:
        _require_finite(x, y)
        design = self.features(x)
        if self.ridge > 0:
            scale = (self.ridge * design.square().sum(0).mean()).sqrt()
            penalty = scale * torch.eye(design.shape[1], dtype=x.dtype)
            design, y = (
                torch.cat([design, penalty]),
                torch.cat([y, y.new_zeros(len(penalty), y.shape[1])]),
            )
        require_finite(design, "feature", _REMEDY)
        weight = torch.linalg.lstsq(design, y, driver="gelsd").solution
        return lambda z: self.features(z) @ weight


@dataclasses.dataclass(frozen=True)
class KernelRidge(Regression):
    r"""Kernel ridge regression with the Gaussian kernel :math:`e^{-|x - x'|^2 / (2 w^2)}`, solved
    exactly, in O(batch^3).

    Distances are in units of each coordinate's spread over the samples; the targets' mean is added
    back unpenalised.

    Attributes:
        ridge: the penalty of the squared norm of the function, relative to the number of samples;
            positive.
        width: w; by default the median distance of the samples.

    >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    >>> fitted = KernelRidge(ridge=1e-6).fit(x, x.sin())
    >>> bool((fitted(x) - x.sin()).abs().max() < 0.01)
    True
    """

    ridge: float = 1e-3
    width: float | None = None

    def __post_init__(self) -> None:
        width = None if self.width is None else positive(self.width, "width")
        keep(self, ridge=positive(self.ridge, "ridge"), width=width)

    def fit(
        self, x: Float[Tensor, "batch n"], y: Float[Tensor, "batch m"], start: Field | None = None
    ) -> Field:
        _require_finite(x, y)
        spread = x.std(0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        centre, level = x.mean(0), y.mean(0)
        centres = (x - centre) / spread
        distances = torch.pdist(centres)
        width = self.width or (float(distances.median()) if len(distances) else 0.0) or 1.0
        gram = _gaussian(centres, centres, width) + self.ridge * len(x) * torch.eye(
            len(x), dtype=x.dtype
        )
        weight = torch.cholesky_solve(y - level, torch.linalg.cholesky(gram))
        return lambda z: level + _gaussian((z - centre) / spread, centres, width) @ weight


def _gaussian(x: Tensor, centres: Tensor, width: float) -> Float[Tensor, "batch p"]:
    """The kernel of every pair; by an expanded square, since it is differentiated at pairs that
    coincide.
    """
    squared = x.square().sum(1, keepdim=True) - 2 * x @ centres.T + centres.square().sum(1)
    return torch.exp(-squared / (2 * width**2))


@dataclasses.dataclass(frozen=True)
class NetworkRegression(Regression):
    """A small multilayer perceptron of standardised data, trained with squared loss by Adam with a
    cosine schedule.

    The fit scales with the targets, also from an earlier fit to targets of another size.

    Attributes:
        width: hidden units per layer.
        depth: hidden layers.
        steps: gradient steps of one fit.
        batch: samples per gradient step.
        rate: initial learning rate.
        seed: seed of the initialisation and of the minibatches.

    >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    >>> NetworkRegression(width=8, steps=5).fit(x, x.sin())(x).shape
    torch.Size([20, 1])
    """

    width: int = 64
    depth: int = 2
    steps: int = 300
    batch: int = 512
    rate: float = 5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        keep(
            self,
            width=whole(self.width, "width"),
            depth=whole(self.depth, "depth", 0),
            steps=whole(self.steps, "steps"),
            batch=whole(self.batch, "batch"),
            rate=positive(self.rate, "rate"),
            seed=whole(self.seed, "seed", 0),
        )

    def fit(
        self, x: Float[Tensor, "batch n"], y: Float[Tensor, "batch m"], start: Field | None = None
    ) -> Field:
        _require_finite(x, y)
        generator = torch.Generator().manual_seed(self.seed)
        if isinstance(start, StandardisedNetwork):
            network = copy.deepcopy(start)
        else:
            sizes = [x.shape[1], *[self.width] * self.depth, y.shape[1]]
            network = StandardisedNetwork(multilayer_perceptron(sizes, generator, x.dtype))
        inputs, targets = network.standardise(x, y)

        def loss() -> Tensor:
            rows = torch.randint(len(x), (min(self.batch, len(x)),), generator=generator)
            return (network.network(inputs[rows]) - targets[rows]).square().mean()

        optimiser = torch.optim.Adam(network.requires_grad_(True).parameters(), lr=self.rate)
        minimise(loss, optimiser, self.steps, CosineAnnealingLR(optimiser, self.steps))
        return network.requires_grad_(False)


class StandardisedNetwork(nn.Module):
    """A network between the inputs and the outputs in the units of the data it was last fitted to:
    mean 0 and spread 1.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def standardise(
        self, x: Float[Tensor, "batch n"], y: Float[Tensor, "batch m"]
    ) -> tuple[Tensor, Tensor]:
        """Adopt the units of this data and return it in them; an input that does not vary is only
        centred.
        """
        spread, unit = x.std(0, correction=0), y.std(0, correction=0)
        self.register_buffer("centre", x.mean(0))
        self.register_buffer("scale", torch.where(spread > 0, spread, 1.0))
        self.register_buffer("level", y.mean(0))
        self.register_buffer("unit", unit)
        return self._standard(x), torch.where(unit > 0, (y - y.mean(0)) / unit, 0.0)

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch m"]:
        found = self.network(self._standard(x))
        return self.get_buffer("level") + self.get_buffer("unit") * found

    def _standard(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("centre")) / self.get_buffer("scale")


def _require_finite(x: Tensor, y: Tensor) -> None:
    for values, what in ((x, "sample"), (y, "target")):
        require_finite(values, what, _REMEDY)
