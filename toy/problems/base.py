r"""What a benchmark problem is: a control problem, the truth of the chain that is simulated, and of
its continuous-time limit.

Everything is in the reward convention of `socft.problem`: values are rewards to come, so the
costate of a cost minimisation is :math:`\phi = -\nabla V`. Truths are built when first asked for,
since some take seconds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import States
from socft.reward import PerSample
from socft.sde import SDE
from socft.truth.affine_policy import evaluate_affine
from socft.truth.base import Truth
from socft.truth.bellman import BellmanStep, terminal_value
from socft.truth.grid import Grid, tensor_rule
from socft.truth.riccati import ContinuousValue

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ValueFunction:
    """A value function on the states of a chain.

    Attributes:
        value: ``(k, x) -> V_k(x)``, k = 0..T.
        gradient: ``(k, x) -> grad V_k(x)``, the costate.
        objective: its mean over the initial law.
        error: estimate of the largest error of the gradient where the chain has its mass; 0 for
            closed forms.
    """

    value: Callable[[int, States], PerSample]
    gradient: Callable[[int, States], States]
    objective: float
    error: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Benchmark:
    """A named problem with its truths.

    Attributes:
        name: how records and commands refer to it.
        description: one line for readers.
        settings: the numbers that complete the name.
        problem: the chain, the reward and the KL weight.
        sde: the SDE behind the chain, if any.
        times: time of each state of the chain, shape (T + 1,), if there is an SDE.
        published: numbers from the literature by metric, with their settings.
        solvers: how to build each truth; ask for the attributes `truth`, `uncontrolled`,
            `continuous`, `continuous_uncontrolled`.
    """

    name: str
    description: str
    settings: Settings
    problem: ControlProblem
    solvers: Solvers
    sde: SDE | None = None
    times: Float[Tensor, " steps_plus_1"] | None = None
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def truth(self) -> Truth:
        """The optimum of the simulated chain."""
        return self._solve(self.solvers.truth, "optimum of its chain")

    @functools.cached_property
    def uncontrolled(self) -> ValueFunction:
        """The value of the simulated chain without control; its gradient is the conditional mean of
        the lean costate.
        """
        return self._solve(self.solvers.uncontrolled, "value of the chain without control")

    @functools.cached_property
    def continuous(self) -> ValueFunction:
        """The optimum in continuous time, at the times of the chain's states."""
        return self._solve(self.solvers.continuous, "optimum in continuous time")

    @functools.cached_property
    def continuous_uncontrolled(self) -> ValueFunction:
        """The value without control in continuous time, at the times of the chain's states."""
        return self._solve(
            self.solvers.continuous_uncontrolled, "value without control in continuous time"
        )

    @property
    def truths(self) -> tuple[str, ...]:
        """The truths there are."""
        return tuple(
            f.name
            for f in dataclasses.fields(self.solvers)
            if getattr(self.solvers, f.name) is not None
        )

    def _solve(self, solver: Callable[[], Any] | None, what: str) -> Any:
        if solver is None:
            raise InvalidProblem(
                f"no {what} is known for {self.name}; it has {', '.join(self.truths)}."
            )
        return solver()


@dataclasses.dataclass(frozen=True)
class Solvers:
    """How to build each truth of a benchmark; None where it is not known."""

    truth: Callable[[], Truth] | None = None
    uncontrolled: Callable[[], ValueFunction] | None = None
    continuous: Callable[[], ValueFunction] | None = None
    continuous_uncontrolled: Callable[[], ValueFunction] | None = None


def affine_uncontrolled(problem: ControlProblem) -> ValueFunction:
    """The value of an affine chain without control, in closed form."""
    found = evaluate_affine(problem, AffinePolicy.zeros(problem.reference))
    return ValueFunction(found.value.value, found.value.gradient, found.objective)


def grid_uncontrolled(problem: ControlProblem, grids: Sequence[Grid]) -> ValueFunction:
    """The value of a chain in one or two dimensions without control: dynamic programming that never
    steers (no error estimate).
    """
    values = [terminal_value(problem, grids[-1])]
    for k in reversed(range(problem.steps)):
        step = BellmanStep.build(problem, k, grids[k], values[-1])
        values.append(step.value(torch.zeros_like(step.mean)))
    values.reverse()
    points, weights = tensor_rule(grids[0].dim)
    objective = float(weights @ values[0].at(problem.reference.initial(points)))
    return ValueFunction(
        lambda k, x: values[k].at(x), lambda k, x: values[k].gradient_at(x), objective
    )


def riccati_value(
    found: ContinuousValue, times: Tensor, mean: Tensor, factor: Tensor
) -> ValueFunction:
    """A continuous linear-quadratic value at the times of a chain started at N(mean, factor
    factor^T).
    """

    def value(k: int, x: States) -> PerSample:
        t = float(times[k])
        return (x @ found.hessian(t).to(x) * x).sum(1) / 2 + found.constant(t)

    P = found.hessian(float(times[0]))
    objective = float(mean @ P @ mean + (factor * (P @ factor)).sum()) / 2 + found.constant(
        float(times[0])
    )
    return ValueFunction(value, lambda k, x: x @ found.hessian(float(times[k])).to(x), objective)
