"""Fine-tune in a folder, from Python or by ``socft sd train``, which does the same.

The folder holds ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``settings.json``,
``frontier.png`` and, when the run is complete, ``lora/``: the averaged layers, for ``socft sd`` and
for ``load_lora_weights`` of diffusers' pipelines, with a model card, as a repository of the Hugging
Face hub holds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sd_experiments import config
from sd_experiments.assignments import read_assignments
from sd_experiments.manifest import replace_folder
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.loading import latent_model
from sd_experiments.model.lora_io import save_lora
from sd_experiments.reward.rewards import ImageRewardModel, Images, decode
from sd_experiments.training.build import Checker, Experiment, build, find_device
from sd_experiments.training.callbacks import TrainerCallback, reporters
from sd_experiments.training.loop import TrainingLoop, TrainingStep
from sd_experiments.training.model_card import PICTURES, README, model_card
from sd_experiments.training.monitor import (
    FRONTIER,
    METRICS,
    Display,
    ImageStatistics,
    MetricsFile,
    RewardHackingDetector,
    diversity,
    plot_frontier,
    read_metrics,
)
from sd_experiments.training.picture_grid import save_captioned_grid
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.rounds import PromptSamples
from sd_experiments.training.session import (
    CHECKPOINTS,
    before_and_after,
    check_images,
    load_config,
    make_loop,
)
from sd_experiments.training.storage import CheckpointFailed, CheckpointStore
from socft.checks import InvalidProblem, require, told
from socft.estimators.base import Estimator
from socft.files import FULL, locked, reason, write_atomically

LORA = "lora"
LOCK = ".lock"
SHOWN, PROMPTS, SEED = 3, 4, 1
"""Pictures per prompt, prompts and the seed of the picture in the model card."""


def train(
    file: Path,
    resume: bool = False,
    out: Path | None = None,
    steps: int | None = None,
    changes: Sequence[str] = (),
) -> Trainer:
    """Fine-tune by a configuration.

    Args:
        changes: ``KEY=VALUE``, each in place of the file's.

    Raises:
        InvalidProblem: the configuration, a file or a number is refused; the checkpoints are kept,
            and one of the last good state is added.
    """
    settings = load_config(file, out, steps, changes)
    device = find_device(settings.model.device)
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    group = ProcessGroup.join(device)
    display = Display(settings.run.steps, silent=not group.is_main_process)
    for change in read_assignments(changes):
        display.say(f"in place of the file's: {change}")
    trainer = Trainer(settings=settings, display=display, group=group)
    trainer.train(resume)
    return trainer


class Trainer:
    """Fine-tunes a model for a reward on prompts, in a folder.

    Whatever is not given as an object is loaded as the settings say, and what is given is named in
    the settings that are stored.

    Args:
        model: a pipeline of diffusers or a `LatentModel`.
        reward: maps images in [0, 1], shape (batch, 3, height, width), and their prompt to one
            number each; differentiable in the images, or with ``reward.black_box``.
        prompts: one control problem each.
        settings: those of a configuration file, or such a file's content as nested mappings.
        estimator: of the gradient.
        checker: judges images independently of the reward.
        callbacks: told of the run, besides those of ``monitor.report_to``.
        display: shows the run; a bar or lines on standard error by default.
        group: the processes of the run; this one alone by default.

    Raises:
        InvalidProblem: a setting is refused.
    """

    def __init__(
        self,
        model: DiffusionPipeline | LatentModel | None = None,
        reward: ImageRewardModel | None = None,
        prompts: Sequence[str] | None = None,
        settings: config.ExperimentConfig | Mapping[str, Any] | None = None,
        *,
        estimator: Estimator | None = None,
        checker: Checker | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        display: Display | None = None,
        group: ProcessGroup | None = None,
    ):
        self.settings = _settings(model, reward, prompts, settings, estimator, checker)
        self.group = group or ProcessGroup()
        self.callbacks = (*reporters(self.settings.monitor.report_to), *callbacks)
        self.display = display or Display(self.settings.run.steps)
        self._given = model, reward, estimator, checker

    @property
    def folder(self) -> Path:
        """Where the run is."""
        return Path(self.settings.run.out)

    @property
    def experiment(self) -> Experiment:
        """Everything the run is made of, built when it is first asked for.

        Raises:
            InvalidProblem: a file is missing or does not fit, a name is unknown, or the mathematics
                refuses the settings.
        """
        return self._experiment

    @property
    def loop(self) -> TrainingLoop:
        """The gradient steps."""
        return self._loop

    @functools.cached_property
    def _experiment(self) -> Experiment:
        model, reward, estimator, checker = self._given
        base = _latent_model(model, self.settings.model)
        built = build(self.settings, base, reward, estimator)
        return built if checker is None else dataclasses.replace(built, checker=checker)

    @functools.cached_property
    def _loop(self) -> TrainingLoop:
        return make_loop(self.experiment, self.group)

    def train(self, resume: bool = False) -> None:
        """Fine-tune to the end of the settings; whatever stops it, ``resume`` continues bit for
        bit.

        Raises:
            InvalidProblem: a number is not finite, a file cannot be written, or the folder holds a
                run and ``resume`` is not given; a checkpoint of the last good state is kept.
            KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint of the last finished step is kept.
        """
        require(
            not self.folder.is_file(),
            f"run.out = {str(self.folder)!r} is a file; give a folder, or another one with --out.",
        )
        main = self.group.is_main_process
        with locked(self.folder / LOCK) if main else contextlib.nullcontext(), self.display:
            self._train(resume)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the averaged layers with a model card and pictures: a folder that diffusers'
        ``load_lora_weights`` reads, and that is a whole repository of the Hugging Face hub.
        """
        with self.loop.using_averages():
            replace_folder(Path(folder), self._write)

    def _write(self, folder: Path) -> None:
        save_lora(self.experiment.lora, folder)
        rows = read_metrics(self.folder / METRICS) if (self.folder / METRICS).exists() else []
        card = model_card(self.settings, self.loop.step, rows)
        write_atomically(folder / README, card.encode())
        pictures = [
            row
            for task in self.experiment.tasks[:PROMPTS]
            for row in before_and_after(self.experiment, task, SHOWN, SEED)
        ]
        save_captioned_grid(pictures, folder / PICTURES)

    def _train(self, resume: bool) -> None:
        """The only run in the folder."""
        folder, say = self.folder, self.display.say
        checkpoints = CheckpointStore(folder / CHECKPOINTS, self.settings.run.keep, self.group, say)
        newest = checkpoints.newest() if resume else None
        require(
            resume or not any((folder / CHECKPOINTS).glob("step-*")),
            f"{folder} holds a run; continue it with --resume, or choose another folder with"
            " --out.",
        )
        self._begin(newest, resume)
        try:
            with self._observed() as observe:
                _run(self.loop, checkpoints, observe, self._checkpointed)
            if self.group.is_main_process:
                self._finish()
        except OSError as error:
            if error.errno not in FULL:
                raise
            where = f"{folder} could not be written ({reason(error)})"
            raise InvalidProblem(
                f"{where} after gradient step {self.loop.step}; {checkpoints.remedy}"
            ) from error

    def _begin(self, newest: Any, resume: bool) -> None:
        """Build everything, and continue where there is something to continue."""
        loop, say, prompts = self.loop, self.display.say, self.settings.batch.prompts
        if newest is not None:
            loop.restore(newest)
            say(f"continuing after gradient step {loop.step}")
        elif resume:
            say(f"{self.folder} holds no checkpoint; beginning with gradient step 1")
        if prompts < len(loop.tasks):
            say(
                f"prompts take turns: a round, and its reward, is of {prompts} of the"
                f" {len(loop.tasks)}"
            )

    @contextlib.contextmanager
    def _observed(self) -> Iterator[Callable[[TrainingStep], None]]:
        """What is done with every gradient step: measure pictures, write, show, warn."""
        if not self.group.is_main_process:
            yield lambda step: None
            return
        stored = json.dumps(self.settings.plain(), indent=2) + "\n"
        write_atomically(self.folder / "settings.json", stored.encode())
        file = MetricsFile(self.folder / METRICS, self.loop.step)
        detector = RewardHackingDetector(self.settings.monitor.window)
        for row in (row for row in file.rows if "diversity" in row):
            detector.add(row["reward"], ImageStatistics(row["accuracy"], row["diversity"]))

        def observe(step: TrainingStep) -> None:
            statistics = self._seen(step, detector) if step.fresh else None
            row = file.append(step.metrics, statistics)
            for each in self.callbacks:
                each.on_step(self, step, row)
            self.display.show(row)

        try:
            for each in self.callbacks:
                each.on_start(self)
            yield observe
        finally:
            file.close()
            for each in self.callbacks:
                each.on_end(self)

    def _seen(self, step: TrainingStep, detector: RewardHackingDetector) -> ImageStatistics:
        """What the pictures of a new round are like."""
        experiment = self.experiment
        pictures = [(samples, _pictures(experiment, samples)) for samples in step.fresh]
        statistics = _image_statistics(experiment, pictures)
        for line in detector.add(step.metrics.reward, statistics):
            self.display.say(line)
        if step.metrics.round % self.settings.monitor.images_every == 0:
            for samples, images in pictures:
                for each in self.callbacks:
                    each.on_pictures(self, experiment.tasks[samples.task].name, images)
        return statistics

    def _checkpointed(self, folder: Path) -> None:
        for each in self.callbacks if self.group.is_main_process else ():
            each.on_checkpoint(self, folder)

    def _finish(self) -> None:
        """Write the averaged layers and the reward-KL frontier."""
        folder, say = self.folder, self.display.say
        self.save_pretrained(folder / LORA)
        rows = read_metrics(folder / METRICS)
        try:
            plot_frontier(rows, folder / FRONTIER, self.settings.monitor.window)
        except ModuleNotFoundError:
            say("the frontier is not drawn without matplotlib; run: pip install 'socft[plot]'")
        except (ValueError, RuntimeError) as error:  # what is trained is not lost for a picture
            say(f"the frontier is not drawn: {told(error)}")
        say(f"done: the averaged layers are in {folder / LORA}, the numbers in {folder / METRICS}")


