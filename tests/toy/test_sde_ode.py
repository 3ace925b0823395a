"""Trained with one sampler, used in another: laws in closed form and by quadrature."""

from __future__ import annotations

import math

import pytest
import torch

from socft.density import Gaussian
from socft.reward import Quadratic
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.predictions import SamplerPrediction
from socft.study.vocabulary.problems import ProblemName
from toy.sde_ode import mixture
from toy.sde_ode.gaussian import INSTANCES, Normal, ScalarProblem
from toy.sde_ode.predictions import PREDICTED
from toy.sde_ode.samplers import MEMORYLESS, Kernel
from toy.studies.sde_ode import gaussian_task, population_task

PLACE = INSTANCES[ProblemName.FLOW_QUADRATIC]
QUADRATURE = 1e-6


def test_distances_of_normal_laws_are_their_integrals():
    p, q = Normal(0.3, 0.5), Normal(-0.2, 0.9)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    z = torch.special.ndtri(u)
    apart = (p.mean - q.mean) + (math.sqrt(p.variance) - math.sqrt(q.variance)) * z
    assert p.wasserstein1(q) == pytest.approx(float(apart.abs().mean()), rel=1e-4)
    x = p.mean + math.sqrt(p.variance) * z
    logs = [-((x - n.mean) ** 2) / (2 * n.variance) - math.log(n.variance) / 2 for n in (p, q)]
    assert p.divergence(q) == pytest.approx(float((logs[0] - logs[1]).mean()), rel=1e-3)
    assert p.wasserstein1(p) == p.divergence(p) == 0


@pytest.mark.parametrize("used", [0.0, 0.7, MEMORYLESS])
def test_quadrature_finds_the_laws_that_are_known_in_closed_form(
    used: float, monkeypatch: pytest.MonkeyPatch
):
    curvature = torch.tensor([[PLACE.curvature]], dtype=torch.float64)
    slope = torch.tensor([PLACE.slope], dtype=torch.float64)
    monkeypatch.setattr(mixture, "REWARD", Quadratic(curvature, slope))
    data = Gaussian(PLACE.mean, PLACE.variance)
    law = mixture.Trained.of(data, Kernel.PRECISE, 6, 0.7).law(used)
    exact, x = PLACE.laws(Kernel.PRECISE, 6, 0.7, (used,))[used], mixture.grid()
    mean = law.mean(x)
    assert mean == pytest.approx(exact.mean, abs=QUADRATURE)
    assert law.mean((x - mean).square()) == pytest.approx(exact.variance, abs=QUADRATURE)
    tilted = mixture.tilt(data)
    assert law.divergence(tilted) == pytest.approx(exact.divergence(PLACE.tilt), abs=QUADRATURE)
    assert law.wasserstein1(tilted) == pytest.approx(exact.wasserstein1(PLACE.tilt), abs=2e-5)


@pytest.mark.parametrize("used", [0.0, 0.7, 1.8])
def test_chains_tend_to_the_closed_form_and_not_to_the_tilt(used: float):
    apart = [
        PLACE.laws(Kernel.PRECISE, T, 1.8, (used,))[used].wasserstein1(PLACE.limit(1.8, used))
        for T in (40, 160)
    ]
    assert apart[1] < 0.3 * apart[0]
    away = PLACE.limit(1.8, used).wasserstein1(PLACE.tilt)
    assert (away > 5 * apart[1]) == (used != 1.8)


@pytest.mark.parametrize("steps", [5, 20])
def test_at_some_concave_reward_the_chain_is_the_tilt_and_the_flow_is_not(steps: int):
    """Centred: only variances can be off, and the chain's is continuous in the curvature."""

    def off(curvature: float, used: float) -> float:
        place = ScalarProblem(0.0, 1.0, curvature, 0.0)
        law = place.laws(Kernel.PRECISE, steps, MEMORYLESS, (used,))[used]
        return law.variance / place.tilt.variance - 1

    low, high = -12.0, 0.0
    assert off(low, MEMORYLESS) > 0 > off(high, MEMORYLESS)
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if off(middle, MEMORYLESS) > 0 else (low, middle)
    assert abs(off(low, MEMORYLESS)) < 1e-4 < 1e-3 < off(low, 0.0)


def test_the_counter_example_is_one_and_most_instances_are_not():
    records = gaussian_task(ProblemName.FLOW_CENTRED, Kernel.PRECISE, MEMORYLESS, [20, 40, 80])
    ratios = [
        r.value for r in records if r.setting.get("prediction") == SamplerPrediction.COUNTER_EXAMPLE
    ]
    assert len(ratios) == 3
    assert all(0 < ratio < 1 for ratio in ratios)
    assert PREDICTED[SamplerPrediction.COUNTER_EXAMPLE].high == 1
    found = population_task(12, [20, 40])
    (share,) = [r for r in found if r.metric == Metric.NEARER]
    assert share.value > 0.5
    assert share.seeds == 12
