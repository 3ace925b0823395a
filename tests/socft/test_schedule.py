"""Schedules: the kernels' identities against Gaussian conditioning, their marginals, their memory,
and what is refused.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable

import pytest
import torch

from socft import schedule as schedules
from socft.checks import InvalidProblem
from socft.schedule import (
    Schedule,
    cosine_levels,
    ddim,
    ddpm,
    linear_levels,
    scaled_linear_levels,
    soften_last,
    subsample,
    variance_preserving,
)
from tests.support.refusals import refusals

ALGEBRA = 1e-12  # a few operations in float64
CANCELLATION = 1e-9  # differences of levels that nearly cancel
ORDER = 0.15  # of a measured convergence order, from halving the step three times
STANDARD_ERRORS = 4.0

LEVELS = soften_last(linear_levels(1000))
COARSE = soften_last(subsample(linear_levels(1000), 20))


SCHEDULES: dict[str, Schedule] = {
    "ddpm": ddpm(LEVELS),
    "ddim": ddim(LEVELS, 0.5),
    "variance_preserving": variance_preserving(50, 2.0),
}
LEVEL_FUNCTIONS: dict[str, torch.Tensor] = {
    "linear_levels": linear_levels(100),
    "scaled_linear_levels": scaled_linear_levels(100),
    "cosine_levels": cosine_levels(100),
    "subsample": subsample(LEVELS, 20),
    "soften_last": LEVELS,
}


def test_every_schedule_is_tested():
    functions = {
        name
        for name, each in vars(schedules).items()
        if inspect.isfunction(each) and each.__module__ == schedules.__name__
        if not name.startswith("_")
    }
    assert functions == {*SCHEDULES, *LEVEL_FUNCTIONS}


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_kernel_adds_noise_and_follows_the_score(name: str):
    schedule = SCHEDULES[name]
    assert bool((schedule.sigma > 0).all())
    assert bool((schedule.score_weight > 0).all())


@pytest.mark.parametrize("name", list(LEVEL_FUNCTIONS))
def test_levels_rise_from_noise_to_data(name: str):
    abar = LEVEL_FUNCTIONS[name]
    assert bool((abar.diff() > 0).all())
    assert 0 < float(abar[0]) < float(abar[-1]) <= 1


def test_eta_one_is_the_posterior_of_the_forward_chain():
    """Mean and variance of x_{t+1} given x_t and x_0 by Gaussian conditioning, x_0 replaced by
    Tweedie's estimate.
    """
    schedule = ddim(COARSE, 1.0)
    assert torch.allclose(schedule.score_weight, 1 - schedule.alpha, rtol=0, atol=ALGEBRA)
    y, score = 0.7, -0.4
    for t in range(schedule.steps):
        noisy, clean = float(COARSE[t]), float(COARSE[t + 1])
        a = noisy / clean
        precision = 1 / (1 - clean) + a / (1 - a)
        x0 = (y + (1 - noisy) * score) / noisy**0.5
        mean = (clean**0.5 * x0 / (1 - clean) + a**0.5 * y / (1 - a)) / precision
        assert float(schedule.sigma[t]) ** 2 == pytest.approx(1 / precision, rel=CANCELLATION)
        assert float(
            (y + schedule.score_weight[t] * score) / schedule.alpha[t].sqrt()
        ) == pytest.approx(mean, rel=CANCELLATION)


@pytest.mark.parametrize("eta", [0.2, 0.7, 1.0])
def test_ddim_moves_the_exact_noise_by_its_formula(eta: float):
    """The mean is sqrt(abar') x0 + sqrt(1 - abar' - sigma^2) eps, x0 and eps predicted (Song et al.
    2021, equations 12, 16).
    """
    schedule, y, score = ddim(COARSE, eta), 0.7, -0.4
    for t in range(schedule.steps):
        noisy, clean = float(COARSE[t]), float(COARSE[t + 1])
        variance = (eta * math.sqrt((1 - clean) / (1 - noisy)) * math.sqrt(1 - noisy / clean)) ** 2
        assert float(schedule.sigma[t]) ** 2 == pytest.approx(variance, rel=CANCELLATION)
        eps = -((1 - noisy) ** 0.5) * score
        x0 = (y - (1 - noisy) ** 0.5 * eps) / noisy**0.5
        mean = clean**0.5 * x0 + max(1 - clean - variance, 0) ** 0.5 * eps
        assert float(
            (y + schedule.score_weight[t] * score) / schedule.alpha[t].sqrt()
        ) == pytest.approx(mean, rel=CANCELLATION)


def final_variance(schedule: Schedule, variance: float) -> float:
    """Variance of the last state of the chain with the exact score of N(0, variance), started at
    its exact noised law.
    """
    spread = variance * float(schedule.abar[0]) + 1 - float(schedule.abar[0])
    for t in range(schedule.steps):
        level = variance * float(schedule.abar[t]) + 1 - float(schedule.abar[t])
        shrink = (1 - float(schedule.score_weight[t]) / level) / float(schedule.alpha[t]) ** 0.5
        spread = shrink**2 * spread + float(schedule.sigma[t]) ** 2
    return spread


@pytest.mark.parametrize("eta", [1e-3, 0.3, 0.7, 1.0])
def test_every_eta_keeps_the_marginals_to_first_order(eta: float):
    """Levels that grow exponentially to 0.9; halving the step halves the error of the final
    variance.
    """
    errors, variance = [], 2.5
    for steps in (100, 200, 400, 800):
        tau = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        schedule = ddim(0.9 * torch.exp(-5 * (1 - tau)), eta)
        errors.append(final_variance(schedule, variance) - (0.9 * variance + 0.1))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(order - 1) < ORDER for order in orders)


def test_ancestral_sampling_is_first_order_too():
    errors = [
        final_variance(variance_preserving(steps, 6.0), 2.5) - 2.5 for steps in (100, 200, 400, 800)
    ]
    assert all(abs(math.log2(a / b) - 1) < ORDER for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize(("eta", "variance"), [(0.2, 1.0), (0.5, 3.0), (1.0, 0.4)])
def test_memory_is_the_correlation_of_simulated_ends(eta: float, variance: float):
    schedule, batch = ddim(torch.linspace(0.02, 0.99, 9, dtype=torch.float64), eta), 200_000
    generator = torch.Generator().manual_seed(4)
    first = torch.randn(batch, generator=generator, dtype=torch.float64)
    y = first
    for t in range(schedule.steps):
        score = -y / (variance * schedule.abar[t] + 1 - schedule.abar[t])
        noise = torch.randn(batch, generator=generator, dtype=torch.float64)
        y = (y + schedule.score_weight[t] * score) / schedule.alpha[t].sqrt() + schedule.sigma[
            t
        ] * noise
    measured = float(torch.corrcoef(torch.stack([first, y]))[0, 1])
    assert (
        abs(measured - schedule.memory(variance)) < STANDARD_ERRORS * (1 - measured**2) / batch**0.5
    )


@pytest.mark.parametrize("abar", [COARSE, cosine_levels(30)], ids=["linear", "cosine"])
def test_memory_of_ancestral_sampling_in_closed_form(abar: torch.Tensor):
    """Unit data: every transfer is sqrt(a_t) and every state N(0, 1), so the correlation is
    sqrt(abar_0 / abar_T).
    """
    assert ddpm(abar).memory() == pytest.approx(
        math.sqrt(float(abar[0] / abar[-1])), rel=CANCELLATION
    )


def test_memory_grows_as_eta_falls():
    memories = [ddim(COARSE, eta).memory() for eta in (1.0, 0.7, 0.4, 0.1)]
    assert all(a < b for a, b in itertools.pairwise(memories))
    assert ddim(COARSE).is_memoryless()
    assert not ddim(COARSE, 0.1).is_memoryless()


def test_levels_are_the_published_ones():
    """First and last forward variance of DDPM, and Stable Diffusion's last level
    (alphas_cumprod[999] = 0.00466).
    """
    linear = linear_levels(1000)
    assert 1 - float(linear[-2] / linear[-1]) == pytest.approx(1e-4, rel=CANCELLATION)
    assert 1 - float(linear[0] / linear[1]) == pytest.approx(0.02, rel=CANCELLATION)
    assert float(scaled_linear_levels(1000)[0]) == pytest.approx(0.00466, abs=5e-6)
    cosine = cosine_levels(1000)
    middle = (
        math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2
        / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    )
    assert float(cosine[500]) == pytest.approx(middle, rel=CANCELLATION)
    for levels in (linear, cosine):
        assert float(levels[-1]) == 1
        assert bool((levels.diff() > 0).all())


def test_subsampling_keeps_levels_and_ends():
    full = linear_levels(1000)
    for steps in (1, 7, 50, 1000):
        some = subsample(full, steps)
        assert len(some) == steps + 1
        assert torch.isin(some, full).all()
        assert some[0] == full[0]
        assert some[-1] == full[-1]
        assert bool((some.diff() > 0).all())


def test_softening_leaves_every_other_level():
    full = subsample(linear_levels(1000), 10)
    soft = soften_last(full)
    assert torch.equal(soft[:-1], full[:-1])
    assert full[-2] < soft[-1] < full[-1]
    assert bool((ddim(soft).sigma > 0).all())


def test_variance_preserving_is_euler():
    schedule = variance_preserving(50, 2.0)
    assert torch.allclose(
        schedule.alpha, torch.full((50,), 1 - 2.0 / 50, dtype=torch.float64), rtol=ALGEBRA
    )
    assert torch.allclose(
        schedule.score_weight, torch.full((50,), 2.0 / 50, dtype=torch.float64), rtol=CANCELLATION
    )
    assert torch.allclose(
        schedule.sigma**2, torch.full((50,), 2.0 / 50, dtype=torch.float64), rtol=CANCELLATION
    )


def levels(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "falling": (
        lambda: ddpm(levels(0.1, 0.5, 0.4)),
        r"abar\[1\] = 0\.5 and abar\[2\] = 0\.4; levels must increase from noise to data",
    ),
    "repeated": (
        lambda: ddim(levels(0.1, 0.5, 0.5)),
        r"abar\[1\] = 0\.5 and abar\[2\] = 0\.5; levels must increase",
    ),
    "zero": (
        lambda: ddpm(levels(0.0, 0.5)),
        r"abar runs from 0 to 0\.5; levels must lie in \(0, 1\]",
    ),
    "above one": (
        lambda: ddpm(levels(0.5, 1.5)),
        r"abar runs from 0\.5 to 1\.5; levels must lie in \(0, 1\]",
    ),
    "nan": (
        lambda: ddpm(levels(0.1, math.nan, 0.5)),
        r"abar\[1\] = nan; it must be a finite number",
    ),
    "one level": (
        lambda: ddpm(levels(0.5)),
        r"abar has shape \(1,\); give a vector of at least two levels",
    ),
    "clean end": (
        lambda: ddim(levels(0.1, 0.5, 1.0)),
        r"sigma\[1\] = 0; .* soften_last\(abar\), or use eta > 0",
    ),
    "no noise": (
        lambda: ddim(levels(0.1, 0.5), 0.0),
        r"sigma\[0\] = 0; every step needs noise, or it cannot be steered at a finite KL",
    ),
    "eta above": (lambda: ddim(levels(0.1, 0.5), 1.5), r"eta = 1\.5; it must lie in \[0, 1\]"),
    "eta below": (lambda: ddim(levels(0.1, 0.5), -0.1), r"eta = -0\.1; it must lie in \[0, 1\]"),
    "eta nan": (lambda: ddim(levels(0.1, 0.5), math.nan), "eta = nan; it must be a finite number"),
    "score_weight": (
        lambda: Schedule(levels(0.1, 0.5), levels(math.inf), levels(0.1)),
        r"score_weight\[0\] = inf; it must be a finite number",
    ),
    "lengths": (
        lambda: Schedule(levels(0.1, 0.5), levels(0.1, 0.2), levels(0.1)),
        r"score_weight has shape \(2,\) and sigma \(1,\); with 2 levels give both \(1,\)",
    ),
    "too fast": (
        lambda: variance_preserving(10, 10.0),
        r"rate / steps = 1; it must lie in \(0, 1\), so use more than 10 steps",
    ),
    "a number of steps for levels": (
        lambda: ddpm(50),
        r"abar has shape \(\); give a vector of at least two levels, such as linear_levels\(50\)",
    ),
    "half a step": (
        lambda: linear_levels(2.5),  # type: ignore[arg-type]
        "steps = 2.5; give a whole number",
    ),
    "no steps": (
        lambda: variance_preserving(0),
        "steps = 0; give a whole number that is at least 1",
    ),
    "too coarse": (
        lambda: linear_levels(10),
        r"a forward variance is 2; it must stay below 1: sub-sample a longer schedule",
    ),
    "too many": (
        lambda: subsample(linear_levels(100), 101),
        "steps = 101; give a whole number that is between 1 and 100",
    ),
}


test_refusals_say_what_and_how = refusals(REFUSALS)


def test_a_chain_that_turns_states_round_remembers_them():
    levels, weight, sigma = (torch.tensor(each).double() for each in ([0.2, 0.9], [1.9], [0.3]))
    turned = Schedule(levels, weight, sigma)
    assert turned.memory() < -0.9
    assert not turned.is_memoryless()


@pytest.mark.parametrize("levels", [linear_levels, scaled_linear_levels])
def test_another_number_of_steps_ends_in_as_much_noise(levels: Callable[[int], torch.Tensor]):
    """Sums of forward variances are integrals: the logarithm of the last level stays."""
    logs = [float(levels(steps)[0].log()) for steps in (500, 1000, 4000)]
    assert logs == pytest.approx([logs[-1]] * 3, rel=0.02)


@pytest.mark.refusal
def test_levels_between_nothing_and_all_are_asked_for():
    for make, message in (
        (lambda: linear_levels(5, first=0.0), "a forward variance is 0; it must be positive"),
        (lambda: ddpm([0.5, 0.9, 1.2]), r"abar runs from 0.5 to 1.2; levels must lie in \(0, 1\]"),
        (lambda: ddpm([-0.5, 0.9, 1.0]), "abar runs from -0.5 to 1; levels must lie"),
    ):
        with pytest.raises(InvalidProblem, match=message):
            make()
