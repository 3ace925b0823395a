"""What the catalogue's estimators are made with: windows of steps, and the mean end of a chain."""

from __future__ import annotations

import pytest
import torch

from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.catalogue.factories import last_fifth, leave_one_out_dpok, refl
from socft.estimators.dpok import DPOK
from socft.estimators.refl import ReFL
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, DenseMaps, ScalarDiffusion
from tests.support.tensors import F64, randn

PATHS, DIM = 4, 2


def context(steps: int, repetition: int = 0) -> EstimatorContext:
    """An affine chain without symmetries."""
    reference = AffineReference(
        DenseMaps(randn(1, steps, DIM, DIM)),
        ScalarDiffusion(0.5 + torch.arange(steps, dtype=F64)),
        randn(2, steps, DIM),
    )
    problem = ControlProblem(reference, lambda x: torch.sin(x).sum(1), 0.7)
    return EstimatorContext(problem, Uncontrolled(reference), repetition)


@pytest.mark.parametrize(("steps", "fifth", "first"), [(20, 4, 15), (10, 2, 8), (1, 1, 0)])
def test_windows_are_shares_of_the_steps_and_never_empty(steps: int, fifth: int, first: int):
    assert last_fifth(steps) == fifth
    made = refl(context(steps))
    assert isinstance(made, ReFL)
    assert (made.first, made.last) == (first, steps - 1)


def test_the_mean_end_of_an_affine_chain_is_where_it_ends_without_noise():
    """From a state and a control of any step, none after."""
    here = context(4)
    made, reference = refl(here), here.problem.reference
    assert isinstance(made, ReFL)
    assert made.prediction is not None
    x, v = randn(3, PATHS, DIM), randn(4, PATHS, DIM)
    for k in range(4):
        end = reference.step(k, x, v)
        for later in range(k + 1, 4):
            end = reference.mean(later, end)
        torch.testing.assert_close(made.prediction(k, x, v), end, rtol=1e-12, atol=1e-12)


def test_repetitions_have_other_random_numbers_of_any_seed():
    drawn = {
        float(torch.rand((), generator=context(1, repetition).generator(seed)))
        for repetition in range(3)
        for seed in range(3)
    }
    assert len(drawn) == 9
    again = torch.rand((), generator=context(1, 2).generator(1))
    assert float(again) in drawn


def test_dpok_with_leave_one_out_averages_over_steps():
    made = leave_one_out_dpok()
    assert isinstance(made, DPOK)
    assert made.averaged
