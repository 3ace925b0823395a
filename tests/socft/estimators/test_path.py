"""Losses between path measures, against exact gradients, quadrature, densities and the limit of
small steps.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator, Labels
from socft.estimators.baseline import RegressionBaseline
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.ddpo import DDPO
from socft.estimators.dpok import DPOK
from socft.estimators.estimand import ApproximateResidual, ObjectiveGradient
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.estimators.log_variance import LogVariance
from socft.estimators.moment import Moment
from socft.estimators.relative_entropy import RelativeEntropy
from socft.estimators.score_function import ScoreFunction
from socft.estimators.socm import SOCM, IdentityFlow, LinearFlow
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.truncated_backprop import TruncatedBackprop
from socft.estimators.variance import Variance
from socft.path import Noise, Path, rollout
from socft.path_measure import (
    controlled_noises,
    controls_along,
    effective_size,
    group_mean,
    log_likelihoods,
    normalised,
    optimal_log_weights,
    work_functional,
)
from socft.policy import AffinePolicy, FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, MatrixDiffusion, ScalarDiffusion, Step
from socft.reward import FunctionReward, Quadratic, Sine
from socft.truth.linear_quadratic import LinearQuadratic
from tests.support.estimator_cases import (
    CONSTANT,
    DETECTED,
    FEW,
    IDENTITY,
    STEPS,
    away,
    counted,
    estimates,
    minus_gradient,
    paths,
    quadratic_problem,
)
from tests.support.tensors import F64, randn
from verify.support.sampling import STDERRS, distance, require_mean

QUADRATURE = 1e-6  # of splines through values at 401 nodes, and 24-point Gauss-Hermite sums
ROUNDS = 25  # of a fixed point that contracts by 0.5 or better
# relative deviation from a factor of two between resolutions, of quantities of order dt + O(dt^2)
HALVED = 0.15


class Start(nn.Module):
    """A learned initial value, affine in the state."""

    def __init__(self, level: float = 0.0, slope: float = 0.0):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level, dtype=F64))
        self.slope = nn.Parameter(torch.tensor(slope, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.level + self.slope * x[:, 0]


def test_likelihoods_are_those_of_the_kernels() -> None:
    problem = quadratic_problem()
    made, other = away(problem), AffinePolicy(randn(8, STEPS, 2, 2), randn(9, STEPS, 2))
    path = paths(problem, made, count=FEW)
    diffusion = problem.reference.diffusion
    assert isinstance(diffusion, MatrixDiffusion)
    with torch.no_grad():
        found = log_likelihoods(controls_along(other, path), path)
        for k in range(STEPS):
            x, covariance = path.states[k], diffusion.matrices[k] @ diffusion.matrices[k].T
            means = problem.reference.step(k, x, other(k, x)), problem.reference.mean(k, x)
            laws = [torch.distributions.MultivariateNormal(mean, covariance) for mean in means]
            expected = laws[0].log_prob(path.states[k + 1]) - laws[1].log_prob(path.states[k + 1])
            torch.testing.assert_close(found[k], expected, rtol=1e-9, atol=1e-9)


def test_likelihoods_have_mean_one_and_the_mismatch_minus_the_objective() -> None:
    """``E_P[dP^v/dP] = 1`` on pre-trained paths, and ``E_{P^v} R(v) = -J(v)`` for any beta."""
    problem = quadratic_problem()
    policy = away(problem)
    free = paths(problem, Uncontrolled(problem.reference))
    with torch.no_grad():
        ratio = log_likelihoods(controls_along(policy, free), free).sum(0).exp()
    require_mean(ratio[:, None], 1.0, 0.025)
    path = paths(problem, policy)
    objective = LinearQuadratic(problem).evaluate(policy).objective
    require_mean(work_functional(problem, path.controls, path)[:, None], -objective, 0.015)


def test_weights_average_to_one_in_groups_without_overflow() -> None:
    groups = torch.tensor([0, 1, 0, 1, 2])
    logs = torch.tensor([1e5, -1e5, 1e5 + 1, -1e5 + 2, 3.0], dtype=F64)
    weights = normalised(logs, groups)
    torch.testing.assert_close(
        group_mean(weights, groups)[0], torch.ones(5, dtype=F64), rtol=IDENTITY, atol=IDENTITY
    )
    assert float(weights[2] / weights[0]) == pytest.approx(math.e, rel=1e-10)
    assert float(weights[3] / weights[1]) == pytest.approx(math.e**2, rel=1e-10)
    assert effective_size(torch.ones(7, dtype=F64)) == pytest.approx(7)
    assert effective_size(normalised(torch.tensor([0.0, 900.0, 0.0], dtype=F64))) == pytest.approx(
        1
    )


def test_weights_turn_any_paths_into_those_of_the_optimal_measure() -> None:
    """Moments of X_T under ``exp(W) P``, from pre-trained and from controlled paths; the better
    control needs fewer.
    """
    problem = ControlProblem(quadratic_problem().reference, quadratic_problem().reward, CONSTANT)
    truth = LinearQuadratic(problem)
    sizes, moments = [], []
    for policy in (Uncontrolled(problem.reference), truth.affine_policy):
        path = paths(problem, policy)
        weights = normalised(optimal_log_weights(problem, path, "a test"))
        sizes.append(effective_size(weights))
        moments.append(weights[:, None] * path.final)
    expected = truth.tilt().mean
    for weighted in moments:
        require_mean(weighted, expected, 0.022)
    assert sizes[1] > 1.3 * sizes[0]


@pytest.mark.parametrize(
    "make",
    [RelativeEntropy, LogVariance, lambda: Moment(Start(0.7, -0.3))],
    ids=["relative", "log", "moment"],
)
def test_on_their_own_paths_three_losses_have_the_objective_gradient(
    make: Callable[[], Estimator],
) -> None:
    """The last two with any beta per step, any start of the chain and any learned value."""
    estimator = make()
    assert estimator.estimates == ObjectiveGradient()
    problem = (
        quadratic_problem(CONSTANT)
        if isinstance(estimator, RelativeEntropy)
        else quadratic_problem()
    )
    policy = away(problem)
    require_mean(
        estimates(estimator, problem, policy, paths(problem, policy)),
        minus_gradient(problem, policy),
        0.028,
    )


def test_relative_entropy_is_the_full_adjoint() -> None:
    problem = quadratic_problem(CONSTANT)
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    first, second = (
        e.label(problem, policy, path).targets for e in (RelativeEntropy(), FullAdjoint())
    )
    assert (first == second).all()


RESIDUALS: dict[str, Estimator] = {
    "cross entropy": CrossEntropy(),
    "variance": Variance(),
    "socm": SOCM(),
    "socm, linear flow": SOCM(LinearFlow()),
    "socm, fitted": SOCM(degree=2),
    "socm, odd flow": SOCM(LinearFlow(0.7 * randn(20, STEPS, 2, 2)), degree=1, folds=3),
    "socm-adjoint": SOCMAdjoint(),
}
OFF_POLICY = [name for name in RESIDUALS if name != "variance"]


@pytest.mark.parametrize("estimator", RESIDUALS.values(), ids=RESIDUALS)
def test_residuals_vanish_at_the_linear_quadratic_optimum_only(estimator: Estimator) -> None:
    problem = quadratic_problem(CONSTANT)
    assert isinstance(estimator.estimates, ApproximateResidual)
    best = LinearQuadratic(problem).affine_policy
    other = AffinePolicy(0.5 * best.gain.detach(), 0.5 * best.offset.detach())
    require_mean(estimates(estimator, problem, best, paths(problem, best)), 0.0, 0.012)
    assert distance(estimates(estimator, problem, other, paths(problem, other)), 0.0) > DETECTED


@pytest.mark.parametrize("name", OFF_POLICY)
def test_weighted_residuals_vanish_on_paths_of_any_policy(name: str) -> None:
    """Pre-trained ones and those of a bad control; adjoint matching without weights does not."""
    problem = quadratic_problem(CONSTANT)
    best = LinearQuadratic(problem).affine_policy
    half = AffinePolicy(0.5 * best.gain.detach(), 0.5 * best.offset.detach())
    for seed, made in enumerate((Uncontrolled(problem.reference), away(problem))):
        path = paths(problem, made, seed)
        require_mean(estimates(RESIDUALS[name], problem, best, path), 0.0, 0.036)
        assert distance(estimates(RESIDUALS[name], problem, half, path), 0.0) > STDERRS


def test_unweighted_targets_need_their_own_paths() -> None:
    """Adjoint matching's targets have the right mean on its own paths, not on others; weights are
    the difference.
    """
    problem = quadratic_problem(0.5)
    best = LinearQuadratic(problem).affine_policy
    path = paths(problem, Uncontrolled(problem.reference))
    assert distance(estimates(AdjointMatching(), problem, best, path), 0.0) > DETECTED
    require_mean(estimates(SOCMAdjoint(), problem, best, path), 0.0, 0.0013)


def test_socm_along_the_pre_trained_flow_is_socm_adjoint() -> None:
    """No noise term is left, path by path; on nonlinear chains only the adjoint follows the
    path.
    """
    problem = quadratic_problem(CONSTANT)
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    for flow in (LinearFlow(), LinearFlow(problem.reference.transition)):  # type: ignore[attr-defined]
        flown, adjoint = (e.label(problem, policy, path) for e in (SOCM(flow), SOCMAdjoint()))
        torch.testing.assert_close(flown.targets, adjoint.targets, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(flown.weights, adjoint.weights, rtol=0, atol=0)


def test_fitted_matrices_lower_the_spread_of_targets() -> None:
    """From cross-entropy's controlled noises over the identity to a fit; the linear flow is better
    than all here.
    """
    problem = quadratic_problem(CONSTANT)
    best = LinearQuadratic(problem).affine_policy
    path = paths(problem, best, count=4000)

    def spread(estimator: Estimator) -> float:
        labels = estimator.label(problem, best, path)
        assert labels.weights is not None
        return float((labels.weights * (labels.targets - path.controls).square().sum(2)).mean())

    kicked, identity, line, parabola = (
        spread(e) for e in (CrossEntropy(), SOCM(), SOCM(degree=1), SOCM(degree=2))
    )
    assert kicked > 1.5 * identity
    assert identity > 1.05 * line
    assert parabola < 1.02 * line
    assert spread(SOCM(LinearFlow())) < parabola


# A nonlinear chain in one dimension, on which the optimal path measure is found by quadrature.

NODES, WEIGHTS = (torch.as_tensor(a, dtype=F64) for a in np.polynomial.hermite_e.hermegauss(24))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def bent(steps: int) -> ControlProblem:
    """Euler steps of ``dX = (sin X - X / 2) dt + 0.8 dW`` over two units of time, with a running
    cost.
    """
    dt = 2.0 / steps
    chain = KernelReference(
        lambda k, x: x + dt * (torch.sin(x) - x / 2),
        ScalarDiffusion(torch.full((steps,), 0.8 * dt**0.5, dtype=F64)),
        steps,
        (1,),
    )
    return ControlProblem(
        chain, Sine(1.5, 1.3, 0.4), 0.7, lambda k, x: 0.3 * dt * torch.cos(x[:, 0])
    )


class OneDimension(abc.ABC):
    """Values of a one-dimensional chain on a grid, backwards in k."""

    def __init__(self, problem: ControlProblem):
        self.problem, self.beta = problem, float(problem.beta[0])
        grid = torch.linspace(-7, 7, 401, dtype=F64)
        self.values = {problem.steps: CubicSpline(grid, problem.reward(grid[:, None]))}
        for k in reversed(range(problem.steps)):
            self.values[k] = CubicSpline(
                grid, self._before(k, grid) - problem.cost(k, grid[:, None])
            )

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        """The control, shape (batch, 1)."""
        assert isinstance(k, int)
        return self._control(k, x[:, 0])[:, None]

    @abc.abstractmethod
    def _before(self, k: int, x: Tensor) -> Tensor:
        """``V_k`` without its running cost."""

    @abc.abstractmethod
    def _control(self, k: int, x: Tensor) -> Tensor:
        """Shape (batch,)."""

    def _after(self, k: int, x: Tensor, v: Tensor | float, order: int = 0) -> Tensor:
        """``V_{k+1}`` or its derivative at ``m + sigma (v + noise)``, shape (batch, nodes)."""
        shift = torch.as_tensor(v, dtype=F64).expand_as(x)[:, None] + NODES
        after = self.problem.reference.mean(k, x[:, None]) + self._sigma(k) * shift
        return torch.as_tensor(self.values[k + 1](after.numpy(), order))

    def _sigma(self, k: int) -> float:
        return float(self.problem.reference.diffusion.sigma[k])  # type: ignore[attr-defined]


class MeanKick(OneDimension):
    """``E_{P*}[noise_increment | x_k]``, with ``V_k = beta log E[exp(W_k) | x_k]``."""

    def _before(self, k: int, x: Tensor) -> Tensor:
        return self.beta * (self._after(k, x, 0.0) / self.beta + WEIGHTS.log()).logsumexp(1)

    def _control(self, k: int, x: Tensor) -> Tensor:
        return torch.softmax(self._after(k, x, 0.0) / self.beta + WEIGHTS.log(), 1) @ NODES


class Optimum(OneDimension):
    """The optimal control and its value, by the fixed point of the optimality condition."""

    def _before(self, k: int, x: Tensor) -> Tensor:
        v = self._control(k, x)
        return self._after(k, x, v) @ WEIGHTS - self.beta * v.square() / 2

    def _control(self, k: int, x: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for _ in range(ROUNDS):
            v = self._sigma(k) * (self._after(k, x, v, 1) @ WEIGHTS) / self.beta
        return v


@functools.cache
def kick_of(steps: int) -> MeanKick:
    return MeanKick(bent(steps))


@pytest.mark.parametrize(
    "estimator",
    [
        CrossEntropy(),
        SOCM(),
        SOCM(degree=2),
        SOCM(LinearFlow(torch.full((3, 1, 1), 0.4, dtype=F64))),
        SOCMAdjoint(),
    ],
    ids=["cross entropy", "identity", "fitted", "flow", "adjoint"],
)
def test_weighted_targets_have_the_mean_kick_of_the_optimal_measure(estimator: Estimator) -> None:
    """On a nonlinear chain of three coarse steps, against quadrature: an identity of the chain, not
    of a limit.
    """
    problem, noise_increment = bent(3), kick_of(3)
    path = paths(problem, FunctionPolicy(lambda k, x: 0.4 * torch.sin(x) - 0.2), 3, 40_000)
    labels = estimator.label(problem, FunctionPolicy(noise_increment), path)
    assert labels.weights is not None
    for k in range(3):
        residual = labels.weights[k, :, None] * (
            labels.targets[k] - noise_increment(k, path.states[k])
        )
        tests = torch.cat([path.states[k] ** p for p in range(4)], 1)
        require_mean(residual * tests, 0.0, 0.08)


def test_the_mean_kick_is_the_optimal_control_up_to_order_dt() -> None:
    """Relative to the control; and both are the optimal control of a linear-quadratic chain."""
    gaps, x = [], torch.linspace(-2, 2, 81, dtype=F64)[:, None]
    for steps in (16, 32):
        noise_increment, best = MeanKick(bent(steps)), Optimum(bent(steps))
        apart = [(noise_increment(k, x) - best(k, x)).abs().max() for k in range(steps)]
        size = [best(k, x).abs().max() for k in range(steps)]
        gaps.append(float(torch.stack(apart).max() / torch.stack(size).max()))
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=HALVED)
    line = AffineReference(
        torch.full((3, 1, 1), 0.9, dtype=F64), ScalarDiffusion(torch.full((3,), 0.5, dtype=F64))
    )
    problem = ControlProblem(
        line, Quadratic(-torch.ones(1, 1, dtype=F64), torch.ones(1, dtype=F64)), 1.0
    )
    for found in (MeanKick(problem), Optimum(problem)):
        apart = [
            (found(k, x) - LinearQuadratic(problem).control(k, x)).abs().max() for k in range(3)
        ]
        assert max(apart) < QUADRATURE


def from_point(steps: int, beta: float | Tensor = 1.0) -> ControlProblem:
    """A linear-quadratic chain of ``steps`` Euler steps over one unit of time, started at a
    point.
    """
    dt, eye = 1 / steps, torch.eye(2, dtype=F64)
    drift = torch.tensor([[-0.5, 1.0], [-1.0, -0.3]], dtype=F64)
    chain = AffineReference(
        (eye + dt * drift).expand(steps, 2, 2),
        ScalarDiffusion(torch.full((steps,), dt**0.5, dtype=F64)),
        initial_mean=torch.tensor([0.8, -0.4], dtype=F64),
        initial_factor=0 * eye,
    )
    return ControlProblem(
        chain,
        Quadratic(torch.tensor([[-1.5, 0.2], [0.2, 0.3]], dtype=F64), torch.ones(2, dtype=F64)),
        beta,
    )


def residual_variance(problem: ControlProblem) -> float:
    r"""Of the work functional at the optimum: :math:`\sum_k |B_k^\top P_{k+1} B_k|^2/2`, as R - E R
    is minus the sum of :math:`\xi_k^\top B_k^\top P_{k+1} B_k \xi_k/2` centred.
    """
    truth, sigma = LinearQuadratic(problem), problem.reference.diffusion.sigma  # type: ignore[attr-defined]
    return float(
        sum((sigma[k] ** 2 * truth.hessian(k + 1)).square().sum() / 2 for k in range(problem.steps))
    )


@pytest.mark.parametrize("varying", [False, True])
def test_the_mismatch_at_the_optimum_is_constant_up_to_order_dt(varying: bool) -> None:
    """Its variance is known exactly and halves with the step, also for a beta that varies; that of
    the return does not.
    """
    found = []
    for steps in (8, 16, 32, 64):
        beta = 0.8 + 0.6 * torch.linspace(0, 1, steps, dtype=F64) if varying else 1.0
        problem = from_point(steps, beta)
        path = paths(problem, LinearQuadratic(problem).affine_policy, count=4000)
        values = work_functional(problem, path.controls, path)
        spread = float(values.square().mean() - values.mean() ** 2)
        fourth = float((values - values.mean()).pow(4).mean())
        found.append(residual_variance(problem))
        assert abs(spread - found[-1]) < STDERRS * ((fourth - spread**2) / len(values)) ** 0.5
    ratios = [a / b for a, b in itertools.pairwise(found)]
    assert ratios[-1] == pytest.approx(2, rel=HALVED)
    assert ratios[0] > 1.5


def test_log_variance_targets_lose_their_noise_with_the_step() -> None:
    """At the optimum, per step: spread of ``target - v`` relative to the controlled noise's, of
    order sqrt(dt).
    """
    spread = []
    for steps in (8, 32):
        problem = from_point(steps)
        best = LinearQuadratic(problem).affine_policy
        path = paths(problem, best, count=4000)
        with torch.no_grad():
            spread.append(
                float((LogVariance().label(problem, best, path).targets - path.controls).std())
            )
    assert spread[0] / spread[1] == pytest.approx(2, rel=0.2)


def off_policy_residual(estimator: Estimator, steps: int) -> tuple[float, float]:
    """Mean of ``v* - target`` over pre-trained paths, all steps together, in units of sqrt(dt), and
    its standard error.
    """
    problem = from_point(steps)
    best = LinearQuadratic(problem).affine_policy
    path = paths(problem, Uncontrolled(problem.reference), 2, 40_000)
    labels = estimator.label(problem, best, path)
    with torch.no_grad():
        apart = (controls_along(best, path) - labels.targets)[:, :, 0].mean(0) * steps**0.5
    return float(apart.mean()), float(apart.std() / len(apart) ** 0.5)


@pytest.mark.parametrize(
    "estimator",
    [LogVariance(), Moment(lambda x: torch.full((len(x),), 0.0, dtype=F64))],
    ids=["log", "moment"],
)
def test_off_policy_the_zero_is_off_the_optimum_by_order_dt(estimator: Estimator) -> None:
    """At the chain's optimum the off-policy residual falls like dt; on its own paths it is zero."""
    found = []
    for steps in (5, 10, 20):
        problem = from_point(steps)
        if isinstance(estimator, Moment):
            value = LinearQuadratic(problem).objective
            estimator = Moment(lambda x, value=value: torch.full((len(x),), value, dtype=F64))
        mean, stderr = off_policy_residual(estimator, steps)
        assert abs(mean) > DETECTED * stderr
        found.append(mean)
    assert found[0] / found[1] == pytest.approx(2, rel=0.25)
    assert found[1] / found[2] == pytest.approx(2, rel=0.25)


