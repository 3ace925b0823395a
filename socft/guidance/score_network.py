r"""A small network that learns a score from samples: noise prediction, trained by denoising score
matching.

The network predicts :math:`\hat\epsilon = \sqrt h\,x + \alpha F(x, t)`, so that F = 0 is the exact
prediction for data N(0, I), and

.. math:: s(x) = -\hat\epsilon / \sqrt h, \qquad \min_F E\,|\hat\epsilon(\alpha x_0 + \sqrt
    h\,\epsilon) - \epsilon|^2

over random steps (Ho et al. 2020, equation 14).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from socft.checks import require
from socft.guidance.denoiser import Denoiser, ScoreDenoiser
from socft.guidance.iterated import ScoreFineTuning
from socft.reference import States, Step, level_at
from socft.regression.gradient_descent import minimise
from socft.regression.networks import (
    OCTAVES,
    SpaceTimeNetwork,
    TimeEmbedding,
    multilayer_perceptron,
    octaves,
)


class ScoreNetwork(nn.Module):
    """A multilayer perceptron of (x, time) with the score ``(k, x) -> s_k(x)``; computes in
    ``dtype`` whatever comes in.

    Args:
        abar: signal levels of the steps, below 1, shape (T,).
        dim: length n of the states.
        width: hidden units per layer.
        depth: hidden layers.
    """

    def __init__(
        self,
        abar: Float[Tensor, " steps"],
        dim: int,
        width: int = 256,
        depth: int = 2,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        require(
            float(abar.max()) < 1,
            f"a level is {float(abar.max()):g}; leave out level 1, where there is no noise to"
            " predict.",
        )
        self.abar, self.dim, self.dtype = abar.double(), dim, dtype
        time = TimeEmbedding(len(abar), octaves(OCTAVES))
        sizes = [dim + time.width, *[width] * depth, dim]
        self.network = SpaceTimeNetwork(
            time, multilayer_perceptron(sizes, generator, dtype, zero=True)
        )

    def noise(self, k: Step, x: States) -> States:
        """The predicted noise, in the dtype of ``x``."""
        (level, noise), found = level_at(self.abar, k, x), self.network(k, x.to(self.dtype)).to(x)
        return noise.sqrt() * x + level.sqrt() * found

    def forward(self, k: Step, x: States) -> States:
        """The score."""
        return -self.noise(k, x) / level_at(self.abar, k, x)[1].sqrt()

    def loss(self, samples: States, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise at random steps."""
        k = torch.randint(len(self.abar), (len(samples),), generator=generator)
        eps = torch.randn(samples.shape, generator=generator, dtype=samples.dtype)
        level, noise = level_at(self.abar, k, samples)
        noisy = level.sqrt() * samples + noise.sqrt() * eps
        return (self.noise(k, noisy) - eps).square().mean()


def train_score(
    network: ScoreNetwork,
    draw: Callable[[int], States],
    generator: torch.Generator,
    steps: int = 3000,
    batch: int = 512,
    rate: float = 2e-3,
) -> list[float]:
    """Train in place by Adam with a cosine schedule on ``draw(batch)`` at every step; returns the
    losses.
    """
    optimiser = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = CosineAnnealingLR(optimiser, steps)
    return minimise(lambda: network.loss(draw(batch), generator), optimiser, steps, schedule)


class FineTuneNetwork(ScoreFineTuning):
    """Algorithm 2's score matching on the new samples: Adam steps on a network, in place; the
    pre-trained one must be a copy.

    Args:
        network: the network that the score model in use evaluates.
        rate: learning rate.
        steps: gradient steps per round.
    """

    def __init__(self, network: ScoreNetwork, rate: float, steps: int = 1):
        self.network, self.steps = network, steps
        self.optimiser = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99))

    def update(self, denoiser: Denoiser, samples: States, generator: torch.Generator) -> Denoiser:
        minimise(lambda: self.network.loss(samples, generator), self.optimiser, self.steps)
        return ScoreDenoiser(self.network, self.network.abar)
