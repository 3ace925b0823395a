"""Everything a run needs to continue, as files of a checkpoint and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from safetensors.torch import save
from torch import Tensor

from sd_experiments import config
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.replay_buffer import ReplayBuffer, decode_batches, encode_batches
from sd_experiments.training.rounds import RoundMetrics
from sd_experiments.training.storage import StoredCheckpoint
from socft.checks import require
from socft.estimators.base import Labels
from socft.schema import structured

SHARED = "shared.safetensors"
VALUES = "state.json"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""
CHANGEABLE = (
    "run.steps",
    "run.out",
    "run.checkpoint_every",
    "run.keep",
    "optimiser.rate",
    "optimiser.clip",
    "monitor.",
    "model.path",
)


@dataclasses.dataclass(frozen=True)
class StoredBuffer:
    """What a checkpoint says of the paths that will be used again; see `ReplayBuffer`."""

    round: int
    size: int
    uses: int
    ess: float


@dataclasses.dataclass(frozen=True)
class StoredValues:
    """What a checkpoint says in ``state.json``: numbers of a `TrainingState`, the processes and the
    settings of its run.
    """

    step: int
    rounds: int
    paths: int
    quantile: float | None
    round: RoundMetrics
    processes: int
    settings: Mapping[str, Any]
    buffer: StoredBuffer | None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingState:
    """A run between two gradient steps.

    Attributes:
        layers: the trained parameters by name.
        averages: their running averages.
        moments: what the optimiser remembers of each, empty before its first step.
        random: torch's global random state.
        step: gradient steps done.
        rounds: rounds sampled.
        paths: paths sampled.
        quantile: running quantile of the losses.
        round: numbers of the last round.
        buffer: paths that will be used again, if any.
    """

    layers: Mapping[str, Tensor]
    averages: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    random: Tensor
    step: int
    rounds: int
    paths: int
    quantile: float | None
    round: RoundMetrics
    buffer: ReplayBuffer | None

    def files(
        self, settings: config.ExperimentConfig, group: ProcessGroup
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """This process' own files, and those that all share."""
        buffer = self.buffer
        tensors = {f"layer.{name}": value for name, value in self.layers.items()}
        tensors |= {f"average.{name}": value for name, value in self.averages.items()}
        tensors |= {
            f"optimiser.{key}.{name}": value
            for name, each in self.moments.items()
            for key, value in each.items()
        }
        tensors |= {"random": self.random} | (
            {} if buffer is None else {"importance_weights": buffer.importance_weights}
        )
        values = StoredValues(
            step=self.step,
            rounds=self.rounds,
            paths=self.paths,
            quantile=self.quantile,
            round=self.round,
            processes=group.size,
            settings=settings.plain(),
            buffer=buffer and StoredBuffer(buffer.round, buffer.size, buffer.uses, buffer.ess),
        )
        copied = {
            name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()
        }
        shared = {
            SHARED: save(copied),
            VALUES: json.dumps(dataclasses.asdict(values), indent=2).encode(),
        }
        return {_buffer(group.rank): encode_batches(buffer.batches if buffer else ())}, shared

    @classmethod
    def read(
        cls,
        checkpoint: StoredCheckpoint,
        like: Mapping[str, Tensor],
        settings: config.ExperimentConfig,
        group: ProcessGroup,
        label_type: type[Labels],
    ) -> Self:
        """The state in a checkpoint.

        Args:
            like: the parameters it is for.
            label_type: what the estimator's labels are.

        Raises:
            InvalidProblem: it belongs to a run with other settings, layers or processes.
        """
        where, remedy = str(checkpoint.folder / VALUES), "begin again, or with the version it is of"
        values = structured(StoredValues, checkpoint.json(VALUES), where, remedy)
        require(
            values.processes == group.size,
            f"the checkpoint is of {values.processes} processes and there are {group.size};"
            " continue with as many.",
        )
        _require_same(values.settings, settings)
        tensors = _tensors(checkpoint, like)
        return cls(
            layers={name: tensors[f"layer.{name}"] for name in like},
            averages={name: tensors[f"average.{name}"] for name in like},
            moments={name: _moments(tensors, name) for name in like},
            random=tensors["random"],
            step=values.step,
            rounds=values.rounds,
            paths=values.paths,
            quantile=values.quantile,
            round=values.round,
            buffer=_buffer_of(values.buffer, tensors, checkpoint, group, label_type),
        )


def read_averages(checkpoint: StoredCheckpoint, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged layers of a checkpoint, to sample with.

    Raises:
        InvalidProblem: they do not fit the parameters ``like``.
    """
    tensors = _tensors(checkpoint, like)
    return {name: tensors[f"average.{name}"] for name in like}


def _tensors(checkpoint: StoredCheckpoint, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors, _ = checkpoint.tensors(SHARED)
    other = "it belongs to another network, or to other lora.rank or lora.targets"
    for name, p in like.items():
        stored = [tensors.get(f"{kind}.{name}") for kind in ("layer", "average")]
        fits = all(each is not None and each.shape == p.shape for each in stored)
        require(
            fits, f"{checkpoint.folder} has no layer {name} of shape {tuple(p.shape)}; {other}."
        )
    return tensors


def _moments(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    named = {key: f"optimiser.{key}.{name}" for key in MOMENTS}
    return {key: tensors[stored] for key, stored in named.items() if stored in tensors}


def _buffer_of(
    about: StoredBuffer | None,
    tensors: Mapping[str, Tensor],
    checkpoint: StoredCheckpoint,
    group: ProcessGroup,
    label_type: type[Labels],
) -> ReplayBuffer | None:
    if about is None:
        return None
    stored, header = checkpoint.tensors(_buffer(group.rank))
    batches = tuple(decode_batches(stored, json.loads(header["batches"]), label_type))
    weights = tensors["importance_weights"]
    return ReplayBuffer(about.round, about.size, batches, about.uses, weights, about.ess)


def _require_same(old: Mapping[str, Any], settings: config.ExperimentConfig) -> None:
    for name, (before, now) in config.config_changes(old, settings.plain()).items():
        require(
            name.startswith(CHANGEABLE),
            f"{name} was {before!r} when this run began and is {now!r} now; start another run with"
            " --out, or set it back.",
        )
        require(
            name != "run.steps" or settings.optimiser.decay == 0,
            f"run.steps was {before!r} when this run began and is {now!r} now, and the learning"
            f" rate falls over the last {settings.optimiser.decay:.0%} of them; start another run"
            " with --out, or set it back.",
        )


def _buffer(rank: int) -> str:
    return f"buffer-{rank}.safetensors"
