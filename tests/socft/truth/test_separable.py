"""Separable truth against the plane's own quadrature, finite differences, the envelope identity and
simulation at d = 64.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian, GaussianMixture, Rotated, affine_reference
from socft.path import Noise
from socft.policy import FunctionPolicy
from socft.problem import ControlProblem
from socft.reward import Quadratic, Reward, Separable, Sine, Softplus
from socft.schedule import ddpm, linear_levels, subsample, variance_preserving
from socft.truth.base import simulate
from socft.truth.grid import Grid
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from socft.truth.separable import SeparableTruth
from tests.support.tensors import F64, generator, t
from verify.support.sampling import require_estimates, require_mean

# what 61 x 61 nodes reach for the control of these mixtures; the plane's own estimate is checked to
# cover it
PLANE = 1e-4
OBJECTIVE = 1e-8  # second order in the control's error
# one-dimensional quadrature against the linear-quadratic solution, summed over 6 coordinates
CLOSED = 1e-9
DIFFERENCE = 1e-6  # central differences at step 1e-4: h^2 / 6 times a third derivative of order 10
ENVELOPE = 1e-6  # the gradient and the control are interpolated on the same grid with this accuracy
ROUNDING = 1e-12
SINGLE = 1e-4  # float32: sums over 64 coordinates of order 1


def rotation(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator(n), dtype=F64)).Q


TWO_MODES = GaussianMixture([0.4, 0.6], [[-1.0], [1.2]], [0.3, 0.5])
NEAR_MODES = GaussianMixture([0.4, 0.6], [[-0.8], [0.9]], [0.6, 0.7])
BELL = Gaussian(t(0.3), t(0.6)[:, None])
WAVE, RAMP = Sine(0.5, 2.0, 0.3), Softplus(1.5, 2.0, 0.2)
BETA = t(1.5, 1.0, 2.0, 1.2)


def separable(
    factors: list[GaussianMixture],
    rewards: list[Reward],
    beta: float | Tensor = BETA,
    steps: int = 4,
) -> SeparableTruth:
    Q = rotation(len(factors))
    return SeparableTruth(
        Rotated(Q, factors), Separable(Q, rewards), variance_preserving(steps, 1.0), beta
    )


@functools.cache
def wide() -> SeparableTruth:
    """64 dimensions, four distinct one-dimensional problems."""
    return separable([TWO_MODES, BELL] * 32, [WAVE, WAVE, RAMP, RAMP] * 16)


@functools.cache
def plane() -> tuple[SeparableTruth, Quadrature]:
    truth = separable([NEAR_MODES, BELL], [WAVE, RAMP], 1.2, steps=3)
    return truth, Quadrature(truth.problem, nodes=(61, 61))


@pytest.mark.slow
def test_in_the_plane_it_equals_two_dimensional_quadrature():
    truth, direct = plane()
    assert abs(truth.objective - direct.objective) < OBJECTIVE
    apart = torch.stack(
        [
            (truth.control(k, x) - direct.control(k, x)).norm(dim=1).max()
            for k, x in enumerate(states(truth))
        ]
    )
    assert apart.max() < PLANE
    assert apart.max() < direct.error
    for k, x in enumerate(states(truth)):
        assert (truth.value(k, x) - direct.value(k, x)).abs().max() < PLANE


def states(truth: SeparableTruth) -> list[Tensor]:
    return [truth.points(k)[:300] for k in range(truth.problem.steps)]


def test_for_gaussians_and_parabolas_it_equals_the_linear_quadratic_solution():
    Q, schedule, n = rotation(6), ddpm(subsample(linear_levels(1000), 5)), 6
    variances, means, curvature = (
        torch.linspace(0.3, 1.2, n, dtype=F64),
        torch.linspace(-1, 1, n, dtype=F64),
        -t(1, 2, 0.5, 1, 3, 0.2),
    )
    factors = [Gaussian(m[None], v.reshape(1, 1)) for m, v in zip(means, variances, strict=True)]
    rewards = [Quadratic(c.reshape(1, 1), t(0.4)) for c in curvature]
    truth = SeparableTruth(Rotated(Q, factors), Separable(Q, rewards), schedule, 0.8)
    whole = Gaussian(Q @ means, (Q * variances) @ Q.T)
    reward = Quadratic((Q * curvature) @ Q.T, 0.4 * Q.sum(1))
    exact = LinearQuadratic(ControlProblem(affine_reference(whole, schedule), reward, 0.8))
    assert abs(truth.objective - exact.objective) < CLOSED
    x = torch.randn(40, n, generator=generator(1), dtype=F64)
    for k in range(5):
        assert (truth.control(k, x) - exact.control(k, x)).abs().max() < CLOSED
        assert (truth.value(k, x) - exact.value(k, x)).abs().max() < CLOSED
        assert (truth.value_gradient(k, x) - exact.value_gradient(k, x)).abs().max() < CLOSED


def test_equal_coordinates_are_solved_once():
    assert len(set(wide().parts)) == 4
    assert len(wide().parts) == 64


def test_the_value_gradient_is_the_gradient_of_the_value():
    truth, h = wide(), 1e-4
    x = truth.points(2)[:3]
    direction = torch.randn(3, 64, generator=generator(2), dtype=F64)
    for k in (0, 2, 4):
        slope = (truth.value(k, x + h * direction) - truth.value(k, x - h * direction)) / (2 * h)
        assert (slope - (truth.value_gradient(k, x) * direction).sum(1)).abs().max() < DIFFERENCE


def test_the_last_value_is_the_reward():
    truth = wide()
    x = truth.points(4)[:50]
    assert (truth.value(4, x) - truth.problem.reward(x)).abs().max() < ENVELOPE
    assert (truth.value_gradient(4, x) - truth.problem.reward.gradient(x)).abs().max() < ENVELOPE


def test_the_envelope_identity_links_value_gradient_and_control():
    """``grad V_k = (d m_k)' E grad V_{k+1}`` and ``v = B' E grad V_{k+1} / beta``, so
    ``grad V_k = (d m_k)' beta v / sigma``.
    """
    truth = wide()
    reference, beta = truth.problem.reference, truth.problem.beta
    for k in range(4):
        x = truth.points(k)[:20].requires_grad_(True)
        costate = beta[k] * reference.diffusion.whiten(k, x, truth.control(k, x)).detach()
        (pulled,) = torch.autograd.grad((reference.mean(k, x) * costate).sum(), x)
        assert (pulled - truth.value_gradient(k, x.detach())).abs().max() < ENVELOPE


def test_the_control_is_the_expected_costate_of_the_next_step():
    """``v = B' E grad V_{k+1}(m + B (v + xi)) / beta`` at single states, by simulation
    of one step.
    """
    truth = wide()
    reference, k = truth.problem.reference, 1
    x = truth.points(k)[:1].expand(4000, -1)
    xi = torch.randn(4000, 64, generator=generator(3), dtype=F64)
    v = truth.control(k, x[:1])
    costate = truth.value_gradient(k + 1, reference.step(k, x, v + xi))
    samples = reference.diffusion.transpose(k, x, costate) / truth.problem.beta[k]
    require_mean(samples, v[0], 0.0016)


def test_the_objective_at_64_dimensions_is_the_simulated_return():
    truth = wide()
    noise = Noise.sample(truth.problem.reference, 2000, generator(4))
    found = simulate(truth.problem, truth.policy, noise)
    require_estimates(found.objective, found.stderr, truth.objective, 0.14)
    less = simulate(truth.problem, FunctionPolicy(lambda k, x: 0.5 * truth.control(k, x)), noise)
    assert less.objective < found.objective


def test_the_reported_error_bounds_the_distance_to_finer_coordinates():
    truth = separable([TWO_MODES, BELL], [WAVE, RAMP])
    fine = {
        part: Quadrature(
            part.problem, tuple(Grid.box(g.lower, g.upper, (3 * g.shape[0],)) for g in part.grids)
        )
        for part in truth.parts
    }
    for k in range(4):
        x = truth.points(k)[:500]
        z = x @ truth.rotation
        finer = (
            torch.cat([fine[p].control(k, z[:, i : i + 1]) for i, p in enumerate(truth.parts)], 1)
            @ truth.rotation.T
        )
        assert (truth.control(k, x) - finer).norm(dim=1).max() <= truth.error


def test_one_step_per_sample_and_single_precision():
    truth = wide()
    k, x = torch.tensor([3, 0, 2]), torch.randn(3, 64, generator=generator(5), dtype=F64)
    for function in (truth.control, truth.value, truth.value_gradient):
        singly = torch.cat([function(int(i), y[None]) for i, y in zip(k, x, strict=True)])
        assert (function(k, x) - singly).abs().max() < ROUNDING
        single = function(k, x.float())
        assert single.dtype == torch.float32
        assert (single - singly).abs().max() < SINGLE


def test_other_directions_are_refused():
    schedule = variance_preserving(4, 1.0)
    law = Rotated(rotation(2), [BELL, BELL])
    for other in (torch.eye(2, dtype=F64), rotation(2)[:, :1], rotation(2).flip(1)):
        with pytest.raises(
            InvalidProblem, match="use different directions; give both the same rotation"
        ):
            SeparableTruth(law, Separable(other, [RAMP] * other.shape[1]), schedule, 1.0)
