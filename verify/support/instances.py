"""Random control problems of the claims, described by plain numbers."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft import theory
from socft.checks import per_step
from socft.problem import ControlProblem
from socft.reference import AffineReference, DenseMaps, ScalarDiffusion, ScoreReference, Step
from socft.reward import PseudoHuber, Quadratic, Reward, Separable, Sine, Softplus
from socft.schedule import Schedule, ddim, ddpm
from socft.truth.base import Truth
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from verify.support.factors import Factor, vector
from verify.support.rewards import Parabola, Slope, SmoothMaximum, build_reward
from verify.support.scores import MixtureScore, Score, ScoreAndMeanConstants, TanhScore
from verify.support.suprema import (
    Product,
    Suprema,
    line_problem,
    measure,
    solve_line,
)

STATEMENT = theory.Theorem28(theory.PaperBounds())
"""The statement whose condition on beta instances satisfy with equality unless told otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance(abc.ABC):
    """A control problem without its KL weights.

    Attributes:
        levels: ``abar``, from noise to data, one more than there are steps.
        posterior: whether the kernels have the posterior variance (DDIM with eta = 1) or the
            forward one (DDPM).
        lam: design constants, one per step.
    """

    levels: tuple[float, ...]
    lam: tuple[float, ...]
    posterior: bool = False

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension d of a state."""

    @property
    @abc.abstractmethod
    def chain(self) -> theory.ChainConstants:
        """What the theory knows of it."""

    @property
    @abc.abstractmethod
    def mean_L0(self) -> Float[Tensor, " steps"]:
        """Lipschitz constants of the mean maps, exact where the score's family allows, for
        `theory.SharpBounds`.
        """

    @abc.abstractmethod
    def problem(self, beta: float | Tensor) -> ControlProblem:
        """The problem with KL weights, one number or shape (T,)."""

    @abc.abstractmethod
    def solve(self, beta: float | Tensor | None = None) -> Truth:
        """Its exact solution, by default for `beta()`; cached."""

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.levels) - 1

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The denoising chain."""
        levels = torch.tensor(self.levels, dtype=torch.float64)
        return ddim(levels) if self.posterior else ddpm(levels)

    @functools.cached_property
    def lams(self) -> Float[Tensor, " steps"]:
        """The design constants, shape (T,)."""
        return torch.tensor(self.lam, dtype=torch.float64)

    @property
    def sharp(self) -> theory.SharpBounds:
        """The sharper constants, with this instance's mean maps."""
        return theory.SharpBounds(self.mean_L0)

    def regularity(self, statement: theory.RegularityStatement = STATEMENT) -> theory.Regularity:
        """The constants of a statement for this instance's lambda."""
        return theory.constants(self.chain, self.lams, statement)

    def beta(self, statement: theory.RegularityStatement = STATEMENT) -> Float[Tensor, " steps"]:
        """The smallest weights a statement admits with this instance's lambda, shape (T,); 1 where
        it admits every one.
        """
        required = self.regularity(statement).beta_required
        return torch.where(required > 0, required, 1.0)

    def describe(self) -> dict[str, Any]:
        """As plain JSON; `rebuild` inverts it."""
        return describe(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductInstance(Instance):
    """A rotated product of one-dimensional problems; coordinate i has factor
    ``i mod len(factors)``.

    Attributes:
        factors: the distinct coordinates.
        size: dimension d, at least the number of factors.
        rotation: seed of the random rotation; None for the coordinate axes.
    """

    factors: tuple[Factor, ...]
    size: int = 1
    rotation: int | None = None

    @property
    def dim(self) -> int:
        return self.size

    @functools.cached_property
    def constants(self) -> ScoreAndMeanConstants:
        """Of the score in d dimensions: the largest over the coordinates, exact."""
        found = [_score_constants(f.score, self.levels, self.posterior) for f in self.factors]
        return ScoreAndMeanConstants(
            *(
                torch.stack([getattr(c, name) for c in found]).amax(0)
                for name in ("L0", "L1", "mean_L0", "up", "down")
            )
        )

    @property
    def mean_L0(self) -> Float[Tensor, " steps"]:
        return self.constants.mean_L0

    @functools.cached_property
    def reward(self) -> Reward:
        """The reward in d dimensions."""
        scalars = [build_reward(f.reward) for f in self.factors]
        return (
            scalars[0]
            if self.size == 1
            else Separable(self.basis, [scalars[i % len(scalars)] for i in range(self.size)])
        )

    @functools.cached_property
    def basis(self) -> Float[Tensor, "d d"]:
        """The directions of the coordinates, as columns."""
        eye = torch.eye(self.size, dtype=torch.float64)
        return eye if self.rotation is None else random_rotation(self.size, self.rotation)

    @property
    def chain(self) -> theory.ChainConstants:
        c = self.constants
        return theory.ChainConstants.of(
            self.schedule, c.L0, c.L1, self.reward, self.dim, (c.up, c.down)
        )

    def problem(self, beta: float | Tensor) -> ControlProblem:
        if self.size == 1:
            return line_problem(self.factors[0], self.schedule, beta)
        functions = [f.score.function(self.schedule) for f in self.factors]
        basis, count = self.basis, len(self.factors)

        def score(k: Step, x: Tensor) -> Tensor:
            z = (x @ basis.to(x)).split(1, dim=1)
            return torch.cat(
                [functions[i % count](k, z[i]) for i in range(self.size)], 1
            ) @ basis.T.to(x)

        return ControlProblem(ScoreReference(self.schedule, score, (self.size,)), self.reward, beta)

    def parts(self, beta: float | Tensor | None = None) -> tuple[Quadrature, ...]:
        """The one-dimensional solution of each distinct factor."""
        weights = tuple(
            per_step(self.beta() if beta is None else beta, self.steps, "beta").tolist()
        )
        return tuple(solve_line(f, self.levels, self.posterior, weights) for f in self.factors)

    def solve(self, beta: float | Tensor | None = None) -> Truth:
        weights = self.beta() if beta is None else beta
        parts = self.parts(weights)
        return parts[0] if self.size == 1 else Product(self.problem(weights), self.basis, parts)

    def suprema(self, beta: float | Tensor | None = None) -> Suprema:
        """Measured suprema of the exact solution in d dimensions."""
        each = [measure(part) for part in self.parts(beta)]
        count = [len(range(i, self.size, len(each))) for i in range(len(each))]
        return Suprema(
            value_gradient=_hypot([s.value_gradient for s in each], count),
            value_hessian=_largest([s.value_hessian for s in each]),
            smoothed_hessian=_largest([s.smoothed_hessian for s in each]),
            control=_hypot([s.control for s in each], count),
            control_slope=_largest([s.control_slope for s in each]),
            control_bend=_largest([s.control_bend for s in each]),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticInstance(Instance):
    """Score ``S y + e`` and reward ``y' P y / 2 + q . y`` on d dimensions.

    Attributes:
        score: eigenvalues of S, one per dimension.
        shift: e in the eigenbasis of S.
        curvature: eigenvalues of P, of any sign.
        slope: q in the eigenbasis of P.
        rotation: seed of the rotation between the two eigenbases; None if they agree.
    """

    score: tuple[float, ...]
    shift: tuple[float, ...]
    curvature: tuple[float, ...]
    slope: tuple[float, ...]
    rotation: int | None = None

    @property
    def dim(self) -> int:
        return len(self.score)

    @property
    def chain(self) -> theory.ChainConstants:
        one = torch.ones_like(self.schedule.alpha)
        return theory.ChainConstants.of(
            self.schedule,
            max(abs(s) for s in self.score),
            0.0,
            self.reward,
            self.dim,
            (max(self.score) * one, -min(self.score) * one),
        )

    @property
    def mean_L0(self) -> Float[Tensor, " steps"]:
        return (1 + self.schedule.score_weight[:, None] * vector(self.score)).abs().amax(
            1
        ) / self.schedule.alpha.sqrt()

    @functools.cached_property
    def reward(self) -> Quadratic:
        """The reward."""
        eye = torch.eye(self.dim, dtype=torch.float64)
        basis = eye if self.rotation is None else random_rotation(self.dim, self.rotation)
        P = basis * vector(self.curvature) @ basis.T
        return Quadratic((P + P.T) / 2, basis @ vector(self.slope))

    def problem(self, beta: float | Tensor) -> ControlProblem:
        s = self.schedule
        A = torch.diag_embed(
            (1 + s.score_weight[:, None] * vector(self.score)) / s.alpha.sqrt()[:, None]
        )
        b = s.score_weight[:, None] * vector(self.shift) / s.alpha.sqrt()[:, None]
        return ControlProblem(
            AffineReference(DenseMaps(A), ScalarDiffusion(s.sigma), b), self.reward, beta
        )

    def solve(self, beta: float | Tensor | None = None) -> LinearQuadratic:
        weights = per_step(self.beta() if beta is None else beta, self.steps, "beta")
        return _solve_quadratic(self, tuple(weights.tolist()))


Recorded = TypeVar("Recorded", bound=type)
_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        ProductInstance,
        QuadraticInstance,
        Factor,
        MixtureScore,
        TanhScore,
        SmoothMaximum,
        Slope,
        Parabola,
        Sine,
        Softplus,
        PseudoHuber,
    )
}


