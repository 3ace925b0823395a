r"""The score of the marginal laws by one network over time and state, as in arXiv 2603.20455v2.

Implicit score matching (Hyvarinen 2005) minimises :math:`E[|s|^2/2 + \nabla \cdot s]` over
:math:`s(t, x)`, whose minimiser is :math:`\nabla \log p_t`; it needs no density, and holds where
the noise is degenerate.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from socft.checks import keep, require_kinds, whole
from socft.costates.marginal_score import MarginalScore, NoiseScore
from socft.costates.network import NetworkTraining, TrainedField
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Noises, States
from socft.regression.networks import ResidualSpaceTimeNetwork


@dataclasses.dataclass(frozen=True)
class NetworkScore(MarginalScore):
    """Implicit score matching by a network.

    Attributes:
        training: the network and its training.
        times: of a path, in one gradient step; all of them where there are fewer.

    >>> from socft.costates.network import NetworkTraining
    >>> from socft.costates.network_score import NetworkScore
    >>> NetworkScore(NetworkTraining(width=64, blocks=3, steps=10_000)).times
    16
    """

    training: NetworkTraining = dataclasses.field(default_factory=NetworkTraining)
    times: int = 16
    couples_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_kinds(self, training=NetworkTraining)
        keep(self, times=whole(self.times, "times"))

    def smallest_batch(self, problem: ControlProblem) -> int:
        return 2

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        score = self.train(path)

        def along_noise(k: int, x: States) -> Noises:
            return problem.reference.diffusion.transpose(k, x, score(k + 1, x))

        return along_noise

    def train(self, path: Path) -> TrainedField:
        """The score in all directions, ``(k, x) -> grad log p_k(x)``."""
        kinds, count, n = path.states.shape
        states = path.states.to(self.training.dtype)

        def loss(network: ResidualSpaceTimeNetwork, generator: torch.Generator) -> Tensor:
            rows = self.training.paths(count, generator)
            times = torch.randperm(kinds, generator=generator)[: self.times]
            x = states[times][:, rows].flatten(0, 1).requires_grad_(True)
            score = network(times.repeat_interleave(len(rows)), x)
            slopes = (
                torch.autograd.grad(score[:, i].sum(), x, create_graph=True)[0][:, i]
                for i in range(n)
            )
            return (score.square().sum(1) / 2 + sum(slopes)).mean()

        return self.training.go_on(self.training.start(kinds - 1, n, n), loss)
