"""Rotated products: ``x = sum_i q_i z_i`` with independent one-dimensional mixtures ``z_i`` and
orthonormal ``q_i``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    SYMMETRY_TOLERANCE,
    InvalidProblem,
    Numbers,
    require,
    require_generator,
    require_kind,
    require_states,
    whole,
)
from socft.density.base import Density, Tilt, broadcast_level, quadratic_form
from socft.density.constants import (
    ScoreConstants,
    join_levels,
    largest_of,
    stack_lines,
)
from socft.density.mixture import GaussianMixture
from socft.density.search import line_constants
from socft.reference import States
from socft.reward import PerSample, Quadratic, Reward, orthonormal


class Rotated(Density):
    """``x = sum_i q_i z_i`` with independent one-dimensional mixtures ``z_i`` and orthonormal
    ``q_i``.

    Args:
        rotation: the ``q_i`` as columns, shape (n, n).
        factors: the n laws of the coordinates; the same object may appear many times.

    >>> turn = [[0.6, -0.8], [0.8, 0.6]]
    >>> modes = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.1)
    >>> Rotated(turn, [modes, Gaussian(0.0, 2.0)]).dims
    (2,)
    """

    def __init__(self, rotation: Numbers, factors: Sequence[GaussianMixture]):
        self.rotation = orthonormal(rotation, "rotation")
        require_kind(factors, (list, tuple), "factors", "give a list of laws.")
        for each in factors:
            require_kind(each, GaussianMixture, "a factor", "give a GaussianMixture.")
        self.factors = tuple(factors)
        n = len(self.rotation)
        require(
            self.rotation.shape == (n, n),
            f"rotation has shape {tuple(self.rotation.shape)}; give a square matrix.",
        )
        require(
            len(self.factors) == n,
            f"there are {len(self.factors)} factors for {n} directions; give one each.",
        )
        wrong = [f.dims for f in self.factors if f.dims != (1,)]
        if wrong:
            raise InvalidProblem(
                f"a factor has states of shape {wrong[0]}; every factor must be one-dimensional.",
            )
        self.dims = (n,)
        self._lines = stack_lines(self.factors)

    @property
    def regular(self) -> bool:
        return all(f.regular for f in self._distinct)

    @property
    def _distinct(self) -> tuple[GaussianMixture, ...]:
        return tuple(dict.fromkeys(self.factors))

    def sample(self, batch: int, generator: torch.Generator) -> States:
        batch = whole(batch, "batch")
        require_generator(generator)
        device, lines = generator.device, self._lines
        which = torch.multinomial(
            lines.log_weights.exp().to(device), batch, replacement=True, generator=generator
        )
        z = torch.randn(batch, *self.dims, generator=generator, dtype=torch.float64, device=device)
        means, spread = (
            p.to(device).gather(1, which).T for p in (lines.means, lines.variances.sqrt())
        )
        return (means + spread * z) @ self.rotation.T.to(device)

    def noised(self, abar: float) -> Rotated:
        changed = {f: f.noised(abar) for f in self._distinct}
        return Rotated(self.rotation, [changed[f] for f in self.factors])

    def noised_log_prob(self, abar: float | Tensor, x: States) -> PerSample:
        return torch.logsumexp(self._fields(abar, x).log_joint, 2).sum(1)

    def noised_score(self, abar: float | Tensor, x: States) -> States:
        fields = self._fields(abar, x)
        return (torch.softmax(fields.log_joint, 2) * fields.scores).sum(2) @ self.rotation.T.to(x)

    def posterior_means(
        self, signal: float | Tensor, noise: float | Tensor, x: States
    ) -> tuple[States, States]:
        a, s = (broadcast_level(value, x, 2) for value in (signal, noise))
        fields = self._moved(a, s.square(), x)
        mixing, lines = torch.softmax(fields.log_joint, 2), self._lines
        pull = (a * lines.variances.to(a)).to(x) * fields.scores
        turned = self.rotation.T.to(x)
        endpoints = (mixing * (lines.means.to(x) - pull)).sum(2) @ turned
        return endpoints, (-s.to(x) * mixing * fields.scores).sum(2) @ turned

    def score_jacobian(self, x: States) -> Float[Tensor, "batch n n"]:
        self._require_regular()
        fields = self._fields(1.0, x)
        weights = torch.softmax(fields.log_joint, 2)
        centred = fields.scores - (weights * fields.scores).sum(2, keepdim=True)
        slopes = (weights * (centred.square() - 1 / self._lines.variances.to(x))).sum(2)
        q = self.rotation.to(x)
        return (q * slopes.unsqueeze(1)) @ q.T

    def noised_constants(self, abar: Float[Tensor, " levels"]) -> ScoreConstants:
        searched = [
            f for f in self._distinct if f.components > 2 or not (f.components == 1 or f.shared)
        ]
        parts = [f.noised_constants(abar) for f in self._distinct if f not in searched]
        parts += [line_constants(searched, abar)] if searched else []
        joined = join_levels(parts)
        return largest_of(
            ScoreConstants(*(v.reshape(len(parts), -1) for v in dataclasses.astuple(joined)))
        )

    def conditional_value(
        self, reward: Reward, beta: float, abar: float | Tensor, x: States
    ) -> PerSample:
        """As in the base class: the sum of the factors' values."""
        form, z = quadratic_form(reward, beta, self.dims), x @ self.rotation.to(x)
        parts = [
            factor.conditional_value(part, beta, abar, z[:, i : i + 1])
            for i, (factor, part) in enumerate(
                zip(self.factors, self._uncoupled(form), strict=True)
            )
        ]
        return form.c + torch.stack(parts).sum(0)

    def tilted(self, reward: Reward, beta: float) -> Tilt[Rotated]:
        """As in the base class; a quadratic reward must be diagonal in the rotated coordinates."""
        form = quadratic_form(reward, beta, self.dims)
        parts = zip(self.factors, self._uncoupled(form), strict=True)
        tilts = [factor.tilted(part, beta) for factor, part in parts]
        density = Rotated(self.rotation, [t.density for t in tilts])
        return Tilt(density, math.fsum(t.log_normaliser for t in tilts) + form.c / beta)

    def _uncoupled(self, form: Quadratic) -> list[Quadratic]:
        """A quadratic as a sum of ones of the rotated coordinates, without its constant."""
        P, q = self.rotation.T @ form.P @ self.rotation, form.linear @ self.rotation
        coupling = float((P - P.diag().diag()).abs().max())
        require(
            coupling <= SYMMETRY_TOLERANCE * max(1.0, float(P.abs().max())),
            f"the reward couples rotated coordinates by {coupling:g}; use one that is diagonal in"
            " them, or a GaussianMixture.",
        )
        return [Quadratic(P[i, i].reshape(1, 1), q[i : i + 1]) for i in range(len(q))]

    def _fields(self, abar: float | Tensor, x: States) -> _LineFields:
        level = broadcast_level(abar, x, 2)
        return self._moved(level.sqrt(), 1 - level, x)

    def _moved(self, signal: Tensor, noise_variance: Tensor, x: States) -> _LineFields:
        """The components of each coordinate of ``signal x_0 + noise eps``, levels in float64."""
        require_states(x, self.dims, "the law")
        variance = (signal.square() * self._lines.variances.to(signal) + noise_variance).to(x)
        centers = (signal * self._lines.means.to(signal)).to(x)
        centred = (x @ self.rotation.to(x)).unsqueeze(2) - centers
        scores = -centred / variance
        return _LineFields(
            self._lines.log_weights.to(x) + (centred * scores - (2 * math.pi * variance).log()) / 2,
            scores,
        )


@dataclasses.dataclass(frozen=True)
class _LineFields:
    """Log of weight times density, and score, of each component of each rotated coordinate."""

    log_joint: Float[Tensor, "batch n K"]
    scores: Float[Tensor, "batch n K"]
