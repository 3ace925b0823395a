"""Flow chains against closed forms: conversions, kernels, marginals, densities of steps, and the
truths of the core on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Density, Gaussian, GaussianMixture, Rotated, score_reference
from socft.flow import (
    FlowReference,
    FlowSchedule,
    LastStepReward,
    NoisedVelocity,
    Rectified,
    Trigonometric,
    absorb_last_step,
    affine_flow_reference,
    cps,
    dance_precise,
    dance_sde,
    euler_maruyama,
    flow_ddim,
    flow_reference,
    flow_sde,
    free_last_step,
    memoryless,
    precise,
    shift_times,
    uniform_times,
)
from socft.path import Noise, rollout
from socft.pi_ft import ExactPIFT
from socft.policy import FunctionPolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.reward import Quadratic, Separable, Sine
from socft.schedule import ddim
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from socft.truth.separable import SeparableTruth
from tests.support.refusals import Refusals, refusals
from tests.support.tensors import F64, randn

CLOSED = 1e-12
GRID = uniform_times(7, last=0.1)
UNEVEN = torch.tensor([1.0, 0.9, 0.55, 0.5, 0.2, 0.03], dtype=F64)
MIXTURE = GaussianMixture([0.7, 0.3], [-1.5, 1.5], [0.16, 0.4])
TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)

DDIM_FORM: dict[str, Callable[[Tensor], FlowSchedule]] = {
    "ddim": lambda times: flow_ddim(times, 0.6),
    "ddpm": lambda times: flow_ddim(times, 1.0),
    "precise": lambda times: precise(times, 0.7),
    "dance_precise": lambda times: dance_precise(times, 0.4),
    "cps": lambda times: cps(times, 0.5),
}
EULER: dict[str, Callable[[Tensor], FlowSchedule]] = {
    "flow_sde": lambda times: flow_sde(times, 0.7),
    "dance_sde": lambda times: dance_sde(times, 0.4),
    "memoryless": memoryless,
}
KERNELS = DDIM_FORM | EULER
PATHS = (Rectified(), Trigonometric())
LAWS: dict[str, Density] = {
    "gaussian": Gaussian([0.3, -1.0], [[0.8, 0.3], [0.3, 0.5]]),
    "mixture": GaussianMixture(
        [0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.5, 0.0], [0.0, 0.1]]]
    ),
    "rotated": Rotated(TURN, [MIXTURE, Gaussian(0.4, 0.3)]),
    "points": GaussianMixture([0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], 0.0),
}


MEANS = {
    "gaussian": torch.tensor([0.3, -1.0], dtype=F64),
    "mixture": torch.tensor([-0.2, 0.3], dtype=F64),
    "rotated": TURN @ torch.tensor([-0.6, 0.4], dtype=F64),
    "points": torch.tensor([-0.2, 0.3], dtype=F64),
}


def close(found: Tensor, expected: Tensor, tolerance: float = CLOSED) -> None:
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("path", PATHS)
def test_levels_are_consistent(path: Rectified | Trigonometric):
    """Ends, and the rates as derivatives."""
    ends = path.level([0.0, 1.0])
    assert ends.signal.tolist() == [1.0, 0.0]
    assert ends.noise.tolist() == [0.0, 1.0]
    time, h = torch.tensor([0.2, 0.5, 0.83], dtype=F64), 1e-5
    up, down, here = path.level(time + h), path.level(time - h), path.level(time)
    close(here.signal_rate, (up.signal - down.signal) / (2 * h), 1e-9)
    close(here.noise_rate, (up.noise - down.noise) / (2 * h), 1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_predictions_are_one_another(path: Rectified | Trigonometric):
    """Endpoint and noise rebuild the state and the velocity; every prediction gives it back."""
    time = torch.tensor([0.0, 1e-9, 0.3, 0.9, 1.0], dtype=F64)
    level, x0, noise = path.level(time), randn(0, 5, 3), randn(1, 5, 3)
    a, s = level.signal[:, None], level.noise[:, None]
    x = a * x0 + s * noise
    velocity = level.signal_rate[:, None] * x0 + level.noise_rate[:, None] * noise
    close(level.endpoint(x, velocity), x0)
    close(level.noise_estimate(x, velocity), noise)
    inner = path.level(time[2:4])
    x, velocity, x0, noise = (v[2:4] for v in (x, velocity, x0, noise))
    close(inner.velocity_from_endpoint(x, x0), velocity)
    close(inner.velocity_from_noise(x, noise), velocity)
    close(inner.velocity_from_score(x, inner.score(x, velocity)), velocity)


def test_what_says_nothing_is_refused():
    noise, data, x = Rectified().level(1.0), Rectified().level(0.0), randn(0, 2, 1)
    for refused in (noise.velocity_from_noise, noise.velocity_from_score):
        with pytest.raises(InvalidProblem, match="the signal is 0"):
            refused(x, x)
    for refused in (data.velocity_from_endpoint, data.score):
        with pytest.raises(InvalidProblem, match="the noise is 0"):
            refused(x, x)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("path", PATHS)
def test_velocity_is_that_of_the_score(name: str, path: Rectified | Trigonometric):
    """Tweedie's formula at inner levels, and the ends in closed form."""
    law, x = LAWS[name], randn(2, 4, 2)
    level = path.level(torch.tensor([0.3, 0.8], dtype=F64))
    velocity = NoisedVelocity(law, level)
    for k in range(2):
        a, s = float(level.signal[k]), float(level.noise[k])
        scale = math.hypot(a, s)
        score = law.noised_score((a / scale) ** 2, x / scale) / scale
        here = path.level([0.3, 0.8][k])
        close(velocity(k, x), here.velocity_from_score(x, score), 1e-11)
    ends = path.level([1.0, 0.0] if law.regular else [1.0])
    mean = MEANS[name]
    close(NoisedVelocity(law, ends)(0, x), ends.signal_rate[0] * mean + ends.noise_rate[0] * x)
    if law.regular:
        at_data = NoisedVelocity(law, ends)(1, x)
        close(path.level(0.0).endpoint(x, at_data), x)
        close(path.level(0.0).noise_estimate(x, at_data), torch.zeros_like(x))


