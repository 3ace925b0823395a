"""Passes of PI-FT at the smallest weights, held against bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import PAPER, Chained, Iterate, iterate, visible
from verify.support.strategies import curved_rewards, instances
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


def along_passes(
    claim: Claim,
    measure: Callable[[Iterate], Tensor],
    bound: Callable[[Chained, Tensor, theory.Bounds], Tensor],
    floor: Callable[[ProductInstance], float],
) -> Callable[[], None]:
    """A test of `hold_along_passes` on drawn instances."""

    @settings(max_examples=18)
    @given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 5))
    def test(instance: ProductInstance, rounds: int) -> None:
        hold_along_passes(claim, instance, rounds, measure, bound, floor(instance))

    return test


def hold_at_the_optimum(
    claim: Claim,
    instance: ProductInstance,
    measured: Tensor,
    bound: Callable[[ProductInstance, theory.RegularityStatement], Tensor],
    floor: float,
) -> None:
    """What the optimum attains is below its bound by Theorem 2.8, at the weights of the paper's
    condition, with the paper's constants and with the sharper ones.
    """
    paper, sharp = (bound(instance, theory.Theorem28(b)) for b in (PAPER.bounds, instance.sharp))
    claim.holds(measured, paper, instance, sharp=sharp, floor=floor)
