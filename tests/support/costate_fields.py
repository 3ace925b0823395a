"""Paths, fields and scores on which estimators made of costates are tried."""

from __future__ import annotations

import torch
from torch import Tensor

from socft.costates.fields import CostateField
from socft.estimators.base import CostateEstimator
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, MatrixDiffusion, ScalarDiffusion, Step
from socft.reward import FunctionReward, Quadratic
from socft.sde import StateDiffusion
from socft.truth.linear_quadratic import QuadraticCost
from tests.support.costate_cases import STEPS
from tests.support.tensors import F64, generator, randn, t

IDENTITY = 1e-12  # relative: the same products in another order
VANISHED = 1e-20  # relative variance: rounding squared
STDERRS = 4.0  # a Monte-Carlo check fails by chance less than once in 10^4
ORDER = 0.2  # on a measured order of convergence, from the next order


def some_policy() -> AffinePolicy:
    return AffinePolicy(0.4 * randn(3, STEPS, 2, 2), 0.3 * randn(4, STEPS, 2))


def wrong_field(k: Step, x: Tensor) -> Tensor:
    """Nothing to do with any problem, of the size of the costates."""
    assert isinstance(k, int)
    return 2 * torch.tanh(x @ randn(5 + k, 2, 2)) + 0.3 * x.roll(1, 1) ** 2


def paths(problem: ControlProblem, policy: Policy, batch: int, seed: int) -> Path:
    with torch.no_grad():
        return rollout(
            problem.reference, policy, Noise.sample(problem.reference, batch, generator(seed))
        )


def lean_field(problem: ControlProblem, policy: AffinePolicy) -> CostateField:
    """The conditional mean of the lean costate, affine: L_k = A'(L_{k+1} (A + B K) x + ...) - F x -
    h, by hand.
    """
    reference, reward, cost = problem.reference, problem.reward, problem.running_cost
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, MatrixDiffusion)
    assert isinstance(reward, Quadratic)
    assert isinstance(cost, QuadraticCost)
    K, o, B = policy.gain.detach(), policy.offset.detach(), reference.diffusion.matrices
    slopes, levels = [reward.P], [reward.linear]
    for k in reversed(range(STEPS)):
        A, moved = reference.transition[k], reference.offset[k] + B[k] @ o[k]
        levels.append(A.T @ (slopes[-1] @ moved + levels[-1]) - cost.h)
        slopes.append(A.T @ slopes[-1] @ (A + B[k] @ K[k]) - cost.F)

    def field(k: Step, x: Tensor) -> Tensor:
        assert isinstance(k, int)
        return x @ slopes[STEPS - k].T + levels[STEPS - k]

    return field


def scores(samples: Tensor, x: Tensor) -> Tensor:
    """Means of samples times 1, x, x^2 and sin 2x, in standard errors: all small if the mean given
    x is zero.
    """
    tests = torch.cat([torch.ones_like(x[:, :1]), x, x.square(), torch.sin(2 * x)], 1)
    products = (tests.unsqueeze(2) * samples.unsqueeze(1)).flatten(1)
    return products.mean(0) / (products.std(0).clamp(min=IDENTITY) / len(x) ** 0.5)


def largest_scores(
    estimator: CostateEstimator, field: CostateField, problem, policy: Policy
) -> float:
    """Over costates given their states, and over what targets use given the states before."""
    path = paths(problem, policy, 8000, 6)
    costates = estimator.costates(problem, policy, path)
    assert costates.next_costate is not None
    found = [
        scores(costates.values[k] - field(k, path.states[k]), path.states[k]).abs().max()
        for k in range(STEPS)
    ]
    for k in range(STEPS):
        with torch.no_grad():
            mean = problem.reference.step(k, path.states[k], policy(k, path.states[k]))
        # the field of the quadratic problem is affine: its mean over the noise is its value at the
        # mean
        found.append(
            scores(costates.next_costate[k] - field(k + 1, mean), path.states[k]).abs().max()
        )
    return float(torch.stack(found).max())


GROWTH, BREATH = 0.9, 0.6


def geometric(steps: int = 3) -> ControlProblem:
    """x' = (g + s xi) x, reward x^2 / 2: E r = (g^2 + s^2)^(T - k) x^2 / 2, so the costate is (g^2
    + s^2)^(T - k) x.
    """
    diffusion = StateDiffusion(lambda k, x, z: BREATH * x * z, (1,), (1,))
    reference = KernelReference(lambda k, x: GROWTH * x, diffusion, steps, (1,))
    return ControlProblem(reference, FunctionReward(lambda x: x[:, 0].square() / 2), 1.0)


def linear_study(steps: int, controlled: bool = True) -> tuple[ControlProblem, AffinePolicy]:
    """dX = (A X + K X + o) dt + dW on [0, 2] with a running cost."""
    dt = 2.0 / steps
    A = torch.eye(2, dtype=F64) + dt * torch.tensor([[0.0, 1.0], [-1.0, -0.5]], dtype=F64)
    reference = AffineReference(
        A.expand(steps, 2, 2), ScalarDiffusion(torch.full((steps,), dt**0.5))
    )
    problem = ControlProblem(
        reference,
        Quadratic(-torch.eye(2, dtype=F64)),
        1.0,
        QuadraticCost(0.1 * dt * torch.eye(2, dtype=F64)),
    )
    size = 1.0 if controlled else 0.0
    gain = size * dt**0.5 * torch.tensor([[-0.3, 0.2], [0.1, -0.4]], dtype=F64)
    return problem, AffinePolicy(
        gain.expand(steps, 2, 2), size * dt**0.5 * t(0.3, -0.2).expand(steps, 2)
    )


def order(errors: list[float], steps: list[int]) -> float:
    """Slope of the logarithm of the error in that of the step size, by the last two."""
    return float((t(errors[-2]) / errors[-1]).log() / (t(steps[-1]) / steps[-2]).log())


def root_mean_square(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())
