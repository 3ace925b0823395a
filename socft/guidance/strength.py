r"""The response that guidance conditions on, and how strongly it pulls.

With Gaussian data, :math:`\nabla_x \log p(y | x)` is the look-ahead term of strength
:math:`b = 1 / (2 (s^2 + g^\top \mathrm{Cov}[x_0|x]\, g))`, `PosteriorStrength` (derived here). The
strength of the published simulations of arXiv 2404.14743v2, `PublishedStrength`, has
:math:`h |J^\top g|^2 / \alpha^2` in place of :math:`g^\top \mathrm{Cov}\, g = h\, g^\top J g /
\alpha`: the same where the covariance of the data has eigenvalues 0 and 1 only.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    keep,
    number,
    numbers,
    positive,
    require,
    require_finite,
    require_kinds,
    tensor,
)
from socft.guidance.denoiser import Prediction
from socft.reference import States


@dataclasses.dataclass(frozen=True)
class Response:
    """The linear response ``y = g . x_0 + noise`` that guidance conditions on.

    Attributes:
        gradient: g, shape (n,), or (batch, n) with one per sample of the batch that is guided.
        value: y, a number, or shape (batch,).
    """

    gradient: Float[Tensor, "*batch n"]
    value: float | Float[Tensor, ""] | Float[Tensor, "*batch"]

    def __post_init__(self) -> None:
        require_kinds(self, gradient=Tensor)
        require_finite(self.gradient, "gradient", "query the objective where it is differentiable.")
        tensor(self.gradient, "gradient", ("n", None))
        value = numbers(self.value, "value").to(self.gradient.dtype)
        require(
            value.ndim == 0 or self.gradient.shape[:-1] == value.shape,
            f"gradient has shape {tuple(self.gradient.shape)} and value {tuple(value.shape)}; give"
            " one value, or one per gradient.",
        )
        keep(self, value=value)

    def residual(self, clean: States) -> Float[Tensor, "batch 1"]:
        """``y - g . clean``."""
        shape, g = tuple(clean.shape), tuple(self.gradient.shape)
        require(g in (shape, shape[1:]), f"the gradient has shape {g}, the states have {shape}.")
        value = torch.as_tensor(self.value).to(clean)
        return (value - (clean * self.gradient.to(clean)).sum(-1)).unsqueeze(1)


class GuidanceStrength(abc.ABC):
    """How strongly a guidance pulls, as a function of the level."""

    @abc.abstractmethod
    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        """The factor, to broadcast against (batch, 1), from the direction g and its pullback
        ``J' g``.
        """


@dataclasses.dataclass(frozen=True)
class ConstantStrength(GuidanceStrength):
    """One number at every level."""

    value: float

    def __post_init__(self) -> None:
        keep(self, value=number(self.value, "strength"))

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        return torch.as_tensor(self.value).to(at.x)


@dataclasses.dataclass(frozen=True)
class _ResponseStrength(GuidanceStrength):
    """A strength for a response whose noise has the standard deviation ``noise``, times
    ``scale``.
    """

    noise: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        keep(self, noise=positive(self.noise, "noise"), scale=number(self.scale, "scale"))


class PublishedStrength(_ResponseStrength):
    """``b = scale / (2 (s^2 + h |J' g|^2 / alpha^2))``, of the simulations published with arXiv
    2404.14743v2.
    """

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        spread = at.noise / at.abar * pulled.square().sum(1, keepdim=True)
        return self.scale / (2 * (self.noise**2 + spread))


class PosteriorStrength(_ResponseStrength):
    """``b = scale / (2 (s^2 + g' Cov[x_0|x] g))``, exact where the posterior is Gaussian; the
    covariance is ``h J / alpha``.
    """

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        spread = at.noise / at.signal * (pulled * g).sum(1, keepdim=True)
        return self.scale / (2 * (self.noise**2 + spread))


class IsotropicStrength(_ResponseStrength):
    """``b' = scale alpha / (s^2 + h |g|^2)`` of the naive term, exact for data N(mu, I)
    (Proposition 3 of arXiv 2404.14743v2).
    """

    def __call__(self, at: Prediction, g: Tensor, pulled: States) -> Tensor:
        return (
            self.scale * at.signal / (self.noise**2 + at.noise * g.square().sum(-1, keepdim=True))
        )
