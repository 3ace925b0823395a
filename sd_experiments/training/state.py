"""Everything a run needs to continue, as files of a checkpoint and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from safetensors.torch import save
from torch import Tensor

from sd_experiments import config
from sd_experiments.training.buffer import Pool, decode, encode
from sd_experiments.training.checkpoints import Found
from sd_experiments.training.rounds import Round
from sd_experiments.training.workers import Workers
from socft.checks import require

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


@dataclasses.dataclass(frozen=True, eq=False)
class State:
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
        pool: paths that will be used again, if any.
    """

    layers: Mapping[str, Tensor]
    averages: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    random: Tensor
    step: int
    rounds: int
    paths: int
    quantile: float | None
    round: Round
    pool: Pool | None

    def files(
        self, settings: config.Settings, workers: Workers
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """This process' own files, and those that all share."""
        pool = self.pool
        tensors = {f"layer.{name}": value for name, value in self.layers.items()}
        tensors |= {f"average.{name}": value for name, value in self.averages.items()}
        tensors |= {
            f"optimiser.{key}.{name}": value
            for name, each in self.moments.items()
            for key, value in each.items()
        }
        tensors |= {"random": self.random} | ({} if pool is None else {"weights": pool.weights})
        values = {
            "step": self.step,
            "rounds": self.rounds,
            "paths": self.paths,
            "quantile": self.quantile,
            "round": dataclasses.asdict(self.round),
            "processes": workers.count,
            "settings": settings.plain(),
            "pool": (
                pool
                and {"round": pool.round, "size": pool.size, "used": pool.used, "ess": pool.ess}
            ),
        }
        copied = {
            name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()
        }
        shared = {SHARED: save(copied), VALUES: json.dumps(values, indent=2).encode()}
        return {_buffer(workers.rank): encode(pool.entries if pool else ())}, shared

    @classmethod
    def read(
        cls, found: Found, like: Mapping[str, Tensor], settings: config.Settings, workers: Workers
    ) -> Self:
        """The state in a checkpoint.

        Args:
            like: the parameters it is for.

        Raises:
            InvalidProblem: it belongs to a run with other settings, layers or processes.
        """
        values = found.json(VALUES)
        require(
            values["processes"] == workers.count,
            f"the checkpoint is of {values['processes']} processes and there are {workers.count};"
            " continue with as many.",
        )
        _require_same(values["settings"], settings)
        tensors = _tensors(found, like)
        return cls(
            layers={name: tensors[f"layer.{name}"] for name in like},
            averages={name: tensors[f"average.{name}"] for name in like},
            moments={name: _moments(tensors, name) for name in like},
            random=tensors["random"],
            step=values["step"],
            rounds=values["rounds"],
            paths=values["paths"],
            quantile=values["quantile"],
            round=Round(**values["round"]),
            pool=_pool(values["pool"], tensors, found, workers),
        )


def averages(found: Found, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged layers of a checkpoint, to sample with.

    Raises:
        InvalidProblem: they do not fit the parameters ``like``.
    """
    tensors = _tensors(found, like)
    return {name: tensors[f"average.{name}"] for name in like}


def _tensors(found: Found, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors, _ = found.tensors(SHARED)
    for name, p in like.items():
        stored = tensors.get(f"layer.{name}")
        fits = stored is not None and stored.shape == p.shape
        other = "it belongs to another network, or to other lora.rank or lora.targets"
        require(fits, f"{found.folder} has no layer {name} of shape {tuple(p.shape)}; {other}.")
    return tensors


def _moments(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    named = {key: f"optimiser.{key}.{name}" for key in MOMENTS}
    return {key: tensors[stored] for key, stored in named.items() if stored in tensors}


def _pool(
    about: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], found: Found, workers: Workers
) -> Pool | None:
    if about is None:
        return None
    stored, header = found.tensors(_buffer(workers.rank))
    entries = tuple(decode(stored, json.loads(header["entries"])))
    return Pool(
        about["round"], about["size"], entries, about["used"], tensors["weights"], about["ess"]
    )


def _require_same(old: Mapping[str, Any], settings: config.Settings) -> None:
    for name, (before, now) in config.changes(old, settings.plain()).items():
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
