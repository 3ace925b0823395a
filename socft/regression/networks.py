r"""Networks of the state, and of step and state.

A multilayer perceptron is :math:`W_L s(W_{L-1} \cdots s(W_1 x + b_1) \cdots) + b_L` with s the
SiLU; weights begin as N(0, 1 / inputs), so that sizes are kept from layer to layer, and biases as
zero. A function of step and state sees the state beside Fourier features of time,

.. math:: \phi(k, x) = f(x, \sin(\omega_j k / T), \cos(\omega_j k / T)).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from socft.reference import States, Step

OCTAVES = 8
"""From pi / 2 on, enough to tell a thousand steps apart."""


def octaves(count: int) -> Float[Tensor, " frequencies"]:
    """Frequencies pi / 2, pi, 2 pi, ..., each twice the one before."""
    return torch.pi * 2.0 ** torch.arange(-1, count - 1, dtype=torch.float64)


def harmonics(count: int) -> Float[Tensor, " frequencies"]:
    """Frequencies pi, 2 pi, 3 pi, ..., the multiples of the lowest."""
    return torch.pi * torch.arange(1, count + 1, dtype=torch.float64)


class TimeEmbedding(nn.Module):
    """Sines and cosines of k / T: ``(k, x) -> (batch, 2 frequencies)`` in the dtype of x."""

    def __init__(self, steps: int, frequencies: Float[Tensor, " frequencies"]):
        super().__init__()
        self.steps = steps
        self.register_buffer("frequencies", frequencies)

    @property
    def width(self) -> int:
        """Number of features."""
        return 2 * len(self.get_buffer("frequencies"))

    def forward(self, k: Step, x: States) -> Float[Tensor, "batch width"]:
        index = k.to(x) if isinstance(k, Tensor) else x.new_full((len(x),), k)
        angle = (index / self.steps).unsqueeze(-1) * self.get_buffer("frequencies").to(x)
        return torch.cat([angle.sin(), angle.cos()], -1)


def linear(
    inputs: int, outputs: int, generator: torch.Generator | None, dtype: torch.dtype
) -> nn.Linear:
    """A layer with weights N(0, 1 / inputs) and no bias yet."""
    layer = nn.Linear(inputs, outputs, dtype=dtype)
    nn.init.normal_(layer.weight, std=inputs**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def multilayer_perceptron(
    sizes: Sequence[int],
    generator: torch.Generator | None,
    dtype: torch.dtype,
    zero: bool = False,
) -> nn.Sequential:
    """A multilayer perceptron.

    Args:
        sizes: of the input, the hidden layers and the output.
        zero: whether the last layer begins at zero, and with it the network.
    """
    pairs = list(itertools.pairwise(sizes))
    layers: list[nn.Module] = []
    for inputs, outputs in pairs[: -1 if zero else None]:
        layers += [linear(inputs, outputs, generator, dtype), nn.SiLU()]
    if not zero:
        return nn.Sequential(*layers[:-1])
    last = nn.Linear(*pairs[-1], dtype=dtype)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class ResidualBlock(nn.Module):
    r"""A perceptron beside the identity, :math:`h + W' s(W s(h))`."""

    def __init__(self, width: int, generator: torch.Generator | None, dtype: torch.dtype):
        super().__init__()
        self.branch = nn.Sequential(
            nn.SiLU(), *multilayer_perceptron([width] * 3, generator, dtype)
        )

    def forward(self, h: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return h + self.branch(h)


def residual_network(
    inputs: int,
    outputs: int,
    width: int,
    blocks: int,
    generator: torch.Generator | None,
    dtype: torch.dtype,
) -> nn.Sequential:
    """A linear layer, residual blocks and the SiLU of a linear layer."""
    return nn.Sequential(
        linear(inputs, width, generator, dtype),
        *(ResidualBlock(width, generator, dtype) for _ in range(blocks)),
        nn.SiLU(),
        linear(width, outputs, generator, dtype),
    )


class SpaceTimeNetwork(nn.Module):
    """``(k, x) -> f(x, time(k))``, k one step or one per sample.

    Args:
        time: the features of the step.
        network: f, of ``n + time.width`` inputs.
    """

    def __init__(self, time: TimeEmbedding, network: nn.Module):
        super().__init__()
        self.time, self.network = time, network

    def forward(self, k: Step, x: States) -> Tensor:
        return self.network(torch.cat([x, self.time(k, x)], 1))
