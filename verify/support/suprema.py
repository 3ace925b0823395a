"""Suprema of an instance's value functions, controls and iterates, by quadrature."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import hypothesis
import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reference import ScoreReference
from socft.schedule import Schedule, ddim, ddpm
from socft.truth.bellman import axis_sigma
from socft.truth.grid import DEGREE, Grid
from socft.truth.quadrature import Quadrature
from socft.truth.separable import SeparableTruth
from verify.support.factors import Factor, vector
from verify.support.rewards import build_reward

ACCURACY = 1e-7
"""Largest error of a control, value gradient or curvature by quadrature on these instances: the
``floor`` of a measured one.
"""
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


@dataclasses.dataclass(frozen=True)
class Suprema:
    """What an exact solution attains, over the region the grids cover; control in whitened units.

    Attributes:
        value_gradient: ``sup |grad V_t|``, shape (T + 1,); accurate to `ACCURACY`.
        value_hessian: ``sup |Hess V_t|``, shape (T + 1,); `DIFFERENCED`.
        smoothed_hessian: ``sup |Hess G V_{t+1}|``, shape (T,); `ACCURACY`.
        control: ``sup |v*_t|``, shape (T,); `ACCURACY`.
        control_slope: ``sup |Jac v*_t|``, shape (T,); `DIFFERENCED`.
        control_bend: ``sup |D^2 v*_t|``, the Lipschitz constant of the Jacobian, shape (T,); the
            roughest.
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
    controls = [
        (g, shift / s) for g, shift, s in zip(truth.grids[:-1], truth.shifts, sigma, strict=True)
    ]
    slopes = [(grid, _differentiate(grid, v)) for grid, v in controls]
    return Suprema(
        value_gradient=_sup(gradients),
        value_hessian=_sup([(grid, _differentiate(grid, f)) for grid, f in gradients]),
        smoothed_hessian=truth.curvature,
        control=_sup(controls),
        control_slope=_sup(slopes),
        control_bend=_sup([(grid, _differentiate(grid, f)) for grid, f in slopes]),
    )


class Product(SeparableTruth):
    """A rotated sum of given one-dimensional solutions."""

    def __init__(self, problem: ControlProblem, basis: Tensor, parts: Sequence[Quadrature]):
        self.problem, self.rotation = problem, basis
        self.parts = tuple(parts[i % len(parts)] for i in range(len(basis)))


@functools.lru_cache(maxsize=64)
def solve_line(
    factor: Factor, levels: tuple[float, ...], posterior: bool, beta: tuple[float, ...]
) -> Quadrature:
    abar = torch.tensor(levels, dtype=torch.float64)
    problem = line_problem(factor, ddim(abar) if posterior else ddpm(abar), vector(beta))
    grids = grids_for(problem)
    for _ in range(REFINEMENTS):
        truth = _solve_on(problem, grids)
        wanted = [_nodes_wanted(truth, k) for k in range(len(grids))]
        if all(n <= grid.shape[0] for n, grid in zip(wanted, truth.grids, strict=True)):
            return truth
        if max(wanted) > MOST_NODES:
            break
        grids = tuple(
            Grid.box(g.lower, g.upper, (max(n, g.shape[0]),))
            for n, g in zip(wanted, truth.grids, strict=True)
        )
    if hypothesis.currently_in_test_context():
        hypothesis.reject()
    raise InvalidProblem(
        f"{factor} is not resolved by {MOST_NODES} nodes; use larger design constants or fewer"
        " steps.",
    )


def _solve_on(problem: ControlProblem, grids: tuple[Grid, ...]) -> Quadrature:
    try:
        return Quadrature(problem, grids)
    except (
        InvalidProblem
    ):  # the optimal chain leaves the pre-trained one's region: let it look for its own
        return Quadrature(problem, nodes=(max(g.shape[0] for g in grids),))


def _nodes_wanted(truth: Quadrature, k: int) -> int:
    """Nodes at which the value gradient and control of step ``k`` are interpolated well within
    `ACCURACY`.

    Interpolation of degree 9 between the middle nodes errs by at most 2.4e-4 times the tenth
    difference, which scales with h^10.
    """
    fields = [truth.values[k].gradient]
    if k < truth.problem.steps:
        fields.append(truth.shifts[k] / axis_sigma(truth.problem.reference, k))
    n = truth.grids[k].shape[0]
    error = max(
        float(MIDDLE * f.diff(n=DEGREE + 1, dim=0).abs().max() / f.abs().max().clamp(min=1))
        for f in fields
    )
    return (
        math.ceil(n * MARGIN * (error / RESOLVED) ** (1 / (DEGREE + 1))) if error > RESOLVED else n
    )


def line_problem(factor: Factor, schedule: Schedule, beta: float | Tensor) -> ControlProblem:
    return ControlProblem(
        ScoreReference(schedule, factor.score.function(schedule), (1,)),
        build_reward(factor.reward),
        beta,
    )


def grids_for(problem: ControlProblem) -> tuple[Grid, ...]:
    """Grids around the pre-trained chain of a one-dimensional problem, without a pilot solution.

    Where the KL penalty is as strong as the theory asks, the optimal chain stays within them;
    `Quadrature` refuses if it does not.
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
        x = torch.linspace(
            float(grid.nodes[cut]), float(grid.nodes[-1 - cut]), count, dtype=torch.float64
        )[:, None]
        found.append(grid.interpolate(field, x).abs().max())
    return torch.stack(found)


INNER = 0.7
"""Share of a grid, 6.3 standard deviations, over which suprema are taken: from there a path leaves
the grid with chance 1e-8.
"""

BETWEEN = 4
"""Points per cell: a maximum between two of them is missed by at most 1/16 of what the nodes miss,
some 1e-4 of it.
"""
