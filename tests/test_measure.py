"""Measurements of gradient estimators: the measured gradient is the trained one, and exact gradients are exact."""

from __future__ import annotations

import gc

import pytest
import torch

from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.full_adjoint import FullAdjoint
from socft.policy import AffinePolicy
from socft.rollout import Noise, rollout
from socft.schedule import ddpm, linear_levels, subsample
from toy.contenders import CONTENDERS
from toy.measure import Estimate, Memory, estimate, peak_memory
from toy.problems import benchmark
from toy.situations import Situation, situation

IDENTITY = 1e-12  # the same sums in another order
STDERRS = 4.0
PATHS = 4000
SHORT, WIDE, FEW = (6, 18), 16, 20


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
    [("lq-fine-tuning", {"d": 3}, 0.5), ("oscillator", {"dt": 0.5}, 0.0), ("mixture", {"d": 1, "steps": 10}, 0.0)],
)
def test_exact_gradients_are_the_mean_of_an_unbiased_estimator(name, settings, scale):
    where = situation(benchmark(name, **settings), scale)
    found = estimate(FullAdjoint(), where.problem, where.policy, noise(where))
    distances = (found.mean - where.gradient).abs() / (found.stderr + where.stderr)
    assert distances.max() < STDERRS
    assert float(where.gradient.norm()) > 10 * float(found.stderr.norm())  # a wrong gradient would be seen


def test_value_gradients_are_conditional_means_of_costates():
    where = situation(benchmark("lq-fine-tuning", d=2), 0.5)
    with torch.no_grad():
        path = rollout(where.problem.reference, where.policy, noise(where))
        costates = FullAdjoint().costates(where.problem, where.policy, path)
    for k in (0, 25):
        away = costates.values[k] - where.value_gradient(k, path.states[k])
        assert (away.mean(0).abs() < STDERRS * away.std(0) / PATHS**0.5).all()


def test_gradients_vanish_at_the_optimum_of_a_problem_that_is_not_quadratic():
    where = situation(benchmark("mixture", d=1, steps=10), 1.0)
    found = estimate(AdjointMatching(), where.problem, where.policy, noise(where))
    assert where.gradient.abs().max() == 0
    assert (found.mean.abs() / found.stderr).max() < STDERRS
    with pytest.raises(InvalidProblem, match=r"scale = 0\.5; on mixture gradients are exact at 0 and at 1"):
        situation(benchmark("mixture", d=1, steps=10), 0.5)


def test_bias_leaves_out_the_noise_of_the_mean():
    draw = torch.Generator().manual_seed(0)
    shift = torch.tensor([3.0, -4.0], dtype=torch.float64)
    samples = shift + torch.randn(10_000, 2, generator=draw, dtype=torch.float64)
    parts = [Estimate(len(x), x.mean(0), x.square().mean(0), 1.0) for x in samples.split([2500, 7500])]
    whole = Estimate.joined(parts)
    assert (whole.paths, whole.seconds) == (10_000, 2.0)
    assert torch.allclose(whole.stderr, samples.std(0) / 100, rtol=IDENTITY)
    assert abs(whole.variance - float(samples.var(0).sum())) < IDENTITY * 100
    bias, stderr = whole.bias(torch.zeros(2, dtype=torch.float64))
    assert abs(stderr - (2 / 10_000) ** 0.5) < 0.05 * stderr
    assert abs(bias - 5) < STDERRS * stderr
    none, stderr = whole.bias(shift)
    assert none < STDERRS * stderr


def test_memory_counts_what_is_alive():
    with Memory() as memory:
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
    with Memory() as memory:
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


@pytest.mark.parametrize("name", CONTENDERS)
def test_the_declared_growth_of_memory_is_the_measured_one(name):
    """In states per step and path; at 16 dimensions a number per step is a sixteenth of one."""
    peaks, declared = [], None
    for steps in SHORT:
        schedule = ddpm(subsample(linear_levels(1000), steps))
        where = situation(benchmark("lq-fine-tuning", d=WIDE, schedule=schedule), 0.5)
        estimator = CONTENDERS[name].make(where)
        with torch.no_grad():
            path = rollout(where.problem.reference, where.policy, noise(where, FEW))
        peaks.append(peak_memory(estimator, where.problem, where.policy, path))
        declared = estimator.cost.memory
    growth = (peaks[1] - peaks[0]) / (SHORT[1] - SHORT[0]) / (FEW * WIDE * 8 / 1e6)
    assert growth > 0.9 if declared == "T" else growth < 0.5