@pytest.mark.parametrize("name", LAWS)
def test_steps_may_differ_between_samples(name: str):
    velocity, x = NoisedVelocity(LAWS[name], Rectified().level(GRID)), randn(3, 4, 2)
    k = torch.tensor([0, 3, 6, 3])
    rows = [velocity(int(k[i]), x[i : i + 1]) for i in range(4)]
    close(velocity(k, x), torch.cat(rows))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("path", PATHS)
def test_ddim_is_the_schedules_of_the_core(eta: float, path: Rectified | Trigonometric):
    """In units of the scale sqrt(a^2 + s^2), from any time below 1."""
    times = torch.tensor([0.97, 0.7, 0.4, 0.2, 0.05], dtype=F64)
    level = path.level(times)
    scale = (level.signal.square() + level.noise.square()).sqrt()
    flow = flow_reference(MIXTURE, flow_ddim(times, eta, path))
    usual = score_reference(MIXTURE, ddim((level.signal / scale).square(), eta))
    x = randn(4, 5, 1)
    for k in range(4):
        close(flow.mean(k, x) / scale[k + 1], usual.mean(k, x / scale[k]))
    close(flow.schedule.sigma / scale[1:], usual.schedule.sigma)
    assert flow.schedule.memory(0.3) == pytest.approx(usual.schedule.memory(0.3), abs=CLOSED)


def test_precise_at_root_two_is_ddpm():
    for field in ("endpoint_weight", "noise_weight", "sigma"):
        close(getattr(precise(UNEVEN, math.sqrt(2)), field), getattr(flow_ddim(UNEVEN, 1.0), field))


