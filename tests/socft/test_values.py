"""Whatever is given in place of an argument is taken rightly or refused in one sentence."""

from __future__ import annotations

import importlib
import inspect
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutations import mutations
from tests.support.public_calls import CALLS

pytestmark = pytest.mark.refusal
CASES = [
    (name, argument, mutation)
    for name, call in CALLS.items()
    for argument, value in call.arguments().items()
    for mutation in mutations(value)
]
ROOMS = ("flow", "theory", "density", "reward", "reference")
PACKAGES = ["socft", *(f"socft.{room}" for room in ROOMS)]
SLOW = {"measured_beta", "Quadrature", "SeparableTruth"}
"""Solved by quadrature, too often for the time there is."""
SCHEMES = {"EulerMaruyama", "Exponential", "Strang", "Taylor"}
WITHOUT_ARGUMENTS = SCHEMES | {"BestRelaxation", "PaperBounds", "Rectified", "Trigonometric"}
INNER = {"Approximation", "InnerLoop", "MeanMap", "Smoothed", "Smoothness", "StepConstants"} | {
    "affine_coefficients",
    "at_step",
    "by_step",
    "iterate_step",
    "level_at",
    "optimal_step",
    "orthonormal",
}
"""What the theory, chains and rewards hand to each other."""
MADE_BY_SOCFT = (
    {"Evaluation", "Iteration", "Measurement", "Path", "Record"}
    | {
        "Measurements",
        "Records",
        "Standing",
    }
    | {
        "BetaChoice",
        "Convergence",
        "Identity",
        "IdentityVerdict",
        "PathConvergence",
        "Regularity",
        "ScoreConstants",
        "Tilt",
    }
)
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


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_that_takes_arguments_is_tried(package: str):
    room = importlib.import_module(package)
    found = {name: getattr(room, name) for name in room.__all__}
    public = {
        name
        for name, made in found.items()
        if (inspect.isclass(made) or inspect.isfunction(made))
        and made.__module__.startswith("socft.")
        and not inspect.isabstract(made)
    }
    tried = {part for name in CALLS for part in name.split(" ")}
    elsewhere = WITHOUT_ARGUMENTS | MADE_BY_SOCFT | ESTIMANDS | INNER
    assert public - tried - elsewhere == {"InvalidProblem", "measure"} & public
    schemes = {name.split(" ")[0] for name in CALLS if " of a " in name}
    assert schemes == SCHEMES
