r"""The interface of every gradient estimator.

An estimator turns a rollout into labels once, without a graph, and then offers a pointwise loss on
any minibatch of (k, sample) pairs. The gradient of the loss, summed over the steps and averaged
over the paths, is the estimate of minus the gradient of the objective. Every on-policy estimate is
linear in the derivative of the control, so it is the gradient of a matching loss,

.. math:: w\, \beta_k\, |v_k(x) - \text{target}|^2 / 2,

and a matching estimator supplies only its targets, with weights where it needs them. Most targets
come from samples of the costate: where :math:`E[a_{k+1} | x_k]` is the mean gradient of the next
value, :math:`B_k^\top a_{k+1}/\beta_k` has the mean that the optimality condition (18) of arXiv
2412.18164v4 asks the control to have.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from socft.costates.base import Cost, Costates, CostateStep
from socft.estimators.estimand import Estimand
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import Step, at_step
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class LabelRows(Readable):
    """Labels of some (step, sample) pairs; every tensor has the shape (rows, ...).

    Attributes:
        states: shape (rows, *dims).
        targets: target controls, shape (rows, *noise_dims).
        weights: shape (rows,); one each where left out.
    """

    states: Float[Tensor, "rows *dims"]
    targets: Float[Tensor, "rows *noise_dims"]
    weights: Float[Tensor, " rows"] | None = None

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return dataclasses.replace(self, **_mapped(self, lambda each: each.to(device)))


RowsT = TypeVar("RowsT", bound=LabelRows)


@dataclasses.dataclass(frozen=True)
class Labels(Readable, Generic[RowsT]):
    """Labels of a batch of paths, with the states they belong to; every tensor has the shape (T,
    batch, ...).

    Attributes:
        states: shape (T, batch, *dims).
        targets: target controls, shape (T, batch, *noise_dims).
        weights: weights of the samples, shape (T, batch); one each where left out.
        row_type: what some rows of them are; it has the same fields.
    """

    row_type: ClassVar[type[Any]] = LabelRows

    states: Float[Tensor, "steps batch *dims"]
    targets: Float[Tensor, "steps batch *noise_dims"]
    weights: Float[Tensor, "steps batch"] | None = None

    def rows(self, k: Int[Tensor, " rows"], sample: Int[Tensor, " rows"]) -> RowsT:
        """The labels of some (step, sample) pairs."""
        return self.row_type(**_mapped(self, lambda each: each[k, sample]))

    def step(self, k: int) -> RowsT:
        """The labels of one step, a row per sample."""
        return self.row_type(**_mapped(self, lambda each: each[k]))

    def samples(self, sample: Int[Tensor, " samples"]) -> Self:
        """The labels of some samples at every step."""
        return dataclasses.replace(self, **_mapped(self, lambda each: each[:, sample]))

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return dataclasses.replace(self, **_mapped(self, lambda each: each.to(device)))

    def pairs(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Steps and samples of every label, step by step."""
        steps, batch = self.states.shape[:2]
        return torch.arange(steps).repeat_interleave(batch), torch.arange(batch).repeat(steps)

    def tensors(self) -> dict[str, Tensor]:
        """What is not left out, by name."""
        return _mapped(self, lambda each: each)


def _mapped(labels: Labels[Any] | LabelRows, pick: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What is picked of each tensor, by name."""
    fields = {field.name: getattr(labels, field.name) for field in dataclasses.fields(labels)}
    return {name: pick(each) for name, each in fields.items() if each is not None}


class Estimator(Readable, abc.ABC, Generic[RowsT]):
    """Labels along paths and a pointwise loss whose gradient is the estimate; generic in the rows
    of its labels.

    Attributes:
        estimates: what the gradient of the loss is in expectation, on paths of the policy, with the
            default options; an instance with others has its own.
        source: where the method comes from.
        label_type: what `label` makes.

    >>> isinstance(AdjointMatching(), Estimator), AdjointMatching().estimates
    (True, FixedPointResidual(any_noise=False))
    """

    estimates: ClassVar[Estimand]
    source: ClassVar[str]
    label_type: ClassVar[type[Labels[Any]]] = Labels

    @property
    @abc.abstractmethod
    def cost(self) -> Cost:
        """What making labels costs."""

    @property
    def couples_batch(self) -> bool:
        """Whether the labels of a path depend on the other paths of its batch, or on its place; all
        are then labelled together.
        """
        return False

    @property
    def reads_controls(self) -> bool:
        """Whether the labels of a path depend on its controls; where not, they can be made before
        these are known.
        """
        return True

    def smallest_batch(self, problem: ControlProblem) -> int:
        """The fewest paths, of each group where there are any, of which labels can be made; fewer
        are refused.
        """
        return 1

    @abc.abstractmethod
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[RowsT]:
        """Labels of every (k, sample) of a path, computed without a graph."""

    @abc.abstractmethod
    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: RowsT) -> PerSample:
        """The loss of some rows of labels, differentiable in the policy's parameters; ``k`` is one
        step or one per row.
        """


class MatchingEstimator(Estimator[RowsT]):
    """An estimator whose labels are target controls."""

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, rows: RowsT) -> PerSample:
        squared = (policy(k, rows.states) - rows.targets).flatten(1).square().sum(1)
        loss = at_step(problem.beta, k, squared) * squared / 2
        return loss if rows.weights is None else loss * rows.weights


class BatchEstimator(Estimator[RowsT]):
    """An estimator that holds the paths of a batch against each other: at least two."""

    @property
    def couples_batch(self) -> bool:
        return True

    def smallest_batch(self, problem: ControlProblem) -> int:
        return 2


class CostateEstimator(MatchingEstimator[LabelRows]):
    """A matching estimator whose targets are ``B_k^T a_{k+1} / beta_k`` for samples ``a`` of the
    costate.
    """

    @abc.abstractmethod
    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        """Samples of the costate from k = T down to 0, without a graph; nothing is kept that grows
        with the steps.
        """

    def costates(self, problem: ControlProblem, policy: Policy, path: Path) -> Costates:
        """All samples of the costate."""
        steps = list(self.backward_pass(problem, policy, path))[::-1]
        next_costate = [step.next_costate for step in steps if step.next_costate is not None]
        states, values = ([getattr(step, name) for step in steps] for name in ("state", "value"))
        return Costates(torch.stack(states), torch.stack(values), torch.stack(next_costate))

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[LabelRows]:
        return matching_labels(problem, path, self.backward_pass(problem, policy, path))


def matching_labels(
    problem: ControlProblem,
    path: Path,
    backward_pass: Iterable[CostateStep],
    chosen: Callable[[CostateStep], Tensor | None] = lambda step: step.next_costate,
) -> Labels[LabelRows]:
    """Target controls ``B_k^T a / beta_k`` with a chosen costate of each step; the optimality
    condition asks for ``a_{k+1}``.
    """
    targets, states = torch.empty_like(path.controls), path.states[:-1]
    for step in backward_pass:
        k, costate = step.k, chosen(step)
        if k == problem.steps or costate is None:
            continue
        targets[k] = problem.reference.diffusion.transpose(k, step.state, costate) / problem.beta[
            k
        ].to(costate)
        if step.state.data_ptr() != path.states[k].data_ptr():
            states = (
                torch.empty_like(states) if states.data_ptr() == path.states.data_ptr() else states
            )
            states[k] = step.state
    return Labels(states, targets)
