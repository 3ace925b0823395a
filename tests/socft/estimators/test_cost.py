"""The declared cost of labels against counted work."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from socft.costates.adjoint import FullRecursion, LeanRecursion
from socft.costates.base import Cost
from socft.costates.fields import (
    CostateSource,
    GivenCostate,
    PolicyCostate,
)
from socft.costates.increments import AnalyticIncrement, FiniteDifferenceIncrement
from socft.costates.landing import OwnStepAsIs, OwnStepByJvp, OwnStepExact
from socft.costates.marginal_score import GivenScore
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.estimators.sticking_the_landing import FullStickingTheLanding, LeanStickingTheLanding
from socft.estimators.td_adjoint import TDAdjoint
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion, Step
from socft.reward import Quadratic
from tests.support.costate_cases import CORRECTIONS
from tests.support.costate_fields import paths
from tests.support.tensors import F64, generator


@dataclasses.dataclass
class Tally:
    """Evaluated rows and derivatives of them; a nested derivative counts once per level."""

    evaluations: float = 0
    derivatives: float = 0

    def record(self, x: Tensor) -> None:
        depth = 0
        while (inner := torch.func.debug_unwrap(x, recurse=False)) is not x:
            depth, x = depth + 1, inner
        depth += int(x.requires_grad)
        if depth == 0:
            self.evaluations += len(x)
        self.derivatives += depth * len(x)


class CountingReference(AffineReference):
    """In one dimension."""

    def __init__(self, steps: int):
        super().__init__(
            torch.full((steps, 1, 1), 0.8, dtype=F64), ScalarDiffusion(torch.full((steps,), 0.5))
        )
        self.tally = Tally()

    def mean(self, k: Step, x: Tensor) -> Tensor:
        self.tally.record(x)
        return super().mean(k, x)


class CountingPolicy(Policy):
    def __init__(self) -> None:
        self.tally = Tally()

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        self.tally.record(x)
        return torch.sin(x)


def work(estimator: Estimator | ReversedValues, steps: int) -> Cost:
    reference, policy = CountingReference(steps), CountingPolicy()
    problem = ControlProblem(reference, Quadratic(-torch.ones(1, 1, dtype=F64)), 1.0)
    path = paths(problem, policy, 10, 39)
    reference.tally, policy.tally = Tally(), Tally()
    if isinstance(estimator, ReversedValues):
        estimator.values(problem, policy, path)
    else:
        estimator.label(problem, policy, path)
    return Cost(
        reference.tally.evaluations / 10,
        reference.tally.derivatives / 10,
        policy.tally.evaluations / 10,
        policy.tally.derivatives / 10,
    )


SOURCES: list[CostateSource] = [
    GivenCostate(lambda k, x: x),
    PolicyCostate(),
    PolicyCostate(exact=False),
]
REVERSER = Reverser(GivenScore(lambda k, x: -x), generator(40))
COSTED: list[Estimator | ReversedValues] = [
    AdjointMatching(),
    FullAdjoint(),
    *(
        make(own)
        for make, own in itertools.product(
            (LeanStickingTheLanding, FullStickingTheLanding),
            (OwnStepAsIs(), OwnStepByJvp(), OwnStepExact()),
        )
    ),
    ReciprocalAdjoint(generator(41)),
    *(
        make(kind(field))
        for make, kind, field in itertools.product(
            (MartingaleAdjoint, FullMartingaleAdjoint), CORRECTIONS, SOURCES
        )
    ),
    *(TDAdjoint(field, 0.5) for field in SOURCES),
    *(
        ReversedBSDE(field, REVERSER, adjoint, move)
        for field, adjoint, move in itertools.product(
            SOURCES,
            (LeanRecursion(), FullRecursion()),
            (AnalyticIncrement(), FiniteDifferenceIncrement()),
        )
    ),
    *(ReversedValues(field, REVERSER) for field in SOURCES),
]


@pytest.mark.parametrize("estimator", COSTED, ids=lambda each: type(each).__name__)
def test_the_declared_cost_is_the_counted_work_of_one_more_step(
    estimator: Estimator | ReversedValues,
):
    """The first and the last step differ, since the field at the end is the reward's gradient;
    steps in between do not.
    """
    short, long = work(estimator, 4), work(estimator, 5)
    for name in ("reference", "reference_derivatives", "policy", "policy_derivatives"):
        assert getattr(long, name) - getattr(short, name) == pytest.approx(
            getattr(estimator.cost, name)
        )