def _run(
    loop: TrainingLoop,
    checkpoints: CheckpointStore,
    observe: Callable[[TrainingStep], None] = lambda step: None,
    checkpointed: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Train with checkpoints; when a number is refused or a signal comes, the state after the last
    step is written too.
    """
    run, saved = loop.settings.run, loop.step
    try:
        with loop.interruptions.watching():
            for step in loop.iterations():
                observe(step)
                if loop.step % run.checkpoint_every == 0 or loop.step == run.steps:
                    checkpointed(checkpoints.save(loop.step, *loop.files()))
                    saved = loop.step
                loop.interruptions.stop_together(loop.device)
    except CheckpointFailed:
        raise
    except KeyboardInterrupt:
        if loop.step > saved and (loop.group.size == 1 or loop.interruptions.together):
            checkpoints.save(loop.step, *loop.files())
            saved = loop.step
        raise KeyboardInterrupt(
            f"stopped after gradient step {loop.step}; --resume continues after step {saved}"
        ) from None
    except (ValueError, RuntimeError):
        if loop.step > saved and loop.group.size == 1:
            checkpoints.save(loop.step, *loop.files())
        raise


@torch.no_grad()
def _pictures(experiment: Experiment, samples: PromptSamples) -> Images:
    device = next(experiment.base.vae.parameters()).device
    chunk = experiment.settings.reward.chunk
    return torch.cat(
        [
            decode(experiment.base, part.to(device)).float().cpu()
            for part in samples.final.split(chunk)
        ]
    )


def _image_statistics(
    experiment: Experiment, pictures: Sequence[tuple[PromptSamples, Images]]
) -> ImageStatistics:
    """Accuracy and diversity of the pictures of a round."""
    spread = [found for _, images in pictures if (found := diversity(images)) is not None]
    right = [
        check_images(experiment.checker, images, experiment.tasks[samples.task].name)
        for samples, images in pictures
    ]
    known = [value for value in right if value is not None]
    accuracy = float(torch.cat(known).mean()) if known else None
    return ImageStatistics(accuracy, sum(spread) / len(spread) if spread else None)


def _settings(
    model: DiffusionPipeline | LatentModel | None,
    reward: ImageRewardModel | None,
    prompts: Sequence[str] | None,
    settings: config.ExperimentConfig | Mapping[str, Any] | None,
    estimator: Estimator | None,
    checker: Checker | None,
) -> config.ExperimentConfig:
    """The settings with what was given as an object under its name."""
    plain = settings.plain() if isinstance(settings, config.ExperimentConfig) else settings or {}
    tables: dict[str, dict[str, Any]] = {name: dict(table) for name, table in plain.items()}

    def put(table: str, **values: Any) -> None:
        tables[table] = tables.get(table, {}) | values

    if prompts is not None:
        put("problem", prompts=list(prompts))
    if model is not None:
        put("model", **_said_of(model))
    if reward is not None:
        put("reward", name=_name(reward), path=None, options={})
    if estimator is not None:
        put("estimator", name=_name(estimator), options={})
    if checker is not None:
        put("monitor", checker=_name(checker))
    return config.parse_config(tables)


def _said_of(model: DiffusionPipeline | LatentModel) -> dict[str, str]:
    """The name, dtype and device of a model."""
    part: Any = model.vae if isinstance(model, LatentModel) else getattr(model, "vae", None)
    require(part is not None, f"{_name(model)} has no VAE; give a pipeline from text to image.")
    weight = next(part.parameters())
    stored: Any = getattr(model, "name_or_path", None)
    return {
        "path": stored or _name(model),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device),
    }


def _name(value: Any) -> str:
    """Where something is defined."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}:{kind.__qualname__}"


def _latent_model(
    model: DiffusionPipeline | LatentModel | None, settings: config.ModelConfig
) -> LatentModel | None:
    if model is None or isinstance(model, LatentModel):
        return model
    return latent_model(
        model,
        settings.micro_batch,
        settings.max_sequence_length,
        checkpointing=settings.checkpointing,
    )
