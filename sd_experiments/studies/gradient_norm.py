r"""How the gradient of PI-FT shrinks along training, without its noise: ``socft sd gradient-norm``.

A run is noisy where its gradients are, so the norm of a gradient falls to that of its noise and no
further, whatever is left of its mean. With the gradients :math:`g_i` of n batches of paths at one
policy,

.. math:: \frac{1}{n (n - 1)} \sum_{i \ne j} g_i \cdot g_j

is an unbiased estimate of the squared norm of the mean gradient. It is measured before, halfway
through and after the trainings of `sd_experiments.studies.reproduce`, at the averaged layers, with
the configuration's limit of target controls.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sd_experiments import config
from sd_experiments.studies import gradient_agreement
from sd_experiments.studies.gradient_agreement import jackknife
from sd_experiments.studies.reproduce.scales import ReproductionScale, method_config
from sd_experiments.training.build import build, find_device
from sd_experiments.training.session import make_loop
from socft.records import Record
from socft.study import runner
from socft.study.comparison import gradient_norm_study
from socft.study.tasks import Study, Task
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_GRADIENT_NORM
from socft.study.workers import processes

SEED = 3
PARTS = (0.0, 0.5, 1.0)
BATCHES, FEW = 48, 3


def run(scale: ReproductionScale, quick: bool, out: Path, workers: int = 2) -> list[Record]:
    """Measure into ``<out>/<study>.jsonl``, continuing an interrupted run."""
    study = Study(
        SD_GRADIENT_NORM.named(gradient_norm_study(scale.study.name)),
        lambda _: tasks(scale, FEW if quick else BATCHES),
    )
    with processes(workers) as pool:
        return runner.run(study, quick, out, pool)


def tasks(scale: ReproductionScale, batches: int) -> list[Task]:
    """PI-FT on every prompt, as it is trained there."""
    settings = scale.settings
    runs = {
        prompt: method_config(scale, scale.pi_ft, prompt, settings.problem.beta).plain()
        for prompt in settings.problem.prompts
    }
    shared = {"study": gradient_norm_study(scale.study.name), "batches": batches}
    return [
        Task(f"descent: {prompt}", gradient_norms, {**shared, "settings": each})
        for prompt, each in runs.items()
    ]


def gradient_norms(study: str, settings: Mapping[str, Any], batches: int) -> list[Record]:
    """The squared norm of the mean gradient, and of the gradient of a batch, along a training."""
    experiment = build(config.parse_config(settings))
    trainer, model = make_loop(experiment), experiment.settings.model
    steps, iterations = experiment.settings.run.steps, trainer.iterations()
    record = functools.partial(
        Record,
        study,
        experiment.tasks[0].name,
        kind=experiment.estimator.estimates.kind,
        dtype=model.dtype,
        device=find_device(model.device).type,
        seeds=batches,
    )
    found: list[Record] = []
    for part in PARTS:
        while trainer.step < round(part * steps):
            next(iterations)
        with trainer.using_averages():
            limits = (experiment.settings.batch.target_clip,)
            gradients, _ = next(
                gradient_agreement.gradients(
                    experiment, experiment.estimator, batches, SEED, limits
                )
            )
        squares, setting = (
            gradients.square().sum(1),
            {"part": part, "step": trainer.step, "paths": experiment.settings.batch.per_step},
        )
        mean, error = jackknife(gradient_agreement.squared_mean, gradients)
        found += [
            record(Metric.MEAN_GRADIENT_SQUARED, mean, setting, stderr=error),
            record(
                Metric.GRADIENT_SQUARED,
                float(squares.mean()),
                setting,
                stderr=float(squares.std() / batches**0.5),
            ),
        ]
    return found
