r"""PI-FT on the instances of claims: what its iterates attain.

`Iterate` has the suprema of one backward pass with m updates at every step, by quadrature in one
dimension per distinct coordinate. Coordinates of a rotated product vary independently, so lengths
add up as :math:`(\sum_i n_i \sup_i^2)^{1/2}` and Lipschitz constants are the largest coordinate's:
both exact.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from socft import theory
from socft.checks import InvalidProblem
from socft.pi_ft import BackwardInduction, backward_induction
from socft.problem import ControlProblem
from socft.schedule import Schedule
from socft.truth.bellman import mean_and_jacobian
from socft.truth.grid import REACH, Grid, ValueGrid
from socft.truth.quadrature import Quadrature
from verify.support.instances import ProductInstance
from verify.support.suprema import INNER


@runtime_checkable
class Chained(Protocol):
    """Whatever has constants: an instance, or a closed form."""

    @property
    def chain(self) -> theory.ChainConstants:
        """What the theory knows of it."""
        ...


PAPER = theory.Lemma32(theory.PaperBounds())
"""Lemma 3.2 with the paper's constants: its condition on beta is the one of Lemmas 3.3 and 3.4 and
Theorem 3.1.
"""
VISIBLE = 1e-5
"""Bounds below this count no entry: quadrature error would be a visible share of what they are held
against.
"""


@dataclasses.dataclass(frozen=True)
class Iterate:
    """Suprema of one pass with m updates at every step, over the inner part of the grids; d
    dimensions, shifts in whitened units.

    Attributes:
        value_gradient: ``sup |grad V_t^(m)|``, shape (T + 1,).
        value_hessian: ``sup |Hess V_t^(m)|``, shape (T + 1,).
        control_slope: ``sup |Jac U_t^(m)|`` in score units, shape (T,).
        control_bend: ``sup |D^2 U_t^(m)|`` in score units, shape (T,).
        control_error: ``sup |v_t^(m) - v*_t|``, shape (T,).
        gradient_error: ``sup |grad V_t^(m) - grad V*_t|``, shape (T + 1,).
        increments: ``sup |G_j - G_{j-1}|`` for j = 0..m-1, with ``G_{-1} = 0``, shape (T, m).
    """

    value_gradient: Tensor
    value_hessian: Tensor
    control_slope: Tensor
    control_bend: Tensor
    control_error: Tensor
    gradient_error: Tensor
    increments: Tensor


def iterate(instance: ProductInstance, beta: Tensor, rounds: int) -> Iterate:
    """The suprema of a rotated product."""
    each = [line_iterate(part, instance, rounds) for part in instance.parts(beta)]
    count = [len(range(i, instance.size, len(each))) for i in range(len(each))]

    def length(name: str) -> Tensor:
        return (
            torch.stack([n * getattr(x, name).square() for x, n in zip(each, count, strict=True)])
            .sum(0)
            .sqrt()
        )

    def largest(name: str) -> Tensor:
        return torch.stack([getattr(x, name) for x in each]).amax(0)

    return Iterate(
        length("value_gradient"),
        largest("value_hessian"),
        largest("control_slope"),
        largest("control_bend"),
        length("control_error"),
        length("gradient_error"),
        length("increments"),
    )


def line_iterate(truth: Quadrature, instance: ProductInstance, rounds: int) -> Iterate:
    """The suprema of a one-dimensional problem."""
    return suprema(truth, instance, backward_induction(truth.problem, truth.grids, rounds))


def suprema(truth: Quadrature, instance: ProductInstance, found: BackwardInduction) -> Iterate:
    """What one pass attains, beside the exact solution on the same grids."""
    problem = truth.problem
    unit, slopes = (
        instance.schedule.sigma / problem.beta,
        control_slopes(problem, instance.schedule, found),
    )
    return Iterate(
        value_gradient=supremum([v.gradient for v in found.values]),
        value_hessian=supremum([differentiate(v.grid, v.gradient) for v in found.values]),
        control_slope=supremum(slopes),
        control_bend=supremum(
            [differentiate(grid, slope) for grid, slope in zip(found.grids, slopes, strict=False)]
        ),
        control_error=supremum([a - b for a, b in zip(found.shifts, truth.shifts, strict=True)])
        / instance.schedule.sigma,
        gradient_error=supremum(
            [a.gradient - b.gradient for a, b in zip(found.values, truth.values, strict=True)]
        ),
        increments=found.increments / unit[:, None],
    )


def control_slopes(
    problem: ControlProblem, schedule: Schedule, found: BackwardInduction
) -> list[Tensor]:
    """``dU/dy`` at the nodes, from ``(y + g U) / sqrt(a) = m(y) + shift``."""
    slopes = []
    for k, shift in enumerate(found.shifts):
        grid, a, g = found.grids[k], schedule.alpha[k], schedule.score_weight[k]
        mean_slope = mean_and_jacobian(problem.reference, k, grid.nodes)[1][:, :, 0]
        slopes.append((a.sqrt() * (mean_slope + differentiate(grid, shift)) - 1) / g)
    return slopes


def differentiate(grid: Grid, field: Float[Tensor, "nodes 1"]) -> Float[Tensor, "nodes 1"]:
    """The derivative of a nodal field."""
    return grid.jacobian(field)[:, :, 0]


def inner(field: Float[Tensor, "nodes f"]) -> Float[Tensor, "inner f"]:
    """The nodes over which suprema are taken, `INNER` of the grid around its middle."""
    cut = math.ceil(len(field) * (1 - INNER) / 2)
    return field[cut : len(field) - cut]


THIN = 7
"""Of the inner nodes, one in seven is compared with a costate that is integrated anew."""
RULE_NODES = 161
"""Nodes of the trapezoidal rule on 9 standard deviations: exact to rounding for functions analytic
within 0.6 sigma.
"""


def thin(field: Float[Tensor, "nodes f"]) -> Float[Tensor, "some f"]:
    """Some of the inner nodes."""
    return inner(field)[::THIN]


def expected_gradient(
    value: ValueGrid, x: Float[Tensor, "batch 1"], sigma: float
) -> Float[Tensor, "batch 1"]:
    """``E grad V(x + sigma W)`` from V's interpolant, not from the convolution that PI-FT and the
    exact solution use.
    """
    z = torch.linspace(-REACH, REACH, RULE_NODES, dtype=torch.float64)
    weights = torch.exp(-z.square() / 2)
    reached = x + sigma * z
    return (
        value.gradient_at(reached.reshape(-1, 1)).reshape(reached.shape) @ (weights / weights.sum())
    )[:, None]


def supremum(fields: Sequence[Tensor]) -> Tensor:
    """Largest absolute values over the inner nodes, one per field."""
    return torch.stack([inner(f).abs().max() for f in fields])


def constant(
    instance: Chained,
    beta: Tensor,
    bounds: theory.Bounds,
    which: Callable[[theory.Regularity], Tensor],
) -> Tensor:
    """One of the constants of Lemma 3.2 at given weights, shape (T,); infinite where these bounds
    do not admit the weights.
    """
    found = constants_for(instance, beta, bounds)
    return torch.full_like(beta, torch.inf) if found is None else which(found)


def constants_for(
    instance: Chained, beta: Tensor, bounds: theory.Bounds
) -> theory.Regularity | None:
    """The constants of Lemma 3.2 at given weights, None where these do not admit the weights."""
    try:
        return theory.constants_at(instance.chain, beta, theory.Lemma32(bounds))
    except InvalidProblem:
        return None


def visible(measured: Tensor, bound: Tensor) -> Tensor:
    """The measured numbers, zero where the bound is below `VISIBLE`."""
    return torch.where(bound >= VISIBLE, measured, 0.0)
