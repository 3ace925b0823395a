r"""How a costate changes along the noise of a reversed step, from an approximate costate field.

From X = X_{k+1} a reversed step adds a drift :math:`d = D_k \nabla \log p_{k+1}(X)` and a noise
increment :math:`n = B_k \xi'` (see `socft.estimators.reversed_bsde`). With a field :math:`\phi` of
step k + 1 the costate gains

.. math:: \nabla\phi\,(d + n) + \sum_j \nabla^2 \phi[B_k e_j, B_k e_j]

at X (`AnalyticIncrement`): two derivatives, in as many directions as the noise has.
`FiniteDifferenceIncrement` has no derivative, and four evaluations in any dimension: with c = X +
d,

.. math:: \tfrac12 [\phi(c + n) - \phi(c - n)] + [\phi(c + n) - 2 \phi(c) + \phi(c - n)] + \phi(c) -
    \phi(X),

the same where :math:`\phi` is affine, and elsewhere in the mean up to O(dt^2), since
:math:`E\,\nabla^2\phi[n, n]` is the sum over j (derived here).
"""

from __future__ import annotations

import abc
import dataclasses

import torch

from socft.costates.base import Cost
from socft.costates.directional import VectorField, columns, derivative, trace
from socft.costates.fields import differentiated, times, total
from socft.costates.time_reversal import Reversal
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import States


class CostateIncrement(Readable, abc.ABC):
    """A way to compute what a costate gains."""

    @abc.abstractmethod
    def cost(self, field: Cost) -> Cost:
        """The work of one step, given that of one evaluation of the field, with noise of one
        dimension.
        """

    @abc.abstractmethod
    def along(self, problem: ControlProblem, phi: VectorField, back: Reversal, k: int) -> States:
        """The gain between X and ``X + d + n`` of a reversed chain, with the field of the step and
        at the states that `Reversal.place` tells; shape (batch, *dims), without a graph.
        """


@dataclasses.dataclass(frozen=True)
class AnalyticIncrement(CostateIncrement):
    """The formula itself; each further dimension of the noise takes one more second derivative of
    the field.
    """

    def cost(self, field: Cost) -> Cost:
        return total(differentiated(field), differentiated(field, 2))

    @torch.no_grad()
    def along(self, problem: ControlProblem, phi: VectorField, back: Reversal, k: int) -> States:
        _, x = back.place(k)
        return (
            derivative(phi, x, back.drifts[k] + back.noise_increments[k])
            + trace(phi, x, columns(problem.reference, k, x))
        ).detach()


@dataclasses.dataclass(frozen=True)
class FiniteDifferenceIncrement(CostateIncrement):
    """Four evaluations of the field, whatever the dimension."""

    def cost(self, field: Cost) -> Cost:
        return times(4, field)

    @torch.no_grad()
    def along(self, problem: ControlProblem, phi: VectorField, back: Reversal, k: int) -> States:
        (_, x), noise = back.place(k), back.noise_increments[k]
        centre = x + back.drifts[k]
        there, opposite = phi(centre + noise), phi(centre - noise)
        return (there - opposite) / 2 + (there - phi(centre)) + (opposite - phi(x))
