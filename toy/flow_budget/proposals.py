r"""What a method would change of the control, against what leads to the optimum.

Its slope in the control over the curvature of its divergence is a proposed change :math:`w_k - v_k`
of the control, in the same units for all, and its products with the features (x, 1) of every step
are what is compared. Right is

.. math:: E\big[(B_k E \nabla V^v_{k+1}/\beta_k - v_k)\, \phi(x_k)^\top\big],

the gradient of the objective over beta, which is zero at the optimum. It is known at every policy
by quadrature; its norm at the pre-trained model is the unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Float

from socft.estimators.estimand import Kind
from socft.path import Noise, rollout
from socft.policy import Policy, ScaledPolicy
from socft.study.vocabulary.methods import MethodName
from socft.truth.quadrature import Quadrature
from toy.fixed_points.equations import ReturnsToGo
from toy.fixed_points.line import LineChain
from toy.fixed_points.methods import FIT_PATHS
from toy.fixed_points.problems import Targets
from toy.flow_budget.methods import METHODS, Expense, has_the_optimum, made
from toy.measure import estimate
from toy.ranks import Figure, figure
from toy.repeated import DRAWS, RepeatedGradient, draws

FIRST_SEED = 1000
START, MIDWAY, OPTIMUM = "start", "midway", "optimum"
INFORMED = 0.1
"""Of the right change at the pre-trained model: a method whose mean proposes less has no
information of its own, and no rank.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyPoint:
    """Where methods are asked.

    Attributes:
        name: the pre-trained model, half the optimal control, or the optimum.
        policy: the control there.
        exact: what is right, a number per feature and step.
        unit: its norm at the pre-trained model.
    """

    name: str
    policy: Policy
    exact: Float[torch.Tensor, " parameters"]
    unit: float


def policy_points(targets: Targets) -> tuple[PolicyPoint, ...]:
    """The pre-trained model, half the way, and the optimum."""
    line = targets.line
    best = Quadrature(line.problem).policy
    policies = {
        START: line.hats.policy(line.problem.steps),
        MIDWAY: ScaledPolicy(best, [0.5] * line.problem.steps),
        OPTIMUM: best,
    }
    exact = {name: right_change(line, policy) for name, policy in policies.items()}
    exact[OPTIMUM] = torch.zeros_like(exact[OPTIMUM])
    unit = float(exact[START].norm())
    return tuple(PolicyPoint(name, policies[name], exact[name], unit) for name in policies)


def right_change(line: LineChain, policy: Policy) -> Float[torch.Tensor, " parameters"]:
    """The gradient of the objective over beta in the coefficients of (x, 1) of every step."""
    control = line.controls(policy)
    fit = ReturnsToGo().regression(line, control)
    change = fit.mass * (fit.wanted - control)
    features = torch.stack([line.points, torch.ones_like(line.points)], 1)
    return (change @ features).flatten()


def repeated(
    targets: Targets, name: MethodName, place: PolicyPoint, paths: int, seeds: int
) -> RepeatedGradient:
    """A method's proposals at a place, over repetitions with paths of their own."""
    method, line = METHODS[name], targets.line
    estimator = made(targets, name, torch.Generator())
    means, variances = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        generator = torch.Generator().manual_seed(seed)
        noise = Noise.sample(line.reference, paths, generator)
        estimator = made(targets, name, generator)
        found = estimate(estimator, line.problem, place.policy, noise)
        path = rollout(line.reference, place.policy, noise)
        scale = (1 / method.unit(targets, path)).repeat_interleave(2)
        means.append(found.mean * scale)
        variances.append(float(found.variances @ scale.square()) / place.unit**2)
    expense = Expense.of(name, estimator, line.problem.steps, FIT_PATHS)
    return RepeatedGradient.of(
        torch.stack(means),
        place.exact,
        place.unit,
        kind=estimator.estimates.kind,
        noise=0.0,
        variances=torch.tensor(variances, dtype=torch.float64),
        paths=paths,
        evaluations=expense.path,
        fit_evaluations=expense.fit,
    )


def share(here: RepeatedGradient) -> float:
    """The part of the right change that the mean proposes, along it."""
    return 1 + float(here.along.mean()) / here.gradient


def peers(
    place: str,
    here: Mapping[MethodName, RepeatedGradient],
    start: Mapping[MethodName, RepeatedGradient],
) -> dict[str, Figure]:
    """Those that have one aim at a place, and what they are ordered by.

    At the optimum these rest there, and are ordered by the error relative to the size of their own
    proposal at the pre-trained model, which is the same for any multiple of a method; elsewhere
    they estimate the gradient, and are ordered by the error.
    """
    if place != OPTIMUM:
        return {
            name: Figure(float(each.error(each.equal)), each.error(draws(each.count, DRAWS)), "")
            for name, each in here.items()
            if each.kind == Kind.OBJECTIVE_GRADIENT
        }
    found = {
        name: figure(each, start[name], optimum=True)
        for name, each in here.items()
        if has_the_optimum(name) and share(start[name]) >= INFORMED
    }
    return {name: each for name, each in found.items() if isinstance(each, Figure)}
