r"""What makes costates large: pictures that are undecided, and guidance.

The lean costate of a path is a sample of the gradient of the value
:math:`V_k(x) = E[r(X_T) \mid X_k = x]` of the pre-trained chain, so it is large where a little
noise decides what the picture becomes. Both sides of this are measured. The costates of many paths,
the tenth of the paths with the largest ones apart; and from every state of these paths, the chain
is continued on fresh noise many times: the standard deviation of the rewards says how undecided the
picture is at that step. The rank correlation of the two over the paths says how far one explains
the other.

To first order in the noise that deviation *is* the size of a costate, whatever the picture, so the
correlation by itself shows little. Every continuation is therefore run on a noise and its opposite.
Half the difference of their rewards holds the odd orders, the first among them, and their mean the
even ones; the two are uncorrelated. The deviation of the means is what is undecided beyond the
first order, and its correlation with the costates is the control.

Guidance changes the chain, hence its Jacobians and its pictures; the same paths' noise is guided at
several scales.

What the largest costates do to gradients, what limiting them does, and whether other estimators of
the gradient point the same way, is measured by `sd_experiments.studies.gradient_agreement`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from sd_experiments import config
from sd_experiments.assignments import read_assignments
from sd_experiments.model.policy import adjoint_norms
from sd_experiments.studies import gradient_agreement
from sd_experiments.studies.gradient_agreement import (
    LIMITS,
    agreement,
    compare_estimators,
    jackknife,
)
from sd_experiments.studies.reproduce.scales import SCALES
from sd_experiments.training.build import Experiment, build, find_device, instantiate
from sd_experiments.training.prompt_task import PromptTask as Prompt
from sd_experiments.training.replay_buffer import seeded_generator
from sd_experiments.training.session import (
    evaluation_noise,
    make_loop,
    sample_images,
    score_images,
)
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.catalogue import ANYWHERE
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.records import Record
from socft.study import runner
from socft.study.tasks import Study, Task
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_COSTATE_SIZE
from socft.study.workers import processes

SEED = 2
TOP = 0.9
"""Quantile of the largest costate of a path above which the path is one of the ``top``."""
QUANTILES = (0.5, 0.9, 1.0)
PARTS = ("top", "rest")
COMPARED = SCALES["tiny"].methods
"""Methods whose gradients are compared with the policy gradient, on fresh paths, where clips of
likelihood ratios do nothing.
"""


@dataclasses.dataclass(frozen=True)
class StudySize:
    """How much is measured.

    Attributes:
        paths: of which costates are taken.
        pairs: of a noise and its opposite, on which every state of these is continued.
        guidance: scales besides the configuration's.
        pictures: per scale of guidance.
        batches: whose gradients are compared.
        steps: gradient steps to the second policy at which they are.
    """

    paths: int
    pairs: int
    guidance: tuple[float, ...]
    pictures: int
    batches: int
    steps: int


FULL = StudySize(paths=192, pairs=10, guidance=(2.0, 4.0, 7.5), pictures=512, batches=10, steps=40)
QUICK = StudySize(paths=20, pairs=2, guidance=(4.0,), pictures=4, batches=3, steps=1)


def run(
    file: Path, quick: bool, out: Path, workers: int = 2, changes: Sequence[str] = ()
) -> list[Record]:
    """Measure into ``<out>/sd_costate_size.jsonl``, continuing an interrupted run.

    Args:
        changes: ``KEY=VALUE``, each in place of the file's.
    """
    settings = config.read_config(file, read_assignments(changes))
    made = tasks(settings, QUICK if quick else FULL)
    study = Study(SD_COSTATE_SIZE, lambda _: made)
    with processes(workers) as pool:
        return runner.run(study, quick, out, pool)


def tasks(settings: config.ExperimentConfig, size: StudySize) -> list[Task]:
    """For every prompt: forks of the chain, limits of its target controls, methods, and costates at
    every scale of guidance.
    """
    listed = []
    for prompt in settings.problem.prompts:
        alone = dataclasses.replace(
            settings, problem=dataclasses.replace(settings.problem, prompts=(prompt,))
        )
        arguments = {"settings": alone.plain(), "paths": size.paths}
        compared = {"settings": alone.plain(), "batches": size.batches}
        listed.append(Task(f"directions: {prompt}", directions, {**compared, "steps": size.steps}))
        listed.append(Task(f"forks: {prompt}", forks, {**arguments, "pairs": size.pairs}))
        listed.append(Task(f"limits: {prompt}", limits, compared))
        for scale in dict.fromkeys((settings.sampler.guidance, *size.guidance)):
            guided = dataclasses.replace(
                alone, sampler=dataclasses.replace(alone.sampler, guidance=scale)
            ).plain()
            listed.append(
                Task(
                    f"guidance {scale:g}: {prompt}",
                    guidance,
                    {**arguments, "settings": guided, "pictures": size.pictures},
                )
            )
    return listed


def forks(settings: Mapping[str, Any], paths: int, pairs: int) -> list[Record]:
    """Growth of costates and undecidedness of pictures at every step, over the top tenth of the
    paths and over the rest.
    """
    experiment, prompt = _prompt(settings)
    noise = evaluation_noise(experiment, prompt, paths, SEED)
    norms = _costates(prompt, noise)
    largest = norms.max(0).values
    top = largest >= largest.quantile(TOP)
    record, states = _recorder(experiment, prompt), _states(prompt, noise)
    found: list[Record] = []
    for k in range(prompt.problem.steps):
        undecided = spread_of_rewards(prompt, states[k], k, pairs)
        growth = (norms[k] / norms[k + 1]).log()
        for part, inside in zip(PARTS, (top, ~top), strict=True):
            setting = {"step": k, "part": part}
            found += [
                _mean(record, Metric.UNDECIDED, undecided.total[inside], setting),
                _mean(record, Metric.UNDECIDED_EVEN, undecided.even[inside], setting),
                _mean(record, Metric.LOG_GROWTH, growth[inside], setting),
                _mean(record, Metric.ADJOINT, norms[k][inside], setting),
            ]
        for metric, values in (
            (Metric.RANK_CORRELATION, undecided.total),
            (Metric.RANK_CORRELATION_EVEN, undecided.even),
        ):
            rank, error = rank_correlation(values, norms[k])
            found.append(record(metric, rank, {"step": k}, stderr=error, seeds=paths))
    return found


def guidance(settings: Mapping[str, Any], paths: int, pictures: int) -> list[Record]:
    """Quantiles of the costates at the first and the last step, of the largest of a path and of its
    growth; and the pictures.
    """
    experiment, prompt = _prompt(settings)
    norms = _costates(prompt, evaluation_noise(experiment, prompt, paths, SEED))
    record, setting = (
        _recorder(experiment, prompt),
        {"guidance": experiment.settings.sampler.guidance},
    )
    measured = {
        "first": norms[0],
        "last": norms[-1],
        "largest": norms.max(0).values,
        "growth": norms[0] / norms[-1],
    }
    quantiles = [
        record(
            Metric.ADJOINT,
            float(values.quantile(q)),
            {**setting, "at": at, "quantile": q},
            seeds=paths,
        )
        for at, values in measured.items()
        for q in QUANTILES
    ]
    found = sample_images(
        experiment, prompt, Uncontrolled(prompt.problem.reference), pictures, SEED
    )
    worth = score_images(experiment, prompt, found)
    return [
        *quantiles,
        *(_mean(record, metric, values, setting) for metric, values in worth.items()),
    ]


def limits(settings: Mapping[str, Any], batches: int) -> list[Record]:
    """How far gradients at the pre-trained model agree under several limits of the target
    controls.
    """
    experiment, prompt = _prompt(settings)
    record, found = _recorder(experiment, prompt), []
    measured = gradient_agreement.gradients(experiment, AdjointMatching(), batches, SEED, LIMITS)
    means: list[Tensor] = []
    for limit, (gradients, limited) in zip(LIMITS, measured, strict=True):
        setting, (agreed, error) = {"limit": limit}, jackknife(agreement, gradients)
        means.append(gradients.mean(0))
        found += [
            record(Metric.AGREEMENT, agreed, setting, stderr=error, seeds=batches),
            record(
                Metric.FIDELITY,
                float(torch.cosine_similarity(means[-1], means[0], dim=0)),
                setting,
                seeds=batches,
            ),
            record(Metric.LIMITED, limited, setting, seeds=batches),
        ]
    return found


def directions(settings: Mapping[str, Any], batches: int, steps: int) -> list[Record]:
    """How far gradients agree, in a method and with PI-FT's, before and after some steps of adjoint
    matching.
    """
    experiment, prompt = _prompt(settings)
    record, trainer = _recorder(experiment, prompt), make_loop(experiment)
    estimators = {
        each.title: instantiate("estimator", ANYWHERE, each.estimator, each.options)
        for each in COMPARED
    }
    found: list[Record] = []
    for after in (0, steps):
        while trainer.step < after:
            next(trainer.iterations())
        for title, metric, value, stderr in compare_estimators(
            experiment, estimators, batches, SEED
        ):
            one = record(metric, value, {"after": after}, stderr=stderr, seeds=batches)
            found.append(dataclasses.replace(one, estimator=title))
    return found


@dataclasses.dataclass(frozen=True)
class Undecided:
    """Standard deviations of the reward over continuations of each state.

    Attributes:
        total: of the reward.
        even: of its part that does not change with the sign of the noise.
    """

    total: Float[Tensor, " paths"]
    even: Float[Tensor, " paths"]


@torch.no_grad()
def spread_of_rewards(prompt: Prompt, states: Tensor, start: int, pairs: int) -> Undecided:
    """Over continuations from step ``start`` on, by the pre-trained chain, on pairs of opposite
    noises; the even part is zero where rewards are linear in the noise.
    """
    reference, generator = (
        prompt.problem.reference,
        seeded_generator(SEED, "continued", prompt.name, start),
    )
    x = states.repeat_interleave(2 * pairs, 0)
    for k in range(start, reference.steps):
        shape = (len(states) * pairs, *reference.noise_dims)
        noise = torch.randn(shape, generator=generator, dtype=x.dtype)
        opposite = torch.stack([noise, -noise], 1).flatten(0, 1)
        x = reference.step(k, x, opposite.to(x.device))
    rewards = prompt.problem.reward(x).double().cpu().reshape(-1, pairs, 2)
    odd, even = (rewards[..., 0] - rewards[..., 1]) / 2, rewards.mean(2)
    return Undecided((odd.square().mean(1) + even.var(1)).sqrt(), even.std(1))


def rank_correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> tuple[float, float]:
    """Spearman's, and its standard error after Bonett and Wright (Psychometrika 65, 2000), by
    Fisher's transform.
    """
    statistic: Any = spearmanr(x.numpy(), y.numpy())
    rank = float(statistic.statistic)
    return rank, (1 - rank**2) * ((1 + rank**2 / 2) / (len(x) - 3)) ** 0.5


def _costates(prompt: Prompt, noise: Noise) -> Float[Tensor, "steps_plus_1 paths"]:
    return adjoint_norms(prompt.problem, noise).double().cpu()


@torch.no_grad()
def _states(prompt: Prompt, noise: Noise) -> Tensor:
    reference = prompt.problem.reference
    return rollout(reference, Uncontrolled(reference), noise).states


def _prompt(settings: Mapping[str, Any]) -> tuple[Experiment, Prompt]:
    experiment = build(config.parse_config(settings))
    return experiment, experiment.tasks[0]


def _recorder(experiment: Experiment, prompt: Prompt) -> Callable[..., Record]:
    model = experiment.settings.model
    return functools.partial(
        Record,
        SD_COSTATE_SIZE.name,
        prompt.name,
        kind="",
        dtype=model.dtype,
        device=find_device(model.device).type,
    )


def _mean(
    record: Callable[..., Record], metric: str, values: Tensor, setting: Mapping[str, Any]
) -> Record:
    stderr = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return record(metric, float(values.mean()), setting, stderr=stderr, seeds=len(values))
