"""Passes of PI-FT at the smallest weights, held against bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from socft import theory
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import PAPER, Chained, Iterate, iterate, visible
from verify.support.suprema import ACCURACY


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of PI-FT at the smallest weights that some constants admit.

    Attributes:
        beta: the weights, shape (T,).
        found: what the pass attains.
        where: instance, updates and weights, for the record.
        constants: whose weights they are.
    """

    beta: Tensor
    found: Iterate
    where: dict[str, Any]
    constants: str


def passes(instance: ProductInstance, rounds: int) -> Iterator[Pass]:
    """A pass at the smallest weights that the paper's constants admit, and one at those of the
    sharper constants.
    """
    for statement in (PAPER, theory.Lemma32(instance.sharp)):
        beta = instance.beta(statement)
        where = {"instance": instance.describe(), "updates": rounds, "beta": beta}
        yield Pass(beta, iterate(instance, beta, rounds), where, statement.bounds.name)


def hold_along_passes(
    claim: Claim,
    instance: ProductInstance,
    rounds: int,
    measure: Callable[[Iterate], Tensor],
    bound: Callable[[Chained, Tensor, theory.Bounds], Tensor],
    floor: float,
    part: str = "",
) -> None:
    """What each of the `passes` attains is below its bound, by the paper's constants and by the
    sharper ones.
    """
    for each in passes(instance, rounds):
        paper, sharp = (bound(instance, each.beta, b) for b in (PAPER.bounds, instance.sharp))
        title = f"{part}, {each.constants}" if part else each.constants
        claim.holds(measure(each.found), paper, each.where, sharp=sharp, floor=floor, part=title)


def control_errors_hold(
    claim: Claim,
    instance: ProductInstance,
    rounds: int,
    measure: Callable[[Iterate, Tensor], Tensor],
    bound: Callable[[Pass, theory.Bounds], Tensor],
) -> None:
    """What each of the `passes` leaves between its controls and the optimal ones is below its
    bound, in the score units that ``measure`` is given.
    """
    unit = theory.score_unit(instance.chain)
    floor = ACCURACY * instance.dim**0.5 * float(unit.max())
    for each in passes(instance, rounds):
        paper, sharp = (bound(each, b) for b in (PAPER.bounds, instance.sharp))
        measured = visible(measure(each.found, unit), sharp)
        claim.holds(measured, paper, each.where, sharp=sharp, floor=floor, part=each.constants)
