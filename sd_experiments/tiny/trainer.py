"""One training loop for the autoencoder, the denoiser and the reward: seeded, with progress, and it
continues where it stopped.

Step i draws all its randomness from a generator seeded by (seed, i), so an interrupted run ends
with the weights of an uninterrupted one. Checkpoints are safetensors, written through a temporary
file.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_experiments.tensor_file import encode_tensors, read_sealed_tensors
from socft.checks import require
from socft.files import locked, write_atomically
from socft.study.progress import Progress

_PARTS = ("value", "average", "exp_avg", "exp_avg_sq")


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How long and how fast to learn.

    Attributes:
        steps: gradient steps.
        rate: AdamW's largest learning rate.
        warmup: steps until it is reached.
        decay: last fraction of the steps, over which it falls to a fiftieth; 0 keeps it.
        momentum: AdamW's two averaging factors.
        weight_decay: AdamW's.
        clip: largest gradient norm.
        average: factor of the running average of the weights that is kept at the end.
    """

    steps: int
    rate: float = 2e-3
    warmup: int = 50
    decay: float = 0.5
    momentum: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3
    clip: float = 1.0
    average: float = 0.99

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"steps = {self.steps}; train for at least one.")
        require(
            0 <= self.decay <= 1,
            f"decay = {self.decay}; give the last fraction of the steps, in [0, 1].",
        )

    def rate_at(self, step: int) -> float:
        """Learning rate of a step: a ramp, a plateau, a ramp down."""
        left = (self.steps - step) / (self.steps * self.decay) if self.decay else 1.0
        return self.rate * min(1.0, (step + 1) / self.warmup) * max(0.02, min(1.0, left))


@dataclasses.dataclass(frozen=True)
class TrainingSummary:
    """What a training run cost and reached.

    Attributes:
        steps: gradient steps.
        loss: running average of the loss at the end.
        cpu_seconds: processor time of all of them, interrupted runs included.
    """

    steps: int
    loss: float
    cpu_seconds: float


def minimise(
    name: str,
    parameters: Sequence[nn.Parameter],
    loss: Callable[[torch.Generator], Tensor],
    settings: TrainingSettings,
    seed: int,
    file: Path,
    identity: Mapping[str, Any],
    every: int = 100,
) -> TrainingSummary:
    """Minimise a random loss; afterwards the parameters are their running averages.

    Args:
        name: shown with the progress.
        parameters: trained in place.
        loss: the loss of one step, all of whose randomness comes from the generator it is given.
        settings: length and speed.
        seed: of every step's randomness.
        file: the checkpoint, written every ``every`` steps; a finished one is only read.
        identity: everything else the result depends on; a checkpoint of another identity is
            refused.
        every: steps between checkpoints.

    Raises:
        InvalidProblem: the checkpoint belongs to another training, or the loss is not finite.
    """
    stamp = json.dumps(
        {"settings": dataclasses.asdict(settings), "seed": seed, **identity}, sort_keys=True
    )
    speed = {"lr": settings.rate, "betas": settings.momentum, "weight_decay": settings.weight_decay}
    optimiser = torch.optim.AdamW(parameters, fused=True, **speed)
    average = [p.detach().clone() for p in parameters]
    done = (
        _resume(file, stamp, optimiser, parameters, average)
        if file.exists()
        else TrainingSummary(0, 0.0, 0.0)
    )
    remedy = "wait for it or choose another folder"
    with (
        locked(file.with_name(f".{file.name}.lock"), remedy),
        Progress(name, -(-settings.steps // every), -(-done.steps // every)) as progress,
    ):
        while done.steps < settings.steps:
            begun = time.process_time()
            for step in range(done.steps, min(done.steps + every, settings.steps)):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
                value = _step(optimiser, parameters, average, loss(generator), settings, step)
                done = TrainingSummary(
                    step + 1,
                    value if step == 0 else 0.98 * done.loss + 0.02 * value,
                    done.cpu_seconds,
                )
            spent = time.process_time() - begun
            done = dataclasses.replace(done, cpu_seconds=done.cpu_seconds + spent)
            _save(file, stamp, optimiser, parameters, average, done)
            progress.finished(f"{name}, step {done.steps}: loss {done.loss:.4f}", spent)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    return done


def _step(
    optimiser: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    average: list[Tensor],
    loss: Tensor,
    settings: TrainingSettings,
    step: int,
) -> float:
    """One gradient step; the value of its loss."""
    value = float(loss.detach())
    require(
        value - value == 0,
        f"the loss is {value} at step {step}; lower the learning rate {settings.rate}.",
    )
    optimiser.param_groups[0]["lr"] = settings.rate_at(step)
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, settings.clip)
    optimiser.step()
    keep = min(settings.average, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            mean.lerp_(parameter, 1 - keep)
    return value


def _save(
    file: Path,
    stamp: str,
    optimiser,
    parameters: Sequence[nn.Parameter],
    average: list[Tensor],
    done: TrainingSummary,
) -> None:
    tensors = {}
    for i, (parameter, mean) in enumerate(zip(parameters, average, strict=True)):
        state = optimiser.state[parameter]
        values = (parameter.detach(), mean, state["exp_avg"], state["exp_avg_sq"])
        tensors |= {
            f"{i}.{part}": value.contiguous() for part, value in zip(_PARTS, values, strict=True)
        }
    header = {"stamp": stamp, "done": json.dumps(dataclasses.asdict(done))}
    write_atomically(file, encode_tensors(tensors, header))


def _resume(
    file: Path, stamp: str, optimiser, parameters: Sequence[nn.Parameter], average: list[Tensor]
) -> TrainingSummary:
    """Put a checkpoint's state where it belongs."""
    tensors, header = read_sealed_tensors(file, "remove it, and train from the beginning")
    require(
        header.get("stamp") == stamp,
        f"{file} is a checkpoint of another training; remove it, or keep its folder and choose"
        " another one.",
    )
    done = TrainingSummary(**json.loads(header["done"]))
    for i, parameter in enumerate(parameters):
        value, mean, first, second = (tensors[f"{i}.{part}"] for part in _PARTS)
        parameter.data.copy_(value)
        average[i].copy_(mean)
        moments = {
            "exp_avg": torch.empty_like(parameter).copy_(first),
            "exp_avg_sq": torch.empty_like(parameter).copy_(second),
        }
        optimiser.state[parameter] = {"step": torch.tensor(float(done.steps)), **moments}
    return done
