"""What is done with the trained layers of a run: draw with them, measure them."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_experiments import config
from sd_experiments.assignments import read_assignments
from sd_experiments.model.flow_reference import FlowModelReference, ode_sample, tuned_velocity
from sd_experiments.reward.rewards import CLIPScore, ImageRewardModel, Images, decode
from sd_experiments.training.build import Checker, Experiment, build, find_device, load_reward_model
from sd_experiments.training.loop import TrainingLoop
from sd_experiments.training.monitor import diversity
from sd_experiments.training.picture_grid import PictureRow, save_captioned_grid
from sd_experiments.training.process_group import ProcessGroup
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import seeded_generator
from sd_experiments.training.storage import CheckpointStore
from socft.checks import require, tried
from socft.files import locked, write_atomically
from socft.path import Noise, rollout
from socft.policy import Policy, Uncontrolled
from socft.reference import Reference, States

CHECKPOINTS = "checkpoints"
HALF = 0.5
"""What a checker that says how right a picture is must be above for a right one."""
JUDGED = 4
"""Pictures judged at a time."""


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


def make_loop(experiment: Experiment, group: ProcessGroup | None = None) -> TrainingLoop:
    """The training loop of an experiment."""
    parameters = dict(experiment.lora.named_parameters())
    return TrainingLoop(
        experiment.tasks,
        experiment.estimator,
        parameters,
        experiment.settings,
        group,
        experiment.dtype,
    )


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


def load_trained(
    file: Path, out: Path | None, step: int | None = None, changes: Sequence[str] = ()
) -> tuple[Experiment, TrainingLoop]:
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
    loop = make_loop(experiment)
    loop.load_averages(found)
    return experiment, loop


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
    with task.sharing.merging():
        path = rollout(reference, policy, noise)
        final = _ode_sample(reference, policy, noise) if ode else path.final
    parts = final.split(experiment.settings.reward.chunk)
    images = torch.cat([decode(experiment.base, part).float().cpu() for part in parts])
    return ImageSamples(
        images, task.problem.reward(final).cpu().double(), path.kl().sum(0).cpu().double()
    )


def _ode_sample(reference: Reference, policy: Policy, noise: Noise) -> States:
    """The ends of a flow's own sampler."""
    is_flow = isinstance(reference, FlowModelReference)
    require(is_flow, "this model is no flow and has no ODE of its own; leave out --ode.")
    assert isinstance(reference, FlowModelReference)
    start = reference.initial(noise.initial)
    return ode_sample(reference, tuned_velocity(reference, policy), start)[-1]


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
    """Write pictures of every prompt, pre-trained above fine-tuned, prompt and reward under each;
    the file.
    """
    require(number >= 1, f"number = {number}; draw at least one picture per prompt.")
    experiment, _ = load_trained(file, out, step, changes)
    target = target or Path(experiment.settings.run.out) / "samples.png"
    with locked(_lock_of(target), "wait for it, or name another file with --grid"):
        rows = [
            row
            for task in experiment.tasks
            for row in before_and_after(experiment, task, number, seed, ode)
        ]
        save_captioned_grid(rows, target)
    return target


def before_and_after(
    experiment: Experiment, task: PromptTask, number: int, seed: int, ode: bool = False
) -> tuple[PictureRow, PictureRow]:
    """Pictures of a prompt by the pre-trained and by the fine-tuned model from the same noise."""
    before, after = (
        sample_images(experiment, task, policy, number, seed, ode)
        for policy in (Uncontrolled(task.problem.reference), task.policy)
    )
    return _captioned("pre-trained", task, before), _captioned("fine-tuned", task, after)


def _captioned(model: str, task: PromptTask, found: ImageSamples) -> PictureRow:
    captions = [f"{task.name}\nreward {reward:.3f}" for reward in found.rewards.tolist()]
    title = f"{model}: {task.name}, mean reward {float(found.rewards.mean()):.3f}"
    return PictureRow(title, found.images, captions)


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
    experiment, loop = load_trained(file, out, step, changes)
    file = Path(experiment.settings.run.out) / f"evaluation-{loop.step}.json"
    with locked(_lock_of(file), "wait for it"):
        rows = []
        for row in _evaluated(experiment, loop.step, number, seed, ode):
            rows.append(row)
            print(_line(row))
        write_atomically(file, (json.dumps(rows, indent=2) + "\n").encode())
    print(f"wrote {file}")
    return rows