def test_off_policy_log_variance_tells_the_optimum_from_other_controls() -> None:
    """On pre-trained paths the loss itself is much smaller at the optimum."""
    problem = from_point(32)
    best = LinearQuadratic(problem).affine_policy
    path = paths(problem, Uncontrolled(problem.reference), count=4000)
    with torch.no_grad():
        losses = [
            float(work_functional(problem, controls_along(policy, path), path).var())
            for policy in (
                best,
                AffinePolicy(0.5 * best.gain, 0.5 * best.offset),
                Uncontrolled(problem.reference),
            )
        ]
    assert losses[0] < 0.2 * losses[1] < 0.2 * losses[2]


def test_groups_with_equal_starts_are_compared_with_themselves() -> None:
    """Off policy, with random starts: groups are allowed, and each has its own mean."""
    problem = quadratic_problem(CONSTANT)
    noise = Noise.sample(problem.reference, 3, torch.Generator().manual_seed(0))
    many = Noise(noise.initial.repeat(4, 1), randn(30, STEPS, 12, 2))
    path = rollout(problem.reference, Uncontrolled(problem.reference), many)
    policy, groups = away(problem), torch.arange(12) % 3
    with torch.no_grad():
        whole = LogVariance(groups).label(problem, policy, path)
        alone = LogVariance().label(problem, policy, only(path, groups == 1))
    torch.testing.assert_close(whole.targets[:, groups == 1], alone.targets, rtol=1e-10, atol=1e-10)
    variance = Variance(groups).label(problem, policy, path).targets[:, groups == 1].detach()
    expected = Variance().label(problem, policy, only(path, groups == 1)).targets.detach()
    torch.testing.assert_close(variance, expected, rtol=1e-10, atol=1e-10)