@pytest.mark.parametrize("name", DDIM_FORM)
def test_correlations_of_exact_integrals_compose(name: str):
    """rho(s, s'') = rho(s, s') rho(s', s'') for exact integrals of an equation, not for DDIM(eta <
    1) nor CPS.
    """
    fine, coarse = DDIM_FORM[name](UNEVEN[1:4]), DDIM_FORM[name](UNEVEN[[1, 3]])
    rho = fine.noise_weight / fine.interpolant.level(fine.times[1:]).noise
    whole = float(coarse.noise_weight / coarse.interpolant.level(coarse.times[1:]).noise)
    composes = name in ("ddpm", "precise", "dance_precise")
    assert (abs(float(rho.prod()) - whole) <= CLOSED) == composes


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (name, path)
        for name in KERNELS
        for path in PATHS
        if name != "dance_precise" or isinstance(path, Rectified)
    ],
)
def test_kernels_match_their_published_forms(name: str, path: Rectified | Trigonometric):
    """By the endpoint and the score, each computed from the law."""
    make = {
        "ddim": lambda t: flow_ddim(t, 0.6, path),
        "ddpm": lambda t: flow_ddim(t, 1.0, path),
        "precise": lambda t: precise(t, 0.7, path),
        "dance_precise": lambda t: dance_precise(t, 0.4),
        "cps": lambda t: cps(t, 0.5, path),
        "flow_sde": lambda t: flow_sde(t, 0.7, path),
        "dance_sde": lambda t: dance_sde(t, 0.4, path),
        "memoryless": lambda t: memoryless(t, path),
    }[name]
    times, x = UNEVEN[1:], randn(5, 3, 1)
    chain = flow_reference(MIXTURE, make(times))
    for k in range(len(times) - 1):
        mean, sigma = published(name, path, float(times[k]), float(times[k + 1]), x)
        close(chain.mean(k, x), mean, 1e-11)
        assert float(chain.schedule.sigma[k]) == pytest.approx(sigma, rel=1e-11)


def published(
    name: str, path: Rectified | Trigonometric, t: float, u: float, x: Tensor
) -> tuple[Tensor, float]:
    """Mean and standard deviation in terms of the score of the law, in plain numbers."""
    here, there = path.level(t), path.level(u)
    a, s, da, ds = (float(v) for v in (here.signal, here.noise, here.signal_rate, here.noise_rate))
    a2, s2 = float(there.signal), float(there.noise)
    scale = math.hypot(a, s)
    score = MIXTURE.noised_score((a / scale) ** 2, x / scale) / scale
    x0, eps, h = (x + s * s * score) / a, -s * score, t - u
    ratio = s2 * a / (s * a2)
    if name in DDIM_FORM:
        squared = {
            "ddim": 1 - 0.36 * (1 - ratio**2),
            "ddpm": ratio**2,
            "precise": ratio**0.49,
            "dance_precise": math.exp(-0.16 * (1 / s2 - 1 / s)),
            "cps": math.cos(0.25 * math.pi) ** 2,
        }[name]
        return a2 * x0 + math.sqrt(squared) * s2 * eps, s2 * math.sqrt(1 - squared)
    rate = s * (ds - s * da / a)
    variance = {"flow_sde": 0.49 * rate, "dance_sde": 0.16, "memoryless": 2 * rate}[name]
    velocity = da * x0 + ds * eps
    return x - velocity * h + variance / 2 * score * h, math.sqrt(variance * h)


def test_flow_sde_starts_from_pure_noise_as_published():
    """At s = 1 the published code puts the second time in place of the first in 1 - s."""
    start = flow_sde(uniform_times(4), 0.7)
    assert float(start.sigma[0]) == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.75) * 0.25))


@pytest.mark.parametrize("name", KERNELS)
def test_point_masses_keep_their_marginals_in_the_ddim_form_only(name: str):
    """A model that knows the endpoint: mean a' x_0 and standard deviation s', whatever the grid."""
    chain = affine_flow_reference(Gaussian(0.8, 0.0), KERNELS[name](UNEVEN))
    mean, variance = 0.0, 1.0
    slope, offset = chain.transition.flatten(), chain.offset.flatten()
    for k in range(len(UNEVEN) - 1):
        mean = float(slope[k]) * mean + float(offset[k])
        variance = float(slope[k]) ** 2 * variance + float(KERNELS[name](UNEVEN).sigma[k]) ** 2
    end = Rectified().level(UNEVEN[-1])
    exact = (
        abs(mean - 0.8 * float(end.signal)) < CLOSED
        and abs(variance - float(end.noise) ** 2) < CLOSED
    )
    assert exact == (name in DDIM_FORM)