def recorded(kind: Recorded) -> Recorded:
    """Decorates a further dataclass that `rebuild` knows by its name."""
    _KINDS[kind.__name__] = kind
    return kind


def rebuild(row: Mapping[str, Any]) -> Any:
    """The instance of a record, from what `describe` wrote; further keys of the record are
    ignored.
    """
    known = _KINDS[row["type"]]
    names = {field.name for field in dataclasses.fields(known)}
    return known(**{name: _revive(value) for name, value in row.items() if name in names})


def random_rotation(dim: int, seed: int) -> Float[Tensor, "d d"]:
    """An orthonormal matrix."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q


@functools.lru_cache(maxsize=256)
def _score_constants(
    score: Score, levels: tuple[float, ...], posterior: bool
) -> ScoreAndMeanConstants:
    abar = torch.tensor(levels, dtype=torch.float64)
    return score.constants(ddim(abar) if posterior else ddpm(abar))


def _hypot(each: Sequence[Tensor], count: Sequence[int]) -> Tensor:
    return torch.stack([n * x.square() for x, n in zip(each, count, strict=True)]).sum(0).sqrt()


def _largest(each: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(each)).amax(0)


def describe(value: Any) -> Any:
    """A dataclass of plain numbers as plain JSON, with the names of classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    return [describe(item) for item in value] if isinstance(value, tuple) else value


def _revive(value: Any) -> Any:
    if isinstance(value, Mapping):
        return rebuild(value)
    return tuple(_revive(item) for item in value) if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=64)
def _solve_quadratic(instance: QuadraticInstance, beta: tuple[float, ...]) -> LinearQuadratic:
    return LinearQuadratic(instance.problem(vector(beta)))