def only(path: Path, chosen: Tensor) -> Path:
    noise = Noise(path.noise.initial[chosen], path.noise.steps[:, chosen])
    return Path(path.states[:, chosen], path.controls[:, chosen], noise)


@pytest.mark.parametrize(
    ("estimator", "loss"),
    [
        (LogVariance(), lambda r: r.var() / 2),
        (Variance(), lambda r: (-r).exp().var(correction=0) / 2 / (-r).exp().mean().detach() ** 2),
        (Moment(Start(0.3, 0.2)), lambda r: None),
    ],
    ids=["log-variance", "variance", "moment"],
)
@pytest.mark.parametrize("made", ["own", "other"])
def test_targets_are_the_derivative_of_the_loss(
    estimator: Estimator, loss: Callable[[Tensor], Tensor | None], made: str
) -> None:
    """By automatic differentiation of the sample variance along fixed paths, at beta = 1."""
    problem = from_point(STEPS)
    policy = AffinePolicy(0.3 * randn(31, STEPS, 2, 2), 0.2 * randn(32, STEPS, 2))
    path = paths(problem, policy if made == "own" else Uncontrolled(problem.reference), count=50)
    values = work_functional(problem, controls_along(policy, path), path)
    whole = loss(values)
    if isinstance(estimator, Moment):
        whole = (values + estimator.start(path.states[0]).detach()).square().mean() / 2
    assert whole is not None
    wanted = torch.autograd.grad(whole, list(policy.parameters()))
    with torch.no_grad():
        labels = estimator.label(problem, policy, path)
    found = sum(
        (estimator.loss(problem, policy, k, labels.step(k)).mean() for k in range(STEPS)),
        torch.zeros((), dtype=F64),
    )
    for one, other in zip(
        torch.autograd.grad(found, list(policy.parameters())), wanted, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_the_learned_initial_value_is_the_objective() -> None:
    """At the optimum, whatever the step size: the gradient in the start vanishes at V_0 and pulls
    towards it elsewhere.
    """
    problem = quadratic_problem()
    truth = LinearQuadratic(problem)
    path = paths(problem, truth.affine_policy)
    zeros = torch.zeros(PATHS_AT_START, dtype=torch.long)
    for shift in (0.0, 0.2, -0.2):
        learned = Start(shift)
        estimator = Moment(lambda x, learned=learned: truth.value(0, x) + learned(x))
        labels = estimator.label(problem, truth.affine_policy, path)
        rows = labels.rows(zeros, torch.arange(PATHS_AT_START))
        loss = estimator.loss(problem, truth.affine_policy, zeros, rows)
        slopes = torch.autograd.grad(loss.sum(), [learned.level, learned.slope])
        apart = work_functional(problem, path.controls, path) + truth.value(0, path.states[0])
        stderr = float(apart.std()) * PATHS_AT_START**0.5
        assert abs(float(slopes[0]) - shift * PATHS_AT_START) < STDERRS * stderr
        assert (abs(float(slopes[0])) < STDERRS * stderr) == (shift == 0)
    later = estimator.loss(problem, truth.affine_policy, 1, labels.step(1))
    assert not torch.autograd.grad(later.sum(), learned.level, allow_unused=True)[0].any()  # type: ignore[union-attr]


PATHS_AT_START = 20_000


@pytest.mark.parametrize(
    "estimator",
    [
        RelativeEntropy(),
        CrossEntropy(),
        LogVariance(),
        Variance(),
        Moment(Start()),
        SOCM(),
        SOCM(degree=1),
        SOCMAdjoint(),
    ],
    ids=lambda item: type(item).__name__,
)
def test_costs_are_what_is_evaluated(estimator: Estimator) -> None:
    """Per step and path; SOCM does not differentiate the first step."""
    problem = quadratic_problem(CONSTANT)
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    steps = STEPS - 1 if isinstance(estimator, SOCM) else STEPS
    assert counted(estimator, problem, policy, path, FEW * steps) == estimator.cost


def labels_of(
    estimator: Estimator, problem: ControlProblem, policy: Policy | None = None, count: int = FEW
) -> Labels:
    free = Uncontrolled(problem.reference)
    return estimator.label(
        problem, free if policy is None else policy, paths(problem, free, count=count)
    )


def degenerate() -> ControlProblem:
    noise = MatrixDiffusion(torch.tensor([[0.0], [1.0]], dtype=F64).expand(STEPS, 2, 1))
    chain = AffineReference(0.9 * torch.eye(2, dtype=F64).expand(STEPS, 2, 2), noise)
    return ControlProblem(chain, quadratic_problem().reward, 4.0)


def curved() -> ControlProblem:
    chain = KernelReference(
        lambda k, x: torch.sin(x), ScalarDiffusion(torch.ones(STEPS, dtype=F64)), STEPS, (2,)
    )
    return ControlProblem(chain, quadratic_problem().reward, CONSTANT)


def cliff() -> ControlProblem:
    wall = FunctionReward(lambda x: torch.where(x[:, 0] > 0.9, -math.inf, 0.0))
    return ControlProblem(quadratic_problem().reference, wall, CONSTANT)


VARYING_BETA = [
    (RelativeEntropy(), "relative entropy"),
    (CrossEntropy(), "cross entropy"),
    (Variance(), "the variance loss"),
]
VARYING_BETA += [(SOCM(), "SOCM"), (SOCMAdjoint(), "SOCM-adjoint")]


@pytest.mark.parametrize(
    ("estimator", "name"), VARYING_BETA, ids=[name for _, name in VARYING_BETA]
)
def test_path_measures_need_a_constant_beta(estimator: Estimator, name: str) -> None:
    with pytest.raises(
        InvalidProblem,
        match=f"beta runs from 0.7 to 1.5; {name} needs a constant beta",
    ):
        labels_of(estimator, quadratic_problem())


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "log-variance starts": (
        lambda: labels_of(LogVariance(), quadratic_problem(), away(quadratic_problem())),
        (
            "initial states of a group differ by .* on paths of another policy log-variance"
            " compares paths with one start"
        ),
    ),
    "variance starts": (
        lambda: labels_of(Variance(), quadratic_problem(CONSTANT), away(quadratic_problem())),
        (
            "the variance loss compares paths with one start: give groups of equal starts, start"
            " the chain at a point, or use Moment"
        ),
    ),
    "alone": (
        lambda: labels_of(LogVariance(torch.tensor([0, 0, 1, 1, 1, 2])), quadratic_problem()),
        "a group has 1 path",
    ),
    "groups": (
        lambda: labels_of(LogVariance(torch.tensor([0, 0])), quadratic_problem()),
        r"groups has shape \(2,\)",
    ),
    "degenerate": (
        lambda: labels_of(SOCM(), degenerate()),
        "B has rank 1 and the state 2 entries; .* use SOCMAdjoint",
    ),
    "flow": (
        lambda: labels_of(SOCM(LinearFlow()), curved()),
        "the reference is a KernelReference; a linear flow needs matrices",
    ),
    "degree": (lambda: SOCM(degree=-1), "degree = -1; give a whole number"),
    "folds": (
        lambda: labels_of(SOCM(degree=1, folds=7), quadratic_problem(CONSTANT)),
        "folds = 7 for 6 paths",
    ),
    "infinite": (
        lambda: labels_of(CrossEntropy(), cliff(), count=500),
        r"the reward is -inf on \d+ of 500 paths; it must be a finite number",
    ),
}


