r"""What does a trained network in place of the exact score change? The published runs of guidance
on :math:`f_1`.

Everything else is that of `toy.studies.guidance`, so that the difference is the score's error
alone. Algorithm 2 takes one step of Adam per round on the network (Guo, Yuan, Yang, Chen and Wang,
arXiv 2404.14743v2, appendix E.1).
"""

from __future__ import annotations

import copy
import time

import numpy as np
import torch

from socft.guidance.denoiser import ScoreDenoiser
from socft.guidance.iterated import IncrementTarget, IteratedGuidance, SampleQuery, ScoreFineTuning
from socft.guidance.score_network import FineTuneNetwork, ScoreNetwork, train_score
from socft.records import Record
from socft.reference import ScoreReference
from socft.schedule import Schedule
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.guidance.subspace import BATCH, DIM, GUIDES, RUNS, Subspace, chain, subspace
from toy.studies.guidance import round_rows

OBJECTIVE = ProblemName.F1_OFF
RATE = 1e-4  # of Algorithm 2's Adam


def network_task(train: int, width: int, rounds: int, steps: int) -> list[Record]:
    """A network trained on the subspace, its error, and the published runs on f1 with it."""
    data, schedule, generator = subspace(), chain(steps), torch.Generator().manual_seed(4)
    network = ScoreNetwork(schedule.abar[:-1], DIM, width, generator=generator)
    start = time.perf_counter()
    train_score(network, lambda batch: data.law.sample(batch, generator), generator, steps=train)
    network.requires_grad_(False)
    seconds = time.perf_counter() - start
    records = [_score_error(network, data, schedule, train, seconds)]
    for guidance in GUIDES:
        for algorithm in (1, 2):
            records += _network_run(network, guidance, algorithm, rounds, schedule)
    return records


def _network_run(
    network: ScoreNetwork, guidance: str, algorithm: int, rounds: int, schedule: Schedule
) -> list[Record]:
    tuning: ScoreFineTuning | None = None
    if algorithm == 2:
        tuning = FineTuneNetwork(copy.deepcopy(network).requires_grad_(True), RATE)
    delta = RUNS[OBJECTIVE, guidance, algorithm].delta
    run = IteratedGuidance(GUIDES[guidance], IncrementTarget(delta), SampleQuery(), tuning)
    reference, denoiser = (
        ScoreReference(schedule, network, (DIM,)),
        ScoreDenoiser(network, network.abar),
    )
    reward = subspace().objectives[OBJECTIVE]
    made = run.rounds(
        reference, schedule, denoiser, reward, BATCH, rounds, torch.Generator().manual_seed(1)
    )
    setting = {"algorithm": algorithm, "score": "network", "delta": delta}
    return round_rows(made, schemas.GUIDANCE_NETWORK.name, OBJECTIVE, guidance, rounds, setting)


def _score_error(
    network: ScoreNetwork, data: Subspace, schedule: Schedule, train: int, seconds: float
) -> Record:
    """Mean over steps of ``h E |s - s*|^2 / D``, the error of the predicted noise per coordinate,
    at fresh samples.
    """
    generator, errors = torch.Generator().manual_seed(5), []
    for k, level in enumerate(schedule.abar[:-1].tolist()):
        clean = data.law.sample(256, generator)
        x = level**0.5 * clean + (1 - level) ** 0.5 * torch.randn(
            clean.shape, generator=generator, dtype=torch.float64
        )
        with torch.no_grad():
            difference = network(k, x) - data.law.noised_score(level, x)
        errors.append((1 - level) * float(difference.square().mean()))
    return Record(
        schemas.GUIDANCE_NETWORK.name,
        ProblemName.SUBSPACE,
        Metric.SCORE_ERROR,
        float(np.mean(errors)),
        {"train": train},
        MethodName.SCORE_NETWORK,
        seconds=seconds,
    )


def tasks(quick: bool) -> list[Task]:
    """One task, at the quick or the full scale."""
    sizes = (
        {"train": 60, "width": 64, "rounds": 4}
        if quick
        else {"train": 3000, "width": 256, "rounds": 60}
    )
    return [Task("network", network_task, sizes | {"steps": 25 if quick else 200})]


STUDY = Study(schemas.GUIDANCE_NETWORK, tasks)
