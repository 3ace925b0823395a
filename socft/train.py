"""The training loop, once: a generator that yields every iteration, for observers to measure."""

from __future__ import annotations

import abc
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from socft.checks import require
from socft.estimators.base import Estimator
from socft.path import Noise, rollout
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import States, Step


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
    """

    index: int
    policy: Policy
    seconds: float
    evaluations: int
    details: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    value_gradient: Callable[[Step, States], States] | None = None


class Method(Readable, abc.ABC):
    """A way to solve a control problem."""

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
) -> Iterator[Iteration]:
    """Train a policy in place with any estimator, on fresh paths at every gradient step.

    The loss is the mean over paths of the sum over steps, so its gradient estimates minus the
    gradient of the objective whenever the estimator does. Yields the pre-trained model first and
    then every step with its ``gradient_norm``.

    Raises:
        InvalidProblem: a gradient is not finite; the policy keeps its last finite parameters.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    spent, evaluations = 0.0, 0
    yield Iteration(0, policy, spent, evaluations)
    for index in range(1, steps + 1):
        start = time.perf_counter()
        noise = Noise.sample(problem.reference, batch, generator)
        with torch.no_grad():
            path = rollout(problem.reference, policy, noise)
            labels = estimator.label(problem, policy, path)
        k, sample = labels.pairs()
        optimiser.zero_grad()
        with torch.enable_grad():
            losses = estimator.loss(problem, policy, k, labels.rows(k, sample))
            (losses.sum() / batch).backward()
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        require(
            bool(norm.isfinite()),
            f"the gradient norm is {norm} at gradient step {index}; lower the learning rate or"
            " raise beta.",
        )
        optimiser.step()
        spent += time.perf_counter() - start
        evaluations += 2 * problem.steps * batch
        yield Iteration(index, policy, spent, evaluations, {"gradient_norm": norm})
