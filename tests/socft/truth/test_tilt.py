"""The gaps to the exponential tilt against closed forms, scipy integrals of the pre-trained law,
and orders in the steps.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian, GaussianMixture, affine_reference, score_reference
from socft.metrics import wasserstein1
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reward import Linear, Quadratic, Reward, Sine
from socft.schedule import Schedule, ddpm, linear_levels, subsample, variance_preserving
from socft.truth.grid import Grid
from socft.truth.linear_quadratic import LinearQuadratic, evaluate_affine
from socft.truth.quadrature import Quadrature
from socft.truth.tilt import TiltGap, tilt_gap, tilted_law
from tests.support.tensors import F64, t
from toy.convergence.chains import linear_quadratic_problem

CLOSED = 1e-10  # differences of values known to 1e-13 each
MASSES = 1e-6  # the accuracy that tilted laws promise, times derivatives of order 1
HALF = math.log(2)


def memoryless(steps: int) -> Schedule:
    return ddpm(subsample(linear_levels(1000), steps))


def gaussian_case(schedule: Schedule, reward: Reward, beta: float) -> ControlProblem:
    return ControlProblem(
        affine_reference(Gaussian(t(0.5), t(0.5)[:, None]), schedule), reward, beta
    )


def parabola(P: float, q: float) -> Quadratic:
    return Quadratic(t(P)[:, None], t(q))


QUADRATIC: dict[str, Callable[[], ControlProblem]] = {
    "concave, memoryless": lambda: gaussian_case(memoryless(4), parabola(-1.0, 1.5), 1.0),
    "concave, memory": lambda: gaussian_case(variance_preserving(4, 1.0), parabola(-1.0, 1.5), 1.0),
    "concave, memory, small beta": lambda: gaussian_case(
        variance_preserving(4, 1.0), parabola(-1.0, 1.5), 0.1
    ),
    "convex": lambda: gaussian_case(variance_preserving(4, 1.0), parabola(0.3, 0.2), 0.6),
    "linear": lambda: gaussian_case(variance_preserving(4, 1.0), Linear(t(0.7)), 1.0),
}


@functools.cache
def solved(name: str) -> Quadrature:
    return Quadrature(QUADRATIC[name](), nodes=(201,))


@functools.cache
def gap_of(name: str) -> TiltGap:
    return tilt_gap(solved(name))


@functools.cache
def wave(steps: int) -> TiltGap:
    return tilt_gap(wave_truth(steps))


@functools.cache
def wave_truth(steps: int) -> Quadrature:
    """Sine reward on a Gaussian, with memory."""
    return Quadrature(
        gaussian_case(variance_preserving(steps, 1.0), Sine(1.0, 2.0), 1.0), nodes=(201,)
    )


@pytest.mark.parametrize("name", QUADRATIC)
def test_both_gaps_equal_the_linear_quadratic_closed_forms(name: str):
    gap, exact = gap_of(name), LinearQuadratic(solved(name).problem)
    assert abs(gap.kernel - float(exact.kernel_gap().sum())) < CLOSED
    assert abs(gap.memory - exact.memory_gap()) < CLOSED


@pytest.mark.parametrize(
    ("schedule", "beta"),
    [(memoryless(8), 0.05), (variance_preserving(8, 1.0), 0.1)],
    ids=["final", "initial"],
)
def test_the_gaps_stay_exact_where_the_tilt_leaves_the_pre_trained_mass(
    schedule: Schedule, beta: float
):
    """A linear reward moves X_T by 14 of its standard deviations, or X_0 by ``|grad V_0| / beta``,
    of which nine are integrated.
    """
    truth = Quadrature(gaussian_case(schedule, Linear(t(1.0)), beta), nodes=(401,))
    exact = LinearQuadratic(truth.problem)
    gap = tilt_gap(truth)
    moved = float(exact.value_gradient(0, t(0.0)[:, None])[0, 0]) / beta
    assert abs(gap.memory - exact.memory_gap()) < CLOSED + beta * norm.cdf(moved - 9)
    assert abs(gap.kernel) < CLOSED


@pytest.mark.parametrize("steps", [5, 10])
def test_the_gaps_and_the_optimum_add_up_to_the_tilt_of_the_final_law(steps: int):
    """``kernel + memory + J* = beta log E exp(r(X_T) / beta)``, by scipy with the variance of the
    pre-trained chain.
    """
    truth, gap = wave_truth(steps), wave(steps)
    reference = truth.problem.reference
    law = evaluate_affine(
        ControlProblem(reference, Linear(t(0.0)), 1.0),
        AffinePolicy(torch.zeros(steps, 1, 1, dtype=F64), torch.zeros(steps, 1, dtype=F64)),
    )
    mean, spread = float(law.mean[-1]), float(law.covariance[-1]) ** 0.5
    integrand = lambda x: math.exp(math.sin(2 * x)) * norm.pdf(x, mean, spread)  # noqa: E731
    expected = math.log(quad(integrand, mean - 10 * spread, mean + 10 * spread, epsabs=1e-13)[0])
    assert abs(gap.kernel + gap.memory + truth.objective - expected) < CLOSED


def test_the_kernel_gap_is_inversely_proportional_to_the_number_of_steps():
    gaps = [wave(steps).kernel for steps in (5, 10, 20)]
    orders = [math.log(a / b) / HALF for a, b in itertools.pairwise(gaps)]
    assert min(gaps) > 0
    assert abs(orders[1] - 1) < 0.1
    assert abs(orders[1] - 1) < abs(orders[0] - 1)


def test_the_memory_gap_does_not_vanish_with_more_steps_but_with_a_memoryless_schedule():
    with_memory = [wave(steps).memory for steps in (5, 10, 20)]
    changes = [abs(a - b) for a, b in itertools.pairwise(with_memory)]
    limit = (
        with_memory[-1] - changes[-1]
    )  # Richardson's limit of a quantity that converges at first order, or below it
    assert limit > 0.01
    assert changes[1] < 0.6 * changes[0]
    without = tilt_gap(Quadrature(gaussian_case(memoryless(8), Sine(1.0, 2.0), 1.0), nodes=(301,)))
    assert 0 <= without.memory < limit / 1000


def moments(grid: Grid, law: Tensor) -> tuple[float, float]:
    x = grid.nodes[:, 0]
    mean = float(law @ x)
    return mean, float(law @ (x - mean) ** 2)


@pytest.mark.parametrize("name", QUADRATIC)
def test_the_tilted_law_has_the_moments_of_the_tilted_gaussian(name: str):
    truth = solved(name)
    law, exact = tilted_law(truth), LinearQuadratic(truth.problem).tilt()
    mean, variance = moments(truth.grids[-1], law)
    assert abs(float(law.sum()) - 1) < CLOSED
    assert abs(mean - float(exact.mean[0])) < MASSES
    assert abs(variance - float(exact.covariance[0, 0])) < MASSES


def nodal_law(grid: Grid, law: GaussianMixture) -> Tensor:
    masses = law.log_prob(grid.nodes).exp()
    return masses / masses.sum()


def test_with_many_steps_the_tilted_law_is_the_tilt_of_the_data_law():
    data = GaussianMixture([0.6, 0.4], [[-1.2], [1.0]], [0.3, 0.4])
    reward, beta = parabola(-0.5, 1.0), 0.7
    target = data.tilted(reward, beta).density
    apart = []
    for steps in (8, 32):
        truth = Quadrature(
            ControlProblem(score_reference(data, memoryless(steps)), reward, beta), nodes=(151,)
        )
        grid = truth.grids[-1]
        nodes, wanted = grid.nodes[:, 0], nodal_law(grid, target)
        apart.append(wasserstein1(nodes, nodes, tilted_law(truth), wanted))
    untilted = wasserstein1(nodes, nodes, nodal_law(grid, data), wanted)
    assert apart[1] < 0.03 * untilted
    assert abs(math.log(apart[0] / apart[1]) / HALF / 2 - 1) < 0.25  # first order in the step size


def test_what_has_no_tilt_by_quadrature_is_refused_with_the_reason():
    varying = gaussian_case(memoryless(3), parabola(-1.0, 0.0), 1.0)
    varying = ControlProblem(varying.reference, varying.reward, t(1.0, 2.0, 1.5))
    with pytest.raises(
        InvalidProblem, match="beta varies by 1 over the steps; the tilt needs a constant beta"
    ):
        tilt_gap(Quadrature(varying))
    with pytest.raises(
        InvalidProblem,
        match="the problem has dimension 2; the tilt by quadrature needs dimension 1",
    ):
        tilt_gap(Quadrature(linear_quadratic_problem(2, 2), nodes=(31, 31)))
    costly = ControlProblem(
        varying.reference, varying.reward, 1.0, lambda k, x: 0.1 * x.square().sum(1)
    )
    with pytest.raises(InvalidProblem, match="the problem has a running cost"):
        tilt_gap(Quadrature(costly))


def test_a_tilt_beyond_the_pre_trained_mass_is_refused():
    final = Quadrature(gaussian_case(memoryless(8), Linear(t(1.0)), 0.05), nodes=(301,))
    with pytest.raises(
        InvalidProblem,
        match=r"at beta = 0.05 the tilt lies where X_T has no mass to rounding: .*; raise beta",
    ):
        tilted_law(final)
    initial = Quadrature(
        gaussian_case(variance_preserving(8, 1.0), Linear(t(1.0)), 0.05), nodes=(301,)
    )
    with pytest.raises(
        InvalidProblem, match=r"at beta = 0.05 the tilt lies where X_0 has no mass to rounding"
    ):
        tilt_gap(initial)


@pytest.mark.parametrize("name", QUADRATIC)
def test_the_reported_errors_bound_those_against_the_closed_forms(name: str):
    gap, exact = gap_of(name), LinearQuadratic(solved(name).problem)
    assert abs(gap.kernel - float(exact.kernel_gap().sum())) <= gap.kernel_error < CLOSED
    assert abs(gap.memory - exact.memory_gap()) <= gap.memory_error < CLOSED


def test_the_reported_errors_of_coarse_chains_know_the_quadrature():
    """Four steps of a sine at a small weight: 64 Hermite nodes are off by 1e-8."""
    problem = gaussian_case(variance_preserving(4, 1.0), Sine(1.0, 2.0), 0.65)
    gap = tilt_gap(Quadrature(problem, nodes=(301,)))
    finer = tilt_gap(Quadrature(problem, nodes=(901,)))
    assert abs(gap.kernel - finer.kernel) <= gap.kernel_error
    assert abs(gap.memory - finer.memory) <= gap.memory_error
    assert gap.kernel_error < 1e-5
