r"""One network over time and state for a costate field, as in arXiv 2603.20455v2
(`socft.regression.networks.ResidualSpaceTimeNetwork`).

A gradient step takes some of the paths at all of their times, so that a path gives T + 1 pairs of
state and costate. A fit that begins from an earlier one goes on with its network, its optimiser and
its place in the decay of the rate.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from socft.checks import (
    at_least_zero,
    keep,
    positive,
    require_callable,
    require_finite,
    require_kinds,
    whole,
    within,
)
from socft.costates.base import Costates
from socft.costates.regression import FieldRegression, StepField
from socft.readable import Readable
from socft.reference import States, Step
from socft.regression.gradient_descent import minimise
from socft.regression.networks import ResidualSpaceTimeNetwork

Loss = Callable[[Tensor, Tensor], Tensor]

squared: Loss = nn.functional.mse_loss
published_huber: Loss = partial(nn.functional.smooth_l1_loss, beta=0.1)
"""The loss of the published code: linear beyond 0.1, so its target lies between a mean and a
median.
"""


@dataclasses.dataclass(frozen=True)
class TrainedField:
    """A network as a field, and what training it further needs.

    Attributes:
        network: the network, which does not change.
        taken: gradient steps so far.
        moments: of the optimiser.
    """

    network: ResidualSpaceTimeNetwork
    taken: int = 0
    moments: dict[int, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(self, k: Step, x: States) -> Tensor:
        return self.network(k, x)


@dataclasses.dataclass(frozen=True)
class NetworkTraining(Readable):
    """A network and its training by AdamW, with a rate that decays by steps.

    Attributes:
        width: width of the residual blocks.
        blocks: number of residual blocks.
        horizon: the time of the last step, which the network sees.
        steps: gradient steps of one fit.
        batch: paths per gradient step; all of them where there are fewer.
        rate: initial learning rate.
        weight_decay: of AdamW.
        decay_every: gradient steps between decays of the rate.
        decay: factor of each.
        seed: of the initialisation and of the minibatches.
        dtype: of the weights.
    """

    width: int = 32
    blocks: int = 2
    horizon: float = 1.0
    steps: int = 2000
    batch: int = 64
    rate: float = 1e-3
    weight_decay: float = 1e-4
    decay_every: int = 1000
    decay: float = 0.9
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        require_kinds(self, dtype=torch.dtype)
        counts = ("width", "steps", "batch", "decay_every")
        keep(
            self,
            **{name: whole(getattr(self, name), name) for name in counts},
            blocks=whole(self.blocks, "blocks", 0),
            horizon=positive(self.horizon, "horizon"),
            rate=positive(self.rate, "rate"),
            weight_decay=at_least_zero(self.weight_decay, "weight_decay"),
            decay=within(self.decay, "decay", 0, 1),
            seed=whole(self.seed, "seed", 0),
        )

    def start(self, steps: int, inputs: int, outputs: int) -> TrainedField:
        """A network that is not trained yet, of a chain of so many steps."""
        generator = torch.Generator().manual_seed(self.seed)
        return TrainedField(
            ResidualSpaceTimeNetwork(
                steps,
                self.horizon,
                inputs,
                outputs,
                self.width,
                self.blocks,
                generator,
                self.dtype,
            ).requires_grad_(False)
        )

    def go_on(
        self,
        start: TrainedField,
        loss: Callable[[ResidualSpaceTimeNetwork, torch.Generator], Tensor],
    ) -> TrainedField:
        """`steps` gradient steps more, on samples of a loss; the start is not changed."""
        network = copy.deepcopy(start.network).requires_grad_(True)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=self.rate, weight_decay=self.weight_decay, fused=True
        )
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": copy.deepcopy(start.moments), "param_groups": groups})
        generator = torch.Generator().manual_seed(self.seed + start.taken)
        schedule = LambdaLR(
            optimiser, lambda step: self.decay ** ((start.taken + step) // self.decay_every)
        )
        minimise(lambda: loss(network, generator), optimiser, self.steps, schedule)
        return TrainedField(
            network.requires_grad_(False),
            start.taken + self.steps,
            optimiser.state_dict()["state"],
        )

    def paths(self, count: int, generator: torch.Generator) -> Tensor:
        """The paths of a gradient step, of so many."""
        return torch.randint(count, (min(self.batch, count),), generator=generator)


@dataclasses.dataclass(frozen=True)
class SpaceTimeRegression(FieldRegression):
    """Fit of one network to the costates of paths.

    Attributes:
        training: the network and its training.
        loss: `squared`, whose minimiser is the conditional mean, or `published_huber`.
    """

    training: NetworkTraining = dataclasses.field(default_factory=NetworkTraining)
    loss: Loss = squared

    def __post_init__(self) -> None:
        require_kinds(self, training=NetworkTraining)
        require_callable(self.loss, "the loss", "of predictions and targets")

    def fit(self, samples: Costates, start: StepField | None = None) -> TrainedField:
        require_finite(
            samples.values,
            "costate",
            "the samples left the region where the field is accurate; add paths.",
        )
        kinds, count, n = samples.states.shape
        earlier = (
            start
            if isinstance(start, TrainedField)
            else self.training.start(kinds - 1, n, samples.values.shape[2])
        )
        states, values = (each.to(self.training.dtype) for each in (samples.states, samples.values))

        def loss(network: ResidualSpaceTimeNetwork, generator: torch.Generator) -> Tensor:
            rows = self.training.paths(count, generator)
            return self.loss(network.on_grid(states[:, rows]), values[:, rows])

        return self.training.go_on(earlier, loss)
