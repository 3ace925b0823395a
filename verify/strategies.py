r"""Problems on which claims are checked: frozen dataclasses of plain numbers, drawn by hypothesis and rebuilt from a record.

Every instance has exact Lipschitz constants, an exact solution, and design constants lambda in (0, 1) from which its KL weights are
derived, so that assumptions hold by construction. Two families:

* `ProductInstance`: a rotated sum of one-dimensional problems, d = 1 to 64, from a few distinct `Factor` s. Solved by quadrature
  in one dimension; equal factors share a solution. Scores are those of noised Gaussians and mixtures, or
  :math:`s(y) = -c y + b \tanh(w y) + e`; rewards have bounded gradients.
* `QuadraticInstance`: an affine score and a quadratic reward in d dimensions, solved in closed form.

`ProductInstance.suprema` has the measured suprema that bounds are held against.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from socft import theory
from socft.bellman import axis_sigma
from socft.checks import InvalidProblem, per_step, require
from socft.density import GaussianMixture, NoisedScore
from socft.grid import DEGREE, Grid
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, DenseMaps, ScalarDiffusion, ScoreReference, Step
from socft.reward import Linear, LogSumExp, PseudoHuber, Quadratic, Reward, Separable, Sine, Softplus
from socft.rollout import Noise, rollout
from socft.schedule import Schedule, ddim, ddpm
from socft.truth.base import Truth
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from socft.truth.separable import SeparableTruth

ACCURACY = 1e-7
"""Largest error of a control, value gradient or curvature by quadrature on these instances: the ``floor`` of a measured one."""
DIFFERENCED = 1e-5
"""The same for a derivative that is taken by finite differences of one of these."""
TWICE = 1e-4
"""The same for differences of differences of a whitened control."""

NODES, MOST_NODES = 401, 4801
REFINEMENTS = 4
MIDDLE = math.comb(DEGREE + 1, (DEGREE + 1) // 2) / 2 ** (2 * (DEGREE + 1))
MARGIN = 1.15
RESOLVED = ACCURACY / 100
SPREAD = 9.0
PILOT_PATHS = 1024
SECH_SLOPE = 4 / (3 * math.sqrt(3))
"""Lipschitz constant of sech^2, attained at tanh = 1 / sqrt(3)."""
STATEMENT = theory.Optimum(theory.Paper())
"""The statement whose condition on beta instances satisfy with equality unless told otherwise."""


@dataclasses.dataclass(frozen=True)
class ScoreConstants:
    """Per step: Lipschitz constants of the score, of its Jacobian, and of the mean map (exact where L0 is signed), shape (T,)."""

    L0: Float[Tensor, " steps"]
    L1: Float[Tensor, " steps"]
    mean_L0: Float[Tensor, " steps"]


class Score(abc.ABC):
    """A one-dimensional score ``s_t``; ``__call__`` builds it for a schedule."""

    @abc.abstractmethod
    def function(self, schedule: Schedule) -> Any:
        """``(k, x) -> s_k(x)`` on states of shape (batch, 1)."""

    @abc.abstractmethod
    def constants(self, schedule: Schedule) -> ScoreConstants:
        """Its Lipschitz constants."""


@dataclasses.dataclass(frozen=True)
class MixtureScore(Score):
    """Scores of a noised Gaussian (one component) or Gaussian mixture."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]

    def function(self, schedule: Schedule) -> NoisedScore:
        return NoisedScore(GaussianMixture(self.weights, self.means, self.variances), schedule.abar[:-1])

    def constants(self, schedule: Schedule) -> ScoreConstants:
        found = self.function(schedule).constants
        stretch = 1 + schedule.gain * found.L0
        if len(self.weights) == 1:
            stretch = (1 - schedule.gain * found.L0).abs()
        return ScoreConstants(found.L0, found.L1, stretch / schedule.alpha.sqrt())


@dataclasses.dataclass(frozen=True)
class TanhScore(Score):
    """``s(y) = -c y + b tanh(w y) + e`` at every step, affine for b = 0; its slope takes every value between -c and b w - c."""

    c: float
    b: float = 0.0
    w: float = 1.0
    e: float = 0.0

    def function(self, schedule: Schedule) -> Any:
        return self

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        return -self.c * x + self.b * torch.tanh(self.w * x) + self.e

    def constants(self, schedule: Schedule) -> ScoreConstants:
        slopes = (-self.c, self.b * self.w - self.c)
        L0 = torch.full_like(schedule.gain, max(abs(s) for s in slopes))
        L1 = torch.full_like(schedule.gain, abs(self.b) * self.w**2 * SECH_SLOPE)
        mean = torch.stack([(1 + schedule.gain * s).abs() for s in slopes]).amax(0) / schedule.alpha.sqrt()
        return ScoreConstants(L0, L1, mean)


