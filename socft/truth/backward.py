r"""Dynamic programming from the reward to step 0 on one grid per step, and what its discretisation
leaves.

A solution is compared with one of `COARSER` and one of `FINER` times its nodes per length, both
on wider boxes. If errors fall by a factor c from it to the finer one, its own error is at most
:math:`1/(1 - c)` times the change to the finer one; c is at most about the ratio of the two
changes. For smooth rewards c is a tenth or less, and the estimate twice the error; a kink has c
near 3/4.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, require
from socft.problem import ControlProblem
from socft.truth.bellman import EDGE, TAINTED, BellmanStep, axis_sigma, terminal_value
from socft.truth.grid import STENCIL, Grid, ValueGrid

COARSER, FINER = 0.8, 1.25
WIDENING = 0.05
ROUNDING = 1e-14
"""Relative: what is left of sums over some hundred nodes."""
SAFETY = 2.0
BY_CHANCE = 100.0
"""How much less than the change to the coarser solution an error is, at least."""
SLOWEST = 0.9
"""The largest c that is told from no convergence at all."""
THINNED = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class GridSolution:
    """Values (T + 1), optimal shifts (T) and Bellman's equations (T) on one grid per step; those of
    the last steps where only these were solved.
    """

    grids: tuple[Grid, ...]
    values: tuple[ValueGrid, ...]
    shifts: tuple[Tensor, ...]
    steps: tuple[BellmanStep, ...]

    @functools.cached_property
    def curvature(self) -> tuple[float, ...]:
        """``sup |Hess G V_{k+1}|`` per step, also between the nodes."""
        return tuple(step.curvature() for step in self.steps)

    @property
    def largest_rate(self) -> float:
        """``max_k sigma_k^2 sup |Hess G V_{k+1}| / beta_k``; between nodes only where the largest
        one may be.
        """
        steps = sorted(self.steps, key=lambda step: -_rate_bound(step))
        found = 0.0
        for step in steps:
            if _rate_bound(step) > found:
                found = max(found, float(step.rho.max()) * step.curvature())
        return found

    def earliest(self, rate: float) -> int:
        """The first step with a rate that may be as large."""
        return next((k for k, step in enumerate(self.steps) if _rate_bound(step) >= rate), 0)


def _rate_bound(step: BellmanStep) -> float:
    return float(step.rho.max()) * step.curvature_bound


def solve_backward(
    problem: ControlProblem,
    grids: tuple[Grid, ...],
    near: GridSolution | None = None,
    first: int = 0,
) -> GridSolution:
    """Dynamic programming from the reward to a step.

    Args:
        near: the solution on these grids under other KL weights, from which iterations start.
        first: the step to stop at.
    """
    require(
        len(grids) == problem.steps + 1,
        f"{len(grids)} grids for {problem.steps} steps; give one per step 0..T,"
        f" {problem.steps + 1}.",
    )
    dims = problem.reference.dims
    require(
        all((g.dim,) == dims for g in grids),
        f"grids of shape {grids[0].shape} for states of shape {dims}; one axis each.",
    )
    last = terminal_value(problem, grids[-1]) if near is None else near.values[-1]
    values, shifts, steps = [last], [], []
    for k in reversed(range(first, problem.steps)):
        place = k - problem.steps
        if near is None or len(near.steps) < -place:
            step, start = BellmanStep.build(problem, k, grids[k], values[-1]), None
        else:
            step = near.steps[place].under(float(problem.beta[k]), values[-1])
            start = near.shifts[place] * (near.steps[place].beta / step.beta)
        shifts.append(step.solve(start))
        values.append(step.optimal_value(shifts[-1]))
        steps.append(step)
    return GridSolution(
        grids, tuple(reversed(values)), tuple(reversed(shifts)), tuple(reversed(steps))
    )


def attempted(problem: ControlProblem, grids: tuple[Grid, ...]) -> GridSolution | None:
    """The solution, None where grids as coarse as these find beta too small."""
    try:
        return solve_backward(problem, grids)
    except InvalidProblem:
        return None


def resized(grids: tuple[Grid, ...], share: float, wider: bool = True) -> tuple[Grid, ...]:
    """Boxes with a share of the nodes per length, wider by `WIDENING` on either side if asked."""
    return tuple(_resized(grid, share, WIDENING if wider else 0.0) for grid in grids)


def _resized(grid: Grid, share: float, widening: float) -> Grid:
    margin = widening * (grid.upper - grid.lower)
    nodes = tuple(max(STENCIL, math.ceil((1 + 2 * widening) * share * n)) for n in grid.shape)
    return Grid.box(grid.lower - margin, grid.upper + margin, nodes)


def estimated(coarser: float, finer: float, scale: float) -> float:
    """The error of a solution, from above, from what a coarser and a finer one have otherwise."""
    if not math.isfinite(finer):
        return math.inf
    ratio = min(finer / coarser, SLOWEST) if coarser > 0 else 0.0
    guard = coarser / BY_CHANCE if math.isfinite(coarser) else 0.0
    return max(SAFETY * finer / (1 - ratio), guard) + ROUNDING * scale


def smoothing_error(value: ValueGrid, sigma: Float[Tensor, " d"]) -> float:
    """How far the smoothed gradient is off away from the edges, relative to its size: from grids
    with every second and every fourth node only; 0 where those are too few.
    """
    if min(value.grid.shape) < THINNED[-1] * STENCIL:
        return 0.0
    found = []
    for stride in THINNED:
        thin = _thinned(value, stride).smooth(sigma)
        slopes = thin.fields[:, 1 : 1 + thin.grid.dim].reshape(*thin.grid.shape, -1)
        found.append((slopes[_every(THINNED[-1] // stride, thin.grid.dim)], thin.grid))
    (fine, _), (half, _), (quarter, grid) = found
    width = grid.upper - grid.lower
    margin = torch.minimum(torch.maximum(EDGE * width, TAINTED * sigma), 0.4 * width)
    x = grid.nodes
    inside = ((x >= grid.lower + margin) & (x <= grid.upper - margin)).all(1).reshape(grid.shape)
    size = float(fine[inside].norm(dim=-1).max())
    first, second = (
        float((a - b)[inside].norm(dim=-1).max()) for a, b in ((fine, half), (half, quarter))
    )
    if size == 0 or second == 0:
        return 0.0
    ratio = min(first / second, SLOWEST)
    return first * ratio / (1 - ratio) / size


def _every(stride: int, dim: int) -> tuple[slice, ...]:
    return (slice(None, None, stride),) * dim


def _thinned(value: ValueGrid, stride: int) -> ValueGrid:
    """The same on every so manieth node, from the first one up to a common last one."""
    grid, d = value.grid, value.grid.dim
    kept = tuple((n - 1) // THINNED[-1] * THINNED[-1] + 1 for n in grid.shape)
    chosen = tuple(slice(0, n, stride) for n in kept)
    nodes = value.value.reshape(grid.shape)[chosen]
    slopes = value.gradient.reshape(*grid.shape, d)[chosen]
    thin = Grid(grid.lower, stride * grid.spacing, tuple(nodes.shape))
    return ValueGrid(thin, nodes.reshape(-1), slopes.reshape(-1, d), value.extrapolation)


def noise_at_end(problem: ControlProblem) -> Float[Tensor, " d"]:
    """The noise of the last step, which smooths the reward."""
    return axis_sigma(problem.reference, problem.steps - 1)