def _evaluated(
    experiment: Experiment, step: int, number: int, seed: int, ode: bool
) -> Iterator[dict[str, object]]:
    """What each model reaches on each prompt, and the fine-tuned one's gain."""
    monitor = experiment.settings.monitor
    device = find_device(experiment.settings.model.device)
    judges = load_judges(monitor.judges, device)
    features = None if monitor.features is None else CLIPScore.load(monitor.features).to(device)
    for task in experiment.tasks:
        before = None
        for model, policy in (
            ("pre-trained", Uncontrolled(task.problem.reference)),
            ("fine-tuned", task.policy),
        ):
            found = sample_images(experiment, task, policy, number, seed, ode)
            objective = found.rewards - experiment.settings.problem.beta * found.kl
            scores = score_images(experiment, task, found)
            worth = {"objective": objective} | scores | judged(judges, found.images, task.name)
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
            if before is None and "accuracy" in scores:
                row |= told_apart(scores["reward"], scores["accuracy"])
            row["diversity"] = diversity(found.images)
            if features is not None:
                row["feature_diversity"] = feature_diversity(features, found.images)
            yield row
            before = worth


def score_images(
    experiment: Experiment, task: PromptTask, found: ImageSamples
) -> dict[str, Tensor]:
    """What every picture is worth: its reward, and whether it is right, where someone can tell.

    Differences between two models' pictures from the same noise have less noise than either has.
    """
    right = check_images(experiment.checker, found.images, task.name)
    return {"reward": found.rewards} | ({} if right is None else {"accuracy": right.double()})


def load_judges(
    terms: Sequence[config.RewardTerm], device: torch.device
) -> dict[str, ImageRewardModel]:
    """Judges by name, with their folder where two have one name."""
    names = [each.name for each in terms]
    titles = [
        each.name if names.count(each.name) == 1 else f"{each.name} {Path(each.path or '').name}"
        for each in terms
    ]
    twice = sorted({each for each in titles if titles.count(each) > 1})
    require(not twice, f"monitor.judges has {twice[:1]} twice; name each once.")
    return {
        title: load_reward_model(each, device) for title, each in zip(titles, terms, strict=True)
    }


@torch.no_grad()
def judged(
    judges: Mapping[str, ImageRewardModel], images: Images, prompt: str
) -> dict[str, Tensor]:
    """What every picture is worth to rewards that were not trained for."""
    found = {}
    for name, judge in judges.items():
        device = next(judge.parameters()).device if isinstance(judge, nn.Module) else images.device
        parts = [
            tried(judge, (part.to(device), prompt), f"the judge {name}")
            for part in images.split(JUDGED)
        ]
        found[f"judge {name}"] = torch.cat(parts).cpu().double()
    return found


@torch.no_grad()
def feature_diversity(clip: CLIPScore, images: Images) -> float:
    """Mean of one minus the cosine between the embeddings of two of the pictures."""
    device = clip.get_buffer("mean").device
    seen = torch.cat([clip.embedding(part.to(device)) for part in images.split(JUDGED)]).double()
    number = len(seen)
    total = float(seen.sum(0).square().sum()) - float(seen.square().sum())
    return 1 - total / (number * (number - 1))


def _with_error(name: str, values: Tensor) -> dict[str, float]:
    return {name: float(values.mean()), f"{name}_stderr": float(values.std() / len(values) ** 0.5)}


def told_apart(rewards: Tensor, right: Tensor) -> dict[str, float]:
    """How often the reward of a right picture is above that of a wrong one, a tie for a half, and
    the standard error over pictures; nothing where all are right, or wrong.
    """
    good, bad = rewards[right > HALF], rewards[right <= HALF]
    if min(len(good), len(bad)) < 2:
        return {}
    above = (good[:, None] > bad).double() + (good[:, None] == bad).double() / 2
    spread = above.mean(1).var() / len(good) + above.mean(0).var() / len(bad)
    return {"told_apart": float(above.mean()), "told_apart_stderr": float(spread**0.5)}


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

    worth = told("objective", 3) + told("reward", 3) + told("accuracy", 2)
    judges = [name for name in row if name.startswith("judge ") and f"{name}_stderr" in row]
    worth += "".join(told(name, 3) for name in judges if not name.endswith("_gain"))
    return (
        f"{row['prompt']}, {row['model']}: {worth}KL {row['kl']:.2f}, diversity"
        f" {row['diversity']:.3f}"
        + (
            f"; the reward of a right picture is above that of a wrong one in"
            f" {row['told_apart']:.0%} ± {row['told_apart_stderr']:.0%} of pairs"
            if "told_apart" in row
            else ""
        )
    ) + ("" if "feature_diversity" not in row else f", in features {row['feature_diversity']:.3f}")
