"""Methods side by side, each at a learning rate of its own.

Every method is trained at every rate of a grid from pilot seeds; the rate whose pilots gain most of
the objective, in the mean over prompts, is its own. At that rate it is then trained several times
for every prompt from seeds that had no part in the choice, with as many sampled trajectories as
every other. Each of these trainings is measured on pictures of its own, from noise that all methods
share, so that the spread over trainings has all there is of noise. What a training measured in
every round, time included, says what is reached in the same time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from sd_experiments.studies.reproduce.runs import measure_training
from sd_experiments.studies.reproduce.scales import (
    ComparisonProtocol,
    FineTuningMethod,
    ReproductionScale,
    method_config,
)
from sd_experiments.studies.reproduce.tasks import placed_task, run_name
from socft.checks import require
from socft.records import Record
from socft.study.comparison import pilot_study
from socft.study.runner import forget, run
from socft.study.tasks import Study, Task
from socft.study.vocabulary.metrics import Metric
from socft.study.workers import processes

QUICK_ROUNDS, QUICK_PICTURES = 2, 4


def compare(
    scale: ReproductionScale,
    protocol: ComparisonProtocol,
    quick: bool,
    out: Path,
    count: int | None = None,
    trainings: int | None = None,
) -> list[Record]:
    """Run pilots and trainings; their records go to ``<out>/<study>_pilots.jsonl`` and
    ``<out>/<study>.jsonl``.

    Args:
        count: number of processes; the scale's own by default.
        trainings: how often every method is trained for every prompt, in place of the protocol's.

    Raises:
        InvalidProblem: something is missing or refused.
        StudyFailed: runs failed; the same command repeats only these.
    """
    if trainings is not None:
        require(trainings >= 2, f"trainings = {trainings}; an interval needs at least 2.")
        protocol = dataclasses.replace(protocol, trainings=trainings)
    if quick:
        scale = dataclasses.replace(scale, rounds=QUICK_ROUNDS, pictures=QUICK_PICTURES)
        protocol = dataclasses.replace(protocol, rates=protocol.rates[-2:], trainings=2)
    methods = compared(scale, protocol)
    schema = scale.study.named(pilot_study(scale.study.name))
    pilots = Study(schema, lambda _: pilot_tasks(scale, protocol, methods))
    with processes(count or scale.workers) as pool:
        tried = run(pilots, quick, out, pool, keep=True)
        tuned = [
            dataclasses.replace(method, rate=best_rate(tried, method.title)) for method in methods
        ]
        study = Study(scale.study, lambda _: training_tasks(scale, protocol, tuned))
        records = run(study, quick, out, pool)
    forget(pilots, out)
    return records


def compared(scale: ReproductionScale, protocol: ComparisonProtocol) -> list[FineTuningMethod]:
    """The methods of a protocol, with its settings."""
    found = {method.title: method for method in scale.methods}
    return [
        dataclasses.replace(found[title], batch={**protocol.batch, **found[title].batch})
        for title in protocol.methods
    ]


def pilot_tasks(
    scale: ReproductionScale, protocol: ComparisonProtocol, methods: Sequence[FineTuningMethod]
) -> list[Task]:
    """A training of every method at every rate from every pilot seed."""
    return [
        _training_task(scale, dataclasses.replace(method, rate=rate), prompt, seed, "pilot")
        for seed in protocol.pilots
        for rate in protocol.rates
        for prompt in protocol.prompts
        for method in methods
    ]


def training_tasks(
    scale: ReproductionScale, protocol: ComparisonProtocol, methods: Sequence[FineTuningMethod]
) -> list[Task]:
    """The trainings of every method, in turn, so that what disturbs the clock disturbs all."""
    return [
        _training_task(scale, method, prompt, seed, "training")
        for seed in range(1, protocol.trainings + 1)
        for prompt in protocol.prompts
        for method in methods
    ]


def best_rate(pilots: Sequence[Record], title: str) -> float:
    """The rate whose pilots gain most of the objective, in the mean over prompts and seeds."""
    gains: dict[float, list[float]] = {}
    for record in pilots:
        if record.estimator == title and record.metric == Metric.OBJECTIVE_GAIN:
            gains.setdefault(record.setting["rate"], []).append(record.value)
    return max(gains, key=lambda rate: math.fsum(gains[rate]) / len(gains[rate]))


def _training_task(
    scale: ReproductionScale, method: FineTuningMethod, prompt: str, seed: int, part: str
) -> Task:
    beta = scale.settings.problem.beta
    settings = method_config(scale, method, prompt, beta)
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, seed=seed))
    setting = {part: seed}
    return placed_task(
        run_name(method.title, prompt, beta=beta, rate=method.rate, **setting),
        measure_training,
        settings,
        {
            "study": scale.study.name if part == "training" else pilot_study(scale.study.name),
            "method": method,
            "pictures": scale.pictures,
            "setting": setting,
        },
    )
