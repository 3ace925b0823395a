r"""One network over time and state for a costate field, as in arXiv 2603.20455v2: residual blocks
with Fourier time features.

.. math:: h_0 = W_{in} [x, \sin(2\pi f_j t), \cos(2\pi f_j t)], \quad h_{i+1} = h_i + W_i' s(W_i
   s(h_i)), \quad \phi(t, x) = W_{out} s(h_L),

with s the SiLU, t = k / T and frequencies :math:`f_j = j/2`, j = 1..F. The network sees raw states
and gives raw costates.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from socft.checks import (
    at_least_zero,
    keep,
    positive,
    require_callable,
    require_finite,
    whole,
    within,
)
from socft.costates.base import Costates
from socft.costates.regression import FieldRegression, StepField
from socft.regression.gradient_descent import minimise
from socft.regression.networks import (
    SpaceTimeNetwork,
    TimeEmbedding,
    harmonics,
    residual_network,
)

Loss = Callable[[Tensor, Tensor], Tensor]

squared: Loss = nn.functional.mse_loss
published_huber: Loss = partial(nn.functional.huber_loss, delta=0.1)
"""The loss of the published code: linear beyond 0.1, so its target lies between a mean and a
median.
"""


@dataclasses.dataclass(frozen=True)
class SpaceTimeRegression(FieldRegression):
    """Fit of one network by AdamW with a stepwise decayed rate, on minibatches of (step, sample)
    pairs.

    Attributes:
        width: width of the residual blocks.
        blocks: number of residual blocks.
        frequencies: number of Fourier time features.
        steps: gradient steps of one fit.
        batch: pairs per gradient step.
        rate: initial learning rate.
        weight_decay: of AdamW.
        decay_every: gradient steps between decays of the rate.
        decay: factor of each.
        loss: `squared`, whose minimiser is the conditional mean, or `published_huber`.
        seed: seed of the initialisation and of the minibatches.
    """

    width: int = 32
    blocks: int = 2
    frequencies: int = 4
    steps: int = 2000
    batch: int = 64
    rate: float = 1e-3
    weight_decay: float = 1e-4
    decay_every: int = 1000
    decay: float = 0.9
    loss: Loss = squared
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("width", "frequencies", "steps", "batch", "decay_every")
        keep(
            self,
            **{name: whole(getattr(self, name), name) for name in counts},
            blocks=whole(self.blocks, "blocks", 0),
            rate=positive(self.rate, "rate"),
            weight_decay=at_least_zero(self.weight_decay, "weight_decay"),
            decay=within(self.decay, "decay", 0, 1),
            seed=whole(self.seed, "seed", 0),
        )
        require_callable(self.loss, "the loss", "of predictions and targets")

    def fit(self, samples: Costates, start: StepField | None = None) -> SpaceTimeNetwork:
        require_finite(
            samples.values,
            "costate",
            "the samples left the region where the field is accurate; add paths.",
        )
        kinds, count, _ = samples.states.shape
        generator = torch.Generator().manual_seed(self.seed)
        network = (
            copy.deepcopy(start)
            if isinstance(start, SpaceTimeNetwork)
            else self._network(samples, generator)
        )

        def loss() -> Tensor:
            k = torch.randint(kinds, (self.batch,), generator=generator)
            row = torch.randint(count, (self.batch,), generator=generator)
            return self.loss(network(k, samples.states[k, row]), samples.values[k, row])

        optimiser = torch.optim.AdamW(
            network.requires_grad_(True).parameters(), lr=self.rate, weight_decay=self.weight_decay
        )
        minimise(loss, optimiser, self.steps, StepLR(optimiser, self.decay_every, self.decay))
        return network.requires_grad_(False)

    def _network(self, samples: Costates, generator: torch.Generator) -> SpaceTimeNetwork:
        steps, n, out = len(samples.states) - 1, samples.states.shape[2], samples.values.shape[2]
        time, dtype = TimeEmbedding(steps, harmonics(self.frequencies)), samples.states.dtype
        inputs = n + time.width
        network = residual_network(inputs, out, self.width, self.blocks, generator, dtype)
        return SpaceTimeNetwork(time, network)
