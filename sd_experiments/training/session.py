"""One run in one folder: train it, continue it, draw from it, measure it.

The folder holds ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``settings.json``,
``frontier.png`` and, when the run is complete, ``lora/``: the averaged layers, for ``socft sd`` and
for ``load_lora_weights`` of diffusers' pipelines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_experiments import config
from sd_experiments.assignments import read_assignments
from sd_experiments.manifest import replace_folder
from sd_experiments.model.flow_chain import FlowModelReference, ode_sample, tuned_velocity
from sd_experiments.model.lora_io import save_lora
from sd_experiments.reward.rewards import Images, decode
from sd_experiments.training.build import Checker, Experiment, build, find_device
from sd_experiments.training.monitor import (
    FRONTIER,
    METRICS,
    Display,
    ImageStatistics,
    MetricsFile,
    RewardHackingDetector,
    TensorBoardWriter,
    diversity,
    plot_frontier,
    read_metrics,
    save_image_grid,
)
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import seeded_generator
from sd_experiments.training.rounds import PromptSamples
from sd_experiments.training.storage import CheckpointFailed, CheckpointStore
from sd_experiments.training.train import Trainer, TrainingStep
from socft.checks import InvalidProblem, require, told, tried
from socft.files import FULL, locked, reason, write_atomically
from socft.path import Noise, rollout
from socft.policy import Policy, Uncontrolled

CHECKPOINTS = "checkpoints"
LORA = "lora"
LOCK = ".lock"


def load_config(
    file: Path,
    out: Path | None = None,
    steps: int | None = None,
    assignments: Sequence[str] = (),
) -> config.ExperimentConfig:
    """The settings of a file, with others in their place if given: ``KEY=VALUE`` as in
    `sd_experiments.assignments`, then folder and length of the run.
    """
    given = {"out": None if out is None else str(out), "steps": steps}
    run = [config.Change(("run", key), value) for key, value in given.items() if value is not None]
    return config.read_config(file, (*read_assignments(assignments), *run))


def make_trainer(experiment: Experiment, group: ProcessGroup | None = None) -> Trainer:
    """The training loop of an experiment."""
    parameters = dict(experiment.lora.named_parameters())
    return Trainer(
        experiment.tasks,
        experiment.estimator,
        parameters,
        experiment.settings,
        group,
        experiment.dtype,
    )


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
    with Display(settings.run.steps, silent=not group.is_main_process) as display:
        for change in read_assignments(changes):
            display.say(f"in place of the file's: {change}")
        return fine_tune(settings, resume, display, group)[1]


def fine_tune(
    settings: config.ExperimentConfig,
    resume: bool,
    display: Display,
    group: ProcessGroup | None = None,
) -> tuple[Experiment, Trainer]:
    """Fine-tune by settings in their folder.

    Raises:
        InvalidProblem: as for `train`.
    """
    group, folder = group or ProcessGroup(), Path(settings.run.out)
    require(
        not folder.is_file(),
        f"run.out = {str(folder)!r} is a file; give a folder, or another one with --out.",
    )
    alone = locked(folder / LOCK) if group.is_main_process else contextlib.nullcontext()
    with alone:
        return _fine_tuned(settings, resume, display, group)


def _fine_tuned(
    settings: config.ExperimentConfig, resume: bool, display: Display, group: ProcessGroup
) -> tuple[Experiment, Trainer]:
    """The only run in the folder."""
    folder = Path(settings.run.out)
    checkpoints = CheckpointStore(folder / CHECKPOINTS, settings.run.keep, group, display.say)
    newest = checkpoints.newest() if resume else None
    fresh = resume or not any((folder / CHECKPOINTS).glob("step-*"))
    require(
        fresh,
        f"{folder} holds a run; continue it with --resume, or choose another folder with --out.",
    )
    experiment = build(settings)
    trainer = make_trainer(experiment, group)
    if newest is not None:
        trainer.restore(newest)
        display.say(f"continuing after gradient step {trainer.step}")
    elif resume:
        display.say(f"{folder} holds no checkpoint; beginning with gradient step 1")
    if settings.batch.prompts < len(trainer.tasks):
        display.say(
            f"prompts take turns: a round, and its reward, is of {settings.batch.prompts} of the"
            f" {len(trainer.tasks)}"
        )
    try:
        with _observed(trainer, experiment, folder, display) as observe:
            _run(trainer, checkpoints, observe)
        if group.is_main_process:
            _finish(trainer, experiment, folder, display)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f"{folder} could not be written ({reason(error)})"
        raise InvalidProblem(
            f"{where} after gradient step {trainer.step}; {checkpoints.remedy}"
        ) from error
    return experiment, trainer


def _run(
    trainer: Trainer,
    checkpoints: CheckpointStore,
    observe: Callable[[TrainingStep], None] = lambda step: None,
) -> None:
    """Train with checkpoints; when a number is refused, the state before that step is written
    too.
    """
    saved = trainer.step
    try:
        for step in trainer.iterations():
            observe(step)
            if (
                trainer.step % trainer.settings.run.checkpoint_every == 0
                or trainer.step == trainer.settings.run.steps
            ):
                checkpoints.save(trainer.step, *trainer.files())
                saved = trainer.step
    except CheckpointFailed:
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after gradient step {trainer.step}; --resume continues after step {saved}"
        ) from None
    except (ValueError, RuntimeError):
        if trainer.step > saved and trainer.group.size == 1:
            checkpoints.save(trainer.step, *trainer.files())
        raise


@contextlib.contextmanager
def _observed(
    trainer: Trainer, experiment: Experiment, folder: Path, display: Display
) -> Iterator[Callable[[TrainingStep], None]]:
    """What is done with every gradient step: measure pictures, write, show, warn."""
    if not trainer.group.is_main_process:
        yield lambda step: None
        return
    write_atomically(
        folder / "settings.json", (json.dumps(trainer.settings.plain(), indent=2) + "\n").encode()
    )
    file = MetricsFile(folder / METRICS, trainer.step)
    board = TensorBoardWriter(folder / "tensorboard", trainer.step)
    detector = RewardHackingDetector(trainer.settings.monitor.window)
    for row in (row for row in file.rows if "diversity" in row):
        detector.add(row["reward"], ImageStatistics(row["accuracy"], row["diversity"]))

    def observe(step: TrainingStep) -> None:
        metrics, statistics = step.metrics, None
        if step.fresh:
            pictures = [(samples, _pictures(experiment, samples)) for samples in step.fresh]
            statistics = _image_statistics(experiment, pictures)
            for line in detector.add(metrics.reward, statistics):
                display.say(line)
            if metrics.round % trainer.settings.monitor.images_every == 0:
                for samples, images in pictures:
                    board.pictures(experiment.tasks[samples.task].name, images, metrics.step)
        row = file.append(metrics, statistics)
        board.scalars(row)
        display.show(row)

    try:
        yield observe
    finally:
        file.close()
        board.close()


def _finish(trainer: Trainer, experiment: Experiment, folder: Path, display: Display) -> None:
    """Write the averaged layers and the reward-KL frontier."""
    with trainer.using_averages():
        replace_folder(folder / LORA, functools.partial(save_lora, experiment.lora))
    rows = read_metrics(folder / METRICS)
    try:
        plot_frontier(rows, folder / FRONTIER, trainer.settings.monitor.window)
    except ModuleNotFoundError:
        display.say("the frontier is not drawn without matplotlib; run: pip install 'socft[plot]'")
    except (ValueError, RuntimeError) as error:  # what is trained is not lost for a picture
        display.say(f"the frontier is not drawn: {told(error)}")
    display.say(
        f"done: the averaged layers are in {folder / LORA}, the numbers in {folder / METRICS}"
    )


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


def check_images(checker: Checker | None, images: Images, prompt: str) -> Tensor | None:
    if checker is None:
        return None
    found = tried(checker, (images, prompt), "the checker")
    good = isinstance(found, Tensor) and found.shape == (len(images),)
    require(
        good,
        f"the checker returned {found!r:.60} for {len(images)} images; it must return one number in"
        " [0, 1] per image.",
    )
    return found.float()


# After training


def load_trained(
    file: Path, out: Path | None, step: int | None = None, changes: Sequence[str] = ()
) -> tuple[Experiment, Trainer]:
    """A run's experiment with the averaged layers of a checkpoint in place, the newest by
    default.
    """
    settings = load_config(file, out, assignments=changes)
    folder, where = Path(settings.run.out), "" if out is None else f" --out {out}"
    where += "".join(f" --set {shlex.quote(each)}" for each in changes)
    require(not folder.is_file(), f"run.out = {str(folder)!r} is a file; give the folder of a run.")
    checkpoints = CheckpointStore(folder / CHECKPOINTS)
    found = checkpoints.newest() if step is None else checkpoints.at(step)
    require(
        found is not None,
        f"{folder} holds no checkpoint; train first: socft sd train --config {file}{where}",
    )
    assert found is not None
    experiment = build(settings)
    trainer = make_trainer(experiment)
    trainer.load_averages(found)
    return experiment, trainer


@dataclasses.dataclass(frozen=True)
class ImageSamples:
    """Pictures of one prompt and what they are worth.

    Attributes:
        images: in [0, 1].
        rewards: one per picture.
        kl: of each path of the chain.
    """

    images: Images
    rewards: Tensor
    kl: Tensor


def evaluation_noise(experiment: Experiment, task: PromptTask, number: int, seed: int) -> Noise:
    """Noise that no training saw, a function of seed, prompt and the number of each path."""
    reference, device = task.problem.reference, next(experiment.lora.parameters()).device
    noise = [
        Noise.sample(
            reference, 1, seeded_generator(seed, "evaluation", task.name, i), experiment.dtype
        )
        for i in range(number)
    ]
    return Noise(
        torch.cat([n.initial for n in noise]).to(device),
        torch.cat([n.steps for n in noise], 1).to(device),
    )


@torch.no_grad()
def sample_images(
    experiment: Experiment,
    task: PromptTask,
    policy: Policy,
    number: int,
    seed: int,
    ode: bool = False,
) -> ImageSamples:
    """Pictures by a policy, from noise that is a function of seed, prompt and their number.

    Args:
        ode: draw by a flow's own sampler, without noise, in place of the chain.

    Raises:
        InvalidProblem: the model is no flow, and has no such sampler.
    """
    reference = task.problem.reference
    noise = evaluation_noise(experiment, task, number, seed)
    path = rollout(reference, policy, noise)
    final = path.final
    if ode:
        is_flow = isinstance(reference, FlowModelReference)
        require(is_flow, "this model is no flow and has no ODE of its own; leave out --ode.")
        assert isinstance(reference, FlowModelReference)
        start = reference.initial(noise.initial)
        final = ode_sample(reference, tuned_velocity(reference, policy), start)[-1]
    parts = final.split(experiment.settings.reward.chunk)
    images = torch.cat([decode(experiment.base, part).float().cpu() for part in parts])
    return ImageSamples(
        images, task.problem.reward(final).cpu().double(), path.kl().sum(0).cpu().double()
    )


def sample_grid(
    file: Path,
    out: Path | None,
    number: int,
    seed: int,
    target: Path | None,
    step: int | None = None,
    ode: bool = False,
    changes: Sequence[str] = (),
) -> Path:
    """Write pictures of every prompt, pre-trained above fine-tuned; the file."""
    require(number >= 1, f"number = {number}; draw at least one picture per prompt.")
    experiment, _ = load_trained(file, out, step, changes)
    target = target or Path(experiment.settings.run.out) / "samples.png"
    with locked(_lock_of(target), "wait for it, or name another file with --grid"):
        rows = [
            sample_images(experiment, task, policy, number, seed, ode).images
            for task in experiment.tasks
            for policy in (Uncontrolled(task.problem.reference), task.policy)
        ]
        save_image_grid(torch.cat(rows), number, target)
    return target


def _lock_of(file: Path) -> Path:
    """What is locked while a file is made."""
    return file.with_name(f".{file.name}.lock")


def evaluate(
    file: Path,
    out: Path | None,
    number: int,
    seed: int,
    step: int | None = None,
    ode: bool = False,
    changes: Sequence[str] = (),
) -> list[dict[str, object]]:
    """Print and write to ``evaluation-STEP.json`` what both models reach on the same noise, and the
    gain, picture by picture.
    """
    require(
        number >= 2, f"number = {number}; a standard error needs at least 2 pictures per prompt."
    )
    experiment, trainer = load_trained(file, out, step, changes)
    file = Path(experiment.settings.run.out) / f"evaluation-{trainer.step}.json"
    with locked(_lock_of(file), "wait for it"):
        rows = []
        for row in _evaluated(experiment, trainer.step, number, seed, ode):
            rows.append(row)
            print(_line(row))
        write_atomically(file, (json.dumps(rows, indent=2) + "\n").encode())
    print(f"wrote {file}")
    return rows


def _evaluated(
    experiment: Experiment, step: int, number: int, seed: int, ode: bool
) -> Iterator[dict[str, object]]:
    """What each model reaches on each prompt, and the fine-tuned one's gain."""
    for task in experiment.tasks:
        before = None
        for model, policy in (
            ("pre-trained", Uncontrolled(task.problem.reference)),
            ("fine-tuned", task.policy),
        ):
            found = sample_images(experiment, task, policy, number, seed, ode)
            worth = score_images(experiment, task, found)
            row: dict[str, object] = {
                "prompt": task.name,
                "model": model,
                "step": step,
                "seed": seed,
                "pictures": number,
                "sampler": "ODE" if ode else "chain",
            }
            row["kl"] = float(found.kl.mean())
            for name, values in worth.items():
                row |= _with_error(name, values)
                if before is not None:
                    row |= _with_error(f"{name}_gain", values - before[name])
            yield row | {"diversity": diversity(found.images)}
            before = worth


def score_images(
    experiment: Experiment, task: PromptTask, found: ImageSamples
) -> dict[str, Tensor]:
    """What every picture is worth: its reward, and whether it is right, where someone can tell.

    Differences between two models' pictures from the same noise have less noise than either has.
    """
    right = check_images(experiment.checker, found.images, task.name)
    return {"reward": found.rewards} | ({} if right is None else {"accuracy": right.double()})


def _with_error(name: str, values: Tensor) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_stderr": float(values.std() / len(values) ** 0.5)}


def _line(row: Mapping[str, Any]) -> str:
    def told(name: str, digits: int) -> str:
        if name not in row:
            return ""
        gain = f"{name}_gain"
        more = (
            f" ({row[gain]:+.{digits}f} ± {row[f'{gain}_stderr']:.{digits}f})"
            if gain in row
            else ""
        )
        return f"{name} {row[name]:.{digits}f} ± {row[f'{name}_stderr']:.{digits}f}{more}, "

    worth = told("reward", 3) + told("accuracy", 2)
    return (
        f"{row['prompt']}, {row['model']}: {worth}KL {row['kl']:.2f}, diversity"
        f" {row['diversity']:.3f}"
    )
