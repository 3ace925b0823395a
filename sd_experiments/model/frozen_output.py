"""The frozen network's output, evaluated once at every state however often it is asked for.

While a round's paths are drawn, labelled and used, the frozen network is asked about the same
states again and again: by the kernel and the policy of a step, by the labels, by the importance
weights of every pass, and by the loss of every gradient step. Its answer does not change, since its
weights do not.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from sd_experiments.model.transforms import is_forward_mode, is_transforming
from socft.reference import States, Step


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEvaluation:
    """An answer of the frozen network.

    Attributes:
        k: the step, or one per row.
        x: the states, shape (batch, *dims).
        output: at them, without a graph.
    """

    k: Step
    x: States
    output: States

    def answers(self, k: Step, x: States) -> bool:
        """Whether it is the answer at ``(k, x)``."""
        if isinstance(self.k, Tensor) or isinstance(k, Tensor):
            steps = isinstance(self.k, Tensor) and isinstance(k, Tensor) and torch.equal(self.k, k)
        else:
            steps = self.k == k
        return steps and self.x.dtype == x.dtype and torch.equal(self.x, x)


class FrozenOutput:
    """The frozen network's output, kept until it is asked for elsewhere: a step of a rollout asks
    twice, in the policy and in the kernel.

    Args:
        predict: (k, x) -> the output.
    """

    def __init__(self, predict: Callable[[Step, States], States]):
        self._predict = predict
        self._kept: _Kept | None = None
        self._sharing = False
        self._known: Sequence[FrozenEvaluation] = ()
        self._recorded: dict[int, FrozenEvaluation] | None = None

    def __call__(self, k: Step, x: States) -> States:
        if not self._may_keep(x):
            return self._predict(k, x)
        known = None if _records(x) else self._answer(k, x)
        if known is not None:
            return known.output
        if not isinstance(k, int):
            return self._predict(k, x)
        if self._kept is None or not self._kept.matches(k, x):
            self._kept = None
            self._kept = _Kept.of(k, x, self._predict(k, x))
            self._record(self._kept)
        return self._kept.output

    @contextlib.contextmanager
    def sharing_graphs(self) -> Iterator[None]:
        """Let evaluations at the very same state tensor share one graph, as they share values
        without a graph anyway.

        For code that goes backward once after all its evaluations, such as the adjoint recursions:
        a full adjoint then evaluates the frozen network once per step in place of twice.
        """
        before, self._sharing = self._sharing, True
        try:
            yield
        finally:
            self._sharing, self._kept = before, None

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[int, FrozenEvaluation]]:
        """Fill a table with the first answer of every step, which is not asked for again where no
        graph is needed.
        """
        before, self._recorded = self._recorded, {}
        try:
            yield self._recorded
        finally:
            self._recorded = before

    @contextlib.contextmanager
    def recalling(self, known: Sequence[FrozenEvaluation]) -> Iterator[None]:
        """Answer from what is known where no graph is needed, and elsewhere as always."""
        before, self._known = self._known, known
        try:
            yield
        finally:
            self._known = before

    def _answer(self, k: Step, x: States) -> FrozenEvaluation | None:
        recorded = self._recorded.get(k) if self._recorded and isinstance(k, int) else None
        candidates = self._known if recorded is None else (recorded, *self._known)
        return next((each for each in candidates if each.answers(k, x)), None)

    def _record(self, kept: _Kept) -> None:
        if self._recorded is not None and kept.k not in self._recorded:
            self._recorded[kept.k] = FrozenEvaluation(kept.k, kept.value, kept.output.detach())

    def _may_keep(self, x: Tensor) -> bool:
        return (
            (self._sharing or not _records(x))
            and not (is_transforming() or is_forward_mode())
            and not torch.is_inference_mode_enabled()
        )


def _records(x: Tensor) -> bool:
    """Whether a graph of what is done to ``x`` is being recorded."""
    return torch.is_grad_enabled() and x.requires_grad


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """The last evaluation."""

    k: int
    x: Tensor
    value: Tensor
    output: Tensor

    @classmethod
    def of(cls, k: int, x: Tensor, output: Tensor) -> _Kept:
        return cls(k, x, x.detach().clone(), output)

    def matches(self, k: int, x: Tensor) -> bool:
        """Whether this is the output at ``(k, x)``: the same tensor, not changed since, with a
        graph if one is being recorded.
        """
        return (
            self.k == k
            and self.x is x
            and self.output.requires_grad == _records(x)
            and torch.equal(self.value, x)
        )
