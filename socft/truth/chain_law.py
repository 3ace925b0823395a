"""The law of a controlled chain on the grids of a solution."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from socft import plot
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.truth.bellman import axis_sigma
from socft.truth.grid import Grid, tensor_rule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOST_MASS = 1e-6


@dataclasses.dataclass(frozen=True)
class Region:
    """Per step, the box that carries all but a given mass: lower and upper of shape (T + 1, d)."""

    lower: Float[Tensor, "steps_plus_1 d"]
    upper: Float[Tensor, "steps_plus_1 d"]

    def contains(self, k: int, x: Float[Tensor, "batch d"]) -> Tensor:
        """Which points lie in the box of step ``k``."""
        return ((x >= self.lower[k]) & (x <= self.upper[k])).all(1)


@dataclasses.dataclass(frozen=True)
class ChainLaw:
    """The law of a controlled chain as nodal masses, one tensor of shape (nodes,) per step 0..T."""

    grids: tuple[Grid, ...]
    masses: tuple[Tensor, ...]

    @property
    def lost(self) -> float:
        """Mass that left the grids."""
        return abs(1 - float(self.masses[-1].sum()))

    def expect(self, k: int, values: Float[Tensor, " nodes"]) -> float:
        """Expectation at step ``k`` of a function given at the nodes."""
        return float(self.masses[k] @ values)

    def plot(self, axes: Axes | None = None, step: int = -1, label: str | None = None) -> Axes:
        """Draw the density at one step, the last by default."""
        axes, grid = plot.axes_or_new(axes), self.grids[step]
        along = [grid.axis(i) for i in range(grid.dim)]
        plot.density(axes, along, self.masses[step] / grid.spacing.prod(), label)
        return axes

    def region(self, tail: float = LOST_MASS) -> Region:
        """The boxes outside which each axis has at most ``tail / d`` of the mass."""
        lower, upper = [], []
        for grid, mass in zip(self.grids, self.masses, strict=True):
            field = mass.reshape(grid.shape)
            bounds = []
            for i in range(grid.dim):
                cdf = field.movedim(i, 0).reshape(grid.shape[i], -1).sum(1).cumsum(0)
                first, last = cdf > tail / 2 / grid.dim, cdf >= cdf[-1] - tail / 2 / grid.dim
                bounds.append((grid.axis(i)[first][0], grid.axis(i)[last][0]))
            lower.append(torch.stack([b[0] for b in bounds]))
            upper.append(torch.stack([b[1] for b in bounds]))
        return Region(torch.stack(lower), torch.stack(upper))


def chain_law(problem: ControlProblem, policy: Policy, grids: tuple[Grid, ...]) -> ChainLaw:
    """Push the initial law through the controlled chain: the transpose of the smoothing and
    interpolation of the value.
    """
    points, weights = tensor_rule(grids[0].dim)
    masses = [grids[0].scatter(weights, problem.reference.initial(points))]
    with torch.no_grad():
        for k in range(problem.steps):
            x = grids[k].nodes
            drift = problem.reference.step(k, x, policy(k, x))
            masses.append(
                grids[k + 1].diffuse(
                    grids[k + 1].scatter(masses[k], drift), axis_sigma(problem.reference, k)
                )
            )
    return ChainLaw(grids, tuple(masses))
