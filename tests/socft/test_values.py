"""Whatever is given in place of an argument is taken rightly or refused in one sentence."""

from __future__ import annotations

import inspect
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import socft
from tests.support.mutations import mutations
from tests.support.public_calls import CALLS

pytestmark = pytest.mark.refusal
CASES = [
    (name, argument, mutation)
    for name, call in CALLS.items()
    for argument, value in call.arguments().items()
    for mutation in mutations(value)
]
SLOW = {"measured_beta", "Quadrature", "SeparableTruth"}
"""Solved by quadrature, too often for the time there is."""
WITHOUT_ARGUMENTS = {"EulerMaruyama", "Exponential", "Strang", "Taylor"}
MADE_BY_SOCFT = {"Evaluation", "Iteration", "Measurement", "Path", "Record"} | {
    "Measurements",
    "Records",
    "Standing",
}
"""Records of what was computed, which nobody else makes."""
ESTIMANDS = {"ApproximateResidual", "Biased", "EquationResidual", "Estimand"} | {
    "AdvantageMode",
    "FixedPointEquation",
    "FixedPointResidual",
    "LastStepsGradient",
    "ObjectiveGradient",
    "ResidualWeight",
    "ResidualZero",
    "Spread",
}
"""Statements of classes of estimators, in words."""


def outcome(case: tuple[str, str, str]) -> str:
    name, argument, mutation = case
    value = CALLS[name].arguments()[argument]
    return CALLS[name].outcome(argument, mutations(value)[mutation])


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_right_as_they_are(name: str):
    assert CALLS[name].outcome() == "right"


@settings(max_examples=150)
@given(st.sampled_from([case for case in CASES if case[0] not in SLOW]))
def test_an_argument_that_is_changed_is_taken_rightly_or_refused(case: tuple[str, str, str]):
    assert outcome(case) in ("right", "refused"), case


@pytest.mark.slow
def test_thousands_of_arguments_that_are_changed_are_taken_rightly_or_refused():
    chosen = random.Random(0).sample([case for case in CASES if case[0] not in SLOW], 4000)
    found = {case: outcome(case) for case in chosen}
    assert {case: each for case, each in found.items() if each not in ("right", "refused")} == {}
    assert sum(each == "refused" for each in found.values()) > 2000


def test_everything_public_that_takes_arguments_is_tried():
    found = {name: getattr(socft, name) for name in socft.__all__}
    public = {
        name
        for name, made in found.items()
        if not inspect.isabstract(made) and not made.__module__.startswith("socft.flow")
    }
    untried = (
        public
        - {name.split(" ")[0] for name in CALLS}
        - WITHOUT_ARGUMENTS
        - MADE_BY_SOCFT
        - ESTIMANDS
    )
    assert untried - {"InvalidProblem", "fit", "measure"} == set()
    schemes = {name.split(" ")[0] for name in CALLS if " of a " in name}
    assert schemes == WITHOUT_ARGUMENTS
