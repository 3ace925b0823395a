"""What the calls of one network share while the paths of a round are drawn, labelled and used.

A gradient step asks three things of a network: the frozen output at states of the paths, the
fine-tuned one at the same states, and derivatives of either. The frozen output at a state is always
the same and is evaluated once; an estimator that does not read the controls evaluates it anyway for
its labels, so that drawing needs the fine-tuned network only; and where nothing is learnt, that one
costs no more than the frozen one, with its layers merged into the weights.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from sd_experiments.model.frozen_output import FrozenEvaluation
from sd_experiments.model.policy import LoRAPolicy, TunedPath, sample_tuned
from socft.path import Noise, Path
from socft.reference import States


class Sharing(abc.ABC):
    """What a task's calls share."""

    @abc.abstractmethod
    def merging(self) -> AbstractContextManager[None]:
        """Entered while nothing is learnt."""

    @abc.abstractmethod
    def labelling(self) -> AbstractContextManager[None]:
        """Entered while labels are made."""

    @abc.abstractmethod
    def recording(self) -> AbstractContextManager[Mapping[int, FrozenEvaluation]]:
        """A table that is filled with the frozen outputs of a path."""

    @abc.abstractmethod
    def recalling(self, known: Sequence[FrozenEvaluation]) -> AbstractContextManager[None]:
        """Entered while the network is asked about states at which its frozen output is known."""

    @abc.abstractmethod
    def sample_tuned(self, noise: Noise) -> TunedPath | None:
        """A path whose controls are left for later; None where there are no such."""


class NoSharing(Sharing):
    """For a policy that is no network: every call is on its own."""

    def merging(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def labelling(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def recording(self) -> AbstractContextManager[Mapping[int, FrozenEvaluation]]:
        return contextlib.nullcontext({})

    def recalling(self, known: Sequence[FrozenEvaluation]) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def sample_tuned(self, noise: Noise) -> TunedPath | None:
        return None


class NetworkSharing(Sharing):
    """For low-rank layers on a network.

    Args:
        policy: what is trained.
        keep_frozen: whether frozen outputs are kept.
        merge_layers: whether layers are merged.
    """

    def __init__(
        self, policy: LoRAPolicy[Any], keep_frozen: bool = True, merge_layers: bool = True
    ):
        self.policy = policy
        self.keep_frozen = keep_frozen
        self.merge_layers = merge_layers

    def merging(self) -> AbstractContextManager[None]:
        denoiser = self.policy.reference.base.denoiser
        return denoiser.merging() if self.merge_layers else contextlib.nullcontext()

    def labelling(self) -> AbstractContextManager[None]:
        return self.policy.reference.output.sharing_graphs()

    def recording(self) -> AbstractContextManager[Mapping[int, FrozenEvaluation]]:
        output = self.policy.reference.output
        return output.recording() if self.keep_frozen else contextlib.nullcontext({})

    def recalling(self, known: Sequence[FrozenEvaluation]) -> AbstractContextManager[None]:
        return self.policy.reference.output.recalling(known)

    def sample_tuned(self, noise: Noise) -> TunedPath | None:
        return sample_tuned(self.policy, noise) if self.keep_frozen else None


def frozen_along(path: Path, recorded: Mapping[int, FrozenEvaluation]) -> States | None:
    """The frozen outputs at the states of a path, shape (T, batch, *dims); None where some were
    not recorded.
    """
    states = path.states[:-1]
    found = [recorded.get(k) for k in range(len(states))]
    known = [each.output for k, each in enumerate(found) if each and each.answers(k, states[k])]
    return torch.stack(known) if len(known) == len(states) else None
