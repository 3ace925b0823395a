"""A data law that can be noised exactly, and its exponential tilt."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft import plot
from socft.checks import number, positive, require, require_kind
from socft.density.constants import ScoreConstants
from socft.readable import Readable
from socft.reference import States
from socft.reward import PerSample, Quadratic, Reward, as_quadratic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DensityT = TypeVar("DensityT", bound="Density")
DensityT_co = TypeVar("DensityT_co", bound="Density", covariant=True)
DRAWN = 2000
"""Samples that say where a law is drawn."""


class Density(Readable, abc.ABC):
    """A law on vectors of shape ``dims`` that can be noised exactly. A signal level is one number
    or one per sample.

    >>> isinstance(Gaussian(0.0, 1.0), Density)
    True
    >>> Gaussian(0.0, 1.0).noised_score(0.5, torch.tensor([[2.0]]))
    tensor([[-2.]])
    """

    dims: tuple[int, ...]

    @property
    @abc.abstractmethod
    def regular(self) -> bool:
        """Whether the law has a density; a singular law has one at every level below 1."""

    @abc.abstractmethod
    def sample(self, batch: int, generator: torch.Generator) -> States:
        """Draw ``batch`` float64 samples on the generator's device."""

    @abc.abstractmethod
    def noised(self: DensityT, abar: float) -> DensityT:
        """The law of ``sqrt(abar) x_0 + sqrt(1 - abar) eps``."""

    @abc.abstractmethod
    def noised_log_prob(self, abar: float | Tensor, x: States) -> PerSample:
        """Log density of the law noised to ``abar``, differentiable in ``abar`` and ``x``."""

    @abc.abstractmethod
    def noised_score(self, abar: float | Tensor, x: States) -> States:
        """Score of the law noised to ``abar``, differentiable in ``abar`` and ``x``."""

    @abc.abstractmethod
    def posterior_means(
        self, signal: float | Tensor, noise: float | Tensor, x: States
    ) -> tuple[States, States]:
        """``E[x_0 | x]`` and ``E[eps | x]`` for ``x = signal x_0 + noise eps``, one pair of levels
        or one per sample.

        Right at both ends: they are ``E[x_0]`` and ``x / noise`` at signal 0, ``x / signal`` and 0
        at noise 0 of a regular law.
        """

    @abc.abstractmethod
    def score_jacobian(self, x: States) -> Float[Tensor, "batch n n"]:
        """Jacobian of the score, the Hessian of the log density."""

    @abc.abstractmethod
    def noised_constants(self, abar: Float[Tensor, " levels"]) -> ScoreConstants:
        """Lipschitz constants of the score at each level."""

    @abc.abstractmethod
    def tilted(self: DensityT, reward: Reward, beta: float) -> Tilt[DensityT]:
        """The law proportional to ``p exp(r / beta)``.

        Raises:
            InvalidProblem: the reward has no closed form here, beta is not positive, or
                ``exp(r / beta)`` is not integrable.
        """

    def conditional_value(
        self, reward: Reward, beta: float, abar: float | Tensor, x: States
    ) -> PerSample:
        """``beta log E[exp(r(x_0) / beta) | x]`` for x at a signal level: from the log ratio of the
        tilted and the own law there, which loses about eps beta, unless a subclass knows better.
        """
        tilt = self.tilted(reward, beta)
        ratio = tilt.density.noised_log_prob(abar, x) - self.noised_log_prob(abar, x)
        return beta * (tilt.log_normaliser + ratio)

    def log_prob(self, x: States) -> PerSample:
        """Log density."""
        self._require_regular()
        return self.noised_log_prob(1.0, x)

    def score(self, x: States) -> States:
        """Gradient of the log density."""
        self._require_regular()
        return self.noised_score(1.0, x)

    @functools.cached_property
    def constants(self) -> ScoreConstants:
        """Lipschitz constants of `score` and `score_jacobian`."""
        self._require_regular()
        return self.noised_constants(torch.ones(1, dtype=torch.float64)).at(0)

    @property
    def L0(self) -> float:
        """Lipschitz constant of the score, or an upper bound; `constants` says which."""
        return float(self.constants.L0)

    @property
    def L1(self) -> float:
        """Lipschitz constant of the score's Jacobian, or an upper bound; `constants` says which."""
        return float(self.constants.L1)

    def plot(
        self, axes: Axes | None = None, samples: States | None = None, label: str | None = None
    ) -> Axes:
        """Draw the density of a law in one or two dimensions, over samples where some are given.

        Raises:
            InvalidProblem: the law has more dimensions or no density, or matplotlib is not
                installed.
        """
        plot.drawable(self.dims)
        self._require_regular()
        axes = plot.axes_or_new(axes)
        own = self.sample(DRAWN, torch.Generator().manual_seed(0))
        if samples is not None:
            plot.samples(axes, samples.detach(), "samples")
            own = torch.cat([own, samples.detach().to(own)])
        along = [plot.line_of(*each.aminmax()) for each in own.T]
        nodes = torch.cartesian_prod(*along).reshape(-1, len(along))
        plot.density(axes, along, self.log_prob(nodes).exp(), label)
        return axes

    def _require_regular(self) -> None:
        require(
            self.regular,
            "the smallest variance is 0, so there is no density; noise it first, noised(abar) with"
            " abar < 1.",
        )


@dataclasses.dataclass(frozen=True)
class Tilt(Readable, Generic[DensityT_co]):
    """The law ``p exp(r / beta) / Z`` and its ``log Z``, with ``Z = E_p exp(r / beta)``."""

    density: DensityT_co
    log_normaliser: float


def require_level(abar: float) -> None:
    abar = number(abar, "abar")
    require(0 <= abar <= 1, f"abar = {abar}; a signal level must lie in [0, 1].")


def broadcast_level(abar: float | Tensor, x: States, trailing: int) -> Tensor:
    """A level as a scalar, or one per sample with ``trailing`` axes to broadcast over, in float64:
    rounding it to the dtype of ``x`` would lose the noise next to level 1.
    """
    require_kind(x, Tensor, "a state", "give a tensor of floating-point states.")
    if isinstance(abar, Tensor):
        require(not abar.is_complex(), "abar is complex; give real numbers.")
    else:
        require_level(abar)
    level = torch.as_tensor(abar, dtype=torch.float64, device=x.device)
    fits = level.shape in ((), x.shape[:1])
    require(fits, f"abar has shape {tuple(level.shape)}; give one level, or one per sample.")
    return level if level.ndim == 0 else level.reshape(-1, *[1] * trailing)


def quadratic_form(reward: Reward, beta: float, dims: tuple[int, ...]) -> Quadratic:
    positive(beta, "beta")
    form = as_quadratic(reward)
    require(
        form.linear.shape == dims,
        f"the reward acts on vectors of length {len(form.linear)}; this law has {dims[0]}.",
    )
    return form
