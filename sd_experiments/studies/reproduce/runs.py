"""One run: fine-tune, draw pictures, measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_experiments import config
from sd_experiments.model.memory import reset_peak
from sd_experiments.studies.reproduce.results import (
    agreement_records,
    curve_records,
    drop_record,
    final_records,
    gain_records,
    mean_record,
    recorder,
    round_records,
    sampling_rounds,
    target_records,
)
from sd_experiments.studies.reproduce.scales import SEED, FineTuningMethod
from sd_experiments.training.build import Experiment, build, find_device
from sd_experiments.training.monitor import METRICS, Display, read_metrics, save_image_grid
from sd_experiments.training.session import (
    ImageSamples,
    evaluation_noise,
    sample_images,
    score_images,
)
from sd_experiments.training.trainer import Trainer
from socft.estimators.base import CostateEstimator
from socft.path import rollout
from socft.policy import Policy, Uncontrolled
from socft.records import Record
from socft.study.comparison import has_fallen
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

PICTURES = "pictures.png"
LABELLED, QUANTILES = 48, (0.5, 0.9, 1.0)
"""Paths whose target controls are compared, and what is recorded of their norms."""
_PRETRAINED_SCORES: dict[str, Mapping[str, Tensor]] = {}
"""Of this process' pictures by pre-trained models, by all that they depend on."""


