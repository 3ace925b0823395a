"""What the chains of all latent models share: a frozen and a fine-tuned output of one network."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Generic, TypeVar

from sd_experiments.model.denoiser import Condition
from sd_experiments.model.frozen_output import FrozenOutput
from sd_experiments.model.latent_model import LatentModel
from socft.flow import FlowReference
from socft.reference import DenoisingReference, Noises, Reference, States, Step

Model = TypeVar("Model", bound=LatentModel)


class LatentReference(DenoisingReference, Generic[Model]):
    """One prompt's chain on the latents of a model.

    Attributes:
        base: the frozen parts, shared between references.
        prompt: what the image should show.
        negative_prompt: what guidance leads away from.
        condition: both, encoded, and the guidance scale.
    """

    base: Model
    prompt: str
    negative_prompt: str
    condition: Condition

    @functools.cached_property
    def output(self) -> FrozenOutput:
        """The frozen network's output, (k, x) -> score or velocity."""
        return FrozenOutput(lambda k, x: self.predict(k, x, False, self.condition))

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return self.condition.guidance

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
    def chain_of(self, output: Callable[[Step, States], States], /) -> Reference:
        """The chain of another output on its own, such as a fine-tuned one: its mean takes one
        evaluation per step where a policy takes two.
        """


class FineTunedFlow(FlowReference):
    """The flow of another output than its model's; a class of its own, whose velocity is not tried
    at evaluations of their own every time.
    """
