"""What is told of a run while it goes on, and the trackers that are told by name."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sd_experiments import config
from sd_experiments.reward.rewards import Images
from sd_experiments.training.build import Experiment
from sd_experiments.training.loop import TrainingLoop, TrainingStep
from sd_experiments.training.monitor import TensorBoardWriter
from socft.checks import require

PROJECT = "socft"
TENSORBOARD = "tensorboard"


@runtime_checkable
class TrainingRun(Protocol):
    """What a callback sees of a `sd_experiments.training.trainer.Trainer`."""

    @property
    def settings(self) -> config.ExperimentConfig:
        """As stored."""
        ...

    @property
    def folder(self) -> Path:
        """Where the run is."""
        ...

    @property
    def experiment(self) -> Experiment:
        """Everything it is made of."""
        ...

    @property
    def loop(self) -> TrainingLoop:
        """The gradient steps, with the trained layers and how far they are."""
        ...


class TrainerCallback:
    """Is told of a run, by its main process; override what you need.

    An exception ends the run, and its last gradient step is kept.
    """

    def on_start(self, trainer: TrainingRun) -> None:
        """Everything is built, and the state of an earlier run restored."""

    def on_pictures(self, trainer: TrainingRun, prompt: str, images: Images) -> None:
        """Pictures of a new round, every ``monitor.images_every`` rounds."""

    def on_step(self, trainer: TrainingRun, step: TrainingStep, row: Mapping[str, Any]) -> None:
        """A gradient step was made; ``row`` is its line of ``metrics.jsonl``."""

    def on_checkpoint(self, trainer: TrainingRun, folder: Path) -> None:
        """A checkpoint was written."""

    def on_end(self, trainer: TrainingRun) -> None:
        """The run is over, complete or not."""


class TensorBoard(TrainerCallback):
    """Numbers and pictures in ``tensorboard/`` of the run's folder."""

    def __init__(self):
        self._writer: TensorBoardWriter | None = None

    def on_start(self, trainer: TrainingRun) -> None:
        self._writer = TensorBoardWriter(trainer.folder / TENSORBOARD, trainer.loop.step)

    def on_pictures(self, trainer: TrainingRun, prompt: str, images: Images) -> None:
        assert self._writer is not None
        self._writer.pictures(prompt, images, trainer.loop.step)

    def on_step(self, trainer: TrainingRun, step: TrainingStep, row: Mapping[str, Any]) -> None:
        assert self._writer is not None
        self._writer.scalars(row)

    def on_end(self, trainer: TrainingRun) -> None:
        if self._writer is not None:
            self._writer.close()


class Tracker(TrainerCallback):
    """Settings and numbers for a tracker of accelerate.

    Args:
        make: makes the tracker of a run's folder.
    """

    def __init__(self, make: Callable[[Path], Any]):
        self._make = make
        self._tracker: Any = None

    def on_start(self, trainer: TrainingRun) -> None:
        from accelerate import PartialState

        PartialState(cpu=trainer.loop.device.type != "cuda")
        self._tracker = self._make(trainer.folder.resolve())
        self._tracker.start()
        self._tracker.store_init_configuration(_flat(trainer.settings.plain()))

    def on_step(self, trainer: TrainingRun, step: TrainingStep, row: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in row.items() if value is not None and key != "step"}
        self._tracker.log(numbers, step=row["step"])

    def on_end(self, trainer: TrainingRun) -> None:
        if self._tracker is not None:
            self._tracker.finish()


def reporters(names: tuple[str, ...]) -> tuple[TrainerCallback, ...]:
    """Those of ``monitor.report_to``.

    Raises:
        InvalidProblem: a package is not installed.
    """
    for name in names:
        require(
            importlib.util.find_spec(name) is not None,
            f"monitor.report_to = {name!r}, and {name} is not installed; run: pip install {name},"
            " or leave it out.",
        )
    return tuple(TensorBoard() if each == TENSORBOARD else Tracker(MAKERS[each]) for each in names)


def _weights_and_biases(folder: Path) -> Any:
    """Without network, as WANDB_MODE does not say; a run that continues is the same run."""
    from accelerate.tracking import WandBTracker

    number = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    mode = os.environ.get("WANDB_MODE", "offline")
    options: dict[str, Any] = {"mode": mode, "id": number, "resume": "allow"}
    return WandBTracker(PROJECT, dir=str(folder), name=folder.name, **options)


def _mlflow(folder: Path) -> Any:
    """Into a data base in the folder, where MLFLOW_TRACKING_URI does not say."""
    from accelerate.tracking import MLflowTracker

    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    return MLflowTracker(PROJECT, logging_dir=str(folder / "mlflow"), run_name=folder.name)


MAKERS: Mapping[str, Callable[[Path], Any]] = {"wandb": _weights_and_biases, "mlflow": _mlflow}


def _flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; lists as text."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{where}{name}.")
        else:
            found[where + name] = str(value) if isinstance(value, list) else value
    return found