def measure_pretrained(
    study: str, settings: Mapping[str, Any], pictures: int, shown: int
) -> list[Record]:
    """What the pre-trained model draws for one prompt."""
    parsed = config.parse_config(settings)
    reset_peak(find_device(parsed.model.device))
    experiment = build(parsed)
    policy = Uncontrolled(experiment.tasks[0].problem.reference)
    images = _images(experiment, policy, pictures)
    before = score_images(experiment, experiment.tasks[0], images)
    record = recorder(study, experiment, MethodName.PRE_TRAINED, "")
    _keep(images, shown, parsed)
    return [
        *final_records(record, experiment, images, []),
        *gain_records(record, experiment, images, before, {"beta": parsed.problem.beta}),
        *target_records(record, experiment, _spread(experiment, policy)),
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _FineTuned:
    """A finished run.

    Attributes:
        experiment: with the last layers.
        images: by the averaged layers.
        spread: of their target controls.
        rows: what every gradient step measured.
    """

    experiment: Experiment
    images: ImageSamples
    spread: list[tuple[dict[str, Any], float]]
    rows: list[dict[str, Any]]


def _fine_tuned(settings: Mapping[str, Any], pictures: int) -> _FineTuned:
    """Fine-tune in the run's folder, from its last checkpoint if there is one."""
    trainer, rows = _trained(settings)
    experiment = trainer.experiment
    with trainer.loop.using_averages():
        policy = experiment.tasks[0].policy
        images, spread = _images(experiment, policy, pictures), _spread(experiment, policy)
    return _FineTuned(experiment, images, spread, rows)


def _trained(settings: Mapping[str, Any]) -> tuple[Trainer, list[dict[str, Any]]]:
    """The end of a training, and what its gradient steps measured."""
    parsed = config.parse_config(settings)
    reset_peak(find_device(parsed.model.device))
    trainer = Trainer(settings=parsed, display=Display(parsed.run.steps, silent=True))
    trainer.train(resume=True)
    return trainer, read_metrics(Path(parsed.run.out) / METRICS)


def measure_training(
    study: str,
    method: FineTuningMethod,
    settings: Mapping[str, Any],
    pictures: int,
    setting: Mapping[str, Any],
) -> list[Record]:
    """Fine-tune for one prompt by one method: what is gained, on pictures from noise that goes by
    the seed of the training, and what every round measured.
    """
    trainer, rows = _trained(settings)
    experiment, task = trainer.experiment, trainer.experiment.tasks[0]
    seed, beta = experiment.settings.run.seed, experiment.settings.problem.beta
    with trainer.loop.using_averages():
        images = _images(experiment, task.policy, pictures, seed)
    before = _before(experiment, pictures, seed)
    record = recorder(study, experiment, method.title, experiment.estimator.estimates.kind)
    where = {"beta": beta, "rate": experiment.settings.optimiser.rate, **setting}
    objective = images.rewards - beta * images.kl - before["reward"]
    return [
        mean_record(record, Metric.OBJECTIVE_GAIN, objective, where),
        mean_record(record, Metric.REWARD, images.rewards, where),
        mean_record(record, Metric.KL, images.kl, where),
        *gain_records(record, experiment, images, before, where),
        *round_records(record, rows, where),
    ]


def measure_method(
    study: str,
    method: FineTuningMethod,
    settings: Mapping[str, Any],
    pictures: int,
    shown: int,
    compared: FineTuningMethod,
    batches: int,
) -> list[Record]:
    """Fine-tune for one prompt by one method, and measure the result.

    Args:
        compared: the method whose gradients are compared with this one's, over so many ``batches``,
            if the run fell.
    """
    run = _fine_tuned(settings, pictures)
    experiment, beta = run.experiment, run.experiment.settings.problem.beta
    before = _before(experiment, pictures)
    record = recorder(study, experiment, method.title, experiment.estimator.estimates.kind)
    _keep(run.images, shown, experiment.settings)
    results = list(final_records(record, experiment, run.images, run.rows))
    if any(map(has_fallen, results)):
        policy = {"beta": beta, "policy": method.title}
        results += agreement_records(record, experiment, (compared, method), batches, policy)
    return [
        *results,
        *gain_records(record, experiment, run.images, before, {"beta": beta}),
        *target_records(record, experiment, run.spread),
        *curve_records(record, run.rows, beta),
    ]


def measure_variant(
    study: str,
    method: FineTuningMethod,
    settings: Mapping[str, Any],
    pictures: int,
    variant: Mapping[str, Any],
) -> list[Record]:
    """Fine-tune for one prompt by a variant of a method: its gains, divergence and drop."""
    run = _fine_tuned(settings, pictures)
    experiment, fresh = run.experiment, sampling_rounds(run.rows)
    record = recorder(study, experiment, method.title, experiment.estimator.estimates.kind)
    setting = {"beta": experiment.settings.problem.beta, **variant}
    return [
        *gain_records(record, experiment, run.images, _before(experiment, pictures), setting),
        mean_record(record, Metric.KL, run.images.kl, setting),
        *([drop_record(record, fresh, setting)] if fresh else []),
    ]


def _keep(images: ImageSamples, shown: int, settings: config.ExperimentConfig) -> None:
    """Write the first pictures into the run's folder."""
    kept = images.images[:shown]
    save_image_grid(kept, len(kept), Path(settings.run.out) / PICTURES)


def _before(experiment: Experiment, pictures: int, seed: int = SEED) -> Mapping[str, Tensor]:
    """What pictures of the pre-trained model are worth; every process draws them once for all its
    runs of a prompt.
    """
    s, task = experiment.settings, experiment.tasks[0]
    key = repr((s.model, s.sampler, s.reward, s.monitor.checker, task.name, pictures, seed))
    if key not in _PRETRAINED_SCORES:
        images = _images(experiment, Uncontrolled(task.problem.reference), pictures, seed)
        _PRETRAINED_SCORES[key] = score_images(experiment, task, images)
    return _PRETRAINED_SCORES[key]


def _images(experiment: Experiment, policy: Policy, number: int, seed: int = SEED) -> ImageSamples:
    return sample_images(experiment, experiment.tasks[0], policy, number, seed)


@torch.no_grad()
def _spread(experiment: Experiment, policy: Policy) -> list[tuple[dict[str, Any], float]]:
    """Quantiles of the norms of the target controls of the first and of the last step, for
    estimators that have such.
    """
    task, estimator = experiment.tasks[0], experiment.estimator
    if not isinstance(estimator, CostateEstimator):
        return []
    path = rollout(
        task.problem.reference, policy, evaluation_noise(experiment, task, LABELLED, SEED)
    )
    with task.sharing.labelling():
        labels = estimator.label(task.problem, policy, path)
    norms = labels.targets.double().flatten(2).norm(dim=2)
    places = {"first": 0, "last": len(norms) - 1}
    return [
        ({"at": at, "quantile": q}, float(norms[k].quantile(q)))
        for at, k in places.items()
        for q in QUANTILES
    ]