@pytest.mark.parametrize("name", DDIM_FORM)
def test_shifting_times_scales_the_data(name: str):
    """A chain of the DDIM form on shifted times is the chain for data divided by the shift, unless
    its noise depends on more than the signal-to-noise ratio.
    """
    shift, times = 3.0, UNEVEN[1:]
    moved = shift_times(times, shift)
    shifted = affine_flow_reference(Gaussian(0.7, 0.5), DDIM_FORM[name](moved))
    scaled = affine_flow_reference(Gaussian(0.7 / shift, 0.5 / shift**2), DDIM_FORM[name](times))
    unit = moved / times  # the shifted state is this times the other
    slope = shifted.transition.flatten() / (unit[1:] / unit[:-1])
    found = (slope, shifted.offset.flatten() / unit[1:], DDIM_FORM[name](moved).sigma / unit[1:])
    expected = (scaled.transition.flatten(), scaled.offset.flatten(), DDIM_FORM[name](times).sigma)
    gaps = [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]
    same = max(gaps) < CLOSED
    assert same == (name != "dance_precise")


@pytest.mark.parametrize("name", KERNELS)
def test_affine_chain_is_the_chain(name: str):
    law, schedule, x = LAWS["gaussian"], KERNELS[name](UNEVEN), randn(6, 4, 2)
    assert isinstance(law, Gaussian)
    chain, affine = flow_reference(law, schedule), affine_flow_reference(law, schedule)
    for k in range(schedule.steps):
        close(affine.mean(k, x), chain.mean(k, x))
    close(affine.initial(x), chain.initial(x))


@pytest.mark.parametrize("name", KERNELS)
def test_densities_and_controls_of_steps(name: str):
    """Log densities integrate to one, their mean difference is the KL divergence, and that is half
    the square of the whitened control.
    """
    chain = flow_reference(MIXTURE, KERNELS[name](UNEVEN))
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    z = torch.tensor(nodes, dtype=F64)[:, None]
    w = torch.tensor(weights / weights.sum(), dtype=F64)
    for k in (0, 2, 4):
        x = torch.full((40, 1), 0.3, dtype=F64)
        old = chain.velocity(k, x)
        new = old + 0.4
        sigma = float(chain.schedule.sigma[k])
        there = chain.mean_of(k, x, new) + sigma * z
        logs = chain.log_prob(k, x, there, new), chain.log_prob(k, x, there, old)
        normal = -(z.square().sum(1) + math.log(2 * math.pi)) / 2 - math.log(sigma)
        close(logs[0], normal, 1e-11)
        v = chain.control_of(k, x, new)
        assert float((w * (logs[0] - logs[1])).sum()) == pytest.approx(
            float(v[0, 0] ** 2 / 2), rel=1e-10
        )
        close(chain.velocity_of(k, x, v), new)
        close(chain.step(k, x, v), chain.mean_of(k, x, new))


def test_log_densities_sum_over_coordinates():
    chain = flow_reference(LAWS["gaussian"], flow_sde(UNEVEN, 0.7))
    x = randn(7, 3, 2)
    there = chain.mean(1, x)
    peak = -2 * (math.log(float(chain.schedule.sigma[1])) + math.log(2 * math.pi) / 2)
    close(chain.log_prob(1, x, there, chain.velocity(1, x)), torch.full((3,), peak, dtype=F64))


def test_a_last_step_without_noise_needs_a_remedy():
    times = uniform_times(5)
    schedule, x = flow_ddim(times), randn(8, 4, 1)
    with pytest.raises(InvalidProblem, match=r"uniform_times.*absorb_last_step.*free_last_step"):
        flow_reference(MIXTURE, schedule)
    velocity = NoisedVelocity(MIXTURE, schedule.starts)
    reference, reward = absorb_last_step(schedule, velocity, Sine(), (1,))
    assert reference.steps == 4
    close(reward(x), Sine()(MIXTURE.posterior_means(0.8, 0.2, x)[0]))
    moved = NoisedVelocity(Gaussian(3.0, 0.5), schedule.starts)
    _, free = free_last_step(schedule, velocity, moved, Sine(), (1,))
    close(free(x), Sine()(Gaussian(3.0, 0.5).posterior_means(0.8, 0.2, x)[0]))
    with pytest.raises(InvalidProblem, match="has noise"):
        absorb_last_step(memoryless(times), velocity, Sine(), (1,))
    with pytest.raises(InvalidProblem, match="has noise"):
        free_last_step(memoryless(times), velocity, velocity, Sine(), (1,))


