r"""Score models seen through the posterior mean of the sample that they predict.

At signal level :math:`\alpha^2 = \bar a`, :math:`h = 1 - \bar a`, the posterior mean, its Jacobian,
and the posterior covariance belong together (Tweedie's formulas; J is symmetric where the score is
exact):

.. math:: \hat x_0 = E[x_0 | x] = \frac{x + h\, s(x)}{\alpha}, \qquad J = \mathrm{Jac}\,\hat x_0,
   \qquad \mathrm{Cov}[x_0 | x] = \frac h\alpha J .
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    numbers,
    probe,
    require,
    require_callable,
    require_kind,
    require_positive,
)
from socft.density import Gaussian
from socft.density.constants import noised_variance
from socft.reference import (
    DenseMaps,
    LinearMaps,
    SpectralMaps,
    States,
    Step,
    at_step,
    level_at,
)

TABULATED = 2**21
"""Matrix entries, 17 MB, up to which Jacobians are written down: one product in place of two."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The posterior mean of the sample at some noisy states.

    Attributes:
        x: the states, shape (batch, *dims).
        clean: ``E[x_0 | x]``, shape (batch, *dims).
        abar: signal level, to broadcast against the states.
        noise: noise level ``h = 1 - abar``, likewise.
        pullback: ``g -> J' g``, the gradient of ``g . E[x_0 | x]`` per sample; g is broadcast
            against the states.
    """

    x: States
    clean: States
    abar: Tensor
    noise: Tensor
    pullback: Callable[[Tensor], States]

    @property
    def signal(self) -> Tensor:
        """``alpha``."""
        return self.abar.sqrt()

    @property
    def score(self) -> States:
        """The score that predicts this posterior mean."""
        return (self.signal * self.clean - self.x) / self.noise


class Denoiser(abc.ABC):
    """A score model seen through the posterior mean that it predicts, at the levels ``abar`` of
    shape (T,).
    """

    def __init__(self, abar: Float[Tensor, " steps"]):
        self.abar = numbers(abar, "abar", ("steps",))
        require(len(self.abar) > 0, "abar has shape (0,); give at least one level.")
        require_positive(self.abar, "abar", "levels lie in (0, 1).")
        top = float(self.abar.max())
        require(
            top < 1,
            f"a level is {top:g}; there is nothing to predict at level 1, leave out the last level"
            " of the schedule.",
        )

    @abc.abstractmethod
    def at(self, k: Step, x: States) -> Prediction:
        """The prediction at step k."""

    def score(self, k: Step, x: States) -> States:
        """The score at step k."""
        return self.at(k, x).score


class ScoreDenoiser(Denoiser):
    """Any differentiable score ``(k, x) -> s_k(x)``: one vector-Jacobian product per pullback."""

    def __init__(self, score: Callable[[Step, States], States], abar: Float[Tensor, " steps"]):
        super().__init__(abar)
        require_callable(score, "the score", "of step and states")
        self._score = score

    def at(self, k: Step, x: States) -> Prediction:
        level, noise = level_at(self.abar, k, x)
        found = torch.func.vjp(lambda z: (z + noise * self.score(k, z)) / level.sqrt(), x)
        return Prediction(
            x, found[0], level, noise, lambda g: found[1](g.expand_as(x).contiguous())[0]
        )

    def score(self, k: Step, x: States) -> States:
        return probe(self._score, (k, x), tuple(x.shape), "the score")


class GaussianDenoiser(Denoiser):
    """The exact score of Gaussian data, possibly on a subspace: ``J = alpha S (alpha^2 S + h)^-1``
    in closed form.

    Args:
        law: the data law.
        abar: levels, shape (T,).
        jacobians: J at every level, where they are at hand: they depend on the covariance alone.
    """

    def __init__(
        self,
        law: Gaussian,
        abar: Float[Tensor, " steps"],
        jacobians: LinearMaps | None = None,
    ):
        super().__init__(abar)
        require_kind(law, Gaussian, "the law", "give a Gaussian.")
        self.law = law
        self._jacobians = self._tabulated() if jacobians is None else jacobians

    def _tabulated(self) -> LinearMaps:
        law, level = self.law, self.abar.unsqueeze(1)
        maps = SpectralMaps(
            level.sqrt() * law.spectra / noised_variance(level, law.spectra), law.bases[0]
        )
        small = len(self.abar) * law.dims[0] ** 2 <= TABULATED
        return DenseMaps(maps.dense()) if small else maps

    def recentred(self, mean: Float[Tensor, " n"]) -> GaussianDenoiser:
        """The score of the same covariance around another mean, with the same tables."""
        return GaussianDenoiser(Gaussian(mean, self.law.eigensystem), self.abar, self._jacobians)

    def at(self, k: Step, x: States) -> Prediction:
        (level, noise), mean = level_at(self.abar, k, x), self.law.means[0].to(x)
        clean = mean + self._jacobians.apply(k, x - level.sqrt() * mean)
        return Prediction(
            x, clean, level, noise, lambda g: self._jacobians.apply(k, g.expand_as(x))
        )

    def score(self, k: Step, x: States) -> States:
        return self.law.noised_score(at_step(self.abar, k, self.abar), x)


class LinearDenoiser(Denoiser):
    """A score in the linear class, ``s_k(x) = slope_k x + offset_k``.

    Attributes:
        slope: shape (T, n, n).
        offset: shape (T, n).
    """

    def __init__(
        self,
        slope: Float[Tensor, "steps n n"],
        offset: Float[Tensor, "steps n"],
        abar: Float[Tensor, " steps"],
    ):
        super().__init__(abar)
        steps = len(self.abar)
        n = numbers(slope, "slope", (steps, "n", "n")).shape[-1]
        self.slope = numbers(slope, "slope", (steps, n, n))
        self.offset = numbers(offset, "offset", (steps, n))

    @functools.cached_property
    def law(self) -> Gaussian:
        """The Gaussian whose score this is at the last level, ``C = -(alpha^2 S + h)^-1`` and
        ``b = -alpha C m``.
        """
        level, C = float(self.abar[-1]), (self.slope[-1] + self.slope[-1].mT) / 2
        values, basis = torch.linalg.eigh(C)
        spectrum = ((-1 / values - (1 - level)) / level).clamp(min=0)
        covariance = basis * spectrum @ basis.mT
        return Gaussian(
            -torch.linalg.solve(C, self.offset[-1]) / level**0.5, (covariance + covariance.mT) / 2
        )

    def at(self, k: Step, x: States) -> Prediction:
        (level, noise), slope = level_at(self.abar, k, x), self.slope[k].to(x)
        clean = (x + noise * self.score(k, x)) / level.sqrt()

        def pullback(g: Float[Tensor, "*#batch n"]) -> Float[Tensor, "batch n"]:
            rows = g.expand_as(x)
            bent = (slope.mT @ rows.unsqueeze(-1)).squeeze(-1) if slope.ndim == 3 else rows @ slope
            return (rows + noise * bent) / level.sqrt()

        return Prediction(x, clean, level, noise, pullback)

    def score(self, k: Step, x: States) -> States:
        slope = self.slope[k].to(x)
        moved = (slope @ x.unsqueeze(-1)).squeeze(-1) if slope.ndim == 3 else x @ slope.mT
        return moved + self.offset[k].to(x)
