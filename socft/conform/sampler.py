"""The parts of a foreign sampler, and models for it whose answers are exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from socft.checks import InvalidProblem, Numbers, numbers, require, require_finite
from socft.readable import Readable

Mean: TypeAlias = "Callable[[int, Tensor, Tensor], Tensor]"
PartT = TypeVar("PartT")
LogProb: TypeAlias = "Callable[[int, Tensor, Tensor, Tensor], Tensor]"

PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "velocity": lambda a, s, endpoint, noise: noise - endpoint,
    "epsilon": lambda a, s, endpoint, noise: noise,
    "sample": lambda a, s, endpoint, noise: endpoint,
    "v_prediction": lambda a, s, endpoint, noise: a * noise - s * endpoint,
}
"""What a model may predict, by the names of diffusers, from the endpoint and the noise."""
PARTS = (
    "step",
    "mean",
    "std",
    "log_prob",
    "kl",
    "ratio",
    "endpoint",
    "score",
    "control",
    "advantages",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler(Readable):
    """The parts of a sampler along levels ``x = signal x_0 + noise eps``, from noise to data.

    Every function takes the step's number first and states of shape (batch, *dims); ``output`` is
    what the model predicts for them, of the same shape. Give what there is; identities of parts
    that are missing are not run.

    Attributes:
        signal: a at every level, shape (T + 1,).
        noise: s at every level, shape (T + 1,).
        prediction: what the model predicts, a name in `PREDICTIONS`.
        step: ``(k, x, output, generator) -> next states``.
        mean: ``(k, x, output) -> mean of the next states``.
        std: ``(k, x, output) -> its standard deviation``, to broadcast against x.
        log_prob: ``(k, x, next states, output) -> log density``, shape (batch,).
        kl: ``(k, x, output, output of the reference) -> KL divergence`` of the two steps, (batch,).
        ratio: ``(k, x, next states, output, old output) -> likelihood ratio``, shape (batch,).
        endpoint: ``(k, x, output) -> prediction of x_0``.
        score: ``(k, x, output) -> score of the noised data``.
        control: ``(k, x, output, output of the reference) -> whitened control``, the shift of the
            mean over the standard deviation.
        noise_level: eta of ``sigma^2 = eta^2 s/a`` of rectified flow, the square root of 2 for
            memoryless noise.
        advantages: ``rewards of a group -> their advantages``.
        training_noise: s at every level as the trainer has it, where that is computed apart.
        precision: in which the sampler computes, whatever it returns.
        refined: ``steps -> the same sampler with that many steps``, for what must vanish with the
            step.

    Raises:
        InvalidProblem: levels of unequal or wrong shape, an unknown prediction, or no part at all.

    >>> from socft.conform import Sampler
    >>> s = torch.tensor([1.0, 0.5, 0.1])
    >>> Sampler(1 - s, s, std=lambda k, x, output: x.new_tensor(0.3)).steps
    2
    """

    signal: Tensor
    noise: Tensor
    prediction: str = "velocity"
    step: Callable[[int, Tensor, Tensor, torch.Generator], Tensor] | None = None
    mean: Mean | None = None
    std: Mean | None = None
    log_prob: LogProb | None = None
    kl: LogProb | None = None
    ratio: Callable[[int, Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    endpoint: Mean | None = None
    score: Mean | None = None
    control: LogProb | None = None
    noise_level: float | None = None
    advantages: Callable[[Tensor], Tensor] | None = None
    training_noise: Tensor | None = None
    precision: torch.dtype = torch.float64
    refined: Callable[[int], Sampler] | None = None

    def __post_init__(self) -> None:
        for name in ("signal", "noise"):
            object.__setattr__(self, name, numbers(getattr(self, name), name))
            require_finite(getattr(self, name), name, "every level must be a finite number.")
        shape = tuple(self.signal.shape)
        require(
            len(shape) == 1 and shape[0] >= 2 and self.noise.shape == shape,
            f"signal has shape {shape} and noise {tuple(self.noise.shape)}; give both (steps + 1,),"
            " from noise to data.",
        )
        require(
            self.prediction in PREDICTIONS,
            f"prediction = {self.prediction!r}; it is one of {', '.join(PREDICTIONS)}.",
        )
        require(
            self.precision in (torch.float64, torch.float32, torch.bfloat16, torch.float16),
            f"precision = {self.precision}; give a floating dtype of torch.",
        )
        require(
            any(getattr(self, part) is not None for part in PARTS),
            f"the sampler has no part; give at least one of {', '.join(PARTS)}.",
        )
        require(
            self.noise_level is None or self.noise_level > 0,
            f"noise_level = {self.noise_level}; give a positive number, such as 0.7.",
        )

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.signal) - 1

    def step_at(self, k: int, x: Tensor, output: Tensor, generator: torch.Generator) -> Tensor:
        """The next states."""
        return _there(self.step)(k, x, output, generator)

    def mean_at(self, k: int, x: Tensor, output: Tensor) -> Tensor:
        """Their mean."""
        return _there(self.mean)(k, x, output)

    def std_at(self, k: int, x: Tensor, output: Tensor) -> Tensor:
        """Their standard deviation, detached, in float64."""
        return torch.as_tensor(_there(self.std)(k, x, output)).detach().double()

    def log_prob_at(self, k: int, x: Tensor, there: Tensor, output: Tensor) -> Tensor:
        """The log density of next states."""
        return _there(self.log_prob)(k, x, there, output)

    def kl_at(self, k: int, x: Tensor, output: Tensor, reference: Tensor) -> Tensor:
        """The divergence of two steps."""
        return _there(self.kl)(k, x, output, reference)

    def ratio_at(self, k: int, x: Tensor, there: Tensor, output: Tensor, old: Tensor) -> Tensor:
        """The likelihood ratio of next states."""
        return _there(self.ratio)(k, x, there, output, old)

    def endpoint_at(self, k: int, x: Tensor, output: Tensor) -> Tensor:
        """The prediction of x_0."""
        return _there(self.endpoint)(k, x, output)

    def score_at(self, k: int, x: Tensor, output: Tensor) -> Tensor:
        """The score of the noised data."""
        return _there(self.score)(k, x, output)

    def control_at(self, k: int, x: Tensor, output: Tensor, reference: Tensor) -> Tensor:
        """The whitened control."""
        return _there(self.control)(k, x, output, reference)

    def advantages_of(self, rewards: Tensor) -> Tensor:
        """Of the rewards of a group."""
        return _there(self.advantages)(rewards)

    def refined_to(self, steps: int) -> Sampler:
        """The same sampler with another number of steps."""
        return _there(self.refined)(steps)

    def output(self, k: int, endpoint: Tensor, noise: Tensor) -> Tensor:
        """What a model says that knows endpoint and noise."""
        return PREDICTIONS[self.prediction](self.signal[k], self.noise[k], endpoint, noise)

    def of_point(self, k: int, x: Tensor, point: float) -> Tensor:
        """What the exact model of data at one point says."""
        endpoint = torch.full_like(x, point)
        return self.output(k, endpoint, (x - self.signal[k] * endpoint) / self.noise[k])

    def of_gaussian(self, k: int, x: Tensor, mean: float, variance: float) -> Tensor:
        """What the exact model of ``N(mean, variance)`` says in every coordinate."""
        a, s = self.signal[k], self.noise[k]
        centred = (x - a * mean) / (a.square() * variance + s.square())
        return self.output(k, mean + a * variance * centred, s * centred)


def _there(part: PartT | None) -> PartT:
    """A part that the caller has made sure of."""
    if part is None:
        raise InvalidProblem("the sampler lacks this part; give it.")
    return part


def of_tuple(
    function: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]],
    noise: Numbers,
    signal: Numbers | None = None,
    prediction: str = "velocity",
    **parts: Any,
) -> Sampler:
    """The sampler of a function as the Flow-GRPO family shares it.

    Args:
        function: ``(k, x, output, next states or None, generator or None) -> (next states,
            log_prob, mean, std)``; with next states given it returns their log probability.
        noise: s at every level, shape (T + 1,).
        signal: a at every level; ``1 - s`` by default, rectified flow.
        parts: what else the sampler has, by the names of `Sampler`, such as ``kl``.
    """
    s = numbers(noise, "noise")

    def evaluated(k: int, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return function(k, x, output, torch.zeros_like(x), None)

    return Sampler(
        1 - s if signal is None else numbers(signal, "signal"),
        s,
        prediction,
        step=lambda k, x, output, generator: function(k, x, output, None, generator)[0],
        mean=lambda k, x, output: evaluated(k, x, output)[2],
        std=lambda k, x, output: evaluated(k, x, output)[3],
        log_prob=lambda k, x, there, output: function(k, x, output, there, None)[1],
        **parts,
    )


def of_step(
    step: Callable[[int, Tensor, Tensor, torch.Generator], Tensor],
    noise: Numbers,
    signal: Numbers | None = None,
    prediction: str = "velocity",
    **parts: Any,
) -> Sampler:
    """The sampler of a step alone that draws its noise by one ``torch.randn`` of the state's shape.

    Its mean and its standard deviation follow from the steps of two seeds; ``parts`` is what else
    the sampler has, by the names of `Sampler`, such as ``precision``.
    """
    s = numbers(noise, "noise")

    def moments(k: int, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        there, drawn = [], []
        for seed in (0, 1):
            there.append(step(k, x, output, torch.Generator().manual_seed(seed)).double())
            generator = torch.Generator().manual_seed(seed)
            drawn.append(torch.randn(x.shape, generator=generator, dtype=x.dtype).double())
        difference = drawn[0] - drawn[1]
        std = ((there[0] - there[1]) * difference).sum() / difference.square().sum()
        return there[0] - std * drawn[0], std

    return Sampler(
        1 - s if signal is None else numbers(signal, "signal"),
        s,
        prediction,
        step=step,
        mean=lambda k, x, output: moments(k, x, output)[0],
        std=lambda k, x, output: moments(k, x, output)[1],
        **parts,
    )
