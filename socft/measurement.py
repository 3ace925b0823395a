"""Observers: what the iterates of a method achieve, measured against the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from socft import plot
from socft.checks import require, require_kind, whole
from socft.readable import Readable
from socft.train import Iteration
from socft.truth.base import Evaluation, Truth

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class Measurement(Readable):
    """One iterate beside the truth.

    Attributes:
        iteration: what the method yielded.
        evaluation: objective, reward and KL of its policy.
        objective_gap: ``J* - J``, non-negative up to the error of either.
        control_error: ``sup |v_k - v*_k|`` per step over the truth's points, shape (T,).
        value_gradient_error: ``sup |grad V_k - grad V*_k|`` per step, shape (T + 1,), where the
            method knows its value gradient.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> (only,) = observe(Quadrature(problem), ExactPIFT(inner=0).iterations(problem))
    >>> only.control_error.shape
    torch.Size([3])
    """

    iteration: Iteration
    evaluation: Evaluation
    objective_gap: float
    control_error: Float[Tensor, " steps"]
    value_gradient_error: Float[Tensor, " steps_plus_1"] | None


class Measurements(Iterator[Measurement]):
    """The iterates of a method, measured one by one as they are asked for.

    Attributes:
        seen: those measured so far.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> rows = observe(Quadrature(problem), ExactPIFT(inner=2).iterations(problem))
    >>> isinstance(rows, Measurements), len(list(rows)), len(rows.seen)
    (True, 3, 3)
    """

    def __init__(self, rows: Iterator[Measurement]):
        self.seen: list[Measurement] = []
        self._rows = rows

    def __next__(self) -> Measurement:
        self.seen.append(next(self._rows))
        return self.seen[-1]

    def plot(self, axes: Axes | None = None, bound: Callable[[int], float] | None = None) -> Axes:
        """Measure what is left, and draw the error of the control and the objective's gap.

        Args:
            bound: of the error of the control, by the index of the iterate.

        Raises:
            InvalidProblem: nothing is measured, or matplotlib is not installed.
        """
        axes = plot.axes_or_new(axes)
        for _ in self:
            pass
        require(bool(self.seen), "no iterate is measured; give what a Method yields.")
        index = [row.iteration.index for row in self.seen]
        error = [float(row.control_error.max()) for row in self.seen]
        gap = [max(row.objective_gap, 0.0) for row in self.seen]
        bounds = None if bound is None else [bound(each) for each in index]
        plot.measured(axes, index, error, "largest error of the control", bound=bounds)
        plot.measured(axes, index, gap, "objective below the optimum")
        axes.set(xlabel="iteration", yscale="log")
        axes.legend()
        return axes


def observe(truth: Truth, iterations: Iterable[Iteration], every: int = 1) -> Measurements:
    """Measure the iterates whose index is a multiple of ``every``.

    Raises:
        InvalidProblem: ``every`` is not positive; raised by the call, before anything is measured.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> rows = observe(Quadrature(problem), ExactPIFT(inner=4).iterations(problem), every=2)
    >>> [row.iteration.index for row in rows]
    [0, 2, 4]
    """
    every = whole(every, "every")
    require_kind(truth, Truth, "the truth", "give a Truth, such as Quadrature(problem).")
    require_kind(iterations, (Iterator, list, tuple), "iterations", "give what a Method yields.")
    return Measurements(_measured(truth, iterations, every))


def _measured(truth: Truth, iterations: Iterable[Iteration], every: int) -> Iterator[Measurement]:
    for iteration in iterations:
        require_kind(iteration, Iteration, "an iterate", "give what a Method yields.")
        if iteration.index % every == 0:
            yield measure(truth, iteration)


def measure(truth: Truth, iteration: Iteration) -> Measurement:
    """Measure one iterate; its policy is evaluated now, so call it before the next training step.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> first = next(ExactPIFT(inner=0).iterations(problem))
    >>> measure(Quadrature(problem), first).iteration.index
    0
    """
    require_kind(iteration, Iteration, "an iterate", "give what a Method yields.")
    evaluation = truth.evaluate(iteration.policy)
    return Measurement(
        iteration,
        evaluation,
        truth.objective - evaluation.objective,
        truth.control_error(iteration.policy),
        _value_gradient_error(truth, iteration),
    )


def _value_gradient_error(truth: Truth, iteration: Iteration) -> Tensor | None:
    gradient = iteration.value_gradient
    if gradient is None:
        return None
    errors = []
    with torch.no_grad():
        for k in range(truth.problem.steps + 1):
            x = truth.points(k)
            errors.append(
                (gradient(k, x) - truth.value_gradient(k, x)).flatten(1).norm(dim=1).max()
            )
    return torch.stack(errors)