@dataclasses.dataclass(frozen=True)
class SmoothMaximum:
    """The one-dimensional `LogSumExp` reward as plain numbers."""

    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    temperature: float


@dataclasses.dataclass(frozen=True)
class Slope:
    """The one-dimensional `Linear` reward ``w x``."""

    w: float


@dataclasses.dataclass(frozen=True)
class Parabola:
    """The one-dimensional `Quadratic` reward ``p x^2 / 2 + q x``; L0 is infinite, so the score must be affine."""

    p: float
    q: float = 0.0


ScalarReward = Sine | Softplus | PseudoHuber | SmoothMaximum | Slope | Parabola


@functools.singledispatch
def build_reward(plain: Any) -> Reward:
    """The reward on states of shape (batch, 1)."""
    return plain


@build_reward.register
def _(plain: SmoothMaximum) -> Reward:
    offsets = torch.tensor(plain.offsets, dtype=torch.float64)
    return LogSumExp(torch.tensor(plain.slopes, dtype=torch.float64)[:, None], offsets, plain.temperature)


@build_reward.register
def _(plain: Slope) -> Reward:
    return Linear(torch.tensor([plain.w], dtype=torch.float64))


@build_reward.register
def _(plain: Parabola) -> Reward:
    return Quadratic(torch.tensor([[plain.p]], dtype=torch.float64), torch.tensor([plain.q], dtype=torch.float64))