def test_an_absorbed_last_step_is_the_same_problem():
    """The value of the chain with a tiny noise in its last step tends to that of the chain without
    it.
    """
    times, law = uniform_times(5), Gaussian(0.4, 0.6)
    velocity = NoisedVelocity(law, flow_ddim(times).starts)
    reference, reward = absorb_last_step(flow_ddim(times), velocity, Sine(), (1,))
    exact = Quadrature(ControlProblem(reference, reward, 1.0)).objective
    gaps = []
    for last in (1e-2, 1e-3):
        near = flow_ddim(torch.cat([times[:-1], torch.tensor([last], dtype=F64)]))
        soft = Quadrature(ControlProblem(flow_reference(law, near), Sine(), 1.0)).objective
        gaps.append(abs(soft - exact))
    assert gaps[1] < 1e-3
    assert gaps[0] / gaps[1] > 8


@pytest.mark.parametrize("name", KERNELS)
def test_truths_agree_on_flow_chains(name: str):
    """Quadrature and the closed form, on a quadratic reward."""
    law, schedule = Gaussian(0.4, 0.6), KERNELS[name](GRID)
    reward = Quadratic(torch.tensor([[-0.6]], dtype=F64), torch.tensor([0.9], dtype=F64))
    exact = LinearQuadratic(ControlProblem(affine_flow_reference(law, schedule), reward, 0.8))
    found = Quadrature(ControlProblem(flow_reference(law, schedule), reward, 0.8))
    x = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    assert found.objective == pytest.approx(exact.objective, abs=1e-9)
    for k in (0, 3, 6):
        close(found.control(k, x), exact.control(k, x), 1e-8)


@pytest.mark.slow
def test_separable_truth_runs_on_flow_chains():
    """A product of two coordinates against quadrature in two dimensions."""
    schedule, turn = flow_sde(uniform_times(4, 0.1), 0.7), TURN
    factors, scalars = (MIXTURE, Gaussian(0.4, 0.3)), (Sine(), Sine(frequency=1.0))
    law, reward = Rotated(turn, factors), Separable(turn, scalars)
    problem = ControlProblem(flow_reference(law, schedule), reward, 2.0)
    parts = [
        Quadrature(ControlProblem(flow_reference(f, schedule), r, 2.0))
        for f, r in zip(factors, scalars, strict=True)
    ]
    truth, plane = SeparableTruth.of_parts(problem, turn, parts), Quadrature(problem)
    x = randn(9, 5, 2)
    assert truth.objective == pytest.approx(plane.objective, abs=1e-6)
    close(truth.control(1, x), plane.control(1, x), 1e-5)


def test_policy_iteration_runs_on_flow_chains():
    problem = ControlProblem(flow_reference(MIXTURE, flow_sde(GRID, 0.7)), Sine(), 2.0)
    truth, x = Quadrature(problem), torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    *_, last = ExactPIFT(12).iterations(problem)
    for k in (0, 6):
        close(last.policy(k, x), truth.control(k, x), 1e-6)


def test_jarzynski():
    """E exp W = Z for every policy: signs, steps and noises of kernel, control and density fit."""
    chain = flow_reference(MIXTURE, flow_sde(GRID, 0.7))
    policy = FunctionPolicy(lambda k, x: 0.3 * torch.sin(x + k))
    reward, values = Sine(), {}
    for name, each in (("policy", policy), ("none", Uncontrolled(chain))):
        noise = Noise.sample(chain, 40_000, torch.Generator().manual_seed(3))
        path = rollout(chain, each, noise)
        cost = (path.controls.square() / 2 + path.controls * noise.steps).sum((0, 2))
        weight = (reward(path.final) - cost).exp()
        values[name] = (float(weight.mean()), float(weight.std()) / 200)
    (a, error_a), (b, error_b) = values["policy"], values["none"]
    assert max(error_a, error_b) < 0.01
    assert abs(a - b) < 4 * math.hypot(error_a, error_b)


