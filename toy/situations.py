r"""Where gradient estimators are compared: a problem, a policy, and the exact gradient there.

A policy at distance 1 - s from the optimum is :math:`s\, v^*`, from the pre-trained model (s = 0)
to the optimum (s = 1). Where the problem is linear-quadratic everything about it is closed form.
Elsewhere the optimum is known, where every gradient is zero, and the pre-trained model, whose value
function is known in one and two dimensions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.costates.fields import CostateField, GivenCostate
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, rollout
from socft.policy import AffinePolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import States, by_step
from socft.truth.affine_policy import affine_gradient, evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic
from toy.measure import affine_features, estimate
from toy.problems import Benchmark

ORACLE_PATHS = 100_000
"""For the gradient at the pre-trained model of a problem that is not linear-quadratic, where only
its integrand is exact.
"""
SIZE_PATHS = 1000
"""For the unit of a problem where not even that is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Situation:
    """A problem, a policy and what is exact there.

    Attributes:
        problem: the control problem.
        policy: the policy at which gradients are estimated.
        gradient: gradient of the objective in the coefficients of the affine features of every
            step, step by step.
        stderr: its standard error, 0 where it is exact.
        value_gradient: ``(k, x) -> grad V_k(x)`` of this policy, the conditional mean of its full
            costate.
        optimal: ``(k, x) -> grad V*_k(x)``.
        scale: size of gradients on this problem, the norm of the gradient at the pre-trained model;
            an estimate by the full adjoint where that gradient is not known.
        setting: what distinguishes the situation, for records.
        repetition: what is fitted or drawn besides an estimate's own paths is another in every
            repetition.
    """

    problem: ControlProblem
    policy: Policy
    gradient: Float[Tensor, " parameters"]
    stderr: float
    value_gradient: CostateField
    optimal: CostateField
    scale: float
    setting: Mapping[str, Any]
    repetition: int = 0

    @functools.cached_property
    def context(self) -> EstimatorContext:
        """What estimators are made from."""
        exact = GivenCostate(self.value_gradient)
        return EstimatorContext(self.problem, self.policy, self.repetition, exact)


def situation(benchmark: Benchmark, scale: float) -> Situation:
    """The policy ``scale v*`` on a benchmark.

    Raises:
        InvalidProblem: no exact gradient is known there.
    """
    truth = benchmark.truth
    setting = {"problem": benchmark.name, **benchmark.settings, "scale": scale}
    if isinstance(truth, LinearQuadratic):
        return _linear_quadratic(truth, scale, setting)
    require(
        scale in (0.0, 1.0),
        f"scale = {scale:g}; on {benchmark.name} gradients are exact at 0 and at 1.",
    )
    problem, optimum = benchmark.problem, truth.value_gradient
    zero = _by_step(benchmark.uncontrolled.gradient) if "uncontrolled" in benchmark.truths else None
    start, stderr = (None, 0.0) if zero is None else _at_start(problem, zero)
    size = _size(problem) if start is None else float(start.norm())
    if scale == 1.0:
        none = torch.zeros(problem.steps * _columns(problem), dtype=torch.float64)
        return Situation(problem, truth.policy, none, 0.0, optimum, optimum, size, setting)
    require(
        start is not None,
        f"the value of the pre-trained model is not known for {benchmark.name}; take scale = 1.",
    )
    assert zero is not None
    assert start is not None
    return Situation(
        problem, Uncontrolled(problem.reference), start, stderr, zero, optimum, size, setting
    )


def _size(problem: ControlProblem) -> float:
    """Norm of the gradient at the pre-trained model, by the full adjoint, without the noise of the
    estimate.
    """
    policy = Uncontrolled(problem.reference)
    noise = Noise.sample(problem.reference, SIZE_PATHS, torch.Generator().manual_seed(1))
    found = estimate(FullAdjoint(), problem, policy, noise)
    return found.bias(torch.zeros_like(found.mean))[0]


def _by_step(gradient: Callable[[int, States], States]) -> CostateField:
    return lambda k, x: by_step(k, x, gradient)


def _linear_quadratic(
    truth: LinearQuadratic, scale: float, setting: Mapping[str, Any]
) -> Situation:
    problem, best = truth.problem, truth.affine_policy
    policy = AffinePolicy(scale * best.gain.detach(), scale * best.offset.detach())
    size = float(_flat(problem, AffinePolicy.zeros(problem.reference)).norm())
    own = evaluate_affine(problem, policy).value
    return Situation(
        problem,
        policy,
        _flat(problem, policy),
        0.0,
        own.gradient,
        truth.value_gradient,
        size,
        setting,
    )


def _flat(problem: ControlProblem, policy: AffinePolicy) -> Tensor:
    exact = affine_gradient(problem, policy)
    return torch.cat([exact.gain, exact.offset.unsqueeze(2)], 2).flatten()


def _columns(problem: ControlProblem) -> int:
    (m,), (n,) = problem.reference.noise_dims, problem.reference.dims
    return m * (n + 1)


def _at_start(problem: ControlProblem, value_gradient: CostateField) -> tuple[Tensor, float]:
    """The gradient at the pre-trained model, and its standard error: exact costates of the next
    state, averaged over many paths.
    """
    reference = problem.reference
    noise = Noise.sample(reference, ORACLE_PATHS, torch.Generator().manual_seed(1))
    means, variance = [], 0.0
    with torch.no_grad():
        path = rollout(reference, Uncontrolled(reference), noise)
        for k in range(problem.steps):
            slope = reference.diffusion.transpose(
                k, path.states[k], value_gradient(k + 1, path.states[k + 1])
            )
            samples = (slope.unsqueeze(2) * affine_features(path.states[k]).unsqueeze(1)).flatten(1)
            means.append(samples.mean(0))
            variance += float(samples.var(0).sum())
    return torch.cat(means), (variance / ORACLE_PATHS) ** 0.5
