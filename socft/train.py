"""The training loop, once: a generator that yields every iteration, for observers to measure."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from socft.checks import require_kind, whole
from socft.estimators.base import Estimator
from socft.finite import require_finite_paths
from socft.path import Noise, rollout
from socft.policy import Policy
from socft.problem import ControlProblem, require_problem
from socft.readable import Readable
from socft.reference import States, Step
from socft.regression.gradient_descent import gradient_descent

REMEDY = "lower the learning rate or raise beta."


@dataclasses.dataclass(frozen=True)
class Iteration(Readable):
    """What a method has reached.

    Attributes:
        index: number of inner iterations (PI-FT) or of gradient steps.
        policy: the current policy; parametric policies are trained in place.
        seconds: time spent computing so far, observers excluded.
        evaluations: samples pushed through the pre-trained mean map so far.
        details: what the method itself measured, by name.
        value_gradient: ``(k, x) -> grad V_k(x)`` of the current policy, where the method knows it.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> first = next(ExactPIFT(inner=1).iterations(problem))
    >>> first.index, first.evaluations
    (0, 1803)
    """

    index: int
    policy: Policy
    seconds: float
    evaluations: int
    details: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    value_gradient: Callable[[Step, States], States] | None = None


class Method(Readable, abc.ABC):
    """A way to solve a control problem.

    >>> isinstance(ExactPIFT(inner=3), Method)
    True
    """

    @abc.abstractmethod
    def iterations(self, problem: ControlProblem) -> Iterator[Iteration]:
        """Every iterate, starting with the pre-trained model at index 0."""


def fit(
    problem: ControlProblem,
    policy: Policy,
    estimator: Estimator,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    batch: int = 256,
    steps: int = 1000,
    schedule: LRScheduler | None = None,
) -> Iterator[Iteration]:
    """Train a policy in place with any estimator, on fresh paths at every gradient step.

    The loss is the mean over paths of the sum over steps, so its gradient estimates minus the
    gradient of the objective whenever the estimator does. Yields the pre-trained model first and
    then every step with its ``gradient_norm``; ``schedule``, of the learning rate, takes one step
    after each.

    Raises:
        InvalidProblem: labels or a gradient are not finite; says where that comes from, and the
            policy keeps its last finite parameters.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> policy = AffinePolicy.zeros(reference)
    >>> adam = torch.optim.Adam(policy.parameters(), lr=0.01)
    >>> run = fit(problem, policy, AdjointMatching(), adam, torch.Generator(), batch=8, steps=3)
    >>> [iteration.index for iteration in run]
    [0, 1, 2, 3]
    """

    require_problem(problem)
    require_kind(policy, Policy, "the policy", "give a Policy, such as MLPPolicy(reference).")
    require_kind(estimator, Estimator, "the estimator", "give one, such as AdjointMatching().")
    require_kind(optimiser, torch.optim.Optimizer, "the optimiser", "give torch.optim.Adam.")
    batch, steps = whole(batch, "batch"), whole(steps, "steps", 0)

    def loss() -> Tensor:
        noise = Noise.sample(problem.reference, batch, generator)
        with torch.no_grad():
            path = rollout(problem.reference, policy, noise)
            labels = estimator.label(problem, policy, path)
        for name, each in labels.tensors().items():
            values = each.flatten(2).sum(2) if each.ndim > 2 else each
            require_finite_paths(
                problem, path, values, f"the {name.replace('_', ' ')} of the labels"
            )
        k, sample = labels.pairs()
        return estimator.loss(problem, policy, k, labels.rows(k, sample)).sum() / batch

    descent = gradient_descent(loss, optimiser, steps, schedule, REMEDY)
    spent, evaluations = 0.0, 0
    yield Iteration(0, policy, spent, evaluations)
    for index in range(1, steps + 1):
        start = time.perf_counter()
        norm = next(descent).norm
        spent += time.perf_counter() - start
        evaluations += 2 * problem.steps * batch
        yield Iteration(index, policy, spent, evaluations, {"gradient_norm": norm})
