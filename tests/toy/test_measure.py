"""Measurements of gradient estimators: the measured gradient is the trained one, and exact
gradients are exact.
"""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.catalogue import CATALOGUE, COMPARED
from socft.estimators.estimand import Kind
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.refl import ReFL
from socft.path import Noise, rollout
from socft.policy import AffinePolicy
from socft.schedule import ddpm, linear_levels, subsample
from toy.measure import Estimate, MemoryMeter, estimate, peak_memory
from toy.problems import benchmark
from toy.repeated import RepeatedGradient
from toy.situations import Situation, _size, situation
from toy.studies.variance import variance_task
from verify.support.sampling import STDERRS, require_estimates, require_mean

IDENTITY = 1e-12  # the same sums in another order
PATHS = 4000
UNIT_ERROR = 0.15  # 4 standard errors of the norm from 1000 paths
SHORT, WIDE, FEW = (6, 18), 16, 20
NARROW = dict.fromkeys(
    [
        "full martingale, quadratic costate, second order",
        *(f"time-reversed, {score} score" for score in ("exact", "implicit", "nearest-kernel")),
    ],
    4,
)  # refuse 16 dimensions


def noise(where: Situation, paths: int = PATHS, seed: int = 0) -> Noise:
    return Noise.sample(where.problem.reference, paths, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("estimator", [FullAdjoint(), AdjointMatching()], ids=["full", "lean"])
def test_the_measured_gradient_is_the_one_that_training_uses(estimator):
    where = situation(benchmark("oscillator", dt=0.5), 0.5)
    assert isinstance(where.policy, AffinePolicy)
    found = estimate(estimator, where.problem, where.policy, noise(where, 50)).mean
    with torch.no_grad():
        path = rollout(where.problem.reference, where.policy, noise(where, 50))
        labels = estimator.label(where.problem, where.policy, path)
    k, sample = labels.pairs()
    estimator.loss(where.problem, where.policy, k, labels.rows(k, sample)).sum().div(50).backward()
    gain, offset = where.policy.gain.grad, where.policy.offset.grad
    assert gain is not None
    assert offset is not None
    trained = -torch.cat([gain, offset.unsqueeze(2)], 2).flatten()
    assert (found - trained).abs().max() < IDENTITY * trained.abs().max()


@pytest.mark.parametrize(
    ("name", "settings", "scale"),
    [
        ("lq-fine-tuning", {"d": 3}, 0.5),
        ("oscillator", {"dt": 0.5}, 0.0),
        ("mixture", {"d": 1, "steps": 10}, 0.0),
    ],
)
def test_exact_gradients_are_the_mean_of_an_unbiased_estimator(name, settings, scale):
    where = situation(benchmark(name, **settings), scale)
    found = estimate(FullAdjoint(), where.problem, where.policy, noise(where))
    require_estimates(found.mean, found.stderr + where.stderr, where.gradient, 0.27)
    assert float(where.gradient.norm()) > 10 * float(
        found.stderr.norm()
    )  # a wrong gradient would be seen


def test_value_gradients_are_conditional_means_of_costates():
    where = situation(benchmark("lq-fine-tuning", d=2), 0.5)
    with torch.no_grad():
        path = rollout(where.problem.reference, where.policy, noise(where))
        costates = FullAdjoint().costates(where.problem, where.policy, path)
    for k in (0, 25):
        away = costates.values[k] - where.value_gradient(k, path.states[k])
        require_mean(away, 0.0, 0.00097)


def test_gradients_vanish_at_the_optimum_of_a_problem_that_is_not_quadratic():
    where = situation(benchmark("mixture", d=1, steps=10), 1.0)
    found = estimate(AdjointMatching(), where.problem, where.policy, noise(where))
    assert where.gradient.abs().max() == 0
    require_estimates(found.mean, found.stderr, 0.0, 0.0061)
    with pytest.raises(
        InvalidProblem, match=r"scale = 0\.5; on mixture gradients are exact at 0 and at 1"
    ):
        situation(benchmark("mixture", d=1, steps=10), 0.5)


def parts_of(samples: Tensor, count: int, shifts: Tensor, exact: Tensor) -> RepeatedGradient:
    """Repetitions of equally many samples, each with a shift of its own."""
    moved = [part + shift for part, shift in zip(samples.chunk(count), shifts, strict=True)]
    parts = [Estimate(len(x), x.mean(0), x.square().mean(0), 1.0) for x in moved]
    return RepeatedGradient.of(
        torch.stack([each.mean for each in parts]),
        exact,
        1.0,
        kind=Kind.BIASED,
        noise=0.0,
        variances=torch.tensor([each.variance for each in parts], dtype=torch.float64),
        paths=parts[0].paths,
        evaluations=1,
        fit_evaluations=0,
    )


def test_bias_leaves_out_the_noise_of_the_mean():
    draw = torch.Generator().manual_seed(0)
    shift = torch.tensor([3.0, -4.0], dtype=torch.float64)
    samples = shift + torch.randn(10_000, 2, generator=draw, dtype=torch.float64)
    single = Estimate(10_000, samples.mean(0), samples.square().mean(0), 1.0)
    assert torch.allclose(single.stderr, samples.std(0) / 100, rtol=IDENTITY)
    none = torch.zeros(2, dtype=torch.float64)
    for exact, truth in ((none, 5.0), (shift, 0.0)):
        each = parts_of(samples, 50, none.expand(50, 2), exact)
        assert abs(float(each.variance(each.equal)) - 2) < STDERRS * (2 * 2 / 10_000) ** 0.5
        assert abs(each.bias_noise - (2 / 10_000) ** 0.5) < 0.2 * each.bias_noise
        assert abs(float(each.bias_squared(each.equal)) ** 0.5 - truth) < STDERRS * each.bias_noise
        size = float(each.size_squared(each.equal)) ** 0.5
        assert abs(size - 5) < STDERRS * each.bias_noise
    bias, stderr = single.bias(none)
    assert abs(stderr - (2 / 10_000) ** 0.5) < 0.2 * stderr
    assert abs(bias - 5) < STDERRS * stderr
    assert single.bias(shift)[0] < STDERRS * stderr


def test_what_a_fit_leaves_is_told_from_the_noise_of_paths():
    """Shifts of variance 1/4 in each of 20 parameters, one per repetition, beside unit noise of 200
    paths.
    """
    draw, size = torch.Generator().manual_seed(1), (50, 20)
    shifts = 0.5 * torch.randn(size, generator=draw, dtype=torch.float64)
    samples = torch.randn(10_000, 20, generator=draw, dtype=torch.float64)
    found = parts_of(samples, 50, shifts, torch.zeros(20, dtype=torch.float64))
    assert abs(float(found.fit_variance(found.equal)) - 5) < STDERRS * 5 * (2 / (49 * 20)) ** 0.5
    assert abs(float(found.variance(found.equal)) - 20) < STDERRS * 20 * (2 / (10_000 * 20)) ** 0.5
    bias, stderr = float(found.bias_squared(found.equal)) ** 0.5, found.bias_noise
    assert (
        abs(stderr - (5.1 / 50) ** 0.5) < 0.2 * stderr
    )  # of the shifts; that of paths alone is a seventh
    assert bias < STDERRS * stderr


@pytest.mark.parametrize("name", ["TD(0), fitted costate", "truncated backpropagation, random"])
def test_fits_and_draws_are_others_in_another_repetition(name):
    where = situation(benchmark("lq-sde", d=2, steps=8), 0.5)
    again = dataclasses.replace(where, repetition=1)
    first, same, other = (
        estimate(
            CATALOGUE[name].make(each.context), where.problem, where.policy, noise(where, 50)
        ).mean
        for each in (where, where, again)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_fit_that_takes_the_whole_budget_leaves_no_estimate(monkeypatch: pytest.MonkeyPatch):
    """1000 paths of 10 steps: two evaluations and two derivatives each for the costates, four
    evaluations for the values.
    """
    monkeypatch.setattr("toy.repeated.BUDGET", 1000 * 10 * (2 + 2 * 2 + 4))
    records = variance_task(
        "time-reversed, value form", "lq-sde", {"d": 1, "steps": 10}, 0.5, "axis", 20, 2
    )
    assert next(record.value for record in records if record.metric == "error_at_budget") == float(
        "inf"
    )


def measured(name: str, paths: int) -> tuple[dict[str, float], float, int]:
    """What is recorded of a method on paths of 10 steps, the standard error of its bias, and
    evaluations per path.
    """
    records = variance_task(name, "lq-sde", {"d": 2, "steps": 10}, 0.5, "axis", paths, 4)
    bias = next(record for record in records if record.metric == "bias")
    assert bias.stderr is not None
    assert bias.evaluations is not None
    return {record.metric: record.value for record in records}, bias.stderr, bias.evaluations


def test_a_fit_is_charged_to_the_budget():
    """Of a million evaluations, 1000 paths of 10 steps with two evaluations and two derivatives
    each are spent before the first.
    """
    found, stderr, evaluations = measured("full martingale, fitted costate", 200)
    paths = (1_000_000 - 1000 * 10 * 6) // evaluations
    assert found["bias"] < STDERRS * stderr
    assert found["error_at_budget"] == pytest.approx(
        (found["bias"] ** 2 + found["variance"] / paths) ** 0.5, rel=IDENTITY
    )
    assert "fit_variance" not in found  # given any fit its mean is the gradient


def test_what_a_fit_leaves_limits_a_biased_estimator_at_any_budget():
    found, _, evaluations = measured("TD(0), fitted costate", 2000)
    paths = (1_000_000 - 1000 * 10 * 6) // evaluations
    assert found["fit_variance"] > 0
    expected = found["bias"] ** 2 + found["fit_variance"] + found["variance"] / paths
    assert found["error_at_budget"] == pytest.approx(expected**0.5, rel=IDENTITY)


def test_memory_counts_what_is_alive():
    with MemoryMeter() as memory:
        first = torch.zeros(1000, dtype=torch.float64)
        second = first + 1
        view = second[:10]
        del first
        third = second * 2
        del second, third
    gc.collect()
    assert memory.peak == 16_000
    assert memory.alive == 8_000  # the view keeps its storage
    del view
    assert memory.alive == 0


def test_memory_counts_what_a_graph_keeps():
    x = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    with MemoryMeter() as memory:
        y = x.exp().sin().sum()  # keeps exp(x) for the backward pass
        assert memory.alive >= 8_000
        del y
    assert memory.alive == 0


def test_adjoints_need_no_memory_that_grows_with_the_steps():
    peaks = []
    for steps in (20, 80):
        where = situation(benchmark("lq-sde", d=2, steps=steps), 0.5)
        with torch.no_grad():
            path = rollout(where.problem.reference, where.policy, noise(where, 500))
        peaks.append(peak_memory(FullAdjoint(), where.problem, where.policy, path))
    state = 500 * 2 * 8 / 1e6
    assert peaks[1] < peaks[0] + state


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.slow
def test_the_declared_growth_of_memory_is_the_measured_one(name):
    """In states per step and path; at 16 dimensions a number per step is a sixteenth of one."""
    peaks, declared, d = [], None, NARROW.get(name, WIDE)
    for steps in SHORT:
        schedule = ddpm(subsample(linear_levels(1000), steps))
        where = situation(benchmark("lq-fine-tuning", d=d, schedule=schedule), 0.5)
        estimator = CATALOGUE[name].make(where.context)
        with torch.no_grad():
            path = rollout(where.problem.reference, where.policy, noise(where, FEW))
        peaks.append(peak_memory(estimator, where.problem, where.policy, path))
        declared = estimator.cost.memory
    growth = (peaks[1] - peaks[0]) / (SHORT[1] - SHORT[0]) / (FEW * d * 8 / 1e6)
    assert growth > 0.9 if declared == "T" else growth < 0.5


def test_refl_predicts_the_mean_end_of_a_linear_chain():
    where = situation(benchmark("lq-sde", d=2, steps=8), 0.5)
    refl, k, x, v = (
        CATALOGUE["ReFL"].make(where.context),
        5,
        torch.tensor([[0.7, -0.4]]).double(),
        torch.tensor([[0.3, 0.9]]).double(),
    )
    assert isinstance(refl, ReFL)
    assert refl.prediction is not None
    draw, reference = torch.Generator().manual_seed(0), where.problem.reference
    xi = torch.randn(8, PATHS, 2, generator=draw, dtype=torch.float64)
    ends = reference.step(k, x.expand(PATHS, 2), v + xi[k])
    for j in range(k + 1, 8):
        ends = reference.step(j, ends, xi[j])
    require_mean(ends, refl.prediction(torch.tensor([k]), x, v)[0], 0.011)


@pytest.mark.parametrize(
    "name", ["moment", "relative entropy", "full martingale, quadratic costate, second order"]
)
def test_estimators_of_the_objective_have_its_gradient_as_their_mean(name):
    where = situation(benchmark("lq-sde", d=2, steps=10), 0.5)
    found = estimate(CATALOGUE[name].make(where.context), where.problem, where.policy, noise(where))
    bias, stderr = found.bias(where.gradient)
    require_estimates(bias, stderr, 0.0, 0.063)
    assert float(where.gradient.norm()) > STDERRS * stderr


def test_labels_of_few_steps_cost_no_more_than_these():
    """A DRaFT-1 label takes the two derivatives of one step, four evaluations, beside the rollout's
    two per step.
    """
    name = "truncated backpropagation, 1 step"
    records = variance_task(name, "lq-sde", {"d": 1, "steps": 10}, 0.5, "axis", 50, 2)
    assert {record.evaluations for record in records} == {2 * 10 + 4}


def test_a_unit_is_estimated_where_the_first_gradient_is_not_known():
    """Against the same law in one dimension, whose first gradient is known."""
    known, unit = (
        situation(benchmark("mixture", d=1, steps=10), 1.0),
        _size(benchmark("mixture", d=1, steps=10).problem),
    )
    assert abs(unit / known.scale - 1) < UNIT_ERROR
    assert situation(benchmark("mixture", d=3, steps=10), 1.0).scale > 0