@pytest.mark.refusal
@pytest.mark.parametrize(("attempt", "message"), REFUSED.values(), ids=REFUSED)
def test_inputs_that_make_no_sense_are_refused(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidProblem, match=message):
        attempt()


def test_degenerate_noise_is_fine_without_division() -> None:
    """SOCM-adjoint and cross-entropy at the optimum of a chain kicked in one direction."""
    problem = degenerate()
    best = LinearQuadratic(problem).affine_policy
    path = paths(problem, Uncontrolled(problem.reference), 1)
    for estimator in (SOCMAdjoint(), CrossEntropy()):
        require_mean(estimates(estimator, problem, best, path), 0.0, 0.12)


def test_labels_of_one_loss_pick_rows_of_every_field() -> None:
    problem = quadratic_problem()
    policy = away(problem)
    labels = Moment(Start()).label(problem, policy, paths(problem, policy, count=FEW))
    k, sample = torch.tensor([2, 0]), torch.tensor([1, 5])
    rows = labels.rows(k, sample)
    for field in dataclasses.fields(labels):
        whole = getattr(labels, field.name)
        if whole is not None:
            assert (getattr(rows, field.name) == whole[k, sample]).all()
    assert isinstance(SOCM().flow, IdentityFlow)
    assert controlled_noises(paths(problem, policy, count=FEW)).shape == (STEPS, FEW, 2)


