"""What the chains of all latent models share: a frozen and a fine-tuned output of one network."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sd_experiments.model.denoiser import Condition
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.transforms import is_forward_mode, is_transforming
from socft.reference import DenoisingReference, Noises, Reference, States, Step

Model = TypeVar("Model", bound=LatentModel)


class LatentReference(DenoisingReference, Generic[Model]):
    """One prompt's chain on the latents of a model.

    Attributes:
        base: the frozen parts, shared between references.
        prompt: what the image should show.
        negative_prompt: what guidance leads away from.
        condition: both, encoded, and the guidance scale.
        output: the frozen network's output (k, x) -> score or velocity.
    """

    base: Model
    prompt: str
    negative_prompt: str
    condition: Condition
    output: FrozenOutput

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return self.condition.guidance

    def sharing_graphs(self) -> contextlib.AbstractContextManager[None]:
        """See `FrozenOutput.sharing_graphs`."""
        return self.output.sharing_graphs()

    def tuned_output(self, k: Step, x: States, guided: bool = True) -> States:
        """The output with the low-rank layers, with this reference's guidance or with none."""
        plain = dataclasses.replace(self.condition, guidance=1.0)
        return self.predict(k, x, True, self.condition if guided else plain)

    @abc.abstractmethod
    def predict(self, k: Step, x: States, adapted: bool, condition: Condition) -> States:
        """The network's output, with the low-rank layers or without."""

    @abc.abstractmethod
    def control_of(self, k: Step, x: States, output: States, /) -> Noises:
        """The whitened control of a fine-tuned output."""

    @abc.abstractmethod
    def fine_tuned(self, guided: bool) -> Reference:
        """The fine-tuned chain on its own, with mean ``m^theta``: one evaluation per step where a
        policy takes two.
        """


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

    def __call__(self, k: Step, x: States) -> States:
        if not self._may_keep(k, x):
            return self._predict(k, x)
        if self._kept is None or not self._kept.matches(k, x):
            self._kept = None
            self._kept = _Kept.of(k, x, self._predict(k, x))
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

    def _may_keep(self, k: Step, x: Tensor) -> bool:
        recorded = torch.is_grad_enabled() and x.requires_grad
        return (
            isinstance(k, int)
            and (self._sharing or not recorded)
            and not (is_transforming() or is_forward_mode())
            and not torch.is_inference_mode_enabled()
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """The last evaluation."""

    k: int
    x: Tensor
    value: Tensor
    output: Tensor

    @classmethod
    def of(cls, k: Step, x: Tensor, output: Tensor) -> _Kept:
        assert isinstance(k, int)
        return cls(k, x, x.detach().clone(), output)

    def matches(self, k: Step, x: Tensor) -> bool:
        """Whether this is the output at ``(k, x)``: the same tensor, not changed since, with a
        graph if one is being recorded.
        """
        recorded = torch.is_grad_enabled() and x.requires_grad
        return (
            self.k == k
            and self.x is x
            and self.output.requires_grad == recorded
            and torch.equal(self.value, x)
        )