@dataclasses.dataclass(frozen=True)
class Factor:
    """One coordinate: a score and a reward."""

    score: MixtureScore | TanhScore
    reward: ScalarReward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instance(abc.ABC):
    """A control problem without its KL weights.

    Attributes:
        levels: ``abar``, from noise to data, one more than there are steps.
        posterior: whether the kernels have the posterior variance (DDIM with eta = 1) or the forward one (DDPM).
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
    def chain(self) -> theory.Chain:
        """What the theory knows of it."""

    @property
    @abc.abstractmethod
    def mean_L0(self) -> Float[Tensor, " steps"]:
        """Lipschitz constants of the mean maps, exact where the score's family allows, for `theory.Sharp`."""

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
    def sharp(self) -> theory.Sharp:
        """The sharper constants, with this instance's mean maps."""
        return theory.Sharp(self.mean_L0)

    def regularity(self, statement: theory.Statement = STATEMENT) -> theory.Regularity:
        """The constants of a statement for this instance's lambda."""
        return theory.constants(self.chain, self.lams, statement)

    def beta(self, statement: theory.Statement = STATEMENT) -> Float[Tensor, " steps"]:
        """The smallest weights a statement admits with this instance's lambda, shape (T,); 1 where it admits every one."""
        required = self.regularity(statement).beta_required
        return torch.where(required > 0, required, 1.0)

    def describe(self) -> dict[str, Any]:
        """As plain JSON; `rebuild` inverts it."""
        return _describe(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProductInstance(Instance):
    """A rotated product of one-dimensional problems; coordinate i has factor ``i mod len(factors)``.

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
    def constants(self) -> ScoreConstants:
        """Of the score in d dimensions: the largest over the coordinates, exact."""
        found = [_score_constants(f.score, self.levels, self.posterior) for f in self.factors]
        return ScoreConstants(*(torch.stack([getattr(c, name) for c in found]).amax(0) for name in ("L0", "L1", "mean_L0")))

    @property
    def mean_L0(self) -> Float[Tensor, " steps"]:
        return self.constants.mean_L0

    @functools.cached_property
    def reward(self) -> Reward:
        """The reward in d dimensions."""
        scalars = [build_reward(f.reward) for f in self.factors]
        return scalars[0] if self.size == 1 else Separable(self.basis, [scalars[i % len(scalars)] for i in range(self.size)])

    @functools.cached_property
    def basis(self) -> Float[Tensor, "d d"]:
        """The directions of the coordinates, as columns."""
        eye = torch.eye(self.size, dtype=torch.float64)
        return eye if self.rotation is None else random_rotation(self.size, self.rotation)

    @property
    def chain(self) -> theory.Chain:
        return theory.Chain.of(self.schedule, self.constants.L0, self.constants.L1, self.reward, self.dim)

    def problem(self, beta: float | Tensor) -> ControlProblem:
        if self.size == 1:
            return _line_problem(self.factors[0], self.schedule, beta)
        functions = [f.score.function(self.schedule) for f in self.factors]
        basis, count = self.basis, len(self.factors)

        def score(k: Step, x: Tensor) -> Tensor:
            z = (x @ basis.to(x)).split(1, dim=1)
            return torch.cat([functions[i % count](k, z[i]) for i in range(self.size)], 1) @ basis.T.to(x)

        return ControlProblem(ScoreReference(self.schedule, score, (self.size,)), self.reward, beta)

    def parts(self, beta: float | Tensor | None = None) -> tuple[Quadrature, ...]:
        """The one-dimensional solution of each distinct factor."""
        weights = tuple(per_step(self.beta() if beta is None else beta, self.steps, "beta").tolist())
        return tuple(_solve_line(f, self.levels, self.posterior, weights) for f in self.factors)

    def solve(self, beta: float | Tensor | None = None) -> Truth:
        weights = self.beta() if beta is None else beta
        parts = self.parts(weights)
        return parts[0] if self.size == 1 else _Product(self.problem(weights), self.basis, parts)

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
    def chain(self) -> theory.Chain:
        return theory.Chain.of(self.schedule, max(abs(s) for s in self.score), 0.0, self.reward, self.dim)

    @property
    def mean_L0(self) -> Float[Tensor, " steps"]:
        return (1 + self.schedule.gain[:, None] * _vector(self.score)).abs().amax(1) / self.schedule.alpha.sqrt()

    @functools.cached_property
    def reward(self) -> Quadratic:
        """The reward."""
        eye = torch.eye(self.dim, dtype=torch.float64)
        basis = eye if self.rotation is None else random_rotation(self.dim, self.rotation)
        P = basis * _vector(self.curvature) @ basis.T
        return Quadratic((P + P.T) / 2, basis @ _vector(self.slope))

    def problem(self, beta: float | Tensor) -> ControlProblem:
        s = self.schedule
        A = torch.diag_embed((1 + s.gain[:, None] * _vector(self.score)) / s.alpha.sqrt()[:, None])
        b = s.gain[:, None] * _vector(self.shift) / s.alpha.sqrt()[:, None]
        return ControlProblem(AffineReference(DenseMaps(A), ScalarDiffusion(s.sigma), b), self.reward, beta)

    def solve(self, beta: float | Tensor | None = None) -> LinearQuadratic:
        weights = per_step(self.beta() if beta is None else beta, self.steps, "beta")
        return _solve_quadratic(self, tuple(weights.tolist()))


_TYPES: tuple[type, ...] = (
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


def rebuild(row: Mapping[str, Any]) -> Any:
    """The instance of a record, from what `Instance.describe` wrote; further keys of the record are ignored."""
    known = {kind.__name__: kind for kind in _TYPES}[row["type"]]
    names = {field.name for field in dataclasses.fields(known)}
    return known(**{name: _revive(value) for name, value in row.items() if name in names})


@dataclasses.dataclass(frozen=True)
class Suprema:
    """What an exact solution attains, over the region the grids cover; control in whitened units.

    Attributes:
        value_gradient: ``sup |grad V_t|``, shape (T + 1,); accurate to `ACCURACY`.
        value_hessian: ``sup |Hess V_t|``, shape (T + 1,); `DIFFERENCED`.
        smoothed_hessian: ``sup |Hess G V_{t+1}|``, shape (T,); `ACCURACY`.
        control: ``sup |v*_t|``, shape (T,); `ACCURACY`.
        control_slope: ``sup |Jac v*_t|``, shape (T,); `DIFFERENCED`.
        control_bend: ``sup |D^2 v*_t|``, the Lipschitz constant of the Jacobian, shape (T,); the roughest.
    """

    value_gradient: Tensor
    value_hessian: Tensor
    smoothed_hessian: Tensor
    control: Tensor
    control_slope: Tensor
    control_bend: Tensor


def measure(truth: Quadrature) -> Suprema:
    """The suprema of a one-dimensional solution, away from the edges of its grids."""
    sigma = [float(axis_sigma(truth.problem.reference, k)) for k in range(truth.problem.steps)]
    gradients = [(v.grid, v.gradient) for v in truth.values]
    controls = [(g, shift / s) for g, shift, s in zip(truth.grids[:-1], truth.shifts, sigma, strict=True)]
    slopes = [(grid, _differentiate(grid, v)) for grid, v in controls]
    return Suprema(
        value_gradient=_sup(gradients),
        value_hessian=_sup([(grid, _differentiate(grid, f)) for grid, f in gradients]),
        smoothed_hessian=truth.curvature,
        control=_sup(controls),
        control_slope=_sup(slopes),
        control_bend=_sup([(grid, _differentiate(grid, f)) for grid, f in slopes]),
    )


class _Product(SeparableTruth):
    """A rotated sum of given one-dimensional solutions."""

    def __init__(self, problem: ControlProblem, basis: Tensor, parts: Sequence[Quadrature]):
        self.problem, self.rotation = problem, basis
        self.parts = tuple(parts[i % len(parts)] for i in range(len(basis)))


def random_rotation(dim: int, seed: int) -> Float[Tensor, "d d"]:
    """An orthonormal matrix."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return q


@functools.lru_cache(maxsize=256)
def _score_constants(score: Score, levels: tuple[float, ...], posterior: bool) -> ScoreConstants:
    abar = torch.tensor(levels, dtype=torch.float64)
    return score.constants(ddim(abar) if posterior else ddpm(abar))


@functools.lru_cache(maxsize=64)
def _solve_line(factor: Factor, levels: tuple[float, ...], posterior: bool, beta: tuple[float, ...]) -> Quadrature:
    abar = torch.tensor(levels, dtype=torch.float64)
    problem = _line_problem(factor, ddim(abar) if posterior else ddpm(abar), _vector(beta))
    grids = grids_for(problem)
    for _ in range(REFINEMENTS):
        truth = _solve_on(problem, grids)
        wanted = [_nodes_wanted(truth, k) for k in range(len(grids))]
        if all(n <= grid.shape[0] for n, grid in zip(wanted, truth.grids, strict=True)):
            return truth
        if max(wanted) > MOST_NODES:
            break
        grids = tuple(Grid.box(g.lower, g.upper, (max(n, g.shape[0]),)) for n, g in zip(wanted, truth.grids, strict=True))
    if hypothesis.currently_in_test_context():
        hypothesis.reject()
    require(False, f"{factor} is not resolved by {MOST_NODES} nodes; use larger design constants or fewer steps.")
    raise AssertionError


def _solve_on(problem: ControlProblem, grids: tuple[Grid, ...]) -> Quadrature:
    try:
        return Quadrature(problem, grids)
    except InvalidProblem:  # the optimal chain leaves the pre-trained one's region: let it look for its own
        return Quadrature(problem, nodes=(max(g.shape[0] for g in grids),))


def _nodes_wanted(truth: Quadrature, k: int) -> int:
    """Nodes at which the value gradient and control of step ``k`` are interpolated well within `ACCURACY`.

    Interpolation of degree 9 between the middle nodes errs by at most 2.4e-4 times the tenth difference, which scales with h^10.
    """
    fields = [truth.values[k].gradient]
    if k < truth.problem.steps:
        fields.append(truth.shifts[k] / axis_sigma(truth.problem.reference, k))
    n = truth.grids[k].shape[0]
    error = max(float(MIDDLE * f.diff(n=DEGREE + 1, dim=0).abs().max() / f.abs().max().clamp(min=1)) for f in fields)
    return math.ceil(n * MARGIN * (error / RESOLVED) ** (1 / (DEGREE + 1))) if error > RESOLVED else n


@functools.lru_cache(maxsize=64)
def _solve_quadratic(instance: QuadraticInstance, beta: tuple[float, ...]) -> LinearQuadratic:
    return LinearQuadratic(instance.problem(_vector(beta)))


def _line_problem(factor: Factor, schedule: Schedule, beta: float | Tensor) -> ControlProblem:
    return ControlProblem(ScoreReference(schedule, factor.score.function(schedule), (1,)), build_reward(factor.reward), beta)


def grids_for(problem: ControlProblem) -> tuple[Grid, ...]:
    """Grids around the pre-trained chain of a one-dimensional problem, without a pilot solution.

    Where the KL penalty is as strong as the theory asks, the optimal chain stays within them; `Quadrature` refuses if it does not.
    """
    noise = Noise.sample(problem.reference, PILOT_PATHS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = rollout(problem.reference, Uncontrolled(problem.reference), noise).states
    centre, reach = states.mean(1), SPREAD * states.std(1)
    return tuple(Grid.box(c - r, c + r, (NODES,)) for c, r in zip(centre, reach, strict=True))


def _differentiate(grid: Grid, field: Float[Tensor, "nodes 1"]) -> Float[Tensor, "nodes 1"]:
    return grid.jacobian(field)[:, :, 0]


def _sup(fields: Sequence[tuple[Grid, Tensor]]) -> Tensor:
    """Largest absolute values over the `INNER` part of each grid, `BETWEEN` points per cell."""
    found = []
    for grid, field in fields:
        cut = math.ceil(len(field) * (1 - INNER) / 2)
        count = BETWEEN * (len(field) - 1 - 2 * cut) + 1
        x = torch.linspace(float(grid.nodes[cut]), float(grid.nodes[-1 - cut]), count, dtype=torch.float64)[:, None]
        found.append(grid.interpolate(field, x).abs().max())
    return torch.stack(found)


INNER = 0.7
"""Share of a grid, 6.3 standard deviations, over which suprema are taken: from there a path leaves the grid with chance 1e-8."""

BETWEEN = 4
"""Points per cell: a maximum between two of them is missed by at most 1/16 of what the nodes miss, some 1e-4 of it."""


def _hypot(each: Sequence[Tensor], count: Sequence[int]) -> Tensor:
    return torch.stack([n * x.square() for x, n in zip(each, count, strict=True)]).sum(0).sqrt()


def _largest(each: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(each)).amax(0)


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _describe(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__} | fields
    return [_describe(item) for item in value] if isinstance(value, tuple) else value


def _revive(value: Any) -> Any:
    if isinstance(value, Mapping):
        return rebuild(value)
    return tuple(_revive(item) for item in value) if isinstance(value, list | tuple) else value


STEPS = 12
"""Most steps of a drawn chain."""
DIMENSIONS = (2, 3, 8, 64)
"""Dimensions of drawn rotated products."""


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of an interval with six decimals, so that records stay readable."""
    return st.floats(low, high, allow_nan=False).map(lambda x: round(x, 6))


def design_constants() -> st.SearchStrategy[float]:
    """Lambda in (0, 1)."""
    return numbers(0.05, 0.95)


@st.composite
def levels(draw: st.DrawFn, most: int = STEPS) -> tuple[float, ...]:
    """Signal levels of up to ``most`` steps, from between 0.15 and 0.6 to between 0.9 and 0.999."""
    first, last = draw(numbers(0.15, 0.6)), draw(numbers(0.9, 0.999))
    weights = draw(st.lists(numbers(0.2, 1), min_size=1, max_size=most))
    shares = itertools.accumulate(weights, initial=0.0)
    return tuple(first * (last / first) ** (share / sum(weights)) for share in shares)


def gaussian_scores() -> st.SearchStrategy[MixtureScore]:
    """Scores of noised Gaussians: affine."""
    return st.builds(lambda m, v: MixtureScore((1.0,), (m,), (v,)), numbers(-2, 2), numbers(0.3, 3))


@st.composite
def mixture_scores(draw: st.DrawFn) -> MixtureScore:
    """Scores of noised mixtures of two or three components."""
    count = draw(st.integers(2, 3))
    weights = draw(st.lists(numbers(0.2, 1), min_size=count, max_size=count))
    means = draw(st.lists(numbers(-2, 2), min_size=count, max_size=count))
    variances = draw(st.lists(numbers(0.4, 1.5), min_size=count, max_size=count))
    return MixtureScore(tuple(w / sum(weights) for w in weights), tuple(means), tuple(variances))


def tanh_scores() -> st.SearchStrategy[TanhScore]:
    """``-c y + b tanh(w y) + e`` with slopes of either sign."""
    return st.builds(TanhScore, numbers(-0.5, 1.5), numbers(-0.5, 0.5), numbers(0.5, 2), numbers(-1, 1))


def affine_scores() -> st.SearchStrategy[TanhScore]:
    """``-c y + e``; a negative c attains ``(1 + g L0s) / sqrt(a)``."""
    return st.builds(lambda c, e: TanhScore(c, e=e), numbers(-0.5, 1.5), numbers(-1, 1))


def any_scores() -> st.SearchStrategy[MixtureScore | TanhScore]:
    """All of them."""
    return st.one_of(affine_scores(), gaussian_scores(), tanh_scores(), mixture_scores())


def sizes() -> st.SearchStrategy[float]:
    """Sizes of a reward, of either sign."""
    return st.one_of(numbers(0.1, 3), numbers(-3, -0.1))


@st.composite
def smooth_maxima(draw: st.DrawFn) -> SmoothMaximum:
    """Log-sum-exp of two or three affine functions."""
    count = draw(st.integers(2, 3))
    slopes = draw(st.lists(numbers(-2, 2), min_size=count, max_size=count, unique=True))
    offsets = draw(st.lists(numbers(-1, 1), min_size=count, max_size=count))
    return SmoothMaximum(tuple(slopes), tuple(offsets), draw(numbers(0.4, 2)))


def curved_rewards() -> st.SearchStrategy[ScalarReward]:
    """Rewards with a bounded gradient that are not linear."""
    return st.one_of(
        st.builds(Sine, sizes(), numbers(0.3, 2.5), numbers(-3, 3)),
        st.builds(Softplus, sizes(), numbers(0.5, 3), numbers(-1, 1)),
        st.builds(PseudoHuber, numbers(0.5, 2), numbers(-1, 1), sizes()),
        smooth_maxima(),
    )


def bounded_rewards() -> st.SearchStrategy[ScalarReward]:
    """Rewards with a bounded gradient, so that every constant of the theory is finite."""
    return st.one_of(st.builds(Slope, sizes()), curved_rewards())


def _factors(
    scores: st.SearchStrategy[MixtureScore | TanhScore] | None, rewards: st.SearchStrategy[ScalarReward] | None
) -> st.SearchStrategy[Factor]:
    return st.builds(Factor, any_scores() if scores is None else scores, bounded_rewards() if rewards is None else rewards)


@st.composite
def line_instances(
    draw: st.DrawFn,
    scores: st.SearchStrategy[MixtureScore | TanhScore] | None = None,
    rewards: st.SearchStrategy[ScalarReward] | None = None,
    steps: int = STEPS,
    lam: st.SearchStrategy[float] | None = None,
) -> ProductInstance:
    """One-dimensional instances with any of the scores and rewards, or given ones."""
    abar = draw(levels(steps))
    factor = draw(_factors(scores, rewards))
    return ProductInstance(levels=abar, lam=_lams(draw, len(abar) - 1, lam), posterior=draw(st.booleans()), factors=(factor,))


@st.composite
def rotated_instances(
    draw: st.DrawFn,
    scores: st.SearchStrategy[MixtureScore | TanhScore] | None = None,
    rewards: st.SearchStrategy[ScalarReward] | None = None,
    steps: int = 6,
    dims: Sequence[int] = DIMENSIONS,
    lam: st.SearchStrategy[float] | None = None,
) -> ProductInstance:
    """Rotated products of one or two distinct one-dimensional problems, up to d = 64."""
    abar = draw(levels(steps))
    pair = _factors(scores, rewards)
    return ProductInstance(
        levels=abar,
        lam=_lams(draw, len(abar) - 1, lam),
        posterior=draw(st.booleans()),
        factors=tuple(draw(st.lists(pair, min_size=1, max_size=2))),
        size=draw(st.sampled_from(list(dims))),
        rotation=draw(st.integers(0, 9)),
    )


def instances(**options: Any) -> st.SearchStrategy[ProductInstance]:
    """One-dimensional and rotated instances; options as for both."""
    return st.one_of(line_instances(**options), rotated_instances(**options))


@st.composite
def quadratic_instances(
    draw: st.DrawFn, steps: int = STEPS, dims: int = 5, convex: bool | None = None, lam: st.SearchStrategy[float] | None = None
) -> QuadraticInstance:
    """Affine scores and quadratic rewards in up to ``dims`` dimensions; ``convex`` fixes the sign of the reward's curvature."""
    d = draw(st.integers(1, dims))
    sign = numbers(0.05, 3) if convex else numbers(-3, -0.05) if convex is False else sizes()
    abar = draw(levels(steps))

    def vector(entries: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(entries, min_size=d, max_size=d)))

    return QuadraticInstance(
        levels=abar,
        lam=_lams(draw, len(abar) - 1, lam),
        posterior=draw(st.booleans()),
        score=vector(numbers(-1.5, 1)),
        shift=vector(numbers(-1, 1)),
        curvature=vector(sign),
        slope=vector(numbers(-1, 1)),
        rotation=draw(st.none() | st.integers(0, 9)),
    )


def _lams(draw: st.DrawFn, steps: int, lam: st.SearchStrategy[float] | None) -> tuple[float, ...]:
    """One design constant for all steps, or one each."""
    each = design_constants() if lam is None else lam
    if draw(st.booleans()):
        return (draw(each),) * steps
    return tuple(draw(st.lists(each, min_size=steps, max_size=steps)))
