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


def falling(count: int) -> Float[Tensor, " frequencies"]:
    """Frequencies from 1 down to nearly a ten-thousandth, in a geometric sequence."""
    return 10_000.0 ** -(torch.arange(count, dtype=torch.float64) / count)


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


def uniform_linear(
    inputs: int, outputs: int, generator: torch.Generator | None, dtype: torch.dtype
) -> nn.Linear:
    """A layer whose weights and biases begin uniform up to the root of 1 / inputs, as torch begins
    them, from a generator.
    """
    layer = nn.Linear(inputs, outputs, dtype=dtype)
    for each in (layer.weight, layer.bias):
        nn.init.uniform_(each, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


class ResidualBlock(nn.Module):
    r"""Two layers beside the identity, :math:`s(h + W' s(W h))`."""

    def __init__(self, width: int, generator: torch.Generator | None, dtype: torch.dtype):
        super().__init__()
        self.first = uniform_linear(width, width, generator, dtype)
        self.second = uniform_linear(width, width, generator, dtype)

    def forward(self, h: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        silu = nn.functional.silu
        return silu(h + self.second(silu(self.first(h))))


class ResidualSpaceTimeNetwork(nn.Module):
    r"""``(k, x) -> f(x, t_k)``, k one step or one per sample, as in arXiv 2603.20455v2:

    .. math:: h_0 = s(W [x, e(t)]), \quad h_{i+1} = s(h_i + W_i' s(W_i h_i)), \quad f = W_{out} h_L,

    with s the SiLU and e a perceptron of sines and cosines of t. States of another dtype are
    rounded to that of the weights, and the result has theirs.

    Args:
        steps: T.
        horizon: the time of step T, in the units of t.
        inputs: entries of a state.
        outputs: entries of the result.
        width: of the layers of the trunk.
        blocks: number of residual blocks.
        generator: of the weights.
        dtype: of the weights.
    """

    FREQUENCIES, EMBEDDED = 16, 128

    def __init__(
        self,
        steps: int,
        horizon: float,
        inputs: int,
        outputs: int,
        width: int,
        blocks: int,
        generator: torch.Generator | None,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.steps, self.inputs, embedded = steps, inputs, self.EMBEDDED
        self.sines = TimeEmbedding(steps, horizon * falling(self.FREQUENCIES))
        self.time = nn.Sequential(
            uniform_linear(self.sines.width, embedded, generator, dtype),
            nn.SiLU(),
            uniform_linear(embedded, embedded, generator, dtype),
        )
        self.entry = uniform_linear(inputs + embedded, width, generator, dtype)
        self.trunk = nn.Sequential(
            nn.SiLU(),
            *(ResidualBlock(width, generator, dtype) for _ in range(blocks)),
            uniform_linear(width, outputs, generator, dtype),
        )

    def forward(self, k: Step, x: States) -> Tensor:
        z = x.to(self.entry.weight)
        return self._joined(z, self._embedded(k, z if isinstance(k, Tensor) else z[:1])).to(x)

    def on_grid(
        self, states: Float[Tensor, "steps_plus_1 batch n"]
    ) -> Float[Tensor, "steps_plus_1 batch m"]:
        """At states of all steps, 0..T; each time is embedded once."""
        k = torch.arange(self.steps + 1)
        return self._joined(states, self._embedded(k, states[:, 0]).unsqueeze(1))

    def _embedded(self, k: Step, like: States) -> Float[Tensor, "rows width"]:
        entry = self.entry
        found = self.time(self.sines(k, like))
        return nn.functional.linear(found, entry.weight[:, self.inputs :], entry.bias)

    def _joined(self, x: Tensor, time: Tensor) -> Tensor:
        return self.trunk(nn.functional.linear(x, self.entry.weight[:, : self.inputs]) + time)


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