EVERY: list[Estimator] = [
    ScoreFunction(RegressionBaseline()),
    DDPO(),
    DPOK(),
    IntegrationByParts(),
    TruncatedBackprop(2, kl=False),
    RelativeEntropy(),
    CrossEntropy(),
    LogVariance(),
    Variance(),
    Moment(lambda x: x.flatten(1).sum(1)),
    SOCM(degree=2),
    SOCMAdjoint(),
]


def shaped(dims: tuple[int, ...]) -> tuple[ControlProblem, Policy]:
    """The same nonlinear chain of eight numbers in any shape, and a policy."""

    def flat(function: Callable[[Tensor], Tensor]) -> Callable[[Step, Tensor], Tensor]:
        return lambda k, x: function(x.flatten(1)).reshape(len(x), *dims)

    chain = KernelReference(
        flat(lambda x: 0.9 * torch.sin(x.roll(1, 1))),
        ScalarDiffusion(torch.full((STEPS,), 0.5, dtype=F64)),
        STEPS,
        dims,
    )
    reward = FunctionReward(lambda x: torch.sin(x.flatten(1)).sum(1) + x.flatten(1)[:, 0])
    return ControlProblem(chain, reward, CONSTANT), FunctionPolicy(
        flat(lambda x: 0.3 * torch.cos(x) - 0.2)
    )


@pytest.mark.parametrize("estimator", EVERY, ids=lambda item: type(item).__name__)
def test_losses_do_not_depend_on_the_shape_of_states_or_on_the_order_of_rows(
    estimator: Estimator,
) -> None:
    """Images or vectors; one step at a time or any rows with their own steps."""
    found = []
    for dims in ((8,), (2, 2, 2)):
        problem, policy = shaped(dims)
        noise = Noise(randn(40, 9, *dims), randn(41, STEPS, 9, *dims))
        path = rollout(problem.reference, policy, noise)
        labels = estimator.label(problem, policy, path)
        k, sample = labels.pairs()
        order = torch.randperm(len(k), generator=torch.Generator().manual_seed(0))
        rows = estimator.loss(problem, policy, k[order], labels.rows(k[order], sample[order]))
        steps = torch.cat(
            [estimator.loss(problem, policy, j, labels.step(j)) for j in range(STEPS)]
        )
        torch.testing.assert_close(rows, steps[order], rtol=IDENTITY, atol=IDENTITY)
        found.append(steps)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    assert found[0].std() > 0
