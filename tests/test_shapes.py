"""With ``pytest --shapes``, arguments and results are checked in every package."""

from __future__ import annotations

import random
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from sd_experiments.tiny.train_reward import pairs
from socft.reward import Softplus
from tests.support import shapes
from toy.measure import Estimate
from verify.support.iterates import inner

WRONG: dict[str, Callable[[], object]] = {
    "socft": lambda: Softplus()(torch.zeros(3)),
    "toy": lambda: Estimate(2, torch.zeros(3), torch.zeros(3), 1.0).bias(torch.zeros(3, 1)),
    "verify": lambda: inner(torch.zeros(5)),
    "sd_experiments": lambda: pairs(torch.zeros(2, 3)),
}
"""A call with a wrong shape in every package."""


def test_there_is_a_wrong_call_for_every_package():
    assert set(WRONG) == set(shapes.PACKAGES)


@pytest.mark.parametrize("package", WRONG)
def test_a_wrong_shape_is_caught(package: str, pytestconfig: pytest.Config):
    if not pytestconfig.getoption("--shapes"):
        pytest.skip("needs --shapes")
    with pytest.raises(jaxtyping.TypeCheckError, match="Actual value: f32"):
        WRONG[package]()


@pytest.mark.refusal
def test_a_wrong_shape_reaches_the_code_in_a_test_of_refusals():
    estimate = Estimate(2, torch.zeros(3), torch.zeros(3), 1.0)
    assert estimate.bias(torch.ones(3, 1)) == (3.0, 0.0)  # nine differences in place of three


@jaxtyping.jaxtyped(typechecker=shapes.typechecked)
def halved(x: Float[Tensor, " n"], names: list[str]) -> Float[Tensor, " n"]:
    """Of another length than x where there are no names."""
    return x / 2 if names else x[:1]


def test_a_wrong_result_and_a_wrong_entry_are_caught():
    assert len(halved(torch.zeros(4), ["a"])) == 4
    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        halved(torch.zeros(4), [])
    with pytest.raises(jaxtyping.TypeCheckError, match="names"):
        halved(torch.zeros(4), [1])  # type: ignore[list-item]


def test_checks_leave_the_random_numbers_of_tests_alone():
    before = random.getstate()
    halved(torch.zeros(4), ["a", "b", "c"])
    assert random.getstate() == before


def test_what_is_imported_too_early_is_not_passed_over():
    with pytest.raises(pytest.UsageError, match="socft is imported already"):
        shapes.install()