ONE, BOTH = torch.ones(1, dtype=F64), torch.ones(2, dtype=F64)
REFUSED: Refusals = {
    "times rise": (lambda: flow_sde([0.5, 0.7], 0.7), "must decrease"),
    "times outside": (lambda: flow_sde([1.5, 0.7], 0.7), r"\[0, 1\]"),
    "one time": (lambda: flow_sde([1.0], 0.7), "at least two"),
    "no noise level": (lambda: flow_sde(GRID, 0.0), "noise_level = 0"),
    "infinite noise level": (lambda: precise(GRID, math.inf), "noise_level = inf"),
    "eta": (lambda: flow_ddim(GRID, 0.0), "eta = 0"),
    "cps": (lambda: cps(GRID, 1.5), "noise_level = 1.5"),
    "path": (lambda: dance_precise(GRID, 0.5, Trigonometric()), "rectified"),
    "diffusion": (lambda: euler_maruyama(GRID, lambda c: c.noise[:2]), "returned a tensor"),
    "no diffusion": (lambda: euler_maruyama(GRID, lambda c: 0 * c.noise), "a step needs noise"),
    "shift": (lambda: shift_times(GRID, 0.0), "shift = 0"),
    "steps": (lambda: uniform_times(0), "steps = 0"),
    "last": (lambda: uniform_times(3, 1.0), "last = 1"),
    "no step left": (lambda: flow_ddim([1.0, 0.0]).without_last(), "one step"),
    "shapes": (lambda: FlowSchedule(GRID, ONE, ONE, ONE), "shapes"),
    "negative": (lambda: FlowSchedule(GRID[:2], ONE, ONE, -ONE), "at least 0"),
    "deterministic": (
        lambda: FlowSchedule(GRID[:3], BOTH, BOTH, torch.tensor([0.0, 1.0])),
        "before the last",
    ),
}


test_what_is_wrong_is_refused = refusals(REFUSED)


def test_a_reward_of_the_last_step_has_no_constants():
    schedule = flow_ddim([1.0, 0.5, 0.0])
    reward = LastStepReward(Sine(), schedule, NoisedVelocity(MIXTURE, schedule.starts))
    assert reward.L0 == reward.L1 == math.inf
    assert isinstance(flow_reference(MIXTURE, flow_sde(GRID, 0.7)), FlowReference)


def test_functional_derivatives_pass_through_predictions():
    """Of the endpoint and the score in the state, as by automatic differentiation."""
    chain, x, v = flow_reference(MIXTURE, flow_sde(GRID, 0.7)), randn(0, 5, 1), randn(1, 5, 1)
    for of in (chain.endpoint_of, chain.score_of):
        y = x.clone().requires_grad_(True)
        (expected,) = torch.autograd.grad(of(1, y, v).sum(), y)
        found = torch.func.grad(lambda z, of=of: of(1, z, v).sum())(x)
        torch.testing.assert_close(found, expected, rtol=CLOSED, atol=CLOSED)


def test_memory_is_that_of_data_of_unit_variance_unless_told_otherwise():
    schedule = flow_sde(GRID, 0.7)
    assert schedule.memory() == schedule.memory(1.0) != schedule.memory(2.0)


def test_at_full_noise_the_levels_noises_are_independent():
    schedule = cps(GRID, 1.0)
    close(schedule.sigma, schedule.levels.noise[1:])
    assert float(schedule.noise_weight.abs().max()) < 1e-15


def test_the_affine_chain_of_a_gaussian_is_its_chain_in_any_basis():
    root = randn(70, 3, 3)
    law, schedule = Gaussian(randn(71, 3), root @ root.mT), flow_sde(GRID, 0.7)
    exact, affine = flow_reference(law, schedule), affine_flow_reference(law, schedule)
    x = randn(72, 5, 3)
    for k in range(schedule.steps):
        close(affine.mean(k, x), exact.mean(k, x))
    close(affine.initial(x), exact.initial(x))


def test_a_shift_far_from_one_moves_times_to_their_ends():
    """Signal over noise is divided by the shift."""
    for shift in (1e-40, 1e40):
        moved = shift_times([1.0, 0.5, 0.0], shift)
        close(moved, torch.tensor([1.0, 1.0 if shift > 1 else shift, 0.0], dtype=F64))
